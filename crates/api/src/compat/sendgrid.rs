//! SendGrid's API: <https://www.twilio.com/docs/sendgrid/api-reference/mail-send/mail-send>.

use super::{Fields, NO_HISTORY, NO_TEMPLATES, NO_TRACKING, Purpose, deliver, is_empty, known, taken};
use crate::caller::{Keys, bearer};
use crate::emails::request::{Addresses, AttachmentRequest, EmailRequest, Headers};
use crate::port::Relay;
use crate::problem::{FieldError, Problem};
use crate::public::Api;
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use postrider_model::Timestamp;
use serde_json::{Value, json};

/// Personalizations of one request.
const PERSONALIZATIONS_MAX: usize = 1_000;

pub(super) fn router<R: Relay + Keys>() -> Router<Api<R>> {
    Router::new()
        .route("/v3/mail/send", post(send::<R>))
        .fallback(|| async {
            refused(&Problem::not_found("no such route; docs/compatibility.md lists them"))
        })
        .method_not_allowed_fallback(|| async { refused(&Problem::method_not_allowed()) })
}

async fn send<R: Relay + Keys>(State(api): State<Api<R>>, request: Request<Body>) -> Response {
    match send_all(&api, request).await {
        Ok(None) => StatusCode::OK.into_response(),
        Ok(Some(id)) => (StatusCode::ACCEPTED, [("x-message-id", id.into_string())]).into_response(),
        Err(problem) => refused(&problem),
    }
}

/// One message for each personalization: all are right, or none is sent. The first one's id; none in sandbox
/// mode.
async fn send_all<R: Relay + Keys>(
    api: &Api<R>,
    request: Request<Body>,
) -> Result<Option<Box<str>>, Problem> {
    let (parts, body) = taken(request).await?;
    let caller = known(api, &parts, bearer(&parts))?;
    let value: Value = serde_json::from_slice(&body)
        .map_err(|error| Problem::bad_request(format!("the body is not JSON: {error}")))?;
    let (requests, sandbox) = mapped(value)?;
    let requests: Vec<_> = requests.into_iter().map(Ok).collect();
    let checked = deliver(api, &caller, &parts, body.len(), Purpose::Check, requests.clone()).await?;
    if let Some(problem) = checked.into_iter().find_map(Result::err) {
        return Err(problem);
    }
    if sandbox {
        return Ok(None);
    }
    let results = deliver(api, &caller, &parts, body.len(), Purpose::Send, requests).await?;
    let mut first = None;
    for result in results {
        let id = result?;
        first.get_or_insert(id);
    }
    Ok(first)
}

fn mapped(body: Value) -> Result<(Vec<EmailRequest>, bool), Problem> {
    let mut errors = Vec::new();
    let mut fields = Fields::new("", body, &mut errors);
    let personalizations = fields.list("personalizations");
    let from = fields.take("from");
    let reply_to: Vec<Value> =
        fields.take("reply_to").into_iter().chain(fields.list("reply_to_list")).collect();
    let subject = fields.text("subject");
    let headers = fields.pairs("headers");
    let send_at = send_at(&mut fields);
    let (content, attachments) = (fields.list("content"), fields.list("attachments"));
    let sandbox = sandbox_mode(&mut fields);
    tracking(&mut fields);
    for name in ["categories", "custom_args"] {
        fields.refuse(name, NO_HISTORY);
    }
    fields.refuse("template_id", NO_TEMPLATES);
    fields.finish();
    let mut shared = EmailRequest {
        from: from.and_then(|from| party("from", from, &mut errors)).unwrap_or_default(),
        reply_to: parties("reply_to", reply_to, &mut errors),
        ..EmailRequest::default()
    };
    bodies(&mut shared, content, &mut errors);
    files(&mut shared, attachments, &mut errors);
    if personalizations.is_empty() || personalizations.len() > PERSONALIZATIONS_MAX {
        let detail = format!("must be a list of 1 to {PERSONALIZATIONS_MAX} entries");
        errors.push(FieldError::new("personalizations", detail));
    }
    let mut requests = Vec::new();
    for (index, entry) in personalizations.into_iter().enumerate() {
        let prefix = format!("personalizations[{index}]");
        let mut fields = Fields::new(&prefix, entry, &mut errors);
        let lists = ["to", "cc", "bcc"].map(|name| fields.list(name));
        let from = fields.take("from");
        let own = (fields.text("subject"), fields.pairs("headers"), self::send_at(&mut fields));
        fields.refuse("substitutions", "is not supported: write the text out");
        fields.refuse("dynamic_template_data", NO_TEMPLATES);
        fields.refuse("custom_args", NO_HISTORY);
        fields.finish();
        let mut request = shared.clone();
        let [to, cc, bcc] = lists;
        request.to = parties(&format!("{prefix}.to"), to, &mut errors);
        request.cc = parties(&format!("{prefix}.cc"), cc, &mut errors);
        request.bcc = parties(&format!("{prefix}.bcc"), bcc, &mut errors);
        if let Some(from) = from.and_then(|from| party(&format!("{prefix}.from"), from, &mut errors)) {
            request.from = from;
        }
        request.subject = own.0.or_else(|| subject.clone()).unwrap_or_default();
        let mut all = own.1;
        let inherited =
            headers.iter().filter(|(name, _)| !all.iter().any(|(own, _)| own.eq_ignore_ascii_case(name)));
        let inherited: Vec<_> = inherited.cloned().collect();
        all.extend(inherited);
        request.headers = Headers(all);
        request.scheduled_at = own.2.or_else(|| send_at.clone());
        requests.push(request);
    }
    if errors.is_empty() { Ok((requests, sandbox)) } else { Err(Problem::invalid(errors)) }
}

