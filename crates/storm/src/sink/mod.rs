//! The receiving end: takes mail as the script says and logs each recipient.

mod session;
mod worker;

use crate::record::{Log, Totals};
use crate::script::Script;
use crate::tls::{self, Identity};
use anyhow::Context;
use mio::{Poll, Token, Waker};
use rustls::ServerConfig;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

/// Connections waiting to be accepted, per address.
const BACKLOG: i32 = 4096;
/// Tokens from here on are not sessions.
const FIRST_LISTENER: usize = 1 << 32;
const WAKE: Token = Token(usize::MAX - 1);

/// How a sink is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// Addresses to listen on; port 0 takes a free one.
    pub listen: Vec<SocketAddr>,
    /// Behaviour.
    pub script: Script,
    /// The log's file; memory when absent.
    pub log: Option<PathBuf>,
    /// TLS from the first octet on.
    pub implicit_tls: bool,
    /// LMTP (RFC 2033): a reply per recipient after the dot.
    pub lmtp: bool,
    /// Ends by itself after so many recipients.
    pub expect: Option<u64>,
}

impl Options {
    /// One free port of 127.0.0.1, log in memory, everything taken.
    #[must_use]
    pub fn on_loopback() -> Options {
        Options::at(vec![(Ipv4Addr::LOCALHOST, 0).into()])
    }

    /// These addresses, log in memory, everything taken.
    #[must_use]
    pub fn at(listen: Vec<SocketAddr>) -> Options {
        Options {
            listen,
            script: Script::default(),
            log: None,
            implicit_tls: false,
            lmtp: false,
            expect: None,
        }
    }
}

/// What others may see of a running sink.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    pub(crate) stop: AtomicBool,
    pub(crate) taken: AtomicU64,
    pub(crate) open: AtomicU64,
    pub(crate) finished: AtomicBool,
}

/// A running sink.
#[derive(Debug)]
pub struct Sink {
    addresses: Vec<SocketAddr>,
    shared: Arc<Shared>,
    waker: Arc<Waker>,
    thread: JoinHandle<(Log, Totals)>,
}

/// What a sink leaves behind.
#[derive(Debug)]
pub struct Remains {
    /// The log's lines, when it was kept in memory.
    pub log: Vec<u8>,
    /// Totals.
    pub totals: Totals,
}

impl Sink {
    /// Listens and serves in a thread.
    ///
    /// # Errors
    /// An address is taken, the certificate cannot be used, the log cannot be opened.
    pub fn start(options: Options) -> anyhow::Result<Sink> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKE)?);
        let mut listeners = Vec::new();
        for address in &options.listen {
            listeners.push(listen(*address).with_context(|| format!("cannot listen on {address}"))?);
        }
        let addresses = listeners.iter().map(TcpListener::local_addr).collect::<Result<_, _>>()?;
        let tls = certificate(&options)?;
        let mut log = match &options.log {
            Some(path) => Log::append_to(path)?,
            None => Log::in_memory(),
        };
        log.sink_head();
        log.flush();
        let shared = Arc::new(Shared::default());
        let setup = worker::Setup::new(poll, listeners, options, tls, log, shared.clone())?;
        let thread = std::thread::Builder::new().name("sink".into()).spawn(move || setup.run())?;
        Ok(Sink { addresses, shared, waker, thread })
    }

    /// The first address.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.addresses[0]
    }

    /// All addresses, in the order asked for.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Recipients taken so far, copies counted.
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.shared.taken.load(Ordering::Relaxed)
    }

    /// Connections open now.
    #[must_use]
    pub fn open_connections(&self) -> u64 {
        self.shared.open.load(Ordering::Relaxed)
    }

    /// True when [`Options::expect`] was reached.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.shared.finished.load(Ordering::Acquire)
    }

    /// Closes everything and returns what was recorded.
    #[must_use]
    pub fn stop(self) -> Remains {
        self.shared.stop.store(true, Ordering::Release);
        // A waker that fails only delays the stop: the loop looks at the flag several times a second.
        let _ = self.waker.wake();
        match self.thread.join() {
            Ok((log, totals)) => Remains { log: log.lines, totals },
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn certificate(options: &Options) -> anyhow::Result<Option<Arc<ServerConfig>>> {
    let offer = &options.script.offer;
    if !offer.starttls && !options.implicit_tls {
        return Ok(None);
    }
    let identity = match (&offer.certificate, &offer.key) {
        (Some(certificate), Some(key)) => Identity::from_files(certificate, key)?,
        _ => Identity::self_signed(&["localhost".to_owned()])?.0,
    };
    tls::server(identity).map(Some)
}
