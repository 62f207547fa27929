//! Listening sockets, one per shard on the same address.

use crate::Stream;
use crate::stream::retried;
use mio::event::Source;
use mio::{Interest, Registry, Token};
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use thiserror::Error;

/// Connections that the kernel keeps for us to accept.
const BACKLOG: i32 = 4_096;
/// An idle peer is probed after this long, then every [`KEEPALIVE_INTERVAL`]; sessions have shorter time-outs
/// of their own, so this only finds peers that vanished under a long one.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(120);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);

/// Why we cannot listen. The operator's to repair.
#[derive(Debug, Error)]
#[error("cannot listen on {address}: {error}{hint}", hint = hint(error))]
pub struct ListenError {
    /// Where.
    pub address: SocketAddr,
    /// What the system said.
    pub error: io::Error,
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "; another server, perhaps another Postrider, has it",
        io::ErrorKind::AddrNotAvailable => "; this host has no such address",
        io::ErrorKind::PermissionDenied => {
            "; ports below 1024 need CAP_NET_BIND_SERVICE (systemd: AmbientCapabilities=) or a higher port"
        }
        _ => "",
    }
}

/// Why no connection was accepted.
#[derive(Debug, Error)]
pub enum AcceptError {
    /// Us: no file descriptor or memory is left. Wait for a session to end, then accept again; no event will
    /// come for connections that already wait.
    #[error("no file descriptor or memory is left for another connection: {0}")]
    Exhausted(io::Error),
    /// The listening socket itself failed.
    #[error("the listening socket failed: {0}")]
    Failed(io::Error),
}

/// A listening socket of one shard.
#[derive(Debug)]
pub struct Listener {
    socket: mio::net::TcpListener,
    address: SocketAddr,
}

/// Listens on `address` once for each of `shards` (at least one); the kernel spreads the connections. Port 0
/// takes a free port, the same for all.
///
/// # Errors
/// The address cannot be bound, or somebody listens there already.
pub fn listen(address: SocketAddr, shards: usize) -> Result<Vec<Listener>, ListenError> {
    let failed = |error| ListenError { address, error };
    if address.port() != 0 {
        // SO_REUSEPORT would let a second relay of the same user take half of our mail in silence.
        bound(address, false).map_err(failed)?;
    }
    let mut listeners: Vec<Listener> = Vec::with_capacity(shards);
    for _ in 0..shards.max(1) {
        let address = listeners.first().map_or(address, |first| first.address);
        let socket = bound(address, true).map_err(failed)?;
        socket.listen(BACKLOG).map_err(failed)?;
        let socket = mio::net::TcpListener::from_std(socket.into());
        let address = socket.local_addr().map_err(failed)?;
        listeners.push(Listener { socket, address });
    }
    Ok(listeners)
}

/// A bound socket. What is set here is inherited by the accepted connections (tcp(7)), which saves the calls.
fn bound(address: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    if address.is_ipv6() {
        // So that `[::]` and `0.0.0.0` can both be listed, and no client appears as `::ffff:192.0.2.1`.
        socket.set_only_v6(true)?;
    }
    set_options(&socket)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// What every TCP connection of ours has set.
pub(crate) fn set_options(socket: &Socket) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL))
}

impl Listener {
    /// The address with its real port.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts one connection; `None` when none waits. Call until `None`: events are edge-triggered.
    ///
    /// # Errors
    /// See [`AcceptError`]. A client that left before it was accepted is no error.
    pub fn accept(&self) -> Result<Option<(Stream, SocketAddr)>, AcceptError> {
        loop {
            match retried(|| self.socket.accept()) {
                Ok((tcp, peer)) => return Ok(Some((Stream::from_tcp(tcp), peer))),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => match error.raw_os_error() {
                    Some(code) if is_exhaustion(code) => return Err(AcceptError::Exhausted(error)),
                    Some(code) if is_the_peers(code) => {}
                    _ => return Err(AcceptError::Failed(error)),
                },
            }
        }
    }
}

/// EMFILE, ENFILE, ENOBUFS, ENOMEM.
fn is_exhaustion(code: i32) -> bool {
    use rustix::io::Errno;
    [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM].iter().any(|errno| errno.raw_os_error() == code)
}

/// Network errors of the connection that `accept(2)` passes on, to be treated like `EAGAIN`.
fn is_the_peers(code: i32) -> bool {
    use rustix::io::Errno;
    [
        Errno::CONNABORTED,
        Errno::NETDOWN,
        Errno::PROTO,
        Errno::NOPROTOOPT,
        Errno::HOSTDOWN,
        Errno::NONET,
        Errno::HOSTUNREACH,
        Errno::OPNOTSUPP,
        Errno::NETUNREACH,
        Errno::PERM,
    ]
    .iter()
    .any(|errno| errno.raw_os_error() == code)
}

impl Source for Listener {
    fn register(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        self.socket.register(registry, token, interests)
    }

    fn reregister(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        self.socket.reregister(registry, token, interests)
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        self.socket.deregister(registry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_the_listener_hold_for_its_connections() {
        let listener = listen(SocketAddr::from(([127, 0, 0, 1], 0)), 1).unwrap().remove(0);
        let _client = std::net::TcpStream::connect(listener.address()).unwrap();
        let (accepted, _) = listener.socket.accept().unwrap();
        let accepted = socket2::SockRef::from(&accepted);
        assert!(accepted.tcp_nodelay().unwrap());
        assert!(accepted.keepalive().unwrap());
        assert_eq!(accepted.tcp_keepalive_time().unwrap(), KEEPALIVE_IDLE);
    }
}
