//! SMTP and LMTP without I/O.
//!
//! **For:** both sides of a session: [`server::Server`] turns a client's octets into questions and answers,
//! [`client`] turns transactions into octets and replies into outcomes; [`command`], [`reply`] and [`data`]
//! are the parsers under them, [`transform`] makes content fit the next hop.
//! **Promises:** only CRLF.CRLF ends DATA, whatever the pieces it comes in; what is offered is what is taken;
//! input beyond a bound is refused, never kept; what a peer says is data, and no input panics.
//! **Never:** sockets, clocks, tasks, or a decision about whose mail is taken and where it goes.
//!
//! ```
//! use postrider_smtp::data::{Content, ContentRules, Step};
//!
//! let rules = ContentRules { line_size_max_bytes: 1_000, normalises: false, binary: false };
//! let mut content = Content::new(rules);
//! let input = b"Subject: x\r\n\r\n..\n.\n\r\n.\r\nQUIT\r\n";
//! let (taken, step) = content.data(input);
//! assert_eq!(step, Step::Content(b"Subject: x\r\n\r\n..\n.\n\r\n"[..].into()));
//! assert_eq!(content.data(&input[taken..]), (3, Step::End));
//! assert!(content.notes().bare_line_end);
//! ```

pub mod client;
pub mod command;
pub mod data;
#[cfg(feature = "dialogue")]
pub mod dialogue;
pub mod reply;
pub mod server;
pub mod transform;
pub mod xtext;
