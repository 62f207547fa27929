//! A connection: what the shell sees of it, and its phases.

use crate::auth::Exchange;
use crate::fit::Protection;
use crate::sending::Sending;
use crate::timeouts;
use bytes::Bytes;
use postrider_auth::ScramMemory;
use postrider_engine::{ConnectionEnd, ConnectionId, Outflow, Plan, PlanHost, TransactionId};
use postrider_model::snapshot::{Credentials, Host, NextHop, Route, Scheme, Target, TlsLevel};
use postrider_model::{EnhancedCode, Reply, Snapshot, Timestamp, Via};
use postrider_smtp::client::{Client, Dialect};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Transactions at once on a connection: the one whose end is being answered and the one whose envelope
/// goes out behind it (design §5, "In doubt").
pub const TRANSACTIONS_MAX: usize = 2;

/// What a connection is made for.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The shell's name for it.
    pub id: ConnectionId,
    /// The lane's plan.
    pub plan: Arc<Plan>,
    /// Which of the plan's hosts was reached.
    pub host: usize,
    /// At which address; `None` for a Unix socket.
    pub address: Option<SocketAddr>,
    /// The configuration under which the plan was made.
    pub snapshot: Arc<Snapshot>,
    /// A handshake with this host failed before, and this connection stays in clear. Only where
    /// [`Connection::retries_in_clear`] said so.
    pub plain_only: bool,
    /// Random octets, for SCRAM.
    pub nonce: [u8; 18],
    /// What the last connection to this host left ([`Connection::scram_memory`]): spares the key derivation.
    pub scram: Option<ScramMemory>,
}

/// What the shell should do next, besides writing [`Connection::output`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wants<'a> {
    /// Read, and call [`Connection::receive`].
    Read,
    /// Begin a handshake toward `server_name` when the output is written, and call
    /// [`Connection::tls_started`] or [`Connection::tls_failed`].
    StartTls {
        /// The name to ask for, and at [`TlsLevel::Verified`] to check.
        server_name: &'a str,
        /// [`TlsLevel::Opportunistic`] to [`TlsLevel::Verified`].
        level: TlsLevel,
    },
    /// Read; and a piece that was asked for by [`Outflow::read`] is waited for.
    Content {
        /// Of this transaction.
        transaction: TransactionId,
        /// Its index.
        piece: usize,
    },
    /// Close at once, and read [`Connection::end`].
    Close,
}

#[derive(Debug)]
pub(crate) enum Phase {
    /// Implicit TLS, before the greeting.
    TlsFirst,
    /// Greeting, EHLO, the reply to STARTTLS.
    Hello,
    /// The handshake after STARTTLS.
    Handshake,
    Auth(Box<Exchange>),
    /// Transactions.
    Open,
    /// QUIT was sent.
    Quitting(ConnectionEnd),
    Ended(ConnectionEnd),
}

/// A connection to one host for one lane.
#[derive(Debug)]
pub struct Connection {
    pub(crate) id: ConnectionId,
    pub(crate) plan: Arc<Plan>,
    host: usize,
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) route: Option<Arc<Route>>,
    pub(crate) scheme: Scheme,
    pub(crate) is_local: bool,
    pub(crate) plain_only: bool,
    pub(crate) nonce: [u8; 18],
    pub(crate) scram: Option<ScramMemory>,
    pub(crate) via: Via,
    pub(crate) peer: Arc<str>,
    pub(crate) client: Client,
    pub(crate) phase: Phase,
    pub(crate) protection: Protection,
    pub(crate) handshake_failed: bool,
    /// The oldest first; replies are for the front.
    pub(crate) slots: VecDeque<Sending>,
    pub(crate) messages: usize,
    pub(crate) messages_max: usize,
    pub(crate) recipients_max: usize,
    pub(crate) draining: bool,
    pub(crate) loading: bool,
    /// A reply came, octets were written, or a wait began.
    pub(crate) progress_at: Timestamp,
}

