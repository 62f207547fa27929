//! Conversions to seven bits, read back by an independent parser: Python's email package.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use bytes::Bytes;
use postrider_message::{is_seven_bit, lines, to_seven_bit};
use postrider_model::Encoding;
use std::io::Write;
use std::process::{Command, Stdio};

/// Converts a content and has both forms compared; `leaves` is how many parts without parts there are.
fn check(content: &str, leaves: usize) {
    let stuffed = lines::stuff(content.as_bytes()).into_owned();
    let converted = to_seven_bit(&[Bytes::from(stuffed)], Encoding::Stuffed).unwrap();
    assert!(is_seven_bit(&converted.pieces));
    let after = converted.pieces.concat();
    let after = lines::unstuff(&after);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/same_parts.py");
    let child = Command::new("python3")
        .args([script, &content.len().to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let Ok(mut child) = child else {
        eprintln!("SKIPPED: python3 is not installed, so no independent parser compares the conversion");
        return;
    };
    let mut input = child.stdin.take().unwrap();
    input.write_all(content.as_bytes()).unwrap();
    input.write_all(&after).unwrap();
    drop(input);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&after));
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), leaves.to_string());
}

#[test]
fn a_reader_sees_the_same_text() {
    let head =
        "MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n";
    check(&format!("{head}\r\nGrüße\r\n.\r\n  trailing space \r\n{}\r\n", "lang ü ".repeat(50)), 1);
    check(&format!("{head}\r\n用户例子用户例子\r\n"), 1);
    check(&format!("{head}\r\nno line ending ü\r\n"), 1);
}

#[test]
fn a_reader_sees_the_same_parts() {
    let forwarded = "From: x@example.net\r\nMIME-Version: 1.0\r\nContent-Type: multipart/alternative; boundary=\"i n\"\r\n\r\n\
        --i n\r\nContent-Type: text/plain; charset=utf-8\r\n\r\nfür\r\n\r\n--i n  \r\nContent-Type: text/html\r\n\r\n\
        <p>f&uuml;r</p>\r\n--i n--\r\n";
    check(
        &format!(
            "From: a@example.com\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed;\r\n\tboundary=out\r\n\
             Content-Transfer-Encoding: 8bit\r\n\r\nPreamble\r\n--out\r\nContent-Type: image/png;\r\n \
             name=a.png\r\nContent-Disposition: attachment; filename=a.png\r\n\r\n\u{1}\u{80}ÿÿÿÿ\r\n--out\r\n\
             Content-Type: message/rfc822\r\n\r\n{forwarded}\r\n--out\r\nContent-Transfer-Encoding: base64\r\n\r\n\
             SGFsbG8=\r\n--out--\r\nEpilogue\r\n"
        ),
        4,
    );
}
