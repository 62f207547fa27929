//! A relay as a whole: start, ask, change, stop.

use crate::checkpointer::Checkpointer;
use crate::clock::Clock;
use crate::config::Loadout;
use crate::event_loop::{EventLoop, LISTENERS_MAX, Listening, Parts, WAKER};
use crate::inbox::Inbox;
use crate::instance::Instance;
use crate::letter::Letter;
use crate::loader::{LoadError, Loader};
use crate::memory::{Memory, MemoryView};
use crate::recover;
use crate::shared::Shared;
use crate::workers::Workers;
use mio::{Poll, Waker};
use postrider_disk::{Committer, CommitterHandle, Upkeep};
use postrider_dns::{Resolver, ResolverOptions};
use postrider_engine::operate::{Request, Response};
use postrider_engine::{Shard, ShardConfig};
use postrider_model::control::Control;
use postrider_model::{IdCipher, Snapshot};
use postrider_net::{ClientTls, listen};
use postrider_vault::{Bounds, Sandbox};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use thiserror::Error;

/// Threads that read records back, keep captured mail and check passwords.
const WORKERS: usize = 2;
/// The default of [`RelayConfig::memory_max_bytes`].
const MEMORY_MAX_BYTES: usize = 512 << 20;

/// What a relay is started with.
#[derive(Clone, Debug)]
pub struct RelayConfig {
    /// The configuration.
    pub snapshot: Arc<Snapshot>,
    /// Who may send what, besides the accounts of the configuration.
    pub control: Arc<Control>,
    /// Where everything is kept. It is made if it is not there.
    pub data_dir: PathBuf,
    /// Shards; 0 means one per core.
    pub shards: usize,
    /// Octets of a segment of the log; 0 means the default of 64 MiB.
    pub segment_size_bytes: u32,
    /// Octets that sessions and fresh content may hold in memory, all shards together; 0 means the default of
    /// 512 MiB.
    pub memory_max_bytes: usize,
    /// How the log's directory is kept in order.
    pub upkeep: Upkeep,
    /// PEM files of further authorities that vouch for next hops.
    pub authorities: Vec<PathBuf>,
}

impl RelayConfig {
    /// With the defaults.
    #[must_use]
    pub fn new(snapshot: Arc<Snapshot>, data_dir: impl Into<PathBuf>) -> Self {
        RelayConfig {
            snapshot,
            control: Arc::default(),
            data_dir: data_dir.into(),
            shards: 0,
            segment_size_bytes: 0,
            memory_max_bytes: 0,
            upkeep: Upkeep::default(),
            authorities: Vec::new(),
        }
    }
}

