//! Sessions in: accepting, and carrying octets for `ingress::Session`.

use crate::event_loop::{EventLoop, FIRST_TOKEN};
use crate::memory::STEP_BYTES;
use crate::outbound::READ_MAX;
use crate::submissions::Waiter;
use crate::timers::Owner;
use crate::turns::Turn;
use crate::workers::Work;
use mio::Token;
use postrider_auth::Verdict;
use postrider_ingress::{Overload, Pressure, Session, SessionContext, SessionTls, Settled, TlsInfo, Wants};
use postrider_model::Timestamp;
use postrider_model::snapshot::Protocol;
use postrider_net::{
    AcceptError, Proxied, ReadOutcome, Stream, StreamError, TlsState, WriteOutcome, parse_proxy_header,
};
use postrider_spool::Ticket;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Sessions accepted in one go before others have their turn.
const ACCEPT_MAX: usize = 64;
/// A peer that should speak PROXY first has this long to do so.
const PROXY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an implicit TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(30);
/// Octets kept of what a session has not taken. It takes commands and content as they come; what it leaves
/// is less than a line, or came behind a final dot whose answer is awaited.
const LEFTOVER_MAX: usize = 256 << 10;

/// Octets of room that an empty leftover keeps.
const LEFTOVER_KEPT_MAX: usize = 4 << 10;
/// What a connection takes in memory before its session begins, and a handshake beside a session.
const HANDSHAKE_SIZE_BYTES: usize = 32 << 10;
/// Octets read at once when there is no memory left.
const READ_MAX_WHEN_SHORT: usize = 16 << 10;

/// A client's connection.
pub(crate) struct Inbound {
    pub(crate) id: u32,
    stream: Stream,
    listener: usize,
    peer: SocketAddr,
    local: SocketAddr,
    phase: Phase,
    /// Read and not taken.
    leftover: Vec<u8>,
    pub(crate) scheduled: Timestamp,
    /// It waits for a turn.
    pub(crate) queued: bool,
    turn: Turn,
    begun: Timestamp,
    /// The address this session is counted under: the connection's own, whatever PROXY says.
    counted: IpAddr,
    /// Octets it is counted with.
    size_bytes: usize,
}

enum Phase {
    /// The PROXY header comes first.
    Proxy,
    /// Implicit TLS, before the session begins.
    Handshake,
    Session(Box<Session>),
    /// STARTTLS was answered.
    StartTls(Box<Session>),
    Over,
}

impl EventLoop {
    /// Takes the clients that wait at a listener.
    pub(crate) fn accept(&mut self, now: Timestamp, at: usize) {
        for _ in 0..ACCEPT_MAX {
            let Some(listening) = self.listeners.get(at) else { return };
            match listening.listener.accept() {
                Ok(Some((stream, peer))) => self.take_client(now, at, stream, peer),
                Ok(None) => return,
                Err(AcceptError::Exhausted(error)) => {
                    // The client waits in the kernel; it is taken when a descriptor is free.
                    tracing::error!(%error, "out of file descriptors; clients wait");
                    self.accept_again = Some(now + Duration::from_millis(100));
                    return;
                }
                Err(error) => {
                    tracing::error!(%error, "a client could not be accepted");
                    return;
                }
            }
        }
        // Others wait still; they have their turn after what is going on.
        self.accept_again = Some(now);
    }

