//! Sessions that take mail in: identity, permission, acceptance.
//!
//! **For:** one SMTP, submission or LMTP session, from greeting to close: who is it, may it send as this
//! address to that one (design P7), and handing what it sends to the engine; the same for a message that comes
//! whole, from the API ([`Desk`]).
//! **Promises:** a `250` to a message is written only after the engine said that it is durable (P1); every
//! refusal names the limit or the rule it comes from; nothing is taken from a client that is nobody, nor for
//! a domain without a route; what a client can make us keep is bounded, and less when memory is short.
//! **Never:** I/O, clocks, threads: octets, times and verdicts are arguments, replies stand in a buffer.
//!
//! ```
//! # use postrider_ingress::example;
//! use postrider_ingress::{Session, Wants};
//! use postrider_model::Timestamp;
//!
//! let now = Timestamp::from_secs(1_795_526_426);
//! let (context, mut engine) = example(now);
//! let mut session = Session::new(context);
//! session.output().clear(); // the greeting was sent
//!
//! let input = b"EHLO client.example\r\n";
//! assert_eq!(session.receive(now, input, &mut engine), input.len());
//! assert!(session.output().ends_with(b"250 HELP\r\n"));
//! assert_eq!(session.wants(), Wants::Read);
//! ```

mod acceptance;
mod authentication;
mod identity;
mod overload;
mod patience;
mod session;
mod submission;

pub use overload::{Overload, Pressure};
pub use session::{Session, SessionContext, SessionTls, TlsInfo, Wants};
pub use submission::{Answers, Content, Desk, HandedOver, Settled, Submission};

#[doc(hidden)]
pub use example::{Keeper, UNDER_TLS, example, stage};
mod example;
