//! Memory pressure: new sessions are told to come back, deliveries go on, nothing is lost (design P4).

use blackbox::{Relay, Site, Tap, until};
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;
use storm::script::Script;
use storm::sink::{Options, Sink};
use storm::source::{self, Plan};

/// Replies and deliveries are there within this time.
const PATIENCE: Duration = Duration::from_secs(60);
/// Sessions with a header of 180 KB.
const HEADERS: usize = 250;
/// Sessions with half a body of 290 KB.
const BODIES: usize = 150;
/// More fillers than this do not fit in the budget by far.
const FILLERS_MAX: usize = 500;
/// The budget, MiB: the least that can be set.
const BUDGET_MIB: u64 = 16;
/// What the process may grow by beyond the budget: code that is used for the first time, buffers on their way to
/// the log and to the next hop, fresh content, and what the allocator keeps.
const BESIDE_MIB: u64 = 64;

struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    fn connect(address: SocketAddr) -> (Client, String) {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let mut client = Client { stream: BufReader::new(stream) };
        let greeting = client.reply();
        (client, greeting)
    }

    fn reply(&mut self) -> String {
        let mut reply = String::new();
        loop {
            let mut line = String::new();
            self.stream.read_line(&mut line).unwrap();
            reply.push_str(&line);
            if line.as_bytes().get(3) != Some(&b'-') {
                return reply;
            }
        }
    }

    fn send(&mut self, octets: &[u8]) {
        self.stream.get_mut().write_all(octets).unwrap();
    }

    #[track_caller]
    fn ask(&mut self, command: &str, code: &str) {
        self.send(command.as_bytes());
        let reply = self.reply();
        assert!(reply.starts_with(code), "{command}{reply}");
    }

    /// A session up to the point at which content is awaited.
    #[track_caller]
    fn in_data(address: SocketAddr, recipient: &str) -> Client {
        let (mut client, greeting) = Client::connect(address);
        assert!(greeting.starts_with("220"), "{greeting}");
        client.start(recipient);
        client
    }

    #[track_caller]
    fn start(&mut self, recipient: &str) {
        self.ask("EHLO client.example.com\r\n", "250");
        self.ask("MAIL FROM:<ann@example.com>\r\n", "250");
        self.ask(&format!("RCPT TO:<{recipient}>\r\n"), "250");
        self.ask("DATA\r\n", "354");
    }
}

