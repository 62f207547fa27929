//! Clients that people use, over plain connections, STARTTLS and TLS from the first octet on, with AUTH.

use blackbox::{
    LETTER, PASSWORD, Relay, Site, USER, once, program, run, run_with_input, shared_folder, skip, until,
};
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

/// The three ways in.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Plain,
    StartTls,
    Tls,
}

struct Sandbox {
    relay: Relay,
    plain: SocketAddr,
    submission: SocketAddr,
    submissions: SocketAddr,
    site: Site,
}

impl Sandbox {
    fn start() -> Sandbox {
        let site = Site::new();
        let (plain, submission, submissions) = (site.free(1), site.free(1), site.free(1));
        let (certificate, key) = site.certificate(&["localhost", "relay.example.com"]);
        let tls = format!("tls = {{ certificate = {certificate:?}, key = {key:?} }}");
        let config = format!(
            "[[listener]]\nname = \"plain\"\naddress = \"{plain}\"\nsandbox = true\n\
             [[listener]]\nname = \"submission\"\nprotocol = \"submission\"\naddress = \"{submission}\"\n{tls}\n\
             [[listener]]\nname = \"submissions\"\nprotocol = \"submissions\"\naddress = \"{submissions}\"\n{tls}\n\
             [[account]]\nname = \"{USER}\"\npassword = \"{verifier}\"\nfrom = [\"*@example.com\"]\n\
             [[route]]\nto = [\"sandbox\"]\n",
            verifier = blackbox::verifier(),
        );
        let relay = Relay::start(&site, &config);
        relay.wait_for_banner(submission);
        Sandbox { relay, plain, submission, submissions, site }
    }

    fn address(&self, way: Way) -> SocketAddr {
        match way {
            Way::Plain => self.plain,
            Way::StartTls => self.submission,
            Way::Tls => self.submissions,
        }
    }

    /// The mail that the sandbox has with this subject, as text.
    fn captured(&self, subject: &str) -> String {
        // A capture is an attempt like any other: it follows the 250.
        let found = until(&format!("{subject:?} is in the sandbox"), Duration::from_secs(20), || {
            let list = self.relay.command(&["sandbox", "list", "--json"]).must_succeed("sandbox list");
            let list: serde_json::Value = serde_json::from_slice(&list.output).unwrap();
            list.as_array().unwrap().iter().find(|message| message["subject"] == subject).cloned()
        });
        let id = found["id"].as_str().unwrap();
        self.relay.command(&["sandbox", "show", id]).must_succeed("sandbox show").text
    }
}

/// Sends one letter each way by the given client and finds them all in the sandbox.
fn each_way(client: &str, send: impl Fn(&Sandbox, Way, &str)) {
    let sandbox = Sandbox::start();
    for way in [Way::Plain, Way::StartTls, Way::Tls] {
        let subject = format!("{client} by {way:?}");
        send(&sandbox, way, &subject);
        let shown = sandbox.captured(&subject);
        assert!(shown.contains(".dots and ..more"), "{shown}");
        assert!(shown.contains("bob@example.net"), "{shown}");
    }
}

fn letter(subject: &str) -> String {
    LETTER.replace("A letter\r\n\tfolded", subject)
}

#[test]
fn swaks_sends_each_way() {
    let swaks = match program("swaks", "swaks").and_then(|found| {
        blackbox::install(&["libnet-ssleay-perl"])?;
        Ok(found)
    }) {
        Ok(found) => found,
        Err(why) => skip!("{why:#}"),
    };
    each_way("swaks", |sandbox, way, subject| {
        let mut command = Command::new(&swaks);
        let file = sandbox.site.write("letter.eml", letter(subject).replace("\r\n", "\n"));
        let address = sandbox.address(way);
        command.args(["--server", &address.ip().to_string(), "--port", &address.port().to_string()]);
        command
            .args(["--from", "ann@example.com", "--to", "bob@example.net", "--data"])
            .arg(format!("@{}", file.display()));
        match way {
            Way::Plain => {}
            Way::StartTls => drop(command.arg("--tls")),
            Way::Tls => drop(command.arg("--tls-on-connect")),
        }
        if way != Way::Plain {
            command.args(["--auth", "LOGIN", "--auth-user", USER, "--auth-password", PASSWORD]);
        }
        run(&mut command).must_succeed("swaks");
    });
}

