//! CHUNKING, BINARYMIME, 8BITMIME and SMTPUTF8 with servers that have them and servers that do not.

use blackbox::servers::{Server, exim_with, postfix, postfix_with};
use blackbox::{Relay, Site, Tap, ends_with_letter, letter, program, run_with_input, skip, until};
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;
use storm::script::Script;
use storm::sink::{Options, Sink};

/// Deliveries are done within this time.
const DELIVERY: Duration = Duration::from_secs(60);

/// Starts what may be missing here; skips the test with the reason.
macro_rules! or_skip {
    ($started:expr) => {
        match $started {
            Ok(started) => started,
            Err(why) => skip!("{why:#}"),
        }
    };
}

/// Sends standard input by BDAT, or by DATA if no chunk size is given.
const CLIENT: &str = "
import smtplib, sys
host, port, sender, options, chunk, *recipients = sys.argv[1:]
content = sys.stdin.buffer.read()
server = smtplib.SMTP(host, int(port), timeout=30, local_hostname='client.example.com')
server.command_encoding = 'utf-8'
def must(reply):
    assert reply[0] == 250, reply
must(server.ehlo())
must(server.docmd(f'MAIL FROM:<{sender}>' + (' ' + options if options else '')))
for recipient in recipients:
    must(server.docmd(f'RCPT TO:<{recipient}>'))
if int(chunk):
    pieces = [content[at:at + int(chunk)] for at in range(0, len(content), int(chunk))]
    for number, piece in enumerate(pieces):
        server.send(b'BDAT %d%s\\r\\n' % (len(piece), b' LAST' if number + 1 == len(pieces) else b'') + piece)
        must(server.getreply())
else:
    must(server.data(content))
server.quit()
";

struct Mail<'a> {
    from: &'a str,
    options: &'a str,
    /// Octets of a chunk; 0 for DATA.
    chunk: usize,
    to: &'a [&'a str],
}

impl Mail<'_> {
    #[track_caller]
    fn send(&self, relay: SocketAddr, content: &[u8]) {
        let mut command = Command::new("python3");
        command.env("PYTHONUTF8", "1").args(["-c", CLIENT, &relay.ip().to_string()]);
        command.args([&relay.port().to_string(), self.from, self.options, &self.chunk.to_string()]);
        run_with_input(command.args(self.to), content).must_succeed("the client");
    }
}

/// A relay that takes mail on loopback, with a route in clear for each domain.
fn relay(site: &Site, address: SocketAddr, routes: &[(&str, SocketAddr)]) -> Relay {
    let mut config = format!(
        "[[listener]]\naddress = \"{address}\"\nlegacy = {{ clients = [\"127.0.0.0/8\"], from = [\"*\"] }}\n"
    );
    for (domain, to) in routes {
        config += &format!("[[route]]\ndomains = [\"{domain}\"]\nto = [\"smtp://{to}\"]\ntls = \"none\"\n");
    }
    Relay::start(site, &(config + "[delivery]\nretry = [\"2s\"]\n"))
}

/// What a server received with these octets, with CRLF.
#[track_caller]
fn received(server: &Server, part: &str) -> Vec<u8> {
    let received = server.receives(part);
    let mut out = Vec::with_capacity(received.len());
    for line in received.split_inclusive(|octet| *octet == b'\n') {
        match line.strip_suffix(b"\n") {
            Some(line) => {
                out.extend_from_slice(&[line.strip_suffix(b"\r").unwrap_or(line), b"\r\n"].concat());
            }
            None => out.extend_from_slice(line),
        }
    }
    out
}

/// A mailbox file need not keep empty lines at its end.
#[track_caller]
fn holds_letter(received: &[u8], letter: &[u8]) {
    let trimmed = |content: &[u8]| {
        let end = content.iter().rposition(|octet| !b"\r\n".contains(octet)).map_or(0, |last| last + 1);
        content[..end].to_vec()
    };
    assert!(
        ends_with_letter(&trimmed(received), &trimmed(letter)),
        "{}",
        String::from_utf8_lossy(&received[..received.len().min(3_000)])
    );
}