    fn take_client(&mut self, now: Timestamp, at: usize, mut stream: Stream, peer: SocketAddr) {
        let listener = self.listeners[at].number;
        let limits = &self.loadout.snapshot.listeners[listener].limits;
        let overload = if self.draining {
            Some(Overload::Stopping)
        } else if self.held.pressure >= Pressure::Refuses {
            self.shared.memory.refused();
            Some(Overload::Memory)
        } else {
            self.shared.admit(listener, peer.ip(), limits.connections_max, limits.connections_per_client_max)
        };
        if let Some(overload) = overload {
            let _ = stream.write(&overload.greeting(&self.loadout.snapshot.hostname));
            stream.close();
            return;
        }
        let local = stream.local_address().unwrap_or(peer);
        let config = &self.loadout.snapshot.listeners[listener];
        let from_proxy = config.proxy.iter().any(|net| net.contains(peer.ip()));
        let id = self.next_id();
        let entry = self.sessions.vacant_entry();
        let key = entry.key();
        if stream.register(self.poll.registry(), session_token(key)).is_err() {
            self.shared.leave(listener, peer.ip());
            return;
        }
        entry.insert(Inbound {
            id,
            stream,
            listener,
            peer,
            local,
            phase: if from_proxy { Phase::Proxy } else { Phase::Over },
            leftover: Vec::new(),
            scheduled: Timestamp::MAX,
            queued: false,
            turn: Turn::default(),
            begun: now,
            counted: peer.ip(),
            size_bytes: 0,
        });
        if !from_proxy {
            self.begin(now, key);
        }
        self.serve(now, key);
    }

    /// The client is known: TLS first, or the session at once.
    fn begin(&mut self, now: Timestamp, key: usize) {
        let Some(inbound) = self.sessions.get_mut(key) else { return };
        let config = &self.loadout.snapshot.listeners[inbound.listener];
        match (&self.loadout.tls[inbound.listener], config.protocol) {
            (Some(tls), Protocol::Submissions) => {
                let rest = std::mem::take(&mut inbound.leftover);
                inbound.phase = match inbound.stream.start_tls_server_behind_proxy(tls, &rest) {
                    Ok(()) => Phase::Handshake,
                    Err(_) => Phase::Over,
                };
            }
            (Some(_), _) => self.begin_session(now, key, SessionTls::Offered),
            (None, _) => self.begin_session(now, key, SessionTls::Unavailable),
        }
    }

    fn begin_session(&mut self, now: Timestamp, key: usize, tls: SessionTls) {
        let seed = self.random();
        let Some(inbound) = self.sessions.get_mut(key) else { return };
        let context = SessionContext {
            snapshot: self.loadout.snapshot.clone(),
            control: self.loadout.control.clone(),
            listener: self.loadout.snapshot.listeners[inbound.listener].clone(),
            directory: self.loadout.directory(inbound.listener),
            ids: self.shard.cipher().clone(),
            peer: inbound.peer,
            local: inbound.local,
            tls,
            seed,
            now,
        };
        inbound.phase = Phase::Session(Box::new(Session::new(context)));
    }

    /// Something happened on a client's socket.
    pub(crate) fn session_event(&mut self, now: Timestamp, key: usize, event: &mio::event::Event) {
        let Some(inbound) = self.sessions.get_mut(key) else { return };
        inbound.stream.handle_event(event);
        self.serve(now, key);
    }

    /// A session's deadline may have passed.
    pub(crate) fn session_due(&mut self, now: Timestamp, key: usize) {
        let Some(inbound) = self.sessions.get_mut(key) else { return };
        inbound.scheduled = Timestamp::MAX;
        match &mut inbound.phase {
            Phase::Session(session) => session.timeout(now, &mut self.shard),
            Phase::Proxy if now >= inbound.begun + PROXY_TIMEOUT => inbound.phase = Phase::Over,
            Phase::Handshake | Phase::StartTls(_) if now >= inbound.begun + HANDSHAKE_TIMEOUT => {
                inbound.phase = Phase::Over;
            }
            Phase::Proxy | Phase::Handshake | Phase::StartTls(_) | Phase::Over => {}
        }
        self.serve(now, key);
    }

    /// A submitted message is safe, or is not.
    pub(crate) fn stored(
        &mut self,
        now: Timestamp,
        ticket: Ticket,
        fate: Result<(), postrider_engine::Refusal>,
    ) {
        // Losses are told ahead of what is durable, so a later ticket may come before an earlier one.
        let Ok(at) = self.awaited.binary_search_by_key(&ticket, |(awaited, _)| *awaited) else { return };
        let Some((_, waiter)) = self.awaited.remove(at) else { return };
        let (key, id) = match waiter {
            Waiter::Session { key, id } => (key, id),
            Waiter::Submission { tag, id, answers } => {
                let result = fate.map(|()| id).map_err(|refusal| refusal.0);
                return self.settled.push((answers, Settled { tag, result }));
            }
        };
        if let Some(inbound) = self.sessions.get_mut(key).filter(|inbound| inbound.id == id)
            && let Phase::Session(session) = &mut inbound.phase
        {
            session.durable(now, ticket, fate);
            self.serve(now, key);
        }
    }

