//! The program as people use it: started, asked, changed, killed.

use postrider_api::Client;
use postrider_net::SelfSigned;
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const SANDBOX: &str = "[[listener]]\nname = \"try\"\naddress = \"127.0.0.1:0\"\nsandbox = true\n";
const LEGACY: &str = "[[listener]]\nname = \"devices\"\naddress = \"127.0.0.1:0\"\n\
                      legacy = { clients = [\"127.0.0.0/8\"], from = [\"*@example.com\"] }\n";

struct Program {
    directory: tempfile::TempDir,
    child: Child,
}

fn postrider() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_postrider"));
    for name in
        ["POSTRIDER_CONFIG", "POSTRIDER_DATA_DIR", "POSTRIDER_LOG", "POSTRIDER_PASSWORD", "NOTIFY_SOCKET"]
    {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

/// Starts a relay and waits until it says that it is ready.
fn serve(directory: &Path) -> Child {
    let notify = directory.join("notify");
    let _ = std::fs::remove_file(&notify);
    let socket = UnixDatagram::bind(&notify).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let log = std::fs::OpenOptions::new().create(true).append(true).open(directory.join("log")).unwrap();
    let mut command = postrider();
    command.args(["serve", "--config"]).arg(directory.join("postrider.toml"));
    let child =
        command.env("NOTIFY_SOCKET", &notify).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
    let mut buffer = [0; 100];
    let read = socket.recv(&mut buffer).unwrap_or_else(|error| {
        panic!("no relay: {error}\n{}", std::fs::read_to_string(directory.join("log")).unwrap())
    });
    assert_eq!(&buffer[..read], b"READY=1");
    child
}

impl Program {
    fn start(config: &str) -> Program {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("postrider.toml"), config).unwrap();
        let child = serve(directory.path());
        Program { directory, child }
    }

    fn configure(&self, config: &str) {
        std::fs::write(self.directory.path().join("postrider.toml"), config).unwrap();
    }

    fn client(&self) -> Client {
        Client::of_data_dir(&self.directory.path().join("postrider-data"))
    }

    fn run(&self, args: &[&str]) -> Output {
        postrider()
            .arg("--config")
            .arg(self.directory.path().join("postrider.toml"))
            .args(args)
            .output()
            .unwrap()
    }

    /// What a command prints that must succeed.
    fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {output:?}\n{}", self.log());
        String::from_utf8(output.stdout).unwrap()
    }

    /// What a command says that must fail with this code.
    fn fails(&self, code: i32, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(args)).unwrap()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap()
    }

    /// Looks again until `seen` gives something.
    fn until<T>(&self, what: &str, mut seen: impl FnMut() -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            if let Some(value) = seen() {
                return value;
            }
            assert!(start.elapsed() < PATIENCE, "never: {what}\n{}", self.log());
            std::thread::yield_now();
        }
    }

    /// The recipients that wait, when `fits` them.
    fn queue(&self, what: &str, fits: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        self.until(what, || {
            let page = self.client().get("/v1/queue").ok()?;
            page["items"].as_array().filter(|items| fits(items)).cloned()
        })
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Ends it; a signal to stop must end it well and soon.
    fn stop(&mut self, signal: &str) {
        let start = Instant::now();
        self.signal(signal);
        let status = self.child.wait().unwrap();
        if signal == "-TERM" {
            assert!(status.success(), "{status}\n{}", self.log());
            assert!(start.elapsed() < Duration::from_secs(35));
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A server that always says "later" to a recipient, for as long as the test runs; gives its port.
fn putting_off() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || put_off(&stream));
        }
    });
    port
}

fn put_off(stream: &TcpStream) -> Option<()> {
    let mut out = stream;
    out.write_all(b"220 later.example\r\n").ok()?;
    for line in BufReader::new(stream).lines().map_while(Result::ok) {
        let reply = match line.get(..4)?.to_ascii_uppercase().as_str() {
            "RCPT" => "450 4.2.1 Come back later",
            "DATA" => "503 5.5.1 No recipients",
            "QUIT" => "221 2.0.0 Bye",
            _ => "250 2.0.0 Fine",
        };
        out.write_all(format!("{reply}\r\n").as_bytes()).ok()?;
    }
    Some(())
}

