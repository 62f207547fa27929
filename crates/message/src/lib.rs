//! The content of messages.
//!
//! **For:** reading the header section while it streams in ([`HeaderScan`]), saying who a message is from
//! ([`Header::authors`]), the fields a relay adds ([`Received`], [`write_date`], [`write_message_id`]) and
//! takes out ([`assemble`]), messages made from parts ([`compose`]), reports on delivery ([`Report`]), and seven
//! bits for peers that take no more ([`to_seven_bit`]).
//! **Promises:** content is a list of [`bytes::Bytes`] slices and is never copied; everything a client
//! writes is bounded and cleaned before it stands in what we write; what cannot be read in one way only is
//! an error that says so.
//! **Never:** I/O, clocks, randomness: ids, boundaries and times are arguments.
//!
//! ```
//! use bytes::Bytes;
//! use postrider_message::{FieldKind, HeaderScan, REMOVED_ON_SUBMISSION, assemble};
//!
//! let content = [Bytes::from_static(b"From: ada@example.com\r\nBcc: bob@example.net\r\n\r\nHello\r\n")];
//! let header = HeaderScan::whole(&content);
//! assert_eq!(header.authors(&content).unwrap().from[0].as_str(), "ada@example.com");
//! assert!(!header.has(FieldKind::Date));
//!
//! let out = assemble(&content, &header, Bytes::from_static(b"Received: from x\r\n"), REMOVED_ON_SUBMISSION);
//! assert_eq!(out.pieces.concat(), b"Received: from x\r\nFrom: ada@example.com\r\n\r\nHello\r\n");
//! ```

mod advice;
mod assemble;
mod authors;
mod compose;
mod downgrade;
mod header;
pub mod lines;
mod mime;
mod party;
pub mod pieces;
mod plain;
mod report;
mod trace;
mod transfer;
mod words;
pub mod xtext;

pub use assemble::{Assembled, REMOVED_ON_RELAY, REMOVED_ON_SUBMISSION, assemble};
pub use authors::{AUTHORS_MAX, AUTHORS_SIZE_MAX, AuthorError, Authors};
pub use compose::{
    ATTACHMENTS_MAX, Attachment, Composed, FIELD_TEXT_SIZE_MAX, OWN_FIELDS_MAX, Parts, Rule, Violation,
    compose,
};
pub use downgrade::{DOWNGRADE_SIZE_MAX, DowngradeError, SevenBit, is_seven_bit, to_seven_bit};
pub use header::{FIELDS_MAX, Field, FieldKind, HEADER_SIZE_MAX, HOPS_MAX, Header, HeaderEnd, HeaderScan};
pub use party::{NAME_SIZE_MAX, PARTIES_MAX, Party, PartyError};
pub use pieces::Pieces;
pub use plain::plain_text;
pub use report::{Action, RETURNED_SIZE_MAX, Report, ReportContent, Reported, returns_content};
pub use trace::{Received, TraceProtocol, TraceTls, write_date, write_message_id};
pub use words::decode_words;
