//! A context, an engine and a stage for examples, benches and tests. No part of the room's promises.

use crate::session::{SessionContext, SessionTls};
use bytes::Bytes;
use postrider_auth::{Directory, Verifier};
use postrider_engine::{Draft, Intake, Refusal};
use postrider_model::snapshot::{
    Account, AddressPattern, Delivery, DomainPattern, Legacy, Listener, Protocol, Route, SessionLimits,
    Source, Target, TlsLevel,
};
use postrider_model::{IdCipher, MessageNo, Snapshot, Timestamp};
use postrider_spool::Ticket;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// An engine that keeps what it is given.
#[derive(Debug, Default)]
pub struct Keeper {
    /// Messages, in order.
    pub drafts: Vec<Draft>,
    /// Chunks by message and index, of messages that are not abandoned.
    pub chunks: Vec<(MessageNo, u32, Bytes)>,
    /// What to answer to the next call, instead of taking it.
    pub refusal: Option<Refusal>,
    numbers: u64,
}

impl Keeper {
    /// The content of a message, its chunks included.
    #[must_use]
    pub fn content(&self, draft: &Draft) -> Vec<u8> {
        let chunks = self.chunks.iter().filter(|(number, ..)| *number == draft.message.number);
        chunks.map(|(.., piece)| piece).chain(&draft.content).flat_map(|piece| piece.to_vec()).collect()
    }
}

impl Intake for Keeper {
    fn begin(&mut self, _: Timestamp, _: u64) -> Result<MessageNo, Refusal> {
        self.numbers += 1;
        self.refusal.take().map_or(Ok(MessageNo(self.numbers)), Err)
    }

    fn chunk(&mut self, number: MessageNo, index: u32, content: Bytes) -> Result<(), Refusal> {
        self.chunks.push((number, index, content));
        self.refusal.take().map_or(Ok(()), Err)
    }

    fn submit(&mut self, _: Timestamp, draft: Draft) -> Result<Ticket, Refusal> {
        if let Some(refusal) = self.refusal.take() {
            self.abandon(draft.message.number);
            return Err(refusal);
        }
        let ticket = Ticket(draft.message.number.0);
        self.drafts.push(draft);
        Ok(ticket)
    }

    fn abandon(&mut self, number: MessageNo) {
        self.chunks.retain(|(other, ..)| *other != number);
    }
}

/// A listener that takes mail from `127.0.0.0/8` as anyone, and a route for every domain.
///
/// # Panics
/// Never; what it parses is constant.
#[must_use]
#[expect(clippy::unwrap_used, reason = "constant text")]
pub fn example(now: Timestamp) -> (SessionContext, Keeper) {
    let address: SocketAddr = "127.0.0.1:2525".parse().unwrap();
    let listener = Arc::new(Listener {
        name: "relay".into(),
        protocol: Protocol::Smtp,
        address,
        tls: None,
        legacy: Some(Legacy {
            clients: vec!["127.0.0.0/8".parse().unwrap()],
            from: vec![AddressPattern::Any],
        }),
        sandbox: false,
        limits: SessionLimits::default(),
        xclient: Vec::new(),
        proxy: Vec::new(),
    });
    let route = Arc::new(Route {
        name: "route-1".into(),
        domains: vec![DomainPattern::Any],
        senders: Vec::new(),
        to: Target::Sandbox,
        tls: TlsLevel::None,
        source: Source::default(),
        connections_per_site_max: None,
    });
    let snapshot = Arc::new(Snapshot {
        hostname: "mx.example.net".parse().unwrap(),
        listeners: vec![Arc::clone(&listener)],
        accounts: Vec::new(),
        routes: vec![route],
        delivery: Delivery::default(),
    });
    let context = SessionContext {
        snapshot,
        control: Arc::default(),
        listener,
        directory: Arc::new(Directory::anyone()),
        ids: IdCipher::new([7; 16]),
        peer: "127.0.0.1:4711".parse().unwrap(),
        local: address,
        tls: SessionTls::Unavailable,
        seed: 42,
        now,
    };
    (context, Keeper::default())
}

/// The listeners, the account and the routes that the dialogues of `tests/dialogues` speak of. Whoever
/// listens in earnest adds certificates to those in [`UNDER_TLS`].
///
/// # Panics
/// Never; what it parses is constant.
#[must_use]
#[expect(clippy::unwrap_used, reason = "constant text")]
pub fn stage(now: Timestamp) -> Snapshot {
    let base = example(now).0;
    let devices = vec![
        AddressPattern::Domain("example.com".parse().unwrap()),
        AddressPattern::Mailbox("scan@example.net".parse().unwrap()),
    ];
    let legacy = |from| Some(Legacy { clients: vec!["127.0.0.0/8".parse().unwrap()], from });
    let listener = |name: &str, protocol, legacy| {
        let limits = SessionLimits { tarpit: Duration::ZERO, ..SessionLimits::default() };
        Listener {
            name: name.into(),
            protocol,
            address: "127.0.0.1:0".parse().unwrap(),
            legacy,
            sandbox: name == "sandbox",
            limits,
            xclient: vec!["127.0.0.2".parse().unwrap()],
            ..(*base.listener).clone()
        }
    };
    let listeners = [
        // Relays for 127.0.0.0/8, as anyone.
        listener("relay", Protocol::Smtp, legacy(vec![AddressPattern::Any])),
        // Relays for 127.0.0.0/8, as *@example.com or scan@example.net.
        listener("devices", Protocol::Smtp, legacy(devices)),
        // Port 25 with STARTTLS; only app1 (password `secret`, *@example.com) may send.
        listener("mx", Protocol::Smtp, None),
        // The same without a certificate, so that nobody may send.
        listener("plain", Protocol::Smtp, None),
        listener("submission", Protocol::Submission, None),
        listener("submissions", Protocol::Submissions, None),
        listener("lmtp", Protocol::Lmtp, legacy(vec![AddressPattern::Any])),
        listener("sandbox", Protocol::Smtp, None),
    ];
    let app1 = Account {
        name: "app1".into(),
        verifier: Verifier::new("secret", &[7; 16], 4096).unwrap().to_string().into(),
        from: vec![AddressPattern::Domain("example.com".parse().unwrap())],
    };
    let route = |name: &str, domains: &[&str], to| {
        let domains = domains.iter().map(|domain| DomainPattern::Exact(domain.parse().unwrap())).collect();
        Arc::new(Route { name: name.into(), domains, to, ..(*base.snapshot.routes[0]).clone() })
    };
    Snapshot {
        listeners: listeners.map(Arc::new).to_vec(),
        accounts: vec![Arc::new(app1)],
        routes: vec![
            route("captured", &["sandbox.example"], Target::Sandbox),
            route("world", &["example.net", "example.org", "xn--bcher-kva.example"], Target::Mx),
        ],
        ..(*base.snapshot).clone()
    }
}

/// The listeners of the [`stage`] with a certificate.
pub const UNDER_TLS: [&str; 4] = ["devices", "mx", "submission", "submissions"];
