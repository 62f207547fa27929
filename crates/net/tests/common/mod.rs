//! Two ends of a connection in one thread and one event loop.
#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used)]

use mio::{Events, Poll, Token};
use postrider_model::Timestamp;
use postrider_net::{
    Admitted, CertificateStore, ClientTls, Connected, Dial, DialOptions, DialOutcome, Listener, ReadOutcome,
    SelfSigned, ServerTls, Stream, StreamError, WriteOutcome, listen,
};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// No wait of these tests is this long unless something is broken.
pub const PATIENCE: Duration = Duration::from_secs(20);
const CLIENT: Token = Token(1);
const SERVER: Token = Token(2);

pub struct Pair {
    pub poll: Poll,
    events: Events,
    pub client: Stream,
    pub server: Stream,
    pub client_read: Vec<u8>,
    pub server_read: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
    Client,
    Server,
}

impl Pair {
    pub fn tcp() -> Self {
        let listener = listen("127.0.0.1:0".parse().unwrap(), 1).unwrap().remove(0);
        Self::through(&listener)
    }

    pub fn through(listener: &Listener) -> Self {
        let mut poll = Poll::new().unwrap();
        let connected = match dial(&mut poll, vec![listener.address()], &DialOptions::default()) {
            DialOutcome::Connected(connected) => connected,
            DialOutcome::Failed(errors) => panic!("{errors:?}"),
        };
        let Connected { stream: client, local, .. } = connected;
        let (server, peer) = loop {
            if let Some(accepted) = listener.accept().unwrap() {
                break accepted;
            }
        };
        assert_eq!(peer, local);
        Self::of(poll, client, server)
    }

    pub fn of(poll: Poll, mut client: Stream, mut server: Stream) -> Self {
        // The dial has registered the client; take it over.
        let _ = client.deregister(poll.registry());
        client.register(poll.registry(), CLIENT).unwrap();
        server.register(poll.registry(), SERVER).unwrap();
        let events = Events::with_capacity(8);
        Pair { poll, events, client, server, client_read: Vec::new(), server_read: Vec::new() }
    }

    fn wait(&mut self) {
        self.poll.poll(&mut self.events, Some(PATIENCE)).unwrap();
        assert!(!self.events.is_empty(), "nothing happened");
        for event in &self.events {
            match event.token() {
                CLIENT => self.client.handle_event(event),
                _ => self.server.handle_event(event),
            }
        }
    }

    /// Reads at both ends, in turn, until `done` or one of them fails.
    pub fn until(&mut self, done: impl Fn(&Pair) -> bool) -> Result<(), (StreamErrorAt, StreamError)> {
        loop {
            self.client.flush().map_err(|e| (StreamErrorAt::Client, e))?;
            self.server.flush().map_err(|e| (StreamErrorAt::Server, e))?;
            while let ReadOutcome::Data(_) =
                self.client.read_into(&mut self.client_read, 8192).map_err(|e| (StreamErrorAt::Client, e))?
            {
            }
            while let ReadOutcome::Data(_) =
                self.server.read_into(&mut self.server_read, 8192).map_err(|e| (StreamErrorAt::Server, e))?
            {
            }
            if done(self) {
                return Ok(());
            }
            self.wait();
        }
    }

    /// Sends all of `bytes` while the other end reads.
    pub fn send(&mut self, from: End, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let stream = if from == End::Client { &mut self.client } else { &mut self.server };
            match stream.write(rest).unwrap() {
                WriteOutcome::Written(n) => rest = &rest[n..],
                WriteOutcome::WouldBlock => {
                    let before = self.client_read.len() + self.server_read.len();
                    self.until(|pair| pair.client_read.len() + pair.server_read.len() > before).unwrap();
                }
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
pub enum StreamErrorAt {
    Client,
    Server,
}

pub fn dial(poll: &mut Poll, addresses: Vec<SocketAddr>, options: &DialOptions) -> DialOutcome {
    dial_admitted(poll, addresses.into_iter().map(Admitted::named_by_a_route).collect(), options)
}

pub fn dial_admitted(poll: &mut Poll, candidates: Vec<Admitted>, options: &DialOptions) -> DialOutcome {
    let begin = std::time::Instant::now();
    let now = || Timestamp::from_secs(1) + begin.elapsed();
    let mut dial = Dial::new(candidates, options, Token(7), now());
    let mut events = Events::with_capacity(8);
    loop {
        if let Some(outcome) = dial.proceed(poll.registry(), now()) {
            return outcome;
        }
        assert!(begin.elapsed() < PATIENCE);
        poll.poll(&mut events, Some(dial.deadline().since(now()) + Duration::from_millis(1))).unwrap();
    }
}

pub fn server_tls(pair: &SelfSigned) -> ServerTls {
    let store = CertificateStore::from_pem(&pair.certificate, &pair.key).unwrap();
    ServerTls::new(Arc::new(store)).unwrap()
}

pub fn client_tls(trusted: &[&SelfSigned]) -> ClientTls {
    let directory = tempfile::tempdir().unwrap();
    let mut files = Vec::new();
    for (i, pair) in trusted.iter().enumerate() {
        let path = directory.path().join(format!("{i}.pem"));
        std::fs::write(&path, &pair.certificate).unwrap();
        files.push(path);
    }
    ClientTls::new(&files).unwrap()
}