/// Seconds since the Unix epoch.
fn send_at(fields: &mut Fields<'_>) -> Option<String> {
    let value = fields.take("send_at")?;
    let Some(seconds) = value.as_u64() else {
        fields.wrong("send_at", "must be a time in seconds since 1970");
        return None;
    };
    Some(Timestamp::from_secs(seconds).to_string())
}

fn sandbox_mode(fields: &mut Fields<'_>) -> bool {
    let Some(settings) = fields.take("mail_settings") else { return false };
    let mut inner = Fields::new("mail_settings", settings, fields.errors);
    let mode = inner.take("sandbox_mode");
    for name in [
        "bypass_list_management",
        "bypass_spam_management",
        "bypass_bounce_management",
        "bypass_unsubscribe_management",
        "footer",
    ] {
        inner.refuse(name, "is not supported");
    }
    inner.finish();
    mode.is_some_and(|mode| mode.get("enable") == Some(&Value::Bool(true)))
}

/// Turned off is what it is here; turned on is refused.
fn tracking(fields: &mut Fields<'_>) {
    let Some(Value::Object(settings)) = fields.take("tracking_settings") else { return };
    for (name, value) in settings {
        if value.get("enable") == Some(&Value::Bool(true))
            || value.get("enable").is_none() && !is_empty(&value)
        {
            fields.wrong(&format!("tracking_settings.{name}"), NO_TRACKING);
        }
    }
}

fn bodies(request: &mut EmailRequest, content: Vec<Value>, errors: &mut Vec<FieldError>) {
    for (index, part) in content.into_iter().enumerate() {
        let mut fields = Fields::new(&format!("content[{index}]"), part, errors);
        let value = fields.text("value");
        match fields.text("type").as_deref() {
            Some("text/plain") => request.text = value,
            Some("text/html") => request.html = value,
            _ => fields.wrong("type", "must be text/plain or text/html"),
        }
        fields.finish();
    }
}

fn files(request: &mut EmailRequest, attachments: Vec<Value>, errors: &mut Vec<FieldError>) {
    for (index, file) in attachments.into_iter().enumerate() {
        let mut fields = Fields::new(&format!("attachments[{index}]"), file, errors);
        let id = fields.text("content_id");
        let inline = match fields.text("disposition").as_deref() {
            None | Some("attachment") => false,
            Some("inline") => true,
            Some(_) => {
                fields.wrong("disposition", "must be attachment or inline");
                false
            }
        };
        request.attachments.push(AttachmentRequest {
            filename: fields.text("filename").unwrap_or_default(),
            content: fields.text("content").unwrap_or_default(),
            content_type: fields.text("type"),
            content_id: id.filter(|_| inline),
        });
        fields.finish();
    }
}

fn parties(field: &str, values: Vec<Value>, errors: &mut Vec<FieldError>) -> Addresses {
    let texts = values.into_iter().enumerate();
    Addresses(texts.filter_map(|(index, value)| party(&format!("{field}[{index}]"), value, errors)).collect())
}

/// `{"email": "…", "name": "…"}` as one text.
fn party(field: &str, value: Value, errors: &mut Vec<FieldError>) -> Option<String> {
    let mut fields = Fields::new(field, value, errors);
    let (email, name) = (fields.text("email"), fields.text("name"));
    if email.is_none() {
        fields.wrong("email", "is missing");
    }
    fields.finish();
    Some(match name.filter(|name| !name.is_empty()) {
        None => email?,
        Some(name) => {
            let quoted = name.replace('\\', "\\\\").replace('"', "\\\"");
            format!("\"{quoted}\" <{}>", email?)
        }
    })
}

/// `{"errors": [{"message": "…", "field": "…", "help": null}]}`
fn refused(problem: &Problem) -> Response {
    let status = match problem.status {
        StatusCode::UNPROCESSABLE_ENTITY => StatusCode::BAD_REQUEST,
        status => status,
    };
    let errors: Vec<Value> = if problem.errors.is_empty() {
        vec![json!({ "message": problem.detail, "field": null, "help": null })]
    } else {
        let entry = |error: &FieldError| json!({ "message": format!("{} {}", error.field, error.detail), "field": error.field, "help": null });
        problem.errors.iter().map(entry).collect()
    };
    (status, axum::Json(json!({ "errors": errors }))).into_response()
}
