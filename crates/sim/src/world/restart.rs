//! Power loss, recovery, and the comparison of what came back with what the log says.

use super::settings::make_shards;
use super::{Event, SHARDS, World};
use postrider_engine::operate::{Filter, Request, Response};
use postrider_engine::{Effect, Owner, PartKind, QuestionId, Shard, owner};
use postrider_model::record::Kind;
use postrider_spool::{Log, Lsn, Position, Recovery};
use std::collections::{BTreeMap, VecDeque};

impl World {
    /// The power fails: memory is gone, the disk keeps what it keeps, and the relay starts anew.
    pub(super) fn crash(&mut self) {
        self.power_fails = false;
        self.ledger.crashes += 1;
        self.ledger.allowance += 2 * 3 * self.outbound.len() as u64;
        let faults = std::mem::take(&mut self.disk.faults);
        self.disk.crash();
        self.inbound.clear();
        self.outbound.clear();
        self.slots.clear();
        self.flying.clear();
        self.events.clear();
        self.payloads.clear();
        self.answers.clear();
        self.checkpointing = None;
        self.shards = make_shards(&self.snapshot, self.seed);
        let newest = self.checkpoints.last().cloned();
        let from = newest.as_ref().map_or(Lsn(1), |(from, _)| *from);
        // The first checkpoint of a life names all parts anew.
        self.parts = BTreeMap::new();
        self.load_early(&newest.map(|(_, parts)| parts).unwrap_or_default());
        let files = self.disk.files();
        let mut recovery = Recovery::new(&files, &mut self.disk, from, 99);
        while let Some(record) = recovery.next(&mut self.disk) {
            if !record.copied || record.kind == Kind::Chunk as u8 {
                self.ledger.durable(record.kind, record.head, true);
            }
            let fold =
                |shard: &mut Shard| shard.replay(record.kind, record.head, record.position, record.copied);
            let folded = match owner(record.kind, record.head, SHARDS) {
                Ok(Owner::Shard(shard)) => fold(&mut self.shards[usize::from(shard)]),
                Ok(Owner::All) => self.shards.iter_mut().try_for_each(fold),
                Err(error) => Err(error),
            };
            folded.unwrap_or_else(|e| panic!("seed {}: {e}", self.seed));
        }
        assert!(recovery.report().damages.is_empty(), "seed {}: {:?}", self.seed, recovery.report().damages);
        let mut log = Log::recovered(self.settings, recovery.finish());
        let mut live = Vec::new();
        for shard in &mut self.shards {
            shard.replayed(self.now, &mut live);
        }
        live.into_iter().for_each(|position| log.retain(position));
        if let [(older, _), (newer, _)] = &self.checkpoints[..] {
            log.checkpointed(*older);
            log.checkpointed(*newer);
        }
        log.journaled(log.durable());
        self.log = log;
        let comes_late = self.shards[0].is_loading() && self.dice.chance(700);
        if !comes_late {
            for shard in 0..SHARDS {
                while self.load_next(shard) {}
            }
            self.all_loaded();
            self.compare();
        }
        self.disk.faults = faults;
        self.begin();
        if comes_late {
            (0..SHARDS).for_each(|shard| self.after_millis(1_500, Event::Part(shard)));
        }
    }

    /// Loads some parts of the checkpoint, as a start does, and leaves the others for later.
    fn load_early(&mut self, parts: &BTreeMap<String, Vec<u8>>) {
        self.late.iter_mut().for_each(VecDeque::clear);
        let eager = self.dice.chance(200);
        for (name, content) in parts {
            let is_early = eager || PartKind::of(name) == PartKind::State || self.dice.chance(300);
            let index = usize::from(name.starts_with("s1-"));
            if is_early {
                // Whom it does not concern may see it too.
                for shard in &mut self.shards {
                    let loaded = shard.load_part(content);
                    loaded.unwrap_or_else(|e| panic!("seed {}: part {name}: {e}", self.seed));
                }
            } else {
                self.late[index].push_back(content.clone());
            }
        }
        for late in &mut self.late {
            let turns = usize::try_from(self.dice.below(8)).unwrap_or(0);
            let turns = turns % late.len().max(1);
            late.rotate_left(turns);
        }
        if self.late.iter().any(|late| !late.is_empty()) {
            self.shards.iter_mut().for_each(Shard::expect_parts);
        }
    }

    /// Loads the next late part of a shard, if there is one.
    fn load_next(&mut self, shard: u16) -> bool {
        let index = usize::from(shard);
        let Some(content) = self.late[index].pop_front() else { return false };
        self.shards[index].load_late(content);
        let mut live = Vec::new();
        let (now, seed) = (self.now, self.seed);
        let step = |shard: &mut Shard, live: &mut Vec<Position>| {
            shard.load_step(now, live).unwrap_or_else(|e| panic!("seed {seed}: a late part: {e}"))
        };
        while step(&mut self.shards[index], &mut live) {}
        live.into_iter().for_each(|position| self.log.retain(position));
        true
    }

    fn all_loaded(&mut self) {
        self.shards.iter_mut().for_each(Shard::all_loaded);
        self.log.settled();
    }

    /// A part of the checkpoint comes while the mail goes on.
    pub(super) fn part_comes(&mut self, shard: u16) {
        if self.load_next(shard) {
            self.after_millis(1_500, Event::Part(shard));
        } else if self.late.iter().all(VecDeque::is_empty) && self.shards[0].is_loading() {
            self.all_loaded();
            self.tally.late_loads += 1;
            self.settle_down();
            if self.flying.is_empty() {
                self.compare();
            }
        }
    }

    /// What the shards hold is what the log says, to the microsecond.
    fn compare(&mut self) {
        let seed = self.seed;
        let question = u64::MAX >> 2;
        let mut found = BTreeMap::new();
        for index in 0..self.shards.len() {
            let filter = Filter { all: true, ..Filter::default() };
            let request = Request::List { filter, limit: 10_000, after: None };
            self.shards[index].ask(self.now, QuestionId(question), 0, request);
            for _ in 0..100_000 {
                if self.answers.contains_key(&question) {
                    break;
                }
                // Only the operator's readings move here: nothing else has begun.
                let mut loads = Vec::new();
                while let Some(effect) = self.shards[index].poll_operator() {
                    match effect {
                        Effect::Load { job, position } => loads.push((job, position)),
                        effect => self.perform(u16::try_from(index).unwrap_or(0), effect),
                    }
                }
                for (job, position) in loads {
                    let loaded = self.read(position);
                    self.shards[index].loaded(self.now, job, loaded);
                }
            }
            match self.answers.remove(&question) {
                Some(Response::Recipients(views)) => {
                    found.extend(views.into_iter().map(|view| (view.order, view)));
                }
                other => panic!("seed {seed}: the list was answered by {other:?}"),
            }
        }
        for (key, logged) in self.ledger.waiting() {
            let Some(view) = found.get(key) else {
                panic!("seed {seed}: {key:?} waits in the log and not in memory")
            };
            assert_eq!(view.attempts, logged.attempts, "seed {seed}: attempts of {key:?}");
            if let Some(due) = logged.due {
                assert_eq!(view.due, due, "seed {seed}: due time of {key:?}");
            }
            self.tally.compared += 1;
        }
        for key in found.keys() {
            let logged = self.ledger.logged.get(key);
            assert!(
                logged.is_some_and(|l| l.terminal.is_none()),
                "seed {seed}: {key:?} came back to life: {logged:?}"
            );
        }
    }
}
