//! TLS over a socket: rustls between the caller's buffers and the kernel.

use crate::stream::{ReadBuffer, ReadOutcome, StreamError, WriteOutcome, retried};
use crate::{ClientTls, ServerTls};
use postrider_model::snapshot::TlsLevel;
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, ConnectionCommon, HandshakeKind, ServerConnection, SideData};
use std::cell::RefCell;
use std::fmt;
use std::io::{self, BufRead, IoSlice, Write};
use std::net::IpAddr;

/// Octets that wait in a session's buffer for the socket, and as many in clear during the handshake.
const SEND_BUFFER_MAX_BYTES: usize = 64 << 10;
/// Octets of ciphertext taken by one read.
const CIPHERTEXT_READ_MAX_BYTES: usize = 64 << 10;

thread_local! {
    /// Where ciphertext lands before it is decrypted. It holds nothing between two calls: one for all
    /// connections of an event loop, so that an idle connection keeps no such buffer.
    static CIPHERTEXT: RefCell<Box<[u8]>> = RefCell::new(vec![0; CIPHERTEXT_READ_MAX_BYTES].into());
}

/// What is known of the peer's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerCertificate {
    /// The peer showed none, and was not asked.
    None,
    /// The peer holds its key; nobody checked whom it names. This protects from listeners, not from a man
    /// in the middle.
    NotChecked,
    /// Trusted authorities vouch for it and it names the host that was dialled.
    Verified,
}

/// What was negotiated: for Received fields and logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsInfo {
    /// `TLSv1.2` or `TLSv1.3`.
    pub version: &'static str,
    /// The cipher suite by its IANA name.
    pub cipher: &'static str,
    /// The peer's certificate.
    pub certificate: PeerCertificate,
    /// The name that the client asked for (server side), or that we asked for.
    pub server_name: Option<Box<str>>,
    /// True if an earlier session was resumed.
    pub resumed: bool,
}

/// As in a Received field: `TLSv1.3 with cipher TLS_AES_256_GCM_SHA384`.
impl fmt::Display for TlsInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} with cipher {}", self.version, self.cipher)
    }
}

/// A TLS session; its side was decided when it began.
#[derive(Debug)]
pub(crate) enum Session {
    Client { tls: ClientConnection, verifies: bool, host: Box<str>, closed: bool },
    Server { tls: ServerConnection, closed: bool },
}

/// Calls `$body` with the connection of either side: rustls shares their code, but not a type for both that
/// could be borrowed apart from ours.
macro_rules! either {
    ($session:expr, $tls:ident, $closed:ident => $body:expr) => {
        match $session {
            Session::Client { tls: $tls, closed: $closed, .. } => $body,
            Session::Server { tls: $tls, closed: $closed } => $body,
        }
    };
}

impl Session {
    pub(crate) fn server(tls: &ServerTls) -> Result<Self, StreamError> {
        let mut connection = ServerConnection::new(tls.config())?;
        connection.set_buffer_limit(Some(SEND_BUFFER_MAX_BYTES));
        Ok(Session::Server { tls: connection, closed: false })
    }

    pub(crate) fn client(
        tls: &ClientTls,
        level: TlsLevel,
        host: &str,
        address: Option<IpAddr>,
    ) -> Result<Self, StreamError> {
        let verifies = level == TlsLevel::Verified;
        let host = host.trim_end_matches('.');
        let name = match (ServerName::try_from(host), address) {
            (Ok(name), _) => name.to_owned(),
            // Nobody will check the name: an odd one is no reason to send in clear.
            (Err(_), Some(address)) if !verifies => ServerName::from(address),
            (Err(_), _) => return Err(StreamError::ServerName(host.into())),
        };
        let mut connection = ClientConnection::new(tls.config(level), name)?;
        connection.set_buffer_limit(Some(SEND_BUFFER_MAX_BYTES));
        Ok(Session::Client { tls: connection, verifies, host: host.into(), closed: false })
    }

    /// As [`crate::Stream::read_into`]; the flag says that the socket was seen empty.
    pub(crate) fn read_into(
        &mut self,
        socket: &mut (impl io::Read + Write),
        buffer: &mut impl ReadBuffer,
        max: usize,
    ) -> Result<(ReadOutcome, bool), StreamError> {
        either!(self, tls, closed => read_into(tls, closed, socket, buffer, max))
    }

