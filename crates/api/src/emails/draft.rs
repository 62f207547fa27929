//! From a request to a message that can be handed over.

use super::request::{Addresses, AttachmentRequest, EmailRequest};
use crate::problem::{FieldError, Problem};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use postrider_ingress::{Content, Submission};
use postrider_message::{Attachment, Composed, Parts, Party, compose};
use postrider_model::control::{Application, Environment, Writer};
use postrider_model::{BodyKind, Class, Envelope, Mailbox, Timestamp};
use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// Recipients of one message.
pub(crate) const RECIPIENTS_MAX: usize = 1_000;

/// Who sends, and whence.
#[derive(Clone, Debug)]
pub(crate) struct Sender {
    pub(crate) application: Arc<Application>,
    pub(crate) environment: Environment,
    pub(crate) client: IpAddr,
}

impl Sender {
    /// A message as it is handed over.
    pub(crate) fn submission(
        &self,
        envelope: Envelope,
        recipients: Vec<Mailbox>,
        content: Content,
    ) -> Submission {
        Submission {
            tag: 0,
            application: self.application.clone(),
            environment: self.environment,
            client: self.client,
            envelope,
            recipients,
            content,
            class: Class::default(),
            due: None,
        }
    }
}

/// Makes the message that a request asks for.
///
/// # Errors
/// Everything that is wrong with it, each field by name; or the rule that forbids it.
pub(crate) fn draft(request: &EmailRequest, sender: &Sender, now: Timestamp) -> Result<Submission, Problem> {
    let Drafted { author, recipients, composed, class, due } = drafted(request, now)?;
    may_send(sender, &author, now)?;
    let needs_smtputf8 = composed.needs_smtputf8 || recipients.iter().any(Mailbox::needs_smtputf8);
    let envelope = Envelope {
        reverse_path: Some(author),
        body: if composed.needs_smtputf8 { BodyKind::EightBitMime } else { BodyKind::SevenBit },
        smtputf8: needs_smtputf8,
        ..Envelope::default()
    };
    let submission = sender.submission(envelope, recipients, Content::composed(composed.content));
    Ok(Submission { class, due, ..submission })
}

/// Whether a request could be sent by somebody; an empty id if so.
///
/// # Errors
/// Everything that is wrong with it.
pub(crate) fn check(request: &EmailRequest, now: Timestamp) -> Result<Box<str>, Problem> {
    drafted(request, now).map(|_| "".into())
}

/// A message that is right, whoever sends it.
struct Drafted {
    author: Mailbox,
    recipients: Vec<Mailbox>,
    composed: Composed,
    class: Class,
    due: Option<Timestamp>,
}

fn drafted(request: &EmailRequest, now: Timestamp) -> Result<Drafted, Problem> {
    let mut errors = Vec::new();
    let from = parties("from", std::slice::from_ref(&request.from), &mut errors);
    if from.len() != 1 && errors.is_empty() {
        let detail = if from.is_empty() { "is missing" } else { "must be one address" };
        errors.push(FieldError::new("from", detail));
    }
    let to = list("to", &request.to, &mut errors);
    let cc = list("cc", &request.cc, &mut errors);
    let bcc = list("bcc", &request.bcc, &mut errors);
    let reply_to = list("reply_to", &request.reply_to, &mut errors);
    let recipients = recipients(&[&to, &cc, &bcc]);
    if recipients.is_empty() && !errors.iter().any(|error| error.field != "from") {
        errors.push(FieldError::new("to", "is missing: name at least one recipient"));
    }
    if recipients.len() > RECIPIENTS_MAX {
        errors.push(FieldError::new(
            "to",
            format!("names more than {RECIPIENTS_MAX} recipients, cc and bcc included"),
        ));
    }
    let attachments = attachments(&request.attachments, &mut errors);
    let class = class(request.stream.as_deref(), &mut errors);
    let due = due(request.scheduled_at.as_deref(), now, &mut errors);
    not_yet(request, &mut errors);
    let parts = Parts {
        from: &from,
        to: &to,
        cc: &cc,
        reply_to: &reply_to,
        subject: &request.subject,
        text: request.text.as_deref(),
        html: request.html.as_deref(),
        headers: &request.headers.0,
        attachments: &attachments,
    };
    let composed = match compose(&parts) {
        Ok(composed) if errors.is_empty() => composed,
        Ok(_) => return Err(Problem::invalid(errors)),
        Err(violations) => {
            for violation in violations {
                // What could not be read as an address was told already.
                if !errors.iter().any(|error| error.field == violation.field) {
                    errors.push(FieldError::new(violation.field, violation.rule.to_string()));
                }
            }
            return Err(Problem::invalid(errors));
        }
    };
    // Invariant: with no errors there is exactly one.
    let Some(author) = from.into_iter().next() else { return Err(Problem::invalid(errors)) };
    Ok(Drafted { author: author.mailbox, recipients, composed, class, due })
}

