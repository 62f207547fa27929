//! The envelope of a message: what MAIL and RCPT carried.

use crate::Mailbox;

/// What the client declared of its octets (RFC 6152, RFC 3030).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BodyKind {
    /// `BODY=7BIT`, or nothing declared.
    #[default]
    SevenBit,
    /// `BODY=8BITMIME`.
    EightBitMime,
    /// `BODY=BINARYMIME`: lines need not end in CRLF; only BDAT can carry it.
    BinaryMime,
}

/// The form in which content is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// Lines end in CRLF and a dot at the start of a line is doubled (RFC 5321 §4.5.2): ready for DATA.
    /// The final `.` line is not part of the content.
    Stuffed,
    /// Lines end in CRLF, dots are as they are: ready for BDAT.
    Plain,
    /// Any octets (BINARYMIME).
    Binary,
}

/// `RET=`: how much of the message a failure DSN returns (RFC 3461 §4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ret {
    /// The whole message.
    Full,
    /// Its header section.
    Headers,
}

/// `NOTIFY=`: when a DSN is wanted (RFC 3461 §4.1). Absent is not the same as any value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notify {
    /// Never, whatever happens.
    Never,
    /// On the events named.
    On {
        /// On delivery, or on relay to a host without DSN.
        success: bool,
        /// On final failure.
        failure: bool,
        /// When delivery is delayed.
        delay: bool,
    },
}

/// The envelope of one message, without its recipients.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Envelope {
    /// Where bounces go; `None` is the null reverse-path `<>`.
    pub reverse_path: Option<Mailbox>,
    /// `BODY=`.
    pub body: BodyKind,
    /// `SMTPUTF8`: the headers may, or an address does, hold UTF-8 (RFC 6531).
    pub smtputf8: bool,
    /// `ENVID=`, still in xtext as the client sent it (RFC 3461 §4.4), at most 100 octets.
    pub envid: Option<Box<str>>,
    /// `RET=`.
    pub ret: Option<Ret>,
    /// `REQUIRETLS` (RFC 8689).
    pub requires_tls: bool,
}

/// One recipient as RCPT named it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecipientParams {
    /// The forward-path.
    pub mailbox: Mailbox,
    /// `NOTIFY=`.
    pub notify: Option<Notify>,
    /// `ORCPT=` as sent, `addr-type;xtext` (RFC 3461 §4.2), at most 500 octets.
    pub orcpt: Option<Box<str>>,
    /// It was accepted to be kept in the sandbox: nothing of it leaves, whatever the routes say.
    pub captured: bool,
}

impl From<Mailbox> for RecipientParams {
    fn from(mailbox: Mailbox) -> Self {
        RecipientParams { mailbox, notify: None, orcpt: None, captured: false }
    }
}
