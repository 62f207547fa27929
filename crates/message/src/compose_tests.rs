use super::*;
use crate::{FieldKind, HeaderEnd, HeaderScan};
use bytes::Bytes;
use proptest::prelude::*;
use proptest::sample::select;

fn parties(text: &str) -> Vec<Party> {
    Party::parse_list(text).unwrap()
}

fn composed(parts: &Parts<'_>) -> String {
    String::from_utf8(compose(parts).unwrap().content).unwrap()
}

#[test]
fn a_small_message_is_as_anyone_would_write_it() {
    let parts = Parts {
        from: &parties("Shop <a@example.com>"),
        to: &parties("b@example.net"),
        subject: "Hello",
        html: Some("<p>Hi</p>"),
        ..Parts::default()
    };
    let expected = "From: Shop <a@example.com>\r\nTo: b@example.net\r\nSubject: Hello\r\nMIME-Version: 1.0\r\n\
        Content-Type: multipart/alternative;\r\n boundary=\"=_part2_\"\r\n\r\n\
        --=_part2_\r\nContent-Type: text/plain; charset=us-ascii\r\nContent-Transfer-Encoding: 7bit\r\n\r\nHi\r\n\
        --=_part2_\r\nContent-Type: text/html; charset=us-ascii\r\nContent-Transfer-Encoding: 7bit\r\n\r\n\
        <p>Hi</p>\r\n--=_part2_--\r\n";
    assert_eq!(composed(&parts), expected);
}

#[test]
fn dots_are_doubled_and_lines_end_in_crlf() {
    let parts =
        Parts { from: &parties("a@example.com"), text: Some(".a\n..\nb\rc\n.\n"), ..Parts::default() };
    assert!(composed(&parts).ends_with("7bit\r\n\r\n..a\r\n...\r\nb\r\nc\r\n..\r\n"));
}

#[test]
fn text_that_holds_a_boundary_is_encoded() {
    let parts = Parts {
        from: &parties("a@example.com"),
        text: Some("x\n--=_part1_--\n"),
        attachments: &[Attachment {
            file_name: "a.txt".into(),
            content: b"b".to_vec(),
            ..Attachment::default()
        }],
        ..Parts::default()
    };
    let content = composed(&parts);
    assert_eq!(content.matches("--=_part1_--").count(), 1);
    assert!(content.contains("--=3D_part1_--"), "{content}");
}

#[test]
fn what_looks_encoded_is_encoded_again() {
    let subject = "=?utf-8?q?a=0D=0ABcc:_x?=";
    let parts = Parts { from: &parties("a@example.com"), subject, text: Some(""), ..Parts::default() };
    let content = composed(&parts);
    let line = content.lines().find_map(|line| line.strip_prefix("Subject: ")).unwrap();
    assert_eq!(crate::decode_words(line, 200), subject);
    assert!(!line.contains("=0D"));
}

#[test]
fn every_violation_is_named() {
    let headers: Vec<(Box<str>, Box<str>)> = vec![
        ("Bcc".into(), "x@example.com".into()),
        ("X:Y".into(), "1".into()),
        ("X-A".into(), "1\u{2028}".into()),
        ("X-B\r\nBcc".into(), "1".into()),
        ("Content-Type".into(), "text/html".into()),
        ("Message-ID".into(), "abc".into()),
        ("X-Long".into(), "x".repeat(1_000).into()),
    ];
    let attachments = [
        Attachment {
            file_name: "a\n".into(),
            content_type: "multipart/mixed".into(),
            ..Attachment::default()
        },
        Attachment { content_id: "<a>".into(), ..Attachment::default() },
    ];
    let parts =
        Parts { subject: "a\u{85}b", headers: &headers, attachments: &attachments, ..Parts::default() };
    let found: Vec<_> =
        compose(&parts).unwrap_err().into_iter().map(|violation| (violation.field, violation.rule)).collect();
    let expected = [
        ("from", Rule::Missing),
        ("subject", Rule::Control),
        ("html", Rule::Missing),
        ("headers.Bcc", Rule::Reserved),
        ("headers.X:Y", Rule::FieldName),
        ("headers.X-A", Rule::Control),
        ("headers.X-B??Bcc", Rule::Control),
        ("headers.Content-Type", Rule::Reserved),
        ("headers.Message-ID", Rule::MessageId),
        ("headers.X-Long", Rule::WordTooLong),
        ("attachments[0].filename", Rule::Control),
        ("attachments[0].content_type", Rule::MediaType),
        ("attachments[1].content_id", Rule::ContentId),
    ];
    assert_eq!(found, expected.map(|(field, rule)| (field.to_owned(), rule)));
}

/// Text as somebody might write it who wants a header field of his own.
fn hostile() -> impl Strategy<Value = String> {
    let pieces = vec![
        "a",
        "Ünïcode",
        " ",
        ",",
        "\"",
        "\\",
        "<",
        ">",
        "@",
        ":",
        ";",
        "=?utf-8?q?",
        "?=",
        "\r",
        "\n",
        "\r\n",
        "\u{85}",
        "\u{2028}",
        "\u{2029}",
        "\0",
        "\t",
        "\u{b}",
        "\u{c}",
        "\u{7f}",
        "\u{9f}",
        "\u{560a}",
        "\u{560d}",
        "\r\nBcc: evil@example.org",
        "\nX-Injected: 1",
        "\r\n\r\nbody",
        "=0D=0A",
        "%0d%0a",
        "loooooooooooooooooong",
    ];
    proptest::collection::vec(select(pieces), 0..24).prop_map(|words| words.concat())
}