fn to_nobody() -> String {
    let port = putting_off();
    format!(
        "{LEGACY}[[route]]\nname = \"backup\"\ndomains = \"backup.example\"\nto = \"smtp://127.0.0.1:{port}\"\n\
         [[route]]\nname = \"main\"\nto = \"smtp://127.0.0.1:{port}\"\n"
    )
}

#[test]
fn a_first_mail_is_seen_in_the_sandbox() {
    let mut relay = Program::start(SANDBOX);
    let said =
        relay.ok(&["send", "--from", "ada@example.com", "--to", "bob@example.net", "--subject", "Grüße"]);
    assert!(said.contains("250"), "{said}");
    let kept = relay.until("a captured message", || {
        relay.json(&["sandbox", "list", "--json"]).as_array().unwrap().first().cloned()
    });
    assert_eq!((&kept["subject"], &kept["recipients"][0]), (&"Grüße".into(), &"bob@example.net".into()));
    let shown = relay.ok(&["sandbox", "show"]);
    assert!(shown.contains("envelope to:") && shown.contains("From: ada@example.com\n"), "{shown}");
    let raw = relay.ok(&["sandbox", "show", "--raw", kept["id"].as_str().unwrap()]);
    assert!(raw.starts_with("Received: ") && raw.ends_with("`postrider send`.\r\n"), "{raw:?}");
    assert!(relay.ok(&["sandbox", "list", "--to", "nobody", "--json"]).starts_with("[]"));
    assert!(relay.ok(&["top", "--once"]).contains("captured: 1"));
    assert_eq!(relay.ok(&["sandbox", "clear"]), "deleted 1 messages\n");
    relay.stop("-TERM");
    assert!(relay.log().contains("postrider send --config"), "{}", relay.log());
}

#[test]
fn what_waits_is_listed_explained_and_changed() {
    let relay = Program::start(&to_nobody());
    for recipient in ["bob@one.example", "eve@two.example"] {
        relay.ok(&["send", "--from", "ada@example.com", "--to", recipient]);
    }
    let waiting = relay.queue("two tries", |all| {
        all.len() == 2 && all.iter().all(|r| r["attempts"].as_u64() >= Some(1) && r["state"] == "deferred")
    });
    assert!(waiting[0]["last_reply"].as_str().unwrap().starts_with('4'), "{waiting:?}");

    let table = relay.ok(&["queue", "list", "--domain", "one.example"]);
    assert!(table.contains("bob@one.example") && !table.contains("eve@"), "{table}");
    let id = waiting[0]["id"].as_str().unwrap();
    assert!(relay.ok(&["queue", "show", id]).contains("next attempt:"));
    let explained = relay.ok(&["explain", "bob@one.example"]);
    assert!(explained.contains("because") && explained.contains("main"), "{explained}");

    assert!(relay.ok(&["queue", "hold", "--recipient", "*@one.example"]).starts_with("hold: 1 recipient"));
    relay.queue("a held one", |all| all.iter().filter(|r| r["state"] == "held").count() == 1);
    relay.ok(&["queue", "release", "--state", "held"]);
    relay.ok(&["queue", "move", "--to", "backup", "--domain", "two.example"]);
    relay.queue("a moved one", |all| all.iter().any(|r| r["route"] == "backup"));
    let retried = relay.json(&["queue", "retry", "--all", "--json"]);
    assert_eq!((&retried["done"], &retried["changed"]), (&true.into(), &2.into()));

    relay.ok(&["queue", "suspend", "--domain", "one.example", "--reason", "moving"]);
    assert!(relay.ok(&["queue", "suspensions"]).contains("moving"));
    relay.ok(&["queue", "resume", "--all"]);
    assert_eq!(relay.ok(&["queue", "suspensions"]), "");

    relay.ok(&["queue", "cancel", "--all", "--yes"]);
    relay.queue("an empty queue", <[Value]>::is_empty);
    assert_eq!(relay.client().get("/v1/totals").unwrap()["terminal"]["cancelled"], 2);
}

