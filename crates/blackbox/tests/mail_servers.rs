//! Mail by real names to real servers, and from them to us.

use blackbox::names::Names;
use blackbox::servers::{dovecot, exim, postfix};
use blackbox::{PASSWORD, Relay, Site, ends_with_letter, letter, program, run_with_input, skip};
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

/// Deliveries are done within this time.
const DELIVERY: Duration = Duration::from_secs(30);

/// Starts what may be missing here; skips the test with the reason.
macro_rules! or_skip {
    ($started:expr) => {
        match $started {
            Ok(started) => started,
            Err(why) => skip!("{why:#}"),
        }
    };
}

/// A client with every parameter of MAIL and RCPT under its control.
const CLIENT: &str = "
import smtplib, sys
host, port, sender, options, *recipients = sys.argv[1:]
server = smtplib.SMTP(host, int(port), timeout=30, local_hostname='client.example.com')
server.ehlo()
code, text = server.mail(sender, options.split())
assert code == 250, (code, text)
for recipient in recipients:
    address, _, more = recipient.partition(' ')
    code, text = server.rcpt(address, more.split())
    assert code == 250, (code, text)
code, text = server.data(sys.stdin.buffer.read())
assert code == 250, (code, text)
server.quit()
";

/// Sends a letter in CRLF form; each recipient may have RCPT parameters behind a blank.
#[track_caller]
fn send(to: SocketAddr, options: &str, recipients: &[&str], letter: &[u8]) {
    let sender = if options.contains("SMTPUTF8") { "änn@example.com" } else { "ann@example.com" };
    let mut command = Command::new("python3");
    let client = if options.contains("SMTPUTF8") {
        CLIENT.replace("server.ehlo()", "server.ehlo(); server.command_encoding = 'utf-8'")
    } else {
        CLIENT.to_owned()
    };
    command.env("PYTHONUTF8", "1").args([
        "-c",
        &client,
        &to.ip().to_string(),
        &to.port().to_string(),
        sender,
    ]);
    command.arg(options).args(recipients);
    run_with_input(&mut command, letter).must_succeed("the client");
}

/// A relay that takes mail on loopback, with these routes.
fn relay(site: &Site, address: SocketAddr, routes: &str) -> Relay {
    Relay::start(
        site,
        &format!(
            "[[listener]]\naddress = \"{address}\"\nlegacy = {{ clients = [\"127.0.0.0/8\"], from = [\"*\"] }}\n{routes}"
        ),
    )
}

/// The settings with which exchangers are found by these names, on this port.
fn by_mx(names: &Names, port: u16) -> String {
    format!(
        "[[route]]\nto = [\"mx\"]\n[delivery]\nretry = [\"2s\"]\nmx_port = {port}\ndns_servers = [\"{}\"]\n\
         allowed_networks = [\"127.0.0.0/8\"]\n",
        names.address
    )
}

