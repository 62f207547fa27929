//! A message made from parts: what the send API and the command line hand in.
//!
//! Everything is written in seven bits (RFC 2045 §6.7, §6.8), so that no later hop has to change it and no
//! signature breaks, but for addresses whose first part is not ASCII, which need SMTPUTF8 anyway. Boundaries
//! begin with `=_`, which neither quoted-printable nor base64 can hold (RFC 2045 §6.7), so no random octets
//! are needed.

use crate::lines;
use crate::party::{Party, has_forbidden};
use crate::plain::plain_text;
use crate::transfer::{write_base64, write_quoted_printable};
use crate::words;
use memchr::memmem;
use std::borrow::Cow;
use std::fmt::{self, Write as _};
use thiserror::Error;

/// Octets of the text of one header field.
pub const FIELD_TEXT_SIZE_MAX: usize = 16 << 10;
/// Header fields of the caller's own.
pub const OWN_FIELDS_MAX: usize = 100;
/// Attachments.
pub const ATTACHMENTS_MAX: usize = 200;
/// Octets of a file name.
const FILE_NAME_SIZE_MAX: usize = 255;
/// Octets of a word in a header field that cannot be encoded: a line of it must stay below 998.
const WORD_SIZE_MAX: usize = 900;
/// Octets of a line of text that is sent as it is (RFC 5321 §4.5.3.1.6 allows 998).
const TEXT_LINE_SIZE_MAX: usize = 990;

/// What a message is made of. Envelope recipients are not here: whoever stands only in the envelope is a
/// Bcc, and no header field tells of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Parts<'a> {
    /// From: at least one.
    pub from: &'a [Party],
    /// To.
    pub to: &'a [Party],
    /// Cc.
    pub cc: &'a [Party],
    /// Reply-To.
    pub reply_to: &'a [Party],
    /// Subject, in plain text.
    pub subject: &'a str,
    /// The plain text. Made from the HTML if there is none; `Some("")` leaves it out.
    pub text: Option<&'a str>,
    /// The HTML.
    pub html: Option<&'a str>,
    /// Further header fields, name and value, in plain text.
    pub headers: &'a [(Box<str>, Box<str>)],
    /// Attachments, in order.
    pub attachments: &'a [Attachment],
}

/// A file that goes with a message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attachment {
    /// Its name; may be empty for an inline one.
    pub file_name: Box<str>,
    /// Its media type; empty: by the name's extension.
    pub content_type: Box<str>,
    /// Shown within the HTML as `cid:…`; empty for a file beside it.
    pub content_id: Box<str>,
    /// Its octets.
    pub content: Vec<u8>,
}

/// A message in its stored form: CRLF, dot-stuffed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Composed {
    /// The content.
    pub content: Vec<u8>,
    /// An address needs SMTPUTF8, and the header section holds it in UTF-8.
    pub needs_smtputf8: bool,
}

/// What is wrong with one part.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{field}: {rule}")]
pub struct Violation {
    /// The part, as the API names it: `attachments[0].filename`.
    pub field: String,
    /// What it breaks.
    pub rule: Rule,
}

/// A rule for parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Rule {
    /// It stands in the header section, where a line break would begin a field that nobody asked for.
    #[error(
        "holds a line break or another control character (also U+0085, U+2028 and U+2029), which no header field may"
    )]
    Control,
    /// It must be there.
    #[error("is missing")]
    Missing,
    /// Longer than this many octets.
    #[error("is longer than {0} octets")]
    TooLong(usize),
    /// More than this many.
    #[error("has more than {0} entries")]
    TooMany(usize),
    /// A word that no line takes.
    #[error("has a word of more than {WORD_SIZE_MAX} octets, which no header line takes; put spaces into it")]
    WordTooLong,
    /// Not a field name.
    #[error("is not the name of a header field: letters, digits, - and _")]
    FieldName,
    /// A field that has another way to be set, or that only relays write.
    #[error("cannot be set here: the relay writes this field itself, or a field of the request does")]
    Reserved,
    /// A field that stands there twice and may not.
    #[error("is set twice")]
    Repeated,
    /// Not a message id.
    #[error("is not a message id of the form <left@right>")]
    MessageId,
    /// Not a media type.
    #[error("is not a media type such as application/pdf")]
    MediaType,
    /// Not a content id.
    #[error("is not a content id: letters, digits and .-_@+ without angles")]
    ContentId,
}