/// Runs a Python script over a message.
#[track_caller]
fn python(script: &str, message: &[u8]) -> String {
    let mut command = Command::new("python3");
    command.env("PYTHONUTF8", "1").args(["-c", script]);
    let answer = run_with_input(&mut command, message);
    if !answer.succeeded {
        panic!("{}\n{}", answer.text, String::from_utf8_lossy(message));
    }
    String::from_utf8(answer.output).unwrap()
}

#[test]
fn chunks_come_from_exim_and_go_to_postfix_and_exim_octet_for_octet() {
    let site = Site::new();
    or_skip!(program("python3", "python3"));
    let (postfix_at, exim_at, outside_at) = (site.free(2), site.free(3), site.free(4));
    let postfix = or_skip!(postfix(&site, postfix_at, "postfix.test, example.com", None));
    let exim = or_skip!(exim_with(&site, exim_at, "exim.test", None, ""));
    let address = site.free(1);
    let to_postfix = Tap::between(site.free(5), postfix_at);
    let to_exim = Tap::between(site.free(5), exim_at);
    let to_us = Tap::between(site.free(6), address);
    // The Debian Exim outside hands everything to us; it sends BDAT where CHUNKING is offered.
    let outside = or_skip!(exim_with(&site, outside_at, "elsewhere.test", Some(to_us.address), ""));
    let _relay =
        relay(&site, address, &[("postfix.test", to_postfix.address), ("exim.test", to_exim.address)]);

    let mut large = letter("large");
    for line in 0..20_000 {
        large.extend_from_slice(format!(".line {line} \u{e4}\u{f6} with eight bits\r\n").as_bytes());
    }
    let small = letter("small");
    let to = ["bob@postfix.test", "bob@exim.test"];
    // Chunks that end in the midst of lines, and between CR and LF.
    Mail { from: "ann@example.com", options: "", chunk: 7, to: &to }.send(address, &small);
    let eight = "BODY=8BITMIME";
    Mail { from: "ann@example.com", options: eight, chunk: 99_991, to: &to }.send(address, &large);
    let by_data = letter("by data");
    Mail { from: "ann@example.com", options: "", chunk: 0, to: &to }.send(address, &by_data);
    let through = letter("through");
    Mail { from: "ann@example.com", options: "", chunk: 0, to: &to[..1] }.send(outside_at, &through);

    let cases = [("small", &small, true), ("large", &large, true), ("by data", &by_data, false)];
    for (server, tap) in [(&postfix, &to_postfix), (&exim, &to_exim)] {
        for (subject, letter, by_bdat) in &cases {
            let subject = format!("Subject: {subject}\n");
            holds_letter(&received(server, &subject), letter);
            let sent = tap.contents(&subject.replace('\n', "\r\n"));
            let [sent] = &sent[..] else { panic!("sent {} times", sent.len()) };
            assert_eq!(sent.by_bdat, *by_bdat, "{subject}");
            assert!(ends_with_letter(&sent.octets, letter), "{subject}");
            assert_eq!(sent.mail.contains(" BODY=8BITMIME"), subject.contains("large"), "{}", sent.mail);
        }
    }
    holds_letter(&received(&postfix, "Subject: through\n"), &through);
    for tap in [&to_us, &to_postfix] {
        let sent = tap.contents("Subject: through\r\n");
        let [sent] = &sent[..] else { panic!("sent {} times", sent.len()) };
        assert!(sent.by_bdat, "{sent:?}");
        assert!(ends_with_letter(&sent.octets, &through));
    }
    drop(outside);
}

/// What a parser finds in [`binary`]'s parts, in hexadecimal digits, one on a line.
const PARTS: &str = "
import email, email.policy, sys
message = email.message_from_bytes(sys.stdin.buffer.read(), policy=email.policy.default)
for part in message.iter_parts():
    print(part['content-transfer-encoding'], part.get_payload(decode=True).hex())
";

