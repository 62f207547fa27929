//! Thousands of crashes on a simulated disk, each from a seed that replays it exactly.
//!
//! `SPOOL_SEEDS=10000 cargo test -p postrider-spool --test crashes` runs more of them;
//! `SPOOL_SEED=n` runs one.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test that stops is a test that failed"
)]

use bytes::Bytes;
use postrider_spool::testing::{Dice, Faults, SimDisk};
use postrider_spool::{
    Append, Body, Follower, Health, Log, Lsn, Op, Position, Recovery, Settings, Ticket, read_record,
};
use std::collections::BTreeMap;

const SHARDS: u16 = 3;

/// What the world knows of one ticket.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Fate {
    state: State,
    message: bool,
    body: Vec<u8>,
    position: Option<Position>,
    released: bool,
    /// A checkpoint that recovery may start from holds it.
    in_checkpoint: bool,
    /// The journal's follower has seen it.
    followed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    Durable,
    Lost,
}

struct World {
    disk: SimDisk,
    log: Log,
    dice: Dice,
    settings: Settings,
    fates: BTreeMap<(u16, u64), Fate>,
    next: [u64; SHARDS as usize],
    /// The two kept checkpoints' starts, newest last.
    checkpoints: Vec<Lsn>,
    reads: u64,
    removed: u64,
    follower: Follower,
    seed: u64,
}

fn head_of(shard: u16, ticket: u64) -> Vec<u8> {
    let mut head = shard.to_le_bytes().to_vec();
    head.extend_from_slice(&ticket.to_le_bytes());
    head.resize(10 + usize::try_from(ticket % 90).unwrap(), 7);
    head
}

fn ticket_of(head: &[u8]) -> (u16, u64) {
    let ticket = u64::from_le_bytes(head[2..10].try_into().unwrap());
    let shard = u16::from_le_bytes(head[..2].try_into().unwrap());
    assert_eq!(head, head_of(shard, ticket), "a head is not as it was appended");
    (shard, ticket)
}