/// Fields that the caller does not set by name (RFC 5322, RFC 2045, RFC 6376, RFC 8601, RFC 8617).
const RESERVED: &[&str] = &[
    "from",
    "sender",
    "to",
    "cc",
    "bcc",
    "reply-to",
    "subject",
    "date",
    "received",
    "return-path",
    "mime-version",
    "dkim-signature",
    "domainkey-signature",
    "authentication-results",
    "received-spf",
    "arc-seal",
    "arc-message-signature",
    "arc-authentication-results",
    "delivered-to",
];

/// Makes a message. Date, Message-ID and the trace are not in it: the relay puts them in front when it
/// takes the message.
///
/// # Errors
/// Everything that is wrong with the parts.
pub fn compose(parts: &Parts<'_>) -> Result<Composed, Vec<Violation>> {
    check(parts)?;
    let files: usize = parts.attachments.iter().map(|file| file.content.len() / 3 * 4 + 512).sum();
    let text = parts.text.map_or(0, str::len) + parts.html.map_or(0, str::len);
    let mut out = Vec::with_capacity(1024 + text + text / 2 + files + files / 32);
    write_parties(&mut out, "From", parts.from);
    write_parties(&mut out, "To", parts.to);
    write_parties(&mut out, "Cc", parts.cc);
    write_parties(&mut out, "Reply-To", parts.reply_to);
    write_text_field(&mut out, "Subject", parts.subject);
    for (name, value) in parts.headers {
        write_text_field(&mut out, name, value);
    }
    out.extend_from_slice(b"MIME-Version: 1.0\r\n");
    Body::new(parts).write(&mut out);
    let all = [parts.from, parts.to, parts.cc, parts.reply_to];
    let needs_smtputf8 = all.iter().flat_map(|list| list.iter()).any(|party| party.mailbox.needs_smtputf8());
    Ok(Composed { content: out, needs_smtputf8 })
}

fn check(parts: &Parts<'_>) -> Result<(), Vec<Violation>> {
    let mut found = Violations(Vec::new());
    if parts.from.is_empty() {
        found.add("from", Rule::Missing);
    }
    found.header_text("subject", parts.subject);
    let lists = [("from", parts.from), ("to", parts.to), ("cc", parts.cc), ("reply_to", parts.reply_to)];
    for (field, list) in lists {
        if list.len() > crate::party::PARTIES_MAX {
            found.add(field, Rule::TooMany(crate::party::PARTIES_MAX));
        }
        for (at, party) in list.iter().enumerate() {
            if has_forbidden(&party.name) || has_forbidden(party.mailbox.as_str()) {
                found.add(format!("{field}[{at}]"), Rule::Control);
            }
            if party.name.len() > crate::party::NAME_SIZE_MAX {
                found.add(format!("{field}[{at}]"), Rule::TooLong(crate::party::NAME_SIZE_MAX));
            }
        }
    }
    if parts.text.is_none() && parts.html.is_none() {
        found.add("html", Rule::Missing);
    }
    check_headers(parts.headers, &mut found);
    if parts.attachments.len() > ATTACHMENTS_MAX {
        found.add("attachments", Rule::TooMany(ATTACHMENTS_MAX));
    }
    for (at, file) in parts.attachments.iter().enumerate() {
        check_attachment(&format!("attachments[{at}]"), file, &mut found);
    }
    if found.0.is_empty() { Ok(()) } else { Err(found.0) }
}