#[test]
fn exchangers_are_found_by_real_names() {
    let site = Site::new();
    let port = site.free_port(5);
    let (postfix_at, exim_at) = (SocketAddr::from((site.ip(2), port)), SocketAddr::from((site.ip(3), port)));
    let domains = "direct.test, prefers.test, alias.test, target.alias.test, bare.test, slow.test";
    let postfix = or_skip!(postfix(&site, postfix_at, domains, None));
    let exim = or_skip!(exim(&site, exim_at, "exim.test : prefers.test"));
    let (p, e, dead) = (postfix_at.ip(), exim_at.ip(), site.ip(4));
    let direct = format!("@ IN MX 10 mx\nmx IN A {p}");
    let to_exim = format!("@ IN MX 10 mx\nmx IN A {e}");
    // The most preferred exchanger is away, the next one takes it; the least preferred is never asked.
    let prefers = format!(
        "@ IN MX 10 dead\n@ IN MX 20 mx\n@ IN MX 30 other\ndead IN A {dead}\nmx IN A {e}\nother IN A {p}"
    );
    let alias = format!("@ IN MX 10 mail\nmail IN CNAME real\nreal IN A {p}");
    let bare = format!("@ IN A {p}");
    let names = or_skip!(Names::start(
        &site,
        &[
            ("direct.test", &direct),
            ("exim.test", &to_exim),
            ("prefers.test", &prefers),
            ("alias.test", &alias),
            ("bare.test", &bare),
            ("slow.test", &direct),
            ("null.test", "@ IN MX 0 ."),
            ("broken.test", ""),
            ("silent.test", &direct),
        ],
    ));
    let address = site.free(1);
    let relay = relay(&site, address, &by_mx(&names, port));
    let cases = [
        ("direct.test", &postfix),
        ("exim.test", &exim),
        ("prefers.test", &exim),
        ("alias.test", &postfix),
        ("bare.test", &postfix),
        ("slow.test", &postfix),
    ];
    for (domain, _) in &cases {
        send(address, "", &[&format!("bob@{domain}")], &letter(domain));
    }
    for domain in ["null.test", "broken.test", "silent.test", "absent.broken.test"] {
        send(address, "", &[&format!("bob@{domain}")], &letter(domain));
    }
    for (domain, server) in &cases {
        let received = server.receives(&format!("Subject: {domain}\r\n").replace("\r\n", "\n"));
        let sent = String::from_utf8(letter(domain)).unwrap().replace("\r\n", "\n");
        let trimmed = sent.trim_end_matches('\n');
        let received = String::from_utf8(received).unwrap();
        let body = received.trim_end_matches('\n');
        assert!(ends_with_letter(body.as_bytes(), trimmed.as_bytes()), "{domain}: {received}");
        assert!(received.contains("by relay.example.com (Postrider)"), "{received}");
    }
    // A null MX is final (RFC 7505); names that are broken or silent are not.
    let waiting = |domain: &str| {
        relay.queue().into_iter().find(|queued| queued["recipient"] == format!("bob@{domain}"))
    };
    blackbox::until("a null MX is final", DELIVERY, || waiting("null.test").is_none().then_some(()));
    for (domain, why) in [
        ("broken.test", "the name servers answered SERVFAIL"),
        ("absent.broken.test", "the name servers answered SERVFAIL"),
        ("silent.test", "look"),
    ] {
        let queued = waiting(domain).unwrap_or_else(|| panic!("{domain} does not wait"));
        assert_eq!(queued["state"], "ready", "{queued:#}");
        let said = relay.command(&["explain", &format!("bob@{domain}")]).must_succeed("explain").text;
        assert!(said.contains(why), "{said}");
        // The list tells it too, once there is an answer.
        let reply = queued["last_reply"].to_string();
        assert!(reply.contains(why) || domain == "silent.test", "{queued:#}");
    }
    let listed = relay.command(&["queue", "list", "--reply", "SERVFAIL"]).must_succeed("queue list").text;
    assert!(listed.contains("bob@broken.test") && !listed.contains("bob@silent.test"), "{listed}");
    assert!(postfix.received(b"Subject: broken.test").is_empty());
}

#[test]
fn mail_for_dovecot_is_read_back_byte_for_byte() {
    let site = Site::new();
    or_skip!(program("python3", "python3"));
    let dovecot = or_skip!(dovecot(&site, 2));
    let address = site.free(1);
    let route = format!("[[route]]\nto = [\"lmtp://{}\"]\n", dovecot.server.address);
    let relay = relay(&site, address, &route);
    let mut large = letter("large");
    for line in 0..20_000 {
        large.extend_from_slice(format!(".line {line} \u{e4}\u{f6} with eight bits\r\n").as_bytes());
    }
    let letters = [("plain", letter("plain")), ("large", large)];
    for (_, letter) in &letters {
        send(address, "BODY=8BITMIME", &["bob@example.net", "carol@example.net"], letter);
    }
    relay.wait_until_empty(DELIVERY);
    const READER: &str = "
import imaplib, poplib, sys
imap_host, imap_port, pop_host, pop_port, user, password, subject = sys.argv[1:]
imap = imaplib.IMAP4(imap_host, int(imap_port)); imap.login(user, password); imap.select('INBOX', readonly=True)
_, [found] = imap.search(None, 'SUBJECT', subject)
assert len(found.split()) == 1, found
_, parts = imap.fetch(found, '(BODY.PEEK[])')
by_imap = parts[0][1]
pop = poplib.POP3(pop_host, int(pop_port)); pop.user(user); pop.pass_(password)
by_pop = [b'\\r\\n'.join(pop.retr(n + 1)[1]) + b'\\r\\n' for n in range(len(pop.list()[1]))]
by_pop = [mail for mail in by_pop if b'Subject: ' + subject.encode() in mail]
assert by_pop == [by_imap], (by_pop, by_imap)
sys.stdout.buffer.write(by_imap)
";
    for user in ["bob@example.net", "carol@example.net"] {
        for (subject, letter) in &letters {
            let mut command = Command::new("python3");
            command.args(["-c", READER]);
            for address in [dovecot.imap, dovecot.pop3] {
                command.args([address.ip().to_string(), address.port().to_string()]);
            }
            let read =
                run_with_input(command.args([user, PASSWORD, subject]), b"").must_succeed("the reader");
            assert!(
                ends_with_letter(&read.output, letter),
                "{user}, {subject}:\n{}",
                &read.text[..2_000.min(read.text.len())]
            );
        }
    }
}

