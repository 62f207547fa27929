//! Any octets, and what must hold of them: a quick part of what the fuzz targets do for hours.

use postrider_model::{EnhancedCode, Reply};
use postrider_smtp::command::{Rules, parse};
use postrider_smtp::data::{Content, ContentNotes, ContentRules, Step};
use postrider_smtp::server::{Event, Offer, Server, Tls};
use proptest::prelude::*;

/// A command line is read or refused, and a refusal is one that can be sent.
fn command(octets: &[u8]) {
    let (flags, line) = octets.split_first().unwrap_or((&0, &[]));
    let rules = Rules {
        extended: flags & 1 != 0,
        smtputf8: flags & 2 != 0,
        requiretls: flags & 4 != 0,
        lenient: flags & 8 != 0,
        hostname: "mx.example.net",
    };
    if let Err(error) = parse(line, &rules) {
        let mut out = Vec::new();
        error.reply().write_wire(&mut out);
        check_replies(&out);
    }
}

/// Content is read the same whatever its cuts, ends only at CRLF.CRLF, and never holds an end.
fn content(octets: &[u8]) {
    let (flags, input) = octets.split_first().unwrap_or((&0, &[]));
    let rules = ContentRules { line_size_max_bytes: 64, normalises: flags & 1 != 0, binary: false };
    let whole = data(rules, input, usize::MAX);
    assert_eq!(whole, data(rules, input, 1), "octet by octet");
    assert_eq!(whole, data(rules, input, usize::from(flags >> 1) + 1), "in pieces");
    let (content, rest, notes) = whole;
    assert!(!content.windows(5).any(|window| window == b"\r\n.\r\n") && !content.starts_with(b".\r\n"));
    if rules.normalises {
        assert!(!notes.bare_line_end);
        let alone = |pair: &[u8]| (pair[0] == b'\r') != (pair[1] == b'\n');
        assert!(!content.windows(2).any(alone) && content.first() != Some(&b'\n'));
    } else if let Some(rest) = rest {
        let mut again = content;
        again.extend_from_slice(b".\r\n");
        again.extend_from_slice(&rest);
        assert!(again == input, "octets were changed");
    }
}

type Read = (Vec<u8>, Option<Vec<u8>>, ContentNotes);

fn data(rules: ContentRules, input: &[u8], piece_size: usize) -> Read {
    let mut content = Content::new(rules);
    let (mut out, mut buffered, mut ended) = (Vec::new(), Vec::new(), false);
    for piece in input.chunks(piece_size) {
        buffered.extend_from_slice(piece);
        while !ended && !buffered.is_empty() {
            let (consumed, step) = content.data(&buffered);
            match step {
                Step::Content(slice) => out.extend_from_slice(&slice),
                Step::End => ended = true,
                Step::NeedInput => break,
            }
            buffered.drain(..consumed);
        }
    }
    (out, ended.then_some(buffered), *content.notes())
}

/// A whole session: whatever comes, its replies are lines with codes, and it never takes input while it waits
/// for an answer. The first octets choose what is offered and how the input is cut.
fn server(octets: &[u8]) {
    let (&[flags, piece_size], input) = octets.split_first_chunk().unwrap_or((&[0, 0], &[]));
    let offer = Offer {
        hostname: "mx.example.net".into(),
        lmtp: flags & 1 != 0,
        tls: if flags & 2 != 0 { Tls::Offered } else { Tls::Unavailable },
        mechanisms: vec!["SCRAM-SHA-256", "PLAIN", "LOGIN"],
        auth_in_clear: flags & 4 != 0,
        xclient: flags & 8 != 0,
        lenient: flags & 16 != 0,
        message_size_max_bytes: 1 << 10,
        recipients_max: 3,
        messages_max: 3,
        line_size_max_bytes: 512,
        text_line_size_max_bytes: 100,
        junk_commands_max: 50,
        errors_max: 50,
    };
    let mut server = Server::new(offer);
    let mut buffered = Vec::new();
    for piece in input.chunks(usize::from(piece_size).max(1)) {
        buffered.extend_from_slice(piece);
        loop {
            let (consumed, event) = server.receive(&buffered);
            let event_pauses = matches!(event, Event::NeedInput | Event::Blocked | Event::Closed);
            let starts_tls = event == Event::StartTls;
            let question = question(&event);
            buffered.drain(..consumed);
            check_replies(server.output());
            server.output().clear();
            if let Some(question) = question {
                assert_eq!(server.receive(b"NOOP\r\n"), (0, Event::Blocked));
                answer(&mut server, question, flags & 32 != 0);
            }
            if starts_tls {
                server.tls_started();
                buffered.clear();
            }
            if event_pauses {
                break;
            }
        }
        assert!(buffered.len() <= 512 || server.is_closed(), "{} octets are held", buffered.len());
    }
}