impl Connection {
    /// A connection that was just made: it waits for the greeting, or under implicit TLS for the handshake.
    #[must_use]
    pub fn new(now: Timestamp, setup: Setup) -> Self {
        let Setup { id, plan, host, address, snapshot, plain_only, nonce, scram } = setup;
        let route = snapshot.routes.get(plan.route).cloned();
        let hop = route.as_deref().and_then(|route| hop(route, plan.hosts.get(host)));
        let scheme = hop.map_or(Scheme::Smtp, |hop| hop.scheme);
        let dialect = if scheme == Scheme::Lmtp { Dialect::Lmtp } else { Dialect::Smtp };
        let via = match (hop, dialect) {
            (_, Dialect::Lmtp) => Via::Lmtp,
            (Some(_), Dialect::Smtp) => Via::Smarthost,
            (None, Dialect::Smtp) => Via::Mx,
        };
        let is_local = hop.is_some_and(|hop| matches!(hop.host, Host::Socket(_)));
        let peer = peer(plan.hosts.get(host).map_or("", |host| &*host.name), address);
        let ehlo = route.as_deref().and_then(|route| route.source.ehlo.as_ref());
        let client = Client::new(dialect, ehlo.unwrap_or(&snapshot.hostname).as_str());
        let phase = if scheme == Scheme::Smtps { Phase::TlsFirst } else { Phase::Hello };
        let messages_max = snapshot.delivery.messages_per_connection_max.max(1);
        Connection {
            id,
            plan,
            host,
            route,
            scheme,
            is_local,
            plain_only,
            nonce,
            scram,
            via,
            peer: peer.into(),
            client,
            phase,
            protection: Protection::None,
            handshake_failed: false,
            slots: VecDeque::with_capacity(TRANSACTIONS_MAX),
            messages: 0,
            messages_max,
            recipients_max: usize::MAX,
            draining: false,
            loading: false,
            progress_at: now,
            snapshot,
        }
    }

    /// Takes octets that were read, all of them.
    pub fn receive(&mut self, now: Timestamp, input: &[u8], outflow: &mut impl Outflow) {
        let mut input = input;
        self.read_replies(now, &mut input, outflow);
        self.work(now, outflow);
    }

    /// What is to be written, in order: commands and slices of content, meant for one vectored write.
    pub fn output(&self) -> impl Iterator<Item = &[u8]> {
        self.client.output().slices()
    }

    /// Octets in [`Connection::output`].
    #[must_use]
    pub fn output_len(&self) -> usize {
        self.client.output().len()
    }

    /// Notes that `n` octets of the output were written; more content may take their place.
    pub fn advance(&mut self, now: Timestamp, n: usize, outflow: &mut impl Outflow) {
        if n == 0 {
            return;
        }
        self.client.advance(n);
        self.progress_at = now;
        if self.is_content_left() {
            self.work(now, outflow);
        }
    }

