//! The control plane's routes: applications, credentials, keys, the instance and the audit log.

mod applications;
mod audit;
mod credentials;
mod instance;
mod keys;
mod secrets;

use crate::port::Relay;
use crate::problem::{FieldError, Problem};
use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use postrider_model::control::{Application, Control};
use postrider_store::{Registry, StoreError};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

pub(crate) const PAGE_DEFAULT: usize = 100;
pub(crate) const PAGE_MAX: usize = 1_000;

/// The routes. Whoever merges them adds an `Actor` to every request.
pub(crate) fn router<R: Relay>(relay: R) -> Router {
    Router::new()
        .route("/v1/applications", get(applications::list::<R>).post(applications::create::<R>))
        .route(
            "/v1/applications/{id}",
            get(applications::show::<R>).patch(applications::change::<R>).delete(applications::delete::<R>),
        )
        .route("/v1/applications/{id}/revoke", post(applications::revoke::<R>))
        .route(
            "/v1/applications/{id}/credentials",
            get(credentials::list::<R>).post(credentials::create::<R>),
        )
        .route("/v1/applications/{id}/credentials/{credential}", delete(credentials::revoke::<R>))
        .route("/v1/keys", get(keys::list::<R>).post(keys::create::<R>))
        .route("/v1/keys/{id}", get(keys::show::<R>).delete(keys::revoke::<R>))
        .route("/v1/instance", get(instance::show::<R>).patch(instance::change::<R>))
        .route("/v1/audit", get(audit::list::<R>))
        .route("/v1/audit/verify", get(audit::verify::<R>))
        .method_not_allowed_fallback(|| async { Problem::method_not_allowed() })
        .with_state(relay)
}

/// The control plane of a relay.
pub(crate) fn registry<R: Relay>(relay: &R) -> Result<Arc<Registry>, Problem> {
    relay.registry().ok_or_else(|| Problem::busy("this relay has no control plane"))
}

/// A page of a list.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Page {
    limit: Option<usize>,
    after: Option<String>,
}

#[derive(Serialize)]
pub(crate) struct Listed<T> {
    items: Vec<T>,
    next: Option<String>,
}

impl Page {
    /// The page of these; `id` is what `after` names.
    fn of<T>(&self, all: impl Iterator<Item = T>, id: impl Fn(&T) -> String) -> Listed<T> {
        let limit = self.limit.unwrap_or(PAGE_DEFAULT).clamp(1, PAGE_MAX);
        let after = self.after.as_deref().unwrap_or_default();
        let mut items: Vec<T> = all.filter(|item| id(item).as_str() > after).take(limit + 1).collect();
        let more = items.len() > limit;
        items.truncate(limit);
        let next = items.last().filter(|_| more).map(id);
        Listed { items, next }
    }
}

/// A body of JSON; an empty one says nothing.
pub(crate) fn body<T: DeserializeOwned + Default>(octets: &Bytes) -> Result<T, Problem> {
    if octets.is_empty() {
        return Ok(T::default());
    }
    serde_json::from_slice(octets)
        .map_err(|error| Problem::bad_request(format!("the body is not what this route takes: {error}")))
}

/// The version that a change is made for (`If-Match: "3"`), if the request names one.
fn wanted_version(headers: &HeaderMap) -> Result<Option<u64>, Problem> {
    let Some(value) = headers.get(header::IF_MATCH) else { return Ok(None) };
    let text = value.to_str().unwrap_or_default().trim();
    if text == "*" {
        return Ok(None);
    }
    let number = text.trim_start_matches("W/").trim_matches('"').parse();
    number.map(Some).map_err(|_| {
        Problem::bad_request("If-Match names a version as ETag did: \"3\"; read the resource to see it")
    })
}

/// An application with its version as ETag.
fn versioned(status: StatusCode, version: u64, body: &impl Serialize) -> Response {
    (status, [(header::ETAG, format!("\"{version}\""))], axum::Json(body)).into_response()
}

/// An application that the actor sees, by id or name.
fn find<'a>(
    control: &'a Control,
    actor: &crate::actor::Actor,
    wanted: &str,
) -> Result<&'a Arc<Application>, StoreError> {
    let found = match wanted.parse() {
        Ok(id) => control.application(id),
        Err(_) => actor.home(control).and_then(|tenant| control.application_named(tenant, wanted)),
    };
    found.filter(|application| actor.sees(application)).ok_or_else(|| {
        StoreError::Missing(format!("application {wanted}; `postrider app list` shows what there is"))
    })
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        let detail = error.to_string();
        match error {
            StoreError::Unavailable(_) => Problem::busy(detail),
            StoreError::Refused(violations) => Problem::invalid(
                violations
                    .0
                    .into_iter()
                    .map(|violation| FieldError::new(violation.field, violation.detail))
                    .collect(),
            ),
            StoreError::Missing(_) => Problem::not_found(detail),
            StoreError::Stale { .. } => Problem::stale(detail),
            StoreError::Forbidden(_) => Problem::forbidden("key.scopes", detail),
            StoreError::Damaged(_) => {
                tracing::error!(detail, "the store");
                Problem::internal(detail)
            }
        }
    }
}
