//! What a server offers, from its reply to EHLO (RFC 5321 §4.1.1.1).

use crate::reply::RawReply;

/// The extensions a server offers that we can use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extensions {
    /// SIZE (RFC 1870): offered, and the largest message taken; 0 says no figure.
    pub size: Option<u64>,
    /// PIPELINING (RFC 2920).
    pub pipelining: bool,
    /// 8BITMIME (RFC 6152).
    pub eight_bit_mime: bool,
    /// SMTPUTF8 (RFC 6531).
    pub smtputf8: bool,
    /// CHUNKING (RFC 3030).
    pub chunking: bool,
    /// BINARYMIME (RFC 3030).
    pub binary_mime: bool,
    /// DSN (RFC 3461).
    pub dsn: bool,
    /// ENHANCEDSTATUSCODES (RFC 2034).
    pub enhanced_status_codes: bool,
    /// STARTTLS (RFC 3207).
    pub starttls: bool,
    /// REQUIRETLS (RFC 8689).
    pub requires_tls: bool,
    /// AUTH mechanisms (RFC 4954).
    pub auth: Mechanisms,
    /// LIMITS RCPTMAX (RFC 9422): recipients in one transaction.
    pub recipients_max: Option<usize>,
    /// LIMITS MAILMAX: transactions in one session.
    pub messages_max: Option<usize>,
}

/// The AUTH mechanisms of a server that we speak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mechanisms {
    /// PLAIN (RFC 4616).
    pub plain: bool,
    /// LOGIN (no RFC; draft-murchison-sasl-login).
    pub login: bool,
    /// SCRAM-SHA-256 (RFC 7677).
    pub scram_sha_256: bool,
    /// Some mechanism was offered, perhaps one we do not speak.
    pub any: bool,
}

impl Extensions {
    /// Reads the reply to EHLO or LHLO. Unknown keywords, and known ones with odd parameters, count as
    /// not offered.
    #[must_use]
    pub fn parse(reply: RawReply<'_>) -> Self {
        let mut extensions = Extensions::default();
        for line in reply.lines().skip(1) {
            extensions.line(line);
        }
        extensions
    }

    fn line(&mut self, line: &[u8]) {
        // `AUTH=PLAIN` is an old form that some servers still send for old clients.
        let mut words = line.split(|&b| b == b' ' || b == b'=' || b == b'\t').filter(|w| !w.is_empty());
        let Some(keyword) = words.next() else { return };
        let is = |name: &str| keyword.eq_ignore_ascii_case(name.as_bytes());
        match keyword.len() {
            3 if is("DSN") => self.dsn = true,
            4 if is("SIZE") => self.size = Some(words.next().and_then(number).unwrap_or(0)),
            4 if is("AUTH") => words.for_each(|word| self.auth.add(word)),
            6 if is("LIMITS") => self.limits(words),
            8 if is("8BITMIME") => self.eight_bit_mime = true,
            8 if is("SMTPUTF8") => self.smtputf8 = true,
            8 if is("CHUNKING") => self.chunking = true,
            8 if is("STARTTLS") => self.starttls = true,
            10 if is("PIPELINING") => self.pipelining = true,
            10 if is("BINARYMIME") => self.binary_mime = true,
            10 if is("REQUIRETLS") => self.requires_tls = true,
            19 if is("ENHANCEDSTATUSCODES") => self.enhanced_status_codes = true,
            _ => {}
        }
    }

    /// `LIMITS RCPTMAX=20 MAILMAX=5`, its words already split at the equals signs. A limit of 0 makes no
    /// sense and is passed over.
    fn limits<'a>(&mut self, mut words: impl Iterator<Item = &'a [u8]>) {
        while let Some(name) = words.next() {
            let target = if name.eq_ignore_ascii_case(b"RCPTMAX") {
                &mut self.recipients_max
            } else if name.eq_ignore_ascii_case(b"MAILMAX") {
                &mut self.messages_max
            } else {
                continue;
            };
            let value = words.next().and_then(number).filter(|&n| n > 0);
            *target = value.map(|n| usize::try_from(n).unwrap_or(usize::MAX));
        }
    }
}

impl Mechanisms {
    fn add(&mut self, word: &[u8]) {
        self.any = true;
        self.plain |= word.eq_ignore_ascii_case(b"PLAIN");
        self.login |= word.eq_ignore_ascii_case(b"LOGIN");
        self.scram_sha_256 |= word.eq_ignore_ascii_case(b"SCRAM-SHA-256");
    }
}

fn number(word: &[u8]) -> Option<u64> {
    if word.is_empty() || word.len() > 20 || !word.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(word).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reply::ReplyParser;

    fn parse(lines: &[&str]) -> Extensions {
        let mut wire = String::from("250-mx.example\r\n");
        for line in lines {
            wire += &format!("250-{line}\r\n");
        }
        wire += "250 HELP\r\n";
        let mut parser = ReplyParser::default();
        assert_eq!(parser.next(&mut wire.as_bytes()), Ok(Some(250)));
        Extensions::parse(parser.reply())
    }

    #[test]
    fn keywords_are_read_in_any_case() {
        let found =
            parse(&["size 1000", "Pipelining", "8bitmime", "DSN", "STARTTLS", "CHUNKING", "BINARYMIME"]);
        let expected = Extensions {
            size: Some(1000),
            pipelining: true,
            eight_bit_mime: true,
            dsn: true,
            starttls: true,
            chunking: true,
            binary_mime: true,
            ..Extensions::default()
        };
        assert_eq!(found, expected);
        assert!(parse(&["SMTPUTF8"]).smtputf8 && parse(&["REQUIRETLS"]).requires_tls);
        assert!(parse(&["ENHANCEDSTATUSCODES"]).enhanced_status_codes);
    }

    #[test]
    fn a_size_without_a_figure_is_no_limit() {
        assert_eq!(parse(&["SIZE"]).size, Some(0));
        assert_eq!(parse(&["SIZE many"]).size, Some(0));
        assert_eq!(parse(&["SIZE 99999999999999999999999"]).size, Some(0));
        assert_eq!(parse(&[]).size, None);
    }

    #[test]
    fn both_forms_of_auth_are_read() {
        let auth = parse(&["AUTH GSSAPI login"]).auth;
        assert_eq!(auth, Mechanisms { login: true, any: true, ..Mechanisms::default() });
        let auth = parse(&["AUTH=PLAIN", "AUTH SCRAM-SHA-256"]).auth;
        assert!(auth.plain && auth.scram_sha_256 && !auth.login);
        assert!(!parse(&["AUTH"]).auth.any);
    }

    #[test]
    fn limits_are_read_and_nonsense_passed_over() {
        let found = parse(&["LIMITS RCPTMAX=20 RCPTDOMAINMAX=3 MAILMAX=7"]);
        assert_eq!((found.recipients_max, found.messages_max), (Some(20), Some(7)));
        let found = parse(&["LIMITS RCPTMAX=0 MAILMAX=x RCPTMAX"]);
        assert_eq!((found.recipients_max, found.messages_max), (None, None));
    }

    #[test]
    fn the_first_line_is_a_name_and_never_a_keyword() {
        let mut parser = ReplyParser::default();
        assert_eq!(parser.next(&mut &b"250 STARTTLS\r\n"[..]), Ok(Some(250)));
        assert_eq!(Extensions::parse(parser.reply()), Extensions::default());
    }
}
