//! How long the hot paths take. What CI guards is their instructions: `cargo xtask bench --instructions`.

#![allow(missing_docs, reason = "criterion's macro makes a public function")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use hotpaths::{LARGE, Path, Recovery, SMALL, Scheduler, Session, Spool, Transaction, VERY_LARGE};
use postrider_model::Encoding;

fn time<P: Path>(criterion: &mut Criterion, what: &str, mut path: P) {
    let mut group = criterion.benchmark_group(P::NAME);
    group.throughput(Throughput::Elements(u64::from(P::ITEMS)));
    group.bench_function(what, |bencher| bencher.iter(|| path.step()));
    group.finish();
}

fn paths(criterion: &mut Criterion) {
    time(criterion, "4 KiB", Session::<SMALL>::ready());
    time(criterion, "100 KB", Session::<LARGE>::ready());
    time(criterion, "1 MiB", Session::<VERY_LARGE>::ready());
    time(criterion, "messages of 4 KiB with outcomes, twenty to a batch", Spool::ready());
    time(criterion, "a fresh message", Scheduler::ready());
    time(criterion, "4 KiB for one recipient", Transaction::ready());
    time(criterion, "4 KiB for ten recipients", Transaction::to(10, Encoding::Stuffed));
    time(criterion, "4 KiB that is stuffed on its way", Transaction::to(1, Encoding::Plain));
    time(criterion, "messages and outcomes, bodies skipped", Recovery::ready());
}

criterion_group!(benches, paths);
criterion_main!(benches);
