//! The relay as the admin socket asks it.

use crate::cli::Place;
use crate::config::Settings;
use postrider_api::{Caller, Captured, Health, Keys, ListenerView, SpoolView, Unavailable, Wanted};
use postrider_auth::key_hash;
use postrider_engine::operate::{Request, Response};
use postrider_ingress::{Answers, Settled, Submission};
use postrider_model::control::{Control, KeyRefusal};
use postrider_model::{EnhancedCode, Reply, Timestamp};
use postrider_relay::Relay;
use postrider_store::Registry;
use postrider_vault::Filter;
use std::fmt::Write as _;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Instant;
use tokio::sync::oneshot;

/// A running relay with what it was started from.
pub(crate) struct Running {
    relay: Relay,
    place: Place,
    started: Instant,
    shards: usize,
    stopping: AtomicBool,
    settings: Mutex<Settings>,
    registry: Arc<Registry>,
    /// Where HTTP is served, with the real port.
    http: Option<SocketAddr>,
}

impl Running {
    pub(crate) fn new(
        relay: Relay,
        place: Place,
        settings: Settings,
        registry: Arc<Registry>,
        http: Option<SocketAddr>,
    ) -> Self {
        Running {
            relay,
            place,
            started: Instant::now(),
            shards: match settings.shards {
                0 => std::thread::available_parallelism().map_or(1, usize::from),
                shards => shards,
            },
            stopping: AtomicBool::new(false),
            settings: Mutex::new(settings),
            registry,
            http,
        }
    }
}

/// From the control plane to a relay that starts after it.
#[derive(Clone, Default)]
pub(crate) struct Wire(Arc<OnceLock<Weak<Running>>>);

impl Wire {
    fn connect(&self, running: &Arc<Running>) {
        // Connected once; a second time would be the same relay.
        let _ = self.0.set(Arc::downgrade(running));
    }

    pub(crate) fn tell(&self, control: Arc<Control>) {
        if let Some(running) = self.0.get().and_then(Weak::upgrade) {
            running.relay.set_control(control);
        }
    }
}

/// A handle to it.
#[derive(Clone)]
pub(crate) struct Adapter(Arc<Running>);

impl Adapter {
    pub(crate) fn new(running: Running) -> Self {
        Adapter(Arc::new(running))
    }

    /// Hears of every change of who may send what, from now on.
    pub(crate) fn listens(&self, wire: &Wire) {
        wire.connect(&self.0);
        // What changed before the wire was there, and while this is put in place.
        loop {
            let current = self.0.registry.current();
            self.0.relay.set_control(current.clone());
            if Arc::ptr_eq(&current, &self.0.registry.current()) {
                break;
            }
        }
    }

    pub(crate) fn relay(&self) -> &Relay {
        &self.0.relay
    }

    /// From now on the relay only ends what it has begun.
    pub(crate) fn stops(&self) {
        self.0.stopping.store(true, Ordering::Relaxed);
    }

    /// Reads the configuration again and puts it in place; gives what a person should know.
    ///
    /// # Errors
    /// Everything that forbids it; then nothing has changed.
    pub(crate) fn reload_now(&self) -> Result<Vec<String>, String> {
        let loaded = self.0.place.load().map_err(|problems| problems.to_string())?;
        let mut settings = self.0.settings.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.relay.reload(Arc::new(loaded.settings.snapshot.clone())).map_err(|wrong| wrong.join("\n"))?;
        let mut notes: Vec<_> = loaded.problems.warnings().collect();
        let at_restart = [
            ("http", settings.http != loaded.settings.http),
            ("data_dir", settings.data_dir != loaded.settings.data_dir),
            ("shards", settings.shards != loaded.settings.shards),
            ("memory", settings.memory_max_bytes != loaded.settings.memory_max_bytes),
            ("spool.free_space", settings.upkeep.free_min_bytes != loaded.settings.upkeep.free_min_bytes),
            ("spool.event_days", settings.upkeep.event_days != loaded.settings.upkeep.event_days),
            ("spool.segment_size", settings.segment_size_bytes != loaded.settings.segment_size_bytes),
            ("delivery.authorities", settings.authorities != loaded.settings.authorities),
            (
                "delivery.dns_servers",
                settings.snapshot.delivery.dns_servers != loaded.settings.snapshot.delivery.dns_servers,
            ),
        ];
        for (key, changed) in at_restart {
            if changed {
                notes.push(format!("`{key}` has changed, which takes effect at the next start"));
            }
        }
        settings.snapshot = loaded.settings.snapshot;
        Ok(notes)
    }

