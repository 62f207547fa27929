//! Header sections: wherever they are cut, the same is found, and it can be asked for anything.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use postrider_message::{FieldKind, HeaderScan, REMOVED_ON_SUBMISSION, assemble};

fuzz_target!(|data: &[u8]| {
    let Some((&step, content)) = data.split_first() else { return };
    let content = Bytes::copy_from_slice(content);
    let whole = [content.clone()];
    let pieces: Vec<Bytes> = content.chunks(usize::from(step).max(1)).map(Bytes::copy_from_slice).collect();
    let header = HeaderScan::whole(&whole);
    let header_of_pieces = HeaderScan::whole(&pieces);
    assert_eq!(format!("{header:?}"), format!("{header_of_pieces:?}"));
    let (authors, authors_of_pieces) = (header.authors(&whole), header_of_pieces.authors(&pieces));
    assert_eq!(format!("{authors:?}"), format!("{authors_of_pieces:?}"));
    let _ = header.text(FieldKind::Subject, &whole, 200);
    let _ = (header.hops(), header.loops());
    let out = assemble(&whole, &header, Bytes::from_static(b"Received: x\r\n"), REMOVED_ON_SUBMISSION);
    assert!(out.pieces.concat().starts_with(b"Received: x\r\n"));
});
