//! Kill -9 under load: nothing acknowledged is lost, copies stay within the bound, schedules come back exactly.

use blackbox::{Relay, Site, is_long, until};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use storm::check::{self, Known};
use storm::script::Script;
use storm::sink::{Options, Sink};
use storm::source::{self, Control, Plan};

/// Everything is delivered within this time of the last crash.
const DRAIN: Duration = Duration::from_secs(60);
/// Connections of the relay at once: each may cost two copies at each crash.
const CONNECTIONS: u64 = 8;

fn config(address: SocketAddr, sink: SocketAddr, retry: &str) -> String {
    format!(
        "[[listener]]\naddress = \"{address}\"\nlegacy = {{ clients = [\"127.0.0.0/8\"], from = [\"*@example.test\"] }}\n\
         [[route]]\nto = [\"smtp://{sink}\"]\n[delivery]\nretry = [{retry}]\nconnections_per_site = {CONNECTIONS}\n"
    )
}

fn sink(address: SocketAddr, script: &str) -> Sink {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("script.toml");
    std::fs::write(&path, script).unwrap();
    Sink::start(Options { script: Script::read(&path).unwrap(), ..Options::at(vec![address]) }).unwrap()
}

/// A small generator, so that a seed tells the times of all crashes.
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

#[test]
fn kill_9_at_random_points_loses_nothing() {
    let rounds: u64 = if is_long() { 50 } else { 6 };
    let mut state =
        std::env::var("POSTRIDER_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_261_124);
    eprintln!("seed {state} (POSTRIDER_SEED)");
    let site = Site::new();
    let (address, next_hop) = (site.free(1), site.free(2));
    // A backlog: every fourth recipient is put off, so that retries are under way at each crash.
    let sink = sink(
        next_hop,
        "seed = 7\n[[rule]]\nat = \"rcpt\"\nprobability = 0.25\nreply = \"451 4.3.0 later\"\n",
    );
    let mut relay = Relay::start(&site, &config(address, next_hop, "\"1s\""));
    let control = Arc::new(Control::default());
    let plan = Plan {
        messages: None,
        duration: Some(Duration::from_secs(600)),
        rate: Some(400.0),
        recipients: 2,
        patience: Duration::from_secs(60),
        ..Plan::to(address).sessions(10)
    };
    let load = std::thread::spawn({
        let control = control.clone();
        move || source::run_controlled(&plan, &control).unwrap()
    });
    let acknowledged = || control.acknowledged.load(std::sync::atomic::Ordering::Relaxed);
    for round in 0..rounds {
        let before = acknowledged();
        until("mail is taken again", Duration::from_secs(30), || {
            (acknowledged() > before + 20).then_some(())
        });
        // The point of the crash is the random thing here; nothing is waited for.
        std::thread::sleep(Duration::from_millis(next(&mut state) % 700));
        relay.restart();
        eprintln!("round {round}: {} acknowledged", acknowledged());
    }
    let before = acknowledged();
    until("mail is taken again", Duration::from_secs(30), || (acknowledged() > before + 20).then_some(()));
    control.stop();
    let sent = load.join().unwrap();
    relay.wait_until_empty(DRAIN);
    let received = sink.stop();
    let known = Known { open_connections: rounds * CONNECTIONS, ..Known::default() };
    let report = check::check(&sent.journal, &received.log, &known).unwrap();
    eprintln!(
        "{} acknowledged, {} delivered, {} lost, {} copies of {} allowed",
        report.acknowledged, report.delivered, report.lost, report.duplicates, report.duplicates_allowed
    );
    assert!(report.holds(), "{report:#?}");
    assert!(report.acknowledged > rounds * 20 && sent.trouble.is_none(), "{:?}", sent.trouble);
}

/// What must not change: attempts, time of the next one, last reply, state.
fn schedules(relay: &Relay) -> BTreeMap<String, Value> {
    relay.queue().into_iter().map(|queued| (queued["id"].as_str().unwrap().to_owned(), queued)).collect()
}

#[test]
fn schedules_are_the_same_after_kill_9() {
    const MESSAGES: u64 = 300;
    let site = Site::new();
    let (address, next_hop) = (site.free(1), site.free(2));
    let sink = sink(
        next_hop,
        "[[rule]]\nat = \"rcpt\"\ndomains = [\"a.test\"]\nreply = \"451 4.3.0 come back later\"\n\
         [[rule]]\nat = \"dot\"\nreply = \"452 4.2.2 mailbox full\"\n",
    );
    let mut relay = Relay::start(&site, &config(address, next_hop, "\"1h\""));
    let plan = Plan {
        domains: vec!["a.test".into(), "b.test".into(), "c.test".into()],
        ..Plan::to(address).messages(MESSAGES).sessions(10)
    };
    let sent = source::run(&plan).unwrap();
    assert_eq!(sent.counts.acknowledged, MESSAGES);
    until("each was tried once", DRAIN, || {
        let queue = relay.queue();
        (queue.len() as u64 == MESSAGES && queue.iter().all(|queued| queued["attempts"] == 1)).then_some(())
    });
    relay.command(&["queue", "hold", "--domain", "c.test"]).must_succeed("queue hold");
    // Outcomes are synced at the latest after 5 ms; the hold was before its command returned.
    std::thread::sleep(Duration::from_millis(50));
    for _ in 0..if is_long() { 10 } else { 2 } {
        let before = schedules(&relay);
        let began = Instant::now();
        relay.restart();
        eprintln!("back after {:?}", began.elapsed());
        let after = schedules(&relay);
        assert_eq!(before.len(), after.len());
        for (id, queued) in &before {
            assert_eq!(Some(queued), after.get(id), "{id} changed");
        }
    }
    assert_eq!(sink.stop().totals.taken, 0);
}
