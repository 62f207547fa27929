//! Delivery status notifications (RFC 3461 to 3464, 6522, 6533): what became of a message, for the person
//! who sent it and for programs.

use crate::advice::advice_on;
use crate::header::{FieldKind, Header, HeaderScan};
use crate::pieces::{self, Pieces};
use crate::transfer::write_quoted_printable;
use crate::words::{clean, decode, encode, write_field, write_wrapped};
use crate::{lines, xtext};
use bytes::Bytes;
use memchr::memmem;
use postrider_model::record::Message;
use postrider_model::{
    Domain, Encoding, EnhancedCode, Mailbox, Notify, RecipientParams, Reply, Ret, Timestamp,
};
use smallvec::SmallVec;

/// Octets of a message that is returned whole; of a larger one, only the header section.
pub const RETURNED_SIZE_MAX: u64 = 256 << 10;
/// Octets of a returned header section; a larger one is cut after its last field that fits.
const RETURNED_HEADER_SIZE_MAX: usize = 64 << 10;
/// Octets of a remote's words in a report.
const DIAGNOSTIC_SIZE_MAX: usize = 700;
/// Octets of a subject in a report.
const SUBJECT_SIZE_MAX: usize = 200;
/// Octets of a boundary (RFC 2046 §5.1.1 allows 70).
const BOUNDARY_SIZE_MAX: usize = 60;
/// Recipients in one report; more are counted, not named.
const RECIPIENTS_MAX: usize = 1_000;

/// What became of a recipient, as RFC 3464 §2.3.3 names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Refused for good, or undeliverable.
    Failed,
    /// Not delivered within its lifetime: `failed` with status 5.4.7; the reply is the last one.
    Expired,
    /// Not delivered yet; tried further.
    Delayed,
    /// Taken by a final delivery agent (LMTP).
    Delivered,
    /// Taken by a next hop that reports no further (RFC 3461 §6.2).
    Relayed,
}

impl Action {
    fn name(self) -> &'static str {
        match self {
            Action::Failed | Action::Expired => "failed",
            Action::Delayed => "delayed",
            Action::Delivered => "delivered",
            Action::Relayed => "relayed",
        }
    }

    fn is_failure(self) -> bool {
        matches!(self, Action::Failed | Action::Expired)
    }

    /// True if the sender wants to know (RFC 3461 §4.1): failures and delays unless told otherwise, success
    /// only when asked for. Never where there is nobody to tell (RFC 5321 §4.5.5).
    #[must_use]
    pub fn is_wanted(self, reverse_path: Option<&Mailbox>, notify: Option<Notify>) -> bool {
        reverse_path.is_some()
            && match (notify, self) {
                (Some(Notify::Never), _) => false,
                (Some(Notify::On { failure, .. }), Action::Failed | Action::Expired) => failure,
                (Some(Notify::On { delay, .. }), Action::Delayed) => delay,
                (Some(Notify::On { success, .. }), Action::Delivered | Action::Relayed) => success,
                (None, action) => action.is_failure() || action == Action::Delayed,
            }
    }
}

/// A recipient to report on.
#[derive(Clone, Copy, Debug)]
pub struct Reported<'a> {
    /// As RCPT named it.
    pub params: &'a RecipientParams,
    /// What became of it.
    pub action: Action,
    /// The remote's words, or ours.
    pub reply: &'a Reply,
    /// The remote, `mx1.example.net[192.0.2.1]:25`; empty when it never came to one.
    pub peer: &'a str,
    /// The last attempt.
    pub at: Timestamp,
}

/// A report to be written.
#[derive(Clone, Copy, Debug)]
pub struct Report<'a> {
    /// The message reported on.
    pub message: &'a Message,
    /// Its id, as its Received field and our log name it.
    pub message_id: &'a str,
    /// Whom of it the report is about; at least one.
    pub recipients: &'a [Reported<'a>],
    /// Its content in stored form; the header section suffices unless [`returns_content`].
    pub content: &'a [Bytes],
    /// Our name.
    pub host: &'a Domain,
    /// The report's own id.
    pub id: &'a str,
    /// A boundary that nobody can foresee, of letters and digits.
    pub boundary: &'a str,
    /// Now.
    pub at: Timestamp,
}