    /// A password was checked.
    pub(crate) fn verdict(&mut self, now: Timestamp, key: usize, id: u32, verdict: Verdict) {
        let Some(inbound) = self.sessions.get_mut(key).filter(|inbound| inbound.id == id) else { return };
        if let Phase::Session(session) = &mut inbound.phase {
            session.auth_verdict(now, verdict);
            self.serve(now, key);
        }
    }

    /// Tells every session who may send what from now on.
    pub(crate) fn reconfigure_sessions(&mut self, now: Timestamp) {
        let keys: Vec<usize> = self.sessions.iter().map(|(key, _)| key).collect();
        for key in keys {
            let Some(inbound) = self.sessions.get_mut(key) else { continue };
            if let Phase::Session(session) | Phase::StartTls(session) = &mut inbound.phase {
                let directory = self.loadout.directory(inbound.listener);
                if session.reconfigure(now, &self.loadout.control, &directory, &mut self.shard) {
                    tracing::info!(client = %session, "cut off: it may not send any more");
                    self.serve(now, key);
                }
            }
        }
    }

    /// Tells every session that the relay stops.
    pub(crate) fn stop_sessions(&mut self, now: Timestamp) {
        let keys: Vec<usize> = self.sessions.iter().map(|(key, _)| key).collect();
        for key in keys {
            if let Some(Inbound { phase: Phase::Session(session), .. }) = self.sessions.get_mut(key) {
                session.shutdown();
                self.serve(now, key);
            }
        }
    }

    /// Carries octets until the socket has nothing more, the session waits, or its turn is over.
    pub(crate) fn serve(&mut self, now: Timestamp, key: usize) {
        loop {
            let Some(inbound) = self.sessions.get_mut(key) else { return };
            inbound.turn.renew(self.turns.whole);
            if inbound.turn.is_over() {
                self.turns.queue(Owner::Session { key, id: inbound.id }, &mut inbound.queued);
                break;
            }
            let go_on = match &mut inbound.phase {
                Phase::Proxy => self.read_proxy_header(now, key),
                Phase::Handshake | Phase::StartTls(_) => self.shake_hands(now, key),
                Phase::Session(_) => self.serve_session(now, key),
                Phase::Over => {
                    self.end_session(key);
                    return;
                }
            };
            let Some(inbound) = self.sessions.get_mut(key).filter(|_| go_on) else { break };
            inbound.turn.count();
        }
        self.count(key);
        let Some(inbound) = self.sessions.get_mut(key) else { return };
        let deadline = match &inbound.phase {
            Phase::Session(session) => session.deadline(),
            Phase::Proxy => Some(inbound.begun + PROXY_TIMEOUT),
            Phase::Handshake | Phase::StartTls(_) => Some(inbound.begun + HANDSHAKE_TIMEOUT),
            Phase::Over => None,
        };
        let owner = Owner::Session { key, id: inbound.id };
        self.timers.schedule(owner, deadline, &mut inbound.scheduled);
    }

    fn read_proxy_header(&mut self, now: Timestamp, key: usize) -> bool {
        let Some(inbound) = self.sessions.get_mut(key) else { return false };
        match inbound.stream.read_into(&mut inbound.leftover, 4_096) {
            Ok(ReadOutcome::Data(_)) => {}
            Ok(ReadOutcome::WouldBlock) => return false,
            Ok(ReadOutcome::Closed) | Err(_) => {
                inbound.phase = Phase::Over;
                return true;
            }
        }
        match parse_proxy_header(&inbound.leftover) {
            Proxied::NeedMore => true,
            Proxied::Invalid(error) => {
                tracing::warn!(peer = %inbound.peer, %error, "no PROXY header came from a host that must send one");
                inbound.phase = Phase::Over;
                true
            }
            Proxied::Parsed(header) => {
                inbound.leftover.drain(..header.consumed);
                if let Some(source) = header.source {
                    inbound.peer = source;
                }
                if let Some(destination) = header.destination {
                    inbound.local = destination;
                }
                self.begin(now, key);
                true
            }
        }
    }