#[derive(Clone, Copy)]
enum Asked {
    Mail,
    Recipient,
    Chunk,
    Content,
    Auth,
    Response,
    Xclient,
}

fn question(event: &Event<'_>) -> Option<Asked> {
    Some(match event {
        Event::Mail(_) => Asked::Mail,
        Event::Recipient(_) => Asked::Recipient,
        Event::ChunkEnd => Asked::Chunk,
        Event::ContentEnd { .. } => Asked::Content,
        Event::Auth { .. } => Asked::Auth,
        Event::AuthResponse(_) => Asked::Response,
        Event::Xclient(_) => Asked::Xclient,
        _ => return None,
    })
}

fn answer(server: &mut Server, question: Asked, refuses: bool) {
    let no = Reply::ours(550, EnhancedCode(5, 7, 1), "No");
    match question {
        Asked::Content if refuses => server.refuse_content(&no),
        Asked::Auth if refuses => server.challenge(b"who?"),
        _ if refuses => server.refuse(&no),
        Asked::Mail => server.accept_mail(),
        Asked::Recipient => server.accept_recipient(),
        Asked::Chunk => server.accept_chunk(),
        Asked::Content => server.accept_content("msg_1"),
        Asked::Auth | Asked::Response => server.accept_auth(),
        Asked::Xclient => server.accept_xclient(false),
    }
}

/// Every line is `code`, a space or hyphen, and printable text.
fn check_replies(out: &[u8]) {
    let Some(lines) = out.strip_suffix(b"\r\n") else {
        assert!(out.is_empty(), "a reply without its end");
        return;
    };
    let text = std::str::from_utf8(lines).expect("replies are UTF-8");
    for line in text.split("\r\n") {
        let bytes = line.as_bytes();
        assert!(bytes.len() >= 4 && bytes[..3].iter().all(u8::is_ascii_digit), "{line:?}");
        assert!(matches!(bytes[3], b' ' | b'-') && !line.chars().any(char::is_control), "{line:?}");
        assert!(line.len() <= 2_000, "{line:?}");
    }
}

fn likely() -> impl Strategy<Value = Vec<u8>> {
    let words = [
        "EHLO c\r\n",
        "HELO c\r\n",
        "LHLO c\r\n",
        "MAIL FROM:<a@b>",
        "RCPT TO:<c@d>",
        "\r\n",
        "DATA\r\n",
        "BDAT ",
        "5",
        " LAST",
        "0",
        "\r\n.\r\n",
        ".",
        "\n",
        "\r",
        "RSET\r\n",
        "NOOP\r\n",
        "HELP\r\n",
        "STARTTLS\r\n",
        "AUTH PLAIN\r\n",
        "AUTH LOGIN =\r\n",
        "AAAA\r\n",
        "*\r\n",
        " BODY=BINARYMIME",
        "XCLIENT ADDR=192.0.2.1\r\n",
        "QUIT\r\n",
        "hello",
        "ü",
        " SMTPUTF8",
        "\0",
        "MAIL FROM:<>\r\n",
    ];
    let word = proptest::sample::select(words.to_vec());
    (any::<[u8; 2]>(), proptest::collection::vec(word, 0..40))
        .prop_map(|(flags, words)| [&flags[..], words.concat().as_bytes()].concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]
    #[test]
    fn any_session_holds(octets in likely()) {
        server(&octets);
    }

    #[test]
    fn any_content_holds(octets in likely()) {
        content(&octets);
    }

    #[test]
    fn any_octets_hold(octets: Vec<u8>) {
        server(&octets);
        content(&octets);
        command(&octets);
    }
}