    /// Carries the handshake on with octets that were read before the session began.
    pub(crate) fn feed_handshake(
        &mut self,
        socket: &mut impl Write,
        octets: &[u8],
    ) -> Result<(), StreamError> {
        // A client cannot send under TLS before it has heard from us, so this stays empty.
        let mut plaintext = Vec::new();
        let fed = either!(self, tls, closed => feed(tls, closed, octets, &mut plaintext));
        self.flush(socket)?;
        fed?;
        match plaintext.len() {
            0 => Ok(()),
            early => Err(StreamError::PlaintextBeforeTls(early)),
        }
    }

    pub(crate) fn write_vectored(
        &mut self,
        socket: &mut impl Write,
        slices: &[IoSlice<'_>],
    ) -> Result<WriteOutcome, StreamError> {
        either!(self, tls, _closed => {
            // What an earlier write left behind goes first, so that the buffer takes more.
            flush(tls, socket)?;
            let written = tls.writer().write_vectored(slices)?;
            flush(tls, socket)?;
            Ok(match written {
                0 if slices.iter().any(|slice| !slice.is_empty()) => WriteOutcome::WouldBlock,
                _ => WriteOutcome::Written(written),
            })
        })
    }

    pub(crate) fn flush(&mut self, socket: &mut impl Write) -> Result<bool, StreamError> {
        either!(self, tls, _closed => flush(tls, socket))
    }

    pub(crate) fn wants_write(&self) -> bool {
        either!(self, tls, _closed => tls.wants_write())
    }

    /// True once the peer has said, or shown, that it sends nothing more.
    pub(crate) fn is_closed(&self) -> bool {
        either!(self, _tls, closed => *closed)
    }

    pub(crate) fn is_handshaking(&self) -> bool {
        either!(self, tls, _closed => tls.is_handshaking())
    }

    /// Best effort: a peer that is gone needs no `close_notify`.
    pub(crate) fn close(&mut self, socket: &mut impl Write) {
        either!(self, tls, _closed => {
            tls.send_close_notify();
            let _ = flush(tls, socket);
        });
    }

    pub(crate) fn info(&self) -> Option<TlsInfo> {
        if self.is_handshaking() {
            return None;
        }
        let (version, suite, kind) = either!(self, tls, _closed => {
            (tls.protocol_version()?, tls.negotiated_cipher_suite()?, tls.handshake_kind())
        });
        let (certificate, server_name) = match self {
            Session::Client { verifies: true, host, .. } => (PeerCertificate::Verified, Some(host.clone())),
            Session::Client { host, .. } => (PeerCertificate::NotChecked, Some(host.clone())),
            Session::Server { tls, .. } => (PeerCertificate::None, tls.server_name().map(Into::into)),
        };
        Some(TlsInfo {
            version: if version == rustls::ProtocolVersion::TLSv1_3 { "TLSv1.3" } else { "TLSv1.2" },
            cipher: iana_name(suite.suite()),
            certificate,
            server_name,
            resumed: kind == Some(HandshakeKind::Resumed),
        })
    }
}

fn read_into<S: SideData>(
    tls: &mut ConnectionCommon<S>,
    closed: &mut bool,
    socket: &mut (impl io::Read + Write),
    buffer: &mut impl ReadBuffer,
    max: usize,
) -> Result<(ReadOutcome, bool), StreamError> {
    let mut socket_is_empty = false;
    loop {
        if *closed {
            return Ok((ReadOutcome::Closed, true));
        }
        if socket_is_empty {
            return Ok((ReadOutcome::WouldBlock, true));
        }
        let plaintext = CIPHERTEXT.with_borrow_mut(|scratch| {
            let scratch = &mut scratch[..max.clamp(MINIMUM_READ_BYTES, CIPHERTEXT_READ_MAX_BYTES)];
            let read = match retried(|| socket.read(scratch)) {
                Ok(0) => {
                    *closed = true;
                    0
                }
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    socket_is_empty = true;
                    0
                }
                Err(error) => return Err(error.into()),
            };
            // The end of the stream may be behind a short read, but then it has an event of its own or, if
            // it came together with these octets, the caller knows (`Readiness::read_closed`).
            socket_is_empty |= read < scratch.len();
            feed(tls, closed, &scratch[..read], buffer)
        });
        // The handshake's next flight, a key update's answer, or the alert that says why we leave. What the
        // peer did wrong is the better error if the socket fails as well.
        let flushed = flush(tls, socket);
        let plaintext = plaintext?;
        flushed?;
        if plaintext > 0 {
            return Ok((ReadOutcome::Data(plaintext), socket_is_empty));
        }
    }
}

