//! Reports, read back by an independent parser: Python's email package.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use bytes::Bytes;
use postrider_message::{Action, HeaderScan, Report, ReportContent, Reported, lines, returns_content};
use postrider_model::record::Message;
use postrider_model::{
    BodyKind, Class, Domain, Encoding, EnhancedCode, Envelope, MessageNo, Notify, RecipientParams, Reply,
    Ret, Timestamp,
};
use serde_json::Value;
use std::io::Write;
use std::process::{Command, Stdio};

const NOW: Timestamp = Timestamp::from_secs(1_795_526_426);
const CONTENT: &str = "Received: from x by y; z\r\nFrom: Ada <ada@example.com>\r\n\
    Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?= und mehr\r\nMessage-ID: <1@example.com>\r\n\r\nHello\r\n..dot\r\n";

fn recipient(address: &str) -> RecipientParams {
    address.parse::<postrider_model::Mailbox>().unwrap().into()
}

fn message(content: &str) -> Message {
    Message {
        number: MessageNo(1),
        accepted_at: NOW,
        expires_at: Timestamp::from_secs(1_795_526_426 + 5 * 86_400),
        class: Class::Normal,
        account: "app1".into(),
        client: "[192.0.2.9]".into(),
        envelope: Envelope {
            reverse_path: Some("ada@example.com".parse().unwrap()),
            body: BodyKind::SevenBit,
            smtputf8: false,
            envid: Some("QQ+2B+3D1".into()),
            ret: Some(Ret::Full),
            requires_tls: false,
        },
        recipients: vec![recipient("bob@example.net"), recipient("carol@example.net")],
        encoding: Encoding::Stuffed,
        eight_bit: false,
        utf8_header: false,
        header_size: 0,
        content_size: content.len() as u64,
        chunks: 0,
        held: false,
        sent_at_once: false,
        due: None,
        report: None,
    }
}

fn refused() -> Reply {
    Reply::new(550, Some(EnhancedCode(5, 1, 1)), "No such user\nSee https://example.net/why").unwrap()
}

fn build(message: &Message, content: &str, recipients: &[Reported<'_>]) -> ReportContent {
    let host: Domain = "relay.example.com".parse().unwrap();
    let content = [Bytes::copy_from_slice(content.as_bytes())];
    let report = Report {
        message,
        message_id: "msg_1",
        recipients,
        content: &content,
        host: &host,
        id: "msg_2",
        boundary: "b0undary",
        at: NOW,
    };
    let built = report.build().unwrap();
    let octets = built.pieces.concat();
    assert_eq!(lines::clean(&octets), octets, "line endings");
    assert!(octets.split(|b| *b == b'\n').all(|line| line.len() <= 999 && line != b".\r"));
    assert_eq!(built.eight_bit, !octets.is_ascii());
    let header = HeaderScan::whole(&built.pieces);
    assert_eq!((header.size, header.eight_bit), (built.header_size, built.utf8_header));
    assert_eq!(header.authors(&built.pieces).unwrap().from[0].as_str(), "MAILER-DAEMON@relay.example.com");
    built
}

/// What Python's email package found; `None`, with the reason printed, where there is no Python.
fn parsed(built: &ReportContent) -> Option<Value> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parse_report.py");
    let child = Command::new("python3").arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let Ok(mut child) = child else {
        eprintln!("SKIPPED: python3 is not installed, so no independent parser reads the report");
        return None;
    };
    let octets = built.pieces.concat();
    child.stdin.take().unwrap().write_all(&lines::unstuff(&octets)).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&octets));
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value["defects"], serde_json::json!([]), "{}", String::from_utf8_lossy(&octets));
    assert_eq!(value["type"], "multipart/report");
    assert_eq!(value["report_type"], "delivery-status");
    Some(value)
}

/// The text with its line breaks as spaces.
fn words_of(text: &Value) -> String {
    text.as_str().unwrap().split_ascii_whitespace().collect::<Vec<_>>().join(" ")
}