#[test]
fn orders_that_are_wrong_are_refused_with_advice() {
    let relay = Program::start(&to_nobody());
    assert!(relay.fails(1, &["queue", "retry"]).contains("--all"));
    assert!(relay.fails(1, &["queue", "show", "rcp_1"]).contains("rcp_1"));
    assert!(relay.fails(1, &["queue", "move", "--to", "nowhere", "--all"]).contains("nowhere"));
    let wrong = relay.fails(1, &["send", "--from", "ada@other.example", "--to", "bob@one.example"]);
    assert!(wrong.contains("What to do: this sender may not use"), "{wrong}");
    let elsewhere = postrider().args(["queue", "list", "--data-dir", "/nonexistent"]).output().unwrap();
    let said = String::from_utf8(elsewhere.stderr).unwrap();
    assert_eq!(elsewhere.status.code(), Some(3));
    assert!(said.contains("postrider serve --data-dir /nonexistent"), "{said}");
}

#[test]
fn an_account_logs_in_under_tls_with_the_verifier_that_password_makes() {
    let verifier = {
        let mut command = postrider();
        command.args(["password", "--stdin"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"correct horse\n").unwrap();
        String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
    };
    let config = format!(
        "[[listener]]\nprotocol = \"submission\"\naddress = \"127.0.0.1:0\"\n\
         tls = {{ certificate = \"cert.pem\", key = \"key.pem\" }}\n\
         [[account]]\nname = \"app1\"\npassword = \"{}\"\nfrom = \"*@example.com\"\n[[route]]\nto = \"sandbox\"\n",
        verifier.trim()
    );
    let directory = tempfile::tempdir().unwrap();
    let pair = SelfSigned::new("relay.example.com").unwrap();
    std::fs::write(directory.path().join("cert.pem"), pair.certificate).unwrap();
    std::fs::write(directory.path().join("key.pem"), pair.key).unwrap();
    std::fs::write(directory.path().join("postrider.toml"), &config).unwrap();
    let child = serve(directory.path());
    let relay = Program { directory, child };

    let send = ["send", "--from", "ada@example.com", "--to", "bob@example.net"];
    let with = |more: &[&'static str]| [&send[..], more].concat();
    let login = ["--user", "app1", "--password", "correct horse"];
    relay.ok(&with(&login));
    assert!(relay.fails(1, &send).contains("--user NAME"));
    let wrong = relay.fails(1, &with(&["--user", "app1", "--password", "wrong"]));
    assert!(wrong.contains("535") && wrong.contains("[[account]]"), "{wrong}");
    let other = relay
        .fails(1, &[&["send", "--from", "ada@other.example", "--to", "b@example.net"], &login[..]].concat());
    assert!(other.contains("From address"), "{other}");
    let clear = relay.fails(1, &with(&["--tls", "none", "--user", "app1", "--password", "correct horse"]));
    assert!(clear.contains("no login"), "{clear}");

    // The account goes, and with it the login; a wrong file afterwards changes nothing.
    relay.configure(&config.replace("app1", "app2"));
    assert_eq!(relay.ok(&["reload"]), "reloaded\n");
    assert!(relay.fails(1, &with(&login)).contains("535"));
    relay.configure(&config.replace("app1", "app1\"\nfrm = \"x"));
    assert!(relay.fails(1, &["reload"]).contains("unknown key `frm`"));
    relay.configure(&config);
    relay.signal("-HUP");
    relay.until("a reload by signal", || relay.run(&with(&login)).status.success().then_some(()));
}

#[test]
fn a_restart_changes_nothing() {
    let mut relay = Program::start(&to_nobody());
    relay.ok(&["send", "--from", "ada@example.com", "--to", "bob@one.example", "--to", "eve@one.example"]);
    let tried =
        |all: &[Value]| all.len() == 2 && all.iter().all(|r| r["attempts"] == 1 && r["state"] == "deferred");
    let before = relay.queue("a first try", tried);
    for signal in ["-TERM", "-KILL"] {
        relay.stop(signal);
        relay.child = serve(relay.directory.path());
        let after = relay.queue("the queue as it was", |all| all.len() == 2);
        for key in ["id", "recipient", "attempts", "due", "last_reply", "accepted_at", "expires_at", "state"]
        {
            for (old, new) in before.iter().zip(&after) {
                assert_eq!(old[key], new[key], "{key} after {signal}\n{}", relay.log());
            }
        }
    }
}

#[test]
fn the_log_can_be_looked_into_while_and_after_a_relay_runs() {
    let mut relay = Program::start(SANDBOX);
    relay.ok(&["send", "--from", "ada@example.com", "--to", "bob@example.net"]);
    relay.until("a captured message", || relay.ok(&["top", "--once"]).contains("captured: 1").then_some(()));
    let stats = relay.json(&["spool", "stats", "--json"]);
    assert_eq!(
        (&stats["kinds"]["message"]["records"], &stats["running"]["health"]),
        (&1.into(), &"good".into())
    );
    let metrics = String::from_utf8(relay.client().get_bytes("/v1/metrics").unwrap()).unwrap();
    assert!(metrics.contains("\npostrider_recipients_total{state=\"captured\"} 1\n"), "{metrics}");
    relay.stop("-TERM");
    assert!(relay.ok(&["spool", "check"]).ends_with("no damage\n"));
    let dumped = relay.ok(&["spool", "dump", "--kind", "message"]);
    assert!(dumped.lines().count() == 1 && dumped.contains("bob@example.net"), "{dumped}");

    let segment = relay.directory.path().join("postrider-data/spool/segment-000000");
    let mut bytes = std::fs::read(&segment).unwrap();
    let text = b"This message was sent by";
    let at = bytes.windows(text.len()).position(|window| window == text).unwrap();
    bytes[at] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    let checked = relay.run(&["spool", "check"]);
    assert_eq!(checked.status.code(), Some(4));
    assert!(String::from_utf8(checked.stdout).unwrap().contains("its body is not what was written"));
}

#[test]
fn a_data_directory_belongs_to_one_relay() {
    let relay = Program::start(SANDBOX);
    let second = relay.fails(1, &["serve"]);
    assert!(second.contains("another postrider runs with the data directory"), "{second}");
    assert!(relay.client().get("/v1/health").is_ok());
}

#[test]
fn a_wrong_configuration_is_not_started_and_all_of_it_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("wrong.toml");
    std::fs::write(&file, "hostnam = \"x\"\n[[listener]]\nadress = \"127.0.0.1:25\"\n").unwrap();
    let file = file.to_str().unwrap();
    for args in
        [&["config", "check", file][..], &["serve", "--config", file], &["config", "show", "--config", file]]
    {
        let output = postrider().args(args).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(4), "{args:?}: {said}");
        assert!(said.contains("wrong.toml:1:1: error: unknown key `hostnam`"), "{said}");
        assert!(said.contains("wrong.toml:3:1: error: unknown key `adress`"), "{said}");
    }
}

#[test]
fn a_session_in_progress_does_not_hold_up_the_end() {
    let mut relay = Program::start(SANDBOX);
    let health = relay.client().get("/v1/health").unwrap();
    let mut session = TcpStream::connect(health["listeners"][0]["address"].as_str().unwrap()).unwrap();
    session.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut greeting = [0; 4];
    session.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"220 ");
    relay.stop("-TERM");
    let mut rest = String::new();
    session.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("421 4.3.2"), "{rest}");
}
