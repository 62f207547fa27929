//! Damage on the medium: what is lost is named, the rest goes on, and no garbage is taken for a record.

#![allow(clippy::unwrap_used, reason = "a test that stops is a test that failed")]

use bytes::Bytes;
use postrider_spool::testing::{Dice, SimDisk};
use postrider_spool::{Append, Body, Log, Lsn, Op, Position, Recovery, Settings, Ticket, read_record};

const RECORDS: u64 = 40;

fn settings() -> Settings {
    Settings { segment_size_bytes: 64 << 10, ..Settings::default() }
}

/// A log of records, each in a batch of its own, and their positions.
fn written(seed: u64) -> (SimDisk, Vec<Position>) {
    let mut disk = SimDisk::new(seed);
    let mut log = Log::new(settings(), 3);
    let mut positions = Vec::new();
    for ticket in 1..=RECORDS {
        let body: Body = std::iter::once(Bytes::from(vec![b'b'; 3000])).collect();
        let head = ticket.to_le_bytes().to_vec();
        log.append(Append { ticket: Ticket(ticket), head, body, urgent: true, ..Append::default() });
        while let Some(op) = log.poll() {
            let (outcome, _) = disk.run(&op);
            match op {
                Op::Write(_) => log.written(outcome),
                Op::Sync { .. } => log.synced(outcome),
                Op::Prepare(prepare) => log.prepared(prepare.segment, outcome),
                Op::Read { .. } | Op::Remove { .. } => unreachable!("nothing is released"),
            }
        }
        positions.extend(log.poll_completion().unwrap().placed.iter().map(|(_, position)| *position));
    }
    (disk, positions)
}

fn recover(disk: &mut SimDisk) -> (Vec<u64>, Vec<Position>, postrider_spool::Report, Log) {
    let files = disk.files();
    let mut recovery = Recovery::new(&files, disk, Lsn(1), 0);
    let (mut heads, mut positions) = (Vec::new(), Vec::new());
    while let Some(record) = recovery.next(disk) {
        heads.push(u64::from_le_bytes(record.head.try_into().unwrap()));
        positions.extend(record.position);
    }
    let report = recovery.report().clone();
    (heads, positions, report, Log::recovered(settings(), recovery.finish()))
}

#[test]
fn a_flipped_bit_costs_one_record_at_most_and_is_reported() {
    let (disk, positions) = written(1);
    let mut dice = Dice::new(5);
    let (mut heads_hit, mut bodies_hit) = (0, 0);
    for round in 0..400 {
        let mut disk = disk.clone();
        // Any place in the first segment, which is full and synced.
        let offset = u32::try_from(4096 + dice.below(60 << 10)).unwrap();
        disk.damage(0, offset);
        let (heads, found, report, log) = recover(&mut disk);
        assert!(heads.is_sorted());
        let missing = RECORDS - heads.len() as u64;
        assert!(missing <= 1, "round {round}");
        assert_eq!(missing > 0, report.damages_count > 0, "round {round}: {report:?}");
        heads_hit += missing;
        for position in found {
            assert!(positions.contains(&position));
            let segment = log.segment_of(position.generation()).unwrap();
            bodies_hit += u64::from(read_record(&mut disk, segment, log.salt(), position, true).is_err());
        }
    }
    assert!(heads_hit > 0 && bodies_hit > heads_hit, "{heads_hit} heads, {bodies_hit} bodies");
}

#[test]
fn a_flipped_bit_in_the_last_batch_cuts_the_tail_and_nothing_before_it() {
    let (disk, positions) = written(2);
    let last = positions.last().unwrap();
    let segment = disk.files().len();
    for offset in [last.offset() - 48, last.offset(), last.offset() + 24, last.offset() + 1000] {
        for index in 0..u32::try_from(segment).unwrap() {
            let mut disk = disk.clone();
            let (_, _, _, log) = recover(&mut disk);
            if log.segment_of(last.generation()) != Some(index) {
                continue;
            }
            disk.damage(index, offset);
            let (heads, _, report, _) = recover(&mut disk);
            assert_eq!(heads, (1..RECORDS).collect::<Vec<_>>());
            assert_eq!(report.damages_count, 0, "what was never called synced is no corruption");
        }
    }
}

#[test]
fn a_lost_segment_header_is_made_good_from_the_batches() {
    let (mut disk, _) = written(3);
    disk.damage(0, 20);
    disk.damage(0, 532);
    let (heads, _, report, _) = recover(&mut disk);
    assert_eq!(heads, (1..=RECORDS).collect::<Vec<_>>());
    assert_eq!(report.damages.iter().map(|damage| damage.what).collect::<Vec<_>>(), ["segment header"]);
}

#[test]
fn content_that_imitates_a_batch_is_never_taken_for_one() {
    let (disk, _) = written(4);
    let mut bytes = vec![0; 64 << 10];
    postrider_spool::Medium::read_at(&mut disk.clone(), 0, 0, &mut bytes).unwrap();
    // A mail whose body is a copy of the log itself, found while a damaged batch is searched for its end.
    let mut disk = SimDisk::new(9);
    let mut log = Log::new(settings(), 4);
    for (ticket, body) in [(1, bytes[4096..40_000].to_vec()), (2, vec![b'x'; 10])] {
        let body: Body = std::iter::once(Bytes::from(body)).collect();
        let head = u64::to_le_bytes(ticket).to_vec();
        log.append(Append { ticket: Ticket(ticket), head, body, urgent: true, ..Append::default() });
        while let Some(op) = log.poll() {
            let (outcome, _) = disk.run(&op);
            match op {
                Op::Write(_) => log.written(outcome),
                Op::Sync { .. } => log.synced(outcome),
                Op::Prepare(prepare) => log.prepared(prepare.segment, outcome),
                Op::Read { .. } | Op::Remove { .. } => unreachable!("nothing is released"),
            }
        }
    }
    disk.damage(0, 4096 + 5);
    let (heads, _, report, _) = recover(&mut disk);
    assert_eq!(heads, [2]);
    assert_eq!(report.damages_count, 1);
}

#[test]
fn whatever_is_damaged_recovery_ends_and_the_log_goes_on() {
    let (disk, _) = written(6);
    let mut dice = Dice::new(11);
    for round in 0..300 {
        let mut disk = disk.clone();
        for _ in 0..dice.below(200) {
            let index = u32::try_from(dice.below(disk.files().len() as u64)).unwrap();
            // Headers as often as all the rest.
            let reach = if dice.chance(500) { 9 << 10 } else { 64 << 10 };
            disk.damage(index, u32::try_from(dice.below(reach)).unwrap());
        }
        let (heads, _, _, mut log) = recover(&mut disk);
        assert!(heads.is_sorted() && heads.iter().all(|head| (1..=RECORDS).contains(head)), "round {round}");
        log.settled();
        log.append(Append {
            ticket: Ticket(999),
            head: 999u64.to_le_bytes().to_vec(),
            urgent: true,
            ..Append::default()
        });
        while let Some(op) = log.poll() {
            let (outcome, _) = disk.run(&op);
            match op {
                Op::Write(_) => log.written(outcome),
                Op::Sync { .. } => log.synced(outcome),
                Op::Prepare(prepare) => log.prepared(prepare.segment, outcome),
                Op::Read { .. } | Op::Remove { .. } => unreachable!("nothing is short"),
            }
        }
        assert!(log.poll_completion().unwrap().durable.is_some(), "round {round}");
        let (again, ..) = recover(&mut disk);
        assert_eq!(again.last(), Some(&999), "round {round}");
    }
}