    fn shake_hands(&mut self, now: Timestamp, key: usize) -> bool {
        let Some(inbound) = self.sessions.get_mut(key) else { return false };
        let outcome =
            inbound.stream.flush().and_then(|_| inbound.stream.read_into(&mut inbound.leftover, READ_MAX));
        match outcome {
            Ok(ReadOutcome::Closed) | Err(_) => {
                if let Err(error) = outcome {
                    tracing::info!(peer = %inbound.peer, %error, "a client's TLS handshake failed");
                }
                inbound.phase = Phase::Over;
                return true;
            }
            Ok(ReadOutcome::Data(_) | ReadOutcome::WouldBlock) => {}
        }
        if inbound.stream.tls_state() != TlsState::Established {
            return outcome.is_ok_and(|outcome| outcome != ReadOutcome::WouldBlock);
        }
        let info = inbound.stream.tls_info().map_or_else(
            || TlsInfo { version: "TLS".into(), cipher: "".into() },
            |info| TlsInfo { version: info.version.into(), cipher: info.cipher.into() },
        );
        match std::mem::replace(&mut inbound.phase, Phase::Over) {
            Phase::StartTls(mut session) => {
                session.tls_started(now, info);
                inbound.phase = Phase::Session(session);
            }
            _ => self.begin_session(now, key, SessionTls::Active(info)),
        }
        true
    }

    /// One round of a session: give it what is there, write what it says. True if there may be more to do.
    fn serve_session(&mut self, now: Timestamp, key: usize) -> bool {
        let holds = self.holds_sessions(now);
        let Some(inbound) = self.sessions.get_mut(key) else { return false };
        let Phase::Session(session) = &mut inbound.phase else { return true };
        let mut progress = false;
        session.set_pressure(now, self.held.pressure, &mut self.shard);
        let mut may_take = matches!(session.wants(), Wants::Read);
        if holds && may_take {
            may_take = false;
            if inbound.stream.may_read() || !inbound.leftover.is_empty() {
                self.turns.hold(Owner::Session { key, id: inbound.id }, &mut inbound.queued);
            }
        }
        // Only what a session gave back is given again; most sessions leave nothing.
        if may_take && !inbound.leftover.is_empty() {
            let taken = session.receive(now, &inbound.leftover, &mut self.shard);
            inbound.leftover.drain(..taken);
            progress |= taken > 0;
        }
        let short = self.held.pressure == Pressure::Sheds;
        let read_max = if short { READ_MAX_WHEN_SHORT } else { READ_MAX };
        // A client that speaks before it is greeted is caught by reading before the greeting is written.
        let may_read = session.output().is_empty() || session.is_new();
        if may_take && !progress && may_read && inbound.leftover.len() < LEFTOVER_MAX {
            self.buffer.clear();
            // The rest of a line belongs behind its beginning.
            self.buffer.append(&mut inbound.leftover);
            match inbound.stream.read_into(&mut self.buffer, read_max) {
                Ok(ReadOutcome::Data(_)) => {
                    let taken = session.receive(now, &self.buffer, &mut self.shard);
                    inbound.leftover.extend_from_slice(&self.buffer[taken..]);
                    progress = true;
                }
                Ok(ReadOutcome::WouldBlock) => inbound.leftover.extend_from_slice(&self.buffer),
                Ok(ReadOutcome::Closed) | Err(_) => {
                    session.disconnected(&mut self.shard);
                    inbound.phase = Phase::Over;
                    return true;
                }
            }
        }
        if let Some(ticket) = self.shard.take_submitted() {
            self.awaited.push_back((ticket, Waiter::Session { key, id: inbound.id }));
        }
        if let Some(job) = session.take_auth_job() {
            if self.shared.workers.know(&job, now) {
                session.auth_verdict(now, Verdict::Accepted);
                progress = true;
            } else {
                let work = Work::Verify { key, id: inbound.id, at: now, job: Box::new(job) };
                self.shared.workers.assign(work, &self.inbox);
            }
        }
        progress |= !session.output().is_empty();
        match write_all(&mut inbound.stream, session.output()) {
            Ok(true) => {}
            Ok(false) => return false,
            Err(_) => {
                session.disconnected(&mut self.shard);
                inbound.phase = Phase::Over;
                return true;
            }
        }
        match session.wants() {
            Wants::Close => {
                session.disconnected(&mut self.shard);
                inbound.phase = Phase::Over;
                true
            }
            Wants::StartTls => {
                let Phase::Session(session) = std::mem::replace(&mut inbound.phase, Phase::Over) else {
                    return true;
                };
                let started = match &self.loadout.tls[inbound.listener] {
                    Some(tls) => inbound.stream.start_tls_server(tls, inbound.leftover.len()).is_ok(),
                    None => false,
                };
                if started {
                    inbound.begun = now;
                    inbound.phase = Phase::StartTls(session);
                }
                true
            }
            Wants::Read | Wants::Write => progress,
            Wants::Blocked => false,
        }
    }

