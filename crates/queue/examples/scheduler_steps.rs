//! A fixed number of fresh messages' whole way through the scheduler, for counting instructions:
//! `valgrind --tool=callgrind target/quick/examples/scheduler_steps 20000`, less the same with 10000.

use postrider_model::{Class, Timestamp};
use postrider_queue::{Action, LaneLimits, Queue, Recipient, Settings};
use std::time::Duration;

fn main() {
    let steps: u32 = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(10_000);
    let mut now = Timestamp::from_secs(1_800_000_000);
    let mut queue = Queue::new(Settings::default(), 7);
    let mut finished = 0_u32;
    for message in 0..steps {
        now = now + Duration::from_micros(55);
        let domain = queue.intern_domain(0, "example.net");
        let flow = queue.intern_flow("app1", 1);
        let mut recipient = Recipient::fresh(message, 0, domain, flow, Class::Normal, now);
        recipient.expires = Some(now + Duration::from_secs(432_000));
        recipient.warn = Some(now + Duration::from_secs(14_400));
        queue.insert(now, &recipient);
        while let Some(action) = queue.poll(now) {
            let lane = match action {
                Action::Resolve(domain) => {
                    let ttl = Duration::from_secs(1 << 30);
                    queue.resolved(now, domain, "mx.example.net", LaneLimits::default(), ttl);
                    continue;
                }
                Action::WantSlot(lane) => {
                    queue.grant(lane);
                    continue;
                }
                Action::Connect(lane) => {
                    queue.connection_opened(now, lane);
                    lane
                }
                Action::Pull(lane) => lane,
                _ => continue,
            };
            while let Some(batch) = queue.next(now, lane) {
                for slot in batch.recipients {
                    queue.finished(slot);
                    finished += 1;
                }
            }
        }
        std::hint::black_box(queue.deadline());
    }
    println!("{finished} of {steps} finished");
}
