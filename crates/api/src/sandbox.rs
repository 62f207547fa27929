//! Captured mail.

use crate::port::{Relay, Wanted};
use crate::problem::Problem;
use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::header;
use axum::response::IntoResponse;
use serde_json::{Value, json};

const PAGE_DEFAULT: usize = 100;
const PAGE_MAX: usize = 1_000;

fn missing(id: &str) -> Problem {
    Problem::not_found(format!(
        "the sandbox holds no message {id}; `postrider sandbox list` shows what it has"
    ))
}

pub(crate) async fn list<R: Relay>(
    State(relay): State<R>,
    query: Result<Query<Wanted>, QueryRejection>,
) -> Result<Json<Value>, Problem> {
    let Query(wanted) = query.map_err(|error| Problem::bad_request(error.body_text()))?;
    page(&relay, wanted).await
}

pub(crate) async fn page<R: Relay>(relay: &R, mut wanted: Wanted) -> Result<Json<Value>, Problem> {
    let limit = wanted.limit.unwrap_or(PAGE_DEFAULT).clamp(1, PAGE_MAX);
    wanted.limit = Some(limit + 1);
    let mut items = relay.captured(wanted).await?;
    let more = items.len() > limit;
    items.truncate(limit);
    let next = items.last().filter(|_| more).map(|message| message.id.clone());
    Ok(Json(json!({ "items": items, "next": next })))
}

pub(crate) async fn show<R: Relay>(
    State(relay): State<R>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Problem> {
    let message = relay.captured_one(id.clone()).await?.ok_or_else(|| missing(&id))?;
    Ok(Json(json!(message)))
}

pub(crate) async fn content<R: Relay>(
    State(relay): State<R>,
    Path(id): Path<String>,
) -> Result<impl IntoResponse, Problem> {
    let content = relay.captured_content(id.clone()).await?.ok_or_else(|| missing(&id))?;
    Ok(([(header::CONTENT_TYPE, "message/rfc822")], content))
}

pub(crate) async fn delete<R: Relay>(
    State(relay): State<R>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Problem> {
    match relay.captured_delete(Some(id.clone())).await? {
        0 => Err(missing(&id)),
        deleted => Ok(Json(json!({ "deleted": deleted }))),
    }
}

pub(crate) async fn clear<R: Relay>(State(relay): State<R>) -> Result<Json<Value>, Problem> {
    let deleted = relay.captured_delete(None).await?;
    Ok(Json(json!({ "deleted": deleted })))
}
