#![no_main]
//! Parts of a message as somebody may send them: refused, or a message of exactly the fields asked for.

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use postrider_message::{Attachment, FieldKind, HeaderEnd, HeaderScan, Parts, Party, compose, plain_text};

fuzz_target!(|data: &str| {
    let mut texts = data.split('|');
    let mut next = || texts.next().unwrap_or("");
    let from = Party::parse_list(next()).unwrap_or_default();
    let to = Party::parse_list(next()).unwrap_or_default();
    let (subject, text, html) = (next(), next(), next());
    let headers: [(Box<str>, Box<str>); 1] = [(next().into(), next().into())];
    let attachments = [Attachment {
        file_name: next().into(),
        content_type: next().into(),
        content_id: next().into(),
        content: next().into(),
    }];
    let with_file = !attachments[0].file_name.is_empty();
    let parts = Parts {
        from: &from,
        to: &to,
        subject,
        text: Some(text).filter(|text| !text.is_empty()),
        html: Some(html),
        headers: if headers[0].0.is_empty() { &[] } else { &headers },
        attachments: if with_file { &attachments } else { &[] },
        ..Parts::default()
    };
    assert!(plain_text(html).chars().all(|c| c == '\n' || !c.is_control()));
    let Ok(composed) = compose(&parts) else { return };
    let content = composed.content;
    for (at, b) in content.iter().enumerate() {
        assert!(*b != b'\n' || at > 0 && content[at - 1] == b'\r');
        assert!(*b != b'\r' || content.get(at + 1) == Some(&b'\n'));
        assert!(*b != 0);
    }
    assert!(content.ends_with(b"\r\n") && !content.windows(5).any(|five| five == b"\r\n.\r\n"));
    let pieces = [Bytes::from(content)];
    let header = HeaderScan::whole(&pieces);
    assert_eq!(header.end, HeaderEnd::EmptyLine);
    assert!(!header.has(FieldKind::Bcc) && !header.bare_cr && !header.bare_lf && !header.nul);
    let expected: Vec<_> = from.iter().map(|party| party.mailbox.clone()).collect();
    if expected.iter().all(|mailbox| !mailbox.local().contains("=?")) && expected.len() <= 64 {
        assert_eq!(header.authors(&pieces).expect("who it is from is certain").from.to_vec(), expected);
    }
});
