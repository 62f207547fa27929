//! Records of the log: what can be read is written back so that it reads the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use postrider_model::record::{Attempt, Backoff, Change, Chunk, Control, Deferral, Final, Message};

macro_rules! round_trip {
    ($kind:ty, $head:expr) => {
        if let Ok(record) = <$kind>::decode($head) {
            let mut out = Vec::new();
            record.encode(&mut out);
            assert_eq!(<$kind>::decode(&out).expect("what we write can be read"), record);
        }
    };
}

fuzz_target!(|data: &[u8]| {
    let Some((&kind, head)) = data.split_first() else { return };
    match kind % 8 {
        0 => round_trip!(Message, head),
        1 => round_trip!(Chunk, head),
        2 => round_trip!(Attempt, head),
        3 => round_trip!(Deferral, head),
        4 => round_trip!(Final, head),
        5 => round_trip!(Backoff, head),
        6 => round_trip!(Control, head),
        _ => round_trip!(Change, head),
    }
});
