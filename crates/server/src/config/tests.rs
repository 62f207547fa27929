use super::schema::{Kind, ROOT, Table};
use super::*;
use postrider_model::snapshot::{Host, Protocol, Scheme, Target, TlsLevel};
use std::fmt::Write as _;
use std::time::Duration;

const VERIFIER: &str = "scram-sha-256:4096:AAAAAAAAAAAAAAAAAAAAAA==:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

fn surroundings() -> Surroundings {
    Surroundings { hostname: "box".into(), directory: "/etc/postrider".into(), data_dir: None }
}

fn accepted(source: &str) -> Loaded {
    check(Path::new("t.toml"), source, &surroundings()).unwrap_or_else(|problems| panic!("{problems}"))
}

/// Every problem as `LINE:COLUMN what | fix`.
fn problems_of(source: &str) -> Vec<String> {
    let problems = match check(Path::new("t.toml"), source, &surroundings()) {
        Ok(loaded) => loaded.problems,
        Err(problems) => problems,
    };
    let line = |problem: &Problem| {
        let (line, column) = problems.position(problem.span.start);
        format!("{line}:{column} {} | {}", problem.what, problem.fix)
    };
    problems.list().iter().map(line).collect()
}

/// Exactly one problem, which contains all of `parts`.
fn check_problem(source: &str, parts: &[&str]) {
    let problems = problems_of(source);
    assert_eq!(problems.len(), 1, "{source}\n{problems:#?}");
    for part in parts {
        assert!(problems[0].contains(part), "{part:?} is missing in {:?}", problems[0]);
    }
}

#[test]
fn the_documented_example_works_as_written() {
    let directory = tempfile::tempdir().unwrap();
    let pair = postrider_net::SelfSigned::new("relay.example.com").unwrap();
    std::fs::write(directory.path().join("cert.pem"), &pair.certificate).unwrap();
    std::fs::write(directory.path().join("key.pem"), &pair.key).unwrap();
    let file = directory.path().join("postrider.toml");
    let source = r#"
hostname = "relay.example.com"
data_dir = "/var/lib/postrider"

[[listener]]
name = "relay"
protocol = "smtp"                  # smtp | submission | submissions | lmtp
address = "127.0.0.1:2525"
legacy = { clients = ["127.0.0.0/8"], from = ["*"] }   # relay by address, without AUTH
max_message_size = "50 MiB"

[[listener]]
name = "submission"
protocol = "submission"
address = "127.0.0.1:2587"
tls = { certificate = "cert.pem", key = "key.pem" }

[[account]]                        # until the control plane manages applications
name = "app1"
password = "scram-sha-256:4096:AAAAAAAAAAAAAAAAAAAAAA==:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
from = ["*@example.com"]

[[route]]
domains = ["*"]
to = ["smtp://127.0.0.1:2526"]     # several: failover in order; `mx` and `sandbox` are the other kinds
tls = "opportunistic"              # none | opportunistic | encrypted | verified

[delivery]
retry = ["1m", "5m", "15m", "30m", "1h", "2h", "4h"]   # the last one repeats
expire = "5d"
connections_per_site = 20
"#;
    std::fs::write(&file, source).unwrap();
    let loaded = load(Some(&file), None).unwrap_or_else(|problems| panic!("{problems}"));
    let Settings { snapshot, data_dir, .. } = &loaded.settings;
    assert_eq!(snapshot.hostname.as_str(), "relay.example.com");
    assert_eq!(data_dir, Path::new("/var/lib/postrider"));
    assert_eq!(snapshot.listeners[0].limits.message_size_max_bytes, 50 << 20);
    assert_eq!(snapshot.listeners[1].protocol, Protocol::Submission);
    assert_eq!(snapshot.listeners[1].tls.as_ref().unwrap().key, directory.path().join("key.pem"));
    assert_eq!(&*snapshot.accounts[0].verifier, VERIFIER);
    assert_eq!(snapshot.routes[0].tls, TlsLevel::Opportunistic);
    assert_eq!(&*snapshot.routes[0].name, "route-1");
    assert_eq!(snapshot.delivery.expire, Duration::from_secs(5 * 86_400));
    let warnings: Vec<_> = loaded.problems.warnings().collect();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains(":9:46: mail from any address may leave"), "{warnings:?}");
}