fn check_headers(headers: &[(Box<str>, Box<str>)], found: &mut Violations) {
    if headers.len() > OWN_FIELDS_MAX {
        return found.add("headers", Rule::TooMany(OWN_FIELDS_MAX));
    }
    let mut seen_id = false;
    for (name, value) in headers {
        let shown: String = name.chars().take(80).map(|c| if c.is_control() { '?' } else { c }).collect();
        let field = format!("headers.{shown}");
        let in_name = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        if has_forbidden(name) {
            found.add(&field, Rule::Control);
            continue;
        }
        if !name.bytes().all(in_name)
            || !name.starts_with(|c: char| c.is_ascii_alphanumeric())
            || name.len() > 76
        {
            found.add(&field, Rule::FieldName);
            continue;
        }
        let lower = name.to_ascii_lowercase();
        if RESERVED.contains(&&*lower) || lower.starts_with("resent-") || lower.starts_with("content-") {
            found.add(&field, Rule::Reserved);
            continue;
        }
        found.header_text(&field, value);
        if lower == "message-id" {
            if !is_message_id(value.trim()) {
                found.add(&field, Rule::MessageId);
            }
            if std::mem::replace(&mut seen_id, true) {
                found.add(&field, Rule::Repeated);
            }
        } else if value.is_ascii() && value.split(' ').any(|word| word.len() > WORD_SIZE_MAX) {
            found.add(&field, Rule::WordTooLong);
        }
    }
}

fn check_attachment(field: &str, file: &Attachment, found: &mut Violations) {
    let name = format!("{field}.filename");
    found.header_text(&name, &file.file_name);
    if file.file_name.is_empty() && file.content_id.is_empty() {
        found.add(&name, Rule::Missing);
    }
    if file.file_name.len() > FILE_NAME_SIZE_MAX {
        found.add(&name, Rule::TooLong(FILE_NAME_SIZE_MAX));
    }
    if !file.content_type.is_empty() && !is_media_type(&file.content_type) {
        let rule = if has_forbidden(&file.content_type) { Rule::Control } else { Rule::MediaType };
        found.add(format!("{field}.content_type"), rule);
    }
    let in_id = |b: u8| b.is_ascii_alphanumeric() || b".-_@+".contains(&b);
    if file.content_id.len() > 255 || !file.content_id.bytes().all(in_id) {
        let rule = if has_forbidden(&file.content_id) { Rule::Control } else { Rule::ContentId };
        found.add(format!("{field}.content_id"), rule);
    }
}

struct Violations(Vec<Violation>);

impl Violations {
    fn add(&mut self, field: impl Into<String>, rule: Rule) {
        self.0.push(Violation { field: field.into(), rule });
    }

    fn header_text(&mut self, field: &str, text: &str) {
        if has_forbidden(text) {
            self.add(field, Rule::Control);
        }
        if text.len() > FIELD_TEXT_SIZE_MAX {
            self.add(field, Rule::TooLong(FIELD_TEXT_SIZE_MAX));
        }
    }
}

/// `<left@right>` of printable ASCII (RFC 5322 §3.6.4, a little wider).
fn is_message_id(text: &str) -> bool {
    let inner = text.strip_prefix('<').and_then(|inner| inner.strip_suffix('>'));
    inner.is_some_and(|inner| {
        let plain = |b: u8| (0x21..0x7f).contains(&b) && !b"<>()\\\"".contains(&b);
        inner.len() <= 250
            && inner.bytes().all(plain)
            && inner.split_once('@').is_some_and(|(left, right)| !left.is_empty() && !right.is_empty())
    })
}

/// `type/subtype` with parameters. Types that base64 may not carry (RFC 2046 §5.1.1, §5.2.1) are none here.
fn is_media_type(text: &str) -> bool {
    let (kind, parameters) = text.split_once(';').map_or((text, ""), |(kind, rest)| (kind, rest));
    let token = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$&^_.+-".contains(&b))
    };
    let composite =
        |kind: &str| kind.eq_ignore_ascii_case("multipart") || kind.eq_ignore_ascii_case("message");
    text.len() <= 255
        && kind.trim().split_once('/').is_some_and(|(a, b)| token(a) && token(b) && !composite(a))
        && parameters.bytes().all(|b| (0x20..0x7f).contains(&b) && b != b'\\')
        && parameters.bytes().filter(|b| *b == b'"').count() % 2 == 0
}

fn write_parties(out: &mut Vec<u8>, name: &str, parties: &[Party]) {
    if parties.is_empty() {
        return;
    }
    let mut text = String::with_capacity(parties.len() * 48);
    for (at, party) in parties.iter().enumerate() {
        if at > 0 {
            text.push_str(", ");
        }
        party.write(&mut text);
    }
    words::write_field(out, name, &text);
}