/// A smaller read than this would split handshake messages for nothing.
const MINIMUM_READ_BYTES: usize = 4 << 10;

/// Decrypts `octets` and adds the plaintext to `buffer`: how much that was.
fn feed<S: SideData>(
    tls: &mut ConnectionCommon<S>,
    closed: &mut bool,
    mut octets: &[u8],
    buffer: &mut impl ReadBuffer,
) -> Result<usize, StreamError> {
    let mut plaintext = 0;
    while !octets.is_empty() {
        let taken = tls.read_tls(&mut octets)?;
        let state = tls.process_new_packets()?;
        let mut reader = tls.reader();
        let mut left = state.plaintext_bytes_to_read();
        while left > 0 {
            let chunk = reader.fill_buf()?;
            let read = chunk.len();
            buffer.append(chunk);
            reader.consume(read);
            plaintext += read;
            left = left.saturating_sub(read.max(1));
        }
        if state.peer_has_closed() {
            *closed = true;
        }
        if taken == 0 || *closed {
            break;
        }
    }
    Ok(plaintext)
}

/// Sends what waits; false if the socket took only a part.
fn flush<S: SideData>(tls: &mut ConnectionCommon<S>, socket: &mut impl Write) -> Result<bool, StreamError> {
    while tls.wants_write() {
        match retried(|| tls.write_tls(socket)) {
            Ok(0) => return Ok(false),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}

/// The suite's name as IANA registers it; rustls names those of TLS 1.3 its own way.
fn iana_name(suite: rustls::CipherSuite) -> &'static str {
    use rustls::CipherSuite as Suite;
    match suite {
        Suite::TLS13_AES_128_GCM_SHA256 => "TLS_AES_128_GCM_SHA256",
        Suite::TLS13_AES_256_GCM_SHA384 => "TLS_AES_256_GCM_SHA384",
        Suite::TLS13_CHACHA20_POLY1305_SHA256 => "TLS_CHACHA20_POLY1305_SHA256",
        other => other.as_str().unwrap_or("unknown"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CertificateStore, SelfSigned};
    use proptest::prelude::*;
    use std::sync::Arc;

    /// One direction of a connection: takes `room` octets at most and gives `step` octets a read.
    struct Wire {
        octets: std::collections::VecDeque<u8>,
        room: usize,
        step: usize,
    }

    /// One end of a connection.
    struct End<'a> {
        incoming: &'a mut Wire,
        outgoing: &'a mut Wire,
    }

    impl io::Read for End<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            match buffer.len().min(self.incoming.step).min(self.incoming.octets.len()) {
                0 => Err(io::ErrorKind::WouldBlock.into()),
                read => self.incoming.octets.read(&mut buffer[..read]),
            }
        }
    }

    impl Write for End<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            match bytes.len().min(self.outgoing.room - self.outgoing.octets.len()) {
                0 => Err(io::ErrorKind::WouldBlock.into()),
                written => self.outgoing.octets.write(&bytes[..written]),
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn wire(room: usize, step: usize) -> Wire {
        Wire { octets: std::collections::VecDeque::new(), room, step }
    }

    fn server() -> Session {
        let pair = SelfSigned::new("mx.example.com").unwrap();
        let store = CertificateStore::from_pem(&pair.certificate, &pair.key).unwrap();
        Session::server(&ServerTls::new(Arc::new(store)).unwrap()).unwrap()
    }

    fn client() -> Session {
        client_at(TlsLevel::Opportunistic)
    }

    fn client_at(level: TlsLevel) -> Session {
        Session::client(&ClientTls::new(&[]).unwrap(), level, "mx.example.com", None).unwrap()
    }

    /// Lets both read until nothing is on its way; what each of them read.
    fn exchange(
        client: &mut Session,
        server: &mut Session,
        up: &mut Wire,
        down: &mut Wire,
    ) -> (Vec<u8>, Vec<u8>) {
        let (mut client_read, mut server_read) = (Vec::new(), Vec::new());
        loop {
            let mut end = End { incoming: down, outgoing: up };
            client.flush(&mut end).unwrap();
            let _ = client.read_into(&mut end, &mut client_read, 1000).unwrap();
            let mut end = End { incoming: up, outgoing: down };
            server.flush(&mut end).unwrap();
            let _ = server.read_into(&mut end, &mut server_read, 1000).unwrap();
            let all_sent = !client.wants_write() && !server.wants_write();
            if all_sent && up.octets.is_empty() && down.octets.is_empty() {
                return (client_read, server_read);
            }
        }
    }

    #[test]
    fn a_handshake_and_data_pass_in_pieces_of_any_size() {
        for step in [1, 2, 5, 100, 70_000] {
            let (mut client, mut server) = (client(), server());
            let (mut up, mut down) = (wire(500, step), wire(700, step));
            exchange(&mut client, &mut server, &mut up, &mut down);
            assert!(!client.is_handshaking() && !server.is_handshaking());
            let body = vec![b'x'; 40_000];
            let outcome = client
                .write_vectored(
                    &mut End { incoming: &mut down, outgoing: &mut up },
                    &[IoSlice::new(b"DATA\r\n"), IoSlice::new(&body)],
                )
                .unwrap();
            assert_eq!(outcome, WriteOutcome::Written(40_006));
            let (_, read) = exchange(&mut client, &mut server, &mut up, &mut down);
            assert!(read == [b"DATA\r\n", &body[..]].concat(), "{step}: {}", read.len());
        }
    }

    #[test]
    fn a_peer_that_does_not_read_is_sent_a_bounded_amount() {
        let (mut client, mut server) = (client(), server());
        let (mut up, mut down) = (wire(100_000, 70_000), wire(100_000, 70_000));
        exchange(&mut client, &mut server, &mut up, &mut down);
        let chunk = vec![b'x'; 16_000];
        let mut accepted = 0;
        let mut end = End { incoming: &mut down, outgoing: &mut up };
        while let WriteOutcome::Written(n) = client.write_vectored(&mut end, &[IoSlice::new(&chunk)]).unwrap()
        {
            accepted += n;
        }
        assert!(client.wants_write());
        assert!(accepted <= 100_000 + SEND_BUFFER_MAX_BYTES, "{accepted}");
        let (_, read) = exchange(&mut client, &mut server, &mut up, &mut down);
        assert_eq!(read.len(), accepted);
    }

    #[test]
    fn what_is_written_before_the_handshake_ends_goes_out_under_tls() {
        let (mut client, mut server) = (client(), server());
        let (mut up, mut down) = (wire(100_000, 70_000), wire(100_000, 70_000));
        let mut end = End { incoming: &mut down, outgoing: &mut up };
        let early = client.write_vectored(&mut end, &[IoSlice::new(b"EHLO relay\r\n")]).unwrap();
        assert_eq!(early, WriteOutcome::Written(12));
        assert!(!up.octets.make_contiguous().windows(4).any(|window| window == b"EHLO"));
        let (_, read) = exchange(&mut client, &mut server, &mut up, &mut down);
        assert_eq!(read, b"EHLO relay\r\n");
    }

    #[test]
    fn a_server_learns_why_a_client_leaves() {
        let (mut client, mut server) = (client_at(TlsLevel::Verified), server());
        let (mut up, mut down) = (wire(100_000, 70_000), wire(100_000, 70_000));
        let mut nothing = Vec::new();
        client.flush(&mut End { incoming: &mut down, outgoing: &mut up }).unwrap();
        let mut end = End { incoming: &mut up, outgoing: &mut down };
        let _ = server.read_into(&mut end, &mut nothing, 1000).unwrap();
        let mut end = End { incoming: &mut down, outgoing: &mut up };
        let failed = client.read_into(&mut end, &mut nothing, 1000);
        assert!(matches!(failed, Err(StreamError::Tls(rustls::Error::InvalidCertificate(_)))), "{failed:?}");
        let mut end = End { incoming: &mut up, outgoing: &mut down };
        let told = server.read_into(&mut end, &mut nothing, 1000);
        assert!(matches!(told, Err(StreamError::Tls(rustls::Error::AlertReceived(_)))), "{told:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn no_octets_make_a_session_panic_or_speak_in_clear(octets: Vec<u8>, cut in 0usize..400) {
            let (mut client, mut server) = (client(), server());
            let (mut up, mut down) = (wire(100_000, 70_000), wire(100_000, 70_000));
            // A hello that goes wrong somewhere, then anything.
            client.flush(&mut End { incoming: &mut down, outgoing: &mut up }).unwrap();
            up.octets.truncate(cut);
            up.octets.extend(&octets);
            let mut read = Vec::new();
            let mut end = End { incoming: &mut up, outgoing: &mut down };
            while let Ok((ReadOutcome::Data(_), _)) = server.read_into(&mut end, &mut read, 1000) {}
            prop_assert!(read.is_empty());
        }
    }
}