impl World {
    fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let settings = Settings {
            segment_size_bytes: 64 << 10,
            segments_max: 64,
            ahead: 1,
            checkpoint_after_bytes: 32 << 10,
        };
        let mut disk = SimDisk::new(dice.roll());
        if dice.chance(600) {
            let often = [2, 20, 100][usize::try_from(dice.below(3)).unwrap()];
            disk.faults =
                Faults { write: often, write_full: often / 2, sync: often, prepare: often, read: often };
        }
        if dice.chance(300) {
            disk.room_bytes = (5 + dice.below(6)) * (64 << 10);
        }
        let log = Log::new(settings, dice.roll());
        let follower = Follower::new(log.salt(), Lsn(1));
        Self {
            disk,
            log,
            dice,
            settings,
            fates: BTreeMap::new(),
            next: [1; 3],
            checkpoints: vec![],
            reads: 0,
            removed: 0,
            follower,
            seed,
        }
    }

    fn append(&mut self) {
        let shard = u16::try_from(self.dice.below(u64::from(SHARDS))).unwrap();
        let ticket = self.next[usize::from(shard)];
        self.next[usize::from(shard)] += 1;
        let message = self.dice.chance(500);
        let size = match self.dice.below(20) {
            0 => 40_000,
            1..4 => self.dice.below(9000),
            _ => self.dice.below(600),
        };
        let size = usize::try_from(size).unwrap();
        let body: Vec<u8> =
            if message { (0..size).map(|i| (i as u64 ^ ticket) as u8).collect() } else { vec![] };
        let pieces: Body = body.chunks(1000).map(Bytes::copy_from_slice).collect();
        let append = Append {
            shard,
            ticket: Ticket(ticket),
            kind: u8::from(message),
            head: head_of(shard, ticket),
            body: pieces,
            urgent: message,
            event: self.dice.chance(300),
            chunk: message && self.dice.chance(200),
            reserve: !message,
            needs: None,
        };
        self.log.append(append);
        let fate = Fate {
            state: State::Waiting,
            message,
            body,
            position: None,
            released: false,
            in_checkpoint: false,
            followed: false,
        };
        self.fates.insert((shard, ticket), fate);
    }

    fn release_some(&mut self) {
        let live: Vec<(u16, u64)> = self
            .fates
            .iter()
            .filter(|(_, fate)| fate.position.is_some() && !fate.released)
            .map(|(key, _)| *key)
            .collect();
        if live.is_empty() {
            return;
        }
        // The older ones more often, as a queue drains.
        for _ in 0..1 + live.len() / 12 {
            let most = self.dice.below(live.len() as u64) + 1;
            let key = live[usize::try_from(self.dice.below(most)).unwrap()];
            let fate = self.fates.get_mut(&key).unwrap();
            if !fate.released {
                fate.released = true;
                self.log.release(fate.position.unwrap());
            }
        }
    }

    /// One operation; sometimes the power goes in its midst.
    fn step(&mut self, crash: bool) -> bool {
        let Some(op) = self.log.poll() else { return false };
        if crash {
            self.disk.run_partly(&op);
            // What was refused while the batch was built is known to be lost, told or not.
            self.take_news();
            return true;
        }
        let (outcome, bytes) = self.disk.run(&op);
        match op {
            Op::Write(_) => self.log.written(outcome),
            Op::Sync { .. } => self.log.synced(outcome),
            Op::Prepare(prepare) => self.log.prepared(prepare.segment, outcome),
            Op::Remove { segment } => {
                self.removed += 1;
                self.log.removed(segment);
            }
            Op::Read { .. } => {
                self.reads += 1;
                self.log.read(outcome.map(|()| bytes.unwrap()));
            }
        }
        self.take_news();
        true
    }

    fn take_news(&mut self) {
        while let Some(news) = self.log.poll_completion() {
            for (ticket, _) in news.lost {
                let fate = self.fates.get_mut(&(news.shard, ticket.0)).unwrap();
                assert_ne!(fate.state, State::Durable, "seed {}: durable, then lost", self.seed);
                assert!(fate.message, "seed {}: an outcome was lost", self.seed);
                fate.state = State::Lost;
                fate.position = None;
            }
            for (ticket, position) in news.placed {
                self.fates.get_mut(&(news.shard, ticket.0)).unwrap().position = Some(position);
            }
            for moved in news.moved {
                let fate = self.fates.values_mut().find(|fate| fate.position == Some(moved.from));
                let fate = fate.unwrap_or_else(|| panic!("seed {}: an unknown record moved", self.seed));
                fate.position = Some(moved.to);
                if fate.released {
                    self.log.release(moved.to);
                }
            }
            if let Some(durable) = news.durable {
                let range = (news.shard, 0)..=(news.shard, durable.up_to().0);
                for (_, fate) in self.fates.range_mut(range) {
                    if fate.state == State::Waiting {
                        fate.state = State::Durable;
                    }
                }
            }
        }
    }

    fn checkpoint(&mut self) {
        let from = self.log.begin_checkpoint();
        if self.dice.chance(200) {
            self.log.checkpoint_failed();
            return;
        }
        for fate in self.fates.values_mut() {
            fate.in_checkpoint |= fate.state == State::Durable;
        }
        self.log.checkpointed(from);
        self.checkpoints.push(from);
        if self.checkpoints.len() > 2 {
            self.checkpoints.remove(0);
        }
    }

    /// The journal's follower sees every durable record once, in order, and nothing else.
    fn follow(&mut self) {
        let faults = std::mem::take(&mut self.disk.faults);
        self.follower.look_again();
        let extents = self.log.extents();
        let mut before = self.follower.next_lsn();
        while let Some(record) = self.follower.next(&mut self.disk, &extents) {
            assert!(record.lsn >= before, "seed {}", self.seed);
            before = record.lsn.next();
            let key = ticket_of(record.head);
            if record.copied {
                continue;
            }
            let fate = self
                .fates
                .get_mut(&key)
                .unwrap_or_else(|| panic!("seed {}: {key:?} followed late", self.seed));
            assert_eq!(fate.state, State::Durable, "seed {}: {key:?} followed", self.seed);
            assert!(!fate.followed, "seed {}: {key:?} followed twice", self.seed);
            fate.followed = true;
        }
        for (key, fate) in &self.fates {
            assert!(
                fate.followed || fate.state != State::Durable,
                "seed {}: {key:?} not followed",
                self.seed
            );
        }
        self.disk.faults = faults;
        self.log.journaled(Lsn(self.follower.next_lsn().0 - 1));
    }

    /// The power goes; the log comes back; everything that was promised is there.
    fn crash_and_recover(&mut self) {
        let faults = std::mem::take(&mut self.disk.faults);
        self.disk.crash();
        let from = self.checkpoints.last().copied().unwrap_or(Lsn(1));
        let files = self.disk.files();
        let mut recovery = Recovery::new(&files, &mut self.disk, from, 99);
        let mut last = [0; SHARDS as usize];
        let mut last_lsn = Lsn(0);
        let mut found: BTreeMap<(u16, u64), Option<Position>> = BTreeMap::new();
        let mut moves: Vec<((u16, u64), Position)> = Vec::new();
        while let Some(record) = recovery.next(&mut self.disk) {
            assert!(record.lsn > last_lsn && record.lsn >= from, "seed {}", self.seed);
            last_lsn = record.lsn;
            let key = ticket_of(record.head);
            if record.copied {
                // Its owner may have gone since: a copy brings nothing back to life.
                moves.push((key, record.position.unwrap()));
                continue;
            }
            let fate = self
                .fates
                .get(&key)
                .unwrap_or_else(|| panic!("seed {}: {key:?} came from nowhere", self.seed));
            assert!(!fate.in_checkpoint, "seed {}: {key:?} is of a time before the checkpoint", self.seed);
            assert!(key.1 > last[usize::from(key.0)], "seed {}: order of {key:?}", self.seed);
            last[usize::from(key.0)] = key.1;
            assert_eq!(record.body_len as usize, fate.body.len());
            found.insert(key, record.position);
        }
        let report = recovery.report().clone();
        assert_eq!(report.damages, vec![], "seed {}: nothing was damaged", self.seed);
        let mut log = Log::recovered(self.settings, recovery.finish());
        for (key, fate) in &mut self.fates {
            match (fate.state, found.get(key)) {
                (State::Durable, None) => {
                    assert!(fate.in_checkpoint, "seed {}: {key:?} was durable and is gone", self.seed);
                }
                (_, Some(position)) => {
                    fate.state = State::Durable;
                    fate.position = *position;
                }
                (State::Waiting, None) => {
                    // Nothing later of its shard may be there: the durable log is a prefix.
                    assert!(last[usize::from(key.0)] < key.1, "seed {}: {key:?} is a hole", self.seed);
                    fate.state = State::Lost;
                    fate.position = None;
                }
                (State::Lost, None) => {}
            }
        }
        for (key, to) in moves {
            if let Some(fate) = self.fates.get_mut(&key)
                && fate.state == State::Durable
            {
                fate.position = Some(to);
            }
        }
        for fate in self.fates.values() {
            if let (Some(position), false) = (fate.position, fate.released) {
                log.retain(position);
            }
        }
        log.settled();
        if let [older, newer] = self.checkpoints[..] {
            log.checkpointed(older);
            log.checkpointed(newer);
        }
        self.follower = Follower::new(log.salt(), self.follower.next_lsn());
        log.journaled(Lsn(self.follower.next_lsn().0 - 1));
        self.log = log;
        self.check_bodies();
        self.disk.faults = faults;
    }

    fn check_bodies(&mut self) {
        for (key, fate) in &self.fates {
            let (Some(position), false, State::Durable) = (fate.position, fate.released, fate.state) else {
                continue;
            };
            let segment = self.log.segment_of(position.generation());
            let segment = segment.unwrap_or_else(|| panic!("seed {}: no segment for {key:?}", self.seed));
            let record = read_record(&mut self.disk, segment, self.log.salt(), position, true);
            let record = record.unwrap_or_else(|e| panic!("seed {}: {key:?} at {position}: {e}", self.seed));
            assert_eq!(ticket_of(&record.head), *key, "seed {}", self.seed);
            assert!(record.body == fate.body, "seed {}: body of {key:?}", self.seed);
        }
    }

    fn forget_the_finished(&mut self) {
        self.fates.retain(|_, fate| {
            fate.state == State::Waiting
                || (fate.state == State::Durable && !fate.followed)
                || (fate.state == State::Durable && (!fate.in_checkpoint || (fate.message && !fate.released)))
        });
    }
}

