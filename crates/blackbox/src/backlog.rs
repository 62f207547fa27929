//! A data directory in which many recipients wait: written by the product's own log, fold and checkpoint, since
//! taking a million messages by SMTP would take minutes.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use postrider_disk::{Committer, CommitterHandle};
use postrider_engine::{Owner, Shard, ShardConfig, owner};
use postrider_model::record::{Deferral, Kind, Message};
use postrider_model::snapshot::{Delivery, DomainPattern, Route, Source, Target, TlsLevel};
use postrider_model::{
    BodyKind, Class, Encoding, EnhancedCode, Envelope, IdCipher, Mailbox, MessageNo, RecipientParams, Reply,
    Snapshot, Timestamp,
};
use postrider_spool::{Append, Body, Completion, Ticket};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Shards of the relay that is to take it up; name it in its configuration.
const SHARDS: u16 = 2;
/// The route by which all goes; name it in the relay's configuration.
const ROUTE: &str = "out";
const SALT: u64 = 0x5eed;
const HEADER: &str = "Subject: waiting\r\n\r\n";
/// Parked recipients are due within this time, from an hour on.
const SPREAD: Duration = Duration::from_secs(4 * 3600);

/// What waits.
#[derive(Clone, Copy, Debug)]
pub struct Backlog {
    /// Recipients whose first attempt failed and whose next one is due in an hour or more.
    pub parked: u64,
    /// Recipients of one message.
    pub per_message: u16,
    /// Messages to one recipient that are due, at `now.test`.
    pub due: u64,
    /// Octets of a body.
    pub body: usize,
}

impl Backlog {
    /// What must stand in the relay's configuration.
    pub const SHARDS: u16 = SHARDS;
    /// The name of its route.
    pub const ROUTE: &str = ROUTE;

    /// Writes the data directory: the log, and a checkpoint of all of it.
    ///
    /// # Errors
    /// The disk's.
    pub fn write(&self, data: &Path) -> Result<()> {
        let spool = data.join("spool");
        self.write_log(&spool)?;
        write_checkpoint(&spool)
    }

    fn write_log(&self, spool: &Path) -> Result<()> {
        let recovered = postrider_disk::open(spool, 0, SALT)?.replay(|_| {})?;
        let committer = start(recovered)?;
        let (handle, now) = (committer.handle(), now());
        let mut tickets = [0; SHARDS as usize];
        let mut appends = Vec::new();
        let body = Bytes::from(format!("{HEADER}{}\r\n", "x".repeat(self.body)));
        let parked = self.parked.div_ceil(u64::from(self.per_message));
        let mut records = 0;
        for number in 0..self.due + parked {
            let shard = u16::try_from(number % u64::from(SHARDS)).unwrap();
            let mut append = |kind: Kind, head: Vec<u8>, body: Body| {
                let ticket = &mut tickets[usize::from(shard)];
                *ticket += 1;
                let (kind, ticket) = (kind as u8, Ticket(*ticket));
                appends.push(Append { shard, ticket, kind, head, body, urgent: true, ..Append::default() });
                records += 1;
            };
            let is_due = number < self.due;
            let mut head = Vec::new();
            message(number, if is_due { 1 } else { self.per_message }, is_due, body.len(), now)
                .encode(&mut head);
            append(Kind::Message, head, Body::from_iter([body.clone()]));
            if !is_due {
                let spread = Duration::from_millis(number * 7_919 % u64::try_from(SPREAD.as_millis())?);
                let mut head = Vec::new();
                deferral(number, self.per_message, now, now + Duration::from_secs(3600) + spread)
                    .encode(&mut head);
                append(Kind::Deferral, head, Body::new());
            }
            if appends.len() >= 10_000 {
                hand_in(&handle, &mut appends);
            }
        }
        hand_in(&handle, &mut appends);
        while handle.durable().0 < records {
            std::thread::sleep(Duration::from_millis(1));
        }
        committer.stop();
        Ok(())
    }
}

