//! A name and an address, as people and programs write them: `Shop <a@example.com>`.

use crate::words;
use postrider_model::{AddressError, Mailbox};
use thiserror::Error;

/// Octets of a display name.
pub const NAME_SIZE_MAX: usize = 320;
/// Parties that one text may list.
pub const PARTIES_MAX: usize = 1_000;

/// Somebody a message is from or goes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Party {
    /// The display name; empty if there is none.
    pub name: Box<str>,
    /// The address.
    pub mailbox: Mailbox,
}

/// Why a text is no party.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PartyError {
    /// An octet that could begin a new header line in some reader, or that nobody sees.
    #[error("it holds a line break or another control character")]
    Control,
    /// Nothing there.
    #[error("it is empty")]
    Empty,
    /// Angles, quotes or commas that do not fit together.
    #[error(
        "it is not of the form \"name@example.com\" or \"Name <name@example.com>\"; quote names that hold a comma"
    )]
    Form,
    /// A display name that is too long.
    #[error("the name is longer than {NAME_SIZE_MAX} octets")]
    NameTooLong,
    /// More parties than one field takes.
    #[error("it lists more than {PARTIES_MAX} addresses")]
    TooMany,
    /// The address itself.
    #[error("{0}")]
    Address(#[from] AddressError),
}

/// CR, LF, what some programs take for them (U+0085, U+2028, U+2029), NUL and all other controls.
pub(crate) fn is_forbidden(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}')
}

/// True if a text may not stand in a header field.
pub(crate) fn has_forbidden(text: &str) -> bool {
    // Every forbidden character beyond ASCII begins with one of two octets, which most texts have not.
    text.bytes().any(|b| b < 0x20 || b == 0x7f || b == 0xc2 || b == 0xe2) && text.chars().any(is_forbidden)
}

impl From<Mailbox> for Party {
    fn from(mailbox: Mailbox) -> Self {
        Party { name: "".into(), mailbox }
    }
}

impl std::str::FromStr for Party {
    type Err = PartyError;

    fn from_str(text: &str) -> Result<Self, PartyError> {
        let mut parties = Party::parse_list(text)?;
        match (parties.pop(), parties.is_empty()) {
            (Some(party), true) => Ok(party),
            (Some(_), false) => Err(PartyError::Form),
            (None, _) => Err(PartyError::Empty),
        }
    }
}

impl Party {
    /// With a name, which is checked.
    ///
    /// # Errors
    /// When the name may not stand in a header field.
    pub fn new(name: &str, mailbox: Mailbox) -> Result<Self, PartyError> {
        if has_forbidden(name) {
            return Err(PartyError::Control);
        }
        let name = name.trim();
        if name.len() > NAME_SIZE_MAX {
            return Err(PartyError::NameTooLong);
        }
        Ok(Party { name: name.into(), mailbox })
    }

    /// Reads parties with commas between.
    ///
    /// # Errors
    /// What is wrong with the first one that is none.
    pub fn parse_list(text: &str) -> Result<Vec<Party>, PartyError> {
        if has_forbidden(text) {
            return Err(PartyError::Control);
        }
        let mut parties = Vec::new();
        let mut rest = text.trim_matches(' ');
        while !rest.is_empty() {
            if parties.len() == PARTIES_MAX {
                return Err(PartyError::TooMany);
            }
            let (party, after) = read(rest)?;
            parties.push(party);
            rest = match after.trim_matches(' ').strip_prefix(',') {
                // A comma at the end is no address less.
                Some(more) => more.trim_matches(' '),
                None if after.trim_matches(' ').is_empty() => "",
                None => return Err(PartyError::Form),
            };
        }
        Ok(parties)
    }

    /// Appends `Name <address>`, or the address alone.
    pub(crate) fn write(&self, out: &mut String) {
        let address =
            if self.mailbox.needs_smtputf8() { self.mailbox.as_str().into() } else { self.mailbox.to_wire() };
        if self.name.is_empty() {
            out.push_str(&address);
            return;
        }
        let plain = |b: u8| b.is_ascii_alphanumeric() || b" !#$%&'*+-/=?^_`{|}~".contains(&b);
        if !self.name.is_ascii() || self.name.contains("=?") {
            out.push_str(&words::encode_always(&self.name));
        } else if self.name.bytes().all(plain) && !self.name.contains("  ") {
            out.push_str(&self.name);
        } else {
            out.push('"');
            for c in self.name.chars() {
                if matches!(c, '"' | '\\') {
                    out.push('\\');
                }
                out.push(c);
            }
            out.push('"');
        }
        out.push_str(" <");
        out.push_str(&address);
        out.push('>');
    }
}

