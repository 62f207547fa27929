//! One transaction: envelope, content, and its way into the engine.
//!
//! The content is copied once, from the input into a buffer of its own, which then goes to the engine as it
//! is. Up to [`CHUNK_SIZE`] it goes with its record; a larger one streams in chunks of that size, as soon as
//! its header section is complete and judged. When memory is short the chunks are smaller.

use crate::Pressure;
use crate::identity::{Admitted, Identity};
use crate::session::SessionContext;
use bytes::Bytes;
use postrider_engine::{Draft, Intake, Pieces};
use postrider_message::{
    FieldKind, Header, HeaderScan, REMOVED_ON_RELAY, REMOVED_ON_SUBMISSION, Received, TraceProtocol,
    TraceTls, assemble, write_date, write_message_id,
};
use postrider_model::record;
use postrider_model::{
    BodyKind, Class, Encoding, EnhancedCode, Envelope, Mailbox, MessageNo, RecipientParams, Reply, Timestamp,
};
use postrider_smtp::data::ContentNotes;
use postrider_spool::Ticket;

/// Octets of content that go with the message's record; more are streamed in chunks of this size.
pub(crate) const CHUNK_SIZE: usize = 256 << 10;
/// The same when memory is short.
const CHUNK_SIZE_SHORT: usize = 32 << 10;
/// Octets of content that a session may hold when there is no memory left.
const HELD_MAX_WHEN_SHORT: usize = 16 << 10;
/// What a recipient of an open transaction takes.
const RECIPIENT_SIZE: usize = 160;
/// Octets of the first buffer, where the client says nothing of the size.
const BUFFER_SIZE_FIRST: usize = 8 << 10;

/// Addresses named in a redirected message.
const REDIRECTED_MAX: usize = 50;

const CONTENT: EnhancedCode = EnhancedCode(5, 6, 0);

/// What of the session a message carries.
pub(crate) struct Origin<'s> {
    pub(crate) context: &'s SessionContext,
    pub(crate) identity: &'s Identity,
    pub(crate) helo: &'s str,
    pub(crate) reverse_name: Option<&'s str>,
    pub(crate) client: &'s str,
    pub(crate) protocol: TraceProtocol,
    pub(crate) authenticated: bool,
}

/// A message was handed over; the reply waits for its ticket.
#[derive(Clone, Debug)]
pub(crate) struct Submitted {
    pub(crate) ticket: Ticket,
    pub(crate) id: Box<str>,
}

/// What is settled of a message once its header section is complete.
#[derive(Debug)]
struct Judged {
    id: Box<str>,
    at: Timestamp,
    header_size: u32,
    utf8_header: bool,
    /// Octets in front of the content that the client did not send, less those taken out.
    grown: i64,
}

/// The open transaction.
#[derive(Debug)]
pub(crate) struct Acceptance {
    number: MessageNo,
    envelope: Envelope,
    declared_size: Option<u64>,
    recipients: Vec<RecipientParams>,
    /// Whom the client named, where the one recipient stands for them.
    redirected: Vec<Mailbox>,
    class: Class,
    /// It does not leave before.
    due: Option<Timestamp>,
    buffer: Vec<u8>,
    /// Octets of the buffer that the header scan has seen.
    scanned: usize,
    judged: Option<Judged>,
    chunks: u32,
    /// The content will be refused with this; what still comes of it is dropped.
    refusal: Option<Reply>,
}

impl Acceptance {
    pub(crate) fn new(number: MessageNo, envelope: Envelope, declared_size: Option<u64>) -> Self {
        Acceptance {
            number,
            envelope,
            declared_size,
            recipients: Vec::new(),
            redirected: Vec::new(),
            class: Class::default(),
            due: None,
            buffer: Vec::new(),
            scanned: 0,
            judged: None,
            chunks: 0,
            refusal: None,
        }
    }

    pub(crate) fn envelope(&self) -> &Envelope {
        &self.envelope
    }

