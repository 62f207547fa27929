//! `postrider serve`: starts the relay and its admin socket, hears signals, stops.

mod adapter;
mod banner;
mod http;
mod log;
mod notify;

use crate::cli::{EXIT_FAILED, EXIT_FOUND_PROBLEMS, EXIT_OK, Place};
use adapter::{Adapter, Running, Wire};
use anyhow::{Context, Result};
use clap::Args;
use log::LogFormat;
use postrider_model::Timestamp;
use postrider_relay::{Relay, RelayConfig};
use postrider_store::Registry;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;

/// How long open transactions may go on after a signal to stop.
const STOP_BOUND: Duration = Duration::from_secs(30);

const HELP: &str = "\
Without a configuration, a sandbox runs on 127.0.0.1:2525: it takes any login, keeps all mail and sends nothing.

Signals: SIGHUP reads configuration and certificates again (an invalid change is refused whole and logged);
SIGTERM and SIGINT stop within 30 seconds, a second one at once. No mail is lost either way.

Examples:
  postrider serve
  postrider serve --config /etc/postrider/postrider.toml
  postrider serve --config postrider.toml --log-format json --log info,postrider_egress=debug";

#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(crate) struct ServeArgs {
    /// How log lines look
    #[arg(long, value_enum, default_value_t = LogFormat::Human, value_name = "FORMAT")]
    log_format: LogFormat,
    /// What is logged: a level, or levels by module
    #[arg(long, default_value = "info", env = "POSTRIDER_LOG", value_name = "LEVELS")]
    log: String,
}

/// Serves until a signal stops it.
pub(crate) fn run(place: &Place, args: &ServeArgs) -> Result<u8> {
    let loaded = match place.load() {
        Ok(loaded) => loaded,
        Err(problems) => return Ok(crate::cli::refused(&problems)),
    };
    log::start(args.log_format, &args.log)?;
    for warning in loaded.problems.warnings() {
        tracing::warn!("{warning}");
    }
    let settings = loaded.settings;
    make_data_dir(&settings.data_dir)?;
    // From here on no signal ends the process by itself: one that comes early is heard once the relay runs.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut signals = {
        let _inside = runtime.enter();
        Signals::new()?
    };
    // Also the lock of the directory: who has the socket has the spool.
    let socket = postrider_api::bind(&settings.data_dir)?;
    let allowed = raise_descriptor_limit();
    let wire = Wire::default();
    let registry = Registry::start(&settings.data_dir, now, {
        let wire = wire.clone();
        move |control| wire.tell(control)
    })
    .map(Arc::new)?;
    let relay = match Relay::start(RelayConfig {
        snapshot: Arc::new(settings.snapshot.clone()),
        control: registry.current(),
        data_dir: settings.data_dir.clone(),
        shards: settings.shards,
        segment_size_bytes: settings.segment_size_bytes,
        memory_max_bytes: settings.memory_max_bytes,
        upkeep: settings.upkeep,
        authorities: settings.authorities.clone(),
    }) {
        Ok(relay) => relay,
        Err(error) => {
            tracing::error!("{error}");
            let wrong = matches!(error, postrider_relay::StartError::Configuration(_));
            return Ok(if wrong { EXIT_FOUND_PROBLEMS } else { EXIT_FAILED });
        }
    };
    let http = settings.http.as_ref().map(http::bind).transpose()?;
    let http_address = http.as_ref().map(|(listener, _)| listener.local_addr()).transpose()?;
    let addresses: Vec<_> = relay.addresses().iter().map(|(_, address)| *address).collect();
    if args.log_format == LogFormat::Human {
        let program = std::env::args().next().unwrap_or_else(|| "postrider".to_owned());
        eprint!("{}", banner::banner(&settings, place, &addresses, http_address, &program));
    }
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        data_dir = %settings.data_dir.display(),
        listeners = ?addresses,
        http = ?http_address,
        descriptors = allowed,
        "started"
    );
    let running = Adapter::new(Running::new(relay, place.clone(), settings, registry, http_address));
    running.listens(&wire);
    let api = postrider_api::start(socket, running.clone())?;
    let public = http
        .map(|(listener, options)| postrider_api::start_http(listener, options, running.clone()))
        .transpose()?;
    notify::ready();
    let broken = watch_loading(&running);
    let restarts = runtime.block_on(signals.until_stop(&running, &broken));
    notify::stopping();
    running.stops();
    let drained = std::thread::spawn({
        let running = running.clone();
        move || running.relay().stop(STOP_BOUND)
    });
    runtime.block_on(signals.until_drained(&drained));
    if let Some(public) = public {
        public.stop();
    }
    api.stop();
    tracing::info!("stopped");
    if restarts {
        return start_anew();
    }
    Ok(EXIT_OK)
}