#[derive(Default)]
struct Tally {
    crashes: u64,
    durable: u64,
    copied: u64,
    reused: u64,
    removed: u64,
    lost: u64,
    full: u64,
    failing: u64,
}

fn run(seed: u64, tally: &mut Tally) {
    let mut world = World::new(seed);
    let rounds = 2 + world.dice.below(4);
    for _ in 0..rounds {
        let steps = 50 + world.dice.below(1200);
        for _ in 0..steps {
            match world.dice.below(100) {
                0..40 => world.append(),
                40..43 => world.release_some(),
                43 => {
                    world.log.tick();
                    let scarce = world.dice.chance(300);
                    world.log.set_scarce(scarce);
                }
                44 => world.follow(),
                45 if world.log.checkpoint_due() => world.checkpoint(),
                _ => {
                    world.step(false);
                }
            }
            match world.log.health() {
                Health::Full | Health::Exhausted => tally.full += 1,
                Health::Failing => tally.failing += 1,
                Health::Good => {}
            }
        }
        let stats = world.log.stats();
        tally.copied += stats.copied;
        tally.lost += stats.lost;
        tally.removed += std::mem::take(&mut world.removed);
        tally.reused +=
            stats.bytes / (u64::from(world.settings.segment_size_bytes) * u64::from(stats.segments.max(1)));
        tally.crashes += 1;
        world.disk.faults.read = 0;
        world.check_bodies();
        world.step(true);
        if world.dice.chance(500) {
            world.follow();
        }
        world.crash_and_recover();
        world.forget_the_finished();
    }
    tally.durable += world.fates.values().filter(|fate| fate.state == State::Durable).count() as u64;
}

#[test]
fn what_was_called_durable_survives_every_crash_in_order() {
    let mut tally = Tally::default();
    if let Ok(seed) = std::env::var("SPOOL_SEED") {
        run(seed.parse().unwrap(), &mut tally);
        return;
    }
    let seeds = std::env::var("SPOOL_SEEDS").map_or(300, |n| n.parse().unwrap());
    for seed in 0..seeds {
        run(seed, &mut tally);
    }
    println!(
        "{} crashes, {} durable at the end, {} copied, {} refills, {} lost, {} steps full, {} steps failing",
        tally.crashes, tally.durable, tally.copied, tally.reused, tally.lost, tally.full, tally.failing
    );
    // The workload must reach what it is there to prove.
    assert!(
        tally.copied > 0
            && tally.reused > 0
            && tally.removed > 0
            && tally.lost > 0
            && tally.full > 0
            && tally.failing > 0
    );
}