/// A report as content, in [`Encoding::Stuffed`] form. It goes from the null reverse-path to the message's
/// reverse-path, with `NOTIFY=NEVER`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportContent {
    /// What we wrote, and slices of the message.
    pub pieces: Pieces,
    /// Octets of the header section with its empty line.
    pub header_size: u32,
    /// Octets of all pieces.
    pub size: u64,
    /// Some octet is above 127.
    pub eight_bit: bool,
    /// Some octet of the header section is above 127: the reverse-path needs SMTPUTF8.
    pub utf8_header: bool,
}

/// True if a failure report of this message returns it whole (RFC 3461 §4.3), so that [`Report::content`]
/// must be all of it.
#[must_use]
pub fn returns_content(message: &Message) -> bool {
    message.envelope.ret == Some(Ret::Full)
        && message.content_size <= RETURNED_SIZE_MAX
        && message.encoding != Encoding::Binary
}

/// The third part of a report.
struct Returned {
    content_type: &'static str,
    pieces: Pieces,
    eight_bit: bool,
}

impl Report<'_> {
    /// Writes the report; `None` when the message has the null reverse-path or no recipient is given, so
    /// that there is nobody to tell or nothing to say.
    #[must_use]
    pub fn build(&self) -> Option<ReportContent> {
        let sender = self.message.envelope.reverse_path.as_ref()?;
        let worst = self.worst()?;
        let header = HeaderScan::whole(self.content);
        let returned = self.returned(&header, worst);
        let boundary = self.boundary(&returned.pieces);

        let mut text = Vec::with_capacity(2_048);
        self.write_text(&mut text, worst, &header);
        let utf8_status = self.needs_global_status();
        let mut status = Vec::with_capacity(1_024);
        self.write_status(&mut status, utf8_status);

        let eight_bit = !status.is_ascii() || returned.eight_bit;
        let mut out = Vec::with_capacity(1_024 + text.len() + status.len());
        self.write_header(&mut out, sender, worst, &header, &boundary, eight_bit);
        let header_size = out.len();
        let utf8_header = !out.is_ascii();
        // Quoted-printable keeps a report in seven bits whose other parts are.
        let (charset, encoding) =
            if text.is_ascii() { ("us-ascii", "7bit") } else { ("utf-8", "quoted-printable") };
        part(&mut out, &boundary, &format!("text/plain; charset={charset}"), "Notification", encoding);
        if text.is_ascii() {
            out.append(&mut text);
        } else {
            write_quoted_printable(&mut out, &text);
        }
        let kind = if utf8_status { "message/global-delivery-status" } else { "message/delivery-status" };
        part(&mut out, &boundary, kind, "Delivery report", bits(!status.is_ascii()));
        out.append(&mut status);
        part(&mut out, &boundary, returned.content_type, "Your message", bits(returned.eight_bit));

        let mut content = Pieces::new();
        content.push(Bytes::from(lines::stuff(&out).into_owned()));
        content.extend(returned.pieces);
        content.push(Bytes::from(format!("\r\n--{boundary}--\r\n")));
        Some(ReportContent {
            size: pieces::size(&content) as u64,
            pieces: content,
            header_size: u32::try_from(header_size).unwrap_or(u32::MAX),
            eight_bit: eight_bit || utf8_header,
            utf8_header,
        })
    }

    /// What the report says first: the worst that became of a recipient.
    fn worst(&self) -> Option<Action> {
        let rank = |action: &Action| match action {
            Action::Failed => 4,
            Action::Expired => 3,
            Action::Delayed => 2,
            Action::Relayed => 1,
            Action::Delivered => 0,
        };
        self.recipients.iter().map(|recipient| recipient.action).max_by_key(rank)
    }

    fn write_header(
        &self,
        out: &mut Vec<u8>,
        sender: &Mailbox,
        worst: Action,
        header: &Header,
        boundary: &str,
        eight_bit: bool,
    ) {
        let what = match worst {
            Action::Failed | Action::Expired => "Undeliverable",
            Action::Delayed => "Delayed",
            Action::Delivered => "Delivered",
            Action::Relayed => "Passed on",
        };
        let subject = match header.text(FieldKind::Subject, self.content, SUBJECT_SIZE_MAX) {
            Some(subject) if !subject.is_empty() => format!("{what}: {}", encode(&subject)),
            _ => format!("{what}: your message"),
        };
        write_field(out, "Date", &self.at.rfc5322());
        write_field(out, "From", &format!("Mail Delivery System <MAILER-DAEMON@{}>", self.host));
        write_field(out, "To", &format!("<{}>", sender.to_wire()));
        write_field(out, "Subject", &subject);
        write_field(out, "Message-ID", &format!("<{}@{}>", clean(self.id, 100, true), self.host));
        if let Some(id) = original_message_id(header, self.content) {
            write_field(out, "In-Reply-To", &id);
            write_field(out, "References", &id);
        }
        write_field(out, "Auto-Submitted", "auto-replied");
        write_field(out, "MIME-Version", "1.0");
        write_field(
            out,
            "Content-Type",
            &format!("multipart/report; report-type=delivery-status; boundary=\"{boundary}\""),
        );
        write_field(out, "Content-Transfer-Encoding", bits(eight_bit));
        out.extend_from_slice(b"\r\n");
    }

    /// The status part holds addresses or words in UTF-8, and the sender can read them (RFC 6533 §4).
    fn needs_global_status(&self) -> bool {
        self.recipients.iter().any(|recipient| {
            recipient.params.mailbox.needs_smtputf8()
                || (self.message.envelope.smtputf8 && !recipient.reply.text().is_ascii())
        })
    }

    fn returned(&self, header: &Header, worst: Action) -> Returned {
        let whole = worst.is_failure()
            && returns_content(self.message)
            && pieces::size(self.content) as u64 == self.message.content_size;
        let slices =
            if whole { self.content.iter().cloned().collect() } else { header_slices(header, self.content) };
        let octets_of_header = header.slices(self.content).concat();
        let utf8_header = !octets_of_header.is_ascii() && std::str::from_utf8(&octets_of_header).is_ok();
        let content_type = match (whole, utf8_header) {
            (true, false) => "message/rfc822",
            (true, true) => "message/global",
            (false, false) => "text/rfc822-headers",
            (false, true) => "message/global-headers",
        };
        let mut pieces = self.stuffed_and_clean(slices);
        if !whole && !utf8_header && !pieces.iter().all(|piece| piece.is_ascii()) {
            // Neither ASCII nor UTF-8: nothing may say what it is.
            let ascii: Vec<u8> =
                pieces.concat().iter().map(|b| if b.is_ascii() { *b } else { b'?' }).collect();
            pieces = SmallVec::from_iter([Bytes::from(ascii)]);
        }
        let eight_bit = !pieces.iter().all(|piece| piece.is_ascii());
        Returned { content_type, pieces, eight_bit }
    }

    /// Slices as they are when they are stuffed and have clean line endings, else a stuffed and clean copy.
    fn stuffed_and_clean(&self, slices: Pieces) -> Pieces {
        if self.message.encoding == Encoding::Stuffed {
            return slices;
        }
        let whole = slices.concat();
        let cleaned = lines::clean(&whole);
        let stuffed = lines::stuff(&cleaned);
        if stuffed.len() == whole.len() && *stuffed == *whole {
            return slices;
        }
        SmallVec::from_iter([Bytes::from(stuffed.into_owned())])
    }

    /// The boundary, lengthened until it stands nowhere in what is returned.
    fn boundary(&self, returned: &[Bytes]) -> String {
        let mut boundary: String =
            self.boundary.chars().filter(char::is_ascii_alphanumeric).take(BOUNDARY_SIZE_MAX).collect();
        if boundary.is_empty() {
            boundary.push_str("report");
        }
        // Each round needs another occurrence in the content, so the rounds are few; ten always suffice to
        // leave the octets that RFC 2046 allows.
        let whole = returned.concat();
        for _ in 0..10 {
            if memmem::find(&whole, format!("--{boundary}").as_bytes()).is_none() {
                break;
            }
            boundary.push('x');
        }
        boundary
    }

    fn write_text(&self, out: &mut Vec<u8>, worst: Action, header: &Header) {
        self.write_opening(out, worst);
        for recipient in self.recipients.iter().take(RECIPIENTS_MAX) {
            out.extend_from_slice(b"\r\n");
            write_wrapped(out, 2, &clean(recipient.params.mailbox.as_str(), 400, false));
            Self::write_recipient_text(out, recipient);
        }
        if self.recipients.len() > RECIPIENTS_MAX {
            let more = self.recipients.len() - RECIPIENTS_MAX;
            write_wrapped(out, 2, &format!("and {more} more recipients."));
        }
        out.extend_from_slice(b"\r\nAbout your message\r\n");
        if let Some(subject) = header.text(FieldKind::Subject, self.content, SUBJECT_SIZE_MAX) {
            write_wrapped(out, 2, &format!("Subject: {}", clean(&decode(&subject), SUBJECT_SIZE_MAX, false)));
        }
        write_wrapped(out, 2, &format!("Accepted: {}", self.message.accepted_at.rfc5322()));
        write_wrapped(out, 2, &format!("Reference: {}", clean(self.message_id, 100, true)));
        out.extend_from_slice(b"\r\n");
        write_wrapped(
            out,
            0,
            &format!(
                "This report was written by the mail system at {}. The technical details for your mail \
                 administrator are attached to it. Nobody reads replies to it.",
                self.host
            ),
        );
    }

    fn write_opening(&self, out: &mut Vec<u8>, worst: Action) {
        let these = if self.recipients.len() == 1 { "this recipient" } else { "these recipients" };
        let opening = match worst {
            Action::Failed => format!("Your message could not be delivered to {these}."),
            Action::Expired => format!("Your message could not be delivered to {these} in time."),
            Action::Delayed => format!(
                "Your message has not reached {these} yet. You need not do anything: delivery is tried again \
                 until {}. You will be told if it fails for good.",
                self.message.expires_at.rfc5322()
            ),
            Action::Delivered => format!("Your message was delivered to {these}, as you asked to be told."),
            Action::Relayed => format!(
                "Your message was passed on for {these}. The server that took it sends no reports on \
                 delivery, so this is the last you may hear of it."
            ),
        };
        write_wrapped(out, 0, &opening);
        if worst.is_failure() && self.recipients.len() < self.message.recipients.len() {
            write_wrapped(out, 0, "This does not concern its other recipients.");
        }
    }

    fn write_recipient_text(out: &mut Vec<u8>, recipient: &Reported<'_>) {
        let peer = clean(recipient.peer, 300, false);
        let said = clean(&recipient.reply.to_string(), DIAGNOSTIC_SIZE_MAX, false);
        let lead = match (recipient.action, peer.is_empty()) {
            (Action::Failed, true) => "It could not be sent:".into(),
            (Action::Failed, false) => format!("The server {peer} refused it:"),
            (Action::Expired, true) => "It could not be sent in time. The last difficulty was:".into(),
            (Action::Expired, false) => {
                format!("It could not be delivered in time. At the last attempt, with the server {peer}:")
            }
            (Action::Delayed, true) => "It could not be sent yet:".into(),
            (Action::Delayed, false) => format!("The last attempt, with the server {peer}, ended so:"),
            (Action::Delivered | Action::Relayed, true) => "It was accepted:".into(),
            (Action::Delivered | Action::Relayed, false) => format!("The server {peer} accepted it:"),
        };
        write_wrapped(out, 4, &lead);
        write_wrapped(out, 6, &said);
        if recipient.action.is_failure() {
            let advice = advice_on(recipient.reply);
            write_wrapped(out, 4, &format!("What this means: {}", advice.meaning));
            write_wrapped(out, 4, &format!("What you can do: {}", advice.action));
        }
    }

    fn write_status(&self, out: &mut Vec<u8>, utf8: bool) {
        write_field(out, "Reporting-MTA", &format!("dns; {}", self.host));
        if let Some(envid) = &self.message.envelope.envid {
            write_field(out, "Original-Envelope-Id", &decoded_xtext(envid));
        }
        write_field(out, "Arrival-Date", &self.message.accepted_at.rfc5322());
        for recipient in self.recipients.iter().take(RECIPIENTS_MAX) {
            out.extend_from_slice(b"\r\n");
            self.write_recipient_status(out, recipient, utf8);
        }
    }

    fn write_recipient_status(&self, out: &mut Vec<u8>, recipient: &Reported<'_>, utf8: bool) {
        let mailbox = &recipient.params.mailbox;
        if let Some((kind, address)) =
            recipient.params.orcpt.as_deref().and_then(|orcpt| orcpt.split_once(';'))
        {
            // An address in UTF-8 has an encoding of its own, which may stand here as it is (RFC 6533 §3).
            let address = if kind.eq_ignore_ascii_case("utf-8") {
                clean(address, 500, !utf8)
            } else {
                decoded_xtext(address)
            };
            write_field(out, "Original-Recipient", &format!("{}; {address}", clean(kind, 40, true)));
        }
        let kind = if mailbox.needs_smtputf8() { "utf-8" } else { "rfc822" };
        write_field(out, "Final-Recipient", &format!("{kind}; {}", mailbox.to_wire()));
        write_field(out, "Action", recipient.action.name());
        write_field(out, "Status", &status(recipient).to_string());
        if let Some(host) = remote_host(recipient.peer) {
            write_field(out, "Remote-MTA", &format!("dns; {host}"));
        }
        let kind = if recipient.peer.is_empty() { "X-Postrider" } else { "smtp" };
        let said = clean(&recipient.reply.to_string(), DIAGNOSTIC_SIZE_MAX, !utf8);
        write_field(out, "Diagnostic-Code", &format!("{kind}; {said}"));
        write_field(out, "Last-Attempt-Date", &recipient.at.rfc5322());
        if recipient.action == Action::Delayed {
            write_field(out, "Will-Retry-Until", &self.message.expires_at.rfc5322());
        }
    }
}

