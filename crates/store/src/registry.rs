//! The one place where the control plane changes.

use crate::anchor::{Anchor, Anchors};
use crate::audit::{self, AuditPage, AuditReport, Entry, Recorded};
use crate::keeper::{self, Keeper};
use crate::session::{Session, transaction};
use crate::sqlite::{MIGRATIONS, Sqlite};
use crate::worker::{Job, Open, Readers};
use crate::{FILE_NAME, StoreError, rows};
use arc_swap::ArcSwap;
use postrider_model::control::{Change, Control, Tenant};
use postrider_model::{KeyId, TenantId, Timestamp};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::oneshot;

/// Threads that read.
const READERS: usize = 2;
/// Changes that wait in line.
const CHANGES_MAX: usize = 1_024;
/// How often uses of keys are written down, and a store that is away is tried again.
const ROUND: Duration = Duration::from_secs(30);
/// The tenant that a first start makes.
const DEFAULT_TENANT: &str = "default";

/// What an act does.
pub struct Act<T> {
    /// What changes; nothing is allowed, then only the entries are kept.
    pub changes: Vec<Change>,
    /// What the audit log says of it.
    pub entries: Vec<Entry>,
    /// What its caller is told once it is durable and in place.
    pub answer: T,
}

/// An answer to come.
pub struct Answer<T>(Result<oneshot::Receiver<Result<T, StoreError>>, StoreError>);

impl<T> Answer<T> {
    /// Waits without blocking.
    ///
    /// # Errors
    /// Why nothing was changed or read.
    pub async fn get(self) -> Result<T, StoreError> {
        self.0?.await.unwrap_or_else(|_| Err(stopped()))
    }

    /// Waits, blocking this thread.
    ///
    /// # Errors
    /// Why nothing was changed or read.
    pub fn wait(self) -> Result<T, StoreError> {
        self.0?.blocking_recv().unwrap_or_else(|_| Err(stopped()))
    }
}

fn stopped() -> StoreError {
    StoreError::Unavailable("it has stopped".to_owned())
}

type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;
type Listener = Box<dyn Fn(Arc<Control>) + Send>;
type WriteJob = Box<dyn FnOnce(&mut Writer) + Send>;

/// The control plane's state and its store. Dropped, it writes what is still to be written.
pub struct Registry {
    current: Arc<ArcSwap<Control>>,
    uses: Arc<Mutex<Uses>>,
    jobs: Option<mpsc::SyncSender<WriteJob>>,
    /// Taken away only at the end.
    readers: Option<Readers>,
    anchors: Anchors,
    thread: Option<JoinHandle<()>>,
}

/// When keys were last used.
#[derive(Default)]
struct Uses {
    known: BTreeMap<KeyId, Timestamp>,
    /// Not yet written down.
    fresh: BTreeMap<KeyId, Timestamp>,
}

