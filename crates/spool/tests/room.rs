//! Room: what the log does when it runs short of it, and how it gets it back.

#![allow(clippy::unwrap_used, reason = "a test that stops is a test that failed")]

use bytes::Bytes;
use postrider_spool::testing::SimDisk;
use postrider_spool::{Append, Health, Log, Op, Position, Settings, Ticket};
use std::collections::BTreeSet;

struct World {
    log: Log,
    disk: SimDisk,
    ticket: u64,
    placed: Vec<Position>,
    lost: u64,
    removed: u32,
}

impl World {
    fn new() -> World {
        let settings = Settings {
            segment_size_bytes: 64 << 10,
            segments_max: 8,
            ahead: 1,
            checkpoint_after_bytes: 1 << 30,
        };
        let log = Log::new(settings, 7);
        World { log, disk: SimDisk::new(7), ticket: 0, placed: Vec::new(), lost: 0, removed: 0 }
    }

    fn run(&mut self) {
        while let Some(op) = self.log.poll() {
            let (outcome, bytes) = self.disk.run(&op);
            match op {
                Op::Write(_) => self.log.written(outcome),
                Op::Sync { .. } => self.log.synced(outcome),
                Op::Prepare(prepare) => self.log.prepared(prepare.segment, outcome),
                Op::Remove { segment } => {
                    self.removed += 1;
                    self.log.removed(segment);
                }
                Op::Read { .. } => self.log.read(outcome.map(|()| bytes.unwrap())),
            }
        }
        while let Some(news) = self.log.poll_completion() {
            self.lost += news.lost.len() as u64;
            self.placed.extend(news.placed.into_iter().map(|(_, position)| position));
        }
    }

    fn append(&mut self, size: usize, reserve: bool) {
        self.push(size, reserve);
        self.run();
    }

    fn push(&mut self, size: usize, reserve: bool) {
        self.ticket += 1;
        let body = if reserve { None } else { Some(Bytes::from(vec![b'x'; size])) };
        self.log.append(Append {
            ticket: Ticket(self.ticket),
            head: vec![b'h'; if reserve { size } else { 50 }],
            body: body.into_iter().collect(),
            reserve,
            ..Append::default()
        });
    }

    fn checkpoint(&mut self) {
        let from = self.log.begin_checkpoint();
        self.log.checkpointed(from);
        self.log.journaled(self.log.durable());
        self.log.tick();
        self.run();
    }

    fn fill(&mut self) {
        while self.lost == 0 {
            self.append(8_000, false);
        }
        assert_eq!(self.log.health(), Health::Full);
    }
}

#[test]
fn a_reserve_that_is_nearly_used_up_says_so_and_comes_back_by_checkpoints() {
    let mut world = World::new();
    world.fill();
    let mut outcomes = 0;
    while world.log.health() != Health::Exhausted {
        world.append(400, true);
        outcomes += 1;
    }
    assert!(outcomes > 100, "{outcomes} outcomes used the reserve up");
    // What goes on already still has room, and so has what the checkpoint waits for.
    for _ in 0..20 {
        world.append(400, true);
    }
    assert_eq!(world.log.durable().0, world.ticket - world.lost);
    world.checkpoint();
    assert_eq!(world.log.health(), Health::Exhausted, "two checkpoints must cover a segment");
    world.checkpoint();
    assert_eq!(world.log.health(), Health::Full, "messages fill the rest, and outcomes have room again");
    // However many outcomes there are: with checkpoints between them the reserve never ends.
    for _ in 0..2_000 {
        world.append(400, true);
        if world.log.health() == Health::Exhausted {
            world.checkpoint();
            world.checkpoint();
        }
    }
    assert_eq!(world.log.durable().0, world.ticket - world.lost);
}

#[test]
fn a_message_never_waits_for_a_segment_that_a_copy_behind_it_would_free() {
    let mut world = World::new();
    world.fill();
    let mut kept = BTreeSet::new();
    for position in std::mem::take(&mut world.placed) {
        // One in each segment lives on, and must be copied before the segment is used again.
        if !kept.insert(position.generation()) {
            world.log.release(position);
        }
    }
    world.checkpoint();
    world.checkpoint();
    assert_eq!(world.log.health(), Health::Good);
    for _ in 0..12 {
        world.push(8_000, false);
    }
    world.run();
    assert_eq!(world.log.pending_len(), 0);
}

#[test]
fn what_nobody_needs_is_given_back_when_the_disk_is_short_of_room() {
    let mut world = World::new();
    world.fill();
    let files = world.disk.files().len();
    world.log.set_scarce(true);
    world.run();
    assert_eq!((world.removed, world.log.health()), (0, Health::Full), "everything is needed");
    for position in std::mem::take(&mut world.placed) {
        world.log.release(position);
    }
    world.checkpoint();
    world.checkpoint();
    for _ in 0..files {
        world.log.set_scarce(true);
        world.run();
    }
    assert!(world.removed >= 3, "{} segments were given back", world.removed);
    assert_eq!(world.disk.files().len(), files - world.removed as usize);
    assert_eq!(world.log.health(), Health::Full, "there is nothing more to give");
    world.log.set_scarce(false);
    let lost = world.lost;
    for _ in 0..20 {
        world.append(8_000, false);
    }
    assert_eq!((world.log.health(), world.lost), (Health::Good, lost));
}
