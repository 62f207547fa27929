//! The client's half of a session: greeting, EHLO, STARTTLS, AUTH, commands and their replies in order.
//!
//! A client neither decides nor waits. Its owner calls a method to send a command, feeds what the network
//! brings to [`Client::next`], and is told which command each reply answers.

mod extensions;
mod output;
mod transcript;

pub use extensions::{Extensions, Mechanisms};
pub use output::Output;
pub use transcript::Transcript;

use crate::reply::{RawReply, ReplyParser, Violation};
use bytes::Bytes;
use postrider_model::{BodyKind, Mailbox, Notify, Ret};
use std::collections::VecDeque;

/// SMTP or its local sibling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// RFC 5321.
    Smtp,
    /// RFC 2033: LHLO, and a reply per accepted recipient after the content.
    Lmtp,
}

/// What a reply answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Nothing: the server speaks first.
    Greeting,
    /// EHLO or LHLO.
    Ehlo,
    /// HELO, after EHLO was refused.
    Helo,
    /// STARTTLS.
    StartTls,
    /// AUTH, or a line of its exchange.
    Auth,
    /// MAIL.
    Mail,
    /// RCPT.
    Rcpt,
    /// DATA.
    Data,
    /// BDAT, not the last.
    Bdat,
    /// The end of the content: the final dot, or BDAT LAST. With LMTP one for each accepted recipient.
    End,
    /// RSET.
    Rset,
    /// QUIT.
    Quit,
}

impl Command {
    /// As a person reads it in `timed out waiting for the reply to …`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Command::Greeting => "the connection (no greeting)",
            Command::Ehlo => "EHLO",
            Command::Helo => "HELO",
            Command::StartTls => "STARTTLS",
            Command::Auth => "AUTH",
            Command::Mail => "MAIL",
            Command::Rcpt => "RCPT",
            Command::Data => "DATA",
            Command::Bdat => "BDAT",
            Command::End => "the end of the content",
            Command::Rset => "RSET",
            Command::Quit => "QUIT",
        }
    }
}

/// What [`Client::next`] found in the input.
#[must_use = "an event carries a reply that someone waits for"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// All input is used up.
    NeedInput,
    /// The server greeted us and took EHLO, LHLO or HELO: [`Client::extensions`] says what it offers.
    Ready,
    /// The greeting, EHLO or HELO was refused for good; [`Client::reply`] says how.
    Refused(Command),
    /// STARTTLS was granted and nothing follows it in clear: the handshake may begin.
    StartTls,
    /// A reply with its code; [`Client::reply`] has its text.
    Reply {
        /// What it answers.
        to: Command,
        /// The three digits.
        code: u16,
    },
    /// A 421 that answers no command: the server says farewell, as after its idle time-out.
    Farewell,
}

/// The parameters of MAIL beyond the reverse-path. Who sets one knows that the server offers it.
#[derive(Clone, Copy, Debug, Default)]
pub struct MailParams<'a> {
    /// SIZE (RFC 1870).
    pub size: Option<u64>,
    /// BODY (RFC 6152, RFC 3030).
    pub body: Option<BodyKind>,
    /// SMTPUTF8 (RFC 6531).
    pub smtputf8: bool,
    /// RET (RFC 3461).
    pub ret: Option<Ret>,
    /// ENVID, in xtext.
    pub envid: Option<&'a str>,
    /// REQUIRETLS (RFC 8689).
    pub requires_tls: bool,
}

/// A session with a server, without its socket.
#[derive(Debug)]
pub struct Client {
    dialect: Dialect,
    /// The line of EHLO, HELO or LHLO without its verb.
    name: Box<str>,
    parser: ReplyParser,
    expected: VecDeque<Command>,
    output: Output,
    extensions: Extensions,
    transcript: Transcript,
}

impl Client {
    /// A client that waits for the greeting. `name` is its EHLO argument: a domain or an address literal.
    #[must_use]
    pub fn new(dialect: Dialect, name: &str) -> Self {
        // What is no printable ASCII cannot stand in a command.
        let name = name.chars().filter(char::is_ascii_graphic).collect::<String>().into_boxed_str();
        Client {
            dialect,
            name,
            parser: ReplyParser::default(),
            expected: VecDeque::from([Command::Greeting]),
            output: Output::default(),
            extensions: Extensions::default(),
            transcript: Transcript::default(),
        }
    }

