//! The nouns of mail and of Postrider, as types that cannot be wrong.
//!
//! **For:** what more than one room must say the same way: addresses, replies, envelopes, ids, time, the
//! records of the log and the snapshot of the configuration.
//! **Promises:** a value that exists is valid; every codec reads back what it wrote and answers damage with
//! an error, never a panic.
//! **Never:** I/O, clocks, randomness, or a decision about mail.
//!
//! ```
//! use postrider_model::Mailbox;
//! let mailbox: Mailbox = "Ada.Lovelace@Example.COM".parse().unwrap();
//! assert_eq!(mailbox.local(), "Ada.Lovelace");
//! assert_eq!(mailbox.domain().as_str(), "example.com");
//! ```

mod address;
pub mod codec;
pub mod control;
mod envelope;
mod id;
mod outcome;
pub mod record;
mod reply;
pub mod snapshot;
mod text;
mod time;

pub use address::{AddressError, Domain, Mailbox};
pub use envelope::{BodyKind, Encoding, Envelope, Notify, RecipientParams, Ret};
pub use id::{
    ApplicationId, CredentialId, IdCipher, IdError, KeyId, MessageId, MessageNo, Ordinal, RecipientId,
    TenantId,
};
pub use outcome::{Class, Outcome, Terminal, Via};
pub use reply::{EnhancedCode, Reply, ReplyError};
pub use snapshot::Snapshot;
pub use time::{TimeError, Timestamp};