/// A field of the process's status, in MiB.
fn memory_mib(relay: &Relay, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", relay.process())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

fn body(number: usize) -> Vec<u8> {
    let mut body = format!("Subject: half {number}\r\n\r\n");
    for line in 0..4_000 {
        body += &format!("line {line} of message {number}, which is rather a long one for its time\r\n");
    }
    body.into_bytes()
}

#[test]
fn when_memory_is_short_new_sessions_are_refused_and_deliveries_go_on() {
    let site = Site::new();
    let (address, slow_at, sink_at) = (site.free(1), site.free(2), site.free(3));
    // What was taken before goes out slowly all the while.
    let script = Script::parse("[[rule]]\nat = \"dot\"\ndelay_ms = 50\n").unwrap();
    let slow = Sink::start(Options { script, ..Options::at(vec![slow_at]) }).unwrap();
    let sink = Sink::start(Options::at(vec![sink_at])).unwrap();
    let tap = Tap::between(site.free(4), sink_at);
    let relay = Relay::start(
        &site,
        &format!(
            "memory = \"{BUDGET_MIB} MiB\"\n[[listener]]\naddress = \"{address}\"\n\
             legacy = {{ clients = [\"127.0.0.0/8\"], from = [\"*\"] }}\n\
             [[route]]\ndomains = [\"slow.test\"]\nto = [\"smtp://{slow_at}\"]\nconnections_per_site = 2\n\
             [[route]]\nto = [\"smtp://{}\"]\n",
            tap.address
        ),
    );
    let plan = Plan { domains: vec!["slow.test".into()], ..Plan::to(address).messages(1_000).sessions(10) };
    assert_eq!(source::run(&plan).unwrap().counts.acknowledged, 1_000);
    let before = memory_mib(&relay, "VmRSS");

    // Bodies can go to the log, header sections that are not complete can only be kept.
    let mut headers: Vec<_> =
        (0..HEADERS).map(|n| Client::in_data(address, &format!("h{n}@fast.test"))).collect();
    let mut bodies: Vec<_> =
        (0..BODIES).map(|n| Client::in_data(address, &format!("b{n}@fast.test"))).collect();
    let contents: Vec<_> = (0..BODIES).map(body).collect();
    for (client, content) in bodies.iter_mut().zip(&contents) {
        client.send(&content[..content.len() / 2]);
    }
    let field = format!("X-Filler: {}\r\n", "x".repeat(900));
    let mut fillers = Vec::new();
    let refused = loop {
        let (mut client, greeting) = Client::connect(address);
        if !greeting.starts_with("220") {
            break greeting;
        }
        client.start("filler@fast.test");
        client.send(field.repeat(50).as_bytes());
        fillers.push(client);
        assert!(fillers.len() < FILLERS_MAX, "memory is never short");
    };
    assert!(refused.starts_with("421 4.3.2 ") && refused.contains("memory"), "{refused}");
    assert!(relay.log().contains("short of memory"), "operators see why");
    let taken = slow.taken();
    until("deliveries go on", PATIENCE, || (slow.taken() > taken + 20).then_some(()));
    let (_, still) = Client::connect(address);
    assert!(still.starts_with("421 4.3.2 "), "{still}");

    // Far beyond the budget: large headers are given up with a reply that says so, whatever else was begun ends well.
    for client in &mut headers {
        client.send(field.repeat(200).as_bytes());
    }
    for (client, content) in bodies.iter_mut().zip(&contents) {
        client.send(&content[content.len() / 2..]);
        client.send(b".\r\n");
    }
    for client in &mut bodies {
        let reply = client.reply();
        assert!(reply.starts_with("250 2.0.0 "), "{reply}");
    }
    let mut expected: BTreeSet<_> = (0..BODIES).map(|n| format!("b{n}@fast.test")).collect();
    for (number, client) in headers.iter_mut().enumerate() {
        client.send(b"\r\nbody\r\n.\r\n");
        let reply = client.reply();
        if reply.starts_with("250 ") {
            expected.insert(format!("h{number}@fast.test"));
        } else {
            assert!(reply.starts_with("452 4.3.1 Short of memory"), "{reply}");
        }
    }
    let given_up = HEADERS + BODIES - expected.len();
    let grown = memory_mib(&relay, "VmHWM").saturating_sub(before);
    eprintln!(
        "{} fillers, {given_up} large headers given up; {before} MiB before, at most {grown} MiB more",
        fillers.len()
    );
    assert!(given_up > 0 && grown <= BUDGET_MIB + BESIDE_MIB, "it grew by {grown} MiB");

    // The fillers go, and whoever was refused comes back.
    drop(fillers);
    let mut client = until("sessions are taken again", PATIENCE, || {
        let (client, greeting) = Client::connect(address);
        greeting.starts_with("220").then_some(client)
    });
    client.start("late@fast.test");
    expected.insert("late@fast.test".into());
    client.ask("Subject: late\r\n\r\nbut there\r\n.\r\n", "250");
    until("what was accepted arrives", PATIENCE, || (sink.taken() >= expected.len() as u64).then_some(()));
    let sent = tap.contents("Subject: half ");
    assert_eq!(sent.len(), BODIES);
    for (number, content) in contents.iter().enumerate() {
        assert!(sent.iter().any(|sent| sent.octets.ends_with(content)), "message {number} is not whole");
    }
    let log = String::from_utf8(sink.stop().log).unwrap();
    let foreign = log.lines().filter_map(|line| line.strip_prefix("F ")?.split_once(' '));
    let arrived: BTreeSet<_> = foreign.map(|(_, to)| to.to_owned()).collect();
    assert_eq!(arrived, expected);
    // Counted in this order, what goes out in between is there twice and never missing.
    let queued = relay.queue().len() as u64;
    assert!(queued + slow.taken() >= 1_000);
}
