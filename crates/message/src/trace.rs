//! The fields that a relay adds: Received, and Date and Message-ID where they are missing.

use postrider_model::{Domain, Mailbox, Timestamp};
use std::net::IpAddr;

/// Octets of a line that we write, its ending not counted, where words allow it (RFC 5322 §2.1.1).
const LINE_SIZE: usize = 78;
/// Octets of a name that a client gave itself.
const NAME_SIZE_MAX: usize = 255;

/// What the client spoke, as the `with` clause names it together with TLS, AUTH and SMTPUTF8 (RFC 3848,
/// RFC 6531 §4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceProtocol {
    /// HELO.
    Smtp,
    /// EHLO.
    Esmtp,
    /// LHLO.
    Lmtp,
    /// The HTTP API (IANA's registry of mail transmission types).
    Http,
}

/// The TLS of a session, for the trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceTls<'a> {
    /// `TLSv1.3`.
    pub version: &'a str,
    /// `TLS_AES_256_GCM_SHA384`.
    pub cipher: &'a str,
}

/// A Received field (RFC 5321 §4.4).
#[derive(Clone, Copy, Debug)]
pub struct Received<'a> {
    /// What the client called itself; printed with everything replaced that is no part of a name.
    pub helo: &'a str,
    /// The client's address; `None` for a Unix socket.
    pub client: Option<IpAddr>,
    /// The name that the client's address leads to, and that leads back to it.
    pub reverse_name: Option<&'a str>,
    /// Our name.
    pub by: &'a Domain,
    /// What was spoken.
    pub protocol: TraceProtocol,
    /// Under TLS.
    pub tls: Option<TraceTls<'a>>,
    /// After AUTH.
    pub authenticated: bool,
    /// With SMTPUTF8.
    pub smtputf8: bool,
    /// The message's id.
    pub id: &'a str,
    /// The recipient, if there is exactly one: more would tell them of each other (RFC 5321 §7.2).
    pub recipient: Option<&'a Mailbox>,
    /// When the message was accepted.
    pub at: Timestamp,
}

impl Received<'_> {
    /// The keyword of the `with` clause.
    #[must_use]
    pub fn with(&self) -> &'static str {
        let extras = (self.tls.is_some(), self.authenticated);
        match (self.protocol, self.smtputf8) {
            (TraceProtocol::Http, _) => {
                if self.tls.is_some() {
                    "HTTPS"
                } else {
                    "HTTP"
                }
            }
            (TraceProtocol::Lmtp, true) => pick(extras, ["UTF8LMTP", "UTF8LMTPA", "UTF8LMTPS", "UTF8LMTPSA"]),
            (TraceProtocol::Lmtp, false) => pick(extras, ["LMTP", "LMTPA", "LMTPS", "LMTPSA"]),
            (_, true) => pick(extras, ["UTF8SMTP", "UTF8SMTPA", "UTF8SMTPS", "UTF8SMTPSA"]),
            (TraceProtocol::Smtp, false) if extras == (false, false) => "SMTP",
            (_, false) => pick(extras, ["ESMTP", "ESMTPA", "ESMTPS", "ESMTPSA"]),
        }
    }

    /// Appends the field with its line endings.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.reserve(320);
        let mut fold = Fold { line: out.len(), out };
        fold.word(b"Received: from ");
        fold.name(if self.helo.is_empty() { "unknown" } else { self.helo });
        if let Some(client) = self.client {
            fold.word(b" (");
            if let Some(name) = self.reverse_name {
                fold.name(name);
                fold.glue(b" ");
            }
            fold.address(client);
            fold.glue(b")");
        }
        if let Some(tls) = self.tls {
            fold.line();
            fold.glue(b"(using ");
            fold.name(tls.version);
            fold.glue(b" with cipher ");
            fold.name(tls.cipher);
            fold.glue(b")");
        }
        fold.line();
        fold.glue(b"by ");
        fold.glue(self.by.as_str().as_bytes());
        fold.word(b" (Postrider)");
        fold.word(b" with ");
        fold.glue(self.with().as_bytes());
        fold.word(b" id ");
        fold.name(self.id);
        let recipient = self.recipient.filter(|mailbox| self.smtputf8 || !mailbox.needs_smtputf8());
        if let Some(mailbox) = recipient {
            fold.line();
            fold.glue(b"for <");
            // A domain alone has a form in ASCII: our own field shall not make a header need SMTPUTF8.
            if mailbox.needs_smtputf8() {
                fold.glue(mailbox.as_str().as_bytes());
            } else {
                fold.glue(mailbox.to_wire().as_bytes());
            }
            fold.glue(b">");
        }
        fold.glue(b";");
        fold.date(self.at);
        out.extend_from_slice(b"\r\n");
    }
}

