//! What we compose, read back by Python's email package: another reader than ours.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use postrider_message::{Attachment, Parts, Party, compose, lines};
use serde_json::{Value, json};
use std::io::Write;
use std::process::{Command, Stdio};

const READER: &str = r#"
import email, email.policy, json, sys
message = email.message_from_bytes(sys.stdin.buffer.read(), policy=email.policy.default)
addresses = lambda name: [[a.display_name, a.addr_spec] for a in message[name].addresses] if message[name] else []
parts = [p for p in message.walk() if not p.is_multipart()]
json.dump({
    "defects": [str(d) for p in message.walk() for d in p.defects] + [str(d) for h in message.values() for d in h.defects],
    "from": addresses("from"), "to": addresses("to"), "cc": addresses("cc"), "reply_to": addresses("reply-to"),
    "subject": message["subject"], "own": message["x-own"], "names": message.keys(),
    "shape": [p.get_content_type() for p in message.walk()],
    "text": message.get_body(("plain",)).get_content(), "html": message.get_body(("html",)).get_content(),
    "files": [[p.get_filename(), p.get_content_disposition(), p["content-id"], p.get_payload(decode=True).hex()] for p in parts if p.get_filename()],
}, sys.stdout)
"#;

fn read_by_python(content: &[u8]) -> Option<Value> {
    let python =
        Command::new("python3").args(["-c", READER]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let Ok(mut python) = python else {
        println!("SKIPPED: there is no python3");
        return None;
    };
    python.stdin.take().unwrap().write_all(content).unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success());
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

#[test]
fn python_reads_what_was_meant() {
    let parties = |text: &str| Party::parse_list(text).unwrap();
    let subject = format!("Größe: 10 € — {} =?utf-8?q?x?=", "日本語".repeat(40));
    let text = format!("Hällo\n.\n.dot\n{}\ntrailing \nFrom here\n", "word ".repeat(400));
    let html = format!("<p>{}</p>\n<img src=\"cid:logo@x\">\n", "x".repeat(3_000));
    let octets: Vec<u8> = (0..=255).collect();
    let attachments = [
        Attachment {
            file_name: "logo.png".into(),
            content_id: "logo@x".into(),
            content: octets.clone(),
            ..Attachment::default()
        },
        Attachment { file_name: "a \"b\"\\.pdf".into(), content: b"%PDF".to_vec(), ..Attachment::default() },
        Attachment {
            file_name: "Übersicht 日本.txt".into(),
            content: b"\r\n.\r\n".to_vec(),
            ..Attachment::default()
        },
    ];
    let headers = [("X-Own".into(), "ein Wört, two".into())];
    let parts = Parts {
        from: &parties("\"Shop, Ltd. \\\"x\\\"\" <a@example.com>"),
        to: &parties("Jürgen Groß <b@example.net>, c@example.net"),
        cc: &parties("\"=?utf-8?q?x?=\" <d@example.net>"),
        reply_to: &parties("help@example.com"),
        subject: &subject,
        text: Some(&text),
        html: Some(&html),
        headers: &headers,
        attachments: &attachments,
    };
    let stored = compose(&parts).unwrap().content;
    let Some(read) = read_by_python(&lines::unstuff(&stored)) else { return };
    assert_eq!(read["defects"], json!([]));
    assert_eq!(read["from"], json!([["Shop, Ltd. \"x\"", "a@example.com"]]));
    assert_eq!(read["to"], json!([["Jürgen Groß", "b@example.net"], ["", "c@example.net"]]));
    assert_eq!(read["cc"], json!([["=?utf-8?q?x?=", "d@example.net"]]));
    assert_eq!(read["reply_to"], json!([["", "help@example.com"]]));
    assert_eq!(read["subject"], json!(subject));
    assert_eq!(read["own"], json!("ein Wört, two"));
    assert_eq!(
        read["names"],
        json!(["From", "To", "Cc", "Reply-To", "Subject", "X-Own", "MIME-Version", "Content-Type"])
    );
    assert_eq!(
        read["shape"],
        json!([
            "multipart/mixed",
            "multipart/alternative",
            "text/plain",
            "multipart/related",
            "text/html",
            "image/png",
            "application/pdf",
            "text/plain"
        ])
    );
    // The last line end belongs to the boundary that follows (RFC 2046 §5.1.1).
    let line_feeds = |value: &Value| value.as_str().unwrap().replace("\r\n", "\n") + "\n";
    assert_eq!(line_feeds(&read["text"]), text);
    assert_eq!(line_feeds(&read["html"]), html);
    let hex = |octets: &[u8]| octets.iter().map(|b| format!("{b:02x}")).collect::<String>();
    assert_eq!(
        read["files"],
        json!([
            ["logo.png", "inline", "<logo@x>", hex(&octets)],
            ["a \"b\"\\.pdf", "attachment", null, hex(b"%PDF")],
            ["Übersicht 日本.txt", "attachment", null, hex(b"\r\n.\r\n")],
        ])
    );
}
