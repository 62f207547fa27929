//! The server's side of an SMTP or LMTP session.
//!
//! [`Server::receive`] takes octets as they came from the client, and returns at the first thing that someone
//! else must know or decide. What it can answer itself it answers: order of commands, syntax, limits, HELP.
//! Replies are appended to one buffer, so that all commands of a pipelined group are answered by one write.

mod replies;

use crate::command::{self, Command, CommandError, Mail, Rules, Xclient};
use crate::data::{Content, ContentNotes, ContentRules, Step};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use memchr::memchr;
use postrider_model::{BodyKind, EnhancedCode, RecipientParams, Reply};
use std::borrow::Cow;

/// How the session is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tls {
    /// There is no certificate.
    Unavailable,
    /// STARTTLS is offered.
    Offered,
    /// The session is encrypted.
    Active,
}

/// A SASL mechanism.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// RFC 4616.
    Plain,
    /// The obsolete one that old clients still prefer.
    Login,
    /// RFC 7677.
    ScramSha256,
}

impl Mechanism {
    /// Its registered name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Mechanism::Plain => "PLAIN",
            Mechanism::Login => "LOGIN",
            Mechanism::ScramSha256 => "SCRAM-SHA-256",
        }
    }
}

/// What a server offers and how far it goes. Fixed for a session but for [`Server::tls_started`].
#[derive(Clone, Debug)]
pub struct Offer {
    /// Our name.
    pub hostname: Box<str>,
    /// LMTP (RFC 2033) instead of SMTP.
    pub lmtp: bool,
    /// Protection.
    pub tls: Tls,
    /// AUTH, in the order of preference.
    pub mechanisms: &'static [Mechanism],
    /// AUTH is offered without TLS too.
    pub auth_in_clear: bool,
    /// The client may use XCLIENT.
    pub xclient: bool,
    /// Old devices are tolerated: bare LF after commands, addresses without brackets, unsolicited input after
    /// a command that ends a group; bare CR and LF in content are normalised.
    pub lenient: bool,
    /// Octets of a message.
    pub message_size_max_bytes: u64,
    /// Recipients of a message.
    pub recipients_max: usize,
    /// Messages of a session.
    pub messages_max: usize,
    /// Octets of a command line with its CRLF.
    pub line_size_max_bytes: usize,
    /// Octets of a line of content with its CRLF.
    pub text_line_size_max_bytes: usize,
    /// Commands that lead to no mail, between two messages.
    pub junk_commands_max: usize,
    /// Errors in the session.
    pub errors_max: usize,
}