fn pick((tls, authenticated): (bool, bool), [plain, a, s, sa]: [&'static str; 4]) -> &'static str {
    match (tls, authenticated) {
        (false, false) => plain,
        (false, true) => a,
        (true, false) => s,
        (true, true) => sa,
    }
}

/// Appends a Date field.
pub fn write_date(out: &mut Vec<u8>, at: Timestamp) {
    out.extend_from_slice(b"Date: ");
    out.extend_from_slice(at.rfc5322().as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Appends a Message-ID field: `id` is the message's id, unique by itself.
pub fn write_message_id(out: &mut Vec<u8>, id: &str, host: &Domain) {
    out.extend_from_slice(b"Message-ID: <");
    out.extend(id.bytes().map(name_octet));
    out.push(b'@');
    out.extend_from_slice(host.as_str().as_bytes());
    out.extend_from_slice(b">\r\n");
}

/// Writes words into a field, and begins a new line where the next word would not fit.
struct Fold<'a> {
    out: &'a mut Vec<u8>,
    /// Where the current line begins.
    line: usize,
}

impl Fold<'_> {
    /// A word with the space before it, or in its stead a new line.
    fn word(&mut self, word: &[u8]) {
        match word.strip_prefix(b" ") {
            Some(rest) if self.out.len() - self.line + word.len() > LINE_SIZE => {
                self.line();
                self.glue(rest);
            }
            _ => self.glue(word),
        }
    }

    fn glue(&mut self, text: &[u8]) {
        self.out.extend_from_slice(text);
    }

    fn line(&mut self) {
        self.glue(b"\r\n");
        self.line = self.out.len();
        self.glue(b"\t");
    }

    /// Somebody else's word for a name: what no name holds becomes `?`. If it does not fit the line, the
    /// word before it moves to the next line too.
    fn name(&mut self, name: &str) {
        let name = &name.as_bytes()[..name.len().min(NAME_SIZE_MAX)];
        if name.iter().all(|b| IN_NAMES[usize::from(*b)]) {
            self.glue(name);
        } else {
            self.out.extend(name.iter().map(|b| name_octet(*b)));
        }
        let over = self.out.len() - self.line > LINE_SIZE;
        if over && let Some(gap) = self.out[self.line + 1..].iter().rposition(|b| *b == b' ') {
            let gap = self.line + 1 + gap;
            self.out.splice(gap..=gap, *b"\r\n\t");
            self.line = gap + 2;
        }
    }

    fn address(&mut self, address: IpAddr) {
        let literal = match address.to_canonical() {
            IpAddr::V4(ip) => format!("[{ip}]"),
            IpAddr::V6(ip) => format!("[IPv6:{ip}]"),
        };
        self.name(&literal);
    }

    fn date(&mut self, at: Timestamp) {
        let date = at.rfc5322();
        if self.out.len() - self.line + 1 + date.len() > LINE_SIZE {
            self.line();
        } else {
            self.glue(b" ");
        }
        self.glue(date.as_bytes());
    }
}

/// Only what stands in names, address literals and ids: no parenthesis closes a comment, no line ending
/// begins a field.
const IN_NAMES: [bool; 256] = {
    let mut table = [false; 256];
    let mut b = 0u8;
    while b < 128 {
        table[b as usize] = b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':' | b'[' | b']');
        b += 1;
    }
    table
};

fn name_octet(b: u8) -> u8 {
    if IN_NAMES[usize::from(b)] { b } else { b'?' }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FieldKind, HeaderScan};
    use bytes::Bytes;
    use proptest::prelude::*;

    fn received<'a>(by: &'a Domain, helo: &'a str) -> Received<'a> {
        Received {
            helo,
            client: Some([192, 0, 2, 1].into()),
            reverse_name: None,
            by,
            protocol: TraceProtocol::Esmtp,
            tls: None,
            authenticated: false,
            smtputf8: false,
            id: "msg_0192",
            recipient: None,
            at: Timestamp::from_secs(1_795_526_426),
        }
    }

    fn text(received: &Received<'_>) -> String {
        let mut out = Vec::new();
        received.write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_field_names_who_how_and_when() {
        let by = "relay.example.com".parse().unwrap();
        assert_eq!(
            text(&received(&by, "client.example")),
            "Received: from client.example ([192.0.2.1])\r\n\
             \tby relay.example.com (Postrider) with ESMTP id msg_0192;\r\n\
             \tTue, 24 Nov 2026 13:20:26 +0000\r\n"
        );
        let mailbox = "bob@example.net".parse().unwrap();
        let full = Received {
            client: Some("2001:db8::1".parse().unwrap()),
            reverse_name: Some("c.example"),
            tls: Some(TraceTls { version: "TLSv1.3", cipher: "TLS_AES_256_GCM_SHA384" }),
            authenticated: true,
            recipient: Some(&mailbox),
            ..received(&by, "[192.0.2.9]")
        };
        assert_eq!(
            text(&full),
            "Received: from [192.0.2.9] (c.example [IPv6:2001:db8::1])\r\n\
             \t(using TLSv1.3 with cipher TLS_AES_256_GCM_SHA384)\r\n\
             \tby relay.example.com (Postrider) with ESMTPSA id msg_0192\r\n\
             \tfor <bob@example.net>; Tue, 24 Nov 2026 13:20:26 +0000\r\n"
        );
    }

    #[test]
    fn the_keyword_follows_the_session() {
        let by = "a.example".parse().unwrap();
        let tls = Some(TraceTls { version: "", cipher: "" });
        let check = |protocol, tls, authenticated, smtputf8, expected| {
            let field = Received { protocol, tls, authenticated, smtputf8, ..received(&by, "x") };
            assert_eq!(field.with(), expected);
        };
        check(TraceProtocol::Smtp, None, false, false, "SMTP");
        check(TraceProtocol::Esmtp, None, false, false, "ESMTP");
        check(TraceProtocol::Esmtp, tls, false, false, "ESMTPS");
        check(TraceProtocol::Esmtp, None, true, false, "ESMTPA");
        check(TraceProtocol::Esmtp, tls, true, false, "ESMTPSA");
        check(TraceProtocol::Esmtp, tls, true, true, "UTF8SMTPSA");
        check(TraceProtocol::Lmtp, None, false, false, "LMTP");
        check(TraceProtocol::Lmtp, tls, false, true, "UTF8LMTPS");
        check(TraceProtocol::Smtp, tls, false, false, "ESMTPS");
        check(TraceProtocol::Http, tls, true, false, "HTTPS");
    }

    #[test]
    fn a_utf8_recipient_is_named_only_where_utf8_may_stand() {
        let by = "a.example".parse().unwrap();
        let utf8 = "jürgen@example.net".parse().unwrap();
        let ascii_local = "j@bücher.example".parse().unwrap();
        let field = |recipient, smtputf8| {
            text(&Received { recipient: Some(recipient), smtputf8, ..received(&by, "x") })
        };
        assert!(field(&utf8, true).contains("for <jürgen@example.net>"));
        assert!(!field(&utf8, false).contains("for <"));
        for smtputf8 in [true, false] {
            assert!(field(&ascii_local, smtputf8).contains("for <j@xn--bcher-kva.example>"));
        }
    }

    #[test]
    fn a_hostile_helo_stays_within_its_word() {
        let by = "a.example".parse().unwrap();
        let field = text(&received(&by, "x) by\r\nFrom: evil\r\n\r\n(\u{1b}ü"));
        assert!(field.starts_with("Received: from x??by??From:?evil???????? ([192.0.2.1])\r\n"), "{field}");
        assert!(!field.contains("\nFrom"));
        assert!(text(&received(&by, "")).contains("from unknown ("));
    }

    #[test]
    fn date_and_message_id_are_whole_fields() {
        let mut out = Vec::new();
        write_date(&mut out, Timestamp::from_secs(0));
        write_message_id(&mut out, "msg_1", &"a.example".parse().unwrap());
        assert_eq!(out, b"Date: Thu, 01 Jan 1970 00:00:00 +0000\r\nMessage-ID: <msg_1@a.example>\r\n");
    }

    proptest! {
        #[test]
        fn whatever_the_client_says_it_is_one_folded_field(helo: String, name: String, cipher: String) {
            let by = "relay.example.com".parse().unwrap();
            let field = Received {
                reverse_name: Some(&name),
                tls: Some(TraceTls { version: &helo, cipher: &cipher }),
                ..received(&by, &helo)
            };
            let content = [Bytes::from(text(&field) + "\r\n")];
            let header = HeaderScan::whole(&content);
            prop_assert_eq!(header.fields().len(), 1);
            prop_assert!(header.has(FieldKind::Received));
            prop_assert!(!header.bare_cr && !header.bare_lf && !header.eight_bit && !header.nul);
            prop_assert_eq!(header.size as usize, content[0].len());
            prop_assert!(content[0].split(|b| *b == b'\n').all(|line| line.len() <= 998));
        }
    }
}