#[test]
fn without_a_file_there_is_a_sandbox_on_loopback() {
    let loaded = accepted("");
    let snapshot = &loaded.settings.snapshot;
    assert_eq!(snapshot.hostname.as_str(), "box");
    assert_eq!(snapshot.listeners[0].address.to_string(), "127.0.0.1:2525");
    assert!(snapshot.listeners[0].sandbox);
    assert_eq!(snapshot.routes[0].to, Target::Sandbox);
    assert!(snapshot.route(&"example.net".parse().unwrap(), None).is_some());
    assert_eq!(loaded.problems.list(), []);
}

#[test]
fn everything_wrong_is_said_at_once_with_its_place() {
    let problems = problems_of(
        r#"hostnam = "relay.example.com"
[[listener]]
adress = "127.0.0.1:2525"
legacy = { clients = ["127.0.0.0/33"], from = ["*@example.com"] }
[[account]]
name = "app1"
password = "hunter2"
from = ["*@example..com"]
[[route]]
to = ["smpt://127.0.0.1"]
tls = "always"
[delivery]
retry = ["1m", "5"]
expire = 5
"#,
    );
    let starts: Vec<_> = problems.iter().map(|p| p.split(' ').next().unwrap()).collect();
    assert_eq!(
        starts,
        ["1:1", "2:1", "3:1", "4:23", "7:12", "8:9", "10:7", "11:7", "13:16", "14:10"],
        "{problems:#?}"
    );
    for (problem, part) in problems.iter().zip([
        "did you mean `hostname`?",
        "has no `address`",
        "did you mean `address`?",
        "not a network",
        "postrider password",
        "*@*.example.com",
        "no such scheme `smpt`",
        "one of none, opportunistic, encrypted, verified",
        "write a number and a unit",
        "say the unit: \"5s\"",
    ]) {
        assert!(problem.contains(part), "{part:?} is missing in {problem}");
    }
    assert!(!problems.concat().contains("hunter2"));
}

#[test]
fn broken_toml_is_placed() {
    let problems = problems_of("hostname = \"a.example\"\n[[listener\naddress = 5\n");
    assert!(problems[0].starts_with("2:"), "{problems:#?}");
    let problems = problems_of("hostname = \"a\"\nhostname = \"b\"\n");
    assert!(problems[0].starts_with("2:1 duplicate key"), "{problems:#?}");
}

#[test]
fn a_key_in_the_wrong_table_is_told_its_home() {
    check_problem("connections_per_client = 5\n", &["1:1", "belongs in [listener.limits]"]);
    check_problem("segment_size = \"1 MiB\"\n", &["belongs in [spool]"]);
    check_problem("[delivery]\nwombat = 1\n", &["2:1", "known here: retry, expire"]);
}

#[test]
fn no_open_relay_can_be_configured() {
    let listener = |legacy: &str| format!("[[listener]]\naddress = \"127.0.0.1:25\"\nlegacy = {legacy}\n");
    let from = "from = [\"a@example.com\"]";
    check_problem(&listener(&format!("{{ clients = [\"0.0.0.0/0\"], {from} }}")), &["open relay"]);
    check_problem(&listener(&format!("{{ clients = [\"::/0\"], {from} }}")), &["open relay"]);
    check_problem(&listener(&format!("{{ clients = [], {from} }}")), &["`clients` is empty"]);
    check_problem(&listener(&format!("{{ {from} }}")), &["has no `clients`"]);
    check_problem(&listener("{ clients = [\"192.0.2.0/24\"] }"), &["has no `from`"]);
    let sandbox = "[[listener]]\naddress = \"192.0.2.1:25\"\nsandbox = true\n";
    check_problem(sandbox, &["3:11", "not on loopback"]);
    let sandbox = "[[listener]]\naddress = \"127.0.0.1:25\"\nsandbox = true\n[[route]]\nto = \"mx\"\n";
    // What it takes is captured, whatever the routes say.
    accepted(sandbox);
}

#[test]
fn listeners_are_told_apart() {
    let two = "[[listener]]\naddress = \"127.0.0.1:25\"\nsandbox = true\n".repeat(2);
    check_problem(&two, &["5:11", "already the address of listener \"listener-1\""]);
    let free = "[[listener]]\naddress = \"127.0.0.1:0\"\nsandbox = true\n".repeat(2);
    accepted(&free);
    let named = "[[listener]]\nname = \"a\"\naddress = \"127.0.0.1:0\"\nsandbox = true\n".repeat(2);
    check_problem(&named, &["6:8", "a second [[listener]] with name \"a\""]);
}