/// What Python's parser finds in a report: one line `field: value` for each field of message/delivery-status.
const REPORT: &str = "
import email, email.policy, sys
report = email.message_from_bytes(sys.stdin.buffer.read(), policy=email.policy.default)
assert report.get_content_type() == 'multipart/report', report.get_content_type()
assert report.get_param('report-type') == 'delivery-status'
assert not report.defects, report.defects
human, status, original = report.iter_parts()
assert human.get_content_type() == 'text/plain' and human.get_content().strip()
assert status.get_content_type() == 'message/delivery-status', status.get_content_type()
for block in status.get_payload():
    for name, value in block.items():
        print(f'{name}: {value}')
print('original:', original.get_content_type())
for name in ('From', 'To', 'Subject', 'Auto-Submitted', 'Message-ID', 'Date'):
    assert report[name], name
";

#[test]
fn postfix_relays_through_us_and_is_told_of_failures() {
    let site = Site::new();
    or_skip!(program("python3", "python3"));
    let port = site.free_port(5);
    let inside_at = SocketAddr::from((site.ip(2), port));
    // Postfix → us → Postfix, and reports on the way back go to the second, which has the sender's mailbox.
    let inside = or_skip!(postfix(&site, inside_at, "example.net, example.com", None));
    let address = site.free(1);
    let relay = relay(&site, address, &format!("[[route]]\nto = [\"smtp://{inside_at}\"]\n"));
    let outside_at = site.free(3);
    let outside = or_skip!(postfix(&site, outside_at, "elsewhere.test", Some(address)));
    let mut eight = letter("eight");
    eight.extend_from_slice("\u{e4}\u{f6}\u{fc}\r\n".as_bytes());
    send(outside_at, "BODY=8BITMIME RET=HDRS ENVID=e1", &["bob@example.net NOTIFY=SUCCESS,FAILURE"], &eight);
    send(
        outside_at,
        "RET=FULL ENVID=QQ+2D314159",
        &["nobody@example.net NOTIFY=FAILURE ORCPT=rfc822;Nobody@example.net"],
        &letter("refused"),
    );
    send(outside_at, "", &["nobody@example.net NOTIFY=NEVER"], &letter("never"));
    let received = inside.receives("\u{e4}\u{f6}\u{fc}\n");
    let text = String::from_utf8(received).unwrap();
    assert!(text.ends_with("\u{e4}\u{f6}\u{fc}\n"), "{text}");
    assert!(text.contains("by relay.example.com (Postrider)"), "{text}");
    let report = inside.receives("Original-Envelope-Id: QQ-314159");
    let mut command = Command::new("python3");
    let parsed = run_with_input(command.args(["-c", REPORT]), &report).must_succeed("Python's email");
    for line in [
        "Reporting-MTA: dns; relay.example.com",
        "Final-Recipient: rfc822; nobody@example.net",
        "Original-Recipient: rfc822; Nobody@example.net",
        "Action: failed",
        "Status: 5.1.1",
        "original: message/rfc822",
    ] {
        assert!(
            parsed.text.lines().any(|found| found.eq_ignore_ascii_case(line)),
            "{line:?} in\n{}",
            parsed.text
        );
    }
    // Postfix itself tells of the success: we passed NOTIFY on.
    let told = inside.receives("Original-Envelope-Id: e1");
    let mut command = Command::new("python3");
    let parsed = run_with_input(command.args(["-c", REPORT]), &told).must_succeed("Python's email");
    assert!(parsed.text.contains("Reporting-MTA: dns; postfix.example.net"), "{}", parsed.text);
    assert!(parsed.text.contains("Action: delivered"), "{}", parsed.text);
    relay.wait_until_empty(DELIVERY);
    assert!(inside.received(b"Subject: never").is_empty(), "NOTIFY=NEVER was not heard");
    drop(outside);
}

#[test]
fn addresses_and_headers_in_utf8_pass_through() {
    let site = Site::new();
    or_skip!(program("python3", "python3"));
    let inside_at = site.free(2);
    let inside = or_skip!(postfix(&site, inside_at, "example.net, example.com", None));
    let address = site.free(1);
    let relay = relay(&site, address, &format!("[[route]]\nto = [\"smtp://{inside_at}\"]\n"));
    let outside_at = site.free(3);
    let outside = or_skip!(postfix(&site, outside_at, "elsewhere.test", Some(address)));
    let mail = String::from_utf8(letter("gr\u{fc}n")).unwrap().replace("Bob <bob@", "J\u{f6}rg <j\u{f6}rg@");
    send(outside_at, "SMTPUTF8 BODY=8BITMIME", &["j\u{f6}rg@example.net"], mail.as_bytes());
    let received = String::from_utf8(inside.receives("Subject: gr\u{fc}n\n")).unwrap();
    assert!(received.contains("J\u{f6}rg <j\u{f6}rg@example.net>"), "{received}");
    assert!(received.contains("with UTF8SMTP"), "RFC 6531 \u{a7}4.3 in a Received field: {received}");
    relay.wait_until_empty(DELIVERY);
    drop(outside);
}