/// Every octet, line endings of all kinds, what looks like the end of the data; in a part of its own.
fn binary() -> (Vec<u8>, Vec<u8>) {
    let mut octets: Vec<u8> = (0..=255).collect();
    octets.extend_from_slice(b"\r\n.\r\n\n.\n\r.\r\r\n\0\r\n..\r\n");
    octets.extend((0..=255).rev());
    let mut content = concat!(
        "From: Ann <ann@example.com>\r\nTo: bob@example.net\r\nSubject: binary\r\nMIME-Version: 1.0\r\n",
        "Date: Tue, 24 Nov 2026 12:00:00 +0000\r\nMessage-ID: <binary@example.com>\r\n",
        "Content-Type: multipart/mixed; boundary=\"edge\"\r\nContent-Transfer-Encoding: binary\r\n\r\n",
        "--edge\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n",
        "gr\u{fc}n\r\n--edge\r\nContent-Type: application/octet-stream\r\n",
        "Content-Transfer-Encoding: binary\r\n\r\n"
    )
    .as_bytes()
    .to_vec();
    content.extend_from_slice(&octets);
    content.extend_from_slice(b"\r\n--edge--\r\n");
    (content, octets)
}

#[test]
fn content_that_a_server_does_not_take_is_converted_and_decodes_to_the_same() {
    let site = Site::new();
    or_skip!(program("python3", "python3"));
    let (postfix_at, exim_at, seven_at) = (site.free(2), site.free(3), site.free(4));
    let postfix = or_skip!(postfix(&site, postfix_at, "postfix.test, example.com", None));
    let exim = or_skip!(exim_with(&site, exim_at, "exim.test", None, ""));
    // An Exim that takes seven bits only.
    let seven = or_skip!(exim_with(&site, seven_at, "seven.test", None, "accept_8bitmime = false\n"));
    // A server that takes binary content, and an old one that takes nothing but seven bits by DATA.
    let script = |text: &str| Script::parse(text).unwrap();
    let sink = |text: &str| {
        Sink::start(Options { script: script(text), ..Options::at(vec![site.free(5)]) }).unwrap()
    };
    let takes_binary = sink("[offer]\nbinarymime = true\n");
    let old = sink(
        "[offer]\nbinarymime = false\nchunking = false\neightbitmime = false\nsmtputf8 = false\ndsn = false\n\
         pipelining = false\n",
    );
    let to_binary = Tap::between(site.free(6), takes_binary.address());
    let to_old = Tap::between(site.free(6), old.address());
    let address = site.free(1);
    let _relay = relay(
        &site,
        address,
        &[
            ("postfix.test", postfix_at),
            ("exim.test", exim_at),
            ("seven.test", seven_at),
            ("binary.test", to_binary.address),
            ("old.test", to_old.address),
        ],
    );
    let to = ["bob@postfix.test", "bob@exim.test", "bob@seven.test", "bob@binary.test", "bob@old.test"];
    let (content, octets) = binary();
    Mail { from: "ann@example.com", options: "BODY=BINARYMIME", chunk: 100, to: &to }.send(address, &content);
    let mut eight = letter("eight");
    eight.extend_from_slice("\u{e4}\u{f6}\u{fc} and a long tail\r\n".repeat(50).as_bytes());
    Mail { from: "ann@example.com", options: "BODY=8BITMIME", chunk: 0, to: &to }.send(address, &eight);

    // As it was, where it may.
    let sent = until("binary content is sent", DELIVERY, || to_binary.contents("Subject: binary").pop());
    assert!(sent.by_bdat && sent.mail.contains(" BODY=BINARYMIME"), "{}", sent.mail);
    assert!(sent.octets.ends_with(&content));
    // Elsewhere every part decodes to what it was.
    let hex = |octets: &[u8]| octets.iter().map(|octet| format!("{octet:02x}")).collect::<String>();
    let old_got = until("an old server is sent it", DELIVERY, || to_old.contents("Subject: binary").pop());
    assert!(!old_got.by_bdat && !old_got.mail.contains("BODY="), "{}", old_got.mail);
    for got in [
        received(&postfix, "Subject: binary"),
        received(&exim, "Subject: binary"),
        received(&seven, "Subject: binary"),
        old_got.octets,
    ] {
        let parts = python(PARTS, &got);
        let [text, binary] = &parts.lines().collect::<Vec<_>>()[..] else { panic!("{parts}") };
        assert_eq!(*binary, format!("base64 {}", hex(&octets)));
        let text = text.rsplit_once(' ').unwrap().1;
        assert!(text.starts_with(&hex("gr\u{fc}n".as_bytes())), "{text}");
    }
    // Eight bits go as they are to those that take them; the others decode the same.
    for server in [&postfix, &exim] {
        holds_letter(&received(server, "Subject: eight\n"), &eight);
    }
    let old_got = until("an old server is sent it", DELIVERY, || to_old.contents("Subject: eight").pop());
    let body = |content: &[u8]| {
        let script = "import email, sys\nmessage = email.message_from_bytes(sys.stdin.buffer.read())\n\
                      print(message.get_payload(decode=True).replace(b'\\r\\n', b'\\n').rstrip().hex())";
        python(script, content)
    };
    for got in [received(&seven, "Subject: eight\n"), old_got.octets] {
        assert!(got.is_ascii(), "{}", String::from_utf8_lossy(&got));
        assert_eq!(body(&got), body(&eight));
    }
}

