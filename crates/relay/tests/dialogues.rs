//! The dialogues of `ingress`, against a relay that listens on loopback: each in whole writes and octet by
//! octet, over TCP and TLS. Those that need a moved clock, small limits or a foreign address are left out.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use postrider_ingress::{UNDER_TLS, stage};
use postrider_model::snapshot::{Host, NextHop, Scheme, Target, TlsFiles, TlsLevel};
use postrider_model::{Snapshot, Timestamp};
use postrider_net::{ClientTls, SelfSigned};
use postrider_relay::{Relay, RelayConfig};
use postrider_smtp::dialogue::{Cut, Dialogue, Peer, parse, run};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use socket2::{Domain, Socket, Type};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How long a server may take to say what it must.
const PATIENCE: Duration = Duration::from_secs(20);

/// The stage with certificates, and with a world that is not there.
fn snapshot(dir: &Path) -> Snapshot {
    let certificate = SelfSigned::new("mx.example.net").unwrap();
    let files = TlsFiles { certificate: dir.join("cert.pem"), key: dir.join("key.pem") };
    std::fs::write(&files.certificate, certificate.certificate).unwrap();
    std::fs::write(&files.key, certificate.key).unwrap();
    let mut snapshot = stage(Timestamp::default());
    for listener in &mut snapshot.listeners {
        if UNDER_TLS.contains(&&*listener.name) {
            Arc::make_mut(listener).tls = Some(files.clone());
        }
    }
    for route in snapshot.routes.iter_mut().filter(|route| route.to == Target::Mx) {
        let host = Host::Address("127.0.0.1:1".parse().unwrap());
        Arc::make_mut(route).to =
            Target::Hosts(vec![NextHop { scheme: Scheme::Smtp, host, credentials: None }]);
    }
    snapshot
}

enum Wire {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
    Gone,
}

struct Client {
    wire: Wire,
    tls: Arc<ClientConfig>,
    closed: bool,
}

impl Client {
    fn connect(server: SocketAddr, from: IpAddr, tls: Arc<ClientConfig>, implicit: bool) -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::new(from, 0).into()).unwrap();
        socket.connect(&server.into()).unwrap();
        socket.set_tcp_nodelay(true).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        let mut client = Client { wire: Wire::Plain(socket.into()), tls, closed: false };
        if implicit {
            client.start_tls().unwrap();
        }
        client
    }

    fn read_some(&mut self) -> std::io::Result<Vec<u8>> {
        let mut buffer = vec![0; 16 << 10];
        let size = match &mut self.wire {
            Wire::Plain(stream) => stream.read(&mut buffer)?,
            Wire::Tls(stream) => stream.read(&mut buffer)?,
            Wire::Gone => 0,
        };
        buffer.truncate(size);
        Ok(buffer)
    }
}

impl Peer for Client {
    fn send(&mut self, octets: &[u8]) -> Result<(), String> {
        let sent = match &mut self.wire {
            Wire::Plain(stream) => stream.write_all(octets),
            Wire::Tls(stream) => stream.write_all(octets).and_then(|()| stream.flush()),
            Wire::Gone => Ok(()),
        };
        match sent {
            // The server may close in the middle of what it no longer wants to hear.
            Err(error) if !is_reset(&error) => Err(error.to_string()),
            _ => Ok(()),
        }
    }

    fn read(&mut self, out: &mut Vec<u8>) -> Result<bool, String> {
        match self.read_some() {
            Ok(octets) => {
                self.closed = octets.is_empty();
                out.extend_from_slice(&octets);
                Ok(!octets.is_empty())
            }
            Err(error) if is_reset(&error) => {
                self.closed = true;
                Ok(false)
            }
            Err(error) => Err(error.to_string()),
        }
    }

    fn is_closed(&mut self) -> Result<bool, String> {
        let mut rest = Vec::new();
        while !self.closed {
            self.read(&mut rest)?;
        }
        if rest.is_empty() {
            Ok(true)
        } else {
            Err(format!("`{}` came before it closed", rest.escape_ascii()))
        }
    }

    fn start_tls(&mut self) -> Result<(), String> {
        let Wire::Plain(mut stream) = std::mem::replace(&mut self.wire, Wire::Gone) else {
            return Err("TLS is active already".to_owned());
        };
        let name = ServerName::try_from("mx.example.net").unwrap();
        let mut session =
            ClientConnection::new(Arc::clone(&self.tls), name).map_err(|error| error.to_string())?;
        while session.is_handshaking() {
            session.complete_io(&mut stream).map_err(|error| error.to_string())?;
        }
        self.wire = Wire::Tls(Box::new(StreamOwned::new(session, stream)));
        Ok(())
    }

    fn wait(&mut self, _: Duration) -> Result<(), String> {
        Err("time cannot be moved here".to_owned())
    }

    /// What became of a message is looked at in memory, with the same dialogues.
    fn check_message(&mut self, _: &str, _: &[u8]) -> Result<(), String> {
        Ok(())
    }
}

fn is_reset(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof)
}

#[test]
fn a_relay_that_listens_says_what_a_session_in_memory_says() {
    let dir = tempfile::tempdir().unwrap();
    let config = RelayConfig {
        segment_size_bytes: 4 << 20,
        shards: 2,
        ..RelayConfig::new(Arc::new(snapshot(dir.path())), dir.path().join("data"))
    };
    let relay = Relay::start(config).unwrap();
    let tls = ClientTls::new(&[]).unwrap().rustls_config(TlsLevel::Encrypted);

    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ingress/tests/dialogues");
    let mut count = 0;
    for file in std::fs::read_dir(files).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        for dialogue in parse(&text).unwrap().iter().filter(|dialogue| can_run(dialogue)) {
            let name = dialogue.setting("listener").unwrap_or("relay");
            let (_, address) = relay.addresses().iter().find(|(listener, _)| &**listener == name).unwrap();
            let from = dialogue.setting("client").unwrap_or("127.0.0.1").parse().unwrap();
            let cuts: &[Cut] =
                if dialogue.setting("whole").is_some() { &[Cut::Whole] } else { &[Cut::Whole, Cut::Octets] };
            for cut in cuts {
                let mut client = Client::connect(*address, from, Arc::clone(&tls), name == "submissions");
                if let Err(failure) = run(dialogue, *cut, &mut client) {
                    panic!("{failure}");
                }
                count += 1;
            }
        }
    }
    assert!(count >= 200, "{count} dialogues were run");
    relay.stop(Duration::from_secs(10));
}

fn can_run(dialogue: &Dialogue) -> bool {
    let local = dialogue.setting("client").is_none_or(|client| client.starts_with("127."));
    local && dialogue.setting("limit").is_none() && dialogue.setting("memory").is_none()
}
