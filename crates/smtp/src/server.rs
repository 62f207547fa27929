//! The server's side of an SMTP or LMTP session.
//!
//! [`Server::receive`] takes octets as they came from the client, and returns at the first thing that someone
//! else must know or decide. What it can answer itself it answers: order of commands, syntax, limits, HELP.
//! Replies are appended to one buffer, so that all commands of a pipelined group are answered by one write.

mod content;
mod replies;
mod security;

use crate::command::{self, Command, CommandError, Mail, Rules, Xclient};
use crate::data::{Content, ContentNotes, ContentRules};
use memchr::memchr;
use postrider_model::{BodyKind, EnhancedCode, RecipientParams, Reply};
use std::borrow::Cow;

/// How a client begins that speaks TLS at once (RFC 8446 §5.1).
const TLS_RECORD: &[u8] = b"\x16\x03";
/// Octets of unwritten replies beyond which no further input is taken.
pub const OUTPUT_SIZE_MAX: usize = 64 << 10;

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

/// What a server offers and how far it goes. Fixed for a session but for [`Server::tls_started`].
#[derive(Clone, Debug)]
pub struct Offer {
    /// Our name.
    pub hostname: Box<str>,
    /// LMTP (RFC 2033) instead of SMTP.
    pub lmtp: bool,
    /// Protection.
    pub tls: Tls,
    /// SASL mechanisms by their registered names, in the order of preference.
    pub mechanisms: Vec<&'static str>,
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
    /// An answer is owed, TLS must start, or output must be written, before more input is taken.
    Blocked,
    /// The client made an error; answered already.
    Mistake,
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
    ContentEnd {
        /// It came by BDAT: its dots are not doubled.
        by_chunks: bool,
    },
    /// The transaction was dropped (RSET, or EHLO in the middle); answered already.
    Reset,
    /// Write the output, then begin the handshake as the server; then [`Server::tls_started`].
    StartTls,
    /// Who is it? [`Server::challenge`], [`Server::accept_auth`] or [`Server::refuse_auth`].
    Auth {
        /// The mechanism, one of those offered.
        mechanism: &'static str,
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
    /// So many commands may have been sent before a refusal was read that they depend on (RFC 2920): they fail
    /// with it, and are no errors of the client.
    excused: usize,
}

impl Server {
    /// At the start of a session, the greeting already in the output.
    #[must_use]
    pub fn new(offer: Offer) -> Self {
        let last_notes =
            *Content::new(ContentRules { line_size_max_bytes: 0, normalises: false, binary: true }).notes();
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
            excused: 0,
        };
        server.greet();
        server
    }

    /// Replies that wait to be written. Whoever writes them removes them.
    pub fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// Octets of replies that wait.
    #[must_use]
    pub fn output_size(&self) -> usize {
        self.output.len()
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

    /// The client has shown who it is, by AUTH or by the word of a proxy.
    #[must_use]
    pub fn is_authenticated(&self) -> bool {
        self.authenticated
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
        let errors = self.errors;
        loop {
            if self.output.len() > OUTPUT_SIZE_MAX {
                return (taken, Event::Blocked);
            }
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
            if self.errors > errors {
                return (taken, Event::Mistake);
            }
        }
    }

    /// The line at the front of `input` without its end, and the octets it takes up.
    fn line<'i>(&mut self, input: &'i [u8]) -> Result<(&'i [u8], usize), Option<Event<'i>>> {
        let limit = self.offer.line_size_max_bytes;
        let Some(end) = memchr(b'\n', &input[..input.len().min(limit)]) else {
            if input.len() < limit {
                return Err(Some(Event::NeedInput));
            }
            self.phase = Phase::SkipLine;
            self.fail(replies::LINE_TOO_LONG);
            return Err(None);
        };
        Ok((&input[..end], end + 1))
    }

    fn command_line<'i>(&mut self, input: &'i [u8]) -> (usize, Option<Event<'i>>) {
        if self.greeted.is_none() && input.starts_with(TLS_RECORD) {
            self.close(replies::TLS_IN_CLEAR);
            return (input.len(), Some(Event::Closed));
        }
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
            self.excused = self.offer.recipients_max.saturating_add(1);
            return None;
        }
        self.excused = 0;
        self.ask(Question::Mail { body: mail.envelope.body, smtputf8: mail.envelope.smtputf8 });
        Some(Event::Mail(mail))
    }

    fn recipient<'i>(&mut self, recipient: RecipientParams) -> Option<Event<'i>> {
        match self.transaction {
            _ if matches!(self.phase, Phase::BetweenChunks(_)) => self.fail(replies::CHUNKS_BEGUN),
            None => self.fail_with_refusal(replies::MAIL_FIRST),
            Some(open) if open.recipients >= self.offer.recipients_max => {
                let text = format!(
                    "At most {} recipients a message; send the rest in another",
                    self.offer.recipients_max
                );
                self.refuse(&Reply::ours(452, EnhancedCode(4, 5, 3), &text));
            }
            Some(_) => {
                self.ask(Question::Recipient);
                return Some(Event::Recipient(recipient));
            }
        }
        None
    }

    fn skip_line<'i>(&mut self, input: &'i [u8]) -> (usize, Option<Event<'i>>) {
        let Some(end) = memchr(b'\n', input) else { return (input.len(), Some(Event::NeedInput)) };
        self.phase = Phase::Command;
        (end + 1, None)
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