/// The wall clock, to the millisecond.
fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let millis = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
    Timestamp::from_micros(millis.saturating_mul(1_000))
}

/// The signals that we hear.
struct Signals {
    hangups: Signal,
    terminations: Signal,
    interrupts: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        Ok(Signals {
            hangups: signal(SignalKind::hangup())?,
            terminations: signal(SignalKind::terminate())?,
            interrupts: signal(SignalKind::interrupt())?,
        })
    }

    /// Reloads at each SIGHUP; returns at the first SIGTERM or SIGINT, or, with true, when the relay must be
    /// started anew.
    async fn until_stop(&mut self, running: &Adapter, broken: &Notify) -> bool {
        let restarts = loop {
            tokio::select! {
                _ = self.hangups.recv() => reload(running),
                _ = self.terminations.recv() => break false,
                _ = self.interrupts.recv() => break false,
                () = broken.notified() => break true,
            }
        };
        tracing::info!(bound_s = STOP_BOUND.as_secs(), "stopping; a second signal stops at once");
        restarts
    }

    /// Waits for the relay to end; a second signal ends the process at once, which loses nothing either.
    async fn until_drained(&mut self, drained: &std::thread::JoinHandle<()>) {
        let mut looks = tokio::time::interval(Duration::from_millis(20));
        while !drained.is_finished() {
            tokio::select! {
                _ = looks.tick() => {}
                _ = self.terminations.recv() => std::process::exit(1),
                _ = self.interrupts.recv() => std::process::exit(1),
            }
        }
    }
}

/// Hears of a checkpoint that cannot be taken up whole: what is behind the damage would never be sent.
fn watch_loading(running: &Adapter) -> Arc<Notify> {
    let broken = Arc::new(Notify::new());
    let (running, tell) = (running.clone(), broken.clone());
    std::thread::spawn(move || {
        if running.relay().wait_until_loaded().is_err() {
            tell.notify_one();
        }
    });
    broken
}

/// This program in the place of this process, as it was started. Returns only if the system refuses.
fn start_anew() -> Result<u8> {
    use std::os::unix::process::CommandExt;
    let mut arguments = std::env::args_os();
    let program = arguments.next().unwrap_or_default();
    let program = std::env::current_exe().unwrap_or_else(|_| program.into());
    Err(std::process::Command::new(program).args(arguments).exec()).context("cannot start anew")
}

fn reload(running: &Adapter) {
    match running.reload_now() {
        Ok(notes) => {
            for note in notes {
                tracing::warn!("{note}");
            }
            tracing::info!("configuration and certificates were read again");
        }
        Err(problems) => {
            tracing::error!("the configuration is refused, and nothing has changed:\n{problems}");
        }
    }
}

fn make_data_dir(path: &Path) -> Result<()> {
    postrider_disk::make_directory(path).with_context(|| {
        format!("cannot make the data directory {}; choose another with --data-dir", path.display())
    })
}

/// As many file descriptors as the system allows us; gives the number.
fn raise_descriptor_limit() -> Option<u64> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
    getrlimit(Resource::Nofile).current
}