/// What a report says: its type, then the fields of its status, then the type of what it returns.
const REPORT: &str = "
import base64, email, email.policy, quopri, sys
raw = sys.stdin.buffer.read()
report = email.message_from_bytes(raw, policy=email.policy.default.clone(utf8=True))
assert report.get_content_type() == 'multipart/report', report.get_content_type()
assert report.get_param('report-type') == 'delivery-status'
assert not report.defects, report.defects
human, status, original = report.iter_parts()
assert human.get_content_type() == 'text/plain' and human.get_content().strip()
print('status:', status.get_content_type())
encoding = (status['content-transfer-encoding'] or '7bit').lower()
print('encoding:', encoding)
payload = status.get_payload()
octets = b'\\n'.join(part.as_bytes() for part in payload) if isinstance(payload, list) else payload.encode()
if encoding == 'quoted-printable':
    octets = quopri.decodestring(octets)
elif encoding == 'base64':
    octets = base64.b64decode(octets)
print(octets.decode('utf-8'))
print('original:', original.get_content_type())
print('ascii:', raw.isascii())
";

#[track_caller]
fn report(message: &[u8], expected: &[&str]) {
    let found = python(REPORT, message);
    for line in expected {
        assert!(
            found.lines().any(|found| found.eq_ignore_ascii_case(line)),
            "{line:?} in\n{found}\n{}",
            String::from_utf8_lossy(message)
        );
    }
}

