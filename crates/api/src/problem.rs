//! Refusals: RFC 9457 problem details.

use crate::port::Unavailable;
use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// Why a request was refused.
#[derive(Debug)]
pub(crate) struct Problem {
    status: StatusCode,
    kind: &'static str,
    title: &'static str,
    detail: String,
}

impl Problem {
    pub(crate) fn bad_request(detail: impl Into<String>) -> Self {
        let status = StatusCode::BAD_REQUEST;
        Problem { status, kind: "bad-request", title: "The request is wrong", detail: detail.into() }
    }

    pub(crate) fn not_found(detail: impl Into<String>) -> Self {
        let status = StatusCode::NOT_FOUND;
        Problem { status, kind: "not-found", title: "There is no such thing", detail: detail.into() }
    }

    pub(crate) fn timeout() -> Self {
        Problem {
            status: StatusCode::GATEWAY_TIMEOUT,
            kind: "timeout",
            title: "The relay did not answer in time",
            detail: "it is overloaded or starting; try again".to_owned(),
        }
    }

    pub(crate) fn refused(detail: impl Into<String>) -> Self {
        Problem {
            status: StatusCode::UNPROCESSABLE_ENTITY,
            kind: "refused",
            title: "The change was refused whole",
            detail: detail.into(),
        }
    }
}

impl From<Unavailable> for Problem {
    fn from(unavailable: Unavailable) -> Self {
        Problem {
            status: StatusCode::SERVICE_UNAVAILABLE,
            kind: "unavailable",
            title: "The relay cannot answer",
            detail: unavailable.0,
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = json!({
            "type": format!("urn:postrider:problem:{}", self.kind),
            "title": self.title,
            "status": self.status.as_u16(),
            "detail": self.detail,
        });
        (self.status, [(header::CONTENT_TYPE, "application/problem+json")], Json(body).0.to_string())
            .into_response()
    }
}