    /// What the shell should do.
    #[must_use]
    pub fn wants(&self) -> Wants<'_> {
        match &self.phase {
            Phase::TlsFirst | Phase::Handshake => {
                let level = self.route.as_deref().map_or(TlsLevel::Opportunistic, |route| route.tls);
                // Implicit TLS has no clear text to fall back to.
                let least =
                    if self.scheme == Scheme::Smtps { TlsLevel::Encrypted } else { TlsLevel::Opportunistic };
                Wants::StartTls { server_name: self.host_name(), level: level.max(least) }
            }
            Phase::Ended(_) => Wants::Close,
            Phase::Open => match self.slots.front().and_then(|front| Some((front, front.awaited_piece()?))) {
                Some((front, piece)) => Wants::Content { transaction: front.transaction.id, piece },
                None => Wants::Read,
            },
            Phase::Hello | Phase::Auth(_) | Phase::Quitting(_) => Wants::Read,
        }
    }

    /// The handshake is over. `verified` says that the certificate was checked and names the host; `info`
    /// is for the transcript.
    pub fn tls_started(&mut self, now: Timestamp, verified: bool, info: &str) {
        if !matches!(self.phase, Phase::TlsFirst | Phase::Handshake) {
            return;
        }
        self.progress_at = now;
        self.protection = if verified { Protection::Verified } else { Protection::Encrypted };
        self.client.note(&format!("TLS started: {info}"));
        self.phase = Phase::Hello;
        self.client.tls_started();
    }

    /// The handshake failed; the connection is over.
    pub fn tls_failed(&mut self, error: &str) {
        self.handshake_failed = true;
        self.client.note(&format!("TLS failed: {error}"));
        let text = format!("The TLS handshake with {} failed: {error}", self.peer);
        self.phase = Phase::Ended(ConnectionEnd::Unreachable(trouble(EnhancedCode(4, 7, 5), &text)));
    }

    /// The handshake failed and the route permits the same host in clear: connect again with
    /// [`Setup::plain_only`], and log it.
    #[must_use]
    pub fn retries_in_clear(&self) -> bool {
        self.handshake_failed
            && self.scheme != Scheme::Smtps
            && self.route.as_deref().is_some_and(|route| route.tls <= TlsLevel::Opportunistic)
    }

    /// The end of a transaction may be sent: its mark is durable, and the outcomes of enough others are.
    pub fn may_end(&mut self, now: Timestamp, transaction: TransactionId, outflow: &mut impl Outflow) {
        if let Some(slot) = self.slots.iter_mut().find(|slot| slot.transaction.id == transaction) {
            slot.transaction.may_end = true;
            self.work(now, outflow);
        }
    }

    /// Brings a piece of content that was asked for.
    pub fn content(
        &mut self,
        now: Timestamp,
        transaction: TransactionId,
        piece: usize,
        bytes: Bytes,
        outflow: &mut impl Outflow,
    ) {
        if let Some(slot) = self.slots.iter_mut().find(|slot| slot.transaction.id == transaction) {
            slot.take_piece(piece, bytes);
            self.work(now, outflow);
        }
    }

    /// A piece of content cannot be read. A transaction cannot be taken back in the middle of its content,
    /// so the connection ends.
    pub fn content_failed(&mut self, now: Timestamp, transaction: TransactionId, outflow: &mut impl Outflow) {
        if self.slots.iter().any(|slot| slot.transaction.id == transaction) {
            let reply = trouble(EnhancedCode(4, 3, 0), "The message could not be read from our disk.");
            self.lose(now, &reply, outflow);
            self.phase = Phase::Ended(ConnectionEnd::Done);
        }
    }

    /// There may be work: after [`postrider_engine::Next::Loading`], or when messages came to an idle lane.
    pub fn resume(&mut self, now: Timestamp, outflow: &mut impl Outflow) {
        self.work(now, outflow);
    }

    /// Takes no further transaction, ends those it has, and says QUIT.
    pub fn drain(&mut self, now: Timestamp, outflow: &mut impl Outflow) {
        self.draining = true;
        self.work(now, outflow);
    }

    /// The peer closed the connection, or it broke with an error.
    pub fn closed(&mut self, now: Timestamp, error: Option<&str>, outflow: &mut impl Outflow) {
        let what = match self.client.awaited() {
            Some(command) => format!(" while we waited for the reply to {}", command.name()),
            None if self.slots.is_empty() => String::new(),
            None => " while we sent the content".to_owned(),
        };
        let text = match error {
            None => format!("{} closed the connection{what}.", self.peer),
            Some(error) => format!("The connection with {} broke{what}: {error}", self.peer),
        };
        self.client.note(&text);
        self.broke(now, trouble(EnhancedCode(4, 4, 2), &text), outflow);
    }

    /// When [`Connection::timeout`] should be called, unless something happens before.
    #[must_use]
    pub fn deadline(&self) -> Option<Timestamp> {
        Some(self.progress_at + self.patience()?)
    }

    /// The deadline may have passed.
    pub fn timeout(&mut self, now: Timestamp, outflow: &mut impl Outflow) {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return;
        }
        if self.is_idle() {
            self.quit(now, ConnectionEnd::Done);
            return;
        }
        let what = if self.output_len() > 0 {
            "to take what we sent".to_owned()
        } else if matches!(self.phase, Phase::TlsFirst | Phase::Handshake) {
            "in the TLS handshake".to_owned()
        } else if let Some(command) = self.client.awaited() {
            format!("for the reply to {}", command.name())
        } else {
            let reply = trouble(EnhancedCode(4, 3, 0), "Our own disk did not bring the message in time.");
            self.lose(now, &reply, outflow);
            self.phase = Phase::Ended(ConnectionEnd::Done);
            return;
        };
        let text = format!("Timed out waiting for {} {what}.", self.peer);
        self.client.note(&text);
        self.broke(now, trouble(EnhancedCode(4, 4, 2), &text), outflow);
    }

    /// How the connection ended, once it did.
    #[must_use]
    pub fn end(&self) -> Option<&ConnectionEnd> {
        match &self.phase {
            Phase::Ended(end) => Some(end),
            _ => None,
        }
    }

    /// The session so far in `C:` and `S:` lines, without content and secrets.
    #[must_use]
    pub fn transcript(&self) -> String {
        self.client.transcript().text()
    }

    /// After AUTH by SCRAM: what to give the next connection to this host in [`Setup::scram`].
    #[must_use]
    pub fn scram_memory(&self) -> Option<&ScramMemory> {
        self.scram.as_ref()
    }

    /// The remote as `name[address]:port`.
    #[must_use]
    pub fn peer(&self) -> &Arc<str> {
        &self.peer
    }

    /// Nothing is on its way and nothing waits: the connection is kept for what may come.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        matches!(self.phase, Phase::Open)
            && self.slots.is_empty()
            && self.client.awaited().is_none()
            && self.client.output().is_empty()
            && !self.loading
    }

    /// How long the present wait may take; `None` when the connection is over.
    fn patience(&self) -> Option<Duration> {
        let wait = match self.phase {
            Phase::Ended(_) => return None,
            Phase::Quitting(_) => timeouts::QUIT,
            _ if !self.client.output().is_empty() => timeouts::WRITE,
            Phase::TlsFirst | Phase::Handshake => timeouts::HANDSHAKE,
            _ => match self.client.awaited() {
                Some(command) => timeouts::reply_to(command),
                None if self.is_idle() => self.snapshot.delivery.idle_timeout,
                None => timeouts::OURSELVES,
            },
        };
        Some(wait)
    }

    pub(crate) fn host_name(&self) -> &str {
        self.plan.hosts.get(self.host).map_or("", |host| &host.name)
    }

    pub(crate) fn credentials(&self) -> Option<&Credentials> {
        let hop = hop(self.route.as_deref()?, self.plan.hosts.get(self.host))?;
        hop.credentials.as_ref()
    }
}

/// The configured host that a plan's host stands for, if the route names hosts.
fn hop<'a>(route: &'a Route, host: Option<&PlanHost>) -> Option<&'a NextHop> {
    match &route.to {
        Target::Hosts(hops) => hops.get(host?.hop?),
        Target::Mx | Target::Sandbox => None,
    }
}

/// `name[address]:port`; without a name, or with the address for one, `[address]:port`.
fn peer(name: &str, address: Option<SocketAddr>) -> String {
    match address {
        None => name.to_owned(),
        Some(address) => {
            let name = if name.starts_with('[') { "" } else { name };
            format!("{name}[{}]:{}", address.ip(), address.port())
        }
    }
}

/// A transient reply of ours.
pub(crate) fn trouble(enhanced: EnhancedCode, text: &str) -> Reply {
    Reply::ours(451, enhanced, text)
}