    fn kept(&self, wanted: &Wanted) -> Vec<Captured> {
        let filter = Filter {
            recipient: wanted.recipient.clone(),
            sender: wanted.sender.clone(),
            subject: wanted.subject.clone(),
            account: wanted.account.clone(),
        };
        let limit = wanted.limit.unwrap_or(usize::MAX);
        let fetched = if wanted.after.is_some() { usize::MAX } else { limit };
        let all = self.0.relay.sandbox().list(&filter, fetched);
        let start = match &wanted.after {
            Some(after) => all.iter().position(|kept| kept.id == *after).map_or(all.len(), |at| at + 1),
            None => 0,
        };
        all.iter().skip(start).take(limit).map(|kept| view(kept)).collect()
    }

    fn log_health(&self) -> &'static str {
        match self.0.relay.log().health() {
            postrider_spool::Health::Good => "good",
            postrider_spool::Health::Full | postrider_spool::Health::Exhausted => "full",
            postrider_spool::Health::Failing => "failing",
        }
    }

    fn delete(&self, id: Option<&str>) -> io::Result<u64> {
        let sandbox = self.0.relay.sandbox();
        match id {
            Some(id) => Ok(u64::from(sandbox.delete(id)?)),
            None => Ok(sandbox.clear()? as u64),
        }
    }
}

fn view(kept: &postrider_vault::Captured) -> Captured {
    Captured {
        id: kept.id.clone(),
        accepted_at: Timestamp::from_micros(kept.accepted_at_us),
        account: kept.account.clone(),
        sender: kept.sender.clone(),
        recipients: kept.recipients.clone(),
        from: kept.from.clone(),
        subject: kept.subject.clone(),
        size: kept.size,
    }
}

fn disk(error: &io::Error) -> Unavailable {
    Unavailable(format!("the sandbox cannot be read: {error}"))
}

impl Keys for Adapter {
    fn caller(&self, key: &str, client: IpAddr) -> Result<Caller, KeyRefusal> {
        let control = self.0.relay.control();
        let now = self.0.relay.clock().now();
        let key = control.key(&key_hash(key).ok_or(KeyRefusal::Unknown)?, client, now)?.clone();
        self.0.registry.note_use(key.id, now);
        let application = key.application.and_then(|id| control.application(id)).cloned();
        Ok(Caller { key, application })
    }
}

impl postrider_api::Relay for Adapter {
    fn registry(&self) -> Option<Arc<Registry>> {
        Some(self.0.registry.clone())
    }

    fn submit(&self, messages: Vec<Submission>, answers: &Answers) {
        if self.0.stopping.load(Ordering::Relaxed) {
            let text = "The server is about to stop; try again later";
            let refused = |message: Submission| Settled {
                tag: message.tag,
                result: Err(Reply::ours(421, EnhancedCode(4, 3, 2), text)),
            };
            return answers(messages.into_iter().map(refused).collect());
        }
        self.0.relay.submit(messages, answers);
    }

    fn now(&self) -> Timestamp {
        self.0.relay.clock().now()
    }

    async fn ask(&self, request: Request) -> Result<Response, Unavailable> {
        if self.0.stopping.load(Ordering::Relaxed) {
            return Err(Unavailable("the relay is stopping".to_owned()));
        }
        let (answer, answered) = oneshot::channel();
        self.0.relay.ask(&request, move |response| {
            // Who asked may have gone.
            let _ = answer.send(response);
        });
        answered.await.map_err(|_| Unavailable("the relay is stopping".to_owned()))
    }

