//! Connections out: dialling a plan's hosts, and carrying octets for `egress::Connection`.

use crate::event_loop::EventLoop;
use crate::timers::Owner;
use crate::turns::Turn;
use mio::Token;
use postrider_egress::{Connection, Setup, Wants};
use postrider_engine::{ConnectionEnd, ConnectionId, Plan};
use postrider_model::{EnhancedCode, Reply, Snapshot, Timestamp};
use postrider_net::{
    Admitted, Dial, DialOptions, DialOutcome, PeerCertificate, ReadOutcome, Stream, StreamError, TlsState,
    WriteOutcome,
};
use std::io::IoSlice;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

/// Slices given to one `writev`.
const SLICES_MAX: usize = 64;

/// One attempt to serve a lane: from the first dial to the end of the connection.
pub(crate) struct Outbound {
    pub(crate) id: ConnectionId,
    plan: Arc<Plan>,
    /// The configuration to which the plan's numbers belong, whatever is reloaded meanwhile.
    snapshot: Arc<Snapshot>,
    /// The host that is tried or was reached.
    host: usize,
    /// Why the hosts before it were of no use.
    failed: Option<ConnectionEnd>,
    plain_only: bool,
    state: State,
    pub(crate) scheduled: Timestamp,
    /// It waits for a turn.
    pub(crate) queued: bool,
    turn: Turn,
}

enum State {
    Dialing(Box<Dial>),
    Live(Box<Live>),
    /// Between two hosts; never seen by others.
    Idle,
}

struct Live {
    stream: Stream,
    connection: Connection,
    tls: Tls,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Tls {
    No,
    Handshaking,
    Done,
}

impl EventLoop {
    /// Begins a connection for a lane.
    pub(crate) fn connect(&mut self, now: Timestamp, plan: Arc<Plan>, snapshot: Arc<Snapshot>) {
        let id = ConnectionId(self.next_id());
        let key = self.connections.insert(Outbound {
            id,
            plan,
            snapshot,
            host: 0,
            failed: None,
            plain_only: false,
            state: State::Idle,
            scheduled: Timestamp::MAX,
            queued: false,
            turn: Turn::default(),
        });
        self.connection_keys.insert(id, key);
        self.dial(now, key);
    }

    /// Dials the present host, or the next one that can be dialled, or gives up.
    fn dial(&mut self, now: Timestamp, key: usize) {
        loop {
            let Some(outbound) = self.connections.get_mut(key) else { return };
            let Some(host) = outbound.plan.hosts.get(outbound.host) else {
                let end = outbound.failed.take().unwrap_or_else(|| {
                    let text = "No host is known for this site";
                    ConnectionEnd::Unreachable(Reply::ours(451, EnhancedCode(4, 4, 1), text))
                });
                return self.ended(now, key, end, Vec::new());
            };
            let route = outbound.snapshot.routes.get(outbound.plan.route);
            let bind = route.map(|route| route.source.bind.clone()).unwrap_or_default();
            if host.addresses.is_empty() && host.hop.is_some() {
                match Stream::connect_unix(Path::new(&*host.name)) {
                    Ok(stream) => return self.greeted(now, key, stream, None),
                    Err(error) => {
                        let text = format!("{}: {error}", host.name);
                        self.host_failed(key, ConnectionEnd::Unreachable(unreachable(&text)));
                        continue;
                    }
                }
            }
            let mut candidates = Vec::with_capacity(host.addresses.len());
            let mut refused = None;
            for address in &host.addresses {
                if host.hop.is_some() {
                    candidates.push(Admitted::named_by_a_route(*address));
                } else {
                    match self.loadout.guard.admit(*address) {
                        Ok(admitted) => candidates.push(admitted),
                        Err(error) => refused = Some(error.to_string()),
                    }
                }
            }
            if candidates.is_empty() {
                let text = refused.unwrap_or_else(|| format!("{} has no address", host.name));
                self.host_failed(key, ConnectionEnd::Unreachable(unreachable(&text)));
                continue;
            }
            let options = DialOptions { bind, ..DialOptions::default() };
            outbound.state =
                State::Dialing(Box::new(Dial::new(candidates, &options, connection_token(key), now)));
            if !self.proceed(now, key) {
                return;
            }
        }
    }

    /// Carries a dial on; true if the host was of no use and the next one should be dialled.
    fn proceed(&mut self, now: Timestamp, key: usize) -> bool {
        let Some(outbound) = self.connections.get_mut(key) else { return false };
        let State::Dialing(dial) = &mut outbound.state else { return false };
        match dial.proceed(self.poll.registry(), now) {
            None => {
                let owner = Owner::Connection { key, id: outbound.id.0 };
                self.timers.schedule(owner, Some(dial.deadline()), &mut outbound.scheduled);
                false
            }
            Some(DialOutcome::Connected(connected)) => {
                self.greeted(now, key, connected.stream, Some(connected.address));
                false
            }
            Some(DialOutcome::Failed(errors)) => {
                let text: Vec<_> = errors.iter().map(ToString::to_string).collect();
                self.host_failed(key, ConnectionEnd::Unreachable(unreachable(&text.join("; "))));
                true
            }
        }
    }

