//! Mail addresses as they stand in an envelope (RFC 5321 §4.1.2, RFC 6531 §3.3).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use thiserror::Error;

/// Why a text is no mailbox or no domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AddressError {
    /// No `@` outside quotes.
    #[error("the address has no @ and domain")]
    NoDomain,
    /// Nothing before the `@`.
    #[error("the part before the @ is empty")]
    EmptyLocal,
    /// A local part that is neither a dot-string nor a quoted string.
    #[error("the part before the @ has a character or dot where none may stand; quote it")]
    Local,
    /// More than 64 octets before the `@` (RFC 5321 §4.5.3.1.1).
    #[error("the part before the @ is longer than 64 octets")]
    LocalTooLong,
    /// A domain that is neither a host name nor an address literal.
    #[error("the domain is neither a host name nor an address literal")]
    Domain,
    /// More than 255 octets of domain (§4.5.3.1.2) or 63 of a label (RFC 1035 §2.3.4).
    #[error("the domain or one of its labels is too long")]
    DomainTooLong,
    /// A domain that ends in a number, as no domain does (RFC 3696 §2); resolvers may take it for an address.
    #[error("a domain does not end in a number; an IP address stands in brackets, as in user@[192.0.2.1]")]
    DomainNumeric,
    /// More than 254 octets in all, which with its angle brackets is the longest path (§4.5.3.1.3).
    #[error("the address is longer than 254 octets")]
    TooLong,
}

/// Octets of a mailbox.
const MAILBOX_SIZE_MAX: usize = 254;

/// A domain in the form in which it is compared and looked up: lower case, A-labels; or an address
/// literal such as `[192.0.2.1]` or `[IPv6:2001:db8::1]`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Domain(Box<str>);

impl Domain {
    /// The domain's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The address, if this is an address literal.
    #[must_use]
    pub fn literal(&self) -> Option<IpAddr> {
        literal(&self.0)
    }

    /// True if this is `other` or a subdomain of it.
    #[must_use]
    pub fn is_within(&self, other: &Domain) -> bool {
        self.0.strip_suffix(&*other.0).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    }
}

impl FromStr for Domain {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if text.starts_with('[') {
            return match literal(text) {
                Some(IpAddr::V4(ip)) => Ok(Domain(format!("[{ip}]").into())),
                Some(IpAddr::V6(ip)) => Ok(Domain(format!("[IPv6:{ip}]").into())),
                None => Err(AddressError::Domain),
            };
        }
        if text.is_ascii() {
            check_host_name(text)?;
            return Ok(Domain(text.to_ascii_lowercase().into_boxed_str()));
        }
        let ascii = idna::domain_to_ascii_cow(text.as_bytes(), idna::AsciiDenyList::STD3)
            .map_err(|_| AddressError::Domain)?;
        check_host_name(&ascii)?;
        Ok(Domain(ascii.into_owned().into_boxed_str()))
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Domain({})", self.0)
    }
}

/// A mailbox: local part and domain. The text is kept as the client wrote it, the domain also in the
/// form in which it is compared.
#[derive(Clone)]
pub struct Mailbox {
    text: Box<str>,
    at: u16,
    domain: Domain,
}

impl Mailbox {
    /// The local part as written, with its quotes if it has any. Case is significant (§2.4).
    #[must_use]
    pub fn local(&self) -> &str {
        &self.text[..usize::from(self.at)]
    }

    /// The domain, normalised.
    #[must_use]
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// The whole address as written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// True if the local part holds other than ASCII, so that every hop needs SMTPUTF8 (RFC 6531 §3.2).
    #[must_use]
    pub fn needs_smtputf8(&self) -> bool {
        !self.local().is_ascii()
    }

    /// The address with the domain in A-labels, for a hop without SMTPUTF8 or with.
    #[must_use]
    pub fn to_wire(&self) -> std::borrow::Cow<'_, str> {
        let written = &self.text[usize::from(self.at) + 1..];
        if written.is_ascii() {
            (&*self.text).into()
        } else {
            format!("{}@{}", self.local(), self.domain).into()
        }
    }
}

