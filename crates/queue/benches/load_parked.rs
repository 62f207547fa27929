//! How long it takes to load parked recipients. A fresh message's way is in the crate `hotpaths`.

#![allow(missing_docs, reason = "criterion's macro makes a public function")]

use criterion::{Criterion, criterion_group, criterion_main};
use postrider_model::{Class, Timestamp};
use postrider_queue::{Action, DomainId, FlowId, LaneLimits, Queue, Recipient, Settings};
use std::time::Duration;

const START: Timestamp = Timestamp::from_secs(1_800_000_000);

/// A queue with one lane and one connection that waits for work.
fn warm() -> (Queue, DomainId, FlowId) {
    let mut queue = Queue::new(Settings::default(), 7);
    let domain = queue.intern_domain(0, "example.net");
    let flow = queue.intern_flow("app1", 1);
    queue.insert(START, &Recipient::fresh(0, 0, domain, flow, Class::Normal, START));
    let lane =
        queue.resolved(START, domain, "mx.example.net", LaneLimits::default(), Duration::from_secs(1 << 30));
    queue.grant(lane);
    while let Some(action) = queue.poll(START) {
        if action == Action::Connect(lane) {
            queue.connection_opened(START, lane);
        }
    }
    while let Some(batch) = queue.next(START, lane) {
        queue.finished(batch.recipients[0]);
    }
    while queue.poll(START).is_some() {}
    (queue, domain, flow)
}

fn load_parked(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("load_parked");
    group.sample_size(10);
    group.bench_function("one_million", |bencher| {
        bencher.iter_with_large_drop(|| {
            let (mut queue, domain, flow) = warm();
            for message in 0..1_000_000_u32 {
                let due = START + Duration::from_millis(u64::from(message.wrapping_mul(2_654_435_761) >> 8));
                let mut recipient = Recipient::fresh(message, 0, domain, flow, Class::Normal, due);
                recipient.expires = Some(START + Duration::from_secs(432_000));
                queue.insert(START, &recipient);
            }
            queue
        });
    });
    group.finish();
}

criterion_group!(benches, load_parked);
criterion_main!(benches);