    fn host_failed(&mut self, key: usize, end: ConnectionEnd) {
        if let Some(outbound) = self.connections.get_mut(key) {
            outbound.state = State::Idle;
            outbound.failed = Some(end);
            outbound.host += 1;
            outbound.plain_only = false;
        }
    }

    /// A connection stands; the protocol begins.
    fn greeted(&mut self, now: Timestamp, key: usize, mut stream: Stream, address: Option<SocketAddr>) {
        let nonce = self.nonce();
        let Some(outbound) = self.connections.get_mut(key) else { return };
        if address.is_none() {
            // A Unix socket was not registered by a dial.
            if let Err(error) = stream.register(self.poll.registry(), connection_token(key)) {
                let end = ConnectionEnd::Unreachable(unreachable(&error.to_string()));
                return self.ended(now, key, end, Vec::new());
            }
        }
        let setup = Setup {
            id: outbound.id,
            plan: outbound.plan.clone(),
            host: outbound.host,
            address,
            snapshot: outbound.snapshot.clone(),
            plain_only: outbound.plain_only,
            nonce,
            scram: self.scram.get(&(outbound.plan.lane, outbound.host)).cloned(),
        };
        let connection = Connection::new(now, setup);
        outbound.state = State::Live(Box::new(Live { stream, connection, tls: Tls::No }));
        self.carry(now, key);
    }

    /// Something happened on a connection's socket.
    pub(crate) fn connection_event(&mut self, now: Timestamp, key: usize, event: &mio::event::Event) {
        let Some(outbound) = self.connections.get_mut(key) else { return };
        match &mut outbound.state {
            State::Live(live) => {
                live.stream.handle_event(event);
                self.carry(now, key);
            }
            State::Dialing(_) => {
                if self.proceed(now, key) {
                    self.dial(now, key);
                }
            }
            State::Idle => {}
        }
    }

    /// A connection's deadline may have passed.
    pub(crate) fn connection_due(&mut self, now: Timestamp, key: usize) {
        let Some(outbound) = self.connections.get_mut(key) else { return };
        outbound.scheduled = Timestamp::MAX;
        match &mut outbound.state {
            State::Live(live) => {
                live.connection.timeout(now, &mut self.shard);
                self.carry(now, key);
            }
            State::Dialing(_) => {
                if self.proceed(now, key) {
                    self.dial(now, key);
                }
            }
            State::Idle => {}
        }
    }

    /// Does something with a live connection, then carries its octets.
    pub(crate) fn with_connection(
        &mut self,
        now: Timestamp,
        id: ConnectionId,
        act: impl FnOnce(&mut Connection, &mut postrider_engine::Shard),
    ) {
        let Some(&key) = self.connection_keys.get(&id) else { return };
        let Some(Outbound { state: State::Live(live), .. }) = self.connections.get_mut(key) else { return };
        act(&mut live.connection, &mut self.shard);
        self.carry(now, key);
    }

    /// Writes and reads until the socket has nothing more or the turn is over, and sees to what the connection
    /// wants.
    pub(crate) fn carry(&mut self, now: Timestamp, key: usize) {
        loop {
            let Some(outbound) = self.connections.get_mut(key) else { return };
            let State::Live(live) = &mut outbound.state else { return };
            outbound.turn.renew(self.turns.whole);
            if outbound.turn.is_over() {
                self.turns.queue(Owner::Connection { key, id: outbound.id.0 }, &mut outbound.queued);
                return self.schedule(key);
            }
            let Live { stream, connection, tls } = &mut **live;
            let mut progress = false;
            if let Err(error) = flush(stream, connection, now, &mut self.shard, &mut outbound.turn.octets) {
                broke(connection, *tls, now, &error, &mut self.shard);
            }
            if *tls == Tls::Handshaking && stream.tls_state() == TlsState::Established {
                *tls = Tls::Done;
                let info = stream.tls_info();
                let verified =
                    info.as_ref().is_some_and(|info| info.certificate == PeerCertificate::Verified);
                let text = info.map_or_else(String::new, |info| info.to_string());
                connection.tls_started(now, verified, &text);
                progress = true;
            }
            match connection.wants() {
                Wants::Close => {
                    stream.close();
                    return self.connection_over(now, key);
                }
                Wants::StartTls { server_name, level } if *tls == Tls::No => {
                    if connection.output_len() == 0 {
                        let server_name = server_name.to_owned();
                        *tls = Tls::Handshaking;
                        if let Err(error) = stream.start_tls_client(&self.client_tls, level, &server_name, 0)
                        {
                            connection.tls_failed(&error.to_string());
                        }
                        progress = true;
                    }
                }
                Wants::StartTls { .. } | Wants::Read | Wants::Content { .. } => {}
            }
            self.buffer.clear();
            match stream.read_into(&mut self.buffer, READ_MAX) {
                Ok(ReadOutcome::Data(_)) => {
                    connection.receive(now, &self.buffer, &mut self.shard);
                    progress = true;
                }
                Ok(ReadOutcome::WouldBlock) => {}
                Ok(ReadOutcome::Closed) => {
                    if *tls == Tls::Handshaking {
                        connection.tls_failed("the peer closed the connection");
                    } else {
                        connection.closed(now, None, &mut self.shard);
                    }
                    progress = true;
                }
                Err(error) => {
                    broke(connection, *tls, now, &error, &mut self.shard);
                    progress = true;
                }
            }
            if *tls == Tls::Handshaking && stream.tls_state() == TlsState::Established {
                progress = true;
            }
            if progress {
                outbound.turn.count();
            } else if outbound.turn.octets > 0 {
                return self.schedule(key);
            }
        }
    }

