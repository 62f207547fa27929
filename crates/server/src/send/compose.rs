//! A message from its parts.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use postrider_model::{Mailbox, Timestamp};
use std::fmt::Write as _;

/// Octets of base64 in a line (RFC 2045 §6.8).
const BASE64_LINE: usize = 76;
/// Octets of a line of plain text; longer ones need an encoding (RFC 5322 §2.1.1).
const TEXT_LINE_MAX: usize = 998;

/// What a person gave.
#[derive(Debug)]
pub(crate) struct Draft<'a> {
    pub(crate) from: &'a Mailbox,
    pub(crate) to: &'a [Mailbox],
    pub(crate) subject: &'a str,
    pub(crate) body: &'a str,
    /// `Name: value`
    pub(crate) headers: &'a [String],
    /// File names and contents.
    pub(crate) attachments: &'a [(String, Vec<u8>)],
    pub(crate) now: Timestamp,
    /// Makes Message-ID and boundary unique.
    pub(crate) unique: &'a str,
}

impl Draft<'_> {
    /// The message, its lines ended by CRLF. A header field that the person gave replaces ours.
    pub(crate) fn compose(&self) -> Vec<u8> {
        let given = |name: &str| {
            self.headers.iter().any(|header| {
                header.split(':').next().is_some_and(|given| given.trim().eq_ignore_ascii_case(name))
            })
        };
        let mut out = String::new();
        let mut field = |name: &str, value: &str| {
            if !given(name) {
                let _ = write!(out, "{name}: {value}\r\n");
            }
        };
        let to: Vec<_> = self.to.iter().map(Mailbox::as_str).collect();
        field("Date", &self.now.rfc5322());
        field("From", self.from.as_str());
        field("To", &to.join(",\r\n "));
        field("Subject", &encoded_word(self.subject));
        field("Message-ID", &format!("<{}@{}>", self.unique, self.from.domain()));
        field("MIME-Version", "1.0");
        for header in self.headers {
            let _ = write!(out, "{}\r\n", header.replace(['\r', '\n'], " "));
        }
        if self.attachments.is_empty() {
            self.text_part(&mut out);
        } else {
            self.parts(&mut out);
        }
        out.into_bytes()
    }

    fn parts(&self, out: &mut String) {
        let boundary = format!("=_{}", self.unique);
        let _ = write!(out, "Content-Type: multipart/mixed; boundary=\"{boundary}\"\r\n\r\n--{boundary}\r\n");
        self.text_part(out);
        for (name, content) in self.attachments {
            let name: String = name
                .chars()
                .map(|c| if c.is_ascii_graphic() && c != '"' && c != '\\' { c } else { '_' })
                .collect();
            let _ = write!(
                out,
                "--{boundary}\r\nContent-Type: application/octet-stream\r\n\
                 Content-Disposition: attachment; filename=\"{name}\"\r\n\
                 Content-Transfer-Encoding: base64\r\n\r\n"
            );
            base64_lines(content, out);
        }
        let _ = write!(out, "--{boundary}--\r\n");
    }

    fn text_part(&self, out: &mut String) {
        let mut text = String::with_capacity(self.body.len());
        for line in self.body.lines() {
            text.push_str(line);
            text.push_str("\r\n");
        }
        out.push_str("Content-Type: text/plain; charset=utf-8\r\n");
        let short = text.lines().all(|line| line.len() <= TEXT_LINE_MAX);
        if short && text.is_ascii() && !text.contains('\0') {
            out.push_str("\r\n");
            out.push_str(&text);
        } else {
            out.push_str("Content-Transfer-Encoding: base64\r\n\r\n");
            base64_lines(text.as_bytes(), out);
        }
    }
}

fn base64_lines(content: &[u8], out: &mut String) {
    // 57 octets make 76 characters.
    for chunk in content.chunks(BASE64_LINE / 4 * 3) {
        STANDARD.encode_string(chunk, out);
        out.push_str("\r\n");
    }
}

/// A header value in ASCII (RFC 2047): words of at most 75 characters, cut between characters.
fn encoded_word(text: &str) -> String {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.is_ascii() && text.len() <= TEXT_LINE_MAX - 20 {
        return text;
    }
    let mut words = Vec::new();
    let mut word = String::new();
    for c in text.chars() {
        // 45 octets make 60 characters, and `=?utf-8?B?` and `?=` twelve more.
        if word.len() + c.len_utf8() > 45 {
            words.push(std::mem::take(&mut word));
        }
        word.push(c);
    }
    words.push(word);
    let words: Vec<_> = words.iter().map(|word| format!("=?utf-8?B?{}?=", STANDARD.encode(word))).collect();
    words.join("\r\n ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn composed(headers: &[String], attachments: &[(String, Vec<u8>)], body: &str) -> String {
        let to = ["b@example.net".parse().unwrap()];
        let draft = Draft {
            from: &"a@example.com".parse().unwrap(),
            to: &to,
            subject: "Grüße",
            body,
            headers,
            attachments,
            now: Timestamp::from_secs(0),
            unique: "1",
        };
        String::from_utf8(draft.compose()).unwrap()
    }

    #[test]
    fn a_message_is_ascii_with_crlf() {
        let message = composed(&[], &[], "hello\n.\nworld");
        assert_eq!(
            message,
            "Date: Thu, 01 Jan 1970 00:00:00 +0000\r\nFrom: a@example.com\r\nTo: b@example.net\r\n\
             Subject: =?utf-8?B?R3LDvMOfZQ==?=\r\nMessage-ID: <1@example.com>\r\nMIME-Version: 1.0\r\n\
             Content-Type: text/plain; charset=utf-8\r\n\r\nhello\r\n.\r\nworld\r\n"
        );
    }

    #[test]
    fn a_given_header_replaces_ours_and_cannot_break_out() {
        let message = composed(&["subject: mine".into(), "X-A: b\r\nBcc: c".into()], &[], "x");
        assert!(message.contains("\r\nsubject: mine\r\nX-A: b  Bcc: c\r\n"), "{message}");
        assert_eq!(message.matches("ubject").count(), 1);
    }

    #[test]
    fn what_is_not_ascii_is_encoded() {
        let message = composed(&[], &[("a\"b.bin".into(), vec![0; 100])], "ü");
        assert!(message.is_ascii() && message.lines().all(|line| line.len() <= 78), "{message}");
        assert!(
            message.contains("filename=\"a_b.bin\"") && message.contains("\r\nw7wNCg==\r\n"),
            "{message}"
        );
        assert!(message.ends_with("--=_1--\r\n"), "{message}");
    }

    #[test]
    fn long_subjects_are_cut_between_characters() {
        for word in encoded_word(&"ü".repeat(100)).split("\r\n ") {
            assert!(word.len() <= 75, "{word}");
            let inner = word.strip_prefix("=?utf-8?B?").unwrap().strip_suffix("?=").unwrap();
            assert!(String::from_utf8(STANDARD.decode(inner).unwrap()).is_ok());
        }
    }
}