/// The same local part and the same domain, whatever the domain's case or script.
impl PartialEq for Mailbox {
    fn eq(&self, other: &Self) -> bool {
        self.local() == other.local() && self.domain == other.domain
    }
}

impl Eq for Mailbox {}

impl std::hash::Hash for Mailbox {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.local().hash(state);
        self.domain.hash(state);
    }
}

impl FromStr for Mailbox {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let at = end_of_local(text)?;
        if at > 64 {
            return Err(AddressError::LocalTooLong);
        }
        // Line ends to some programs and invisible to people (RFC 6531 allows them, nobody has them).
        // Nor may what looks like a space: some readers trim it, and see another address.
        let hidden = |c: char| c.is_control() || !c.is_ascii() && c.is_whitespace();
        if !text[..at].is_ascii() && text[..at].chars().any(hidden) {
            return Err(AddressError::Local);
        }
        let domain: Domain = text[at + 1..].parse()?;
        // Also in the form in which it goes on the wire, whose A-labels may be longer than the U-labels.
        if text.len().max(at + 1 + domain.as_str().len()) > MAILBOX_SIZE_MAX {
            return Err(AddressError::TooLong);
        }
        // Invariant: `at` is at most 64.
        Ok(Mailbox { text: text.into(), at: u16::try_from(at).unwrap_or(64), domain })
    }
}

impl fmt::Display for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mailbox({})", self.text)
    }
}

crate::text::text_deserialize!(Mailbox);
crate::text::text_deserialize!(Domain);

