//! The routes that applications use, each under the key of one.

use crate::actor::Actor;
use crate::caller::{Caller, Keys};
use crate::port::{Captured, Relay, Wanted};
use crate::problem::Problem;
use crate::submitter::Submitter;
use crate::{compat, control, emails, openapi, sandbox};
use axum::Json;
use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use postrider_model::control::{KeyRefusal, Scope};
use serde_json::{Value, json};
use std::net::IpAddr;

/// Octets of a request's body: attachments come in base64.
pub(crate) const BODY_SIZE_MAX: usize = 64 << 20;

/// What every route needs.
#[derive(Clone)]
pub(crate) struct Api<R> {
    pub(crate) relay: R,
    pub(crate) submitter: Submitter,
}

impl<R: Relay + Keys> Keys for Api<R> {
    fn caller(&self, key: &str, client: IpAddr) -> Result<Caller, KeyRefusal> {
        self.relay.caller(key, client)
    }
}

/// All of them. Called within the runtime that serves them.
pub(crate) fn router<R: Relay + Keys>(relay: R) -> Router {
    let api = Api { submitter: Submitter::start(relay.clone()), relay };
    let manage = control::router(api.relay.clone()).layer(from_fn_with_state(api.clone(), identify::<R>));
    Router::new()
        .route("/v1/emails", post(emails::send::<R>))
        .route("/v1/emails/batch", post(emails::batch::<R>))
        .route("/v1/emails/raw", post(emails::raw::send::<R>))
        .route("/v1/emails/{id}", get(emails::show::<R>).patch(emails::change::<R>))
        .route("/v1/emails/{id}/cancel", post(emails::cancel::<R>))
        .route("/v1/emails/{id}/retry", post(emails::retry::<R>))
        .route("/v1/sandbox/messages", get(list::<R>))
        .route("/v1/sandbox/messages/{id}", get(show::<R>).delete(delete::<R>))
        .route("/v1/sandbox/messages/{id}/content", get(content::<R>))
        .merge(compat::router())
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready::<R>))
        .route("/v1/openapi.json", get(|| async { Json(openapi::document()) }))
        .fallback(|| async { Problem::not_found("no such route; the routes are listed in docs/api.md") })
        .method_not_allowed_fallback(|| async { Problem::method_not_allowed() })
        .with_state(api)
        .merge(manage)
        .layer(DefaultBodyLimit::max(BODY_SIZE_MAX))
}

/// Puts whoever shows the key behind a request of the control plane.
async fn identify<R: Relay + Keys>(
    State(_): State<Api<R>>,
    caller: Caller,
    mut request: Request,
    next: Next,
) -> Response {
    request.extensions_mut().insert(Actor::of(&caller));
    next.run(request).await
}

async fn ready<R: Relay + Keys>(State(api): State<Api<R>>) -> impl IntoResponse {
    let health = api.relay.health();
    let status = if health.status == "ok" { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, health.status + "\n")
}

/// Captured mail of the key's application, the newest first.
async fn list<R: Relay + Keys>(
    State(api): State<Api<R>>,
    caller: Caller,
    query: Result<Query<Wanted>, QueryRejection>,
) -> Result<Json<Value>, Problem> {
    let application = caller.application(Scope::Content)?;
    let Query(mut wanted) = query.map_err(|error| Problem::bad_request(error.body_text()))?;
    wanted.account = Some(application.id.to_string());
    sandbox::page(&api.relay, wanted).await
}

async fn own<R: Relay>(api: &Api<R>, caller: &Caller, id: &str) -> Result<Captured, Problem> {
    let account = caller.application(Scope::Content)?.id.to_string();
    let captured = api.relay.captured_one(id.to_owned()).await?;
    captured
        .filter(|captured| captured.account == account)
        .ok_or_else(|| Problem::not_found(format!("the sandbox holds no message {id} of this application")))
}

async fn show<R: Relay + Keys>(
    State(api): State<Api<R>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Captured>, Problem> {
    own(&api, &caller, &id).await.map(Json)
}

async fn content<R: Relay + Keys>(
    State(api): State<Api<R>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<impl IntoResponse, Problem> {
    own(&api, &caller, &id).await?;
    let content = api.relay.captured_content(id.clone()).await?;
    let gone = || Problem::not_found(format!("the sandbox holds no message {id} any more"));
    Ok(([(header::CONTENT_TYPE, "message/rfc822")], content.ok_or_else(gone)?))
}

async fn delete<R: Relay + Keys>(
    State(api): State<Api<R>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Value>, Problem> {
    own(&api, &caller, &id).await?;
    let deleted = api.relay.captured_delete(Some(id)).await?;
    Ok(Json(json!({ "deleted": deleted })))
}
