//! What a session needs of the engine: a place for its message, and the word that it is safe.

use bytes::Bytes;
use postrider_model::{EnhancedCode, MessageNo, Reply, Timestamp, record};
use postrider_spool::Ticket;
use smallvec::SmallVec;

/// Pieces of content, in order; together they are the content in its stored form.
pub type Pieces = SmallVec<[Bytes; 4]>;

/// A message as a session hands it over: complete, authorised, and with its trace fields in front.
#[derive(Clone, Debug)]
pub struct Draft {
    /// Envelope, recipients and what was seen of the content. `chunks` counts those already handed over.
    pub message: record::Message,
    /// The content that is not in chunks.
    pub content: Pieces,
}

/// Why the engine takes nothing now; the reply to give (4xx). Nothing was kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal(pub Reply);

impl Refusal {
    /// The disk is full or at its watermark (design P4).
    #[must_use]
    pub fn disk_full() -> Self {
        Refusal(Reply::ours(452, EnhancedCode(4, 3, 1), "Insufficient system storage; try again later"))
    }

    /// Writing or syncing failed: the message may not be on disk (design P4).
    #[must_use]
    pub fn write_failed() -> Self {
        Refusal(Reply::ours(451, EnhancedCode(4, 3, 0), "The message could not be stored; try again later"))
    }

    /// The part that is not in chunks is larger than the log takes at once.
    #[must_use]
    pub fn too_large() -> Self {
        Refusal(Reply::ours(552, EnhancedCode(5, 3, 4), "The message is larger than the spool takes"))
    }

    /// Too much is waiting to be written.
    #[must_use]
    pub fn busy() -> Self {
        Refusal(Reply::ours(451, EnhancedCode(4, 3, 2), "The system is busy; try again later"))
    }
}

/// The engine's side towards sessions.
pub trait Intake {
    /// A number for a message that begins, or why none can be taken. Call it when MAIL is accepted.
    ///
    /// # Errors
    /// When disk or memory do not allow a message of `size_bytes` (as declared by SIZE, or 0).
    fn begin(&mut self, now: Timestamp, size_bytes: u64) -> Result<MessageNo, Refusal>;

    /// Takes a piece of a large content early, so that a session holds little memory. Pieces come in
    /// order, counted from 0 by `index`.
    ///
    /// # Errors
    /// When it cannot be written; the session then answers so at the end of the content.
    fn chunk(&mut self, number: MessageNo, index: u32, content: Bytes) -> Result<(), Refusal>;

    /// Takes the message. It is *not* safe yet: the reply waits for the ticket to become durable.
    ///
    /// # Errors
    /// When nothing can be taken; the message's chunks are then dropped.
    fn submit(&mut self, now: Timestamp, draft: Draft) -> Result<Ticket, Refusal>;

    /// Drops the chunks of a message that will not come.
    fn abandon(&mut self, number: MessageNo);
}