/// Why a relay did not start. The operator's to repair.
#[derive(Debug, Error)]
pub enum StartError {
    /// The data directory cannot be used.
    #[error("the data directory {path}: {error}")]
    DataDir {
        /// Which.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// The log cannot be opened.
    #[error("the spool: {0}")]
    Spool(#[from] postrider_disk::OpenError),
    /// An address cannot be listened on.
    #[error(transparent)]
    Listen(#[from] postrider_net::ListenError),
    /// Too many listeners.
    #[error("there are {0} listeners; {LISTENERS_MAX} are the most")]
    Listeners(usize),
    /// Certificates or credentials of the configuration are of no use.
    #[error("{}", .0.join("\n"))]
    Configuration(Vec<String>),
    /// TLS toward next hops cannot be set up.
    #[error(transparent)]
    ClientTls(#[from] postrider_net::ClientTlsError),
    /// No resolver.
    #[error(transparent)]
    Resolver(#[from] postrider_dns::StartError),
    /// The system gives no thread, event queue or the like.
    #[error("the system: {0}")]
    System(#[from] std::io::Error),
}

/// A running relay.
pub struct Relay {
    pub(crate) shared: Arc<Shared>,
    /// Batches of submissions so far.
    pub(crate) turns: AtomicUsize,
    clock: Clock,
    committer: CommitterHandle,
    sandbox: Arc<Sandbox>,
    addresses: Vec<(Box<str>, SocketAddr)>,
    auth_secret: [u8; 32],
    acts: AtomicU64,
    /// Held while one change of the loadout is made from the one before.
    changes: Mutex<()>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    log: Mutex<Option<(Committer, Checkpointer)>>,
    loader: Loader,
}

impl Relay {
    /// Recovers what the data directory holds, and starts.
    ///
    /// # Errors
    /// See [`StartError`]; nothing was started then.
    pub fn start(config: RelayConfig) -> Result<Relay, StartError> {
        let (relay, event_loops) = Relay::assemble(config)?;
        let mut threads = relay.threads.lock().unwrap_or_else(PoisonError::into_inner);
        for (index, event_loop) in event_loops.into_iter().enumerate() {
            let thread = std::thread::Builder::new().name(format!("shard-{index}"));
            threads.push(thread.spawn(move || event_loop.run())?);
        }
        drop(threads);
        Ok(relay)
    }

    /// All of a relay, but its event loops do not run yet.
    pub(crate) fn assemble(config: RelayConfig) -> Result<(Relay, Vec<EventLoop>), StartError> {
        let RelayConfig {
            snapshot,
            control,
            data_dir,
            shards,
            segment_size_bytes,
            memory_max_bytes,
            upkeep,
            authorities,
        } = config;
        let memory_max_bytes = if memory_max_bytes == 0 { MEMORY_MAX_BYTES } else { memory_max_bytes };
        let in_dir = |error| StartError::DataDir { path: data_dir.clone(), error };
        postrider_disk::make_directory(&data_dir).map_err(in_dir)?;
        let shards = match shards {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            shards => shards,
        };
        let clock = Clock::start();
        let instance = Instance::open(&data_dir).map_err(in_dir)?;
        let opened = postrider_disk::open(&data_dir.join("spool"), segment_size_bytes, instance.spool_salt)?
            .with_upkeep(upkeep);
        let sandbox = Arc::new(Sandbox::open(data_dir.join("sandbox"), Bounds::default()).map_err(in_dir)?);

        if snapshot.listeners.len() > LISTENERS_MAX {
            return Err(StartError::Listeners(snapshot.listeners.len()));
        }
        let mut by_shard: Vec<Vec<Listening>> = (0..shards).map(|_| Vec::new()).collect();
        let mut addresses = Vec::new();
        for (number, listener) in snapshot.listeners.iter().enumerate() {
            let sockets = listen(listener.address, shards)?;
            addresses.extend(sockets.first().map(|socket| (listener.name.clone(), socket.address())));
            for (shard, listener) in sockets.into_iter().enumerate() {
                by_shard[shard].push(Listening { number, listener });
            }
        }
        let own = addresses.iter().map(|(_, address)| *address).collect();
        let loadout = Loadout::new(snapshot.clone(), control, own, instance.auth_secret)
            .map_err(StartError::Configuration)?;
        let resolver = Resolver::start(ResolverOptions {
            servers: snapshot.delivery.dns_servers.clone(),
            own_names: vec![snapshot.hostname.clone()],
            ..ResolverOptions::default()
        })?;
        let client_tls = ClientTls::new(&authorities)?;

        let cipher = IdCipher::new(instance.id_key);
        let make = || {
            let shard = |index| {
                Shard::new(ShardConfig {
                    index: u16::try_from(index).unwrap_or(u16::MAX),
                    shards: u16::try_from(shards).unwrap_or(u16::MAX),
                    snapshot: snapshot.clone(),
                    cipher: cipher.clone(),
                    seed: instance.seed ^ index as u64,
                    fresh_size_max_bytes: Memory::fresh_max_bytes(memory_max_bytes, shards),
                })
            };
            (0..shards).map(shard).collect()
        };
        let (recovered, engines, late) = recover::recover(opened, make, clock.now())?;

        let mut polls = Vec::new();
        let mut inboxes = Vec::new();
        for _ in 0..shards {
            let poll = Poll::new()?;
            let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
            inboxes.push(Inbox::new(waker));
            polls.push(poll);
        }
        let wakers = inboxes
            .iter()
            .map(|inbox| {
                let inbox = inbox.clone();
                Box::new(move || inbox.ring()) as Box<dyn Fn() + Send>
            })
            .collect();
        let acts = engines.iter().map(Shard::last_act).max().unwrap_or(0) + 1;
        let committer = Committer::start(recovered, wakers)?;
        let handle = committer.handle();
        let reader = committer.reader();
        let mut secret = [0; 32];
        aws_lc_rs::rand::fill(&mut secret)
            .map_err(|_| std::io::Error::other("the system gives no random octets"))?;
        let workers = Workers::start(WORKERS, &reader, &sandbox, secret)?;
        let loader = Loader::start(late, committer.checkpoints().clone(), handle.clone(), inboxes.clone())?;
        let checkpointer = Checkpointer::start(
            handle.clone(),
            committer.checkpoints().clone(),
            inboxes.clone(),
            loader.loaded(),
        )?;
        let shared = Arc::new(Shared::new(Arc::new(loadout), workers, resolver, inboxes, memory_max_bytes));
        let mut event_loops = Vec::new();
        for (index, ((poll, shard), listeners)) in polls.into_iter().zip(engines).zip(by_shard).enumerate() {
            event_loops.push(EventLoop::new(Parts {
                index,
                poll,
                clock,
                shared: shared.clone(),
                committer: handle.clone(),
                reader: reader.clone(),
                client_tls: client_tls.for_shard(),
                listeners,
                shard,
                seed: instance.seed.rotate_left(17) ^ index as u64,
            })?);
        }
        let relay = Relay {
            shared,
            turns: AtomicUsize::new(0),
            clock,
            committer: handle,
            sandbox,
            addresses,
            auth_secret: instance.auth_secret,
            acts: AtomicU64::new(acts),
            changes: Mutex::new(()),
            threads: Mutex::default(),
            log: Mutex::new(Some((committer, checkpointer))),
            loader,
        };
        Ok((relay, event_loops))
    }

    /// Where it listens: names of listeners and addresses with their real ports.
    #[must_use]
    pub fn addresses(&self) -> &[(Box<str>, SocketAddr)] {
        &self.addresses
    }

    /// Captured mail.
    #[must_use]
    pub fn sandbox(&self) -> &Arc<Sandbox> {
        &self.sandbox
    }

    /// Its time.
    #[must_use]
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// Who may send what, as of now.
    #[must_use]
    pub fn control(&self) -> Arc<Control> {
        self.shared.loadout.load().control.clone()
    }

    /// Sessions open now.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.shared.sessions()
    }

    /// What sessions hold of the memory that they may hold.
    #[must_use]
    pub fn memory(&self) -> MemoryView {
        self.shared.memory.view()
    }

    /// The log's counters, and whether it takes messages.
    #[must_use]
    pub fn log(&self) -> &CommitterHandle {
        &self.committer
    }

    /// Waits until all that waited before the start is in memory: deliveries do not wait for it.
    ///
    /// # Errors
    /// When a part of the checkpoint is damaged. The next start takes the checkpoint before it, so start anew.
    /// Until then nothing is lost, and what is not loaded waits.
    pub fn wait_until_loaded(&self) -> Result<(), LoadError> {
        self.loader.wait()
    }

    /// Asks all shards; `done` gets their answers merged, on another thread.
    pub fn ask(&self, request: &Request, done: impl FnOnce(Response) + Send + 'static) {
        struct Gathered<F> {
            answer: Option<Response>,
            missing: usize,
            done: Option<F>,
        }
        let number = self.acts.fetch_add(1, Ordering::Relaxed);
        let missing = self.shared.inboxes.len();
        let gathered = Arc::new(Mutex::new(Gathered { answer: None, missing, done: Some(done) }));
        for inbox in &self.shared.inboxes {
            let gathered = gathered.clone();
            let reply = Box::new(move |response: Response| {
                let mut state = gathered.lock().unwrap_or_else(PoisonError::into_inner);
                state.answer = Some(match state.answer.take() {
                    None => response,
                    Some(before) => before.merge(response),
                });
                state.missing -= 1;
                if state.missing == 0
                    && let (Some(done), Some(answer)) = (state.done.take(), state.answer.take())
                {
                    drop(state);
                    done(answer);
                }
            });
            inbox.send(Letter::Ask { number, request: request.clone(), reply });
        }
    }

    /// Puts a new configuration in place, certificates read anew. Sessions that go on keep the old one.
    ///
    /// # Errors
    /// Everything that forbids the change, in sentences; nothing has changed then.
    pub fn reload(&self, snapshot: Arc<Snapshot>) -> Result<(), Vec<String>> {
        let _changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.shared.loadout.load();
        let same = snapshot.listeners.len() == before.snapshot.listeners.len()
            && snapshot
                .listeners
                .iter()
                .zip(&before.snapshot.listeners)
                .all(|(new, old)| new.address == old.address && new.protocol == old.protocol);
        if !same {
            return Err(vec![
                "listeners cannot be added, removed, reordered or moved while the relay runs: restart it"
                    .into(),
            ]);
        }
        let own = self.addresses.iter().map(|(_, address)| *address).collect();
        let control = before.control.clone();
        let loadout = Arc::new(Loadout::new(snapshot, control, own, self.auth_secret)?);
        self.shared.loadout.store(loadout.clone());
        for inbox in &self.shared.inboxes {
            inbox.send(Letter::Reload(loadout.clone()));
        }
        Ok(())
    }

    /// Puts a newer answer to who may send what in place. Sessions hear of it at once: those whose application
    /// may not send any more are cut off.
    pub fn set_control(&self, control: Arc<Control>) {
        let _changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        let loadout = Arc::new(self.shared.loadout.load().with_control(control, self.auth_secret));
        self.shared.loadout.store(loadout.clone());
        for inbox in &self.shared.inboxes {
            inbox.send(Letter::Control(loadout.clone()));
        }
    }

    /// Takes no more, ends what goes on, at the latest after `bound`, and stops.
    pub fn stop(&self, bound: Duration) {
        let at = self.clock.now() + bound;
        for inbox in &self.shared.inboxes {
            inbox.send(Letter::Drain(at));
        }
        self.loader.stop();
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner).take();
        let committer = log.map(|(committer, checkpointer)| {
            checkpointer.stop();
            committer
        });
        for thread in self.threads.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            if thread.join().is_err() {
                tracing::error!("an event loop ended in a panic");
            }
        }
        self.shared.workers.stop();
        if let Some(committer) = committer {
            committer.stop();
        }
    }
}
