//! Connections that deliver: transactions, TLS policy, outcomes.
//!
//! **For:** one connection of a lane, from its greeting to its QUIT, without its socket: the shell carries
//! octets, the engine gives transactions and is told what became of each recipient.
//! **Promises:** every transaction taken is settled once and names all its recipients; a recipient is
//! delivered only by a 2xx to the end of its content; the end is sent only after the attempt's mark is
//! durable; what leaves is CRLF-clean and dot-stuffed; a route's TLS level is never gone below.
//! **Never:** a socket, clock, thread or task; trust in a remote's words; a copy of a body.
//!
//! ```no_run
//! # use postrider_egress::{Connection, Setup, Wants};
//! # fn shell(setup: Setup, now: postrider_model::Timestamp, outflow: &mut impl postrider_engine::Outflow) {
//! let mut connection = Connection::new(now, setup);
//! connection.receive(now, b"220 mx.example.net ESMTP\r\n", outflow);
//! let written = connection.output().map(<[u8]>::len).sum(); // One vectored write.
//! connection.advance(now, written, outflow);
//! assert_eq!(connection.wants(), Wants::Read);
//! # }
//! ```

mod auth;
mod classify;
mod connection;
mod fit;
mod hello;
mod sending;
mod timeouts;
mod transactions;

pub use connection::{Connection, Setup, TRANSACTIONS_MAX, Wants};
pub use postrider_auth::ScramMemory;
