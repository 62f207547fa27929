//! A start with a million recipients queued (`POSTRIDER_TEST_LONG=1`: ten million): mail flows at once, and what
//! waits takes little memory.

use blackbox::{Backlog, Relay, Site, is_long, run, until};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use storm::sink::{Options, Sink};

const IDLE_MAX_BYTES: u64 = 60 << 20;
/// With what the allocator still keeps of the start's buffers.
const PARKED_MAX_BYTES: u64 = 128;
const FIRST_DELIVERY: Duration = Duration::from_secs(1);
/// Of so many starts the best counts: what else the machine does is not the relay's.
const STARTS: usize = 3;

fn config(address: SocketAddr, sink: SocketAddr) -> String {
    let (shards, route) = (Backlog::SHARDS, Backlog::ROUTE);
    format!(
        "shards = {shards}\n[[listener]]\naddress = \"{address}\"\n\
         legacy = {{ clients = [\"127.0.0.0/8\"], from = [\"*@example.test\"] }}\n\
         [[route]]\nname = \"{route}\"\nto = [\"smtp://{sink}\"]\n"
    )
}

fn copy(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    run(Command::new("cp").args(["-a", "--reflink=auto"]).args([from, to])).must_succeed("cp");
}

/// Starts the relay; gives the time until the sink had its first message.
fn first_delivery(site: &Site, data: &Path, address: SocketAddr, hop: SocketAddr) -> (Relay, Sink, Duration) {
    let sink = Sink::start(Options::at(vec![hop])).unwrap();
    let config = config(address, hop);
    let (relay, first) = std::thread::scope(|scope| {
        let started = Instant::now();
        let sink = &sink;
        let first = scope.spawn(move || {
            while sink.taken() == 0 && started.elapsed() < Duration::from_secs(120) {
                std::thread::sleep(Duration::from_millis(1));
            }
            started.elapsed()
        });
        (Relay::start_at(site, data, &config, &[]), first.join().unwrap())
    });
    (relay, sink, first)
}

#[test]
fn the_first_delivery_does_not_wait_for_what_is_due_later() {
    let parked = if is_long() { 10_000_000 } else { 1_000_000 };
    let backlog = Backlog { parked, per_message: 10, due: 100, body: 300 };
    let site = Site::new();
    let (address, hop) = (site.free(1), site.free(2));
    let written = site.path("written");
    let began = Instant::now();
    backlog.write(&written).unwrap();
    eprintln!("written in {:?}", began.elapsed());

    let idle = {
        let relay = Relay::start_at(&site, &site.path("empty"), &config(address, hop), &[]);
        relay.resident_bytes()
    };
    let mut firsts = Vec::new();
    let mut per_recipient = u64::MAX;
    for start in 0..STARTS {
        let data = site.path("data");
        copy(&written, &data);
        let started = Instant::now();
        let (relay, sink, first) = first_delivery(&site, &data, address, hop);
        firsts.push(first);
        until("the due ones are delivered", Duration::from_secs(60), || {
            (sink.taken() == backlog.due).then_some(())
        });
        let totals = until("all is loaded", Duration::from_secs(120), || {
            let totals = relay.get("/v1/totals");
            (totals["loading"] == 0).then_some(totals)
        });
        assert_eq!(totals["recipients"], parked, "{totals}");
        let resident = relay.resident_bytes();
        per_recipient = per_recipient.min(resident.saturating_sub(idle) / parked);
        eprintln!(
            "start {start}: first delivery {first:?}, all loaded {:?}, {} MiB against {} MiB idle",
            started.elapsed(),
            resident >> 20,
            idle >> 20
        );
        assert_eq!(sink.stop().totals.taken, backlog.due, "what is due later went too");
    }
    let best = firsts.iter().min().unwrap();
    eprintln!("first delivery after {best:?}; {per_recipient} octets for each parked recipient");
    assert!(idle < IDLE_MAX_BYTES, "{idle} octets idle");
    assert!(per_recipient <= PARKED_MAX_BYTES, "{per_recipient} octets");
    assert!(*best < FIRST_DELIVERY, "{firsts:?}");
}