#[test]
fn a_listener_that_nobody_can_use_is_noticed() {
    check_problem("[[listener]]\naddress = \"127.0.0.1:25\"\n", &["1:1", "AUTH is only offered under TLS"]);
    let submissions = "[[listener]]\naddress = \"127.0.0.1:465\"\nprotocol = \"submissions\"\n";
    check_problem(submissions, &["has no `tls`"]);
    let half = "[[listener]]\naddress = \"127.0.0.1:465\"\ntls = { certificate = \"nowhere.pem\" }\n";
    check_problem(half, &["3:7", "has no `key`"]);
}

#[test]
fn certificates_are_tried_before_they_are_needed() {
    let check = |certificate: &str, key: &str, place: &str, part: &str| {
        let directory = tempfile::tempdir().unwrap();
        let pair = postrider_net::SelfSigned::new("relay.example.com").unwrap();
        let other = postrider_net::SelfSigned::new("relay.example.com").unwrap();
        for (name, text) in [
            ("cert.pem", &*pair.certificate),
            ("key.pem", &pair.key),
            ("other.pem", &other.key),
            ("empty.pem", ""),
        ] {
            std::fs::write(directory.path().join(name), text).unwrap();
        }
        let file = directory.path().join("t.toml");
        let tls = format!("tls = {{ certificate = \"{certificate}\", key = \"{key}\" }}");
        let source = format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\nlegacy = {{ clients = \"10.0.0.0/8\", from = \"a@b.example\" }}\n{tls}\n"
        );
        std::fs::write(&file, source).unwrap();
        let shown = load(Some(&file), None).map_or_else(|problems| problems.to_string(), |_| String::new());
        assert!(shown.contains(part) && shown.contains(place), "{part:?} {place:?} in {shown}");
    };
    check("cert.pem", "key.pem", "", "");
    check("nowhere.pem", "key.pem", "t.toml:4:23:", "nowhere.pem");
    check("cert.pem", "nowhere.pem", "t.toml:4:41:", "nowhere.pem");
    check("empty.pem", "key.pem", "t.toml:4:23:", "no certificate");
    check("cert.pem", "other.pem", "t.toml:4:41:", "not the key of the certificate");
}

#[test]
fn routes_lead_to_every_kind_of_place() {
    let loaded = accepted(
        r#"
[[route]]
name = "local"
domains = ["example.com", "*.example.com"]
to = ["lmtp:///run/dovecot/lmtp"]
[[route]]
name = "partner"
senders = ["*@example.com"]
to = ["smtps://a.example", "smtp://ada:pa%3Ass@b.example:587"]
auth = { username = "me", password = "secret" }
tls = "verified"
source = { bind = "192.0.2.7", ehlo = "out.example.com" }
connections_per_site = 3
[[route]]
to = "mx"
"#,
    );
    let routes = &loaded.settings.snapshot.routes;
    let Target::Hosts(local) = &routes[0].to else { panic!("{routes:?}") };
    assert_eq!(local[0].host, Host::Socket("/run/dovecot/lmtp".into()));
    let Target::Hosts(partner) = &routes[1].to else { panic!("{routes:?}") };
    assert_eq!((partner[0].scheme, partner.len()), (Scheme::Smtps, 2));
    assert_eq!(&*partner[0].credentials.as_ref().unwrap().password, "secret");
    assert_eq!(&*partner[1].credentials.as_ref().unwrap().password, "pa:ss");
    assert_eq!(routes[1].source.bind, ["192.0.2.7".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(routes[1].connections_per_site_max, Some(3));
    assert_eq!(routes[2].to, Target::Mx);
}

#[test]
fn routes_that_make_no_sense_are_noticed() {
    check_problem("[[route]]\nto = [\"mx\", \"smtp://a.example\"]\n", &["stand alone"]);
    check_problem("[[route]]\nto = []\n", &["`to` is empty"]);
    check_problem("[[route]]\nto = \"sandbox\"\n[[route]]\nto = \"mx\"\n", &["3:1", "never reached"]);
    check_problem("[[route]]\nto = \"smtp://u:p@a.example\"\n", &["could be sent in clear"]);
    let bind = "[[route]]\nto = \"mx\"\nsource = { bind = [\"192.0.2.1\", \"192.0.2.2\"] }\n";
    check_problem(bind, &["at most one address of each family"]);
}

/// A file in which every default is written out.
fn defaults_written_out(table: &Table, out: &mut String) {
    for key in table.keys {
        if !key.default.is_empty() {
            let _ = writeln!(out, "{} = {}", key.name, key.default);
        }
    }
}

#[test]
fn the_documented_defaults_are_the_real_ones() {
    let mut source = String::new();
    defaults_written_out(&ROOT, &mut source);
    source.push_str("[[listener]]\nname = \"sandbox\"\naddress = \"127.0.0.1:2525\"\n");
    let mut listener = String::new();
    defaults_written_out(&schema::LISTENER, &mut listener);
    source.push_str(&listener.replace("sandbox = false", "sandbox = true"));
    source.push_str("[listener.limits]\n");
    defaults_written_out(&schema::LIMITS, &mut source);
    source.push_str("[[route]]\nname = \"sandbox\"\nto = \"sandbox\"\n");
    defaults_written_out(&schema::ROUTE, &mut source);
    source.push_str("[route.source]\n");
    defaults_written_out(&schema::SOURCE, &mut source);
    source.push_str("[delivery]\n");
    defaults_written_out(&schema::DELIVERY, &mut source);
    source.push_str("[http]\n");
    defaults_written_out(&schema::HTTP, &mut source);
    source.push_str("[spool]\n");
    defaults_written_out(&schema::SPOOL, &mut source);
    let (written, implied) = (accepted(&source), accepted(""));
    assert_eq!(format!("{:#?}", written.settings), format!("{:#?}", implied.settings), "{source}");
    let changed = show::effective(&written.written, &written.settings, true);
    let expected = "[[listener]]\nname = \"sandbox\"\naddress = \"127.0.0.1:2525\"\nsandbox = true\n\n\
                    [[route]]\nname = \"sandbox\"\nto = [\"sandbox\"]\n";
    assert_eq!(changed, expected);
}

#[test]
fn what_is_shown_can_be_read_again_and_tells_no_secret() {
    let source = format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\nlegacy = {{ clients = \"10.0.0.0/8\", from = \"a@b.example\" }}\n\
         [[account]]\nname = \"a\"\npassword = \"{VERIFIER}\"\nfrom = \"*@b.example\"\n\
         [[route]]\nto = \"smtps://u:hunter2@a.example\"\nauth = {{ username = \"u\", password = \"hunter3\" }}\n"
    );
    let loaded = accepted(&source);
    let shown = show::effective(&loaded.written, &loaded.settings, false);
    assert!(!shown.contains("hunter") && !shown.contains("AAAA"), "{shown}");
    let readable = shown.replace("password = \"…\"", &format!("password = \"{VERIFIER}\""));
    let again = accepted(&readable);
    assert_eq!(again.settings.snapshot.listeners[0].name, loaded.settings.snapshot.listeners[0].name);
    assert_eq!(again.settings.snapshot.routes.len(), 1);
}

#[test]
fn every_default_is_of_its_kind_and_every_key_is_described() {
    fn visit(table: &'static Table) {
        for key in table.keys {
            assert!(key.about.ends_with(['.', ')']), "{} {}", table.title, key.name);
            match key.kind {
                Kind::Table(inner) | Kind::Tables(inner) => visit(inner),
                _ => assert!(
                    key.default.is_empty() || serde_json::from_str::<serde_json::Value>(key.default).is_ok(),
                    "{}",
                    key.name
                ),
            }
        }
    }
    visit(&ROOT);
    let schema = show::json_schema();
    assert_eq!(schema["properties"]["delivery"]["properties"]["connections_per_site"]["default"], 20);
    assert_eq!(schema["properties"]["listener"]["items"]["required"], serde_json::json!(["address"]));
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in "[\\PC\\n\\[\\]=\"']{0,200}") {
        let _ = problems_of(&text);
    }

    #[test]
    fn no_value_makes_the_reader_panic(
        key in proptest::sample::select(vec!["hostname", "shards", "listener", "route", "delivery"]),
        value in proptest::sample::select(vec!["1", "\"x\"", "true", "[]", "[1]", "{}", "[{}]", "1.5", "1979-05-27"]),
    ) {
        let _ = problems_of(&format!("{key} = {value}\n"));
    }
}
