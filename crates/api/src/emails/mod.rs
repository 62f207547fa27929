//! `/v1/emails`: sending, and what is known of what was sent.

pub(crate) mod draft;
pub(crate) mod raw;
pub(crate) mod request;
mod state;

use crate::caller::{Caller, Keys, Peer};
use crate::port::Relay;
use crate::problem::Problem;
use crate::public::Api;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use draft::{Sender, draft};
use postrider_ingress::Submission;
use postrider_model::control::Scope;
use request::{EmailRequest, Object};
use serde::Serialize;
use serde_json::Value;

pub(crate) use state::{cancel, change, retry, show};

/// Messages of one batch.
pub(crate) const BATCH_MAX: usize = 1_000;
/// Octets of a body beyond which reading it is left to a thread of its own.
const LARGE_BODY_SIZE: usize = 128 << 10;

/// A message that was taken.
#[derive(Debug, Serialize)]
pub(crate) struct Sent {
    pub(crate) id: Box<str>,
}

/// One entry of the answer to a batch: an id, or what was wrong with it.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum BatchEntry {
    Sent(Sent),
    Refused { error: Value },
}

#[derive(Debug, Serialize)]
struct BatchAnswer {
    data: Vec<BatchEntry>,
}

/// Reads and composes, off the event loop if that takes long.
pub(crate) async fn prepared<T: Send + 'static>(
    size: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Problem> {
    if size <= LARGE_BODY_SIZE {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        tracing::error!(%error, "a request could not be read");
        Problem::busy("the request could not be read; this is a fault of ours")
    })
}

pub(crate) fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let kind = value.split(';').next().unwrap_or("").trim();
    kind.eq_ignore_ascii_case("application/json")
}

/// What a client relies on that is not there is refused.
fn no_idempotency_key(headers: &HeaderMap) -> Result<(), Problem> {
    if headers.contains_key("idempotency-key") {
        return Err(Problem::bad_request("the header Idempotency-Key is not supported yet; leave it out"));
    }
    Ok(())
}

pub(crate) fn sender(caller: &Caller, peer: Peer) -> Result<Sender, Problem> {
    let application = caller.application(Scope::Send)?.clone();
    Ok(Sender { application, environment: caller.key.environment, client: peer.address })
}

/// `POST /v1/emails`
pub(crate) async fn send<R: Relay + Keys>(
    State(api): State<Api<R>>,
    caller: Caller,
    peer: Peer,
    headers: HeaderMap,
    body: Bytes,
) -> Result<(StatusCode, axum::Json<Sent>), Problem> {
    let sender = sender(&caller, peer)?;
    no_idempotency_key(&headers)?;
    if !is_json(&headers) {
        return Err(Problem::unsupported_type("application/json"));
    }
    let now = api.relay.now();
    let work = move || draft(&EmailRequest::read(&body)?, &sender, now);
    let size = content_length(&headers);
    let submission = prepared(size, work).await??;
    let id = api.submitter.submit(submission).await?;
    Ok((StatusCode::ACCEPTED, axum::Json(Sent { id })))
}

fn content_length(headers: &HeaderMap) -> usize {
    let value = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    value.and_then(|value| value.parse().ok()).unwrap_or(usize::MAX)
}

/// `POST /v1/emails/batch`
pub(crate) async fn batch<R: Relay + Keys>(
    State(api): State<Api<R>>,
    caller: Caller,
    peer: Peer,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let sender = sender(&caller, peer)?;
    no_idempotency_key(&headers)?;
    if !is_json(&headers) {
        return Err(Problem::unsupported_type("application/json"));
    }
    let now = api.relay.now();
    let work = move || -> Result<Vec<Result<Submission, Problem>>, Problem> {
        let requests = batch_requests(&body)?;
        Ok(requests.into_iter().map(|request| draft(&request?, &sender, now)).collect())
    };
    let drafts = prepared(content_length(&headers), work).await??;
    let results = api.submitter.submit_all(drafts).await;
    let all_refused = !results.iter().any(Result::is_ok);
    let data = results.into_iter().map(|result| match result {
        Ok(id) => BatchEntry::Sent(Sent { id }),
        Err(problem) => {
            BatchEntry::Refused { error: serde_json::from_str(&problem.json()).unwrap_or(Value::Null) }
        }
    });
    let status = if all_refused { StatusCode::UNPROCESSABLE_ENTITY } else { StatusCode::ACCEPTED };
    Ok((status, axum::Json(BatchAnswer { data: data.collect() })).into_response())
}

/// The entries of a batch, each readable or not.
pub(crate) fn batch_requests(body: &[u8]) -> Result<Vec<Result<EmailRequest, Problem>>, Problem> {
    // The usual batch is whole; what is wrong with one entry is looked for only if something is.
    if let Ok(requests) = serde_json::from_slice::<Vec<Object>>(body) {
        counted(requests.len())?;
        return Ok(requests.into_iter().map(|Object(request)| Ok(request)).collect());
    }
    let values: Vec<Value> = serde_json::from_slice(body)
        .map_err(|error| Problem::bad_request(format!("the body is not a JSON list of messages: {error}")))?;
    counted(values.len())?;
    Ok(values.iter().map(EmailRequest::of_value).collect())
}

fn counted(entries: usize) -> Result<(), Problem> {
    match entries {
        0 => Err(Problem::bad_request("the list of messages is empty")),
        1..=BATCH_MAX => Ok(()),
        _ => Err(Problem::bad_request(format!("a batch holds at most {BATCH_MAX} messages"))),
    }
}
