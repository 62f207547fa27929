//! SMTP and LMTP without I/O: parsing, the server's and the client's session machine.

pub mod client;
pub mod command;
pub mod data;
#[cfg(feature = "dialogue")]
pub mod dialogue;
pub mod reply;
pub mod server;
pub mod transform;
pub mod xtext;
