//! What the server says: replies written out once, and the answers to its questions.

use super::{Event, Phase, Question, Server, Tls, Transaction};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use postrider_model::Reply;
use std::fmt::Display;
use std::io::Write as _;

macro_rules! replies {
    ($($name:ident = $text:literal;)*) => {
        $(pub(super) const $name: &[u8] = concat!($text, "\r\n").as_bytes();)*
    };
}

replies! {
    MAIL_OK = "250 2.1.0 Sender accepted";
    RECIPIENT_OK = "250 2.1.5 Recipient accepted";
    SEND_DATA = "354 Send the message; end with a line that holds only a dot";
    RESET = "250 2.0.0 Forgotten";
    NOOP = "250 2.0.0 Nothing done";
    VRFY = "252 2.5.2 Addresses are not verified; RCPT tells whether mail is taken";
    BYE = "221 2.0.0 Bye";
    START_TLS = "220 2.0.0 Start TLS now";
    AUTH_OK = "235 2.7.0 Authenticated";
    AUTH_CANCELLED = "501 5.7.0 Authentication cancelled";
    CHUNK_OK = "250 2.0.0 Octets taken";

    EHLO_FIRST = "503 5.5.1 Say EHLO and your host name first";
    LHLO_FIRST = "503 5.5.1 Say LHLO and your host name first";
    MAIL_FIRST = "503 5.5.1 Say MAIL FROM:<address> first";
    NO_RECIPIENTS = "554 5.5.1 No recipient was accepted; say RCPT TO:<address> first";
    NESTED_MAIL = "503 5.5.1 A message is begun already; RSET drops it";
    CHUNKS_BEGUN = "503 5.5.1 After BDAT only BDAT goes on; RSET drops the message";
    BINARY_BY_DATA = "503 5.5.1 BODY=BINARYMIME cannot come by DATA; use BDAT";
    NOT_IN_TRANSACTION = "503 5.5.1 Not while a message is begun; RSET drops it";
    NOT_LMTP = "500 5.5.1 This is SMTP; say EHLO instead of LHLO";
    NOT_SMTP = "500 5.5.1 This is LMTP; say LHLO instead of EHLO";
    BARE_LF = "500 5.5.2 Lines end in CR and LF; this one ended in LF alone (with nc, use nc -C)";
    LINE_TOO_LONG = "500 5.5.2 The line is too long";
    NOT_BASE64 = "501 5.5.2 The response is not base64";
    NO_TLS = "502 5.5.1 STARTTLS is not offered here";
    TLS_ACTIVE = "503 5.5.1 TLS is active already";
    NO_AUTH = "502 5.5.1 AUTH is not offered here";
    TLS_FIRST = "538 5.7.11 AUTH needs TLS; say STARTTLS first";
    AUTHENTICATED = "503 5.5.1 Authenticated already";
    NO_XCLIENT = "550 5.7.1 XCLIENT is not for you";

    EARLY = "554 5.5.0 Wait for the reply before you send more";
    INJECTED = "554 5.5.0 Nothing may follow STARTTLS before the handshake";
    HTTP = "554 5.5.1 This is a mail server, not a web server";
    TLS_IN_CLEAR = "554 5.7.0 TLS does not start by itself here; say STARTTLS or use the port for TLS";
    TOO_MANY_ERRORS = "421 4.7.0 Too many errors; good bye";
    TOO_MANY_COMMANDS = "421 4.7.0 Too many commands that lead to no mail; good bye";
    TOO_MANY_MESSAGES = "421 4.7.0 Enough messages for one session; connect again";
}

impl Server {
    /// The sender is accepted.
    pub fn accept_mail(&mut self) {
        if let Phase::Answer(Question::Mail { body, smtputf8 }, _) = self.phase {
            self.transaction = Some(Transaction { body, smtputf8, recipients: 0 });
            self.phase = Phase::Command;
            self.output.extend_from_slice(MAIL_OK);
        }
    }

    /// The recipient is accepted.
    pub fn accept_recipient(&mut self) {
        if let (Phase::Answer(Question::Recipient, _), Some(open)) = (&self.phase, &mut self.transaction) {
            open.recipients += 1;
            self.phase = Phase::Command;
            self.output.extend_from_slice(RECIPIENT_OK);
        }
    }

