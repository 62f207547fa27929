//! Letters and how they come out at the other end.

/// A letter with everything that a careless relay spoils: lines that begin with dots, long lines, trailing blanks,
/// empty lines at the end, header fields in odd case and order, a tab, a folded field.
pub const LETTER: &str = concat!(
    "From: Ann <ann@example.com>\r\n",
    "to: Bob <bob@example.net>\r\n",
    "Subject: A letter\r\n\tfolded\r\n",
    "Date: Tue, 24 Nov 2026 12:00:00 +0000\r\n",
    "Message-ID: <letter@example.com>\r\n",
    "X-Blank:  two before, one after \r\n",
    "MIME-Version: 1.0\r\n",
    "Content-Type: text/plain; charset=us-ascii\r\n",
    "\r\n",
    ".\r\n",
    "..\r\n",
    ".dots and ..more\r\n",
    "From here on it is not a mailbox separator.\r\n",
    "trailing blanks  \r\n",
    "\ttab\r\n",
    "\r\n",
    "\r\n",
);

/// [`LETTER`] with another subject, by which it is found again.
#[must_use]
pub fn letter(subject: &str) -> Vec<u8> {
    LETTER.replace("A letter", subject).into_bytes()
}

/// True when what was received is the letter, octet for octet, below fields that relays put on top.
#[must_use]
pub fn ends_with_letter(received: &[u8], letter: &[u8]) -> bool {
    received.strip_suffix(letter).is_some_and(|added| {
        added.is_empty()
            || (added.ends_with(b"\n")
                && !added.windows(4).any(|four| four == b"\r\n\r\n")
                && is_header(added))
    })
}

fn is_header(added: &[u8]) -> bool {
    let text = String::from_utf8_lossy(added);
    text.lines().all(|line| line.starts_with([' ', '\t']) || line.contains(':'))
}

/// A received message from the letter's first field on.
#[must_use]
pub fn without_added_fields<'a>(received: &'a [u8], first_field: &str) -> &'a [u8] {
    let found = received.windows(first_field.len()).position(|part| part == first_field.as_bytes());
    &received[found.unwrap_or(0)..]
}
