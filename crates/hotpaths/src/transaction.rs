//! What a message costs a connection: a busy lane, a fast peer, 4 KiB, one recipient.

use crate::Path;
use bytes::Bytes;
use postrider_egress::{Connection, Setup};
use postrider_engine::{ConnectionId, Next, Outflow, Piece, Plan, PlanHost, Settlement, TransactionId};
use postrider_model::record::Message;
use postrider_model::snapshot::{Delivery, Route, Source, Target, TlsLevel};
use postrider_model::{Encoding, Envelope, MessageNo, RecipientParams, Reply, Snapshot, Timestamp};
use postrider_queue::LaneId;
use std::hint::black_box;
use std::sync::Arc;

const NOW: Timestamp = Timestamp::from_secs(1);

/// A connection with work that does not end.
pub struct Transaction {
    connection: Connection,
    engine: Engine,
    round: String,
}

impl Path for Transaction {
    const NAME: &'static str = "transaction";
    const ITEMS: u32 = 1;

    fn ready() -> Self {
        Transaction::to(1, Encoding::Stuffed)
    }

    fn step(&mut self) {
        let Transaction { connection, engine, round } = self;
        let settled = engine.settled;
        let written = connection.output().map(<[u8]>::len).sum();
        connection.advance(NOW, written, engine);
        connection.receive(NOW, round.as_bytes(), engine);
        black_box(connection.deadline());
        assert_eq!(engine.settled, settled + 1, "every round sends a message");
    }
}

impl Transaction {
    /// Messages to so many recipients, stored in this form.
    #[must_use]
    pub fn to(recipients: usize, encoding: Encoding) -> Transaction {
        let mut engine = engine(recipients, encoding);
        let mut connection = connection();
        connection.receive(NOW, b"220 mx\r\n", &mut engine);
        let hello = b"250-mx\r\n250-PIPELINING\r\n250-SIZE 100000000\r\n250 8BITMIME\r\n";
        connection.receive(NOW, hello, &mut engine);
        let recipients = "250 2.1.5 Ok\r\n".repeat(recipients);
        let envelope = format!("250 2.1.0 Ok\r\n{recipients}354 End data with <CR><LF>.<CR><LF>\r\n");
        connection.receive(NOW, envelope.as_bytes(), &mut engine);
        let round = format!("250 2.0.0 Ok: queued as 4F2A91C03D\r\n{envelope}");
        Transaction { connection, engine, round }
    }
}

struct Engine {
    message: Arc<Message>,
    content: Bytes,
    next: u64,
    settled: u64,
}

impl Outflow for Engine {
    fn next(&mut self, _: Timestamp, _: ConnectionId, _: LaneId) -> Next {
        self.next += 1;
        let ordinals = (0..u16::try_from(self.message.recipients.len()).unwrap_or(0)).collect();
        Next::Transaction(postrider_engine::Transaction {
            id: TransactionId(self.next),
            message: self.message.clone(),
            ordinals,
            pieces: [Piece::Memory(self.content.slice(..200)), Piece::Memory(self.content.slice(200..))]
                .into_iter()
                .collect(),
            may_end: true,
            attempts: 0,
        })
    }

    fn read(&mut self, _: ConnectionId, _: TransactionId, _: usize) {}

    fn settle(&mut self, _: Timestamp, settlement: Settlement) {
        self.settled += 1;
        black_box(settlement);
    }

    fn throttled(&mut self, _: Timestamp, _: LaneId, _: &Reply) {}
}

fn engine(recipients: usize, encoding: Encoding) -> Engine {
    let mailbox = |text: String| text.parse::<postrider_model::Mailbox>().ok();
    let content =
        Bytes::from("An ordinary line of an ordinary message, about as long as most.\r\n".repeat(62));
    let message = Message {
        number: MessageNo(1),
        accepted_at: Timestamp::from_secs(1),
        expires_at: Timestamp::MAX,
        class: postrider_model::Class::Normal,
        account: "".into(),
        client: "".into(),
        envelope: Envelope { reverse_path: mailbox("sender@example.com".to_owned()), ..Envelope::default() },
        recipients: (0..recipients)
            .filter_map(|i| mailbox(format!("recipient{i}@example.net")))
            .map(RecipientParams::from)
            .collect(),
        encoding,
        eight_bit: false,
        utf8_header: false,
        header_size: 0,
        content_size: content.len() as u64,
        chunks: 0,
        held: false,
        sent_at_once: false,
        due: None,
        report: None,
    };
    Engine { message: Arc::new(message), content, next: 0, settled: 0 }
}

fn connection() -> Connection {
    let route = Route {
        name: "out".into(),
        domains: Vec::new(),
        senders: Vec::new(),
        to: Target::Mx,
        tls: TlsLevel::None,
        source: Source { bind: Vec::new(), ehlo: "us.example".parse().ok() },
        connections_per_site_max: None,
    };
    let snapshot = Snapshot {
        // Invariant: this is a valid name.
        hostname: "us.example".parse().expect("a valid name"),
        listeners: Vec::new(),
        accounts: Vec::new(),
        routes: vec![Arc::new(route)],
        delivery: Delivery { messages_per_connection_max: usize::MAX, ..Delivery::default() },
    };
    let hosts = vec![PlanHost { name: "mx.example.net".into(), addresses: Vec::new(), hop: None }];
    let setup = Setup {
        id: ConnectionId(3),
        plan: Arc::new(Plan { lane: LaneId(7), route: 0, hosts }),
        host: 0,
        address: "192.0.2.1:25".parse().ok(),
        snapshot: Arc::new(snapshot),
        plain_only: false,
        nonce: [0; 18],
        scram: None,
    };
    Connection::new(NOW, setup)
}