/// Starts what reads a log's past into shards and writes them down again, as the relay does.
fn write_checkpoint(spool: &Path) -> Result<()> {
    let snapshot = Arc::new(snapshot());
    let mut shards: Vec<Shard> = (0..SHARDS).map(|index| shard(index, &snapshot)).collect();
    let opened = postrider_disk::open(spool, 0, SALT)?;
    let mut wrong = None;
    let mut recovered = opened.replay(|record| {
        let result = match owner(record.kind, record.head, SHARDS) {
            Ok(Owner::Shard(of)) => {
                shards[usize::from(of)].replay(record.kind, record.head, record.position, record.copied)
            }
            Ok(Owner::All) => Ok(()),
            Err(error) => Err(error),
        };
        wrong = wrong.or(result.err());
    })?;
    ensure!(wrong.is_none(), "{wrong:?}");
    let mut live = Vec::new();
    shards.iter_mut().for_each(|shard| shard.replayed(now(), &mut live));
    live.into_iter().for_each(|position| recovered.retain(position));
    let committer = start(recovered)?;
    let handle = committer.handle();
    let replay_from = handle.begin_checkpoint().context("the committer has ended")?;
    let mut parts = Vec::new();
    for (index, shard) in shards.iter_mut().enumerate() {
        shard.begin_checkpoint();
        let written = loop {
            if let Some(parts) = shard.checkpoint_step() {
                break parts;
            }
        };
        let mut appends = Vec::new();
        shard.take_appends(&mut appends);
        handle.submit(&mut appends);
        while !shard.is_durable(written.after) {
            let mut completion = Completion::default();
            handle.take_news(index, &mut completion);
            shard.completed(now(), &completion);
            std::thread::sleep(Duration::from_millis(1));
        }
        for part in written.parts {
            parts.push(committer.checkpoints().write_part(&part.name, &part.content)?);
        }
    }
    committer.checkpoints().commit(replay_from, SHARDS.to_le_bytes().to_vec(), parts)?;
    handle.checkpointed(replay_from);
    committer.stop();
    Ok(())
}

fn start(recovered: postrider_disk::Recovered) -> Result<Committer> {
    let wakers = (0..SHARDS).map(|_| Box::new(|| {}) as Box<dyn Fn() + Send>).collect();
    Ok(Committer::start(recovered, wakers)?)
}

fn hand_in(handle: &CommitterHandle, appends: &mut Vec<Append>) {
    while handle.is_congested() {
        std::thread::sleep(Duration::from_millis(1));
    }
    handle.submit(appends);
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Timestamp::from_micros(u64::try_from(since.as_micros()).unwrap())
}

fn message(number: u64, recipients: u16, is_due: bool, body: usize, now: Timestamp) -> Message {
    let address = |ordinal| {
        let domain = if is_due { "now.test".to_owned() } else { format!("later{}.test", number % 100) };
        RecipientParams::from(format!("m{number}r{ordinal}@{domain}").parse::<Mailbox>().unwrap())
    };
    Message {
        number: MessageNo(number),
        accepted_at: now,
        expires_at: now + Duration::from_secs(5 * 86_400),
        class: Class::Normal,
        account: "backlog".into(),
        client: "127.0.0.1".into(),
        envelope: Envelope {
            reverse_path: Some("sender@example.test".parse().unwrap()),
            body: BodyKind::SevenBit,
            ..Envelope::default()
        },
        recipients: (0..recipients).map(address).collect(),
        encoding: Encoding::Stuffed,
        eight_bit: false,
        utf8_header: false,
        header_size: u32::try_from(HEADER.len()).unwrap(),
        content_size: body as u64,
        chunks: 0,
        held: false,
        sent_at_once: false,
        due: None,
        report: None,
    }
}

fn deferral(number: u64, recipients: u16, at: Timestamp, due: Timestamp) -> Deferral {
    Deferral {
        number: MessageNo(number),
        ordinals: (0..recipients).collect(),
        at,
        attempts: 1,
        due,
        in_doubt: false,
        reply: Reply::ours(451, EnhancedCode(4, 3, 0), "Come back later"),
        peer: "mx.example.test[192.0.2.1]:25".into(),
    }
}

fn snapshot() -> Snapshot {
    Snapshot {
        hostname: "relay.example.com".parse().unwrap(),
        listeners: Vec::new(),
        accounts: Vec::new(),
        routes: vec![Arc::new(Route {
            name: ROUTE.into(),
            domains: vec![DomainPattern::Any],
            senders: Vec::new(),
            to: Target::Mx,
            tls: TlsLevel::None,
            source: Source::default(),
            connections_per_site_max: None,
        })],
        delivery: Delivery::default(),
    }
}

fn shard(index: u16, snapshot: &Arc<Snapshot>) -> Shard {
    Shard::new(ShardConfig {
        index,
        shards: SHARDS,
        snapshot: snapshot.clone(),
        cipher: IdCipher::new([0; 16]),
        seed: 1,
        fresh_size_max_bytes: 1 << 20,
    })
}
