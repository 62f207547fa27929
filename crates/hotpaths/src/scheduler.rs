//! A fresh message's whole way through the scheduler: in, its lane, out, finished.

use crate::Path;
use postrider_model::{Class, Timestamp};
use postrider_queue::{Action, LaneId, LaneLimits, Queue, Recipient, Settings};
use std::hint::black_box;
use std::time::Duration;

/// A queue with one lane and one connection that waits for work.
pub struct Scheduler {
    queue: Queue,
    lane: LaneId,
    now: Timestamp,
    message: u32,
}

impl Path for Scheduler {
    const NAME: &'static str = "scheduler_step";
    const ITEMS: u32 = 1;

    fn ready() -> Self {
        let now = Timestamp::from_secs(1_800_000_000);
        let mut queue = Queue::new(Settings::default(), 7);
        let domain = queue.intern_domain(0, "example.net");
        let flow = queue.intern_flow("app1", 1);
        queue.insert(now, &Recipient::fresh(0, 0, domain, flow, Class::Normal, now));
        let ttl = Duration::from_secs(1 << 30);
        let lane = queue.resolved(now, domain, "mx.example.net", LaneLimits::default(), ttl);
        queue.grant(lane);
        while let Some(action) = queue.poll(now) {
            if action == Action::Connect(lane) {
                queue.connection_opened(now, lane);
            }
        }
        while let Some(batch) = queue.next(now, lane) {
            queue.finished(batch.recipients[0]);
        }
        while queue.poll(now).is_some() {}
        Scheduler { queue, lane, now, message: 0 }
    }

    fn step(&mut self) {
        let Scheduler { queue, lane, now, message } = self;
        *message = message.wrapping_add(1);
        *now = *now + Duration::from_micros(55);
        let domain = queue.intern_domain(0, "example.net");
        let flow = queue.intern_flow("app1", 1);
        let mut recipient = Recipient::fresh(*message, 0, domain, flow, Class::Normal, *now);
        recipient.expires = Some(*now + Duration::from_secs(432_000));
        recipient.warn = Some(*now + Duration::from_secs(14_400));
        queue.insert(*now, &recipient);
        while queue.poll(*now).is_some() {}
        let batch = queue.next(*now, *lane);
        assert!(batch.is_some(), "the message is ready");
        for slot in batch.iter().flat_map(|batch| &batch.recipients) {
            queue.finished(*slot);
        }
        let none = queue.next(*now, *lane);
        black_box((none, queue.deadline()));
    }
}