    pub(crate) fn add(&mut self, recipient: Admitted) {
        match recipient {
            Admitted::Itself(recipient) => self.recipients.push(recipient),
            Admitted::Redirected { from, to } => {
                self.redirected.push(from);
                if !self.recipients.iter().any(|known| known.mailbox == to.mailbox) {
                    self.recipients.push(to);
                }
            }
        }
    }

    /// Octets of memory that the transaction holds.
    pub(crate) fn size_bytes(&self) -> usize {
        let recipients = self.recipients.capacity() + self.redirected.capacity();
        self.buffer.capacity() + recipients * RECIPIENT_SIZE
    }

    /// There is no memory left: hands on what it holds, or refuses the message if that cannot be done.
    pub(crate) fn shed(
        &mut self,
        now: Timestamp,
        scan: &mut HeaderScan,
        origin: &Origin<'_>,
        intake: &mut impl Intake,
    ) {
        if self.buffer.capacity() <= HELD_MAX_WHEN_SHORT {
            return;
        }
        if let Err(reply) = self.stream(now, Pressure::Sheds, scan, origin, intake) {
            self.refuse(reply, intake);
        } else if self.buffer.len() > HELD_MAX_WHEN_SHORT {
            let text = "Short of memory for so large a header; try again later";
            self.refuse(Reply::ours(452, EnhancedCode(4, 3, 1), text), intake);
        } else {
            self.buffer.shrink_to_fit();
        }
    }

    /// Its priority, and when it leaves at the earliest.
    pub(crate) fn set_time(&mut self, class: Class, due: Option<Timestamp>) {
        (self.class, self.due) = (class, due);
    }

    /// Takes all content at once, without a copy.
    pub(crate) fn take_whole(&mut self, octets: Vec<u8>, scan: &mut HeaderScan) {
        scan.reset();
        self.buffer = octets;
    }

    /// Takes some content. `usual_size` is what a message of this session has.
    pub(crate) fn take(
        &mut self,
        now: Timestamp,
        octets: &[u8],
        (usual_size, pressure): (usize, Pressure),
        scan: &mut HeaderScan,
        origin: &Origin<'_>,
        intake: &mut impl Intake,
    ) {
        if self.refusal.is_some() {
            return;
        }
        if self.buffer.capacity() == 0 {
            if pressure == Pressure::None {
                self.reserve(usual_size.max(octets.len()));
            }
            if self.judged.is_none() {
                scan.reset();
            }
        }
        self.buffer.extend_from_slice(octets);
        if pressure == Pressure::Sheds {
            return self.shed(now, scan, origin, intake);
        }
        let chunk_size = if pressure == Pressure::None { CHUNK_SIZE } else { CHUNK_SIZE_SHORT };
        if self.buffer.len() >= chunk_size
            && let Err(reply) = self.stream(now, pressure, scan, origin, intake)
        {
            self.refuse(reply, intake);
        }
    }

    fn reserve(&mut self, usual_size: usize) {
        let declared = self.declared_size.and_then(|size| usize::try_from(size).ok());
        let size = declared.map_or(usual_size.max(BUFFER_SIZE_FIRST), |size| size.saturating_add(64));
        self.buffer.reserve(size.min(CHUNK_SIZE + (8 << 10)));
    }

    /// Notes that the content will not be taken, and forgets it.
    pub(crate) fn refuse(&mut self, reply: Reply, intake: &mut impl Intake) {
        if self.refusal.is_none() {
            self.refusal = Some(reply);
            self.buffer = Vec::new();
            self.abandon(intake);
        }
    }

    /// The transaction ends without a message.
    pub(crate) fn abandon(&mut self, intake: &mut impl Intake) {
        if std::mem::take(&mut self.chunks) > 0 {
            intake.abandon(self.number);
        }
    }

    pub(crate) fn refusal(&self) -> Option<&Reply> {
        self.refusal.as_ref()
    }