impl serde::Serialize for Mailbox {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl serde::Serialize for Domain {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// The index of the `@` that ends the local part, which is a dot-string or a quoted string (§4.1.2).
fn end_of_local(text: &str) -> Result<usize, AddressError> {
    let bytes = text.as_bytes();
    if bytes.first() == Some(&b'"') {
        let mut i = 1;
        loop {
            match bytes.get(i) {
                None => return Err(AddressError::Local),
                Some(b'"') => break,
                // quoted-pairSMTP: a backslash and a printable character or space.
                Some(b'\\') if bytes.get(i + 1).is_some_and(|b| (0x20..0x7f).contains(b)) => i += 2,
                Some(b'\\' | 0..=0x1f | 0x7f) => return Err(AddressError::Local),
                Some(_) => i += 1,
            }
        }
        return match bytes.get(i + 1) {
            Some(b'@') if text[i..].len() > 2 => Ok(i + 1),
            Some(b'@') | None => Err(AddressError::NoDomain),
            Some(_) => Err(AddressError::Local),
        };
    }
    let mut after_dot = true;
    for (i, &b) in bytes.iter().enumerate() {
        match b {
            b'@' if i == 0 => return Err(AddressError::EmptyLocal),
            b'@' if after_dot => return Err(AddressError::Local),
            b'@' if i + 1 == bytes.len() => return Err(AddressError::NoDomain),
            b'@' => return Ok(i),
            b'.' if after_dot => return Err(AddressError::Local),
            b'.' => after_dot = true,
            _ if is_atext(b) || b >= 0x80 => after_dot = false,
            _ => return Err(AddressError::Local),
        }
    }
    Err(AddressError::NoDomain)
}

fn is_atext(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~".contains(&b)
}

/// Letters, digits, hyphens; underscores too, which stand in the names of real mail hosts.
fn check_host_name(text: &str) -> Result<(), AddressError> {
    if text.len() > 255 {
        return Err(AddressError::DomainTooLong);
    }
    let last = text.rsplit('.').next().unwrap_or_default();
    if !last.is_empty() && last.bytes().all(|b| b.is_ascii_digit()) {
        return Err(AddressError::DomainNumeric);
    }
    for label in text.split('.') {
        if label.len() > 63 {
            return Err(AddressError::DomainTooLong);
        }
        let inside = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        if label.is_empty() || label.starts_with('-') || label.ends_with('-') || !label.bytes().all(inside) {
            return Err(AddressError::Domain);
        }
    }
    Ok(())
}

/// `[192.0.2.1]` or `[IPv6:…]` (§4.1.3).
fn literal(text: &str) -> Option<IpAddr> {
    let inner = text.strip_prefix('[')?.strip_suffix(']')?;
    match inner.get(..5) {
        Some(tag) if tag.eq_ignore_ascii_case("ipv6:") => inner[5..].parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        _ => inner.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(text: &str, expected: Result<(&str, &str), AddressError>) {
        let found = text.parse::<Mailbox>();
        match expected {
            Ok((local, domain)) => {
                let mailbox = found.unwrap_or_else(|e| panic!("{text}: {e}"));
                assert_eq!((mailbox.local(), mailbox.domain().as_str()), (local, domain));
            }
            Err(error) => assert_eq!(found.err(), Some(error), "{text}"),
        }
    }

    #[test]
    fn mailboxes_are_split_and_domains_normalised() {
        check("a@b", Ok(("a", "b")));
        check("Ada.Lovelace+x@Example.COM", Ok(("Ada.Lovelace+x", "example.com")));
        check("\"a b\\\"@c\"@example.com", Ok(("\"a b\\\"@c\"", "example.com")));
        check("\"\"@example.com", Ok(("\"\"", "example.com")));
        check("jürgen@bücher.example", Ok(("jürgen", "xn--bcher-kva.example")));
        check("a@[192.0.2.1]", Ok(("a", "[192.0.2.1]")));
        check("a@[ipv6:2001:DB8::1]", Ok(("a", "[IPv6:2001:db8::1]")));
        check("a@_srv.example", Ok(("a", "_srv.example")));
    }

    #[test]
    fn what_is_no_mailbox_says_why() {
        check("", Err(AddressError::NoDomain));
        check("postmaster", Err(AddressError::NoDomain));
        check("a@", Err(AddressError::NoDomain));
        check("@example.com", Err(AddressError::EmptyLocal));
        check("a..b@example.com", Err(AddressError::Local));
        check(".a@example.com", Err(AddressError::Local));
        check("a.@example.com", Err(AddressError::Local));
        check("a b@example.com", Err(AddressError::Local));
        check("a@b@example.com", Err(AddressError::Domain));
        check("\"a\"b@example.com", Err(AddressError::Local));
        check("\"a\r\nRCPT\"@example.com", Err(AddressError::Local));
        check("a@example..com", Err(AddressError::Domain));
        check("a@-example.com", Err(AddressError::Domain));
        check("a@example.com.", Err(AddressError::Domain));
        check("a@[192.0.2.256]", Err(AddressError::Domain));
        check("a@exa\0mple.com", Err(AddressError::Domain));
        check(&format!("{}@example.com", "a".repeat(65)), Err(AddressError::LocalTooLong));
        check(&format!("a@{}.com", "b".repeat(64)), Err(AddressError::DomainTooLong));
        check(&format!("a@{}com", "b.".repeat(125)), Err(AddressError::TooLong));
        check(
            &format!("{}@{}com", "a".repeat(60), "\u{fc}bbbbbbbbbbbbbbb.".repeat(10)),
            Err(AddressError::TooLong),
        );
        check("a@192.0.2.1", Err(AddressError::DomainNumeric));
        check("a@example.1", Err(AddressError::DomainNumeric));
        check("ü\u{85}@example.com", Err(AddressError::Local));
        check("ü\u{2028}@example.com", Err(AddressError::Local));
        check("\u{a0}a@example.com", Err(AddressError::Local));
    }

    #[test]
    fn a_subdomain_is_within_and_a_lookalike_is_not() {
        let domain = |text: &str| text.parse::<Domain>().unwrap();
        assert!(domain("example.com").is_within(&domain("EXAMPLE.com")));
        assert!(domain("a.b.example.com").is_within(&domain("example.com")));
        assert!(!domain("badexample.com").is_within(&domain("example.com")));
        assert!(!domain("com").is_within(&domain("example.com")));
    }

    proptest! {
        #[test]
        fn any_text_is_accepted_or_refused_without_a_panic(text: String) {
            if let Ok(mailbox) = text.parse::<Mailbox>() {
                let again: Mailbox = mailbox.as_str().parse().unwrap();
                prop_assert_eq!(again, mailbox);
            }
        }
    }
}
