//! Bounds of fairness, whatever the sizes.

use postrider_model::{Class, Timestamp};
use postrider_queue::*;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::time::Duration;

const START: Timestamp = Timestamp::from_secs(1_800_000_000);
/// A flow of weight 1 sends this much in a turn, in KiB.
const QUANTUM: u64 = 64;

/// One lane with one connection, and recipients of these flows and classes waiting in it.
fn lane_with(recipients: &[(String, u16, Class, u16)]) -> (Queue, LaneId) {
    let mut queue = Queue::new(Settings::default(), 3);
    for (message, (flow, weight, class, size_kib)) in (0..).zip(recipients) {
        let domain = queue.intern_domain(0, "a.test");
        let flow = queue.intern_flow(flow, *weight);
        let mut recipient = Recipient::fresh(message, 0, domain, flow, *class, START);
        recipient.size_kib = *size_kib;
        queue.insert(START, &recipient);
    }
    let mut lane = None;
    while let Some(action) = queue.poll(START) {
        match action {
            Action::Resolve(domain) => {
                lane =
                    Some(queue.resolved(START, domain, "s", LaneLimits::default(), Duration::from_secs(60)));
            }
            Action::WantSlot(lane) => queue.grant(lane),
            Action::Connect(lane) => queue.connection_opened(START, lane),
            other => panic!("{other:?}"),
        }
    }
    (queue, lane.expect("the domain was resolved"))
}

/// What a transaction for one recipient costs.
fn cost(size_kib: u16) -> u64 {
    u64::from(size_kib) + 5
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn flows_that_wait_all_the_time_never_differ_by_more_than_a_turn_and_a_message(
        flows in proptest::collection::vec((1..4_u16, 0..3_000_u16), 2..6),
        steps in 1..400_usize,
    ) {
        let mut recipients = Vec::new();
        for (number, (weight, size_kib)) in flows.iter().enumerate() {
            for _ in 0..400 {
                recipients.push((format!("f{number}"), *weight, Class::Normal, *size_kib));
            }
        }
        let (mut queue, lane) = lane_with(&recipients);
        let mut sent: BTreeMap<usize, u64> = (0..flows.len()).map(|flow| (flow, 0)).collect();
        let largest = flows.iter().map(|(_, size_kib)| cost(*size_kib)).max().unwrap_or(0);
        for _ in 0..steps {
            let batch = queue.next(START, lane).unwrap();
            let flow = batch.message as usize / 400;
            *sent.get_mut(&flow).unwrap() += cost(flows[flow].1);
            let shares: Vec<u64> = sent.iter().map(|(flow, sent)| sent / u64::from(flows[*flow].0)).collect();
            let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
            prop_assert!(most - least <= 2 * (QUANTUM + largest), "{shares:?}, largest {largest}");
        }
    }

    #[test]
    fn a_waiting_class_gets_its_reserved_share_of_what_goes_ahead_of_it(
        sizes in proptest::collection::vec(0..300_u16, 3),
        steps in 100..1_000_usize,
    ) {
        let mut recipients = Vec::new();
        for class in Class::ALL {
            for _ in 0..1_000 {
                recipients.push(("f".to_owned(), 1, class, sizes[class as usize]));
            }
        }
        let (mut queue, lane) = lane_with(&recipients);
        let mut sent = [0_u64; 3];
        for _ in 0..steps {
            let batch = queue.next(START, lane).unwrap();
            let class = batch.message as usize / 1_000;
            sent[class] += cost(sizes[class]);
        }
        let largest = sizes.iter().copied().map(cost).max().unwrap();
        // A quarter of what transactional sends for normal, a tenth of what both send for bulk, and
        // transactional has the rest: more than two thirds.
        prop_assert!(sent[1] + 2 * largest >= sent[0] / 4, "{sent:?}");
        prop_assert!(sent[2] + 2 * largest >= (sent[0] + sent[1]) / 10, "{sent:?}");
        let all: u64 = sent.iter().sum();
        prop_assert!(sent[0] + 4 * largest >= all * 2 / 3, "{sent:?}");
    }
}
