//! What stands around the engine in a real relay: its effects, the log's operations, checkpoints.

use super::{Event, SHARDS, World};
use postrider_egress::Connection;
use postrider_engine::{ConnectionId, Effect, Health, Loaded, Owner, Shard, base_name, owner};
use postrider_spool::{Append, Op, Position, Ticket, read_record};

impl World {
    /// Does what the shards want and hands their records to the log, until nothing moves.
    pub(super) fn settle_down(&mut self) {
        loop {
            let mut quiet = true;
            self.take_news();
            for index in 0..self.shards.len() {
                let healthy = self.log.health();
                self.shards[index].set_health(Health {
                    full: healthy == postrider_spool::Health::Full,
                    exhausted: healthy == postrider_spool::Health::Exhausted,
                    broken: healthy == postrider_spool::Health::Failing,
                    congested: false,
                });
                for _ in 0..100 {
                    let Some(effect) = self.shards[index].poll(self.now) else { break };
                    quiet = false;
                    self.perform(u16::try_from(index).unwrap_or(0), effect);
                }
                self.flush(index);
            }
            self.checkpoint_step();
            if quiet {
                return;
            }
        }
    }

    pub(super) fn flush(&mut self, index: usize) {
        let mut appends: Vec<Append> = Vec::new();
        self.shards[index].take_appends(&mut appends);
        for append in appends {
            self.flying.insert((append.shard, append.ticket), (append.kind, append.head.clone()));
            self.log.append(append);
        }
        let mut releases = Vec::new();
        self.shards[index].take_releases(&mut releases);
        releases.into_iter().for_each(|position| self.log.release(position));
    }

    fn take_news(&mut self) {
        while let Some(news) = self.log.poll_completion() {
            for (ticket, _) in &news.lost {
                self.flying.remove(&(news.shard, *ticket));
            }
            if let Some(durable) = news.durable {
                let done: Vec<_> = self
                    .flying
                    .range((news.shard, Ticket(0))..=(news.shard, durable.up_to()))
                    .map(|(key, _)| *key)
                    .collect();
                for key in done {
                    if let Some((kind, head)) = self.flying.remove(&key) {
                        self.ledger.durable(kind, &head, false);
                    }
                }
            }
            self.shards[usize::from(news.shard)].completed(self.now, &news);
        }
    }

    pub(super) fn perform(&mut self, shard: u16, effect: Effect) {
        let index = usize::from(shard);
        let now = self.now;
        match effect {
            Effect::Stored { ticket, result } => {
                let found = self
                    .inbound
                    .iter()
                    .find(|(_, l)| l.shard == shard && l.ticket == Some(ticket))
                    .map(|(id, _)| *id);
                if let Some(id) = found {
                    if let Some(link) = self.inbound.get_mut(&id) {
                        link.session.durable(now, ticket, result.map(|_| ()));
                    }
                    self.serve(id);
                }
            }
            Effect::Resolve { domain, question } => {
                self.after_millis(20, Event::Resolve(shard, domain, question));
            }
            Effect::Connect { plan, .. } => self.after_millis(5, Event::Connect(shard, plan)),
            Effect::MayEnd { connection, transaction } => {
                self.with(connection, |it, shard| it.may_end(now, transaction, shard));
            }
            Effect::Resume { connection } => self.with(connection, |it, shard| it.resume(now, shard)),
            Effect::Close { connection } => self.with(connection, |it, shard| it.drain(now, shard)),
            Effect::Content { connection, transaction, piece, content } => {
                self.with(connection, |it, shard| match content {
                    Ok(bytes) => it.content(now, transaction, piece, bytes, shard),
                    Err(_) => it.content_failed(now, transaction, shard),
                });
            }
            Effect::Load { job, position } => self.after_millis(3, Event::Load(shard, job, position)),
            Effect::Capture(capture) => self.after_millis(3, Event::Captured(shard, capture.job)),
            Effect::WantSlot { lane, key, slots } => {
                let used = self.slots.entry(key).or_default();
                if *used < slots {
                    *used += 1;
                    self.shards[index].slot_granted(lane);
                } else {
                    self.shards[index].slot_refused(lane);
                }
            }
            Effect::ReturnSlot { key } => {
                let used = self.slots.entry(key).or_default();
                assert!(*used > 0, "seed {}: a slot came back that was not lent", self.seed);
                *used -= 1;
            }
            Effect::Answer { question, response } => {
                self.answers.insert(question.0, response);
            }
            Effect::Moved(moved) => {
                if let Ok(Owner::Shard(of)) = owner(moved.kind, &moved.head, SHARDS) {
                    self.shards[usize::from(of)].moved(&moved);
                }
            }
            Effect::Nudge => {}
        }
    }

    fn with(&mut self, connection: ConnectionId, act: impl FnOnce(&mut Connection, &mut Shard)) {
        if let Some(link) = self.outbound.get_mut(&connection.0) {
            act(&mut link.connection, &mut self.shards[usize::from(link.shard)]);
            self.after_millis(1, Event::ToConnection(connection.0));
        }
    }

    fn checkpoint_step(&mut self) {
        let Some((from, mut gathered)) = self.checkpointing.take() else { return };
        for (index, parts) in gathered.iter_mut().enumerate() {
            if parts.is_none() {
                *parts = self.shards[index].checkpoint_step();
            }
        }
        let whole = gathered.iter().enumerate().all(|(index, parts)| {
            parts.as_ref().is_some_and(|parts| self.shards[index].is_durable(parts.after))
        });
        if !whole {
            self.checkpointing = Some((from, gathered));
            return;
        }
        if self.dice.chance(250) {
            // No room for it: what it should have said is for the next one to say.
            return self.log.checkpoint_failed();
        }
        for parts in gathered.into_iter().flatten() {
            self.parts.retain(|name, _| !parts.replaced.iter().any(|of| of == base_name(name)));
            self.parts.extend(parts.parts.into_iter().map(|part| (part.name, part.content)));
        }
        self.checkpoints.push((from, self.parts.clone()));
        if self.checkpoints.len() > 2 {
            self.checkpoints.remove(0);
        }
        self.shards.iter_mut().for_each(Shard::checkpoint_confirmed);
        self.log.checkpointed(from);
        self.log.journaled(self.log.durable());
        self.tally.checkpoints += 1;
    }

    /// Runs the log's operations. True when the power failed in the midst of one.
    pub(super) fn run_log(&mut self, may_fail: bool) -> bool {
        for _ in 0..200 {
            let fails = may_fail && (self.power_fails || self.dice.chance(1));
            let Some(op) = self.log.poll() else { return false };
            if fails {
                self.disk.run_partly(&op);
                return true;
            }
            let (outcome, bytes) = self.disk.run(&op);
            match op {
                Op::Write(_) => self.log.written(outcome),
                Op::Sync { .. } => self.log.synced(outcome),
                Op::Prepare(prepare) => self.log.prepared(prepare.segment, outcome),
                Op::Remove { segment } => self.log.removed(segment),
                Op::Read { .. } => self.log.read(outcome.map(|()| bytes.unwrap_or_default())),
            }
            self.settle_down();
        }
        false
    }

    pub(super) fn read(&mut self, position: Position) -> Option<Loaded> {
        let segment = self.log.segment_of(position.generation())?;
        let record = read_record(&mut self.disk, segment, self.log.salt(), position, true).ok()?;
        Some(Loaded { head: record.head, body: record.body })
    }
}