#[test]
fn curl_sends_each_way() {
    let curl = match program("curl", "curl") {
        Ok(found) => found,
        Err(why) => skip!("{why:#}"),
    };
    each_way("curl", |sandbox, way, subject| {
        let mut command = Command::new(&curl);
        let file = sandbox.site.write("letter.eml", letter(subject));
        let scheme = if way == Way::Tls { "smtps" } else { "smtp" };
        command.args(["--silent", "--show-error", "--insecure", "--mail-from", "ann@example.com"]);
        command.args(["--mail-rcpt", "bob@example.net", "--upload-file"]).arg(file);
        command.arg("--url").arg(format!("{scheme}://{}/client.example.com", sandbox.address(way)));
        if way == Way::StartTls {
            command.arg("--ssl-reqd");
        }
        if way != Way::Plain {
            command.args(["--user", &format!("{USER}:{PASSWORD}")]);
        }
        run(&mut command).must_succeed("curl");
    });
}

#[test]
fn smtplib_of_python_sends_each_way() {
    let python = match program("python3", "python3") {
        Ok(found) => found,
        Err(why) => skip!("{why:#}"),
    };
    const SCRIPT: &str = "
import smtplib, ssl, sys
way, host, port, user, password = sys.argv[1:6]
context = ssl._create_unverified_context()
if way == 'Tls':
    server = smtplib.SMTP_SSL(host, int(port), context=context, timeout=20)
else:
    server = smtplib.SMTP(host, int(port), timeout=20)
if way == 'StartTls':
    server.starttls(context=context)
if way != 'Plain':
    server.login(user, password)
refused = server.sendmail('ann@example.com', ['bob@example.net', 'carol@example.net'], sys.stdin.buffer.read(),
    mail_options=['BODY=8BITMIME'])
assert refused == {}, refused
server.quit()
";
    each_way("smtplib", |sandbox, way, subject| {
        let address = sandbox.address(way);
        let mut command = Command::new(&python);
        command.args([
            "-c",
            SCRIPT,
            &format!("{way:?}"),
            &address.ip().to_string(),
            &address.port().to_string(),
        ]);
        run_with_input(command.args([USER, PASSWORD]), letter(subject).as_bytes()).must_succeed("smtplib");
    });
}

#[test]
fn msmtp_sends_each_way() {
    let msmtp = match program("msmtp", "msmtp") {
        Ok(found) => found,
        Err(why) => skip!("{why:#}"),
    };
    each_way("msmtp", |sandbox, way, subject| {
        let address = sandbox.address(way);
        let mut command = Command::new(&msmtp);
        command.args(["--file=/dev/null", "--from=ann@example.com", "--domain=client.example.com"]);
        command.args([format!("--host={}", address.ip()), format!("--port={}", address.port())]);
        match way {
            Way::Plain => {}
            Way::StartTls => drop(command.args(["--tls=on", "--tls-starttls=on", "--tls-certcheck=off"])),
            Way::Tls => drop(command.args(["--tls=on", "--tls-starttls=off", "--tls-certcheck=off"])),
        }
        if way != Way::Plain {
            // The server offers SCRAM-SHA-256 too; msmtp with GNU SASL takes the best it knows.
            command.args([
                "--auth=on",
                &format!("--user={USER}"),
                &format!("--passwordeval=echo {PASSWORD}"),
            ]);
        }
        command.arg("bob@example.net");
        let text = letter(subject).replace("\r\n", "\n");
        run_with_input(&mut command, text.as_bytes()).must_succeed("msmtp");
    });
}

#[test]
fn net_smtp_of_perl_sends_each_way() {
    let perl = match program("perl", "perl").and_then(|found| {
        blackbox::install(&["libio-socket-ssl-perl", "libauthen-sasl-perl"])?;
        Ok(found)
    }) {
        Ok(found) => found,
        Err(why) => skip!("{why:#}"),
    };
    const SCRIPT: &str = r#"
use strict; use Net::SMTP;
my ($way, $host, $port, $user, $password) = @ARGV;
my @tls = (SSL_verify_mode => 0);
my $smtp = Net::SMTP->new($host, Port => $port, Timeout => 20, SSL => $way eq 'Tls' ? 1 : 0, @tls) or die "new: $@";
if ($way eq 'StartTls') { $smtp->starttls(@tls) or die 'starttls: ' . $smtp->message; }
if ($way ne 'Plain') { $smtp->auth($user, $password) or die 'auth: ' . $smtp->message; }
$smtp->mail('ann@example.com', Bits => 8) or die 'mail: ' . $smtp->message;
$smtp->to('bob@example.net', { Notify => ['FAILURE', 'DELAY'] }) or die 'to: ' . $smtp->message;
my $letter = do { local $/; <STDIN> };
$smtp->data($letter) or die 'data: ' . $smtp->message;
$smtp->quit or die 'quit';
"#;
    each_way("Net::SMTP", |sandbox, way, subject| {
        let address = sandbox.address(way);
        let mut command = Command::new(&perl);
        command.args([
            "-e",
            SCRIPT,
            &format!("{way:?}"),
            &address.ip().to_string(),
            &address.port().to_string(),
        ]);
        let text = letter(subject).replace("\r\n", "\n");
        run_with_input(command.args([USER, PASSWORD]), text.as_bytes()).must_succeed("Net::SMTP");
    });
}

