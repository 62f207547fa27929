//! Command lines of a client: no panic, and every refusal is a reply that stays on its line.
#![no_main]

use libfuzzer_sys::fuzz_target;
use postrider_smtp::command::{Rules, parse};

fuzz_target!(|data: &[u8]| {
    let Some((&flags, line)) = data.split_first() else { return };
    let rules = Rules {
        extended: flags & 1 != 0,
        smtputf8: flags & 2 != 0,
        requiretls: flags & 4 != 0,
        lenient: flags & 8 != 0,
        hostname: "relay.example.com",
    };
    if let Err(error) = parse(line, &rules) {
        let mut wire = Vec::new();
        error.reply().write_wire(&mut wire);
        assert!(wire.starts_with(b"5") && wire.ends_with(b"\r\n"));
    }
});