/// Whether the application may send as this address now; asked again where the message is taken.
pub(crate) fn may_send(sender: &Sender, author: &Mailbox, now: Timestamp) -> Result<(), Problem> {
    let denied =
        |denied: postrider_model::control::Denied| Problem::forbidden(denied.rule(), denied.to_string());
    sender.application.may_send(now).map_err(denied)?;
    sender.application.may_send_as(Writer::From, Some(author)).map_err(denied)
}

fn list(field: &str, addresses: &Addresses, errors: &mut Vec<FieldError>) -> Vec<Party> {
    parties(field, &addresses.0, errors)
}

fn parties(field: &str, texts: &[String], errors: &mut Vec<FieldError>) -> Vec<Party> {
    let mut parties = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        match Party::parse_list(text) {
            Ok(found) if parties.is_empty() => parties = found,
            Ok(found) => parties.extend(found),
            Err(error) => {
                let field = if texts.len() == 1 { field.to_owned() } else { format!("{field}[{index}]") };
                errors.push(FieldError::new(field, error.to_string()));
            }
        }
    }
    parties
}

/// Everybody once, in order.
fn recipients(lists: &[&[Party]]) -> Vec<Mailbox> {
    let all = lists.iter().flat_map(|list| list.iter()).map(|party| &party.mailbox);
    let count = lists.iter().map(|list| list.len()).sum();
    let mut recipients = Vec::with_capacity(count);
    if count == 1 {
        recipients.extend(all.cloned());
        return recipients;
    }
    let mut seen = HashSet::with_capacity(count);
    recipients.extend(all.filter(|mailbox| seen.insert(*mailbox)).cloned());
    recipients
}

fn attachments(requests: &[AttachmentRequest], errors: &mut Vec<FieldError>) -> Vec<Attachment> {
    let mut attachments = Vec::with_capacity(requests.len());
    for (index, request) in requests.iter().enumerate() {
        attachments.push(Attachment {
            file_name: request.filename.as_str().into(),
            content_type: request.content_type.as_deref().unwrap_or("").into(),
            content_id: request.content_id.as_deref().unwrap_or("").into(),
            content: decoded(&request.content).unwrap_or_else(|| {
                errors.push(FieldError::new(format!("attachments[{index}].content"), "is not base64"));
                Vec::new()
            }),
        });
    }
    attachments
}

/// Base64 as clients write it: with or without padding, perhaps in lines.
pub(crate) fn decoded(text: &str) -> Option<Vec<u8>> {
    if let Ok(octets) = STANDARD.decode(text) {
        return Some(octets);
    }
    let text: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    STANDARD_NO_PAD.decode(text.trim_end_matches('=')).ok()
}

fn class(stream: Option<&str>, errors: &mut Vec<FieldError>) -> Class {
    match stream {
        None => Class::default(),
        Some("transactional") => Class::Transactional,
        Some("bulk") => Class::Bulk,
        Some(_) => {
            errors
                .push(FieldError::new("stream", "there is no such stream; there are transactional and bulk"));
            Class::default()
        }
    }
}

/// How far ahead a message may be scheduled.
const SCHEDULE_MAX: Duration = Duration::from_secs(30 * 24 * 3_600);

/// The first time at which it may leave.
pub(crate) fn due(text: Option<&str>, now: Timestamp, errors: &mut Vec<FieldError>) -> Option<Timestamp> {
    let text = text?;
    match text.parse::<Timestamp>() {
        Ok(due) if due <= now + SCHEDULE_MAX => Some(due),
        Ok(_) => {
            let days = SCHEDULE_MAX.as_secs() / 86_400;
            errors.push(FieldError::new("scheduled_at", format!("is more than {days} days ahead")));
            None
        }
        Err(_) => {
            let detail = "is no time of RFC 3339 such as 2026-11-24T13:20:26Z";
            errors.push(FieldError::new("scheduled_at", detail));
            None
        }
    }
}

/// Fields that are known and cannot be kept yet: refused rather than forgotten.
fn not_yet(request: &EmailRequest, errors: &mut Vec<FieldError>) {
    let detail = "is not supported yet: there is no history that would show it";
    if !request.tags.is_empty() {
        errors.push(FieldError::new("tags", detail));
    }
    if !request.metadata.0.is_empty() {
        errors.push(FieldError::new("metadata", detail));
    }
}