#[test]
fn nodemailer_sends_each_way() {
    let ready = program("node", "nodejs").and_then(|node| {
        let npm = program("npm", "npm")?;
        let folder = shared_folder("npm");
        once(&folder.join("nodemailer-installed"), || {
            let mut install = Command::new(npm);
            install.args(["install", "--no-audit", "--no-fund", "--ignore-scripts", "nodemailer@7"]);
            let answer = run(install.arg("--prefix").arg(&folder));
            anyhow::ensure!(answer.succeeded, "{}", answer.text);
            Ok(())
        })?;
        Ok((node, folder.join("node_modules")))
    });
    let (node, modules) = match ready {
        Ok(found) => found,
        Err(why) => skip!("{why:#}"),
    };
    const SCRIPT: &str = "
const nodemailer = require('nodemailer');
const [way, host, port, user, pass, subject] = process.argv.slice(1);
const transport = nodemailer.createTransport({
  host, port: Number(port), secure: way === 'Tls', requireTLS: way === 'StartTls', ignoreTLS: way === 'Plain',
  tls: { rejectUnauthorized: false }, auth: way === 'Plain' ? undefined : { user, pass },
});
transport.sendMail({
  from: 'Ann <ann@example.com>', to: 'bob@example.net', subject,
  text: '.dots and ..more\\n.\\n', attachments: [{ filename: 'a.bin', content: Buffer.alloc(100000, 7) }],
}).then(info => { if (info.accepted.length !== 1) throw info; transport.close(); })
  .catch(error => { console.error(error); process.exit(1); });
";
    each_way("Nodemailer", |sandbox, way, subject| {
        let address = sandbox.address(way);
        let mut command = Command::new(&node);
        command.env("NODE_PATH", &modules).args(["-e", SCRIPT, "--", &format!("{way:?}")]);
        command.args([&address.ip().to_string(), &address.port().to_string(), USER, PASSWORD, subject]);
        run(&mut command).must_succeed("Nodemailer");
    });
}

#[test]
fn our_own_client_sends_to_the_sandbox() {
    let sandbox = Sandbox::start();
    let sent = sandbox.relay.command(&["send", "--to", "bob@example.net", "--subject", "by hand"]);
    sent.must_succeed("postrider send");
    assert!(sandbox.captured("by hand").contains("bob@example.net"));
}

#[test]
fn who_speaks_before_the_greeting_is_turned_away_where_it_is_delayed() {
    let site = Site::new();
    let address = site.free(1);
    let relay = Relay::start(
        &site,
        &format!(
            "[[listener]]\naddress = \"{address}\"\nsandbox = true\n[[listener]]\naddress = \"{}\"\n\
             limits = {{ greet_delay = \"1s\" }}\nlegacy = {{ clients = [\"192.0.2.1\"], from = [\"*\"] }}\n\
             [[route]]\nto = [\"sandbox\"]\n",
            site.free(2)
        ),
    );
    let listeners = relay.log();
    let delayed =
        listeners.split([' ', '"', '[', ']', ',']).find(|word| word.starts_with(&site.ip(2).to_string()));
    let delayed: SocketAddr = delayed.unwrap().parse().unwrap();
    // The patient one's octets come after its greeting; the hasty one's a while after the connection.
    let talk = |first: &[u8]| {
        use std::io::{Read, Write};
        let began = std::time::Instant::now();
        let mut stream = std::net::TcpStream::connect(delayed).unwrap();
        std::thread::sleep(Duration::from_millis(200));
        stream.write_all(first).unwrap();
        let mut said = [0; 512];
        let count = stream.read(&mut said).unwrap();
        (String::from_utf8_lossy(&said[..count]).into_owned(), began.elapsed())
    };
    let (patient, after) = talk(b"");
    assert!(patient.starts_with("220 ") && after >= Duration::from_secs(1), "{patient} {after:?}");
    let (hasty, _) = talk(b"EHLO spam.example\r\n");
    assert!(hasty.starts_with("554 5.5.0 "), "{hasty}");
}
