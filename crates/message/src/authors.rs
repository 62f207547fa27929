//! Who a message says it is from: the addresses of its From and Sender fields.
//!
//! They decide whether mail may leave, so this parser must never read another address than the mail
//! programs of its recipients do. It reads RFC 5322 §3.4 as mail is written today; whatever readers are
//! known to read differently is an error that says so, not a guess.

use crate::header::{Field, FieldKind, Header};
use bytes::Bytes;
use postrider_model::{AddressError, Mailbox};
use smallvec::SmallVec;
use thiserror::Error;

/// Octets of a From or Sender field.
pub const AUTHORS_SIZE_MAX: usize = 16 << 10;
/// Addresses in a From field.
pub const AUTHORS_MAX: usize = 64;
/// Comments within comments.
const COMMENT_DEPTH_MAX: usize = 8;

/// The addresses of From (RFC 5322 §3.6.2), at least one, and of Sender.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authors {
    /// From, in order.
    pub from: SmallVec<[Mailbox; 1]>,
    /// Sender.
    pub sender: Option<Mailbox>,
}

/// Why nobody can say who a message is from. The text is fit for a reply to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AuthorError {
    /// No From field.
    #[error("the message has no From header field")]
    Missing,
    /// Several From or Sender fields.
    #[error("the message has more than one {0} header field")]
    Repeated(&'static str),
    /// NUL, CR or LF where none may be, or a section that was given up on.
    #[error("the message header holds NUL, a bare CR or a bare LF, or is too large")]
    BrokenHeader,
    /// A field too long or with too many addresses.
    #[error("the {0} header field is too long")]
    TooLong(&'static str),
    /// A field without an address.
    #[error("the {0} header field has no address")]
    Empty(&'static str),
    /// Several addresses where one must be.
    #[error("the {0} header field has more than one address")]
    Several(&'static str),
    /// An address that is none.
    #[error("the {0} header field has a bad address: {1}")]
    Address(&'static str, AddressError),
    /// What readers read differently.
    #[error("the {0} header field can be read in more than one way: {1}")]
    Ambiguous(&'static str, &'static str),
}

impl Header {
    /// The addresses of From and Sender.
    ///
    /// # Errors
    /// When there is not exactly one From field and at most one Sender field, or their addresses are not
    /// beyond doubt.
    pub fn authors(&self, content: &[Bytes]) -> Result<Authors, AuthorError> {
        if self.nul || self.bare_cr || self.bare_lf || self.too_large {
            return Err(AuthorError::BrokenHeader);
        }
        let from_field = self.only(FieldKind::From, "From")?.ok_or(AuthorError::Missing)?;
        let from = self.addresses(from_field, content, "From")?;
        let sender = match self.only(FieldKind::Sender, "Sender")? {
            None => None,
            Some(field) => {
                let mut addresses = self.addresses(field, content, "Sender")?;
                if addresses.len() > 1 {
                    return Err(AuthorError::Several("Sender"));
                }
                addresses.pop()
            }
        };
        Ok(Authors { from, sender })
    }

    /// The addresses of all To, Cc and Bcc fields, in order: whom a message that comes without an envelope is
    /// for.
    ///
    /// # Errors
    /// When an address is not beyond doubt, or there are more than `max`.
    pub fn addressees(&self, content: &[Bytes], max: usize) -> Result<Vec<Mailbox>, AuthorError> {
        if self.nul || self.bare_cr || self.bare_lf || self.too_large {
            return Err(AuthorError::BrokenHeader);
        }
        let mut found = Vec::new();
        for field in self.fields() {
            let name = match field.kind {
                FieldKind::To => "To",
                FieldKind::Cc => "Cc",
                FieldKind::Bcc => "Bcc",
                _ => continue,
            };
            let value = self.value(field, content);
            if value.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            found.extend(parse_up_to(&value, name, max)?);
            if found.len() > max {
                return Err(AuthorError::TooLong(name));
            }
        }
        Ok(found)
    }

    fn only(&self, kind: FieldKind, name: &'static str) -> Result<Option<&Field>, AuthorError> {
        if self.count(kind) > 1 { Err(AuthorError::Repeated(name)) } else { Ok(self.first(kind)) }
    }

    fn addresses(
        &self,
        field: &Field,
        content: &[Bytes],
        name: &'static str,
    ) -> Result<SmallVec<[Mailbox; 1]>, AuthorError> {
        if field.range().len() > AUTHORS_SIZE_MAX {
            return Err(AuthorError::TooLong(name));
        }
        parse(&self.value(field, content), name)
    }
}

/// The addresses of a field's value; `name` is the field's, for the errors.
fn parse(value: &[u8], name: &'static str) -> Result<SmallVec<[Mailbox; 1]>, AuthorError> {
    parse_up_to(value, name, AUTHORS_MAX)
}

fn parse_up_to(value: &[u8], name: &'static str, max: usize) -> Result<SmallVec<[Mailbox; 1]>, AuthorError> {
    let value = value.strip_suffix(b"\r\n").unwrap_or(value);
    let mut parser = Parser { value, at: 0, name, max, found: SmallVec::new() };
    parser.list(false)?;
    if parser.found.is_empty() {
        return Err(AuthorError::Empty(name));
    }
    Ok(parser.found)
}

struct Parser<'a> {
    value: &'a [u8],
    at: usize,
    name: &'static str,
    max: usize,
    found: SmallVec<[Mailbox; 1]>,
}

impl<'a> Parser<'a> {
    /// Addresses with commas between, up to the value's end or, in a group, up to its semicolon.
    fn list(&mut self, in_group: bool) -> Result<(), AuthorError> {
        self.space_and_comments()?;
        if self.peek().is_none() || (in_group && self.peek() == Some(b';')) {
            return Ok(());
        }
        loop {
            self.address(in_group)?;
            self.space_and_comments()?;
            match self.peek() {
                None => return Ok(()),
                Some(b';') if in_group => return Ok(()),
                Some(b',') => self.at += 1,
                Some(_) => {
                    return self
                        .ambiguous("something follows an address; quote names that are not plain words");
                }
            }
            self.space_and_comments()?;
        }
    }

    /// A mailbox, with or without a name, or a group.
    fn address(&mut self, in_group: bool) -> Result<(), AuthorError> {
        let start = self.at;
        let mut last_word_end = self.at;
        loop {
            match self.peek() {
                Some(b'<') => return self.angle(),
                Some(b'@') if last_word_end == self.at && self.at > start => {
                    let end = self.domain_end();
                    let text = &self.value[start..end];
                    self.at = end;
                    return self.push(text);
                }
                Some(b'@') => return self.ambiguous("an @ stands where no address ends its first part"),
                Some(b':') if self.at > start && !in_group => return self.group(),
                Some(b'"') => self.quoted()?,
                Some(b) if is_word(b) => self.at += 1,
                None | Some(b',' | b';') if self.at == start => {
                    return self.ambiguous("an address is empty");
                }
                None | Some(b',' | b';') => {
                    return self.ambiguous("a name without an address; quote names that hold a comma");
                }
                Some(_) => return self.ambiguous("a special character stands outside quotes"),
            }
            last_word_end = self.at;
            self.space_and_comments()?;
        }
    }

    /// `<local@domain>`; nothing else may stand between the angles.
    fn angle(&mut self) -> Result<(), AuthorError> {
        self.at += 1;
        let start = self.at;
        while let Some(b) = self.peek() {
            match b {
                b'>' => {
                    let text = &self.value[start..self.at];
                    self.at += 1;
                    return self.push(text);
                }
                b'"' => self.quoted()?,
                b':' if !self.value[start..self.at].contains(&b'[') => {
                    return self.ambiguous("a source route stands between < and >");
                }
                b' ' | b'\t' | b'\r' | b'(' | b'<' | b',' => {
                    return self.ambiguous("more than an address stands between < and >");
                }
                _ => self.at += 1,
            }
        }
        self.ambiguous("a < is not closed")
    }

    /// `name: a@b, c@d;` (RFC 6854 lets From be a group).
    fn group(&mut self) -> Result<(), AuthorError> {
        self.at += 1;
        self.list(true)?;
        if self.peek() != Some(b';') {
            return self.ambiguous("a group is not closed; quote names that hold a colon");
        }
        self.at += 1;
        Ok(())
    }

    /// From an `@`, the end of the domain that follows it.
    fn domain_end(&self) -> usize {
        let rest = &self.value[self.at..];
        let ends = |b: &u8| matches!(b, b' ' | b'\t' | b'\r' | b',' | b';' | b'(' | b'<' | b'>');
        self.at + rest.iter().position(ends).unwrap_or(rest.len())
    }

    fn push(&mut self, text: &[u8]) -> Result<(), AuthorError> {
        if text.is_empty() {
            return Err(AuthorError::Empty(self.name));
        }
        if self.found.len() == self.max {
            return Err(AuthorError::TooLong(self.name));
        }
        let Ok(text) = std::str::from_utf8(text) else {
            return self.ambiguous("an address is not in UTF-8");
        };
        let mailbox: Mailbox = text.parse().map_err(|error| AuthorError::Address(self.name, error))?;
        // Some readers decode an encoded word before they parse the address, and find another one in it.
        if mailbox.local().contains("=?") {
            return self.ambiguous("an encoded word stands in an address");
        }
        self.found.push(mailbox);
        Ok(())
    }

    /// A quoted string; `self.at` is at its first quote.
    fn quoted(&mut self) -> Result<(), AuthorError> {
        self.at += 1;
        loop {
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(());
                }
                Some(b'\\') => self.pair()?,
                Some(b'\r') => self.fold()?,
                Some(b) if b == b'\t' || (b >= 0x20 && b != 0x7f) => self.at += 1,
                Some(_) => return self.ambiguous("a control character stands in it"),
                None => return self.ambiguous("a quote is not closed"),
            }
        }
    }

    fn space_and_comments(&mut self) -> Result<(), AuthorError> {
        let mut depth = 0;
        loop {
            match self.peek() {
                Some(b' ' | b'\t') => self.at += 1,
                Some(b'\r') => self.fold()?,
                Some(b'(') if depth == COMMENT_DEPTH_MAX => {
                    return self.ambiguous("comments are nested too deeply");
                }
                Some(b'(') => {
                    depth += 1;
                    self.at += 1;
                }
                Some(b')') if depth > 0 => {
                    depth -= 1;
                    self.at += 1;
                }
                Some(b'\\') if depth > 0 => self.pair()?,
                None if depth > 0 => return self.ambiguous("a comment is not closed"),
                Some(b) if depth > 0 && (b < 0x20 || b == 0x7f) => {
                    return self.ambiguous("a control character stands in it");
                }
                Some(_) if depth > 0 => self.at += 1,
                _ => return Ok(()),
            }
        }
    }

    /// A backslash and the printable character that it quotes.
    fn pair(&mut self) -> Result<(), AuthorError> {
        match self.value.get(self.at + 1) {
            Some(0x20..=0x7e) => {
                self.at += 2;
                Ok(())
            }
            _ => self.ambiguous("a backslash quotes nothing"),
        }
    }

    /// A line ending within the field. The line it begins must hold more than white space: some readers
    /// take an empty-looking line for the header's end (RFC 5322 §4.2 calls it obsolete).
    fn fold(&mut self) -> Result<(), AuthorError> {
        let rest = &self.value[self.at..];
        let blank =
            rest.get(2..).unwrap_or_default().iter().take_while(|b| matches!(b, b' ' | b'\t')).count();
        match rest.get(2 + blank) {
            Some(b) if blank > 0 && *b != b'\r' => {
                self.at += 2 + blank;
                Ok(())
            }
            _ => self.ambiguous("a folded line is empty"),
        }
    }

    fn peek(&self) -> Option<u8> {
        self.value.get(self.at).copied()
    }

    fn ambiguous<T>(&self, why: &'static str) -> Result<T, AuthorError> {
        Err(AuthorError::Ambiguous(self.name, why))
    }
}

/// A character of an atom, a dot (as in `John Q. Public`, which RFC 5322 §4.1 calls obsolete and everyone
/// writes), or part of a name in UTF-8 or an older encoding.
fn is_word(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b >= 0x80 || b".!#$%&'*+-/=?^_`{|}~".contains(&b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HeaderScan;
    use proptest::prelude::*;

    fn authors(header: &str) -> Result<Authors, AuthorError> {
        let content = [Bytes::from(format!("{header}\r\n\r\nFrom: body@example.org\r\n"))];
        HeaderScan::whole(&content).authors(&content)
    }

    fn check(from: &str, expected: &[&str]) {
        let found = authors(&format!("From: {from}")).unwrap_or_else(|e| panic!("{from}: {e}"));
        let found: Vec<_> = found.from.iter().map(Mailbox::as_str).collect();
        assert_eq!(found, expected, "{from}");
    }

    fn refused(from: &str) {
        match authors(&format!("From: {from}")) {
            Err(
                AuthorError::Ambiguous("From", _)
                | AuthorError::Address("From", _)
                | AuthorError::Empty("From"),
            ) => {}
            other => panic!("{from}: {other:?}"),
        }
    }

    #[test]
    fn the_forms_that_people_write_are_read() {
        check("a@b.example", &["a@b.example"]);
        check("  a@b.example  ", &["a@b.example"]);
        check("<a@b.example>", &["a@b.example"]);
        check("Ada Lovelace <a@b.example>", &["a@b.example"]);
        check("Ada Q. Lovelace<a@b.example>", &["a@b.example"]);
        check("\"Lovelace, Ada\" <a@b.example>", &["a@b.example"]);
        check("\"evil@example.net\" <a@b.example>", &["a@b.example"]);
        check("\"a \\\" <x@y.example>\" <a@b.example>", &["a@b.example"]);
        check("=?utf-8?q?J=C3=BCrgen?=\r\n =?utf-8?q?_X?= <a@b.example>", &["a@b.example"]);
        check("Jürgen <jürgen@bücher.example>", &["jürgen@bücher.example"]);
        check("a@b.example (Ada (née Byron) \\) L)", &["a@b.example"]);
        check("(x) Ada (y) <a@b.example> (z)", &["a@b.example"]);
        check("a@b.example, \"c d\"@e.example", &["a@b.example", "\"c d\"@e.example"]);
        check("Team: Ada <a@b.example>, c@d.example;", &["a@b.example", "c@d.example"]);
        check("a@[192.0.2.1], <b@[IPv6:2001:db8::1]>", &["a@[192.0.2.1]", "b@[IPv6:2001:db8::1]"]);
    }

    #[test]
    fn what_two_readers_read_differently_is_refused() {
        for from in [
            "",
            " ",
            ",",
            "Ada",
            "a@b.example,",
            ",a@b.example",
            "a@b.example,,c@d.example",
            "a@b.example c@d.example",
            "a@b.example <c@d.example>",
            "<a@b.example> c@d.example",
            "<a@b.example><c@d.example>",
            "<<a@b.example>>",
            "<a@b.example",
            "a@b.example>",
            "<>",
            "Ada <>",
            "Ada <@relay.example:a@b.example>",
            "<@relay.example,@c.example:a@b.example>",
            "a(comment)@b.example",
            "a@(comment)b.example",
            "a @b.example",
            "a@ b.example",
            "a@b.example@c.example",
            "<a@b.example@c.example>",
            "< a@b.example >",
            "<a@b.example(x)>",
            "Foo, Inc. <a@b.example>",
            "Foo: <a@b.example>",
            "Foo: a@b.example; bar",
            "Foo: Bar: a@b.example;;",
            "undisclosed:;",
            "\"Ada <a@b.example>",
            "(Ada <a@b.example>",
            "((((((((((x)))))))))) a@b.example",
            "Ada [x] <a@b.example>",
            "Ada \\<x@y.example> <a@b.example>",
            "=?utf-8?q?a=40evil.example=3e?=@b.example",
            "<=?utf-8?q?a=40evil.example=3e?=@b.example>",
            "a@b.example\x01",
            "\"x\x01\" <a@b.example>",
            "Ada\r\n \r\n <a@b.example>",
            "a@b.example\r\n ",
            "a@b.example;",
            "a\u{7f}@b.example",
            "a@b..example",
        ] {
            refused(from);
        }
    }

    #[test]
    fn exactly_one_from_field_speaks() {
        assert_eq!(authors("To: a@b.example"), Err(AuthorError::Missing));
        assert_eq!(authors("From: a@b.example\r\nfrom : c@d.example"), Err(AuthorError::Repeated("From")));
        assert_eq!(
            authors("From: a@b.example\r\nSender: c@d.example\r\nSender: c@d.example"),
            Err(AuthorError::Repeated("Sender"))
        );
        assert_eq!(
            authors("From: a@b.example\r\nSender: c@d.example, e@f.example"),
            Err(AuthorError::Several("Sender"))
        );
        assert_eq!(authors("From: a@b.example\r\nX: \0"), Err(AuthorError::BrokenHeader));
        assert_eq!(authors("X: y\nFrom: a@b.example"), Err(AuthorError::BrokenHeader));
        assert_eq!(authors("X: y\rFrom: a@b.example"), Err(AuthorError::BrokenHeader));
        let both = authors("Sender: s@d.example\r\nFrom: a@b.example").unwrap();
        assert_eq!(both.sender.unwrap().as_str(), "s@d.example");
    }

    #[test]
    fn a_from_beyond_the_bounds_is_refused() {
        let many = vec!["a@b.example"; AUTHORS_MAX + 1].join(", ");
        assert_eq!(authors(&format!("From: {many}")), Err(AuthorError::TooLong("From")));
        let long = "x".repeat(AUTHORS_SIZE_MAX);
        assert_eq!(authors(&format!("From: {long} <a@b.example>")), Err(AuthorError::TooLong("From")));
    }

    proptest! {
        #[test]
        fn any_value_is_read_or_refused_without_a_panic(
            words in proptest::collection::vec(
                proptest::sample::select(vec![
                    "a@b.example", "<", ">", "@", ",", ":", ";", "(", ")", "\"", "\\", " ", "\r\n ", "\t", "x", "ü", ".",
                ]),
                0..24,
            )
        ) {
            if let Ok(found) = authors(&format!("From: {}", words.concat())) {
                prop_assert!(!found.from.is_empty());
            }
        }

        #[test]
        fn any_octets_are_read_or_refused_without_a_panic(value: Vec<u8>) {
            let _ = parse(&value, "From");
        }
    }
}
