//! Postmark's API: <https://postmarkapp.com/developer/api/email-api>.

use super::{Fields, NO_HISTORY, NO_TEMPLATES, NO_TRACKING, Purpose, deliver, known, taken};
use crate::caller::{Caller, Keys};
use crate::emails::draft::check;
use crate::emails::request::{Addresses, AttachmentRequest, EmailRequest, Headers};
use crate::port::Relay;
use crate::problem::Problem;
use crate::public::Api;
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use serde_json::{Value, json};

/// Messages of one batch.
const BATCH_MAX: usize = 500;
/// The token with which a message is checked and forgotten.
const TEST_TOKEN: &str = "POSTMARK_API_TEST";
const TOKEN_HEADER: &str = "x-postmark-server-token";

pub(super) fn router<R: Relay + Keys>() -> Router<Api<R>> {
    Router::new()
        .route("/email", post(send::<R>))
        .route("/email/batch", post(batch::<R>))
        .route("/email/withTemplate", post(no_templates))
        .route("/email/withTemplate/", post(no_templates))
        .route("/email/batchWithTemplates", post(no_templates))
        .fallback(|| async {
            refused(&Problem::not_found("no such route; docs/compatibility.md lists them"))
        })
        .method_not_allowed_fallback(|| async { refused(&Problem::method_not_allowed()) })
}

async fn no_templates() -> Response {
    let message = "Templates are not supported yet; render the message and send it with /email";
    (StatusCode::UNPROCESSABLE_ENTITY, axum::Json(json!({ "ErrorCode": 1101, "Message": message })))
        .into_response()
}

async fn send<R: Relay + Keys>(State(api): State<Api<R>>, request: Request<Body>) -> Response {
    match answers(&api, request, Shape::One).await {
        Ok(answers) => {
            let (status, body) = answers.into_iter().next().unwrap_or((StatusCode::OK, Value::Null));
            (status, axum::Json(body)).into_response()
        }
        Err(problem) => refused(&problem),
    }
}

