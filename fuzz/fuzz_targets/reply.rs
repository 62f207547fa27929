//! Replies of a remote server: bounded, printable data whatever it says.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&step, octets)) = data.split_first() else { return };
    postrider_smtp::reply::fuzz_replies(octets, usize::from(step));
});
