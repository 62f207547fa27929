//! The control plane over the admin socket and the command line of the program.

use postrider_api::{Client, ClientError};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const CONFIG: &str = "[[listener]]\nname = \"try\"\naddress = \"127.0.0.1:0\"\nsandbox = true\n\
                      [http]\naddress = \"127.0.0.1:0\"\n";

struct Program {
    directory: tempfile::TempDir,
    child: Child,
}

fn postrider() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_postrider"));
    for name in ["POSTRIDER_CONFIG", "POSTRIDER_DATA_DIR", "POSTRIDER_LOG", "NOTIFY_SOCKET"] {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

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
    fn start() -> Program {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("postrider.toml"), CONFIG).unwrap();
        let child = serve(directory.path());
        Program { directory, child }
    }

    fn data(&self) -> std::path::PathBuf {
        self.directory.path().join("postrider-data")
    }

    fn client(&self) -> Client {
        Client::of_data_dir(&self.data())
    }

    fn run(&self, args: &[&str]) -> Output {
        postrider().arg("--data-dir").arg(self.data()).args(args).output().unwrap()
    }

    fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn fails(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(!output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(args)).unwrap()
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// A session, greeted.
    fn connect(&self) -> Smtp {
        let health = self.client().get("/v1/health").unwrap();
        let stream = TcpStream::connect(health["listeners"][0]["address"].as_str().unwrap()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut smtp = Smtp(BufReader::new(stream));
        assert!(smtp.reply().starts_with("220 "));
        smtp.say("EHLO c");
        smtp
    }

    /// A request to the public listener under a key: status and body.
    fn public(&self, key: &str, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let health = self.client().get("/v1/health").unwrap();
        let mut stream = TcpStream::connect(health["http"].as_str().unwrap()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {key}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse().unwrap(), serde_json::from_str(body).unwrap_or_default())
    }

    /// A request with a header, which the client cannot send.
    fn raw(&self, request: &str) -> String {
        let mut socket = UnixStream::connect(self.data().join("admin.sock")).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        answer
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}

struct Smtp(BufReader<TcpStream>);

impl Smtp {
    fn reply(&mut self) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            self.0.read_line(&mut line).unwrap();
            if line.as_bytes().get(3) != Some(&b'-') {
                return line;
            }
        }
    }

    fn say(&mut self, command: &str) -> String {
        self.0.get_mut().write_all(format!("{command}\r\n").as_bytes()).unwrap();
        self.reply()
    }

    fn log_in(&mut self, smtp: &Value) -> String {
        let (user, password) = (smtp["username"].as_str().unwrap(), smtp["password"].as_str().unwrap());
        self.say(&format!("AUTH PLAIN {}", base64(format!("\0{user}\0{password}").as_bytes())))
    }
}

fn base64(octets: &[u8]) -> String {
    postrider_auth::encode_challenge(octets)
}