impl Registry {
    /// Opens the store of a data directory and makes the default tenant if there is none. A store that cannot
    /// be opened is no error: the copy of the last answer is used, changes are refused, and it is tried again.
    /// `listener` hears of every new answer, on the thread that writes, after it is durable.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(
        dir: &Path,
        clock: impl Fn() -> Timestamp + Send + Sync + 'static,
        listener: impl Fn(Arc<Control>) + Send + 'static,
    ) -> io::Result<Registry> {
        let path = dir.join(FILE_NAME);
        let current = Arc::new(ArcSwap::from_pointee(Control::default()));
        let uses = Arc::<Mutex<Uses>>::default();
        let (jobs, queue) = mpsc::sync_channel::<WriteJob>(CHANGES_MAX);
        let mut writer = Writer {
            path: path.clone(),
            session: None,
            current: current.clone(),
            uses: uses.clone(),
            clock: Arc::new(clock),
            listener: Box::new(listener),
            keeper: Keeper::start(dir)?,
            anchors: Anchors::new(dir),
            anchored: None,
        };
        if let Err(error) = writer.open() {
            tracing::error!(%error, "the store cannot be opened");
            writer.use_copy(dir);
        }
        let thread =
            std::thread::Builder::new().name("store-write".to_owned()).spawn(move || writer.run(&queue))?;
        let open: Open = Arc::new(move || Ok(Box::new(Sqlite::open_reader(&path)?)));
        let readers = Some(Readers::start(READERS, &open)?);
        let anchors = Anchors::new(dir);
        Ok(Registry { current, uses, jobs: Some(jobs), readers, anchors, thread: Some(thread) })
    }

    /// The answer in place.
    #[must_use]
    pub fn current(&self) -> Arc<Control> {
        self.current.load_full()
    }

    /// Does an act: `decide` sees what is, and says what changes. One act at a time, in order. When the answer
    /// comes, the change is durable, in the audit log and in place.
    pub fn act<T: Send + 'static>(
        &self,
        decide: impl FnOnce(&Control, Timestamp) -> Result<Act<T>, StoreError> + Send + 'static,
    ) -> Answer<T> {
        let (sender, receiver) = oneshot::channel();
        let job: WriteJob = Box::new(move |writer| {
            // Who asked may have gone; the act was done all the same.
            let _ = sender.send(writer.act(decide));
        });
        let busy = || StoreError::Unavailable("too many changes wait".to_owned());
        Answer(match &self.jobs {
            Some(jobs) => jobs.try_send(job).map(|()| receiver).map_err(|_| busy()),
            None => Err(stopped()),
        })
    }

    /// Entries of the audit log before a place, the newest first; those of one target or tenant if it is named.
    pub fn audit(
        &self,
        before: Option<u64>,
        target: Option<String>,
        tenant: Option<TenantId>,
        limit: usize,
    ) -> Answer<AuditPage> {
        self.read(move |session| audit::page(session, before, target.as_deref(), tenant, limit))
    }

    /// Reads the whole audit log and compares it with its anchors.
    pub fn verify_audit(&self) -> Answer<AuditReport> {
        let anchors = self.anchors.clone();
        self.read(move |session| {
            let anchors = anchors.read().map_err(|error| {
                StoreError::Unavailable(format!("the anchors of the audit log cannot be read: {error}"))
            })?;
            audit::verify(session, &anchors)
        })
    }

    /// Notes that a key was used; written down now and then.
    pub fn note_use(&self, key: KeyId, at: Timestamp) {
        let mut uses = self.uses.lock().unwrap_or_else(PoisonError::into_inner);
        uses.known.insert(key, at);
        uses.fresh.insert(key, at);
    }

    /// When a key was last used.
    #[must_use]
    pub fn last_use(&self, key: KeyId) -> Option<Timestamp> {
        self.uses.lock().unwrap_or_else(PoisonError::into_inner).known.get(&key).copied()
    }

    fn read<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut dyn Session) -> Result<T, StoreError> + Send + 'static,
    ) -> Answer<T> {
        let (sender, receiver) = oneshot::channel();
        let job: Job = Box::new(move |session| {
            let _ = sender.send(session.and_then(question));
        });
        let assigned = self.readers.as_ref().ok_or_else(stopped).and_then(|readers| readers.assign(job));
        Answer(assigned.map(|()| receiver))
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // The connection that writes closes last: then the file holds everything.
        drop(self.readers.take());
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What the thread that writes owns.
struct Writer {
    path: PathBuf,
    session: Option<Sqlite>,
    current: Arc<ArcSwap<Control>>,
    uses: Arc<Mutex<Uses>>,
    clock: Clock,
    listener: Listener,
    keeper: Keeper,
    anchors: Anchors,
    /// The day of the last anchor.
    anchored: Option<String>,
}

impl Writer {
    fn run(mut self, queue: &mpsc::Receiver<WriteJob>) {
        loop {
            match queue.recv_timeout(ROUND) {
                Ok(job) => job(&mut self),
                Err(RecvTimeoutError::Timeout) => {
                    if self.session.is_none() && self.open().is_ok() {
                        tracing::info!("the store is back");
                    }
                    self.write_uses();
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        self.write_uses();
    }

    /// Opens the database, brings its tables up, reads it, and puts what it says in place.
    fn open(&mut self) -> Result<(), StoreError> {
        let now = (self.clock)();
        let mut session = Sqlite::open(&self.path)?;
        crate::migrate::migrate(&mut session, MIGRATIONS, now.as_micros())?;
        let mut parts = rows::load(&mut session)?;
        if parts.tenants.is_empty() {
            let tenant = Tenant { id: new_tenant(now)?, name: DEFAULT_TENANT.into(), created_at: now };
            transaction(&mut session, |session| {
                rows::write(session, &Change::Tenant(tenant.clone()))?;
                let entry = Entry::new("postrider", "tenant.create", tenant.id.to_string());
                audit::append(session, &entry.of_tenant(tenant.id), now).map(drop)
            })?;
            parts.tenants.push(tenant);
        }
        self.uses.lock().unwrap_or_else(PoisonError::into_inner).known = rows::key_uses(&mut session)?;
        let head = audit::head(&mut session)?;
        self.session = Some(session);
        self.put_in_place(Control::new(parts)?);
        if let Some(head) = head {
            self.anchor(&head);
        }
        Ok(())
    }

    fn use_copy(&mut self, dir: &Path) {
        match keeper::read(dir) {
            Ok(Some(control)) => {
                tracing::warn!("mail goes on with the copy of what the store said last");
                let control = Arc::new(control);
                self.current.store(control.clone());
                (self.listener)(control);
            }
            Ok(None) => tracing::warn!("there is no copy either: no application is known"),
            Err(error) => tracing::error!(%error, "the copy of what the store said last cannot be read"),
        }
    }

    fn put_in_place(&mut self, control: Control) {
        let control = Arc::new(control);
        self.current.store(control.clone());
        self.keeper.keep(control.clone());
        (self.listener)(control);
    }

    fn act<T>(
        &mut self,
        decide: impl FnOnce(&Control, Timestamp) -> Result<Act<T>, StoreError>,
    ) -> Result<T, StoreError> {
        if self.session.is_none() {
            self.open()?;
        }
        let now = (self.clock)();
        let before = self.current.load_full();
        let Act { changes, entries, answer } = decide(&before, now)?;
        let after = before.with(&changes)?;
        let session = self.session.as_mut().ok_or_else(stopped)?;
        let written = transaction(session, |session| {
            changes.iter().try_for_each(|change| rows::write(session, change))?;
            let mut last = None;
            for entry in &entries {
                last = Some(audit::append(session, entry, now)?);
            }
            Ok(last)
        });
        let last = match written {
            Ok(last) => last,
            Err(error) => {
                // Whatever is wrong with the connection, the next act begins with a new one.
                self.session = None;
                return Err(error);
            }
        };
        if !changes.is_empty() {
            self.put_in_place(after);
        }
        if let Some(last) = last {
            self.anchor(&last);
        }
        Ok(answer)
    }

    /// Notes the head of the log outside the store, once a day.
    fn anchor(&mut self, head: &Recorded) {
        let day: String = (self.clock)().to_string().chars().take(10).collect();
        if self.anchored.is_none() {
            self.anchored = self.anchors.read().ok().and_then(|mut all| all.pop()).map(|anchor| anchor.day);
        }
        if self.anchored.as_ref() == Some(&day) {
            return;
        }
        let anchor = Anchor { day: day.clone(), seq: head.seq, hash: head.hash.clone() };
        match self.anchors.add(&anchor) {
            Ok(()) => {
                tracing::info!(seq = anchor.seq, hash = anchor.hash, "the audit log's head was anchored");
                self.anchored = Some(day);
            }
            Err(error) => tracing::error!(%error, "the audit log's head could not be anchored"),
        }
    }

    fn write_uses(&mut self) {
        let Some(session) = &mut self.session else { return };
        let fresh = std::mem::take(&mut self.uses.lock().unwrap_or_else(PoisonError::into_inner).fresh);
        if fresh.is_empty() {
            return;
        }
        let written = transaction(session, |session| {
            fresh.iter().try_for_each(|(key, at)| rows::write_key_use(session, *key, *at))
        });
        if let Err(error) = written {
            tracing::warn!(%error, "uses of keys could not be written down; they will be with the next ones");
            let mut uses = self.uses.lock().unwrap_or_else(PoisonError::into_inner);
            for (key, at) in fresh {
                uses.fresh.entry(key).or_insert(at);
            }
        }
    }
}

fn new_tenant(now: Timestamp) -> Result<TenantId, StoreError> {
    let mut random = [0; 16];
    aws_lc_rs::rand::fill(&mut random)
        .map_err(|_| StoreError::Unavailable("the system gives no random octets".to_owned()))?;
    Ok(TenantId::new(now, u128::from_le_bytes(random)))
}

#[cfg(test)]
mod tests;
