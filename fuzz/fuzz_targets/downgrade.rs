//! Seven bits: whatever the content, what comes out is seven-bit lines, and converting it again changes nothing.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use postrider_message::{HeaderScan, is_seven_bit, to_seven_bit};
use postrider_model::Encoding;

fuzz_target!(|data: &[u8]| {
    let Some((&form, content)) = data.split_first() else { return };
    let encoding = [Encoding::Stuffed, Encoding::Plain, Encoding::Binary][usize::from(form % 3)];
    let content = [Bytes::copy_from_slice(content)];
    let Ok(converted) = to_seven_bit(&content, encoding) else { return };
    assert!(is_seven_bit(&converted.pieces));
    assert_eq!(HeaderScan::whole(&converted.pieces).size, converted.header_size);
    assert!(!converted.pieces.concat().windows(5).any(|octets| octets == b"\r\n.\r\n"));
    let again = to_seven_bit(&converted.pieces, Encoding::Stuffed).expect("seven bits are taken as they are");
    assert_eq!(again.pieces.concat(), converted.pieces.concat());
});