/// What came in. `Mail`, `Recipient`, `ChunkEnd`, `ContentEnd`, `Auth`, `AuthResponse` and `Xclient` are
/// questions: until they are answered the server takes no input.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'i> {
    /// All input is used up, or what is left is no whole line.
    NeedInput,
    /// An answer is owed, or TLS must start, before more input is taken.
    Blocked,
    /// The client gave its name; answered already. Any transaction is over.
    Hello(&'i str),
    /// May it send? [`Server::accept_mail`] or [`Server::refuse`].
    Mail(Mail),
    /// May it send to this one? [`Server::accept_recipient`] or [`Server::refuse`].
    Recipient(RecipientParams),
    /// Some of the content.
    Content(Cow<'i, [u8]>),
    /// A chunk is complete, more will follow: [`Server::accept_chunk`] or [`Server::refuse`].
    ChunkEnd,
    /// The content is complete: [`Server::accept_content`] or [`Server::refuse_content`].
    ContentEnd,
    /// The transaction was dropped (RSET, or EHLO in the middle); answered already.
    Reset,
    /// Write the output, then begin the handshake as the server; then [`Server::tls_started`].
    StartTls,
    /// Who is it? [`Server::challenge`], [`Server::accept_auth`] or [`Server::refuse_auth`].
    Auth {
        /// The mechanism, one of those offered.
        mechanism: Mechanism,
        /// The initial response, decoded.
        initial: Option<Vec<u8>>,
    },
    /// The response to a challenge, decoded. Answer as for `Auth`.
    AuthResponse(Vec<u8>),
    /// The client gave up AUTH; answered already.
    AuthCancelled,
    /// A proxy names its client: [`Server::accept_xclient`] or [`Server::refuse`].
    Xclient(Xclient),
    /// Write the output, then close. All further input is ignored.
    Closed,
}

#[derive(Clone, Debug)]
enum Phase {
    Command,
    /// The rest of a line that was too long.
    SkipLine,
    Data(Content),
    Chunk {
        content: Content,
        rest_bytes: u64,
        last: bool,
    },
    /// Octets of a chunk that no transaction wants, and the reply for their end.
    SkipChunk {
        rest_bytes: u64,
        refusal: &'static [u8],
    },
    /// Chunks have come and more will.
    BetweenChunks(Content),
    AuthResponse,
    Answer(Question, Option<Content>),
    StartTls,
    Closed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Question {
    Mail { body: BodyKind, smtputf8: bool },
    Recipient,
    ChunkEnd,
    ContentEnd,
    Auth,
    Xclient,
}

/// The transaction that is open.
#[derive(Clone, Copy, Debug)]
struct Transaction {
    body: BodyKind,
    smtputf8: bool,
    recipients: usize,
}

/// The server's side of one session.
#[derive(Debug)]
pub struct Server {
    offer: Offer,
    output: Vec<u8>,
    phase: Phase,
    /// A HELO, EHLO or LHLO was given; true if with extensions.
    greeted: Option<bool>,
    authenticated: bool,
    transaction: Option<Transaction>,
    last_notes: ContentNotes,
    messages: usize,
    junk_commands: usize,
    errors: usize,
}

impl Server {
    /// At the start of a session, the greeting already in the output.
    #[must_use]
    pub fn new(offer: Offer) -> Self {
        let last_notes = *Content::new(ContentRules { line_size_max_bytes: 0, normalises: false, binary: true }).notes();
        let mut server = Server {
            offer,
            output: Vec::with_capacity(512),
            phase: Phase::Command,
            greeted: None,
            authenticated: false,
            transaction: None,
            last_notes,
            messages: 0,
            junk_commands: 0,
            errors: 0,
        };
        server.greet();
        server
    }

    /// Replies that wait to be written. Whoever writes them removes them.
    pub fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// What is offered.
    #[must_use]
    pub fn offer(&self) -> &Offer {
        &self.offer
    }

    /// Errors the client has made so far.
    #[must_use]
    pub fn errors(&self) -> usize {
        self.errors
    }

    /// Messages accepted so far.
    #[must_use]
    pub fn messages(&self) -> usize {
        self.messages
    }

    /// EHLO or LHLO was given, not HELO.
    #[must_use]
    pub fn is_extended(&self) -> bool {
        self.greeted == Some(true)
    }

    /// What is known of the content that comes in, or of the last one.
    #[must_use]
    pub fn notes(&self) -> &ContentNotes {
        match &self.phase {
            Phase::Data(content)
            | Phase::Chunk { content, .. }
            | Phase::BetweenChunks(content)
            | Phase::Answer(_, Some(content)) => content.notes(),
            _ => &self.last_notes,
        }
    }

    /// True while content comes in, so that the time-outs and rates of content apply.
    #[must_use]
    pub fn is_in_content(&self) -> bool {
        matches!(self.phase, Phase::Data(_) | Phase::Chunk { .. } | Phase::SkipChunk { .. })
    }

    /// True while a question waits for its answer.
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        matches!(self.phase, Phase::Answer(..) | Phase::StartTls)
    }

    /// True when the session is over but for the output.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Closed)
    }

    /// Takes input from its front; gives how many octets were taken and what they mean. Call again with the
    /// rest until it says [`Event::NeedInput`], [`Event::Blocked`] or [`Event::Closed`].
    pub fn receive<'i>(&mut self, input: &'i [u8]) -> (usize, Event<'i>) {
        let mut taken = 0;
        loop {
            let rest = &input[taken..];
            let (consumed, event) = match self.phase {
                Phase::Command | Phase::BetweenChunks(_) => self.command_line(rest),
                Phase::SkipLine => self.skip_line(rest),
                Phase::Data(_) => self.data(rest),
                Phase::Chunk { .. } => self.chunk(rest),
                Phase::SkipChunk { .. } => self.skip_chunk(rest),
                Phase::AuthResponse => self.auth_line(rest),
                Phase::Answer(..) | Phase::StartTls => return (taken, Event::Blocked),
                Phase::Closed => return (input.len(), Event::Closed),
            };
            taken += consumed;
            if let Some(event) = event {
                return (taken, event);
            }
        }
    }

    /// The line at the front of `input` without its end, and the octets it takes up.
    fn line<'i>(&mut self, input: &'i [u8]) -> Result<(&'i [u8], usize), Option<Event<'i>>> {
        let limit = self.offer.line_size_max_bytes;
        let Some(end) = memchr(b'\n', &input[..input.len().min(limit)]) else {
            if input.len() < limit {
                if input.starts_with(b"\x16\x03") {
                    self.close(replies::TLS_IN_CLEAR);
                    return Err(Some(Event::Closed));
                }
                return Err(Some(Event::NeedInput));
            }
            self.phase = Phase::SkipLine;
            self.fail(replies::LINE_TOO_LONG);
            return Err(None);
        };
        Ok((&input[..end], end + 1))
    }

    fn command_line<'i>(&mut self, input: &'i [u8]) -> (usize, Option<Event<'i>>) {
        let (line, consumed) = match self.line(input) {
            Ok(found) => found,
            Err(event) => return (0, event),
        };
        let line = match line.strip_suffix(b"\r") {
            Some(line) => line,
            None if self.offer.lenient => line,
            None => {
                self.fail(replies::BARE_LF);
                return (consumed, self.closed_event());
            }
        };
        if command::is_http(line) {
            self.close(replies::HTTP);
            return (consumed, Some(Event::Closed));
        }
        let rules = Rules {
            extended: self.greeted == Some(true),
            smtputf8: self.transaction.is_some_and(|transaction| transaction.smtputf8),
            requiretls: false,
            lenient: self.offer.lenient,
            hostname: &self.offer.hostname,
        };
        let event = match command::parse(line, &rules) {
            Ok(command) => self.command(command, &input[consumed..]),
            Err(error) => {
                self.complain(&error);
                None
            }
        };
        (consumed, event.or_else(|| self.closed_event()))
    }

    fn closed_event<'i>(&self) -> Option<Event<'i>> {
        self.is_closed().then_some(Event::Closed)
    }

    fn complain(&mut self, error: &CommandError) {
        error.reply().write_wire(&mut self.output);
        self.count_error();
    }

    fn command<'i>(&mut self, command: Command<'i>, rest: &[u8]) -> Option<Event<'i>> {
        match command {
            Command::Mail(mail) => self.mail(mail),
            Command::Rcpt(recipient) => self.recipient(recipient),
            Command::Data => self.begin_data(rest),
            Command::Bdat { size_bytes, last } => self.begin_chunk(size_bytes, last),
            Command::Helo(name) => self.hello(name, false, false, rest),
            Command::Ehlo(name) => self.hello(name, true, false, rest),
            Command::Lhlo(name) => self.hello(name, true, true, rest),
            Command::Rset => {
                self.junk(replies::RESET);
                self.drop_transaction().then_some(Event::Reset)
            }
            Command::Noop => {
                self.junk(replies::NOOP);
                None
            }
            Command::Vrfy => {
                self.junk(replies::VRFY);
                None
            }
            Command::Help => {
                self.help();
                None
            }
            Command::Quit => {
                self.close(replies::BYE);
                Some(Event::Closed)
            }
            Command::StartTls => self.start_tls(rest),
            Command::Auth { mechanism, initial } => self.auth(mechanism, initial, rest),
            Command::Xclient(client) => self.xclient(client, rest),
        }
    }

    fn hello<'i>(&mut self, name: &'i str, extended: bool, lmtp: bool, rest: &[u8]) -> Option<Event<'i>> {
        if lmtp != self.offer.lmtp {
            self.fail(if lmtp { replies::NOT_LMTP } else { replies::NOT_SMTP });
            return None;
        }
        if self.is_early(rest) {
            return Some(Event::Closed);
        }
        self.count_junk();
        if self.is_closed() {
            return None;
        }
        self.drop_transaction();
        self.greeted = Some(extended);
        self.answer_hello(name);
        Some(Event::Hello(name))
    }

    /// Input after a command whose reply the client must await (RFC 2920 §3.1): commands before it knows that
    /// it may pipeline, content before 354. Such a client does not listen; it may be speaking for another.
    fn is_early(&mut self, rest: &[u8]) -> bool {
        if rest.is_empty() || self.offer.lenient {
            return false;
        }
        self.close(replies::EARLY);
        true
    }

    fn mail<'i>(&mut self, mail: Mail) -> Option<Event<'i>> {
        if self.greeted.is_none() {
            self.fail(if self.offer.lmtp { replies::LHLO_FIRST } else { replies::EHLO_FIRST });
            return None;
        }
        if self.transaction.is_some() {
            self.fail(replies::NESTED_MAIL);
            return None;
        }
        if self.messages >= self.offer.messages_max {
            self.close(replies::TOO_MANY_MESSAGES);
            return None;
        }
        if mail.size_bytes.is_some_and(|size| size > self.offer.message_size_max_bytes) {
            self.refuse(&self.too_large());
            return None;
        }
        self.ask(Question::Mail { body: mail.envelope.body, smtputf8: mail.envelope.smtputf8 });
        Some(Event::Mail(mail))
    }

    fn recipient<'i>(&mut self, recipient: RecipientParams) -> Option<Event<'i>> {
        match self.transaction {
            _ if matches!(self.phase, Phase::BetweenChunks(_)) => self.fail(replies::CHUNKS_BEGUN),
            None => self.fail(replies::MAIL_FIRST),
            Some(open) if open.recipients >= self.offer.recipients_max => {
                let text = format!("At most {} recipients a message; send the rest in another", self.offer.recipients_max);
                self.refuse(&Reply::ours(452, EnhancedCode(4, 5, 3), &text));
            }
            Some(_) => {
                self.ask(Question::Recipient);
                return Some(Event::Recipient(recipient));
            }
        }
        None
    }

    fn content(&self, body: BodyKind, normalises: bool) -> Content {
        Content::new(ContentRules {
            line_size_max_bytes: self.offer.text_line_size_max_bytes,
            normalises,
            binary: body == BodyKind::BinaryMime,
        })
    }

    fn begin_data<'i>(&mut self, rest: &[u8]) -> Option<Event<'i>> {
        match self.transaction {
            _ if matches!(self.phase, Phase::BetweenChunks(_)) => self.fail(replies::CHUNKS_BEGUN),
            None => self.fail(replies::MAIL_FIRST),
            Some(open) if open.recipients == 0 => self.fail(replies::NO_RECIPIENTS),
            // RFC 3030 §3: only BDAT can carry it.
            Some(open) if open.body == BodyKind::BinaryMime => self.fail(replies::BINARY_BY_DATA),
            Some(_) if self.is_early(rest) => return Some(Event::Closed),
            Some(open) => {
                self.output.extend_from_slice(replies::SEND_DATA);
                self.phase = Phase::Data(self.content(open.body, self.offer.lenient));
            }
        }
        None
    }

    fn begin_chunk<'i>(&mut self, size_bytes: u64, last: bool) -> Option<Event<'i>> {
        let skip = |refusal| Phase::SkipChunk { rest_bytes: size_bytes, refusal };
        let phase = std::mem::replace(&mut self.phase, Phase::Command);
        self.phase = match (self.transaction, phase) {
            (None, _) => skip(replies::MAIL_FIRST),
            (Some(open), _) if open.recipients == 0 => skip(replies::NO_RECIPIENTS),
            (Some(_), Phase::BetweenChunks(content)) => Phase::Chunk { content, rest_bytes: size_bytes, last },
            (Some(open), _) => {
                Phase::Chunk { content: self.content(open.body, false), rest_bytes: size_bytes, last }
            }
        };
        // Nobody streams a chunk of gigabytes past us that we will not take.
        let (Phase::Chunk { rest_bytes, .. } | Phase::SkipChunk { rest_bytes, .. }) = self.phase else {
            return None;
        };
        if self.notes().size_bytes.saturating_add(rest_bytes) > self.patience_bytes() {
            let reply = self.too_large();
            reply.write_wire(&mut self.output);
            self.phase = Phase::Closed;
        }
        None
    }

    /// Octets of content that are read at most; beyond them the connection is closed.
    fn patience_bytes(&self) -> u64 {
        self.offer.message_size_max_bytes.saturating_mul(2).saturating_add(1 << 20)
    }

    /// The refusal of a message beyond the limit.
    #[must_use]
    pub fn too_large(&self) -> Reply {
        let text = format!("The message is larger than the {} octets taken here", self.offer.message_size_max_bytes);
        Reply::ours(552, EnhancedCode(5, 3, 4), &text)
    }

    fn data<'i>(&mut self, input: &'i [u8]) -> (usize, Option<Event<'i>>) {
        let Phase::Data(content) = &mut self.phase else { return (0, Some(Event::NeedInput)) };
        let (consumed, step) = content.data(input);
        let event = match step {
            Step::Content(slice) => {
                if content.notes().size_bytes > self.patience_bytes() {
                    let reply = self.too_large();
                    reply.write_wire(&mut self.output);
                    self.phase = Phase::Closed;
                    Event::Closed
                } else {
                    Event::Content(slice)
                }
            }
            Step::End => {
                self.end_content();
                Event::ContentEnd
            }
            Step::NeedInput => Event::NeedInput,
        };
        (consumed, Some(event))
    }

    fn chunk<'i>(&mut self, input: &'i [u8]) -> (usize, Option<Event<'i>>) {
        let Phase::Chunk { content, rest_bytes, last } = &mut self.phase else {
            return (0, Some(Event::NeedInput));
        };
        if *rest_bytes == 0 {
            if *last {
                content.end_of_chunks();
                self.end_content();
                return (0, Some(Event::ContentEnd));
            }
            let content = content.clone();
            self.phase = Phase::Answer(Question::ChunkEnd, Some(content));
            return (0, Some(Event::ChunkEnd));
        }
        if input.is_empty() {
            return (0, Some(Event::NeedInput));
        }
        let size = usize::try_from(*rest_bytes).unwrap_or(usize::MAX).min(input.len());
        *rest_bytes -= size as u64;
        let slice = &input[..size];
        content.chunk(slice);
        (size, Some(Event::Content(Cow::Borrowed(slice))))
    }

    fn end_content(&mut self) {
        self.last_notes = *self.notes();
        self.phase = Phase::Answer(Question::ContentEnd, None);
    }

    fn skip_chunk<'i>(&mut self, input: &'i [u8]) -> (usize, Option<Event<'i>>) {
        let Phase::SkipChunk { rest_bytes, refusal } = &mut self.phase else {
            return (0, Some(Event::NeedInput));
        };
        let size = usize::try_from(*rest_bytes).unwrap_or(usize::MAX).min(input.len());
        *rest_bytes -= size as u64;
        if *rest_bytes > 0 {
            return (size, Some(Event::NeedInput));
        }
        let refusal = *refusal;
        self.phase = Phase::Command;
        self.fail(refusal);
        (size, self.closed_event())
    }

    fn skip_line<'i>(&mut self, input: &'i [u8]) -> (usize, Option<Event<'i>>) {
        let Some(end) = memchr(b'\n', input) else { return (input.len(), Some(Event::NeedInput)) };
        self.phase = Phase::Command;
        (end + 1, None)
    }

    fn start_tls<'i>(&mut self, rest: &[u8]) -> Option<Event<'i>> {
        match self.offer.tls {
            Tls::Unavailable => self.fail(replies::NO_TLS),
            Tls::Active => self.fail(replies::TLS_ACTIVE),
            Tls::Offered if self.greeted.is_none() => self.fail(replies::EHLO_FIRST),
            Tls::Offered if self.transaction.is_some() => self.fail(replies::NOT_IN_TRANSACTION),
            // Whoever put octets here hopes that we take them as said under TLS (CVE-2011-0411).
            Tls::Offered if !rest.is_empty() => {
                self.close(replies::INJECTED);
                return Some(Event::Closed);
            }
            Tls::Offered => {
                self.output.extend_from_slice(replies::START_TLS);
                self.phase = Phase::StartTls;
                return Some(Event::StartTls);
            }
        }
        None
    }

    fn auth<'i>(&mut self, mechanism: &str, initial: Option<&str>, rest: &[u8]) -> Option<Event<'i>> {
        let offer = &self.offer;
        if offer.mechanisms.is_empty() {
            self.fail(replies::NO_AUTH);
        } else if self.greeted != Some(true) {
            self.fail(if offer.lmtp { replies::LHLO_FIRST } else { replies::EHLO_FIRST });
        } else if offer.tls != Tls::Active && !offer.auth_in_clear {
            self.fail(if offer.tls == Tls::Offered { replies::TLS_FIRST } else { replies::NO_AUTH });
        } else if self.authenticated {
            self.fail(replies::AUTHENTICATED);
        } else if self.transaction.is_some() {
            self.fail(replies::NOT_IN_TRANSACTION);
        } else if self.is_early(rest) {
            return Some(Event::Closed);
        } else if let Some(&mechanism) =
            offer.mechanisms.iter().find(|offered| offered.name().eq_ignore_ascii_case(mechanism))
        {
            let Ok(initial) = initial.map(decode_response).transpose() else {
                self.fail(replies::NOT_BASE64);
                return None;
            };
            self.ask(Question::Auth);
            return Some(Event::Auth { mechanism, initial });
        } else {
            let names: Vec<_> = offer.mechanisms.iter().map(|mechanism| mechanism.name()).collect();
            let text = format!("That mechanism is not offered; use {}", names.join(", "));
            self.refuse(&Reply::ours(504, EnhancedCode(5, 5, 4), &text));
        }
        None
    }

    fn auth_line<'i>(&mut self, input: &'i [u8]) -> (usize, Option<Event<'i>>) {
        let (line, consumed) = match self.line(input) {
            Ok(found) => found,
            Err(event) => return (0, event),
        };
        if self.is_early(&input[consumed..]) {
            return (consumed, Some(Event::Closed));
        }
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        self.phase = Phase::Command;
        if line == b"*" {
            self.fail(replies::AUTH_CANCELLED);
            return (consumed, self.closed_event().or(Some(Event::AuthCancelled)));
        }
        match BASE64_STANDARD.decode(line) {
            Ok(response) => {
                self.ask(Question::Auth);
                (consumed, Some(Event::AuthResponse(response)))
            }
            Err(_) => {
                self.fail(replies::NOT_BASE64);
                (consumed, self.closed_event().or(Some(Event::AuthCancelled)))
            }
        }
    }

    fn xclient<'i>(&mut self, client: Xclient, rest: &[u8]) -> Option<Event<'i>> {
        if !self.offer.xclient {
            self.fail(replies::NO_XCLIENT);
        } else if self.transaction.is_some() {
            self.fail(replies::NOT_IN_TRANSACTION);
        } else if self.is_early(rest) {
            return Some(Event::Closed);
        } else {
            self.ask(Question::Xclient);
            return Some(Event::Xclient(client));
        }
        None
    }

    fn ask(&mut self, question: Question) {
        self.phase = Phase::Answer(question, None);
    }

    fn drop_transaction(&mut self) -> bool {
        if !self.is_closed() {
            self.phase = Phase::Command;
        }
        self.transaction.take().is_some()
    }
}

/// RFC 4954 §4: `=` stands for an initial response of no octets.
fn decode_response(text: &str) -> Result<Vec<u8>, base64::DecodeError> {
    if text == "=" { Ok(Vec::new()) } else { BASE64_STANDARD.decode(text) }
}