    /// Hands the buffer over early, once the header section is complete.
    fn stream(
        &mut self,
        now: Timestamp,
        pressure: Pressure,
        scan: &mut HeaderScan,
        origin: &Origin<'_>,
        intake: &mut impl Intake,
    ) -> Result<(), Reply> {
        if self.judged.is_none() {
            let complete = scan.feed(&self.buffer[self.scanned..]);
            self.scanned = self.buffer.len();
            if !complete {
                return Ok(());
            }
        }
        let pieces = self.pieces(now, scan, origin)?;
        for piece in pieces {
            intake.chunk(self.number, self.chunks, piece).map_err(|refusal| refusal.0)?;
            self.chunks += 1;
        }
        if pressure == Pressure::None {
            self.buffer.reserve(CHUNK_SIZE + (8 << 10));
        }
        Ok(())
    }

    /// The buffer as it is stored, with the header section judged and changed if it is in there.
    fn pieces(
        &mut self,
        now: Timestamp,
        scan: &mut HeaderScan,
        origin: &Origin<'_>,
    ) -> Result<Pieces, Reply> {
        let size = self.buffer.len();
        let content = [Bytes::from(std::mem::take(&mut self.buffer))];
        if self.judged.is_some() {
            return Ok(content.into_iter().filter(|piece| !piece.is_empty()).collect());
        }
        let header = scan.end();
        judge(header, &content, origin)?;
        let id = origin.context.ids.message(now, self.number).to_string();
        let prepend = self.trace(now, &id, header, origin);
        let utf8_header = header.eight_bit || !prepend.is_ascii();
        let removed = if origin.context.is_submission() { REMOVED_ON_SUBMISSION } else { REMOVED_ON_RELAY };
        let assembled = assemble(&content, header, prepend, removed);
        let stored: usize = assembled.pieces.iter().map(Bytes::len).sum();
        self.judged = Some(Judged {
            id: id.into(),
            at: now,
            header_size: assembled.header_size,
            utf8_header,
            grown: signed(stored) - signed(size),
        });
        Ok(assembled.pieces)
    }

    /// The fields that we put in front.
    fn trace(&self, now: Timestamp, id: &str, header: &Header, origin: &Origin<'_>) -> Bytes {
        let context = origin.context;
        let mut fields = Vec::with_capacity(512);
        let received = Received {
            helo: origin.helo,
            client: Some(context.peer.ip()),
            reverse_name: origin.reverse_name,
            by: &context.snapshot.hostname,
            protocol: origin.protocol,
            tls: context.tls_info().map(|tls| TraceTls { version: &tls.version, cipher: &tls.cipher }),
            authenticated: origin.authenticated,
            smtputf8: self.envelope.smtputf8,
            id,
            recipient: match &*self.recipients {
                [only] => Some(&only.mailbox),
                _ => None,
            },
            at: now,
        };
        received.write(&mut fields);
        write_redirected(&mut fields, &self.redirected);
        if context.is_submission() {
            if !header.has(FieldKind::Date) {
                write_date(&mut fields, now);
            }
            if !header.has(FieldKind::MessageId) {
                write_message_id(&mut fields, id, &context.snapshot.hostname);
            }
        }
        Bytes::from(fields)
    }