    /// The chunk is taken; the next may come.
    pub fn accept_chunk(&mut self) {
        if let Phase::Answer(Question::ChunkEnd, content) = &mut self.phase {
            // Invariant: the question was asked with the content.
            self.phase = content.take().map_or(Phase::Command, Phase::BetweenChunks);
            self.output.extend_from_slice(CHUNK_OK);
        }
    }

    /// The message is durable (design P1); `id` is what it can be asked for by.
    pub fn accept_content(&mut self, id: impl Display) {
        self.messages += 1;
        self.junk_commands = 0;
        self.finish_content(|out| {
            // Invariant: a vector takes all that is written.
            let _ = write!(out, "250 2.0.0 Accepted as {id}\r\n");
        });
    }

    /// The message is not taken; nothing of it is kept.
    pub fn refuse_content(&mut self, reply: &Reply) {
        self.finish_content(|out| reply.write_wire(out));
        self.count_error_of(reply);
    }

    /// One reply, or in LMTP one for each recipient (RFC 2033 §4.2).
    fn finish_content(&mut self, write: impl Fn(&mut Vec<u8>)) {
        let recipients = self.transaction.take().map_or(1, |open| open.recipients);
        for _ in 0..if self.offer.lmtp { recipients } else { 1 } {
            write(&mut self.output);
        }
        self.phase = Phase::Command;
    }

    /// No to a question. A refused chunk ends its transaction.
    pub fn refuse(&mut self, reply: &Reply) {
        reply.write_wire(&mut self.output);
        match self.phase {
            Phase::Answer(Question::ChunkEnd | Question::ContentEnd, _) => {
                self.transaction = None;
                self.phase = Phase::Command;
            }
            Phase::Answer(question, _) => {
                self.phase = Phase::Command;
                match question {
                    Question::Mail { .. } => self.excused = self.offer.recipients_max.saturating_add(1),
                    // DATA without any recipient that was taken.
                    Question::Recipient if !reply.is_permanent() => self.excused = 1,
                    _ => {}
                }
            }
            _ => {}
        }
        self.count_error_of(reply);
    }

    /// No, and the session is over.
    pub fn refuse_and_close(&mut self, reply: &Reply) {
        if !self.is_closed() {
            reply.write_wire(&mut self.output);
            self.phase = Phase::Closed;
        }
    }

    /// The next challenge of AUTH (RFC 4954 §4).
    pub fn challenge(&mut self, challenge: &[u8]) {
        self.output.extend_from_slice(b"334 ");
        self.output.extend_from_slice(BASE64_STANDARD.encode(challenge).as_bytes());
        self.output.extend_from_slice(b"\r\n");
        self.phase = Phase::AuthResponse;
    }

    /// The client is who it says.
    pub fn accept_auth(&mut self) {
        self.authenticated = true;
        self.output.extend_from_slice(AUTH_OK);
        self.phase = Phase::Command;
    }

    /// It is not, or cannot be told.
    pub fn refuse_auth(&mut self, reply: &Reply) {
        self.refuse(reply);
    }

    /// The proxy's word is taken: the session begins anew with the greeting, for the client behind it.
    pub fn accept_xclient(&mut self, authenticated: bool) {
        self.phase = Phase::Command;
        self.greeted = None;
        self.authenticated = authenticated;
        self.greet();
    }

    /// The handshake is done: all that was said in clear is forgotten (RFC 3207 §4.2).
    pub fn tls_started(&mut self) {
        self.offer.tls = Tls::Active;
        self.greeted = None;
        self.authenticated = false;
        self.transaction = None;
        self.phase = Phase::Command;
    }

    pub(super) fn greet(&mut self) {
        let protocol = if self.offer.lmtp { "LMTP" } else { "ESMTP" };
        // Invariant: a vector takes all that is written.
        let _ = write!(self.output, "220 {} {protocol} Postrider\r\n", self.offer.hostname);
    }

