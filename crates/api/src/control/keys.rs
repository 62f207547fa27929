//! API keys.

use super::{Listed, Page, body, find, registry, secrets};
use crate::actor::Actor;
use crate::port::Relay;
use crate::problem::Problem;
use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use postrider_model::control::{
    ApiKey, Change, Control, Environment, InstanceMode, KeyDraft, KeyRequest, Scope, Scopes, Violations,
};
use postrider_model::snapshot::Cidr;
use postrider_model::{ApplicationId, KeyId, TenantId, Timestamp};
use postrider_store::{Act, Entry, Registry, StoreError};
use serde::Serialize;
use serde_json::json;
use std::sync::Arc;

/// Keys of a tenant that are not revoked.
const KEYS_MAX: usize = 200_000;

/// A key as whoever makes it is told, once.
#[derive(Serialize)]
pub(crate) struct NewKey {
    id: KeyId,
    key: String,
    environment: Environment,
    scopes: Scopes,
}

/// A key as it is shown later.
#[derive(Serialize)]
pub(crate) struct KeyView {
    id: KeyId,
    application: Option<ApplicationId>,
    name: Box<str>,
    environment: Environment,
    hint: Box<str>,
    scopes: Scopes,
    networks: Vec<Cidr>,
    created_at: Timestamp,
    expires_at: Option<Timestamp>,
    revoked_at: Option<Timestamp>,
    last_used_at: Option<Timestamp>,
}

impl KeyView {
    fn of(key: &ApiKey, registry: &Registry) -> Self {
        KeyView {
            id: key.id,
            application: key.application,
            name: key.name.clone(),
            environment: key.environment,
            hint: key.hint.clone(),
            scopes: key.scopes,
            networks: key.networks.clone(),
            created_at: key.created_at,
            expires_at: key.expires_at,
            revoked_at: key.revoked_at,
            last_used_at: registry.last_use(key.id),
        }
    }
}

pub(super) fn new(
    tenant: TenantId,
    application: Option<ApplicationId>,
    environment: Environment,
    request: KeyRequest,
    now: Timestamp,
) -> Result<(ApiKey, NewKey), StoreError> {
    let secret = secrets::key(environment)?;
    let key = ApiKey {
        id: KeyId::new(now, secrets::number()?),
        tenant,
        application,
        name: request.name,
        environment,
        hash: secret.hash(),
        hint: secret.hint().into(),
        scopes: request.scopes,
        networks: request.networks,
        created_at: now,
        expires_at: request.expires_at,
        revoked_at: None,
    };
    let told = NewKey { id: key.id, key: secret.reveal().to_owned(), environment, scopes: key.scopes };
    Ok((key, told))
}

pub(super) fn revoked(key: &ApiKey, now: Timestamp) -> ApiKey {
    ApiKey { revoked_at: Some(now), ..key.clone() }
}

fn sees(actor: &Actor, key: &ApiKey) -> bool {
    actor.sees_tenant(key.tenant) && actor.application().is_none_or(|only| key.application == Some(only))
}

fn key<'a>(control: &'a Control, actor: &Actor, id: &str) -> Result<&'a Arc<ApiKey>, StoreError> {
    let wanted: Option<KeyId> = id.parse().ok();
    let found = control.keys().find(|key| Some(key.id) == wanted && sees(actor, key));
    found.ok_or_else(|| StoreError::Missing(format!("key {id}; `postrider key list` shows what there is")))
}

pub(crate) async fn list<R: Relay>(
    State(relay): State<R>,
    actor: Actor,
    query: Result<Query<Page>, QueryRejection>,
) -> Result<Json<Listed<KeyView>>, Problem> {
    actor.must(Scope::WriteKeys)?;
    let Query(page) = query.map_err(|error| Problem::bad_request(error.body_text()))?;
    let registry = registry(&relay)?;
    let control = registry.current();
    let mut seen: Vec<_> = control.keys().filter(|key| sees(&actor, key)).collect();
    seen.sort_by_key(|key| key.id);
    let views = seen.into_iter().map(|key| KeyView::of(key, &registry));
    Ok(Json(page.of(views, |key| key.id.to_string())))
}

pub(crate) async fn show<R: Relay>(
    State(relay): State<R>,
    actor: Actor,
    Path(id): Path<String>,
) -> Result<Json<KeyView>, Problem> {
    actor.must(Scope::WriteKeys)?;
    let registry = registry(&relay)?;
    Ok(Json(KeyView::of(key(&registry.current(), &actor, &id)?, &registry)))
}

pub(crate) async fn create<R: Relay>(
    State(relay): State<R>,
    actor: Actor,
    octets: Bytes,
) -> Result<(StatusCode, Json<NewKey>), Problem> {
    actor.must_for_all(Scope::WriteKeys)?;
    let draft: KeyDraft = body(&octets)?;
    let request = draft.check().map_err(StoreError::from)?;
    let act = registry(&relay)?.act(move |control, now| {
        let home = actor.home(control).ok_or_else(|| StoreError::Missing("tenant".to_owned()))?;
        let application = draft.application.as_deref().map(|name| find(control, &actor, name)).transpose()?;
        let tenant = application.map_or(home, |application| application.tenant);
        if control.keys().filter(|key| key.tenant == tenant && key.revoked_at.is_none()).count() >= KEYS_MAX {
            return Err(Violations::one("keys", "there are too many; revoke some first").into());
        }
        let environment = draft.environment.unwrap_or(match control.mode() {
            InstanceMode::Sandbox => Environment::Test,
            InstanceMode::Live => Environment::Live,
        });
        if !actor.may_make(environment) {
            return Err(StoreError::Forbidden("a test key makes test keys only".to_owned()));
        }
        if !request.scopes.are_within(actor.scopes()) {
            let detail = format!("a key can give only scopes that it has: {}", actor.scopes());
            return Err(StoreError::Forbidden(detail));
        }
        let (key, told) = new(tenant, application.map(|it| it.id), environment, request, now)?;
        let entry =
            Entry::new(actor.name(), "key.create", key.id.to_string()).of_tenant(tenant).with(json!({
                "name": key.name, "application": key.application, "environment": key.environment,
                "scopes": key.scopes, "networks": key.networks, "expires_at": key.expires_at,
            }));
        Ok(Act { changes: vec![Change::Key(key)], entries: vec![entry], answer: told })
    });
    Ok((StatusCode::CREATED, Json(act.get().await?)))
}

pub(crate) async fn revoke<R: Relay>(
    State(relay): State<R>,
    actor: Actor,
    Path(id): Path<String>,
) -> Result<Json<KeyView>, Problem> {
    actor.must_for_all(Scope::WriteKeys)?;
    let registry = registry(&relay)?;
    let act = registry.act(move |control, now| {
        let before = key(control, &actor, &id)?;
        if before.revoked_at.is_some() {
            let answer = ApiKey::clone(before);
            return Ok(Act { changes: vec![], entries: vec![], answer });
        }
        let after = revoked(before, now);
        let entry = Entry::new(actor.name(), "key.revoke", after.id.to_string())
            .of_tenant(after.tenant)
            .with(json!({ "name": after.name, "application": after.application }));
        Ok(Act { changes: vec![Change::Key(after.clone())], entries: vec![entry], answer: after })
    });
    let after = act.get().await?;
    Ok(Json(KeyView::of(&after, &registry)))
}
