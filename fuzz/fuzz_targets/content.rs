//! DATA: wherever the network cuts the octets, the same content comes out and ends at the same place.
#![no_main]

use libfuzzer_sys::fuzz_target;
use postrider_smtp::data::{Content, ContentNotes, ContentRules, Step};

/// The content, the octets it took if it ended, and what was noted.
fn read(rules: ContentRules, input: &[u8], step: usize) -> (Vec<u8>, Option<usize>, ContentNotes) {
    let mut content = Content::new(rules);
    let mut out = Vec::new();
    let (mut at, mut end) = (0, step.min(input.len()));
    loop {
        match content.data(&input[at..end]) {
            (consumed, Step::Content(piece)) => {
                assert!(consumed > 0);
                out.extend_from_slice(&piece);
                at += consumed;
            }
            (consumed, Step::End) => return (out, Some(at + consumed), *content.notes()),
            (consumed, Step::NeedInput) => {
                at += consumed;
                if end == input.len() {
                    return (out, None, *content.notes());
                }
                end = (end + step).min(input.len());
            }
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let [flags, step, input @ ..] = data else { return };
    let rules = ContentRules { line_size_max_bytes: 100, normalises: flags & 1 != 0, binary: flags & 2 != 0 };
    let (whole, end, notes) = read(rules, input, input.len().max(1));
    let (pieces, end_in_pieces, notes_in_pieces) = read(rules, input, usize::from(*step).max(1));
    assert_eq!(end, end_in_pieces);
    if let Some(end) = end {
        assert_eq!((whole.as_slice(), notes), (pieces.as_slice(), notes_in_pieces));
        assert!(input[..end].ends_with(b".\r\n"));
        assert!(!whole.windows(5).any(|octets| octets == b"\r\n.\r\n"));
        if rules.normalises {
            assert!(!whole.windows(2).any(|octets| octets[1] == b'\n' && octets[0] != b'\r'));
        }
    }
});