fn file() -> impl Strategy<Value = Attachment> {
    (hostile(), hostile(), hostile(), any::<Vec<u8>>()).prop_map(|(name, kind, id, content)| Attachment {
        file_name: name.into(),
        content_type: kind.into(),
        content_id: id.into(),
        content,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if std::env::var_os("POSTRIDER_TEST_LONG").is_some() { 100_000 } else { 1_500 }))]

    /// Each text alone: it is refused exactly if it holds a control, and else stands in one field.
    #[test]
    fn no_text_begins_a_line_of_the_header(
        text in hostile(),
        place in 0usize..8,
    ) {
        let mut from = parties("a@example.com");
        let (mut to, mut cc, mut reply_to) = (parties("b@example.net"), Vec::new(), Vec::new());
        let (mut subject, mut headers, mut attachments) = ("", Vec::new(), Vec::new());
        // Names are set past their constructor, as a mistake in a caller would.
        let named = |text: &str| Party { name: text.into(), mailbox: "c@example.com".parse().unwrap() };
        match place {
            0 => from[0] = named(&text),
            1 => to.push(named(&text)),
            2 => cc.push(named(&text)),
            3 => reply_to.push(named(&text)),
            4 => subject = &text,
            5 => headers.push((Box::from("X-Own"), Box::from(&*text))),
            6 => headers.push((Box::from(&*text), Box::from("value"))),
            _ => attachments.push(Attachment { file_name: text.clone().into(), content: vec![1], ..Attachment::default() }),
        }
        let parts = Parts {
            from: &from, to: &to, cc: &cc, reply_to: &reply_to, subject, headers: &headers,
            attachments: &attachments, text: Some("body"), html: None,
        };
        let forbidden = text.chars().any(crate::party::is_forbidden);
        match compose(&parts) {
            Err(violations) => {
                let control = violations.iter().any(|violation| violation.rule == Rule::Control);
                prop_assert_eq!(control, forbidden, "{:?}", violations);
            }
            Ok(composed) => {
                prop_assert!(!forbidden);
                look_at_the_octets(&composed.content, headers.first().map(|(name, _)| &**name))?;
            }
        }
    }

    /// All at once, bodies too: whatever is accepted is a message of exactly the fields that were asked for.
    #[test]
    fn what_is_composed_is_a_sound_message(
        names in proptest::collection::vec(hostile(), 3),
        subject in hostile(),
        text in proptest::option::of(hostile()),
        html in proptest::option::of(hostile()),
        value in hostile(),
        files in proptest::collection::vec(file(), 0..3),
    ) {
        let party = |name: &str| Party { name: name.into(), mailbox: "jürgen@example.com".parse().unwrap() };
        let list: Vec<Party> = names.iter().map(|name| party(name)).collect();
        let headers = [(Box::from("X-Own"), Box::from(&*value))];
        let parts = Parts {
            from: &list[..1], to: &list, cc: &list[1..], reply_to: &[], subject: &subject,
            text: text.as_deref(), html: html.as_deref(), headers: &headers, attachments: &files,
        };
        if let Ok(composed) = compose(&parts) {
            look_at_the_octets(&composed.content, Some("X-Own"))?;
        }
    }
}

fn look_at_the_octets(content: &[u8], own: Option<&str>) -> Result<(), TestCaseError> {
    // Lines: CRLF only, no controls but in text bodies, short, and no dot alone.
    for (at, b) in content.iter().enumerate() {
        prop_assert!(*b != b'\n' || at > 0 && content[at - 1] == b'\r');
        prop_assert!(*b != b'\r' || content.get(at + 1) == Some(&b'\n'));
        prop_assert!(*b != 0 && (*b >= 0x20 || matches!(*b, b'\r' | b'\n' | b'\t')));
    }
    prop_assert!(content.ends_with(b"\r\n"));
    prop_assert!(content.split(|b| *b == b'\n').all(|line| line.len() <= 998));
    prop_assert!(!content.starts_with(b".") && memmem::find(content, b"\r\n.\r\n").is_none());
    // The header section: no field but those asked for, read by the scan that decides who may send.
    let pieces = [Bytes::copy_from_slice(content)];
    let header = HeaderScan::whole(&pieces);
    prop_assert_eq!(header.end, HeaderEnd::EmptyLine);
    prop_assert!(!header.has(FieldKind::Bcc) && !header.bare_cr && !header.bare_lf && !header.nul);
    let own = own.map(str::to_ascii_lowercase);
    for field in header.fields() {
        let name =
            String::from_utf8_lossy(&content[field.start as usize..field.value as usize - 1]).to_lowercase();
        let known = [
            "from",
            "to",
            "cc",
            "reply-to",
            "subject",
            "mime-version",
            "content-type",
            "content-transfer-encoding",
        ];
        prop_assert!(known.contains(&&*name) || own.as_deref() == Some(&*name), "{}", name);
    }
    prop_assert_eq!(header.authors(&pieces).map(|authors| authors.from.len()), Ok(1));
    Ok(())
}