fn write_text_field(out: &mut Vec<u8>, name: &str, text: &str) {
    let text = text.trim();
    // What looks like an encoded word would be decoded by the reader, into who knows what.
    let encodes = text.contains("=?") || text.split(' ').any(|word| word.len() > WORD_SIZE_MAX);
    let text = if encodes { words::encode_always(text).into() } else { encoded(text) };
    words::write_field(out, name, &text);
}

fn encoded(text: &str) -> Cow<'_, str> {
    if text.is_ascii() { text.into() } else { words::encode(text).into() }
}

/// The body's tree: `mixed { alternative { text, related { html, inline … } }, file … }`, less what is not
/// needed.
struct Body<'a> {
    text: Option<Cow<'a, str>>,
    html: Option<&'a str>,
    inline: Vec<&'a Attachment>,
    files: Vec<&'a Attachment>,
}

impl<'a> Body<'a> {
    fn new(parts: &Parts<'a>) -> Self {
        let text = match (parts.text, parts.html) {
            (Some(""), Some(_)) => None,
            (Some(text), _) => Some(Cow::Borrowed(text)),
            (None, Some(html)) => Some(plain_text(html)).filter(|text| !text.is_empty()).map(Cow::Owned),
            (None, None) => None,
        };
        // Without HTML there is nothing to be shown within.
        let within = |file: &&Attachment| parts.html.is_some() && !file.content_id.is_empty();
        let (inline, files) = parts.attachments.iter().partition(within);
        Body { text, html: parts.html, inline, files }
    }

    fn write(&self, out: &mut Vec<u8>) {
        if self.files.is_empty() {
            return self.write_alternative(out);
        }
        let boundary = Boundary::open(out, "mixed", 1);
        boundary.part(out);
        self.write_alternative(out);
        for file in &self.files {
            boundary.part(out);
            write_file(out, file, "attachment");
        }
        boundary.close(out);
    }

    fn write_alternative(&self, out: &mut Vec<u8>) {
        match (&self.text, self.html) {
            (Some(text), Some(_)) => {
                let boundary = Boundary::open(out, "alternative", 2);
                boundary.part(out);
                write_text(out, "plain", text);
                boundary.part(out);
                self.write_related(out);
                boundary.close(out);
            }
            (Some(text), None) => write_text(out, "plain", text),
            (None, Some(_)) => self.write_related(out),
            (None, None) => write_text(out, "plain", ""),
        }
    }

    fn write_related(&self, out: &mut Vec<u8>) {
        let html = self.html.unwrap_or("");
        if self.inline.is_empty() {
            return write_text(out, "html", html);
        }
        let boundary = Boundary::open(out, "related; type=\"text/html\"", 3);
        boundary.part(out);
        write_text(out, "html", html);
        for file in &self.inline {
            boundary.part(out);
            write_file(out, file, "inline");
        }
        boundary.close(out);
    }
}

/// The boundary of a multipart. Each level has its own.
struct Boundary(u8);

impl Boundary {
    fn open(out: &mut Vec<u8>, subtype: &str, level: u8) -> Self {
        push(out, format_args!("Content-Type: multipart/{subtype};\r\n boundary=\"=_part{level}_\"\r\n\r\n"));
        Boundary(level)
    }

    fn part(&self, out: &mut Vec<u8>) {
        push(out, format_args!("--=_part{}_\r\n", self.0));
    }

    fn close(&self, out: &mut Vec<u8>) {
        push(out, format_args!("--=_part{}_--\r\n", self.0));
    }
}

fn push(out: &mut Vec<u8>, text: fmt::Arguments<'_>) {
    // Writing into memory does not fail.
    let _ = std::io::Write::write_fmt(out, text);
}

fn write_text(out: &mut Vec<u8>, subtype: &str, text: &str) {
    let clean = lines::clean(text.as_bytes());
    let clean = if clean.is_empty() { Cow::Borrowed(&b"\r\n"[..]) } else { clean };
    let charset = if clean.is_ascii() { "us-ascii" } else { "utf-8" };
    let shape = Shape::of(&clean);
    let encoding = match shape {
        Shape::AsItIs => "7bit",
        Shape::Quoted => "quoted-printable",
        Shape::Base64 => "base64",
    };
    push(
        out,
        format_args!(
            "Content-Type: text/{subtype}; charset={charset}\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n"
        ),
    );
    match shape {
        Shape::AsItIs => out.extend_from_slice(&lines::stuff(&clean)),
        Shape::Quoted => write_quoted_printable(out, &clean),
        Shape::Base64 => write_base64(out, &clean),
    }
}

