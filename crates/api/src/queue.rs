//! The queue's routes.

use crate::port::Relay;
use crate::problem::Problem;
use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use postrider_engine::operate::{Act, ActView, Filter, RecipientView, Request, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::time::Duration;

/// Recipients of a page, unless asked for fewer.
const PAGE_DEFAULT: usize = 100;
/// Recipients of a page at most.
const PAGE_MAX: usize = 10_000;
/// How long the shards may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// An act and on whom, as the body of `POST /v1/queue`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// What.
    pub act: Act,
    /// On whom.
    #[serde(default)]
    pub filter: Filter,
}

/// A [`Filter`] as a query; several ids are separated by commas.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ListQuery {
    all: bool,
    ids: Option<String>,
    sender: Option<String>,
    recipient: Option<String>,
    domain: Option<String>,
    account: Option<String>,
    older_than_s: Option<u64>,
    reply: Option<String>,
    state: Option<String>,
    limit: Option<usize>,
    after: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ExplainQuery {
    target: String,
}

/// Asks the shards, for as long as they may take.
pub(crate) async fn ask<R: Relay>(relay: &R, request: Request) -> Result<Response, Problem> {
    match tokio::time::timeout(ANSWER_TIMEOUT, relay.ask(request)).await {
        Err(_) => Err(Problem::timeout()),
        Ok(Err(unavailable)) => Err(unavailable.into()),
        Ok(Ok(Response::Error(detail))) => Err(Problem::bad_request(detail)),
        Ok(Ok(response)) => Ok(response),
    }
}

fn unexpected(response: &Response) -> Problem {
    tracing::error!(?response, "the shards answered another question");
    Problem::from(crate::Unavailable("the relay answered another question; this is a fault of ours".into()))
}

pub(crate) async fn list<R: Relay>(
    State(relay): State<R>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<Value>, Problem> {
    let Query(query) = query.map_err(|error| Problem::bad_request(error.body_text()))?;
    let limit = query.limit.unwrap_or(PAGE_DEFAULT).clamp(1, PAGE_MAX);
    let ids = query.ids.iter().flat_map(|ids| ids.split(',')).map(|id| id.trim().to_owned()).collect();
    let filter = Filter {
        all: query.all,
        ids,
        sender: query.sender,
        recipient: query.recipient,
        domain: query.domain,
        account: query.account,
        older_than_s: query.older_than_s,
        reply: query.reply,
        state: query.state,
    };
    // One more than asked for tells whether there is another page.
    let request = Request::List { filter, limit: limit + 1, after: query.after };
    match ask(&relay, request).await? {
        Response::Recipients(recipients) => Ok(Json(page(recipients, limit))),
        other => Err(unexpected(&other)),
    }
}

fn page(mut recipients: Vec<RecipientView>, limit: usize) -> Value {
    let more = recipients.len() > limit;
    recipients.truncate(limit);
    let next = recipients.last().filter(|_| more).map(|recipient| recipient.id.to_string());
    json!({ "items": recipients, "next": next })
}

pub(crate) async fn show<R: Relay>(
    State(relay): State<R>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Problem> {
    match ask(&relay, Request::Show { id: id.clone() }).await? {
        Response::Recipients(recipients) if recipients.is_empty() => Err(Problem::not_found(format!(
            "nothing in the queue is called {id}: it may have been delivered or returned"
        ))),
        Response::Recipients(recipients) => Ok(Json(json!({ "items": recipients }))),
        other => Err(unexpected(&other)),
    }
}

pub(crate) async fn act<R: Relay>(
    State(relay): State<R>,
    order: Result<Json<Order>, JsonRejection>,
) -> Result<(StatusCode, Json<ActView>), Problem> {
    let Json(Order { act, filter }) = order.map_err(|error| Problem::bad_request(error.body_text()))?;
    if filter == Filter::default() && !matches!(act, Act::Resume { .. }) {
        return Err(Problem::bad_request(
            "the filter is empty, which acts on nobody; name recipients, or set \"all\": true",
        ));
    }
    match ask(&relay, Request::Act { act, filter }).await? {
        Response::Acted(view) => {
            let status = if view.done { StatusCode::OK } else { StatusCode::ACCEPTED };
            Ok((status, Json(view)))
        }
        other => Err(unexpected(&other)),
    }
}

pub(crate) async fn progress<R: Relay>(
    State(relay): State<R>,
    Path(number): Path<u64>,
) -> Result<Json<ActView>, Problem> {
    match ask(&relay, Request::Progress { number }).await? {
        Response::Acted(view) => Ok(Json(view)),
        other => Err(unexpected(&other)),
    }
}

pub(crate) async fn explain<R: Relay>(
    State(relay): State<R>,
    query: Result<Query<ExplainQuery>, QueryRejection>,
) -> Result<Json<Value>, Problem> {
    let Query(ExplainQuery { target }) = query.map_err(|_| {
        Problem::bad_request("say what to explain: ?target= with a recipient id, an address or a domain")
    })?;
    match ask(&relay, Request::Explain { target: target.clone() }).await? {
        Response::Explanations(explanations) if explanations.is_empty() => {
            Err(Problem::not_found(format!("nothing that waits is called {target}")))
        }
        Response::Explanations(explanations) => Ok(Json(json!({ "items": explanations }))),
        other => Err(unexpected(&other)),
    }
}

pub(crate) async fn lanes<R: Relay>(State(relay): State<R>) -> Result<Json<Value>, Problem> {
    match ask(&relay, Request::Lanes).await? {
        Response::Lanes(lanes) => Ok(Json(json!({ "items": lanes }))),
        other => Err(unexpected(&other)),
    }
}

pub(crate) async fn totals<R: Relay>(State(relay): State<R>) -> Result<Json<Value>, Problem> {
    match ask(&relay, Request::Totals).await? {
        Response::Totals(totals) => Ok(Json(json!(totals))),
        other => Err(unexpected(&other)),
    }
}

pub(crate) async fn suspensions<R: Relay>(State(relay): State<R>) -> Result<Json<Value>, Problem> {
    match ask(&relay, Request::Suspensions).await? {
        Response::Suspensions(suspensions) => Ok(Json(json!({ "items": suspensions }))),
        other => Err(unexpected(&other)),
    }
}
