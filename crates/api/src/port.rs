//! What the API needs of a relay.

use postrider_engine::operate::{Request, Response};
use postrider_ingress::{Answers, Submission};
use postrider_model::Timestamp;
use postrider_store::Registry;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// A running relay, as the API asks it.
pub trait Relay: Clone + Send + Sync + 'static {
    /// Hands messages over; each is answered under its tag once it is durable or refused, several at once, on
    /// any thread.
    fn submit(&self, messages: Vec<Submission>, answers: &Answers);

    /// Its time.
    fn now(&self) -> Timestamp;

    /// The control plane, if this relay has one.
    fn registry(&self) -> Option<Arc<Registry>> {
        None
    }

    /// Asks every shard and merges what they answer.
    fn ask(&self, request: Request) -> impl Future<Output = Result<Response, Unavailable>> + Send;

    /// Captured messages, the newest first.
    fn captured(&self, wanted: Wanted) -> impl Future<Output = Result<Vec<Captured>, Unavailable>> + Send;

    /// A captured message; `None` if there is none of this id.
    fn captured_one(&self, id: String) -> impl Future<Output = Result<Option<Captured>, Unavailable>> + Send;

    /// A captured message's content as it would have gone out: CRLF, not dot-stuffed.
    fn captured_content(
        &self,
        id: String,
    ) -> impl Future<Output = Result<Option<Vec<u8>>, Unavailable>> + Send;

    /// Deletes captured messages: the one of this id, or all. Says how many there were.
    fn captured_delete(&self, id: Option<String>) -> impl Future<Output = Result<u64, Unavailable>> + Send;

    /// What runs.
    fn health(&self) -> Health;

    /// Figures of the log; `None` if it does not answer.
    fn spool(&self) -> Option<SpoolView>;

    /// Metrics beyond totals and lanes, in Prometheus' text form.
    fn metrics(&self) -> String;

    /// Reads configuration and certificates again.
    ///
    /// # Errors
    /// Everything that forbids the change; then nothing has changed.
    fn reload(&self) -> impl Future<Output = Result<Vec<String>, String>> + Send;
}

/// The relay did not answer: it stops, or it is overloaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unavailable(pub String);

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unavailable {}

/// Which captured messages to list. Parts match anywhere, whatever their case.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Wanted {
    /// In one of the recipients.
    pub recipient: Option<String>,
    /// In the reverse-path or the From field.
    pub sender: Option<String>,
    /// In the Subject field.
    pub subject: Option<String>,
    /// At most so many.
    pub limit: Option<usize>,
    /// Goes on after this id, the last of the page before.
    pub after: Option<String>,
    /// Of this application only; nothing that a query can say.
    #[serde(skip)]
    pub account: Option<String>,
}

/// A message that a sandbox route kept.
#[derive(Clone, Debug, Serialize)]
pub struct Captured {
    /// `msg_…`
    pub id: String,
    /// When it was accepted.
    pub accepted_at: Timestamp,
    /// The application, account or listener that brought it; empty for what was kept before this was noted.
    pub account: String,
    /// The reverse-path; empty for `<>`.
    pub sender: String,
    /// Recipients for whom it was kept.
    pub recipients: Vec<String>,
    /// The From field.
    pub from: String,
    /// The Subject field, decoded.
    pub subject: String,
    /// Octets of content.
    pub size: u64,
}

/// Figures of the log.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SpoolView {
    /// `good`, `full` (no room for messages, deliveries go on) or `failing` (nothing can be synced).
    pub health: &'static str,
    /// Segment files.
    pub segments: u32,
    /// Of these: free.
    pub free_segments: u32,
    /// Of these: given up after a failed write or sync.
    pub suspect_segments: u32,
    /// Records that are still needed.
    pub live_records: u64,
    /// Their octets, about.
    pub live_bytes: u64,
    /// Batches written since the start.
    pub batches: u64,
    /// Syncs since the start.
    pub syncs: u64,
    /// Records written since the start.
    pub records: u64,
    /// Octets written since the start.
    pub bytes: u64,
    /// Records copied forward since the start.
    pub copied: u64,
    /// Records that should have been copied and could not be read.
    pub unreadable: u64,
    /// Records that could not be taken; whoever gave them was told.
    pub lost: u64,
    /// The last record that is durable.
    pub durable: u64,
    /// Records that the event journal has still to go through.
    pub journal_lag: u64,
    /// Octets that are free on the disk.
    pub disk_free_bytes: u64,
    /// Octets that messages leave free there.
    pub disk_free_min_bytes: u64,
}

/// What runs.
#[derive(Clone, Debug, Serialize)]
pub struct Health {
    /// `ok`, `starting` or `stopping`; or a word for what is wrong.
    pub status: String,
    /// Of the program.
    pub version: String,
    /// Of the relay.
    pub hostname: String,
    /// Process id.
    pub pid: u32,
    /// Since the start.
    pub uptime_s: u64,
    /// Event loops.
    pub shards: usize,
    /// Where it listens, with the real port.
    pub listeners: Vec<ListenerView>,
    /// Where HTTP is served, with the real port.
    pub http: Option<String>,
    /// Names of the routes, in order.
    pub routes: Vec<String>,
}

/// A listening address.
#[derive(Clone, Debug, Serialize)]
pub struct ListenerView {
    /// Its name.
    pub name: String,
    /// `smtp`, `submission`, `submissions` or `lmtp`.
    pub protocol: String,
    /// Address and port.
    pub address: String,
    /// TLS is offered.
    pub tls: bool,
    /// Any credentials are taken.
    pub sandbox: bool,
}