    /// Reads on in `input`, one event a call. It answers the greeting with EHLO, and a refused EHLO with
    /// HELO, by itself.
    ///
    /// # Errors
    /// When the server breaks the protocol: the connection must be closed, without QUIT.
    pub fn next(&mut self, input: &mut &[u8]) -> Result<Event, Violation> {
        loop {
            let Some(code) = self.parser.next(input)? else { return Ok(Event::NeedInput) };
            let reply = self.parser.reply();
            self.transcript.server(code, reply.text());
            let Some(to) = self.expected.pop_front() else {
                return if code == 421 { Ok(Event::Farewell) } else { Err(Violation::Unasked) };
            };
            match to {
                Command::Greeting if code == 220 => {
                    // What a server says before EHLO was sent is no answer to it.
                    if !input.is_empty() || !self.parser.is_between_replies() {
                        return Err(Violation::OutOfTurn);
                    }
                    self.send_hello();
                }
                Command::Ehlo if code == 250 => {
                    self.extensions = Extensions::parse(reply);
                    return Ok(Event::Ready);
                }
                // RFC 5321 §3.2: a server that knows no EHLO says so with a 5xx. LMTP has no older verb.
                Command::Ehlo if code / 100 == 5 && self.dialect == Dialect::Smtp => {
                    self.command(Command::Helo, b"HELO ");
                }
                Command::Helo if code == 250 => {
                    self.extensions = Extensions::default();
                    return Ok(Event::Ready);
                }
                Command::Greeting | Command::Ehlo | Command::Helo => return Ok(Event::Refused(to)),
                Command::StartTls if code == 220 => {
                    if !input.is_empty() || !self.parser.is_between_replies() {
                        return Err(Violation::Injection);
                    }
                    return Ok(Event::StartTls);
                }
                _ => return Ok(Event::Reply { to, code }),
            }
        }
    }

    /// The reply of the last event.
    #[must_use]
    pub fn reply(&self) -> RawReply<'_> {
        self.parser.reply()
    }

    /// What the server offers.
    #[must_use]
    pub fn extensions(&self) -> &Extensions {
        &self.extensions
    }

    /// SMTP or LMTP.
    #[must_use]
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// The command whose reply comes next.
    #[must_use]
    pub fn awaited(&self) -> Option<Command> {
        self.expected.front().copied()
    }

    /// What is to be written.
    #[must_use]
    pub fn output(&self) -> &Output {
        &self.output
    }

    /// Notes that `n` octets of the output were written.
    pub fn advance(&mut self, n: usize) {
        self.output.advance(n);
    }

    /// The session so far.
    #[must_use]
    pub fn transcript(&self) -> &Transcript {
        &self.transcript
    }

    /// Notes in the transcript what no line of the session shows.
    pub fn note(&mut self, text: &str) {
        self.transcript.note(text);
    }

    /// STARTTLS (RFC 3207). Nothing may be sent until the reply.
    pub fn starttls(&mut self) {
        self.send(Command::StartTls, |out| out.extend_from_slice(b"STARTTLS\r\n"));
    }

    /// The handshake of STARTTLS is done: everything known of the server is forgotten and EHLO sent again
    /// (RFC 3207 §4.2). Under implicit TLS the greeting is still to come, and nothing is sent.
    pub fn tls_started(&mut self) {
        self.extensions = Extensions::default();
        if self.expected.is_empty() {
            self.send_hello();
        }
    }

    /// `AUTH` with a mechanism and perhaps an initial response, in base64 (RFC 4954 §4). Only the mechanism
    /// is shown in the transcript.
    pub fn auth(&mut self, mechanism: &str, initial: Option<&str>) {
        self.output.write(|out| {
            out.extend_from_slice(b"AUTH ");
            out.extend_from_slice(mechanism.as_bytes());
            if let Some(initial) = initial {
                out.push(b' ');
                // RFC 4954 §4: an empty initial response is a single equals sign.
                out.extend_from_slice(if initial.is_empty() { b"=" } else { initial.as_bytes() });
            }
            out.extend_from_slice(b"\r\n");
        });
        self.transcript.client(format!("AUTH {mechanism} ****").as_bytes());
        self.expected.push_back(Command::Auth);
    }

    /// A further line of the AUTH exchange, in base64; `*` cancels it.
    pub fn auth_line(&mut self, line: &str) {
        self.output.write(|out| {
            out.extend_from_slice(line.as_bytes());
            out.extend_from_slice(b"\r\n");
        });
        self.transcript.client(if line == "*" { b"*" } else { b"****" });
        self.expected.push_back(Command::Auth);
    }

    /// MAIL. `None` is the null reverse-path.
    pub fn mail(&mut self, reverse_path: Option<&Mailbox>, params: &MailParams<'_>) {
        self.send(Command::Mail, |out| {
            out.extend_from_slice(b"MAIL FROM:<");
            if let Some(mailbox) = reverse_path {
                out.extend_from_slice(mailbox.to_wire().as_bytes());
            }
            out.push(b'>');
            params.write(out);
            out.extend_from_slice(b"\r\n");
        });
    }

    /// RCPT with the parameters of DSN, which are given only where the server offers it.
    pub fn rcpt(&mut self, mailbox: &Mailbox, notify: Option<Notify>, orcpt: Option<&str>) {
        self.send(Command::Rcpt, |out| {
            out.extend_from_slice(b"RCPT TO:<");
            out.extend_from_slice(mailbox.to_wire().as_bytes());
            out.push(b'>');
            if let Some(notify) = notify {
                write_notify(out, notify);
            }
            write_param(out, b" ORCPT=", orcpt);
            out.extend_from_slice(b"\r\n");
        });
    }

    /// DATA.
    pub fn data(&mut self) {
        self.send(Command::Data, |out| out.extend_from_slice(b"DATA\r\n"));
    }

    /// BDAT for a chunk of `size` octets, which [`Client::content`] gives next. The last one is answered
    /// by `replies` replies: one with SMTP, one for each accepted recipient with LMTP.
    pub fn bdat(&mut self, size: u64, last: bool, replies: usize) {
        let line = self.output.write(|out| {
            out.extend_from_slice(b"BDAT ");
            write_number(out, size);
            out.extend_from_slice(if last { b" LAST\r\n" } else { b"\r\n" });
        });
        self.transcript.client(line);
        let (command, replies) = if last { (Command::End, replies) } else { (Command::Bdat, 1) };
        self.expected.extend(std::iter::repeat_n(command, replies));
    }

    /// Octets of content as they stand on the wire, already stuffed or within a BDAT chunk.
    pub fn content(&mut self, bytes: Bytes) {
        self.output.content(bytes);
    }

    /// Octets of content that a transform inserts.
    pub fn content_insert(&mut self, bytes: &'static [u8]) {
        self.output.write(|out| out.extend_from_slice(bytes));
    }

    /// The final dot of DATA; the content before it ended in CRLF, or there was none. For `replies` see
    /// [`Client::bdat`].
    pub fn end(&mut self, replies: usize) {
        let line = self.output.write(|out| out.extend_from_slice(b".\r\n"));
        self.transcript.client(line);
        self.expected.extend(std::iter::repeat_n(Command::End, replies));
    }

    /// RSET.
    pub fn rset(&mut self) {
        self.send(Command::Rset, |out| out.extend_from_slice(b"RSET\r\n"));
    }

    /// QUIT.
    pub fn quit(&mut self) {
        self.send(Command::Quit, |out| out.extend_from_slice(b"QUIT\r\n"));
    }

    fn send_hello(&mut self) {
        match self.dialect {
            Dialect::Smtp => self.command(Command::Ehlo, b"EHLO "),
            Dialect::Lmtp => self.command(Command::Ehlo, b"LHLO "),
        }
    }

    /// A verb and our name.
    fn command(&mut self, command: Command, verb: &[u8]) {
        let line = self.output.write(|out| {
            out.extend_from_slice(verb);
            out.extend_from_slice(self.name.as_bytes());
            out.extend_from_slice(b"\r\n");
        });
        self.transcript.client(line);
        self.expected.push_back(command);
    }

    fn send(&mut self, command: Command, write: impl FnOnce(&mut Vec<u8>)) {
        let line = self.output.write(write);
        self.transcript.client(line);
        self.expected.push_back(command);
    }
}