fn reported<'a>(params: &'a RecipientParams, action: Action, reply: &'a Reply) -> Reported<'a> {
    Reported { params, action, reply, peer: "mx1.example.net[192.0.2.1]:25", at: NOW }
}

#[test]
fn a_failure_says_what_happened_and_returns_the_message() {
    let message = message(CONTENT);
    let reply = refused();
    let mut params = message.recipients[0].clone();
    params.orcpt = Some("rfc822;Bob+2Bx@example.org".into());
    let built = build(&message, CONTENT, &[reported(&params, Action::Failed, &reply)]);
    assert!(!built.eight_bit && !built.utf8_header);
    let Some(found) = parsed(&built) else { return };
    assert_eq!(found["header"]["To"], "ada@example.com");
    assert_eq!(found["header"]["Subject"], "Undeliverable: Grüße und mehr");
    assert_eq!(found["header"]["Auto-Submitted"], "auto-replied");
    assert_eq!(found["header"]["In-Reply-To"], "<1@example.com>");
    let parts = ["text/plain", "message/delivery-status", "message/rfc822"];
    assert_eq!(found["parts"], serde_json::json!(parts));
    let text = words_of(&found["text"]);
    for words in [
        "could not be delivered to this recipient.",
        "does not concern its other recipients",
        "bob@example.net",
        "The server mx1.example.net[192.0.2.1]:25 refused it:",
        "550 5.1.1 No such user See https://example.net/why",
        "Check the address for typing errors",
        "Subject: Grüße und mehr",
        "Reference: msg_1",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    let status = &found["status"];
    assert_eq!(status[0]["Reporting-MTA"], "dns; relay.example.com");
    assert_eq!(status[0]["Original-Envelope-Id"], "QQ+=1");
    assert_eq!(status[0]["Arrival-Date"], "Tue, 24 Nov 2026 13:20:26 +0000");
    assert_eq!(status[1]["Original-Recipient"], "rfc822; Bob+x@example.org");
    assert_eq!(status[1]["Final-Recipient"], "rfc822; bob@example.net");
    assert_eq!(status[1]["Action"], "failed");
    assert_eq!(status[1]["Status"], "5.1.1");
    assert_eq!(status[1]["Remote-MTA"], "dns; mx1.example.net");
    assert_eq!(status[1]["Diagnostic-Code"], "smtp; 550 5.1.1 No such user See https://example.net/why");
    assert_eq!(status[1]["Last-Attempt-Date"], "Tue, 24 Nov 2026 13:20:26 +0000");
    assert!(found["returned"].as_str().unwrap().ends_with("\n\nHello\n.dot\n"), "{}", found["returned"]);
}

#[test]
fn only_the_header_is_returned_when_it_suffices() {
    let mut message = message(CONTENT);
    message.envelope.ret = Some(Ret::Headers);
    assert!(!returns_content(&message));
    let reply = refused();
    let reported = [reported(&message.recipients[0], Action::Failed, &reply)];
    let Some(found) = parsed(&build(&message, CONTENT, &reported)) else { return };
    assert_eq!(found["parts"][2], "text/rfc822-headers");
    let returned = found["returned"].as_str().unwrap();
    assert!(returned.contains("Message-ID: <1@example.com>") && !returned.contains("Hello"));
}

#[test]
fn a_delay_says_until_when_it_is_tried() {
    let message = message(CONTENT);
    let reply = Reply::new(451, Some(EnhancedCode(4, 7, 1)), "Greylisted").unwrap();
    let reported = [reported(&message.recipients[0], Action::Delayed, &reply)];
    let Some(found) = parsed(&build(&message, CONTENT, &reported)) else { return };
    assert_eq!(found["header"]["Subject"], "Delayed: Grüße und mehr");
    assert_eq!(found["status"][1]["Action"], "delayed");
    assert_eq!(found["status"][1]["Status"], "4.7.1");
    assert_eq!(found["status"][1]["Will-Retry-Until"], "Sun, 29 Nov 2026 13:20:26 +0000");
    assert_eq!(found["parts"][2], "text/rfc822-headers");
    assert!(words_of(&found["text"]).contains("You need not do anything"));
}

#[test]
fn success_names_each_recipient() {
    let message = message(CONTENT);
    let reply = Reply::new(250, None, "OK").unwrap();
    let reported = [
        reported(&message.recipients[0], Action::Delivered, &reply),
        reported(&message.recipients[1], Action::Relayed, &reply),
    ];
    let Some(found) = parsed(&build(&message, CONTENT, &reported)) else { return };
    assert_eq!(found["header"]["Subject"], "Passed on: Grüße und mehr");
    assert_eq!(found["status"][1]["Action"], "delivered");
    assert_eq!(found["status"][2]["Action"], "relayed");
    assert_eq!(found["status"][2]["Final-Recipient"], "rfc822; carol@example.net");
    assert_eq!(found["status"][2]["Status"], "2.0.0");
}

#[test]
fn an_expired_message_has_the_status_of_one() {
    let message = message(CONTENT);
    let reply = Reply::ours(451, EnhancedCode(4, 4, 1), "Connection refused");
    let reported = [Reported { peer: "", ..reported(&message.recipients[0], Action::Expired, &reply) }];
    let Some(found) = parsed(&build(&message, CONTENT, &reported)) else { return };
    assert_eq!(found["status"][1]["Action"], "failed");
    assert_eq!(found["status"][1]["Status"], "5.4.7");
    assert_eq!(found["status"][1]["Diagnostic-Code"], "X-Postrider; 451 4.4.1 Connection refused");
    assert_eq!(found["status"][1]["Remote-MTA"], Value::Null);
}

#[test]
fn addresses_in_utf8_make_global_parts() {
    let content = "From: jürgen@bücher.example\r\nSubject: Grüße\r\n\r\nHällo\r\n";
    let mut message = message(content);
    message.envelope.smtputf8 = true;
    message.envelope.reverse_path = Some("jürgen@bücher.example".parse().unwrap());
    (message.utf8_header, message.eight_bit) = (true, true);
    let params = recipient("用户@例子.example");
    let reply = Reply::new(550, Some(EnhancedCode(5, 1, 1)), "Kein solcher Empfänger").unwrap();
    let built = build(&message, content, &[reported(&params, Action::Failed, &reply)]);
    assert!(built.utf8_header && built.eight_bit);
    let text = String::from_utf8(built.pieces.concat()).unwrap();
    assert!(text.contains("\r\nFinal-Recipient: utf-8; 用户@xn--fsqu00a.example\r\n"), "{text}");
    assert!(text.contains("\r\nDiagnostic-Code: smtp; 550 5.1.1 Kein solcher Empfänger\r\n"));
    let Some(found) = parsed(&built) else { return };
    let parts = ["text/plain", "message/global-delivery-status", "message/global"];
    assert_eq!(found["parts"], serde_json::json!(parts));
    assert_eq!(found["encodings"], serde_json::json!(["quoted-printable", "8bit", "8bit"]));
    assert_eq!(found["header"]["Subject"], "Undeliverable: Grüße");
    assert!(words_of(&found["text"]).contains("用户@例子.example"));
}

#[test]
fn hostile_words_stay_data() {
    let content = "Subject: x\r\n --b0undary\r\n\r\n--b0undary\r\n..\r\n--b0undaryx--\r\n";
    let mut message = message(content);
    message.envelope.envid = Some("a+0D+0AAction:+20delivered+00".into());
    let mut params = recipient("\"a b\"@example.net");
    params.orcpt = Some("rfc822;x+0D+0A+0D+0AFinal-Recipient:y".into());
    let long = format!("{}\u{1b}[31m--b0undary\n.\n\r\nÜ", "word ".repeat(300));
    let reply = Reply::new(554, None, &long).unwrap();
    let reported =
        [Reported { peer: "evil\r\nX: y[192.0.2.1]", ..reported(&params, Action::Failed, &reply) }];
    let built = build(&message, content, &reported);
    let Some(found) = parsed(&built) else { return };
    assert_eq!(found["parts"].as_array().unwrap().len(), 3);
    assert_eq!(found["status"].as_array().unwrap().len(), 2);
    assert_eq!(found["status"][0]["Original-Envelope-Id"], "a  Action: delivered");
    assert_eq!(found["status"][1]["Action"], "failed");
    assert_eq!(found["status"][1]["Status"], "5.0.0");
    assert_eq!(found["status"][1]["Remote-MTA"], Value::Null);
    assert!(found["status"][1]["Diagnostic-Code"].as_str().unwrap().len() < 800);
    assert!(found["returned"].as_str().unwrap().contains("--b0undaryx--"));
}

#[test]
fn content_that_is_not_stuffed_or_clean_becomes_both() {
    let content = "Subject: x\r\n\r\n.\r\nbare\nlf\rcr";
    let mut message = message(content);
    message.encoding = Encoding::Plain;
    let reply = refused();
    let reported = [reported(&message.recipients[0], Action::Failed, &reply)];
    let built = build(&message, content, &reported);
    assert!(String::from_utf8(built.pieces.concat()).unwrap().contains("\r\n..\r\nbare\r\nlf\r\ncr\r\n"));
    message.encoding = Encoding::Binary;
    let built = build(&message, content, &reported);
    assert!(!String::from_utf8(built.pieces.concat()).unwrap().contains("bare"));
}

#[test]
fn the_returned_message_is_not_copied() {
    let message = message(CONTENT);
    let host: Domain = "relay.example.com".parse().unwrap();
    let content = [Bytes::from_static(CONTENT.as_bytes())];
    let reply = refused();
    let reported = [reported(&message.recipients[0], Action::Failed, &reply)];
    let report = Report {
        message: &message,
        message_id: "msg_1",
        recipients: &reported,
        content: &content,
        host: &host,
        id: "msg_2",
        boundary: "b",
        at: NOW,
    };
    let built = report.build().unwrap();
    assert!(built.pieces.iter().any(|piece| piece.as_ptr() == content[0].as_ptr()));
}

#[test]
fn nobody_is_told_at_the_null_reverse_path() {
    let mut message = message(CONTENT);
    message.envelope.reverse_path = None;
    let host: Domain = "relay.example.com".parse().unwrap();
    let reply = refused();
    let reported = [reported(&message.recipients[0], Action::Failed, &reply)];
    let report = Report {
        message: &message,
        message_id: "msg_1",
        recipients: &reported,
        content: &[],
        host: &host,
        id: "msg_2",
        boundary: "b",
        at: NOW,
    };
    assert_eq!(report.build(), None);
}

#[test]
fn reports_are_sent_when_they_are_wanted() {
    let ada = "ada@example.com".parse().unwrap();
    let ada = Some(&ada);
    let on = |success, failure, delay| Some(Notify::On { success, failure, delay });
    let check = |action: Action, notify, wanted| assert_eq!(action.is_wanted(ada, notify), wanted);
    check(Action::Failed, None, true);
    check(Action::Expired, None, true);
    check(Action::Delayed, None, true);
    check(Action::Delivered, None, false);
    check(Action::Relayed, None, false);
    check(Action::Failed, Some(Notify::Never), false);
    check(Action::Failed, on(true, false, true), false);
    check(Action::Expired, on(false, true, false), true);
    check(Action::Delayed, on(true, true, false), false);
    check(Action::Delayed, on(false, false, true), true);
    check(Action::Relayed, on(true, false, false), true);
    assert!(!Action::Failed.is_wanted(None, None));
}