/// How a text is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    AsItIs,
    Quoted,
    Base64,
}

impl Shape {
    fn of(text: &[u8]) -> Shape {
        let above = text.iter().filter(|b| **b > 0x7e).count();
        if above > text.len() / 4 {
            return Shape::Base64;
        }
        let odd = |b: &u8| *b > 0x7e || *b < 0x20 && !matches!(b, b'\r' | b'\n' | b'\t');
        // A reader that is lenient about what a boundary is must not find one in the text either.
        let plain = above == 0
            && !text.iter().any(odd)
            && text.split(|b| *b == b'\n').all(|line| line.len() <= TEXT_LINE_SIZE_MAX)
            && memmem::find(text, b"=_part").is_none();
        if plain { Shape::AsItIs } else { Shape::Quoted }
    }
}

fn write_file(out: &mut Vec<u8>, file: &Attachment, disposition: &str) {
    let media_type =
        if file.content_type.is_empty() { media_type_of(&file.file_name) } else { &file.content_type };
    let name = file.file_name.trim();
    let named_already = media_type.to_ascii_lowercase().contains("name");
    push(out, format_args!("Content-Type: {}", media_type.trim().trim_end_matches(';')));
    if !name.is_empty() && name.is_ascii() && !named_already {
        push(out, format_args!(";\r\n name=\"{}\"", quoted(name)));
    }
    push(out, format_args!("\r\nContent-Transfer-Encoding: base64\r\nContent-Disposition: {disposition}"));
    if !name.is_empty() && name.is_ascii() {
        push(out, format_args!(";\r\n filename=\"{}\"", quoted(name)));
    } else if !name.is_empty() {
        push(out, format_args!(";\r\n filename*=utf-8''{}", percent_encoded(name)));
    }
    out.extend_from_slice(b"\r\n");
    if !file.content_id.is_empty() {
        push(out, format_args!("Content-ID: <{}>\r\n", file.content_id));
    }
    out.extend_from_slice(b"\r\n");
    write_base64(out, &file.content);
}

fn quoted(name: &str) -> String {
    name.replace('\\', "\\\\").replace('"', "\\\"")
}

/// RFC 8187 §3.2.1: everything but attribute characters.
fn percent_encoded(name: &str) -> String {
    let mut out = String::with_capacity(name.len() * 3);
    for b in name.bytes() {
        if b.is_ascii_alphanumeric() || b"!#$&+-.^_`|~".contains(&b) {
            out.push(char::from(b));
        } else {
            let _ = write!(out, "%{b:02X}");
        }
    }
    out
}

/// By the extension, for what people attach.
fn media_type_of(name: &str) -> &'static str {
    let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
    match extension.to_ascii_lowercase().as_str() {
        "pdf" => "application/pdf",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "svg" => "image/svg+xml",
        "txt" | "log" => "text/plain; charset=utf-8",
        "csv" => "text/csv; charset=utf-8",
        "html" | "htm" => "text/html; charset=utf-8",
        "ics" => "text/calendar; charset=utf-8",
        "vcf" => "text/vcard",
        "json" => "application/json",
        "xml" => "application/xml",
        "zip" => "application/zip",
        "gz" => "application/gzip",
        "doc" => "application/msword",
        "xls" => "application/vnd.ms-excel",
        "ppt" => "application/vnd.ms-powerpoint",
        "docx" => "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
        "xlsx" => "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
        "pptx" => "application/vnd.openxmlformats-officedocument.presentationml.presentation",
        "odt" => "application/vnd.oasis.opendocument.text",
        "ods" => "application/vnd.oasis.opendocument.spreadsheet",
        "mp3" => "audio/mpeg",
        "mp4" => "video/mp4",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
#[path = "compose_tests.rs"]
mod tests;