    async fn captured(&self, wanted: Wanted) -> Result<Vec<Captured>, Unavailable> {
        Ok(self.kept(&wanted))
    }

    async fn captured_one(&self, id: String) -> Result<Option<Captured>, Unavailable> {
        let shown = self.0.relay.sandbox().show(&id).map_err(|error| disk(&error))?;
        Ok(shown.map(|(kept, _)| view(&kept)))
    }

    async fn captured_content(&self, id: String) -> Result<Option<Vec<u8>>, Unavailable> {
        let shown = self.0.relay.sandbox().show(&id).map_err(|error| disk(&error))?;
        Ok(shown.map(|(_, content)| content))
    }

    async fn captured_delete(&self, id: Option<String>) -> Result<u64, Unavailable> {
        self.delete(id.as_deref()).map_err(|error| disk(&error))
    }

    fn health(&self) -> Health {
        let settings = self.0.settings.lock().unwrap_or_else(PoisonError::into_inner);
        let listeners = settings.snapshot.listeners.iter().zip(self.0.relay.addresses());
        let status = match (self.0.stopping.load(Ordering::Relaxed), self.log_health()) {
            (true, _) => "stopping",
            (false, "good") => "ok",
            (false, "full") => "disk full: new mail is refused, deliveries go on",
            (false, _) => "the disk fails: no mail is taken",
        };
        Health {
            status: status.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            hostname: settings.snapshot.hostname.to_string(),
            pid: std::process::id(),
            uptime_s: self.0.started.elapsed().as_secs(),
            shards: self.0.shards,
            listeners: listeners
                .map(|(listener, (_, address))| ListenerView {
                    name: listener.name.to_string(),
                    protocol: format!("{:?}", listener.protocol).to_lowercase(),
                    address: address.to_string(),
                    tls: listener.tls.is_some(),
                    sandbox: listener.sandbox,
                })
                .collect(),
            http: self.0.http.map(|address| address.to_string()),
            routes: settings.snapshot.routes.iter().map(|route| route.name.to_string()).collect(),
        }
    }

    fn spool(&self) -> Option<SpoolView> {
        let stats = self.0.relay.log().stats()?;
        let room = self.0.relay.log().room();
        Some(SpoolView {
            health: self.log_health(),
            segments: stats.segments,
            free_segments: stats.free_segments,
            suspect_segments: stats.suspect_segments,
            live_records: stats.live_records,
            live_bytes: stats.live_bytes,
            batches: stats.batches,
            syncs: stats.syncs,
            records: stats.records,
            bytes: stats.bytes,
            copied: stats.copied,
            unreadable: stats.unreadable,
            lost: stats.lost,
            durable: stats.durable.0,
            journal_lag: stats.durable.0.saturating_sub(self.0.relay.log().journaled().0),
            disk_free_bytes: room.free_bytes,
            disk_free_min_bytes: room.free_min_bytes,
        })
    }

    fn metrics(&self) -> String {
        let mut out = String::new();
        let mut figure = |name: &str, kind: &str, help: &str, value: u64| {
            let _ = writeln!(
                out,
                "# HELP postrider_{name} {help}\n# TYPE postrider_{name} {kind}\npostrider_{name} {value}"
            );
        };
        let memory = self.0.relay.memory();
        let kept = self.0.relay.sandbox().len() as u64;
        figure("sessions", "gauge", "Sessions open now.", self.0.relay.sessions() as u64);
        figure("sessions_bytes", "gauge", "Octets that sessions hold.", memory.sessions_bytes as u64);
        figure("sessions_bytes_max", "gauge", "Octets that they may hold.", memory.sessions_max_bytes as u64);
        let help = "Sessions refused since the start because memory was short.";
        figure("sessions_refused_for_memory_total", "counter", help, memory.refused);
        figure("sandbox_messages", "gauge", "Messages that the sandbox keeps.", kept);
        out
    }

    async fn reload(&self) -> Result<Vec<String>, String> {
        self.reload_now()
    }
}