    /// The content is complete: judges it and hands the message over. The transaction is used up.
    pub(crate) fn finish(
        mut self,
        now: Timestamp,
        by_chunks: bool,
        notes: &ContentNotes,
        scan: &mut HeaderScan,
        origin: &Origin<'_>,
        intake: &mut impl Intake,
    ) -> Result<Submitted, Reply> {
        if self.refusal.is_none()
            && let Err(reply) = judge_notes(notes, origin.context)
        {
            self.refuse(reply, intake);
        }
        if let Some(reply) = self.refusal.take() {
            return Err(reply);
        }
        let binary = self.envelope.body == BodyKind::BinaryMime;
        let missing_line_end = by_chunks && !binary && !notes.ends_in_crlf;
        if missing_line_end {
            // Text is lines: whoever sends it on by DATA must add the CRLF, and a signature must cover it.
            self.buffer.extend_from_slice(b"\r\n");
        }
        if self.judged.is_none() {
            if self.buffer.is_empty() && self.scanned == 0 {
                scan.reset();
            }
            scan.feed(&self.buffer[self.scanned..]);
        }
        let content = match self.pieces(now, scan, origin) {
            Ok(content) => content,
            Err(reply) => {
                self.abandon(intake);
                return Err(reply);
            }
        };
        // Invariant: `pieces` has judged the message or failed.
        let judged = self.judged.take().expect("the header section is judged");
        let size = notes.size_bytes + if missing_line_end { 2 } else { 0 };
        let message = record::Message {
            number: self.number,
            accepted_at: judged.at,
            expires_at: self.due.unwrap_or(judged.at).max(judged.at)
                + origin.context.snapshot.delivery.expire,
            class: self.class,
            due: self.due,
            account: origin.identity.name().into(),
            client: origin.client.into(),
            envelope: self.envelope,
            recipients: self.recipients,
            encoding: match (binary, by_chunks) {
                (true, _) => Encoding::Binary,
                (false, true) => Encoding::Plain,
                (false, false) => Encoding::Stuffed,
            },
            eight_bit: notes.eight_bit,
            utf8_header: judged.utf8_header,
            header_size: judged.header_size,
            content_size: size.saturating_add_signed(judged.grown),
            chunks: self.chunks,
            held: false,
            sent_at_once: false,
            report: None,
        };
        match intake.submit(now, Draft { message, content }) {
            Ok(ticket) => Ok(Submitted { ticket, id: judged.id }),
            Err(refusal) => Err(refusal.0),
        }
    }
}

/// Tells whoever reads a redirected message for whom it was.
fn write_redirected(fields: &mut Vec<u8>, redirected: &[Mailbox]) {
    if redirected.is_empty() {
        return;
    }
    fields.extend_from_slice(b"X-Postrider-Redirected-For:");
    let named = redirected.iter().filter(|mailbox| mailbox.as_str().is_ascii()).take(REDIRECTED_MAX);
    let mut count = 0;
    for mailbox in named {
        count += 1;
        fields.extend_from_slice(format!("\r\n\t<{mailbox}>").as_bytes());
    }
    if count < redirected.len() {
        fields.extend_from_slice(format!("\r\n\tand {} more", redirected.len() - count).as_bytes());
    }
    fields.extend_from_slice(b"\r\n");
}

fn signed(size: usize) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

/// What the header section tells of a message that is not taken.
fn judge(header: &Header, content: &[Bytes], origin: &Origin<'_>) -> Result<(), Reply> {
    if header.too_large {
        return Err(Reply::ours(
            552,
            EnhancedCode(5, 3, 4),
            "The header section is larger than is taken here",
        ));
    }
    if header.loops() {
        let text = format!("Mail loop: the message has passed {} relays", header.hops());
        return Err(Reply::ours(554, EnhancedCode(5, 4, 6), &text));
    }
    if origin.identity.is_anyone() {
        return Ok(());
    }
    origin.identity.allows_authors(header.authors(content))
}

/// What the octets themselves tell of a message that is not taken.
fn judge_notes(notes: &ContentNotes, context: &SessionContext) -> Result<(), Reply> {
    let text = if notes.bare_line_end {
        "The message has a CR or LF alone; lines must end in CR and LF (see https://cr.yp.to/docs/smtplf.html)"
    } else if notes.nul {
        "The message holds a NUL, which only BODY=BINARYMIME can carry"
    } else if notes.line_too_long {
        let limit = context.listener.limits.text_line_size_max_bytes;
        return Err(Reply::ours(
            554,
            CONTENT,
            &format!("The message has a line of more than {limit} octets"),
        ));
    } else {
        return Ok(());
    };
    Err(Reply::ours(554, CONTENT, text))
}
