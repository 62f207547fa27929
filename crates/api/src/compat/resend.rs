//! Resend's API: <https://resend.com/docs/api-reference/emails/send-email>.

use super::{Fields, NO_HISTORY, NO_TEMPLATES, Purpose, deliver, known, taken};
use crate::caller::{Keys, bearer};
use crate::emails::request::{Addresses, AttachmentRequest, EmailRequest, Headers};
use crate::port::Relay;
use crate::problem::{FieldError, Problem};
use crate::public::Api;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::request::Parts;
use axum::http::{Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

/// Messages of one batch.
const BATCH_MAX: usize = 100;

pub(super) fn router<R: Relay + Keys>() -> Router<Api<R>> {
    Router::new()
        .route("/emails", post(send::<R>))
        .route("/emails/batch", post(batch::<R>))
        .fallback(|| async {
            refused(&Problem::not_found("no such route; docs/compatibility.md lists them"))
        })
        .method_not_allowed_fallback(|| async { refused(&Problem::method_not_allowed()) })
}

async fn send<R: Relay + Keys>(State(api): State<Api<R>>, request: Request<Body>) -> Response {
    match send_one(&api, request).await {
        Ok(id) => axum::Json(json!({ "id": id })).into_response(),
        Err(problem) => refused(&problem),
    }
}

async fn send_one<R: Relay + Keys>(api: &Api<R>, request: Request<Body>) -> Result<Box<str>, Problem> {
    let (parts, body) = taken(request).await?;
    let caller = known(api, &parts, bearer(&parts))?;
    no_idempotency_key(&parts)?;
    let request = mapped(json_of(&body)?);
    let mut results = deliver(api, &caller, &parts, body.len(), Purpose::Send, vec![request]).await?;
    results.pop().unwrap_or_else(|| Err(Problem::timeout()))
}

async fn batch<R: Relay + Keys>(State(api): State<Api<R>>, request: Request<Body>) -> Response {
    match send_batch(&api, request).await {
        Ok(answer) => axum::Json(answer).into_response(),
        Err(problem) => refused(&problem),
    }
}

/// Strict unless `x-batch-validation: permissive` says otherwise: one bad message and none is sent.
async fn send_batch<R: Relay + Keys>(api: &Api<R>, request: Request<Body>) -> Result<Value, Problem> {
    let (parts, body) = taken(request).await?;
    let caller = known(api, &parts, bearer(&parts))?;
    no_idempotency_key(&parts)?;
    let permissive = match parts.headers.get("x-batch-validation").map(|value| value.to_str().unwrap_or("")) {
        None | Some("strict") => false,
        Some("permissive") => true,
        Some(_) => return Err(Problem::bad_request("x-batch-validation must be strict or permissive")),
    };
    let Value::Array(items) = json_of(&body)? else {
        return Err(Problem::bad_request("the body must be a list of messages"));
    };
    if items.is_empty() || items.len() > BATCH_MAX {
        return Err(Problem::bad_request(format!("a batch holds 1 to {BATCH_MAX} messages")));
    }
    let requests: Vec<_> = items.into_iter().map(mapped).collect();
    if !permissive {
        let checked = deliver(api, &caller, &parts, body.len(), Purpose::Check, requests.clone()).await?;
        if let Some(problem) = checked.into_iter().find_map(Result::err) {
            return Err(problem);
        }
    }
    let results = deliver(api, &caller, &parts, body.len(), Purpose::Send, requests).await?;
    let (mut data, mut errors) = (Vec::new(), Vec::new());
    for (index, result) in results.into_iter().enumerate() {
        match result {
            Ok(id) => data.push(json!({ "id": id })),
            Err(problem) if permissive => errors.push(json!({ "index": index, "message": problem.detail })),
            // It was right and could not be taken: what was taken before it is safe, and this says which.
            Err(problem) => return Err(problem),
        }
    }
    Ok(if permissive { json!({ "data": data, "errors": errors }) } else { json!({ "data": data }) })
}

fn no_idempotency_key(parts: &Parts) -> Result<(), Problem> {
    if parts.headers.contains_key("idempotency-key") {
        return Err(Problem::bad_request("the header Idempotency-Key is not supported yet; leave it out"));
    }
    Ok(())
}

fn json_of(body: &Bytes) -> Result<Value, Problem> {
    serde_json::from_slice(body)
        .map_err(|error| Problem::bad_request(format!("the body is not JSON: {error}")))
}

fn mapped(body: Value) -> Result<EmailRequest, Problem> {
    let mut errors = Vec::new();
    let mut fields = Fields::new("", body, &mut errors);
    let mut request = EmailRequest {
        from: fields.text("from").unwrap_or_default(),
        to: Addresses(fields.texts("to")),
        cc: Addresses(fields.texts("cc")),
        bcc: Addresses(fields.texts("bcc")),
        reply_to: Addresses(fields.texts("reply_to")),
        subject: fields.text("subject").unwrap_or_default(),
        html: fields.text("html"),
        text: fields.text("text"),
        headers: Headers(fields.pairs("headers")),
        scheduled_at: fields.text("scheduled_at"),
        ..EmailRequest::default()
    };
    let attachments = fields.list("attachments");
    fields.refuse("tags", NO_HISTORY);
    fields.refuse("template", NO_TEMPLATES);
    fields.finish();
    for (index, file) in attachments.into_iter().enumerate() {
        let mut fields = Fields::new(&format!("attachments[{index}]"), file, &mut errors);
        fields.refuse("path", "is not supported: files are not fetched; send the content");
        request.attachments.push(AttachmentRequest {
            filename: fields.text("filename").unwrap_or_default(),
            content: content(&mut fields),
            content_type: fields.text("content_type"),
            content_id: fields.text("content_id").or_else(|| fields.text("inline_content_id")),
        });
        fields.finish();
    }
    if errors.is_empty() { Ok(request) } else { Err(Problem::invalid(errors)) }
}

/// Base64, or octets as Node prints a buffer: `{"type": "Buffer", "data": [104, 105]}`.
fn content(fields: &mut Fields<'_>) -> String {
    match fields.take("content") {
        Some(Value::String(text)) => return text,
        Some(Value::Object(buffer)) if buffer.get("type").and_then(Value::as_str) == Some("Buffer") => {
            let octets = buffer.get("data").and_then(Value::as_array).and_then(|data| {
                data.iter().map(|octet| u8::try_from(octet.as_u64()?).ok()).collect::<Option<Vec<u8>>>()
            });
            if let Some(octets) = octets {
                return STANDARD.encode(octets);
            }
        }
        Some(Value::Array(data)) => {
            let octets =
                data.iter().map(|octet| u8::try_from(octet.as_u64()?).ok()).collect::<Option<Vec<u8>>>();
            if let Some(octets) = octets {
                return STANDARD.encode(octets);
            }
        }
        Some(_) => {}
        None => return String::new(),
    }
    fields.wrong("content", "must be base64 or a buffer");
    String::new()
}

/// `{"statusCode": 422, "name": "validation_error", "message": "…"}`
fn refused(problem: &Problem) -> Response {
    let missing = |error: &FieldError| error.detail.starts_with("is missing");
    let (status, name) = match problem.status {
        StatusCode::UNAUTHORIZED if problem.detail.starts_with("send `Authorization") => {
            (StatusCode::UNAUTHORIZED, "missing_api_key")
        }
        StatusCode::UNAUTHORIZED => (StatusCode::FORBIDDEN, "invalid_api_key"),
        StatusCode::FORBIDDEN if problem.rule() == Some("key.scopes") => {
            (StatusCode::UNAUTHORIZED, "restricted_api_key")
        }
        StatusCode::FORBIDDEN => (StatusCode::FORBIDDEN, "validation_error"),
        StatusCode::NOT_FOUND => (StatusCode::NOT_FOUND, "not_found"),
        StatusCode::METHOD_NOT_ALLOWED => (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
        StatusCode::UNPROCESSABLE_ENTITY
            if !problem.errors.is_empty() && problem.errors.iter().all(missing) =>
        {
            (StatusCode::UNPROCESSABLE_ENTITY, "missing_required_field")
        }
        status if status.is_server_error() => (status, "application_error"),
        status => (status, "validation_error"),
    };
    let body = json!({ "statusCode": status.as_u16(), "name": name, "message": problem.detail });
    (status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}
