//! Applications.

use super::credentials::{self, Smtp};
use super::keys::{self, NewKey};
use super::{Listed, Page, body, find, registry, secrets, versioned, wanted_version};
use crate::actor::Actor;
use crate::port::Relay;
use crate::problem::Problem;
use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use postrider_model::control::{
    Application, ApplicationDraft, ApplicationSettings, Change, Control, Environment, InstanceMode,
    KeyRequest, Scope, Scopes, Violations,
};
use postrider_model::{ApplicationId, Timestamp};
use postrider_store::{Act, Entry, StoreError};
use serde::Serialize;
use serde_json::{Value, json};

/// Applications of an instance.
const APPLICATIONS_MAX: usize = 100_000;

/// What whoever creates an application is told, once.
#[derive(Serialize)]
pub(crate) struct Created {
    application: Application,
    smtp: Smtp,
    api_key: NewKey,
}

pub(crate) async fn list<R: Relay>(
    State(relay): State<R>,
    actor: Actor,
    query: Result<Query<Page>, QueryRejection>,
) -> Result<Json<Listed<Application>>, Problem> {
    actor.must(Scope::ReadApplications)?;
    let Query(page) = query.map_err(|error| Problem::bad_request(error.body_text()))?;
    let control = registry(&relay)?.current();
    let seen = control.applications().filter(|application| actor.sees(application));
    Ok(Json(page.of(seen.map(|application| Application::clone(application)), |it| it.id.to_string())))
}

pub(crate) async fn create<R: Relay>(
    State(relay): State<R>,
    actor: Actor,
    octets: Bytes,
) -> Result<Response, Problem> {
    actor.must_for_all(Scope::WriteApplications)?;
    let settings = body::<ApplicationDraft>(&octets)?.create().map_err(StoreError::from)?;
    let secret = secrets::password(&settings.name)?;
    let place = credentials::place(&relay.health());
    let act = registry(&relay)?.act(move |control, now| {
        if control.applications().count() >= APPLICATIONS_MAX {
            return Err(Violations::one("name", format!("there are {APPLICATIONS_MAX} applications")).into());
        }
        let application = new_application(control, &actor, settings, now)?;
        let credential = credentials::new(&application, &secret, "", None, now)?;
        let environment = match control.mode() {
            InstanceMode::Live if actor.may_make(Environment::Live) => Environment::Live,
            _ => Environment::Test,
        };
        let request = KeyRequest {
            name: application.settings.name.clone(),
            scopes: Scopes::OF_AN_APPLICATION,
            networks: Vec::new(),
            expires_at: None,
        };
        let (key, new_key) = keys::new(application.tenant, Some(application.id), environment, request, now)?;
        let entry = Entry::new(actor.name(), "application.create", application.id.to_string())
            .of_tenant(application.tenant)
            .with(json!(application.settings));
        let smtp = Smtp::of(&credential, secret.password, place);
        Ok(Act {
            changes: vec![
                Change::Application(application.clone()),
                Change::Credential(credential),
                Change::Key(key),
            ],
            entries: vec![entry],
            answer: Created { application, smtp, api_key: new_key },
        })
    });
    let created = act.get().await?;
    Ok(versioned(StatusCode::CREATED, created.application.version, &created))
}

fn new_application(
    control: &Control,
    actor: &Actor,
    settings: ApplicationSettings,
    now: Timestamp,
) -> Result<Application, StoreError> {
    let tenant = actor.home(control).ok_or_else(|| StoreError::Missing("tenant".to_owned()))?;
    Ok(Application {
        id: ApplicationId::new(now, secrets::number()?),
        tenant,
        settings,
        version: 1,
        created_at: now,
        updated_at: now,
    })
}

pub(crate) async fn show<R: Relay>(
    State(relay): State<R>,
    actor: Actor,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    actor.must(Scope::ReadApplications)?;
    let control = registry(&relay)?.current();
    let application = find(&control, &actor, &id)?;
    Ok(versioned(StatusCode::OK, application.version, &**application))
}

