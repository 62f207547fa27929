//! A newer answer to who may send what, put in place while mail comes in.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use postrider_auth::Verifier;
use postrider_ingress::stage;
use postrider_model::control::{
    Application, ApplicationDraft, Change, Control, ControlParts, Credential, InstanceMode, Tenant,
};
use postrider_model::{ApplicationId, CredentialId, Snapshot, TenantId, Timestamp};
use postrider_relay::{Relay, RelayConfig};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const NOW: Timestamp = Timestamp::from_secs(1_795_526_426);
/// How long a reply may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const SWAPS: u32 = 10;

fn control(count: u128) -> Control {
    let tenant = Tenant { id: TenantId::new(NOW, 1), name: "default".into(), created_at: NOW };
    let verifier: Box<str> = Verifier::new("secret", &[7; 16], 4096).unwrap().to_string().into();
    let application = |number: u128| Application {
        id: ApplicationId::new(NOW, number),
        tenant: tenant.id,
        settings: ApplicationDraft {
            name: Some(format!("app {number}")),
            from: Some(vec![format!("*@d{number}.example"), format!("*@*.d{number}.example")]),
            ..ApplicationDraft::default()
        }
        .create()
        .unwrap(),
        version: 1,
        created_at: NOW,
        updated_at: NOW,
    };
    let credential = |number: u128| Credential {
        id: CredentialId::new(NOW, number),
        application: ApplicationId::new(NOW, number),
        username: format!("app{number}").into(),
        verifier: verifier.clone(),
        name: "".into(),
        created_at: NOW,
        expires_at: None,
        revoked_at: None,
    };
    Control::new(ControlParts {
        mode: InstanceMode::Sandbox,
        tenants: vec![tenant.clone()],
        applications: (0..count).map(application).collect(),
        credentials: (0..count).map(credential).collect(),
        keys: Vec::new(),
    })
    .unwrap()
}

/// Sends until told to stop; gives how many were taken and the longest wait for one.
fn send(address: SocketAddr, stop: &AtomicBool) -> (u32, Duration) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut replies = BufReader::new(stream.try_clone().unwrap());
    let mut expect = |code: &str| {
        let mut line = String::new();
        replies.read_line(&mut line).unwrap();
        assert!(line.starts_with(code), "{line}");
    };
    expect("220 ");
    stream.write_all(b"HELO c\r\n").unwrap();
    expect("250 ");
    let (mut count, mut longest) = (0, Duration::ZERO);
    while !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        for (said, code) in [
            ("MAIL FROM:<a@b.example>", "250 "),
            ("RCPT TO:<c@sandbox.example>", "250 "),
            ("DATA", "354 "),
            ("Subject: x\r\n\r\nhi\r\n.", "250 "),
        ] {
            stream.write_all(format!("{said}\r\n").as_bytes()).unwrap();
            expect(code);
        }
        longest = longest.max(begun.elapsed());
        count += 1;
    }
    (count, longest)
}

/// What this thread has had of the processors, whatever else the machine does.
fn cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(text.split_whitespace().next().and_then(|ns| ns.parse().ok()).unwrap_or_default())
}

/// Prints what a change of one application costs beside many, from the change to the last event loop's letter.
/// The bound is generous: it is there to notice work that grows with anything but their number.
#[test]
fn mail_goes_on_while_one_of_many_applications_changes() {
    let count: u128 = if std::env::var_os("POSTRIDER_TEST_LONG").is_some() { 10_000 } else { 1_000 };
    let dir = tempfile::tempdir().unwrap();
    let stage = stage(NOW);
    let listeners = stage.listeners.iter().filter(|listener| &*listener.name == "sandbox").cloned().collect();
    let snapshot = Snapshot { listeners, ..stage };
    let mut control = control(count);
    let config = RelayConfig {
        control: Arc::new(control.clone()),
        ..RelayConfig::new(Arc::new(snapshot), dir.path())
    };
    let relay = Relay::start(config).unwrap();
    let address = relay.addresses()[0].1;
    let stop = Arc::new(AtomicBool::new(false));
    let sender = std::thread::spawn({
        let stop = stop.clone();
        move || send(address, &stop)
    });
    let mut costs = Vec::new();
    let cpu_before = cpu();
    for n in 0..SWAPS {
        let begun = Instant::now();
        let mut changed = Application::clone(control.applications().nth(7).unwrap());
        changed.settings.owner = format!("owner {n}").into();
        control = control.with(&[Change::Application(changed)]).unwrap();
        relay.set_control(Arc::new(control.clone()));
        costs.push(begun.elapsed());
    }
    let cpu = (cpu() - cpu_before) / SWAPS;
    assert_eq!(&*relay.control().applications().nth(7).unwrap().settings.owner, "owner 9");
    std::thread::sleep(Duration::from_millis(50));
    stop.store(true, Ordering::Relaxed);
    let (sent, longest) = sender.join().unwrap();
    relay.stop(PATIENCE);
    costs.sort_unstable();
    println!(
        "a change beside {count} applications: median {:?}, most {:?}, {cpu:?} of processor each; meanwhile {sent} messages, the slowest {longest:?}",
        costs[costs.len() / 2],
        costs[costs.len() - 1]
    );
    assert!(sent > 0, "no mail came in");
    assert!(costs.iter().all(|cost| *cost < PATIENCE));
}
