//! Sockets, TLS and the guard of outbound addresses.
//!
//! **For:** what stands between a shard's event loop and the kernel: [`Stream`] (TCP or Unix socket, plain or
//! TLS, one type), [`Listener`], [`Dial`] (Happy Eyeballs on mio), the TLS configurations with certificates
//! that reload under living sessions, the [`Guard`] that keeps mail from private and own addresses, and the
//! parser of the PROXY protocol.
//! **Promises:** a read lands in the caller's buffer and a write leaves from the caller's slices, one system
//! call each, on a plain stream; TLS buffers are bounded; nothing that a client sent in clear is ever read as
//! if it came under TLS; an address that a stranger's DNS names is dialled only as an [`Admitted`], which only
//! the guard makes.
//! **Never:** blocks, keeps a clock of its own (time is an argument), or decides about mail.
//!
//! ```
//! use postrider_net::{Guard, listen};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // Two shards share one free port.
//! let listeners = listen("127.0.0.1:0".parse()?, 2)?;
//! assert_eq!(listeners[0].address(), listeners[1].address());
//!
//! let guard = Guard::new(vec![listeners[0].address()], vec!["192.0.2.0/24".parse()?]);
//! assert!(guard.admit("192.0.2.25:25".parse()?).is_ok());
//! assert!(guard.admit("[::ffff:10.0.0.1]:25".parse()?).is_err());
//! # Ok(())
//! # }
//! ```

mod certificates;
mod client_tls;
mod dial;
mod guard;
mod listener;
mod proxy;
mod race;
mod self_signed;
mod server_tls;
mod session;
mod socket;
mod stream;

pub use certificates::{CertificateError, CertificateStore};
pub use client_tls::{ClientTls, ClientTlsError};
pub use dial::{Connected, Dial, DialOptions, DialOutcome};
pub use guard::{Admitted, Guard, Refusal, Refused};
pub use listener::{AcceptError, ListenError, Listener, listen};
pub use proxy::{Proxied, ProxyError, ProxyHeader, parse_proxy_header};
pub use race::{AttemptError, DialError, Race, RaceLimits, Step, interleave};
pub use self_signed::{SelfSigned, SelfSignedError};
pub use server_tls::{ServerTls, ServerTlsError};
pub use session::{PeerCertificate, TlsInfo};
pub use stream::{ReadBuffer, ReadOutcome, Stream, StreamError, TlsState, WriteOutcome};
