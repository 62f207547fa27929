//! How many transactions of a connection may be in doubt, whatever is handed out ahead.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use bytes::Bytes;
use postrider_engine::{
    ConnectionEnd, ConnectionId, Draft, Effect, Intake, Next, Outflow, Settled, Settlement, Shard,
    ShardConfig, Transaction,
};
use postrider_model::snapshot::{
    Delivery, DomainPattern, Host, NextHop, Route, Scheme, Source, Target, TlsLevel,
};
use postrider_model::{
    Class, Encoding, EnhancedCode, Envelope, IdCipher, Mailbox, Outcome, RecipientParams, Reply, Snapshot,
    Timestamp, Via, record,
};
use postrider_queue::LaneId;
use postrider_spool::{Log, Op, Settings};
use std::sync::Arc;

const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);
const CONNECTION: ConnectionId = ConnectionId(1);

/// A shard, its log, and one connection.
struct World {
    shard: Shard,
    log: Log,
    lane: Option<LaneId>,
    may_end: Vec<u64>,
}

impl World {
    fn new(messages: usize) -> World {
        let host = Host::Address("192.0.2.1:25".parse().unwrap());
        let hop = NextHop { scheme: Scheme::Smtp, host, credentials: None };
        let route = Route {
            name: "out".into(),
            domains: vec![DomainPattern::Any],
            senders: Vec::new(),
            to: Target::Hosts(vec![hop]),
            tls: TlsLevel::None,
            source: Source::default(),
            connections_per_site_max: None,
        };
        let snapshot = Snapshot {
            hostname: "us.example".parse().unwrap(),
            listeners: Vec::new(),
            accounts: Vec::new(),
            routes: vec![Arc::new(route)],
            delivery: Delivery::default(),
        };
        let shard = Shard::new(ShardConfig {
            index: 0,
            shards: 1,
            snapshot: Arc::new(snapshot),
            cipher: IdCipher::new([1; 16]),
            seed: 1,
            fresh_size_max_bytes: 1 << 20,
        });
        let log = Log::new(Settings::default(), 7);
        let mut world = World { shard, log, lane: None, may_end: Vec::new() };
        for _ in 0..messages {
            let number = world.shard.begin(NOW, 0).unwrap();
            let content = Bytes::from_static(b"Subject: x\r\n\r\n");
            let message = record::Message {
                number,
                accepted_at: NOW,
                expires_at: Timestamp::from_secs(1_900_000_000),
                class: Class::Normal,
                account: "test".into(),
                client: "".into(),
                envelope: Envelope::default(),
                recipients: vec![RecipientParams::from("a@b.test".parse::<Mailbox>().unwrap())],
                encoding: Encoding::Stuffed,
                eight_bit: false,
                utf8_header: false,
                header_size: 12,
                content_size: content.len() as u64,
                chunks: 0,
                held: false,
                due: None,
                sent_at_once: false,
                report: None,
            };
            world.shard.submit(NOW, Draft { message, content: [content].into_iter().collect() }).unwrap();
        }
        world.commit();
        world
    }

    /// Makes all records durable and does what the shard wants.
    fn commit(&mut self) {
        let mut appends = Vec::new();
        self.shard.take_appends(&mut appends);
        appends.into_iter().for_each(|append| self.log.append(append));
        while let Some(op) = self.log.poll() {
            match op {
                Op::Prepare(prepare) => self.log.prepared(prepare.segment, Ok(())),
                Op::Write(_) => self.log.written(Ok(())),
                Op::Sync { .. } => self.log.synced(Ok(())),
                Op::Read { .. } | Op::Remove { .. } => unreachable!("nothing is copied or given back"),
            }
        }
        while let Some(news) = self.log.poll_completion() {
            self.shard.completed(NOW, &news);
        }
        while let Some(effect) = self.shard.poll(NOW) {
            match effect {
                Effect::WantSlot { lane, .. } => self.shard.slot_granted(lane),
                Effect::Connect { plan, .. } => self.lane = Some(plan.lane),
                Effect::MayEnd { transaction, .. } => self.may_end.push(transaction.0),
                _ => {}
            }
        }
    }

    fn next(&mut self) -> Next {
        let lane = self.lane.expect("a connection was asked for");
        self.shard.next(NOW, CONNECTION, lane)
    }

    fn transaction(&mut self) -> Transaction {
        match self.next() {
            Next::Transaction(transaction) => transaction,
            other => panic!("{other:?}"),
        }
    }

    fn settle(&mut self, transaction: &Transaction, outcome: impl Fn(Reply) -> Outcome) {
        let outcome = Settled::Outcome(outcome(Reply::ours(250, EnhancedCode(2, 0, 0), "Taken")));
        self.shard.settle(
            NOW,
            Settlement {
                transaction: transaction.id,
                outcomes: transaction.ordinals.iter().map(|ordinal| (*ordinal, outcome.clone())).collect(),
                peer: "mx.b.test".into(),
                via: Via::Smarthost,
                dsn_passed_on: false,
            },
        );
    }
}

#[test]
fn a_third_transaction_goes_ahead_and_ends_only_when_the_first_is_safe() {
    let mut world = World::new(5);
    let first = world.transaction();
    let second = world.transaction();
    world.commit();
    assert_eq!(world.may_end, [first.id.0, second.id.0], "their marks are durable");
    let third = world.transaction();
    assert!(!third.may_end);
    assert!(world.shard.waits_for_log());
    assert!(matches!(world.next(), Next::Loading), "one is ahead, not two");
    world.commit();
    assert_eq!(world.may_end.len(), 2, "a mark is not enough while two are in doubt");
    world.settle(&first, Outcome::Delivered);
    assert_eq!(world.may_end.len(), 2, "an outcome is not enough while it is not durable");
    world.commit();
    assert_eq!(world.may_end, [first.id.0, second.id.0, third.id.0]);
    assert!(!world.shard.waits_for_log());
    let fourth = world.transaction();
    assert!(!fourth.may_end);
    world.commit();
    assert_eq!(world.may_end.len(), 3);
}

#[test]
fn a_transaction_that_is_settled_without_its_end_makes_room_for_another_ahead_only() {
    let mut world = World::new(5);
    let (_, _) = (world.transaction(), world.transaction());
    world.commit();
    let third = world.transaction();
    world.settle(&third, Outcome::Delivered);
    assert!(!world.shard.waits_for_log());
    let fourth = world.transaction();
    assert!(!fourth.may_end, "two are in doubt still");
    world.commit();
    assert!(!world.may_end.contains(&fourth.id.0), "the third makes no room: it was not in doubt");
}

#[test]
fn a_connection_that_ends_leaves_nothing_ahead() {
    let mut world = World::new(3);
    let lane = world.lane.unwrap();
    let (_, _, _) = (world.transaction(), world.transaction(), world.transaction());
    assert!(world.shard.waits_for_log());
    world.shard.connection_ended(NOW, CONNECTION, lane, ConnectionEnd::Done, Vec::new());
    assert!(!world.shard.waits_for_log());
    world.commit();
}
