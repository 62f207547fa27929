//! A whole session with a client that sends anything: DATA, BDAT, AUTH, STARTTLS. However its octets are
//! cut, it gets the same replies, each a well-formed line.
#![no_main]

use libfuzzer_sys::fuzz_target;
use postrider_model::{EnhancedCode, Reply};
use postrider_smtp::server::{Event, Offer, Server, Tls};

fn offer(flags: u8) -> Offer {
    Offer {
        hostname: "relay.example.com".into(),
        lmtp: flags & 1 != 0,
        tls: if flags & 2 != 0 { Tls::Offered } else { Tls::Unavailable },
        mechanisms: vec!["PLAIN", "LOGIN"],
        auth_in_clear: true,
        xclient: flags & 4 != 0,
        lenient: flags & 8 != 0,
        message_size_max_bytes: 1_000,
        recipients_max: 3,
        messages_max: 5,
        line_size_max_bytes: 512,
        text_line_size_max_bytes: 200,
        junk_commands_max: 20,
        errors_max: 10,
    }
}

/// Everything the client reads and all content it gave, if it sends its octets in pieces of `step` and waits
/// for its replies only where the machine makes it.
fn session(flags: u8, input: &[u8], step: usize) -> (Vec<u8>, Vec<u8>) {
    let mut server = Server::new(offer(flags));
    let (mut replies, mut contents) = (Vec::new(), Vec::new());
    let (mut at, mut end) = (0, step.min(input.len()));
    loop {
        let (taken, event) = server.receive(&input[at..end]);
        at += taken;
        assert!(at <= end);
        match event {
            Event::NeedInput if end == input.len() => break,
            Event::NeedInput => end = (end + step).min(input.len()),
            Event::Closed => break,
            Event::Blocked | Event::Mistake | Event::Hello(_) | Event::Reset | Event::AuthCancelled => {}
            Event::Mail(_) => server.accept_mail(),
            Event::Recipient(params) if params.mailbox.local() == "no" => {
                server.refuse(&Reply::ours(550, EnhancedCode(5, 1, 1), "no"));
            }
            Event::Recipient(_) => server.accept_recipient(),
            Event::Content(piece) => contents.extend_from_slice(&piece),
            Event::ChunkEnd => server.accept_chunk(),
            Event::ContentEnd { .. } => {
                contents.extend_from_slice(b"<end>");
                server.accept_content("1");
            }
            Event::StartTls => break,
            Event::Auth { .. } => server.challenge(b"?"),
            Event::AuthResponse(_) => server.accept_auth(),
            Event::Xclient(_) => server.refuse(&Reply::ours(550, EnhancedCode(5, 7, 0), "no")),
        }
        replies.append(server.output());
    }
    replies.append(server.output());
    (replies, contents)
}

fuzz_target!(|data: &[u8]| {
    let [flags, step, input @ ..] = data else { return };
    let (replies, contents) = session(*flags, input, usize::from(*step).max(1));
    for line in replies.split_inclusive(|octet| *octet == b'\n') {
        let text = line.strip_suffix(b"\r\n").expect("a reply ends in CRLF");
        assert!(text.len() >= 4 && text[..3].iter().all(u8::is_ascii_digit), "{text:?}");
        assert!(matches!(text[3], b' ' | b'-') && !text.iter().any(u8::is_ascii_control), "{text:?}");
    }
    // Early talkers are refused by what has come already: a lenient session only is the same in all cuts.
    if flags & 8 != 0 {
        let (again, same) = session(*flags, input, input.len().max(1));
        assert_eq!((replies, contents), (again, same));
    }
});
