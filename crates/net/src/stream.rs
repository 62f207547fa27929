//! One connection, plain or under TLS, for an edge-triggered event loop.

use crate::session::Session;
use crate::socket::Socket;
use crate::{ClientTls, ServerTls, TlsInfo};
use bytes::BytesMut;
use mio::event::{Event, Source};
use mio::net::{TcpStream, UnixStream};
use mio::{Interest, Registry, Token};
use postrider_model::snapshot::TlsLevel;
use std::io::{self, IoSlice, Write};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::Path;
use thiserror::Error;

/// What a read brought.
#[must_use = "the stream is edge-triggered: read on until WouldBlock or Closed, or remember to"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadOutcome {
    /// So many octets were added to the buffer; there may be more.
    Data(usize),
    /// Nothing now; an event will say when.
    WouldBlock,
    /// The peer will send nothing more. Under TLS this is `close_notify` or a bare end of the connection:
    /// SMTP frames its own messages, so the difference decides nothing.
    Closed,
}

/// What a write took.
#[must_use = "the octets that were not taken are the caller's to keep"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteOutcome {
    /// So many octets, from the front of the slices. Under TLS they may still wait in the stream's bounded
    /// buffer: see [`Stream::wants_write`].
    Written(usize),
    /// Nothing now; an event will say when.
    WouldBlock,
}

/// How far TLS has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsState {
    /// In clear.
    Plain,
    /// Reads and writes carry the handshake on.
    Handshaking,
    /// Everything read and written from here on is protected.
    Established,
}

/// Why a stream is of no more use, by culprit.
#[derive(Debug, Error)]
pub enum StreamError {
    /// The world: the connection was reset, timed out or became unreachable.
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    /// The peer: its handshake, certificate or records were not acceptable; or it refused ours.
    #[error("TLS failed: {0}")]
    Tls(#[from] rustls::Error),
    /// The peer: it spoke in clear after it asked for TLS. What it said must not be read as if it came under
    /// TLS, so the session ends (CVE-2011-0411).
    #[error("the peer sent {0} octets in clear ahead of the TLS handshake")]
    PlaintextBeforeTls(usize),
    /// The route: it asks for a verified certificate of a host whose name no certificate can bear.
    #[error("no certificate can name the host {0:?}")]
    ServerName(Box<str>),
    /// Us: TLS was started twice.
    #[error("TLS was already started on this connection")]
    AlreadyTls,
}

/// A buffer that a stream reads into: `Vec<u8>` (nothing is cleared first, so the cheapest) or `BytesMut`.
pub trait ReadBuffer: sealed::Sealed {
    /// Adds octets at the end.
    #[doc(hidden)]
    fn append(&mut self, bytes: &[u8]);
    /// One read into the end of the buffer: how many octets came and how many were asked for.
    #[doc(hidden)]
    fn read_once(&mut self, socket: &impl AsFd, max: usize) -> io::Result<(usize, usize)>;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for Vec<u8> {}
    impl Sealed for bytes::BytesMut {}
}

impl ReadBuffer for Vec<u8> {
    fn append(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }

    fn read_once(&mut self, socket: &impl AsFd, max: usize) -> io::Result<(usize, usize)> {
        self.reserve(max);
        let asked = self.capacity() - self.len();
        Ok((rustix::io::read(socket, rustix::buffer::spare_capacity(self))?, asked))
    }
}

impl ReadBuffer for BytesMut {
    fn append(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }

    fn read_once(&mut self, socket: &impl AsFd, max: usize) -> io::Result<(usize, usize)> {
        // The spare capacity of a `BytesMut` cannot be lent without unsafe code, so it is cleared first.
        let before = self.len();
        self.resize(before + max, 0);
        let read = rustix::io::read(socket, &mut self[before..]);
        self.truncate(before + *read.as_ref().unwrap_or(&0));
        Ok((read?, max))
    }
}

/// What the last events and system calls said about the socket. Kept only once the caller reports events
/// ([`Stream::handle_event`]); it saves the read that would only answer `EAGAIN`.
#[derive(Debug)]
struct Readiness {
    tracked: bool,
    readable: bool,
    writable: bool,
    read_closed: bool,
}

/// A TCP or Unix-socket connection, plain or under TLS.
#[derive(Debug)]
pub struct Stream {
    socket: Socket,
    session: Option<Box<Session>>,
    readiness: Readiness,
}

impl Stream {
    pub(crate) fn new(socket: Socket) -> Self {
        let readiness = Readiness { tracked: false, readable: true, writable: true, read_closed: false };
        Stream { socket, session: None, readiness }
    }

