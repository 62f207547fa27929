//! Who calls: a bearer key and what it stands for.

use crate::problem::Problem;
use axum::extract::FromRequestParts;
use axum::http::header;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use postrider_model::control::{ApiKey, Application, KeyRefusal, Scope};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

/// Octets of a bearer key.
const KEY_SIZE_MAX: usize = 256;

/// A key that may be used, and whom it stands for.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The key.
    pub key: Arc<ApiKey>,
    /// The application; `None` for a key that manages its tenant.
    pub application: Option<Arc<Application>>,
}

/// Knows the keys. Asked with every request, so the answer comes from memory, and its time tells nothing of
/// keys that exist.
pub trait Keys: Clone + Send + Sync + 'static {
    /// Whom a bearer key stands for, used from this address now.
    ///
    /// # Errors
    /// Why it is not taken.
    fn caller(&self, key: &str, client: IpAddr) -> Result<Caller, KeyRefusal>;
}

/// Whence a request came: as the connection says, or as a trusted proxy does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer {
    pub(crate) address: IpAddr,
}

impl Peer {
    pub(crate) fn of(parts: &Parts) -> Self {
        let unknown = Peer { address: IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
        parts.extensions.get::<Peer>().copied().unwrap_or(unknown)
    }
}

/// The key of a request as it was sent: `Authorization: Bearer`, or a vendor's own header.
pub(crate) fn bearer(parts: &Parts) -> Option<&str> {
    let value = parts.headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, key) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

/// Resolves the key of a request.
pub(crate) fn caller<K: Keys>(keys: &K, parts: &Parts, key: Option<&str>) -> Result<Caller, Problem> {
    let Some(key) = key.filter(|key| !key.is_empty()) else {
        return Err(Problem::unauthorized(
            "send `Authorization: Bearer KEY` with an API key; \
            `postrider key create` makes one",
        ));
    };
    if key.len() > KEY_SIZE_MAX {
        return Err(Problem::unauthorized(KeyRefusal::Unknown.to_string()));
    }
    keys.caller(key, Peer::of(parts).address).map_err(|refusal| match refusal {
        KeyRefusal::Network(_) => Problem::forbidden("key.networks", refusal.to_string()),
        _ => Problem::unauthorized(refusal.to_string()),
    })
}

impl Caller {
    /// The application, if the key has this scope and stands for one.
    pub(crate) fn application(&self, scope: Scope) -> Result<&Arc<Application>, Problem> {
        if !self.key.scopes.has(scope) {
            let detail = format!("the API key lacks the scope {scope}; make one that has it");
            return Err(Problem::forbidden("key.scopes", detail));
        }
        self.application.as_ref().ok_or_else(|| {
            let detail = "the API key stands for no application; use one made with \
                `postrider key create --app NAME`";
            Problem::forbidden("key.application", detail)
        })
    }
}

/// As an argument of a route.
impl<S: Keys> FromRequestParts<S> for Caller {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        caller(state, parts, bearer(parts)).map_err(IntoResponse::into_response)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Peer {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(Peer::of(parts))
    }
}
