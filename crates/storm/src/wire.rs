//! One non-blocking connection, plain or under TLS, with few system calls and no buffer of its own for reading.

use mio::net::TcpStream;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection};
use std::io::{ErrorKind, Read, Write};
use std::sync::Arc;

/// Octets read at once. One buffer per thread, so that it stays in the cache.
const READ_BYTES: usize = 128 << 10;
/// Plain text a single read of cipher text can free: what was read now and a record begun before.
const PLAIN_BYTES: usize = READ_BYTES + (64 << 10);
/// Unsent octets at which a peer that does not read is given up.
pub(crate) const UNSENT_MAX: usize = 64 << 20;

/// The reading buffers of a thread.
pub(crate) struct Scratch {
    cipher: Box<[u8]>,
    plain: Box<[u8]>,
}

impl Scratch {
    pub(crate) fn new() -> Scratch {
        Scratch { cipher: vec![0; READ_BYTES].into(), plain: vec![0; PLAIN_BYTES].into() }
    }
}

/// What a read brought.
pub(crate) struct Filled<'a> {
    pub(crate) octets: &'a [u8],
    /// There may be more: read again before waiting for an event.
    pub(crate) more: bool,
    /// The peer will send no more.
    pub(crate) closed: bool,
}

pub(crate) struct Wire {
    pub(crate) socket: TcpStream,
    tls: Option<Box<Connection>>,
    /// Octets the socket did not take yet, or that wait to go out in one write; plain text under TLS.
    out: Vec<u8>,
    written: usize,
}

impl Wire {
    pub(crate) fn new(socket: TcpStream) -> Wire {
        Wire { socket, tls: None, out: Vec::new(), written: 0 }
    }

    pub(crate) fn start_tls_client(&mut self, config: &Arc<ClientConfig>) -> std::io::Result<()> {
        // Invariant: the constant is a host name.
        let name = ServerName::try_from("relay.example.test").expect("a host name");
        let mut connection = ClientConnection::new(config.clone(), name).map_err(std::io::Error::other)?;
        connection.set_buffer_limit(None);
        self.tls = Some(Box::new(connection.into()));
        Ok(())
    }

    pub(crate) fn start_tls_server(&mut self, config: &Arc<ServerConfig>) -> std::io::Result<()> {
        let mut connection = ServerConnection::new(config.clone()).map_err(std::io::Error::other)?;
        connection.set_buffer_limit(None);
        self.tls = Some(Box::new(connection.into()));
        Ok(())
    }

    pub(crate) fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Octets for the next [`Wire::flush`].
    pub(crate) fn out(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }

    /// Writes a long text now, copying only what the socket does not take.
    pub(crate) fn write_now(&mut self, text: &[u8]) -> std::io::Result<()> {
        if let Some(tls) = &mut self.tls {
            tls.writer().write_all(&self.out)?;
            self.out.clear();
            tls.writer().write_all(text)?;
            return self.flush();
        }
        if !self.out.is_empty() {
            self.out.extend_from_slice(text);
            return self.flush();
        }
        let taken = match self.socket.write(text) {
            Ok(taken) => taken,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error),
        };
        self.out.extend_from_slice(&text[taken..]);
        // A short write means a full socket buffer; the next event says when there is room again.
        Ok(())
    }

    /// Writes what waits, as far as the socket takes it. Call again at the next event.
    pub(crate) fn flush(&mut self) -> std::io::Result<()> {
        if let Some(tls) = &mut self.tls {
            if !self.out.is_empty() {
                tls.writer().write_all(&self.out)?;
                self.out.clear();
            }
            while tls.wants_write() {
                match tls.write_tls(&mut self.socket) {
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            return Ok(());
        }
        while self.written < self.out.len() {
            match self.socket.write(&self.out[self.written..]) {
                Ok(taken) => self.written += taken,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if self.out.len() - self.written > UNSENT_MAX {
                        return Err(ErrorKind::OutOfMemory.into());
                    }
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.out.clear();
        self.written = 0;
        Ok(())
    }

    /// True when everything written was handed to the socket.
    pub(crate) fn is_flushed(&self) -> bool {
        self.out.is_empty() && self.tls.as_ref().is_none_or(|tls| !tls.wants_write())
    }

    /// One read. A short one means that the socket is empty (epoll(7)), which saves the call that would say so;
    /// `at_end` (the event told of the peer's end) asks to read on all the same.
    pub(crate) fn fill<'a>(&mut self, scratch: &'a mut Scratch, at_end: bool) -> std::io::Result<Filled<'a>> {
        let Some(tls) = &mut self.tls else {
            let (count, full) = read(&mut self.socket, &mut scratch.plain[..READ_BYTES])?;
            let (more, closed) = (full || at_end && count.is_some_and(|count| count > 0), count == Some(0));
            return Ok(Filled { octets: &scratch.plain[..count.unwrap_or(0)], more, closed });
        };
        let (count, full) = read(&mut self.socket, &mut scratch.cipher)?;
        let mut cipher = &scratch.cipher[..count.unwrap_or(0)];
        let mut filled = 0;
        let mut ended = false;
        while !cipher.is_empty() {
            tls.read_tls(&mut cipher)?;
            let state = match tls.process_new_packets() {
                Ok(state) => state,
                Err(error) => {
                    // The alert tells the peer's log why.
                    let _ = tls.write_tls(&mut self.socket);
                    return Err(std::io::Error::new(ErrorKind::InvalidData, error));
                }
            };
            ended |= state.peer_has_closed();
            let mut left = state.plaintext_bytes_to_read();
            while left > 0 {
                let count = tls.reader().read(&mut scratch.plain[filled..])?;
                if count == 0 {
                    return Err(std::io::Error::other("more plain text than one read can hold"));
                }
                filled += count;
                left -= count;
            }
        }
        if tls.wants_write() {
            self.flush()?;
        }
        let closed = ended || count == Some(0);
        let more = full || at_end && count.is_some_and(|count| count > 0);
        Ok(Filled { octets: &scratch.plain[..filled], more, closed })
    }
}

/// One read: octets (`None` when there are none now) and whether the buffer was filled.
fn read(socket: &mut TcpStream, buffer: &mut [u8]) -> std::io::Result<(Option<usize>, bool)> {
    loop {
        match socket.read(buffer) {
            Ok(count) => return Ok((Some(count), count == buffer.len())),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok((None, false)),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
