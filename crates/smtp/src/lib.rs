//! SMTP and LMTP without I/O: parsing, the server's and the client's session machine.

pub mod client;
pub mod reply;
pub mod transform;
