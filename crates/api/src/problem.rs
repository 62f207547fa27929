//! Refusals: RFC 9457 problem details.

use crate::port::Unavailable;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use postrider_model::Reply;
use serde::Serialize;

/// Seconds after which a request that could not be served may be tried again.
const RETRY_AFTER_S: &str = "5";

/// Why a request was refused.
#[derive(Clone, Debug)]
pub(crate) struct Problem {
    pub(crate) status: StatusCode,
    kind: &'static str,
    title: &'static str,
    pub(crate) detail: String,
    pub(crate) errors: Vec<FieldError>,
    rule: Option<Box<str>>,
}

/// What is wrong with one field of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct FieldError {
    /// The field: `attachments[0].filename`.
    pub(crate) field: String,
    /// What is wrong, and what to do.
    pub(crate) detail: String,
}

impl FieldError {
    pub(crate) fn new(field: impl Into<String>, detail: impl Into<String>) -> Self {
        FieldError { field: field.into(), detail: detail.into() }
    }
}

#[derive(Serialize)]
struct Body<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    detail: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<&'a str>,
    #[serde(skip_serializing_if = "<[FieldError]>::is_empty")]
    errors: &'a [FieldError],
}

impl Problem {
    fn new(status: StatusCode, kind: &'static str, title: &'static str, detail: impl Into<String>) -> Self {
        Problem { status, kind, title, detail: detail.into(), errors: Vec::new(), rule: None }
    }

    pub(crate) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad-request", "The request is wrong", detail)
    }

    pub(crate) fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", "There is no such thing", detail)
    }

    pub(crate) fn unauthorized(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", "The API key is not taken", detail)
    }

    /// `rule` names what forbids it.
    pub(crate) fn forbidden(rule: &str, detail: impl Into<String>) -> Self {
        let problem = Self::new(StatusCode::FORBIDDEN, "forbidden", "A rule forbids it", detail);
        Problem { rule: Some(rule.into()), ..problem }
    }

    /// Fields that cannot be taken; at least one.
    pub(crate) fn invalid(errors: Vec<FieldError>) -> Self {
        let detail = match &*errors {
            [only] => format!("{}: {}", only.field, only.detail),
            [first, rest @ ..] => format!("{}: {} (and {} more)", first.field, first.detail, rest.len()),
            [] => "the request cannot be taken".to_owned(),
        };
        let title = "Fields of the request cannot be taken";
        Problem { errors, ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", title, detail) }
    }

    pub(crate) fn conflict(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "conflict", "It does not fit what is there", detail)
    }

    /// The version that the request names is not the one that is there.
    pub(crate) fn stale(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::PRECONDITION_FAILED, "stale", "It has changed in the meantime", detail)
    }

    /// Our own fault.
    pub(crate) fn internal(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "The relay made a mistake", detail)
    }

    pub(crate) fn too_large(limit_bytes: usize) -> Self {
        let detail = format!("the body is larger than {limit_bytes} octets");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", "The request is too large", detail)
    }

    pub(crate) fn unsupported_type(wanted: &str) -> Self {
        let detail = format!("send `Content-Type: {wanted}`");
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported-type",
            "The body is of another type",
            detail,
        )
    }

    pub(crate) fn busy(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "busy", "The relay cannot take it now", detail)
    }

    pub(crate) fn method_not_allowed() -> Self {
        let detail = "this route knows other methods; the routes are listed in docs/api.md";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method", "The method is not known here", detail)
    }

    pub(crate) fn timeout() -> Self {
        Self::new(
            StatusCode::GATEWAY_TIMEOUT,
            "timeout",
            "The relay did not answer in time",
            "it is overloaded or starting; try again",
        )
    }

    pub(crate) fn refused(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "refused", "The change was refused whole", detail)
    }

    /// What SMTP would have said, in HTTP's words (design P4).
    pub(crate) fn from_reply(reply: &Reply) -> Self {
        let detail = reply.text().to_owned();
        match (reply.code(), rule_of(&detail)) {
            (452, _) => Self::new(StatusCode::INSUFFICIENT_STORAGE, "disk-full", "The disk is full", detail),
            (400..=499, _) => Self::busy(detail),
            (552, _) => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", "The message is too large", detail)
            }
            (550, Some(rule)) => {
                let rule: Box<str> = rule.into();
                Self::forbidden(&rule, detail)
            }
            (550, None) => Self::forbidden("relay", detail),
            _ => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", "The message cannot be taken", detail)
            }
        }
    }

    /// The rule that forbids it.
    pub(crate) fn rule(&self) -> Option<&str> {
        self.rule.as_deref()
    }

    /// The body, as JSON.
    pub(crate) fn json(&self) -> String {
        let body = Body {
            r#type: format!("urn:postrider:problem:{}", self.kind),
            title: self.title,
            status: self.status.as_u16(),
            detail: &self.detail,
            rule: self.rule.as_deref(),
            errors: &self.errors,
        };
        // Invariant: strings and numbers always serialise.
        serde_json::to_string(&body).unwrap_or_default()
    }
}

/// The rule that a refusal names: `… (rule application.from) …`.
fn rule_of(detail: &str) -> Option<&str> {
    let (_, rest) = detail.split_once("(rule ")?;
    rest.split_once(')').map(|(rule, _)| rule)
}

impl From<Unavailable> for Problem {
    fn from(unavailable: Unavailable) -> Self {
        let title = "The relay cannot answer";
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", title, unavailable.0)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response =
            (self.status, [(header::CONTENT_TYPE, "application/problem+json")], self.json()).into_response();
        let headers = response.headers_mut();
        if matches!(self.status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::INSUFFICIENT_STORAGE) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_S));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use postrider_model::EnhancedCode;

    #[test]
    fn what_smtp_would_have_said_is_said_in_the_words_of_http() {
        let check = |code: u16, text: &str, status: u16, rule: Option<&str>| {
            let reply = Reply::ours(code, EnhancedCode(u8::try_from(code / 100).unwrap(), 0, 0), text);
            let problem = Problem::from_reply(&reply);
            assert_eq!((problem.status.as_u16(), problem.rule()), (status, rule), "{code} {text}");
            let retries = problem.into_response().headers().contains_key(header::RETRY_AFTER);
            assert_eq!(retries, code < 500, "what may be tried again says when");
        };
        check(452, "Insufficient system storage; try again later", 507, None);
        check(451, "The message could not be stored; try again later", 503, None);
        check(421, "The server is about to stop", 503, None);
        check(552, "The message is larger than the spool takes", 413, None);
        check(550, "It may not (rule application.from); ask", 403, Some("application.from"));
        check(550, "Relay refused: no route leads to example.net", 403, Some("relay"));
        check(554, "The message has a CR or LF alone", 422, None);
    }
}