#[test]
fn utf8_goes_where_it_is_taken_and_elsewhere_comes_back_with_5_6_7() {
    let site = Site::new();
    or_skip!(program("python3", "python3"));
    let (full_at, ascii_at, exim_at) = (site.free(2), site.free(3), site.free(4));
    // `example.com` has the senders' mailboxes, `ascii.test` is a sender's domain whose server has no SMTPUTF8.
    let full = or_skip!(postfix(&site, full_at, "full.test, example.com", None));
    let settings = "smtputf8_enable = no\n";
    let ascii = or_skip!(postfix_with(
        &site,
        ascii_at,
        "postfix.test, ascii.test, xn--bcher-kva.test",
        None,
        settings
    ));
    let settings = "smtputf8_advertise_hosts =\naccept_8bitmime = false\n";
    let exim = or_skip!(exim_with(&site, exim_at, "exim.test : seven.test", None, settings));
    let to_full = Tap::between(site.free(5), full_at);
    let to_ascii = Tap::between(site.free(5), ascii_at);
    let address = site.free(1);
    let relay = relay(
        &site,
        address,
        &[
            ("full.test", to_full.address),
            ("example.com", to_full.address),
            ("postfix.test", to_ascii.address),
            ("ascii.test", to_ascii.address),
            ("xn--bcher-kva.test", to_ascii.address),
            ("exim.test", exim_at),
            ("seven.test", exim_at),
        ],
    );
    let utf8 = "SMTPUTF8 BODY=8BITMIME";
    let green = |name: &str| String::from_utf8(letter(&format!("gr\u{fc}n {name}"))).unwrap();
    let send = |from: &str, options: &str, to: &[&str], content: &str| {
        Mail { from, options, chunk: 0, to }.send(address, content.as_bytes());
    };

    // It passes where it is taken; the other recipient of the same message comes back.
    send("ann@example.com", utf8, &["j\u{f6}rg@full.test", "j\u{f6}rg@postfix.test"], &green("both"));
    let got = received(&full, "Subject: gr\u{fc}n both\n");
    assert!(String::from_utf8(got).unwrap().contains("with UTF8SMTP"));
    let sent = to_full.contents("Subject: gr\u{fc}n both\r\n").remove(0);
    assert!(sent.mail.contains(" SMTPUTF8"), "{}", sent.mail);
    let told = received(&full, "Subject: Undeliverable: =?utf-8?");
    report(
        &told,
        &[
            "status: message/global-delivery-status",
            "Final-Recipient: utf-8; j\u{f6}rg@postfix.test",
            "Action: failed",
            "Status: 5.6.7",
            "original: message/global-headers",
        ],
    );

    // Nothing in it needs the extension, though it was declared: it goes without.
    send(
        "ann@example.com",
        utf8,
        &["bob@postfix.test", "bob@exim.test"],
        &String::from_utf8(letter("plain")).unwrap(),
    );
    holds_letter(&received(&ascii, "Subject: plain\n"), &letter("plain"));
    holds_letter(&received(&exim, "Subject: plain\n"), &letter("plain"));
    let sent = to_ascii.contents("Subject: plain\r\n").remove(0);
    assert!(!sent.mail.contains("SMTPUTF8"), "{}", sent.mail);
    // A domain alone has a form in ASCII.
    send("ann@example.com", utf8, &["bob@b\u{fc}cher.test"], &String::from_utf8(letter("domain")).unwrap());
    holds_letter(&received(&ascii, "Subject: domain\n"), &letter("domain"));

    // A sender or a header in UTF-8 has none; the sender is told in its own script.
    let own = |subject: &str| String::from_utf8(letter(subject)).unwrap();
    send("\u{e4}nn@example.com", utf8, &["bob@postfix.test"], &own("from umlaut"));
    let told = received(&full, "Subject: Undeliverable: from umlaut ");
    assert!(String::from_utf8_lossy(&told).contains("To: <\u{e4}nn@example.com>"));
    report(
        &told,
        &["Final-Recipient: rfc822; bob@postfix.test", "Status: 5.6.7", "status: message/delivery-status"],
    );
    send("ann@example.com", "SMTPUTF8 BODY=8BITMIME RET=FULL", &["bob@exim.test"], &green("header"));
    let told = until("the sender is told", DELIVERY, || {
        full.received(b"Final-Recipient: rfc822; bob@exim.test").pop()
    });
    report(&told, &["Status: 5.6.7", "Action: failed", "original: message/global"]);

    // A sender whose own server takes neither SMTPUTF8 nor eight bits is told all the same.
    for (sender, server) in [("ann@ascii.test", &ascii), ("ann@seven.test", &exim)] {
        let subject = format!("for {sender}");
        send(sender, "SMTPUTF8", &["j\u{f6}rg@exim.test"], &own(&subject));
        let told = received(server, &format!("Subject: Undeliverable: {subject} "));
        report(
            &told,
            &[
                "status: message/global-delivery-status",
                "Final-Recipient: utf-8; j\u{f6}rg@exim.test",
                "Status: 5.6.7",
            ],
        );
    }
    let told = received(&exim, "Subject: Undeliverable: for ann@seven.test ");
    report(&told, &["ascii: True"]);
    relay.wait_until_empty(DELIVERY);
    for server in [&ascii, &exim] {
        assert!(server.received("Subject: gr\u{fc}n".as_bytes()).is_empty());
    }
}
