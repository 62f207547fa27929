//! SMTP credentials of an application; several at once, so that one can follow another without a gap.

use super::secrets::Password;
use super::{body, find, registry, secrets};
use crate::actor::Actor;
use crate::port::{Health, ListenerView, Relay};
use crate::problem::Problem;
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use postrider_model::control::{Application, Change, Credential, CredentialDraft, Scope, Violations};
use postrider_model::{CredentialId, Timestamp};
use postrider_store::{Act, Entry, StoreError};
use serde::Serialize;
use serde_json::{Value, json};
use std::net::SocketAddr;

/// Credentials of one application that are not revoked.
const CREDENTIALS_MAX: usize = 20;

/// Where and how to log in; the password is told only here.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Smtp {
    host: Option<String>,
    port: Option<u16>,
    /// `starttls`, `tls` from the first octet on, or `none` (loopback sandbox only).
    security: Option<&'static str>,
    username: String,
    password: String,
    credential: CredentialId,
}

/// Where one can log in.
pub(crate) struct Place {
    host: String,
    port: u16,
    security: &'static str,
}

impl Smtp {
    pub(super) fn of(credential: &Credential, password: String, place: Option<Place>) -> Self {
        let (host, port, security) = match place {
            Some(place) => (Some(place.host), Some(place.port), Some(place.security)),
            None => (None, None, None),
        };
        Smtp {
            host,
            port,
            security,
            username: credential.username.clone().into(),
            password,
            credential: credential.id,
        }
    }
}

/// The listener at which an application logs in best: submission, then any with TLS, then the sandbox.
pub(super) fn place(health: &Health) -> Option<Place> {
    let rank = |listener: &ListenerView| match &*listener.protocol {
        "submission" if listener.tls => Some(0),
        "submissions" => Some(1),
        "smtp" if listener.tls => Some(2),
        _ if listener.sandbox => Some(3),
        _ => None,
    };
    let ranked = health.listeners.iter().filter_map(|listener| Some((rank(listener)?, listener)));
    let (_, listener) = ranked.min_by_key(|(rank, _)| *rank)?;
    let address: SocketAddr = listener.address.parse().ok()?;
    let host = if address.ip().is_unspecified() { health.hostname.clone() } else { address.ip().to_string() };
    let security = match (&*listener.protocol, listener.tls) {
        ("submissions", _) => "tls",
        (_, true) => "starttls",
        (_, false) => "none",
    };
    Some(Place { host, port: address.port(), security })
}

pub(super) fn new(
    application: &Application,
    secret: &Password,
    name: &str,
    expires_at: Option<Timestamp>,
    now: Timestamp,
) -> Result<Credential, StoreError> {
    Ok(Credential {
        id: CredentialId::new(now, secrets::number()?),
        application: application.id,
        username: secret.username.as_str().into(),
        verifier: secret.verifier.as_str().into(),
        name: name.into(),
        created_at: now,
        expires_at,
        revoked_at: None,
    })
}

pub(super) fn revoked(credential: &Credential, now: Timestamp) -> Credential {
    Credential { revoked_at: Some(now), ..credential.clone() }
}

/// A credential as it is shown: without its verifier.
#[derive(Serialize)]
pub(crate) struct CredentialView {
    id: CredentialId,
    username: Box<str>,
    name: Box<str>,
    created_at: Timestamp,
    expires_at: Option<Timestamp>,
    revoked_at: Option<Timestamp>,
}

impl From<&Credential> for CredentialView {
    fn from(credential: &Credential) -> Self {
        CredentialView {
            id: credential.id,
            username: credential.username.clone(),
            name: credential.name.clone(),
            created_at: credential.created_at,
            expires_at: credential.expires_at,
            revoked_at: credential.revoked_at,
        }
    }
}

pub(crate) async fn list<R: Relay>(
    State(relay): State<R>,
    actor: Actor,
    Path(id): Path<String>,
) -> Result<Json<Value>, Problem> {
    actor.must(Scope::ReadApplications)?;
    let control = registry(&relay)?.current();
    let application = find(&control, &actor, &id)?;
    let of_it = control.logins().filter(|login| login.application.id == application.id);
    let mut items: Vec<_> = of_it.map(|login| CredentialView::from(&login.credential)).collect();
    items.sort_by_key(|credential| credential.id);
    Ok(Json(json!({ "items": items, "next": null })))
}

pub(crate) async fn create<R: Relay>(
    State(relay): State<R>,
    actor: Actor,
    Path(id): Path<String>,
    octets: Bytes,
) -> Result<(StatusCode, Json<Smtp>), Problem> {
    actor.must_for_all(Scope::WriteApplications)?;
    let request = body::<CredentialDraft>(&octets)?.check().map_err(StoreError::from)?;
    let registry = registry(&relay)?;
    let name = find(&registry.current(), &actor, &id)?.settings.name.clone();
    let secret = secrets::password(&name)?;
    let place = place(&relay.health());
    let act = registry.act(move |control, now| {
        let application = find(control, &actor, &id)?;
        let valid = control
            .logins()
            .filter(|login| login.application.id == application.id && login.is_valid(now))
            .count();
        if valid >= CREDENTIALS_MAX {
            let detail = format!("the application has {valid} credentials; revoke one first");
            return Err(Violations::one("credentials", detail).into());
        }
        let credential = new(application, &secret, &request.name, request.expires_at, now)?;
        let entry = Entry::new(actor.name(), "credential.create", credential.id.to_string())
            .of_tenant(application.tenant)
            .with(json!({ "application": application.id, "username": credential.username }));
        let smtp = Smtp::of(&credential, secret.password, place);
        Ok(Act { changes: vec![Change::Credential(credential)], entries: vec![entry], answer: smtp })
    });
    Ok((StatusCode::CREATED, Json(act.get().await?)))
}

pub(crate) async fn revoke<R: Relay>(
    State(relay): State<R>,
    actor: Actor,
    Path((id, credential)): Path<(String, String)>,
) -> Result<Json<CredentialView>, Problem> {
    actor.must_for_all(Scope::WriteApplications)?;
    let act = registry(&relay)?.act(move |control, now| {
        let application = find(control, &actor, &id)?;
        let login = control.logins().find(|login| {
            login.application.id == application.id
                && (login.credential.id.to_string() == credential
                    || *login.credential.username == *credential)
        });
        let login = login.ok_or_else(|| StoreError::Missing(format!("credential {credential}")))?;
        if login.credential.revoked_at.is_some() {
            let answer = CredentialView::from(&login.credential);
            return Ok(Act { changes: vec![], entries: vec![], answer });
        }
        let credential = revoked(&login.credential, now);
        let entry = Entry::new(actor.name(), "credential.revoke", credential.id.to_string())
            .of_tenant(application.tenant)
            .with(json!({ "application": application.id, "username": credential.username }));
        let answer = CredentialView::from(&credential);
        Ok(Act { changes: vec![Change::Credential(credential)], entries: vec![entry], answer })
    });
    Ok(Json(act.get().await?))
}