    /// Over a connected TCP socket, which must be non-blocking.
    #[must_use]
    pub fn from_tcp(tcp: TcpStream) -> Self {
        Stream::new(Socket::Tcp(tcp))
    }

    /// Over a connected Unix socket, which must be non-blocking.
    #[must_use]
    pub fn from_unix(unix: UnixStream) -> Self {
        Stream::new(Socket::Unix(unix))
    }

    /// Connects to a Unix socket, which succeeds or fails at once.
    ///
    /// # Errors
    /// What `connect(2)` says.
    pub fn connect_unix(path: &Path) -> io::Result<Self> {
        Ok(Stream::from_unix(UnixStream::connect(path)?))
    }

    /// Registers for both directions; a stream needs no other registration in its life.
    ///
    /// # Errors
    /// What `epoll_ctl(2)` says.
    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        registry.register(&mut self.socket, token, Interest::READABLE | Interest::WRITABLE)
    }

    /// Registers under another token.
    ///
    /// # Errors
    /// What `epoll_ctl(2)` says.
    pub fn reregister(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        registry.reregister(&mut self.socket, token, Interest::READABLE | Interest::WRITABLE)
    }

    /// Takes the stream off the event loop. Dropping the stream does that too.
    ///
    /// # Errors
    /// What `epoll_ctl(2)` says.
    pub fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        registry.deregister(&mut self.socket)
    }

    /// Notes an event of this stream's token. From the first one on, reads and writes that could only answer
    /// `WouldBlock` cost no system call, so the caller must then report every event.
    pub fn handle_event(&mut self, event: &Event) {
        self.readiness.tracked = true;
        self.readiness.readable |= event.is_readable() || event.is_read_closed() || event.is_error();
        self.readiness.writable |= event.is_writable() || event.is_write_closed() || event.is_error();
        self.readiness.read_closed |= event.is_read_closed() || event.is_error();
    }

    /// False if a read could only answer `WouldBlock`.
    #[must_use]
    pub fn may_read(&self) -> bool {
        !self.readiness.tracked
            || self.readiness.readable
            || self.session.as_ref().is_some_and(|session| session.is_closed())
    }

    /// Reads once, into the end of `buffer`: about `max` octets at most (a `Vec` with more spare capacity may
    /// take as much as that; TLS may add a record, 16 KiB, that had begun before).
    ///
    /// # Errors
    /// The stream is of no more use.
    pub fn read_into(
        &mut self,
        buffer: &mut impl ReadBuffer,
        max: usize,
    ) -> Result<ReadOutcome, StreamError> {
        let max = max.max(1);
        if self.session.as_ref().is_some_and(|session| session.is_closed()) {
            // A `close_notify` behind the last data has no event of its own.
            return Ok(ReadOutcome::Closed);
        }
        if !self.may_read() {
            return Ok(ReadOutcome::WouldBlock);
        }
        let outcome = match &mut self.session {
            Some(session) => {
                let (outcome, socket_is_empty) = session.read_into(&mut self.socket, buffer, max)?;
                self.readiness.readable = !socket_is_empty || self.readiness.read_closed;
                outcome
            }
            None => match retried(|| buffer.read_once(&self.socket, max)) {
                Ok((0, _)) => ReadOutcome::Closed,
                Ok((read, asked)) => {
                    // A short read has emptied the socket; what comes later makes an event (epoll(7)). The
                    // end of the stream may already have made its event and must still be read.
                    self.readiness.readable = read == asked || self.readiness.read_closed;
                    ReadOutcome::Data(read)
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ReadOutcome::WouldBlock,
                Err(error) => return Err(error.into()),
            },
        };
        if outcome == ReadOutcome::WouldBlock {
            self.readiness.readable = false;
        }
        Ok(outcome)
    }

    /// Writes the slices, in order, as far as the socket takes them: one `writev` on a plain stream.
    ///
    /// # Errors
    /// The stream is of no more use.
    pub fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> Result<WriteOutcome, StreamError> {
        if self.readiness.tracked && !self.readiness.writable {
            return Ok(WriteOutcome::WouldBlock);
        }
        let outcome = match &mut self.session {
            Some(session) => session.write_vectored(&mut self.socket, slices)?,
            None => match retried(|| self.socket.write_vectored(slices)) {
                Ok(0) if slices.iter().any(|slice| !slice.is_empty()) => WriteOutcome::WouldBlock,
                Ok(written) => WriteOutcome::Written(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => WriteOutcome::WouldBlock,
                Err(error) => return Err(error.into()),
            },
        };
        if outcome == WriteOutcome::WouldBlock {
            self.readiness.writable = false;
        }
        Ok(outcome)
    }

    /// [`Stream::write_vectored`] of one slice.
    ///
    /// # Errors
    /// The stream is of no more use.
    pub fn write(&mut self, bytes: &[u8]) -> Result<WriteOutcome, StreamError> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    /// True while octets wait in the TLS buffer for the socket: call [`Stream::flush`] on the next event.
    #[must_use]
    pub fn wants_write(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.wants_write())
    }

    /// Sends what waits in the TLS buffer; true when nothing is left there.
    ///
    /// # Errors
    /// The stream is of no more use.
    pub fn flush(&mut self) -> Result<bool, StreamError> {
        match &mut self.session {
            None => Ok(true),
            Some(session) => {
                let done = session.flush(&mut self.socket)?;
                self.readiness.writable &= done;
                Ok(done)
            }
        }
    }

    /// Becomes a TLS server: after the `220` to STARTTLS was written, or at once on an implicit-TLS port.
    ///
    /// `unread_octets` is how many octets the caller has read from this stream and neither consumed nor thrown
    /// away. They came in clear, so any other number than 0 is refused: a man in the middle may have put them
    /// there (RFC 3207 §4.2 and §6).
    ///
    /// # Errors
    /// [`StreamError::PlaintextBeforeTls`], or TLS is already on.
    pub fn start_tls_server(&mut self, tls: &ServerTls, unread_octets: usize) -> Result<(), StreamError> {
        self.admit_tls(unread_octets)?;
        self.session = Some(Box::new(Session::server(tls)?));
        Ok(())
    }

    /// Becomes a TLS server on an implicit-TLS port behind a PROXY header. `rest` is what was read behind the
    /// header: the beginning of the client's handshake. Never for STARTTLS.
    ///
    /// # Errors
    /// The handshake failed at once, or TLS is already on.
    pub fn start_tls_server_behind_proxy(&mut self, tls: &ServerTls, rest: &[u8]) -> Result<(), StreamError> {
        self.admit_tls(0)?;
        let mut session = Box::new(Session::server(tls)?);
        session.feed_handshake(&mut self.socket, rest)?;
        self.session = Some(session);
        Ok(())
    }

    /// Becomes a TLS client toward `host`: after the `220` to STARTTLS was read, or at once under implicit
    /// TLS. `unread_octets` as for [`Stream::start_tls_server`]. The first message of the handshake is sent.
    ///
    /// # Errors
    /// [`StreamError::PlaintextBeforeTls`]; `host` cannot be verified though `level` asks for it; TLS is
    /// already on; or the connection broke.
    pub fn start_tls_client(
        &mut self,
        tls: &ClientTls,
        level: TlsLevel,
        host: &str,
        unread_octets: usize,
    ) -> Result<(), StreamError> {
        self.admit_tls(unread_octets)?;
        let address = self.socket.peer_address().map(|address| address.ip());
        let session = Session::client(tls, level, host, address)?;
        self.session.insert(Box::new(session)).flush(&mut self.socket)?;
        Ok(())
    }

    fn admit_tls(&self, unread_octets: usize) -> Result<(), StreamError> {
        match (unread_octets, &self.session) {
            (0, None) => Ok(()),
            (0, Some(_)) => Err(StreamError::AlreadyTls),
            (unread, _) => Err(StreamError::PlaintextBeforeTls(unread)),
        }
    }

    /// How far TLS has come.
    #[must_use]
    pub fn tls_state(&self) -> TlsState {
        match &self.session {
            None => TlsState::Plain,
            Some(session) if session.is_handshaking() => TlsState::Handshaking,
            Some(_) => TlsState::Established,
        }
    }

    /// What was negotiated, once the handshake is over.
    #[must_use]
    pub fn tls_info(&self) -> Option<TlsInfo> {
        self.session.as_ref().and_then(|session| session.info())
    }

    /// Says that we send nothing more: `close_notify` under TLS, then the end of the stream. What the peer
    /// still sends can be read. Best effort: a peer that is gone is no error.
    pub fn close(&mut self) {
        if let Some(session) = &mut self.session {
            session.close(&mut self.socket);
        }
        // A peer that has already reset the connection leaves nothing to shut down.
        let _ = self.socket.shutdown_write();
    }

    /// The peer's address; `None` for a Unix socket or a connection that is already gone.
    #[must_use]
    pub fn peer_address(&self) -> Option<SocketAddr> {
        self.socket.peer_address()
    }

    /// Our address of this connection; `None` for a Unix socket.
    #[must_use]
    pub fn local_address(&self) -> Option<SocketAddr> {
        self.socket.local_address()
    }
}

impl Source for Stream {
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

/// The system call again as long as a signal interrupts it.
pub(crate) fn retried<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
