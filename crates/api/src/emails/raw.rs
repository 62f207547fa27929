//! `POST /v1/emails/raw`: a message that is MIME already.

use super::draft::{RECIPIENTS_MAX, may_send};
use super::{Sent, no_idempotency_key, prepared, sender};
use crate::caller::{Caller, Keys, Peer};
use crate::port::Relay;
use crate::problem::{FieldError, Problem};
use crate::public::Api;
use axum::body::Bytes;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use postrider_ingress::{Content, Submission};
use postrider_message::{HeaderScan, Party};
use postrider_model::{BodyKind, Envelope, Mailbox};
use serde::Deserialize;
use std::collections::HashSet;

/// The envelope, where it is not that of the header.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct EnvelopeQuery {
    /// The reverse-path; the first From address if it is left out.
    from: Option<String>,
    /// Recipients with commas between; those of To, Cc and Bcc if it is left out.
    to: Option<String>,
}

/// `POST /v1/emails/raw`
pub(crate) async fn send<R: Relay + Keys>(
    State(api): State<Api<R>>,
    caller: Caller,
    peer: Peer,
    query: Result<Query<EnvelopeQuery>, QueryRejection>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<(StatusCode, axum::Json<Sent>), Problem> {
    let sender = sender(&caller, peer)?;
    no_idempotency_key(&headers)?;
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    if !kind.split(';').next().unwrap_or("").trim().eq_ignore_ascii_case("message/rfc822") {
        return Err(Problem::unsupported_type("message/rfc822"));
    }
    let Query(query) = query.map_err(|error| Problem::bad_request(error.body_text()))?;
    let now = api.relay.now();
    let size = body.len();
    let work = move || -> Result<Submission, Problem> {
        let (reverse_path, recipients) = envelope(&query, &body)?;
        may_send(&sender, &reverse_path, now)?;
        let smtputf8 = reverse_path.needs_smtputf8()
            || recipients.iter().any(Mailbox::needs_smtputf8)
            || HeaderScan::whole(std::slice::from_ref(&body)).eight_bit;
        let body_kind = if body.is_ascii() { BodyKind::SevenBit } else { BodyKind::EightBitMime };
        let envelope =
            Envelope { reverse_path: Some(reverse_path), body: body_kind, smtputf8, ..Envelope::default() };
        Ok(sender.submission(envelope, recipients, Content::written(&body)))
    };
    let submission = prepared(size, work).await??;
    let id = api.submitter.submit(submission).await?;
    Ok((StatusCode::ACCEPTED, axum::Json(Sent { id })))
}

/// Reverse-path and recipients: as the query says, else as the header does.
fn envelope(query: &EnvelopeQuery, body: &Bytes) -> Result<(Mailbox, Vec<Mailbox>), Problem> {
    let content = std::slice::from_ref(body);
    let header = HeaderScan::whole(content);
    let wrong = |field: &str, detail: String| Problem::invalid(vec![FieldError::new(field, detail)]);
    let reverse_path = match &query.from {
        Some(text) => text.parse::<Mailbox>().map_err(|error| wrong("from", error.to_string()))?,
        None => {
            let authors = header.authors(content).map_err(|error| wrong("from", error.to_string()))?;
            // Invariant: there is at least one.
            authors.from.into_iter().next().ok_or_else(|| wrong("from", "is missing".to_owned()))?
        }
    };
    let named = match &query.to {
        Some(text) => {
            let parties = Party::parse_list(text).map_err(|error| wrong("to", error.to_string()))?;
            parties.into_iter().map(|party| party.mailbox).collect()
        }
        None => header
            .addressees(content, RECIPIENTS_MAX)
            .map_err(|error| wrong("to", format!("{error}; name the recipients with ?to=")))?,
    };
    let mut seen = HashSet::with_capacity(named.len());
    let recipients: Vec<Mailbox> = named.iter().filter(|mailbox| seen.insert(*mailbox)).cloned().collect();
    match recipients.len() {
        0 => Err(wrong("to", "is missing: name at least one recipient".to_owned())),
        1..=RECIPIENTS_MAX => Ok((reverse_path, recipients)),
        _ => Err(wrong("to", format!("names more than {RECIPIENTS_MAX} recipients"))),
    }
}
