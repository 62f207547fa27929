//! Other vendors' send APIs, mapped onto [`EmailRequest`]: their paths, statuses and error bodies, our rules.
//!
//! Whatever a body holds that cannot be done here is refused by its name, never ignored.

mod postmark;
mod resend;
mod sendgrid;

use crate::caller::{Caller, Keys, Peer, caller};
use crate::emails::draft::draft;
use crate::emails::request::EmailRequest;
use crate::emails::{prepared, sender};
use crate::port::Relay;
use crate::problem::{FieldError, Problem};
use crate::public::{Api, BODY_SIZE_MAX};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::Request;
use axum::http::request::Parts;
use serde_json::{Map, Value};

/// All of them, under `/compat`.
pub(crate) fn router<R: Relay + Keys>() -> Router<Api<R>> {
    Router::new()
        .nest("/compat/resend", resend::router())
        .nest("/compat/postmark", postmark::router())
        .nest("/compat/sendgrid", sendgrid::router())
}

/// Head and body; the body is in memory already.
async fn taken(request: Request<Body>) -> Result<(Parts, Bytes), Problem> {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, BODY_SIZE_MAX).await;
    Ok((parts, body.map_err(|_| Problem::too_large(BODY_SIZE_MAX))?))
}

/// Whether a message leaves the API at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Send,
    /// It is checked and forgotten: the vendor's own test mode.
    Check,
}

/// Drafts every message, and hands over those that can be. Each keeps its place.
async fn deliver<R: Relay + Keys>(
    api: &Api<R>,
    caller: &Caller,
    parts: &Parts,
    size: usize,
    purpose: Purpose,
    requests: Vec<Result<EmailRequest, Problem>>,
) -> Result<Vec<Result<Box<str>, Problem>>, Problem> {
    let sender = sender(caller, Peer::of(parts))?;
    let now = api.relay.now();
    let work =
        move || -> Vec<_> { requests.into_iter().map(|request| draft(&request?, &sender, now)).collect() };
    let drafts = prepared(size, work).await?;
    if purpose == Purpose::Check {
        return Ok(drafts.into_iter().map(|draft| draft.map(|_| "".into())).collect());
    }
    Ok(api.submitter.submit_all(drafts).await)
}

/// The caller behind a key that a vendor's client sent in its own way.
fn known<R: Relay + Keys>(api: &Api<R>, parts: &Parts, key: Option<&str>) -> Result<Caller, Problem> {
    caller(api, parts, key)
}

/// The fields of a JSON object, taken one by one; what is left at the end is refused by name.
struct Fields<'a> {
    prefix: String,
    object: Map<String, Value>,
    errors: &'a mut Vec<FieldError>,
}

impl<'a> Fields<'a> {
    fn new(prefix: &str, value: Value, errors: &'a mut Vec<FieldError>) -> Self {
        let object = match value {
            Value::Object(object) => object,
            _ => {
                let field = if prefix.is_empty() { "body" } else { prefix };
                errors.push(FieldError::new(field, "must be an object"));
                Map::new()
            }
        };
        Fields { prefix: prefix.to_owned(), object, errors }
    }

    fn path(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_owned() } else { format!("{}.{name}", self.prefix) }
    }

    fn wrong(&mut self, name: &str, detail: &str) {
        let field = self.path(name);
        self.errors.push(FieldError::new(field, detail));
    }

    /// The value, unless it is missing or null.
    fn take(&mut self, name: &str) -> Option<Value> {
        self.object.remove(name).filter(|value| !value.is_null())
    }

    fn text(&mut self, name: &str) -> Option<String> {
        match self.take(name)? {
            Value::String(text) => Some(text),
            _ => {
                self.wrong(name, "must be a text");
                None
            }
        }
    }

    fn list(&mut self, name: &str) -> Vec<Value> {
        match self.take(name) {
            None => Vec::new(),
            Some(Value::Array(items)) => items,
            Some(_) => {
                self.wrong(name, "must be a list");
                Vec::new()
            }
        }
    }

    /// A text or a list of texts.
    fn texts(&mut self, name: &str) -> Vec<String> {
        match self.take(name) {
            None => Vec::new(),
            Some(Value::String(text)) => vec![text],
            Some(Value::Array(items)) if items.iter().all(Value::is_string) => {
                items.into_iter().filter_map(|item| item.as_str().map(str::to_owned)).collect()
            }
            Some(_) => {
                self.wrong(name, "must be a text or a list of texts");
                Vec::new()
            }
        }
    }

    /// An object of texts.
    fn pairs(&mut self, name: &str) -> Vec<(Box<str>, Box<str>)> {
        let mut pairs = Vec::new();
        match self.take(name) {
            None => {}
            Some(Value::Object(object)) => {
                for (key, value) in object {
                    match value.as_str() {
                        Some(text) => pairs.push((key.into(), text.into())),
                        None => self.wrong(&format!("{name}.{key}"), "must be a text"),
                    }
                }
            }
            Some(_) => self.wrong(name, "must be an object of texts"),
        }
        pairs
    }

    /// True if there is something in a field that is not done here; then it is refused, with the reason.
    fn refuse(&mut self, name: &str, reason: &str) {
        if self.take(name).is_some_and(|value| !is_empty(&value)) {
            self.wrong(name, reason);
        }
    }

    /// What is left is not known here.
    fn finish(mut self) {
        let left: Vec<String> = self.object.keys().cloned().collect();
        for name in left {
            self.refuse(&name, "is not supported here; docs/compatibility.md lists what is");
        }
    }
}

/// Says nothing: `false`, `""`, `[]`, `{}`.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(object) => object.values().all(is_empty),
        Value::Bool(true) | Value::Number(_) => false,
    }
}

const NO_HISTORY: &str = "is not supported yet: there is no history that would show it";
const NO_TEMPLATES: &str = "is not supported yet: there are no templates";
const NO_TRACKING: &str = "is not supported yet: opens and clicks are not tracked";
