//! What is known of a message that was sent: what waits is asked of the queue, what was captured of the
//! sandbox. Of what has left there is no history yet.

use super::draft::due;
use crate::caller::{Caller, Keys};
use crate::port::{Captured, Relay};
use crate::problem::Problem;
use crate::public::Api;
use crate::queue::ask;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use postrider_engine::operate::{Act, Filter, RecipientView, Request, Response};
use postrider_model::control::{Application, Scope};
use postrider_model::{MessageId, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::time::Duration;

/// Looks at how far an act is, and the time between them.
const LOOKS_MAX: usize = 1_000;
const LOOK: Duration = Duration::from_millis(5);

/// A message, as far as it is known.
#[derive(Debug, Serialize)]
pub(crate) struct EmailView {
    id: String,
    /// `queued` while a recipient waits, else `captured`.
    status: &'static str,
    accepted_at: Timestamp,
    sender: String,
    recipients: Vec<RecipientState>,
}

/// One recipient.
#[derive(Debug, Serialize)]
struct RecipientState {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    address: String,
    /// `ready`, `deferred`, `held`, `sending` or `captured`.
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempts: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    due: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_reply: Option<String>,
}

fn unknown(id: &str) -> Problem {
    Problem::not_found(format!(
        "nothing that waits or was captured is called {id}; if it was sent with this application, it has been \
         delivered, returned or cancelled, of which no history is kept yet"
    ))
}

/// The recipients of a message of this application that wait.
async fn waiting<R: Relay>(
    relay: &R,
    application: &Application,
    id: &str,
) -> Result<Vec<RecipientView>, Problem> {
    if id.parse::<MessageId>().is_err() {
        return Err(unknown(id));
    }
    let account = application.id.to_string();
    match ask(relay, Request::Show { id: id.to_owned() }).await {
        Ok(Response::Recipients(recipients)) => {
            Ok(recipients.into_iter().filter(|recipient| *recipient.account == *account).collect())
        }
        Ok(_) => Err(unknown(id)),
        // An id that this relay did not make.
        Err(problem) if problem.status == StatusCode::BAD_REQUEST => Err(unknown(id)),
        Err(problem) => Err(problem),
    }
}

async fn captured<R: Relay>(
    relay: &R,
    application: &Application,
    id: &str,
) -> Result<Option<Captured>, Problem> {
    let captured = relay.captured_one(id.to_owned()).await?;
    Ok(captured.filter(|captured| captured.account == application.id.to_string()))
}

/// `GET /v1/emails/{id}`
pub(crate) async fn show<R: Relay + Keys>(
    State(api): State<Api<R>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<EmailView>, Problem> {
    let application = caller.application(Scope::Read)?;
    let waiting = waiting(&api.relay, application, &id).await?;
    let captured = captured(&api.relay, application, &id).await?;
    let mut recipients: Vec<RecipientState> = waiting
        .iter()
        .map(|recipient| RecipientState {
            id: Some(recipient.id.to_string()),
            address: recipient.recipient.to_string(),
            state: recipient.state,
            attempts: Some(recipient.attempts),
            due: Some(recipient.due),
            last_reply: recipient.last_reply.as_ref().map(ToString::to_string),
        })
        .collect();
    let (accepted_at, sender) = match (waiting.first(), &captured) {
        (Some(first), _) => {
            (first.accepted_at, first.sender.as_ref().map(ToString::to_string).unwrap_or_default())
        }
        (None, Some(captured)) => (captured.accepted_at, captured.sender.clone()),
        (None, None) => return Err(unknown(&id)),
    };
    let status = if waiting.is_empty() { "captured" } else { "queued" };
    for address in captured.into_iter().flat_map(|captured| captured.recipients) {
        // A capture whose verdict is not yet written is still in the queue.
        if !recipients.iter().any(|known| known.address == address) {
            let state = "captured";
            recipients.push(RecipientState {
                id: None,
                address,
                state,
                attempts: None,
                due: None,
                last_reply: None,
            });
        }
    }
    Ok(Json(EmailView { id, status, accepted_at, sender, recipients }))
}

/// `POST /v1/emails/{id}/cancel`
pub(crate) async fn cancel<R: Relay + Keys>(
    State(api): State<Api<R>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Value>, Problem> {
    act(&api, &caller, id, Act::Cancel { notify: false }, "cancelled").await
}

/// `POST /v1/emails/{id}/retry`
pub(crate) async fn retry<R: Relay + Keys>(
    State(api): State<Api<R>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Value>, Problem> {
    act(&api, &caller, id, Act::Retry, "due").await
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Change {
    scheduled_at: String,
}

/// `PATCH /v1/emails/{id}`: another time for what waits.
pub(crate) async fn change<R: Relay + Keys>(
    State(api): State<Api<R>>,
    caller: Caller,
    Path(id): Path<String>,
    body: axum::body::Bytes,
) -> Result<Json<Value>, Problem> {
    let Change { scheduled_at } = serde_json::from_slice(&body)
        .map_err(|error| Problem::bad_request(format!("send {{\"scheduled_at\": \"…\"}}: {error}")))?;
    let mut errors = Vec::new();
    let Some(due) = due(Some(&scheduled_at), api.relay.now(), &mut errors) else {
        return Err(Problem::invalid(errors));
    };
    act(&api, &caller, id, Act::Schedule { at_us: due.as_micros() }, "scheduled").await
}

async fn act<R: Relay>(
    api: &Api<R>,
    caller: &Caller,
    id: String,
    act: Act,
    word: &str,
) -> Result<Json<Value>, Problem> {
    let application = caller.application(Scope::Send)?;
    let waiting = waiting(&api.relay, application, &id).await?;
    if waiting.is_empty() {
        if captured(&api.relay, application, &id).await?.is_some() {
            return Err(Problem::conflict(format!("{id} was captured already: nothing of it waits")));
        }
        return Err(unknown(&id));
    }
    let filter =
        Filter { ids: vec![id.clone()], account: Some(application.id.to_string()), ..Filter::default() };
    let mut answer = ask(&api.relay, Request::Act { act, filter }).await?;
    for _ in 0..LOOKS_MAX {
        match answer {
            Response::Acted(view) if view.done => return Ok(Json(json!({ "id": id, (word): view.changed }))),
            Response::Acted(view) => {
                // Envelopes are being read back; a message's are few.
                tokio::time::sleep(LOOK).await;
                answer = ask(&api.relay, Request::Progress { number: view.number }).await?;
            }
            _ => break,
        }
    }
    Err(Problem::timeout())
}