impl MailParams<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        if let Some(size) = self.size {
            out.extend_from_slice(b" SIZE=");
            write_number(out, size);
        }
        match self.body {
            None => {}
            Some(BodyKind::SevenBit) => out.extend_from_slice(b" BODY=7BIT"),
            Some(BodyKind::EightBitMime) => out.extend_from_slice(b" BODY=8BITMIME"),
            Some(BodyKind::BinaryMime) => out.extend_from_slice(b" BODY=BINARYMIME"),
        }
        if self.smtputf8 {
            out.extend_from_slice(b" SMTPUTF8");
        }
        match self.ret {
            None => {}
            Some(Ret::Full) => out.extend_from_slice(b" RET=FULL"),
            Some(Ret::Headers) => out.extend_from_slice(b" RET=HDRS"),
        }
        write_param(out, b" ENVID=", self.envid);
        if self.requires_tls {
            out.extend_from_slice(b" REQUIRETLS");
        }
    }
}

/// A parameter whose value a client once gave us. What could end the parameter or the line is left out.
fn write_param(out: &mut Vec<u8>, name: &[u8], value: Option<&str>) {
    let Some(value) = value else { return };
    if value.is_empty() || value.bytes().any(|b| b <= b' ' || b == 0x7f) {
        return;
    }
    out.extend_from_slice(name);
    out.extend_from_slice(value.as_bytes());
}

fn write_notify(out: &mut Vec<u8>, notify: Notify) {
    out.extend_from_slice(b" NOTIFY=");
    match notify {
        Notify::Never => out.extend_from_slice(b"NEVER"),
        Notify::On { success, failure, delay } => {
            let mut separator: &[u8] = b"";
            for (set, name) in [(success, b"SUCCESS".as_slice()), (failure, b"FAILURE"), (delay, b"DELAY")] {
                if set {
                    out.extend_from_slice(separator);
                    out.extend_from_slice(name);
                    separator = b",";
                }
            }
            // No event at all says the same as NEVER, which is how it must be written.
            if separator.is_empty() {
                out.extend_from_slice(b"NEVER");
            }
        }
    }
}

fn write_number(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests;