    pub(super) fn answer_hello(&mut self, name: &str) {
        let offer = &self.offer;
        let out = &mut self.output;
        if self.greeted != Some(true) {
            let _ = write!(out, "250 {} greets {name}\r\n", offer.hostname);
            return;
        }
        let _ = write!(
            out,
            "250-{} greets {name}\r\n250-PIPELINING\r\n250-SIZE {}\r\n250-8BITMIME\r\n\
             250-ENHANCEDSTATUSCODES\r\n250-DSN\r\n250-CHUNKING\r\n250-BINARYMIME\r\n250-SMTPUTF8\r\n\
             250-LIMITS RCPTMAX={} MAILMAX={}\r\n",
            offer.hostname, offer.message_size_max_bytes, offer.recipients_max, offer.messages_max
        );
        if offer.tls == Tls::Offered {
            out.extend_from_slice(b"250-STARTTLS\r\n");
        }
        if !offer.mechanisms.is_empty() && (offer.tls == Tls::Active || offer.auth_in_clear) {
            out.extend_from_slice(b"250-AUTH");
            for mechanism in &offer.mechanisms {
                let _ = write!(out, " {mechanism}");
            }
            out.extend_from_slice(b"\r\n");
        }
        if offer.xclient {
            out.extend_from_slice(b"250-XCLIENT NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT\r\n");
        }
        out.extend_from_slice(b"250 HELP\r\n");
    }

    /// Tells a person what to type next.
    pub(super) fn help(&mut self) {
        let next = match (self.greeted, self.transaction) {
            (None, _) if self.offer.lmtp => "LHLO your.host.name",
            (None, _) => "EHLO your.host.name",
            (_, None) if !self.authenticated && self.offer.tls == Tls::Offered => {
                "STARTTLS, then EHLO again and AUTH; or MAIL FROM:<you@your.domain> if this host may send without"
            }
            (_, None) => "MAIL FROM:<you@your.domain>",
            (_, Some(open)) if open.recipients == 0 => "RCPT TO:<someone@their.domain>",
            (_, Some(_)) => "DATA, then the message, then a line with a single dot (or another RCPT)",
        };
        let _ = write!(
            self.output,
            "214-2.0.0 This is Postrider, a mail relay. Next, type:\r\n\
             214-2.0.0   {next}\r\n\
             214-2.0.0 Commands: EHLO HELO MAIL RCPT DATA BDAT RSET NOOP VRFY STARTTLS AUTH HELP QUIT\r\n\
             214 2.0.0 A message is EHLO, MAIL, RCPT, DATA, the text, a dot; QUIT ends the session.\r\n"
        );
        self.count_junk();
    }

    pub(super) fn junk(&mut self, reply: &'static [u8]) {
        self.output.extend_from_slice(reply);
        self.count_junk();
    }

    pub(super) fn count_junk(&mut self) {
        self.junk_commands += 1;
        if self.junk_commands > self.offer.junk_commands_max {
            self.close(TOO_MANY_COMMANDS);
        }
    }

    pub(super) fn fail(&mut self, reply: &'static [u8]) {
        self.output.extend_from_slice(reply);
        self.count_error();
    }

    /// A command that fails since one before it was refused is no error of its own: a client that sends them
    /// together cannot know.
    pub(super) fn fail_with_refusal(&mut self, reply: &'static [u8]) {
        match self.excused.checked_sub(1) {
            Some(rest) => {
                self.excused = rest;
                self.output.extend_from_slice(reply);
            }
            None => self.fail(reply),
        }
    }

    fn count_error_of(&mut self, reply: &Reply) {
        if reply.is_permanent() {
            self.count_error();
        }
    }

    pub(super) fn count_error(&mut self) {
        self.errors += 1;
        if self.errors > self.offer.errors_max {
            self.close(TOO_MANY_ERRORS);
        }
    }

    pub(super) fn close(&mut self, reply: &'static [u8]) {
        self.output.extend_from_slice(reply);
        self.phase = Phase::Closed;
    }
}

impl Event<'_> {
    /// True for the events after which input is not taken until something happens.
    #[must_use]
    pub fn is_pause(&self) -> bool {
        matches!(self, Event::NeedInput | Event::Blocked | Event::StartTls | Event::Closed)
    }
}