    /// Counts anew what a session holds.
    fn count(&mut self, key: usize) {
        let Some(inbound) = self.sessions.get_mut(key) else { return };
        if inbound.leftover.is_empty() && inbound.leftover.capacity() > LEFTOVER_KEPT_MAX {
            inbound.leftover = Vec::new();
        }
        let held = match &inbound.phase {
            Phase::Session(session) => session.size_bytes(),
            Phase::StartTls(session) => session.size_bytes() + HANDSHAKE_SIZE_BYTES,
            Phase::Proxy | Phase::Handshake | Phase::Over => HANDSHAKE_SIZE_BYTES,
        };
        let size_bytes = held + inbound.leftover.capacity();
        self.held.size_bytes = self.held.size_bytes - inbound.size_bytes + size_bytes;
        inbound.size_bytes = size_bytes;
        if self.held.size_bytes.abs_diff(self.held.published_bytes) >= STEP_BYTES {
            self.publish_memory();
        }
    }

    fn publish_memory(&mut self) {
        self.held.published_bytes = self.held.size_bytes;
        self.held.pressure = self.shared.memory.publish(self.index, self.held.size_bytes);
    }

    /// Publishes what this shard holds. When there is no memory left, sessions that are silent hand on what they
    /// hold too; from then on each does so with whatever comes.
    pub(crate) fn mind_memory(&mut self, now: Timestamp) {
        let before = self.held.swept_at;
        self.publish_memory();
        self.held.swept_at = self.held.pressure;
        if self.held.pressure < Pressure::Sheds || before == Pressure::Sheds {
            return;
        }
        let keys: Vec<usize> = self.sessions.iter().map(|(key, _)| key).collect();
        for key in keys {
            if let Some(Inbound { phase: Phase::Session(session), .. }) = self.sessions.get_mut(key) {
                session.set_pressure(now, Pressure::Sheds, &mut self.shard);
                self.count(key);
            }
        }
    }

    fn end_session(&mut self, key: usize) {
        let Some(mut inbound) = self.sessions.try_remove(key) else { return };
        self.held.size_bytes -= inbound.size_bytes;
        inbound.stream.close();
        let _ = inbound.stream.deregister(self.poll.registry());
        self.shared.leave(inbound.listener, inbound.counted);
    }
}

/// Writes what a session says; false if the socket takes no more now.
fn write_all(stream: &mut Stream, output: &mut Vec<u8>) -> Result<bool, StreamError> {
    if stream.wants_write() && !stream.flush()? {
        return Ok(false);
    }
    let mut written = 0;
    while written < output.len() {
        match stream.write(&output[written..])? {
            WriteOutcome::Written(n) => written += n,
            WriteOutcome::WouldBlock => break,
        }
    }
    let done = written == output.len();
    if done {
        output.clear();
    } else {
        output.drain(..written);
    }
    Ok(done && !stream.wants_write())
}

/// The token of a client's socket.
pub(crate) fn session_token(key: usize) -> Token {
    Token(FIRST_TOKEN + 2 * key)
}
