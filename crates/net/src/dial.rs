//! Happy Eyeballs on mio: the sockets of a [`Race`].

use crate::listener::set_options;
use crate::race::{AttemptError, Race, RaceLimits, Step};
use crate::stream::retried;
use crate::{Admitted, DialError, Refusal, Refused, Stream};
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use postrider_model::Timestamp;
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::{IpAddr, SocketAddr};

/// How to dial.
#[derive(Clone, Debug, Default)]
pub struct DialOptions {
    /// The egress source: local addresses to bind, at most one per family. When it has addresses, only
    /// destinations of their families are dialled; when it has none, the system chooses.
    pub bind: Vec<IpAddr>,
    /// Time-outs.
    pub limits: RaceLimits,
}

/// A connection that stands, registered for both directions under the dial's token.
#[derive(Debug)]
pub struct Connected {
    /// The connection, in clear.
    pub stream: Stream,
    /// Where it leads.
    pub address: SocketAddr,
    /// Our end of it.
    pub local: SocketAddr,
}

/// How a dial ended.
#[derive(Debug)]
pub enum DialOutcome {
    /// With a connection.
    Connected(Connected),
    /// With none: every address that was tried, and why it was of no use. Empty if there was no address.
    Failed(Vec<DialError>),
}

/// A dial under way. All its sockets have one token; on an event of it and at [`Dial::deadline`] call
/// [`Dial::proceed`]. Dropping the dial gives it up.
#[derive(Debug)]
pub struct Dial {
    race: Race,
    candidates: Vec<Admitted>,
    bind: Vec<IpAddr>,
    token: Token,
    sockets: Vec<(usize, TcpStream)>,
    deadline: Timestamp,
}

impl Dial {
    /// Begins; candidates in the order in which they are preferred (see [`crate::interleave`]). Call
    /// [`Dial::proceed`] at once: it starts the first connection.
    #[must_use]
    pub fn new(candidates: Vec<Admitted>, options: &DialOptions, token: Token, now: Timestamp) -> Self {
        let addresses = candidates.iter().map(Admitted::address).collect();
        Dial {
            race: Race::new(addresses, options.limits, now),
            candidates,
            bind: options.bind.clone(),
            token,
            sockets: Vec::new(),
            deadline: now,
        }
    }

    /// When to call [`Dial::proceed`] if no event comes before.
    #[must_use]
    pub fn deadline(&self) -> Timestamp {
        self.deadline
    }

    /// Looks at the sockets and does what is due; the outcome once there is one.
    pub fn proceed(&mut self, registry: &Registry, now: Timestamp) -> Option<DialOutcome> {
        self.look_at_sockets(now);
        loop {
            match self.race.poll(now) {
                Step::Start(candidate) => match self.start(candidate, registry) {
                    Ok(socket) => self.sockets.push((candidate, socket)),
                    Err(error) => self.race.failed(candidate, error, now),
                },
                Step::Abandon(candidate) => {
                    // Closing the socket takes it off the event loop.
                    self.take(candidate);
                }
                Step::Wait(until) => {
                    self.deadline = until;
                    return None;
                }
                Step::Won(candidate) => {
                    let connected = self.take(candidate).and_then(|socket| {
                        let local = socket.local_addr().ok()?;
                        let address = self.race.address(candidate);
                        Some(Connected { stream: Stream::from_tcp(socket), address, local })
                    });
                    return Some(match connected {
                        Some(connected) => DialOutcome::Connected(connected),
                        None => self.give_up(now),
                    });
                }
                Step::Lost => return Some(self.give_up(now)),
            }
        }
    }

    fn give_up(&mut self, now: Timestamp) -> DialOutcome {
        let none = Race::new(Vec::new(), RaceLimits::default(), now);
        DialOutcome::Failed(std::mem::replace(&mut self.race, none).into_errors())
    }

    fn take(&mut self, candidate: usize) -> Option<TcpStream> {
        let position = self.sockets.iter().position(|(owner, _)| *owner == candidate)?;
        Some(self.sockets.swap_remove(position).1)
    }

    fn look_at_sockets(&mut self, now: Timestamp) {
        let mut failed = Vec::new();
        for (candidate, socket) in &self.sockets {
            match state(socket, self.candidates[*candidate]) {
                Ok(true) => self.race.connected(*candidate),
                Ok(false) => {}
                Err(error) => failed.push((*candidate, error)),
            }
        }
        for (candidate, error) in failed {
            self.take(candidate);
            self.race.failed(candidate, error, now);
        }
    }

    fn start(&self, candidate: usize, registry: &Registry) -> Result<TcpStream, AttemptError> {
        let address = self.race.address(candidate);
        let kind = Type::STREAM.nonblocking();
        let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::TCP))
            .and_then(|socket| set_options(&socket).map(|()| socket))
            .map_err(AttemptError::Socket)?;
        if let Some(local) = self.source(address)? {
            // A port whose last connection still lingers in TIME_WAIT will do, or a busy source runs out.
            let bound = socket.set_reuse_address(true);
            bound
                .and_then(|()| socket.bind(&SocketAddr::new(local, 0).into()))
                .map_err(|error| AttemptError::Bind { local, error })?;
        }
        match retried(|| socket.connect(&address.into())) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {}
            // All ports toward this destination are taken.
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
                return Err(AttemptError::Socket(error));
            }
            Err(error) => return Err(AttemptError::Connect(error)),
        }
        let mut socket = TcpStream::from_std(socket.into());
        registry
            .register(&mut socket, self.token, Interest::READABLE | Interest::WRITABLE)
            .map_err(AttemptError::Socket)?;
        Ok(socket)
    }

    /// The local address for a destination.
    fn source(&self, destination: SocketAddr) -> Result<Option<IpAddr>, AttemptError> {
        if self.bind.is_empty() {
            return Ok(None);
        }
        let family = |local: &&IpAddr| local.is_ipv6() == destination.is_ipv6();
        match self.bind.iter().find(family) {
            Some(local) => Ok(Some(*local)),
            None => Err(AttemptError::NoSource(destination.is_ipv6())),
        }
    }
}

/// True if the connection stands, false if it is still being made.
fn state(socket: &TcpStream, candidate: Admitted) -> Result<bool, AttemptError> {
    if let Some(error) = socket.take_error().map_err(AttemptError::Connect)? {
        return Err(AttemptError::Connect(error));
    }
    match socket.peer_addr() {
        Ok(address) => {
            if socket.local_addr().is_ok_and(|local| candidate.is_own(local)) {
                return Err(Refused { address, refusal: Refusal::Own }.into());
            }
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(false),
        Err(error) => Err(AttemptError::Connect(error)),
    }
}
