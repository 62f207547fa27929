//! Applications with real clients: the From pair, delivery modes, and being cut off.

use blackbox::{Relay, Site, program, run, skip, until};
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Takes all mail and notes each RCPT.
struct Recipients(Arc<Mutex<Vec<String>>>);

impl Recipients {
    fn at(address: SocketAddr) -> Recipients {
        let seen = Arc::<Mutex<Vec<String>>>::default();
        let listener = TcpListener::bind(address).unwrap();
        let noted = seen.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let noted = noted.clone();
                std::thread::spawn(move || drop(take(stream, &noted)));
            }
        });
        Recipients(seen)
    }

    fn seen(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

fn take(mut stream: TcpStream, noted: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    stream.write_all(b"220 sink\r\n")?;
    while let Some(line) = lines.next().transpose()? {
        let upper = line.to_ascii_uppercase();
        if upper.starts_with("DATA") {
            stream.write_all(b"354 go\r\n")?;
            while lines.next().transpose()?.is_some_and(|line| line != ".") {}
        } else if let Some(to) = upper.strip_prefix("RCPT TO:<") {
            noted.lock().unwrap().push(to.split('>').next().unwrap_or_default().to_ascii_lowercase());
        }
        stream.write_all(b"250 yes\r\n")?;
    }
    Ok(())
}

struct Stage {
    relay: Relay,
    listener: SocketAddr,
    sink: Recipients,
}

impl Stage {
    /// A sandbox listener, and a route that leads out; the instance is live.
    fn start(site: &Site) -> Stage {
        let (listener, sink) = (site.free(1), site.free(2));
        let recipients = Recipients::at(sink);
        let config = format!(
            "[[listener]]\naddress = \"{listener}\"\nsandbox = true\n[[route]]\nto = [\"smtp://{sink}\"]\n\
             [delivery]\nretry = [\"1s\"]\n"
        );
        let relay = Relay::start(site, &config);
        relay.command(&["instance", "live"]).must_succeed("instance live");
        Stage { relay, listener, sink: recipients }
    }

    fn application(&self, name: &str, delivery: &str) -> (String, String) {
        let args = ["app", "create", name, "--from", "*@example.com", "--delivery", delivery, "--json"];
        let answer = self.relay.command(&args).must_succeed("app create");
        let told: Value = serde_json::from_slice(&answer.output).unwrap();
        let word = |key: &str| told["smtp"][key].as_str().unwrap().to_owned();
        (word("username"), word("password"))
    }

    /// Recipients of what the sandbox has, sorted.
    fn captured(&self) -> Vec<String> {
        let answer = self.relay.command(&["sandbox", "list", "--json"]).must_succeed("sandbox list");
        let list: Value = serde_json::from_slice(&answer.output).unwrap();
        let mut all: Vec<_> = list
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|message| message["recipients"].as_array().unwrap().iter())
            .map(|recipient| recipient.as_str().unwrap().to_owned())
            .collect();
        all.sort();
        all
    }
}

const SEND: &str = "
import smtplib, sys
host, port, user, password, sender, count = sys.argv[1:7]
server = smtplib.SMTP(host, int(port), timeout=60)
server.login(user, password)
to = ['user%d@customers.example' % n for n in range(int(count))]
refused = server.sendmail(sender, to, 'From: Shop <%s>\\r\\nSubject: hello\\r\\n\\r\\nhello\\r\\n' % sender)
assert refused == {}, refused
server.quit()
";

#[test]
fn smtplib_reaches_whom_the_delivery_mode_lets_it_reach() {
    let python = match program("python3", "python3") {
        Ok(found) => found,
        Err(why) => skip!("{why:#}"),
    };
    let site = Site::new();
    let stage = Stage::start(&site);
    let count = if std::env::var_os("POSTRIDER_TEST_LONG").is_some() { "1000" } else { "200" };
    let send = |name: &str, delivery: &str, count: &str| {
        let (user, password) = stage.application(name, delivery);
        let (host, port) = (stage.listener.ip().to_string(), stage.listener.port().to_string());
        let mut command = Command::new(&python);
        command.args(["-c", SEND, &host, &port, &user, &password, "a@example.com", count]);
        run(&mut command).must_succeed("smtplib");
        stage.relay.wait_until_empty(PATIENCE);
    };
    send("redirected", "redirect:test@example.com", count);
    assert_eq!(stage.sink.seen(), ["test@example.com"], "one message, one recipient");
    assert!(stage.captured().is_empty());

    send("careful", "only:user1@customers.example", "3");
    assert_eq!(stage.sink.seen()[1..], ["user1@customers.example"]);
    assert_eq!(stage.captured(), ["user0@customers.example", "user2@customers.example"]);

    send("caged", "sandbox", "1");
    send("free", "live", "1");
    assert_eq!(stage.sink.seen()[2..], ["user0@customers.example"]);
    assert_eq!(stage.captured().len(), 3);

    stage.relay.command(&["instance", "sandbox"]).must_succeed("instance sandbox");
    send("late", "live", "1");
    assert_eq!(stage.sink.seen().len(), 3, "nothing leaves any more");
    assert_eq!(stage.captured().len(), 4);
}