/// The beginning of a part.
fn part(out: &mut Vec<u8>, boundary: &str, content_type: &str, description: &str, encoding: &str) {
    out.extend_from_slice(format!("\r\n--{boundary}\r\n").as_bytes());
    write_field(out, "Content-Type", content_type);
    write_field(out, "Content-Description", description);
    write_field(out, "Content-Transfer-Encoding", encoding);
    out.extend_from_slice(b"\r\n");
}

fn bits(eight_bit: bool) -> &'static str {
    if eight_bit { "8bit" } else { "7bit" }
}

/// The status that fits the action: the reply's own if its class does, else its subject and detail under
/// the right class (RFC 3464 §2.3.4).
fn status(recipient: &Reported<'_>) -> EnhancedCode {
    let class = match recipient.action {
        Action::Expired => return EnhancedCode(5, 4, 7),
        Action::Failed => 5,
        Action::Delayed => 4,
        Action::Delivered | Action::Relayed => 2,
    };
    match recipient.reply.enhanced() {
        Some(EnhancedCode(_, subject, detail)) => EnhancedCode(class, subject, detail),
        None => EnhancedCode(class, 0, 0),
    }
}

/// The host of `mx1.example.net[192.0.2.1]:25`, if it is one.
fn remote_host(peer: &str) -> Option<&str> {
    let (name, address) = peer.split_once('[').unwrap_or((peer, ""));
    if name.is_empty() {
        let end = peer.find(']')?;
        return if address.is_empty() { None } else { peer.get(..=end).filter(|text| is_host(text)) };
    }
    Some(name).filter(|name| is_host(name))
}

fn is_host(text: &str) -> bool {
    text.len() <= 255 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_:[]".contains(&b))
}

/// What a client encoded, as one printable line; as it was sent if it is no xtext.
fn decoded_xtext(text: &str) -> String {
    match xtext::decode(text) {
        Ok(octets) => clean(&String::from_utf8_lossy(&octets), 500, true),
        Err(_) => clean(text, 500, true),
    }
}

/// The message's own id, if it is fit to stand in a field of ours.
fn original_message_id(header: &Header, content: &[Bytes]) -> Option<String> {
    let id = header.text(FieldKind::MessageId, content, 250)?;
    let plain = id.len() > 4 && id.bytes().all(|b| (0x21..=0x7e).contains(&b));
    if plain && id.starts_with('<') && id.find('>') == Some(id.len() - 1) { Some(id) } else { None }
}

/// The header section up to its last field that fits.
fn header_slices(header: &Header, content: &[Bytes]) -> Pieces {
    let start = header.mbox_line_size as usize;
    let fits = |end: &usize| end.saturating_sub(start) <= RETURNED_HEADER_SIZE_MAX;
    let end = header.fields().iter().map(|field| field.range().end).take_while(fits).last().unwrap_or(start);
    pieces::slice(content, start..end)
}
