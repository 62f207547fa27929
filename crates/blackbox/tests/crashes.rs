//! Kill -9 and loss of power under load: nothing acknowledged is lost, copies stay within the bound, schedules come
//! back exactly.

use blackbox::{ForgetfulDisk, Relay, Site, is_long, skip, until};
use rustix::process::Signal;
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use storm::check::{self, Known};
use storm::script::Script;
use storm::sink::{Options, Sink};
use storm::source::{self, Control, Outcome, Plan};

/// Everything is delivered within this time of the last crash.
const DRAIN: Duration = Duration::from_secs(60);
/// Mail is taken again within this time of a restart.
const RETURN: Duration = Duration::from_secs(30);
/// Connections of the relay at once.
const CONNECTIONS: u64 = 8;
/// How long a sync of the forgetful disk takes.
const SYNC: Duration = Duration::from_millis(2);
/// With SIGSTOP sent, the sink has heard of every connection after this time.
const STANDSTILL: Duration = Duration::from_millis(50);
/// Room on the forgetful disk: so little that segments are soon used again, behind checkpoints.
const CAPACITY: u64 = 12 << 20;

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

/// The seed of a test's random choices: the one given, or always the same.
fn seed() -> u64 {
    let seed = std::env::var("POSTRIDER_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_261_124);
    eprintln!("seed {seed} (POSTRIDER_SEED)");
    seed
}

/// Clients that go on sending while the relay comes and goes.
struct Load {
    control: Arc<Control>,
    thread: JoinHandle<Outcome>,
}

impl Load {
    fn start(plan: Plan, run: u64) -> Load {
        let control = Arc::new(Control::default());
        let plan = Plan {
            messages: None,
            duration: Some(Duration::from_secs(3_600)),
            patience: Duration::from_secs(60),
            run: Some(run),
            ..plan
        };
        let thread = std::thread::spawn({
            let control = control.clone();
            move || source::run_controlled(&plan, &control).unwrap()
        });
        Load { control, thread }
    }

    fn acknowledged(&self) -> u64 {
        self.control.acknowledged.load(Ordering::Relaxed)
    }

    fn wait_until_mail_is_taken(&self) {
        let before = self.acknowledged();
        until("mail is taken again", RETURN, || (self.acknowledged() > before + 20).then_some(()));
    }

    fn stop(self) -> Outcome {
        self.control.stop();
        self.thread.join().unwrap()
    }
}

/// Kills the relay where it stands; tells how many connections it had: each excuses two copies.
fn kill(relay: &mut Relay, sink: &Sink, disk: Option<&ForgetfulDisk>) -> u64 {
    relay.signal(Signal::STOP);
    std::thread::sleep(STANDSTILL);
    let open = sink.open_connections();
    relay.signal(Signal::KILL);
    if let Some(disk) = disk {
        disk.turn_off();
    }
    relay.kill();
    open
}

#[test]
fn kill_9_at_random_points_loses_nothing() {
    let rounds: u64 = if is_long() { 50 } else { 6 };
    let mut state = seed();
    let site = Site::new();
    let (address, next_hop) = (site.free(1), site.free(2));
    // A backlog: every fourth recipient is put off, so that retries are under way at each crash.
    let sink = sink(
        next_hop,
        "seed = 7\n[[rule]]\nat = \"rcpt\"\nprobability = 0.25\nreply = \"451 4.3.0 later\"\n",
    );
    let mut relay = Relay::start(&site, &config(address, next_hop, "\"1s\""));
    let plan = Plan { rate: Some(400.0), recipients: 2, ..Plan::to(address).sessions(10) };
    let load = Load::start(plan, 1);
    let mut open_connections = 0;
    for round in 0..rounds {
        load.wait_until_mail_is_taken();
        // The point of the crash is the random thing here; nothing is waited for.
        std::thread::sleep(Duration::from_millis(next(&mut state) % 700));
        let open = kill(&mut relay, &sink, None);
        open_connections += open;
        relay.start_again();
        eprintln!("round {round}: {open} connections open, {} acknowledged", load.acknowledged());
    }
    load.wait_until_mail_is_taken();
    let sent = load.stop();
    relay.wait_until_empty(DRAIN);
    let known = Known { open_connections, ..Known::default() };
    account(&sent, sink, &known, rounds);
}

/// Everything acknowledged arrived or waits, once but for the copies that crashes excuse.
#[track_caller]
fn account(sent: &Outcome, sink: Sink, known: &Known, rounds: u64) {
    let report = check::check(&sent.journal, &sink.stop().log, known).unwrap();
    eprintln!(
        "{} acknowledged, {} delivered, {} queued, {} lost, {} copies of {} allowed",
        report.acknowledged,
        report.delivered,
        report.queued,
        report.lost,
        report.duplicates,
        report.duplicates_allowed
    );
    assert!(report.holds(), "{report:#?}");
    assert!(report.acknowledged > rounds * 20 && sent.trouble.is_none(), "{:?}", sent.trouble);
}

#[test]
fn a_loss_of_power_loses_nothing_that_was_acknowledged() {
    const PARKED: u64 = 200;
    let rounds: u64 = if is_long() { 50 } else { 3 };
    let mut state = seed();
    let site = Site::new();
    let place = site.path("forgetful");
    let mut disk = match ForgetfulDisk::mount(&place, CAPACITY, SYNC) {
        Ok(disk) => disk,
        Err(error) => skip!("no file system can be mounted by FUSE here: {error}"),
    };
    let (address, next_hop) = (site.free(1), site.free(2));
    // A tenth of the load is put off for a second or two; what goes to parked.test is put off for good.
    let sink = sink(
        next_hop,
        "seed = 7\n[[rule]]\nat = \"rcpt\"\ndomains = [\"parked.test\"]\nreply = \"451 4.3.0 come back later\"\n\
         [[rule]]\nat = \"rcpt\"\nprobability = 0.1\nreply = \"451 4.3.0 later\"\n",
    );
    let config = config(address, next_hop, "\"1s\", \"1s\", \"1h\"") + "[spool]\nsegment_size = \"1 MiB\"\n";
    let mut relay = Relay::start_at(&site, &place.join("deep/data"), &config, &[]);
    let parked = Plan {
        domains: vec!["parked.test".into()],
        size: 1_000,
        run: Some(1),
        ..Plan::to(address).messages(PARKED).sessions(10)
    };
    let parked = source::run(&parked).unwrap();
    assert_eq!(parked.counts.acknowledged, PARKED);
    until("each was tried three times", DRAIN, || {
        let queue = schedules(&relay, "parked.test");
        (queue.len() as u64 == PARKED && queue.values().all(|queued| queued["attempts"] == 3)).then_some(())
    });
    // Outcomes are synced at the latest after 5 ms, or what a sync takes here.
    std::thread::sleep(Duration::from_millis(200));
    let schedule = schedules(&relay, "parked.test");
    // Large enough to go through the whole disk several times.
    let plan = Plan { rate: Some(300.0), size: 40_000, ..Plan::to(address).sessions(10) };
    let load = Load::start(plan, 2);
    let mut open_connections = 0;
    for round in 0..rounds {
        load.wait_until_mail_is_taken();
        std::thread::sleep(Duration::from_millis(next(&mut state) % 1_500));
        disk.cut_power();
        let open = kill(&mut relay, &sink, Some(&disk));
        open_connections += open;
        let (octets, changes) = disk.restore_power(next(&mut state)).unwrap();
        relay.start_again();
        eprintln!(
            "round {round}: {open} connections open, {octets} octets and {changes} changes of directories at \
             risk, {} acknowledged",
            load.acknowledged()
        );
        assert_eq!(schedules(&relay, "parked.test"), schedule);
    }
    load.wait_until_mail_is_taken();
    let sent = load.stop();
    relay.command(&["queue", "retry", "--domain", "example.test"]).must_succeed("queue retry");
    until("the load is delivered", DRAIN, || {
        let left = schedules(&relay, "example.test");
        if left.values().any(|queued| queued["attempts"].as_u64() > Some(2)) {
            relay.command(&["queue", "retry", "--domain", "example.test"]).must_succeed("queue retry");
        }
        left.is_empty().then_some(())
    });
    let mut known = Known { open_connections, ..Known::default() };
    known.read_queued(&serde_json::to_string(&relay.queue()).unwrap()).unwrap();
    account(&sent, sink, &known, rounds);
    drop(relay);
}

/// What must not change: attempts, time of the next one, last reply, state.
fn schedules(relay: &Relay, domain: &str) -> BTreeMap<String, Value> {
    let queue = relay
        .queue()
        .into_iter()
        .filter(|queued| queued["recipient"].as_str().is_some_and(|recipient| recipient.ends_with(domain)));
    queue.map(|queued| (queued["id"].as_str().unwrap().to_owned(), queued)).collect()
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
        let before = schedules(&relay, ".test");
        let began = Instant::now();
        relay.restart();
        eprintln!("back after {:?}", began.elapsed());
        let after = schedules(&relay, ".test");
        assert_eq!(before.len(), after.len());
        for (id, queued) in &before {
            assert_eq!(Some(queued), after.get(id), "{id} changed");
        }
    }
    assert_eq!(sink.stop().totals.taken, 0);
}
