//! AUTH on both sides with a peer that sends anything: no panic, and nobody gets in without the password.
#![no_main]

use libfuzzer_sys::fuzz_target;
use postrider_auth::{Client, Directory, Exchange, Mechanism, Step, Verifier, decode_response};
use postrider_model::snapshot::Credentials;
use std::sync::LazyLock;

static DIRECTORY: LazyLock<Directory> = LazyLock::new(|| {
    let verifier = Verifier::new("a password that no input has", &[7; 16], 4096).expect("a good password");
    Directory::new([("ada", verifier.to_string().as_str())], [1; 32]).expect("a good verifier")
});

fuzz_target!(|data: &[u8]| {
    let Some((&kind, said)) = data.split_first() else { return };
    let mechanism = [Mechanism::Plain, Mechanism::Login, Mechanism::ScramSha256][usize::from(kind % 3)];
    let mut lines = said.split(|b| *b == b'\n');
    let mut server = Exchange::new(mechanism, [2; 18]);
    let mut step = server.start(lines.next(), &DIRECTORY);
    // A job is not run: it would be PBKDF2 each time.
    while let Step::Challenge(_) = step {
        let Some(line) = lines.next() else { break };
        step = server.step(line, &DIRECTORY);
    }
    assert!(!matches!(step, Step::Success(_)));

    let credentials = Credentials { username: "ada".into(), password: "secret".into() };
    let mut client = Client::new(mechanism, credentials, [3; 18], None);
    let _ = client.initial();
    for line in said.split(|b| *b == b'\n').take(4) {
        let _ = (client.step(line), client.accepted());
    }
    let _ = decode_response(said);
    if let Ok(text) = std::str::from_utf8(said) {
        let _ = text.parse::<Verifier>();
    }
});
