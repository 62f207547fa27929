//! Power loss, recovery, and the comparison of what came back with what the log says.

use super::settings::make_shards;
use super::{SHARDS, World};
use postrider_engine::operate::{Filter, Request, Response};
use postrider_engine::{Effect, Owner, QuestionId, Shard, owner};
use postrider_model::record::Kind;
use postrider_spool::{Log, Lsn, Recovery};
use std::collections::BTreeMap;

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
        self.parts = BTreeMap::new();
        if let Some((_, parts)) = newest {
            for (name, content) in &parts {
                for shard in &mut self.shards {
                    shard
                        .load_part(content)
                        .unwrap_or_else(|e| panic!("seed {}: part {name}: {e}", self.seed));
                }
            }
        }
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
        log.settled();
        if let [(older, _), (newer, _)] = &self.checkpoints[..] {
            log.checkpointed(*older);
            log.checkpointed(*newer);
        }
        log.journaled(log.durable());
        self.log = log;
        self.compare();
        self.disk.faults = faults;
        self.begin();
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