#[test]
fn swaks_is_told_why_it_may_not_send() {
    let swaks = match program("swaks", "swaks") {
        Ok(found) => found,
        Err(why) => skip!("{why:#}"),
    };
    let site = Site::new();
    let stage = Stage::start(&site);
    let (user, password) = stage.application("shop", "live");
    let send = |mechanism: &str, envelope: &str, header: &str| {
        let mut command = Command::new(&swaks);
        command.args([
            "--server",
            &stage.listener.ip().to_string(),
            "--port",
            &stage.listener.port().to_string(),
        ]);
        command.args(["--auth", mechanism, "--auth-user", &user, "--auth-password", &password]);
        command.args(["--from", envelope, "--to", "bob@example.net", "--header", &format!("From: {header}")]);
        run(&mut command)
    };
    for mechanism in ["PLAIN", "LOGIN"] {
        send(mechanism, "a@example.com", "Shop <b@example.com>").must_succeed("swaks");
    }
    for (envelope, header, what) in [
        ("a@sub.example.com", "a@example.com", "the envelope sender a@sub.example.com"),
        ("a@example.com", "a@example.com, c@example.org", "the From header c@example.org"),
        ("<>", "a@example.com", "the null reverse-path"),
    ] {
        let answer = send("PLAIN", envelope, header);
        assert!(!answer.succeeded, "{}", answer.text);
        let refusal = answer.text.lines().find(|line| line.starts_with("<** ")).unwrap_or_default();
        assert!(refusal.starts_with("<** 550 5.7.1 Application shop may not send with "), "{}", answer.text);
        assert!(refusal.contains(what) && refusal.contains("(rule application."), "{refusal}");
    }
    stage.relay.wait_until_empty(PATIENCE);
    assert_eq!(stage.sink.seen(), ["bob@example.net", "bob@example.net"]);
    stage.relay.command(&["app", "revoke", "shop", "--yes"]).must_succeed("app revoke");
    let answer = send("PLAIN", "a@example.com", "a@example.com");
    assert!(!answer.succeeded && answer.text.contains("535 5.7.8 "), "{}", answer.text);
}

/// Logs in, says so, then waits for whatever the server says.
const WAIT: &str = "
import smtplib, sys
host, port, user, password = sys.argv[1:5]
server = smtplib.SMTP(host, int(port), timeout=60)
server.login(user, password)
server.mail('a@example.com'); server.rcpt('b@example.net'); server.docmd('DATA')
server.send(b'From: a@example.com\\r\\n\\r\\nhalf of a mess')
print('half', flush=True)
code, text = server.getreply()
print(code, text.decode(), flush=True)
";

fn line(child: &mut Child) -> impl FnMut() -> String + use<> {
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    move || lines.next().unwrap().unwrap()
}

#[test]
fn a_revoked_application_is_cut_off_in_the_midst_of_a_message() {
    let python = match program("python3", "python3") {
        Ok(found) => found,
        Err(why) => skip!("{why:#}"),
    };
    let site = Site::new();
    let stage = Stage::start(&site);
    let mut clients: Vec<_> = [stage.application("shop", "live"), stage.application("crm", "live")]
        .into_iter()
        .map(|(user, password)| {
            let (host, port) = (stage.listener.ip().to_string(), stage.listener.port().to_string());
            let mut command = Command::new(&python);
            command.args(["-c", WAIT, &host, &port, &user, &password]).stdout(Stdio::piped());
            let mut child = command.spawn().unwrap();
            let next = line(&mut child);
            (child, next)
        })
        .collect();
    for (_, next) in &mut clients {
        assert_eq!(next(), "half");
    }
    let revoked = Instant::now();
    stage.relay.command(&["app", "revoke", "shop", "--yes"]).must_succeed("app revoke");
    let said = clients[0].1();
    println!("cut off {:?} after the command began", revoked.elapsed());
    assert!(said.starts_with("421 4.7.0 "), "{said}");
    assert!(clients[1].0.try_wait().unwrap().is_none(), "the other one goes on");
    clients[1].0.kill().unwrap();
    for (child, _) in &mut clients {
        child.wait().unwrap();
    }
    until("both sessions are over", PATIENCE, || stage.relay.queue().is_empty().then_some(()));
    assert!(stage.sink.seen().is_empty(), "half a message is none");
}
