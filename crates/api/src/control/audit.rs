//! The audit log.

use super::{PAGE_DEFAULT, PAGE_MAX, registry};
use crate::actor::Actor;
use crate::port::Relay;
use crate::problem::Problem;
use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use postrider_model::control::Scope;
use postrider_store::{AuditPage, AuditReport};
use serde::Deserialize;

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Wanted {
    limit: Option<usize>,
    before: Option<u64>,
    target: Option<String>,
}

pub(crate) async fn list<R: Relay>(
    State(relay): State<R>,
    actor: Actor,
    query: Result<Query<Wanted>, QueryRejection>,
) -> Result<Json<AuditPage>, Problem> {
    actor.must_for_all(Scope::ReadAudit)?;
    let Query(wanted) = query.map_err(|error| Problem::bad_request(error.body_text()))?;
    let limit = wanted.limit.unwrap_or(PAGE_DEFAULT).clamp(1, PAGE_MAX);
    let page = registry(&relay)?.audit(wanted.before, wanted.target, actor.tenant(), limit);
    Ok(Json(page.get().await?))
}

pub(crate) async fn verify<R: Relay>(
    State(relay): State<R>,
    actor: Actor,
) -> Result<Json<AuditReport>, Problem> {
    actor.must_for_instance(Scope::ReadAudit)?;
    Ok(Json(registry(&relay)?.verify_audit().get().await?))
}