    /// Sees to it that a live connection's deadline is kept.
    fn schedule(&mut self, key: usize) {
        let Some(outbound) = self.connections.get_mut(key) else { return };
        let State::Live(live) = &outbound.state else { return };
        let owner = Owner::Connection { key, id: outbound.id.0 };
        self.timers.schedule(owner, live.connection.deadline(), &mut outbound.scheduled);
    }

    /// A live connection is over: the lane is told, or the next host is tried.
    fn connection_over(&mut self, now: Timestamp, key: usize) {
        let Some(outbound) = self.connections.get_mut(key) else { return };
        let State::Live(live) = std::mem::replace(&mut outbound.state, State::Idle) else { return };
        let Live { mut stream, connection, .. } = *live;
        let _ = stream.deregister(self.poll.registry());
        let end = connection.end().cloned().unwrap_or(ConnectionEnd::Done);
        let transcript: Vec<String> = connection.transcript().lines().map(str::to_owned).collect();
        if let Some(memory) = connection.scram_memory() {
            self.scram.insert((outbound.plan.lane, outbound.host), memory.clone());
        }
        if connection.retries_in_clear() {
            tracing::warn!(peer = %connection.peer(), "TLS failed; trying again in clear, as the route permits");
            outbound.plain_only = true;
            return self.dial(now, key);
        }
        let served = self.shard.is_linked(outbound.id);
        let of_no_use = matches!(end, ConnectionEnd::Unreachable(_) | ConnectionEnd::Throttled(_));
        if !served && of_no_use && outbound.host + 1 < outbound.plan.hosts.len() {
            self.host_failed(key, end);
            return self.dial(now, key);
        }
        self.ended(now, key, end, transcript);
    }

    fn ended(&mut self, now: Timestamp, key: usize, end: ConnectionEnd, transcript: Vec<String>) {
        let Some(outbound) = self.connections.try_remove(key) else { return };
        self.connection_keys.remove(&outbound.id);
        if let ConnectionEnd::Unreachable(reply)
        | ConnectionEnd::Throttled(reply)
        | ConnectionEnd::Broken(reply) = &end
        {
            tracing::info!(lane = outbound.plan.lane.0, %reply, "connection ended");
        }
        self.shard.connection_ended(now, outbound.id, outbound.plan.lane, end, transcript);
    }
}

/// Octets asked for in one read.
pub(crate) const READ_MAX: usize = 64 << 10;

fn flush(
    stream: &mut Stream,
    connection: &mut Connection,
    now: Timestamp,
    shard: &mut postrider_engine::Shard,
    octets: &mut usize,
) -> Result<(), StreamError> {
    if stream.tls_state() != TlsState::Plain {
        stream.flush()?;
    }
    while connection.output_len() > 0 && *octets > 0 {
        let slices: smallvec::SmallVec<[IoSlice<'_>; 16]> =
            connection.output().take(SLICES_MAX).map(IoSlice::new).collect();
        match stream.write_vectored(&slices)? {
            WriteOutcome::Written(n) => {
                drop(slices);
                *octets = octets.saturating_sub(n);
                connection.advance(now, n, shard);
            }
            WriteOutcome::WouldBlock => break,
        }
    }
    Ok(())
}

fn broke(
    connection: &mut Connection,
    tls: Tls,
    now: Timestamp,
    error: &StreamError,
    shard: &mut postrider_engine::Shard,
) {
    if tls == Tls::Handshaking {
        connection.tls_failed(&error.to_string());
    } else {
        connection.closed(now, Some(&error.to_string()), shard);
    }
}

fn unreachable(text: &str) -> Reply {
    Reply::ours(451, EnhancedCode(4, 4, 1), text)
}

/// The token of a connection's socket.
pub(crate) fn connection_token(key: usize) -> Token {
    Token(crate::event_loop::FIRST_TOKEN + 2 * key + 1)
}