pub(crate) async fn change<R: Relay>(
    State(relay): State<R>,
    actor: Actor,
    Path(id): Path<String>,
    headers: HeaderMap,
    octets: Bytes,
) -> Result<Response, Problem> {
    actor.must_for_all(Scope::WriteApplications)?;
    let wanted = wanted_version(&headers)?;
    let draft: ApplicationDraft = body(&octets)?;
    let act = registry(&relay)?.act(move |control, now| {
        let before = find(control, &actor, &id)?;
        fresh(before, wanted)?;
        let settings = draft.change(&before.settings)?;
        if settings == before.settings {
            let answer = Application::clone(before);
            return Ok(Act { changes: vec![], entries: vec![], answer });
        }
        let entry = Entry::new(actor.name(), "application.change", before.id.to_string())
            .of_tenant(before.tenant)
            .with(json!({ "before": before.settings, "after": settings }));
        let after = changed(before, settings, now);
        Ok(Act { changes: vec![Change::Application(after.clone())], entries: vec![entry], answer: after })
    });
    let after = act.get().await?;
    Ok(versioned(StatusCode::OK, after.version, &after))
}

fn fresh(before: &Application, wanted: Option<u64>) -> Result<(), StoreError> {
    match wanted {
        Some(wanted) if wanted != before.version => Err(StoreError::Stale { version: before.version }),
        _ => Ok(()),
    }
}

fn changed(before: &Application, settings: ApplicationSettings, now: Timestamp) -> Application {
    Application { settings, version: before.version + 1, updated_at: now, ..before.clone() }
}

/// The kill switch: disables the application and revokes all its credentials and keys.
pub(crate) async fn revoke<R: Relay>(
    State(relay): State<R>,
    actor: Actor,
    Path(id): Path<String>,
) -> Result<Json<Value>, Problem> {
    actor.must_for_all(Scope::WriteApplications)?;
    let act = registry(&relay)?.act(move |control, now| {
        let before = find(control, &actor, &id)?;
        let settings = ApplicationSettings { enabled: false, ..before.settings.clone() };
        let mut changes = vec![Change::Application(changed(before, settings, now))];
        let of_it = control.logins().filter(|login| login.application.id == before.id);
        let credentials: Vec<_> = of_it
            .filter(|login| login.credential.revoked_at.is_none())
            .map(|login| credentials::revoked(&login.credential, now))
            .collect();
        let of_it = control.keys().filter(|key| key.application == Some(before.id));
        let keys: Vec<_> =
            of_it.filter(|key| key.revoked_at.is_none()).map(|key| keys::revoked(key, now)).collect();
        let answer = json!({
            "application": before.id,
            "enabled": false,
            "credentials_revoked": credentials.len(),
            "keys_revoked": keys.len(),
        });
        changes.extend(credentials.into_iter().map(Change::Credential));
        changes.extend(keys.into_iter().map(Change::Key));
        let entry = Entry::new(actor.name(), "application.revoke", before.id.to_string())
            .of_tenant(before.tenant)
            .with(json!({ "name": before.settings.name }));
        Ok(Act { changes, entries: vec![entry], answer })
    });
    Ok(Json(act.get().await?))
}

pub(crate) async fn delete<R: Relay>(
    State(relay): State<R>,
    actor: Actor,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Json<Value>, Problem> {
    actor.must_for_all(Scope::WriteApplications)?;
    let wanted = wanted_version(&headers)?;
    let act = registry(&relay)?.act(move |control, _| {
        let before = find(control, &actor, &id)?;
        fresh(before, wanted)?;
        let entry = Entry::new(actor.name(), "application.delete", before.id.to_string())
            .of_tenant(before.tenant)
            .with(json!(before.settings));
        let answer = json!({ "deleted": before.id });
        Ok(Act { changes: vec![Change::RemoveApplication(before.id)], entries: vec![entry], answer })
    });
    Ok(Json(act.get().await?))
}