async fn batch<R: Relay + Keys>(State(api): State<Api<R>>, request: Request<Body>) -> Response {
    match answers(&api, request, Shape::List).await {
        Ok(answers) => {
            let bodies: Vec<Value> = answers.into_iter().map(|(_, body)| body).collect();
            axum::Json(bodies).into_response()
        }
        Err(problem) => refused(&problem),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    One,
    List,
}

async fn answers<R: Relay + Keys>(
    api: &Api<R>,
    request: Request<Body>,
    shape: Shape,
) -> Result<Vec<(StatusCode, Value)>, Problem> {
    let (parts, body) = taken(request).await?;
    let token = parts.headers.get(TOKEN_HEADER).and_then(|value| value.to_str().ok());
    let caller: Option<Caller> = match token {
        Some(TEST_TOKEN) => None,
        token => Some(known(api, &parts, token)?),
    };
    let value: Value = serde_json::from_slice(&body)
        .map_err(|error| Problem::bad_request(format!("the body is not JSON: {error}")))?;
    let items = match (shape, value) {
        (Shape::One, value) => vec![value],
        (Shape::List, Value::Array(items)) if items.len() <= BATCH_MAX => items,
        (Shape::List, Value::Array(_)) => {
            return Err(Problem::bad_request(format!("a batch holds at most {BATCH_MAX} messages")));
        }
        (Shape::List, _) => return Err(Problem::bad_request("the body must be a list of messages")),
    };
    let requests: Vec<_> = items.into_iter().map(mapped).collect();
    let recipients: Vec<String> = requests
        .iter()
        .map(|request| request.as_ref().map(|r| r.to.0.join(", ")).unwrap_or_default())
        .collect();
    let now = api.relay.now();
    let results = match &caller {
        Some(caller) => deliver(api, caller, &parts, body.len(), Purpose::Send, requests).await?,
        None => requests.iter().map(|request| check(request.as_ref().map_err(Clone::clone)?, now)).collect(),
    };
    let message = if caller.is_some() { "OK" } else { "Test job accepted" };
    let answer = |(result, to): (Result<Box<str>, Problem>, String)| match result {
        Ok(id) => {
            let id = if id.is_empty() { "00000000-0000-0000-0000-000000000000" } else { &id };
            let body = json!({
                "To": to, "SubmittedAt": now, "MessageID": id, "ErrorCode": 0, "Message": message,
            });
            (StatusCode::OK, body)
        }
        Err(problem) => vendor(&problem),
    };
    Ok(results.into_iter().zip(recipients).map(answer).collect())
}

fn mapped(body: Value) -> Result<EmailRequest, Problem> {
    let mut errors = Vec::new();
    let mut fields = Fields::new("", body, &mut errors);
    let mut request = EmailRequest {
        from: fields.text("From").unwrap_or_default(),
        to: Addresses(fields.text("To").into_iter().collect()),
        cc: Addresses(fields.text("Cc").into_iter().collect()),
        bcc: Addresses(fields.text("Bcc").into_iter().collect()),
        reply_to: Addresses(fields.text("ReplyTo").into_iter().collect()),
        subject: fields.text("Subject").unwrap_or_default(),
        html: fields.text("HtmlBody"),
        text: fields.text("TextBody"),
        ..EmailRequest::default()
    };
    match fields.text("MessageStream").as_deref() {
        None | Some("outbound") => request.stream = Some("transactional".into()),
        Some("broadcast") => request.stream = Some("bulk".into()),
        Some(_) => fields.wrong("MessageStream", "there are the streams outbound and broadcast"),
    }
    match fields.text("TrackLinks").as_deref() {
        None | Some("None") => {}
        Some(_) => fields.wrong("TrackLinks", NO_TRACKING),
    }
    fields.refuse("TrackOpens", NO_TRACKING);
    fields.refuse("Tag", NO_HISTORY);
    fields.refuse("Metadata", NO_HISTORY);
    for name in ["TemplateId", "TemplateAlias", "TemplateModel"] {
        fields.refuse(name, NO_TEMPLATES);
    }
    let (headers, attachments) = (fields.list("Headers"), fields.list("Attachments"));
    fields.finish();
    let mut own = Vec::new();
    for (index, pair) in headers.into_iter().enumerate() {
        let mut fields = Fields::new(&format!("Headers[{index}]"), pair, &mut errors);
        let (name, value) =
            (fields.text("Name").unwrap_or_default(), fields.text("Value").unwrap_or_default());
        own.push((name.into(), value.into()));
        fields.finish();
    }
    request.headers = Headers(own);
    for (index, file) in attachments.into_iter().enumerate() {
        let mut fields = Fields::new(&format!("Attachments[{index}]"), file, &mut errors);
        // The length is what the content says.
        fields.take("ContentLength");
        let id = fields.text("ContentID");
        request.attachments.push(AttachmentRequest {
            filename: fields.text("Name").unwrap_or_default(),
            content: fields.text("Content").unwrap_or_default(),
            content_type: fields.text("ContentType"),
            content_id: id.map(|id| id.strip_prefix("cid:").unwrap_or(&id).to_owned()),
        });
        fields.finish();
    }
    if errors.is_empty() { Ok(request) } else { Err(Problem::invalid(errors)) }
}

fn refused(problem: &Problem) -> Response {
    let (status, body) = vendor(problem);
    (status, axum::Json(body)).into_response()
}

/// `{"ErrorCode": 300, "Message": "…"}`: <https://postmarkapp.com/developer/api/overview#error-codes>.
fn vendor(problem: &Problem) -> (StatusCode, Value) {
    let (status, code) = match problem.status {
        StatusCode::UNAUTHORIZED => (StatusCode::UNAUTHORIZED, 10),
        StatusCode::FORBIDDEN if problem.rule() == Some("application.from") => {
            (StatusCode::UNPROCESSABLE_ENTITY, 400)
        }
        StatusCode::FORBIDDEN => (StatusCode::UNAUTHORIZED, 10),
        StatusCode::NOT_FOUND => (StatusCode::NOT_FOUND, 404),
        StatusCode::METHOD_NOT_ALLOWED => (StatusCode::METHOD_NOT_ALLOWED, 405),
        StatusCode::BAD_REQUEST if problem.detail.starts_with("the body is not JSON") => {
            (StatusCode::UNPROCESSABLE_ENTITY, 402)
        }
        StatusCode::BAD_REQUEST if problem.detail.starts_with("a batch") => {
            (StatusCode::UNPROCESSABLE_ENTITY, 410)
        }
        StatusCode::BAD_REQUEST => (StatusCode::UNPROCESSABLE_ENTITY, 403),
        StatusCode::PAYLOAD_TOO_LARGE => (StatusCode::PAYLOAD_TOO_LARGE, 300),
        status if status.is_server_error() => (status, 100),
        _ => (StatusCode::UNPROCESSABLE_ENTITY, 300),
    };
    (status, json!({ "ErrorCode": code, "Message": problem.detail }))
}