fn refused(answer: Result<Value, ClientError>) -> (u16, String) {
    match answer {
        Err(ClientError::Refused { status, detail }) => (status, detail),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_script_makes_an_application_that_can_send_at_once() {
    let mut program = Program::start();
    let line = program.ok(&["app", "create", "shop", "--from", "*@example.com", "--json"]);
    assert!(line.starts_with("{\"application\":\"app_") && line.matches('\n').count() == 1, "{line}");
    let told: Value = serde_json::from_str(&line).unwrap();
    assert!(told["api_key"].as_str().unwrap().starts_with("pr_test_"));
    assert_eq!(told["smtp"]["host"], "127.0.0.1");
    let mut smtp = program.connect();
    assert!(smtp.log_in(&told["smtp"]).starts_with("235 "));
    assert!(smtp.say("MAIL FROM:<a@other.example>").starts_with("550 5.7.1 Application shop may not send"));
    assert!(smtp.say("MAIL FROM:<a@example.com>").starts_with("250 "));

    // What is on disk tells neither password nor key, and all of it outlives a kill.
    let password = told["smtp"]["password"].as_str().unwrap().to_owned();
    program.kill();
    for file in std::fs::read_dir(program.data()).unwrap() {
        let file = file.unwrap().path();
        let octets = std::fs::read(&file).unwrap_or_default();
        for secret in [&*password, told["api_key"].as_str().unwrap()] {
            assert!(
                !octets.windows(secret.len()).any(|part| part == secret.as_bytes()),
                "{}",
                file.display()
            );
        }
    }
    program.child = serve(program.directory.path());
    assert!(program.connect().log_in(&told["smtp"]).starts_with("235 "));
    let shown = program.json(&["app", "show", "shop", "--json"]);
    assert_eq!(shown["id"], told["application"]);
    assert_eq!(shown["credentials"][0]["username"], told["smtp"]["username"]);
    assert_eq!(program.json(&["app", "list", "--json"])[0]["name"], "shop");
}

#[test]
fn the_kill_switch_cuts_within_a_second_and_refuses_new_sessions() {
    let program = Program::start();
    let told = program.json(&["app", "create", "shop", "--from", "*@example.com", "--json"]);
    let mut smtp = program.connect();
    smtp.log_in(&told["smtp"]);
    smtp.say("MAIL FROM:<a@example.com>");
    smtp.say("RCPT TO:<b@example.net>");
    let revoked = Instant::now();
    let answer = program.client().post("/v1/applications/shop/revoke", &json!({})).unwrap();
    assert_eq!((&answer["credentials_revoked"], &answer["keys_revoked"]), (&json!(1), &json!(1)));
    assert!(smtp.reply().starts_with("421 4.7.0 "));
    let took = revoked.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}; a second on a machine that is not loaded");
    assert_eq!(smtp.reply(), "", "the connection is closed");
    assert!(program.connect().log_in(&told["smtp"]).starts_with("535 "));
    let keys = program.json(&["key", "list", "--json"]);
    assert!(keys[0]["revoked_at"].is_string());
}

#[test]
fn logins_follow_one_another_without_a_gap() {
    let program = Program::start();
    let told = program.json(&["app", "create", "shop", "--from", "*@example.com", "--json"]);
    let (mut old, next) =
        (program.connect(), program.json(&["app", "credential", "create", "shop", "--json"]));
    assert!(old.log_in(&told["smtp"]).starts_with("235 "));
    assert!(program.connect().log_in(&next).starts_with("235 "), "both are valid");
    program.ok(&["app", "credential", "revoke", "shop", told["smtp"]["username"].as_str().unwrap()]);
    assert!(old.reply().starts_with("421 4.7.0 "));
    assert!(program.connect().log_in(&told["smtp"]).starts_with("535 "));
    assert!(program.connect().log_in(&next).starts_with("235 "));
    let listed = program.json(&["app", "credential", "list", "shop", "--json"]);
    let revoked: Vec<_> = listed.as_array().unwrap().iter().map(|it| it["revoked_at"].is_string()).collect();
    assert_eq!(revoked, [true, false]);
    assert!(listed[0]["verifier"].is_null(), "{listed}");
}

#[test]
fn what_is_wrong_is_named_field_by_field() {
    let program = Program::start();
    let client = program.client();
    let (status, detail) = refused(client.post(
        "/v1/applications",
        &json!({ "name": "a/b", "from": ["example.com"], "delivery": { "redirect": "x" } }),
    ));
    assert_eq!(status, 422);
    let fields: Vec<_> = detail.lines().map(|line| line.split(':').next().unwrap()).collect();
    assert_eq!(fields, ["name", "from[0]", "delivery.redirect"], "{detail}");
    let (status, detail) = refused(client.post("/v1/applications", &json!({ "nmae": "shop" })));
    assert!(status == 400 && detail.contains("nmae"), "{detail}");
    program.ok(&["app", "create", "shop", "--from", "*@example.com"]);
    assert!(
        program.fails(&["app", "create", "shop", "--from", "*@example.com"]).contains("another application")
    );
    assert!(program.fails(&["app", "set", "shop", "--from", "*"]).contains("from: \"*\" would let it send"));
    assert!(program.fails(&["app", "show", "shpo"]).contains("there is no application shpo"));
    assert!(program.fails(&["key", "create", "--scope", "all"]).contains("scopes[0]: there is no scope"));
    assert_eq!(refused(client.get("/v1/keys/key_00000000-0000-7000-8000-000000000000")).0, 404);
    assert_eq!(refused(client.get("/v1/applications?limit=x")).0, 400);
}

#[test]
fn a_change_names_the_version_it_is_made_for() {
    let program = Program::start();
    program.ok(&["app", "create", "shop", "--from", "*@example.com"]);
    let patch = |version: &str, owner: &str| {
        let body = json!({ "owner": owner }).to_string();
        program.raw(&format!(
            "PATCH /v1/applications/shop HTTP/1.1\r\nHost: x\r\nConnection: close\r\nIf-Match: {version}\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        ))
    };
    let answer = patch("\"1\"", "Ada");
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("etag: \"2\""), "{answer}");
    let answer = patch("\"1\"", "Bob");
    assert!(answer.starts_with("HTTP/1.1 412 ") && answer.contains("version 2"), "{answer}");
    assert!(patch("nonsense", "Bob").starts_with("HTTP/1.1 400 "));
    assert_eq!(program.json(&["app", "show", "shop", "--json"])["owner"], "Ada");
}

#[test]
fn lists_come_in_pages() {
    let program = Program::start();
    for number in 0..5 {
        program
            .client()
            .post("/v1/applications", &json!({ "name": format!("app{number}"), "from": ["a@b.example"] }))
            .unwrap();
    }
    let client = program.client();
    let first = client.get("/v1/applications?limit=2").unwrap();
    assert_eq!((&first["items"][1]["name"], first["items"].as_array().unwrap().len()), (&json!("app1"), 2));
    let after = first["next"].as_str().unwrap();
    let rest = client.get(&format!("/v1/applications?limit=9&after={after}")).unwrap();
    assert_eq!((&rest["items"][0]["name"], &rest["next"]), (&json!("app2"), &Value::Null));
}

#[test]
fn every_change_is_in_the_audit_log_which_verifies() {
    let program = Program::start();
    let told = program.json(&["app", "create", "shop", "--from", "*@example.com", "--json"]);
    let id = told["application"].as_str().unwrap();
    program.ok(&["app", "set", "shop", "--owner", "Ada", "--delivery", "only:*@example.net"]);
    program.ok(&["app", "set", "shop", "--owner", "Ada"]);
    let key = program.json(&["key", "create", "--app", "shop", "--network", "10.0.0.0/8", "--json"]);
    assert!(key["key"].as_str().unwrap().starts_with("pr_test_"));
    assert!(program.ok(&["instance", "live"]).starts_with("live"));
    let live = program.json(&["key", "create", "--app", "shop", "--json"]);
    assert!(live["key"].as_str().unwrap().starts_with("pr_live_"), "a key is for what the instance is in");
    program.ok(&["key", "revoke", key["id"].as_str().unwrap()]);
    program.ok(&["app", "delete", "shop", "--yes"]);
    let log = program.json(&["audit", "list", "--json"]);
    let actions: Vec<_> =
        log.as_array().unwrap().iter().rev().map(|it| it["action"].as_str().unwrap()).collect();
    assert_eq!(
        actions,
        [
            "tenant.create",
            "application.create",
            "application.change",
            "key.create",
            "instance.live",
            "key.create",
            "key.revoke",
            "application.delete"
        ],
        "a change that changes nothing is none"
    );
    assert_eq!(program.json(&["audit", "list", "--target", id, "--json"]).as_array().unwrap().len(), 3);
    assert!(program.ok(&["audit", "verify"]).starts_with("intact: 8 entries"));
    assert!(!log.to_string().contains(told["smtp"]["password"].as_str().unwrap()));
}

#[test]
fn a_store_that_is_no_database_stops_no_mail() {
    let mut program = Program::start();
    let told = program.json(&["app", "create", "shop", "--from", "*@example.com", "--json"]);
    // The copy is written beside the answer, a moment later.
    let copy = program.data().join("control.snapshot");
    let started = Instant::now();
    while !std::fs::read_to_string(&copy).is_ok_and(|text| text.contains("shop")) {
        assert!(started.elapsed() < PATIENCE, "no copy");
        std::thread::sleep(Duration::from_millis(10));
    }
    program.kill();
    for name in ["control.db", "control.db-wal", "control.db-shm"] {
        std::fs::write(program.data().join(name), [0x55; 8_192]).unwrap();
    }
    program.child = serve(program.directory.path());
    let mut smtp = program.connect();
    assert!(smtp.log_in(&told["smtp"]).starts_with("235 "));
    assert!(smtp.say("MAIL FROM:<a@other.example>").starts_with("550 5.7.1 "));
    assert!(smtp.say("MAIL FROM:<a@example.com>").starts_with("250 "));
    let (status, detail) = refused(program.client().post("/v1/applications/shop/revoke", &json!({})));
    assert!(status == 503 && detail.contains("mail goes on"), "{detail}");
    assert_eq!(program.json(&["app", "list", "--json"])[0]["name"], "shop");
}

#[test]
fn a_key_does_on_the_public_listener_what_its_scopes_allow() {
    let program = Program::start();
    let shop = program.json(&["app", "create", "shop", "--from", "*@example.com", "--json"]);
    let crm = program.json(&["app", "create", "crm", "--from", "*@example.org", "--json"]);
    let make = |args: &[&str]| {
        let args = [&["key", "create", "--json"], args].concat();
        program.json(&args)["key"].as_str().unwrap().to_owned()
    };
    let (own, nothing) = (shop["api_key"].as_str().unwrap(), Value::Null);
    let (status, problem) = program.public(own, "GET", "/v1/applications", &nothing);
    assert_eq!((status, &problem["rule"]), (403, &json!("key.scopes")), "{problem}");
    assert_eq!(program.public("pr_test_nonsense", "GET", "/v1/applications", &nothing).0, 401);

    // One that stands for an application sees that one only, and changes nothing.
    let scopes = ["--scope", "applications:read", "--scope", "applications:write", "--scope", "keys:write"];
    let bound = make(&[&["--app", "shop"], &scopes[..]].concat());
    let (status, list) = program.public(&bound, "GET", "/v1/applications", &nothing);
    assert_eq!((status, list["items"].as_array().unwrap().len()), (200, 1), "{list}");
    let other = format!("/v1/applications/{}", crm["application"].as_str().unwrap());
    assert_eq!(program.public(&bound, "GET", &other, &nothing).0, 404);
    let change = json!({ "owner": "Mallory" });
    assert_eq!(program.public(&bound, "PATCH", "/v1/applications/shop", &change).0, 403);

    // One that manages the tenant gives no more than it has.
    let manager = make(&scopes);
    let made = json!({ "name": "erp", "from": ["*@example.net"] });
    let (status, created) = program.public(&manager, "POST", "/v1/applications", &made);
    assert_eq!(status, 201, "{created}");
    assert!(program.connect().log_in(&created["smtp"]).starts_with("235 "));
    let more = json!({ "scopes": ["keys:write", "instance:write"] });
    assert_eq!(program.public(&manager, "POST", "/v1/keys", &more).0, 403);
    assert_eq!(program.public(&manager, "PATCH", "/v1/instance", &json!({ "mode": "live" })).0, 403);
    let test = make(&["--scope", "instance:write", "--test"]);
    let (status, problem) = program.public(&test, "PATCH", "/v1/instance", &json!({ "mode": "live" }));
    assert_eq!((status, &problem["rule"]), (403, &json!("key.environment")), "{problem}");
    let far = make(&["--scope", "applications:read", "--network", "192.0.2.0/24"]);
    let (status, problem) = program.public(&far, "GET", "/v1/applications", &nothing);
    assert_eq!((status, &problem["rule"]), (403, &json!("key.networks")), "{problem}");

    let keys = program.json(&["key", "list", "--json"]);
    let used = keys.as_array().unwrap().iter().filter(|key| key["last_used_at"].is_string()).count();
    assert!(used >= 3, "{keys}");
    let id = keys.as_array().unwrap().iter().find(|key| manager.starts_with(key["hint"].as_str().unwrap()));
    program.ok(&["key", "revoke", id.unwrap()["id"].as_str().unwrap()]);
    assert_eq!(program.public(&manager, "GET", "/v1/applications", &nothing).0, 401);
}

#[test]
fn the_way_from_nothing_to_a_mail_works_as_it_is_written() {
    let program = Program::start();
    let shop = program.json(&["app", "create", "shop", "--from", "*@example.com", "--json"]);
    let key = shop["api_key"].as_str().unwrap();
    let email = json!({ "from": "Shop <a@example.com>", "to": "b@example.net", "subject": "Hello", "html": "<p>Hi</p>" });
    let (status, sent) = program.public(key, "POST", "/v1/emails", &email);
    assert!(status < 300 && sent["id"].as_str().unwrap().starts_with("msg_"), "{status} {sent}");
    let started = Instant::now();
    loop {
        let (_, kept) = program.public(key, "GET", "/v1/sandbox/messages", &Value::Null);
        if kept["items"][0]["id"] == sent["id"] {
            assert_eq!(kept["items"][0]["subject"], "Hello");
            break;
        }
        assert!(started.elapsed() < PATIENCE, "{kept}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