/// One party at the start of a text that is not empty; what follows it.
fn read(text: &str) -> Result<(Party, &str), PartyError> {
    let (mut quoted, mut escaped, mut angle) = (false, false, None);
    let mut end = text.len();
    for (at, b) in text.bytes().enumerate() {
        match b {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ if quoted => {}
            b'<' if angle.is_some() => return Err(PartyError::Form),
            b'<' => angle = Some(at),
            b'>' if angle.is_none() => return Err(PartyError::Form),
            b'>' => {
                end = at;
                break;
            }
            b',' if angle.is_some() => return Err(PartyError::Form),
            b',' => {
                end = at;
                break;
            }
            _ => {}
        }
    }
    if quoted {
        return Err(PartyError::Form);
    }
    match angle {
        None => {
            let address = text[..end].trim_matches(' ');
            if address.is_empty() {
                return Err(PartyError::Empty);
            }
            // A name and an address without angles is the usual mistake.
            if !address.starts_with('"') && address.contains(' ') {
                return Err(PartyError::Form);
            }
            Ok((address.parse::<Mailbox>()?.into(), &text[end..]))
        }
        Some(_) if end == text.len() => Err(PartyError::Form),
        Some(angle) => {
            let mailbox = text[angle + 1..end].trim_matches(' ').parse()?;
            Ok((Party::new(&unquoted(text[..angle].trim_matches(' ')), mailbox)?, &text[end + 1..]))
        }
    }
}

/// A display name without its quotes.
fn unquoted(name: &str) -> String {
    let Some(inner) = name.strip_prefix('"').and_then(|inner| inner.strip_suffix('"')) else {
        return name.to_owned();
    };
    let mut out = String::with_capacity(inner.len());
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        // A backslash stands for what follows it.
        out.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(text: &str, expected: &[(&str, &str)]) {
        let parties = Party::parse_list(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        let found: Vec<_> = parties.iter().map(|party| (&*party.name, party.mailbox.as_str())).collect();
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn parties_are_read_as_people_write_them() {
        check("a@example.com", &[("", "a@example.com")]);
        check(" Shop <a@example.com> ", &[("Shop", "a@example.com")]);
        check("<a@example.com>", &[("", "a@example.com")]);
        check(
            "\"Doe, Jane \\\"JD\\\"\" <a@b.example>, c@d.example",
            &[("Doe, Jane \"JD\"", "a@b.example"), ("", "c@d.example")],
        );
        check("Jürgen Groß <a@bücher.example>,", &[("Jürgen Groß", "a@bücher.example")]);
        check("\"a b\"@example.com", &[("", "\"a b\"@example.com")]);
        check("", &[]);
    }

    #[test]
    fn what_is_no_party_says_why() {
        let check = |text: &str, error| assert_eq!(Party::parse_list(text), Err(error), "{text:?}");
        check("a@b\r\nBcc: c@d", PartyError::Control);
        check("x\u{85} <a@b>", PartyError::Control);
        check("x\u{2028} <a@b>", PartyError::Control);
        check("Shop a@example.com", PartyError::Form);
        check("Shop <a@example.com", PartyError::Form);
        check("a@b> c", PartyError::Form);
        check("Doe, Jane <a@b.example>", PartyError::Address(AddressError::NoDomain));
        check("<a@b> x", PartyError::Form);
        check(",a@b", PartyError::Empty);
        check("\"x <a@b>", PartyError::Form);
        check(&format!("{} <a@b>", "x".repeat(321)), PartyError::NameTooLong);
        assert_eq!("a@b, c@d".parse::<Party>(), Err(PartyError::Form));
    }

    proptest! {
        #[test]
        fn a_written_party_is_read_as_the_same(name in "[^\\p{C}\u{2028}\u{2029}]{0,60}") {
            let party = Party::new(&name, "a@example.com".parse().unwrap()).unwrap();
            let mut out = String::new();
            party.write(&mut out);
            let again: Party = out.parse().unwrap();
            let read = crate::decode_words(&again.name, 1_000);
            let squeezed = |text: &str| text.split(' ').filter(|w| !w.is_empty()).collect::<Vec<_>>().join(" ");
            prop_assert_eq!(&again.mailbox, &party.mailbox);
            prop_assert!(out.is_ascii());
            if name.is_ascii() && !name.contains("=?") {
                prop_assert_eq!(&*again.name, name.trim());
            } else {
                prop_assert_eq!(squeezed(&read), squeezed(&party.name));
            }
        }

        #[test]
        fn any_text_is_a_list_or_an_error(text: String) {
            if let Ok(parties) = Party::parse_list(&text) {
                prop_assert!(!text.chars().any(is_forbidden));
                prop_assert!(parties.iter().all(|party| party.name.len() <= NAME_SIZE_MAX));
            }
        }
    }
}
