use super::*;

fn written(client: &mut Client) -> String {
    let all = client.output().slices().collect::<Vec<_>>().concat();
    client.advance(all.len());
    String::from_utf8(all).unwrap()
}

fn feed(client: &mut Client, input: &str) -> Vec<Result<Event, Violation>> {
    let mut input = input.as_bytes();
    let mut events = Vec::new();
    loop {
        match client.next(&mut input) {
            Ok(Event::NeedInput) => return events,
            Ok(event) => events.push(Ok(event)),
            Err(violation) => {
                events.push(Err(violation));
                return events;
            }
        }
    }
}

fn ready(offers: &str) -> Client {
    let mut client = Client::new(Dialect::Smtp, "us.example");
    assert_eq!(feed(&mut client, "220 mx\r\n"), []);
    assert_eq!(written(&mut client), "EHLO us.example\r\n");
    assert_eq!(feed(&mut client, &format!("250-mx\r\n250 {offers}\r\n")), [Ok(Event::Ready)]);
    client
}

fn mailbox(text: &str) -> Mailbox {
    text.parse().unwrap()
}

#[test]
fn a_pipelined_transaction_is_one_write_and_its_replies_are_told_apart() {
    let mut client = ready("PIPELINING");
    assert!(client.extensions().pipelining);
    client.mail(None, &MailParams::default());
    client.rcpt(&mailbox("a@example.net"), None, None);
    client.rcpt(&mailbox("b@bücher.example"), None, None);
    client.data();
    assert_eq!(client.output().slices().count(), 1);
    assert_eq!(
        written(&mut client),
        "MAIL FROM:<>\r\nRCPT TO:<a@example.net>\r\nRCPT TO:<b@xn--bcher-kva.example>\r\nDATA\r\n"
    );
    let events = feed(&mut client, "250 ok\r\n250 ok\r\n550 no\r\n354 go\r\n");
    let reply = |to, code| Ok(Event::Reply { to, code });
    assert_eq!(
        events,
        [
            reply(Command::Mail, 250),
            reply(Command::Rcpt, 250),
            reply(Command::Rcpt, 550),
            reply(Command::Data, 354)
        ]
    );
    client.content(Bytes::from_static(b"x\r\n"));
    client.end(1);
    assert_eq!(written(&mut client), "x\r\n.\r\n");
    assert_eq!(client.awaited(), Some(Command::End));
}

#[test]
fn parameters_are_written_in_full_and_nothing_can_break_out_of_one() {
    let mut client = ready("DSN");
    let params = MailParams {
        size: Some(18_446_744_073_709_551_615),
        body: Some(BodyKind::EightBitMime),
        smtputf8: true,
        ret: Some(Ret::Headers),
        envid: Some("a+20b"),
        requires_tls: true,
    };
    client.mail(Some(&mailbox("ü@example.com")), &params);
    client.rcpt(
        &mailbox("a@b"),
        Some(Notify::On { success: true, failure: false, delay: true }),
        Some("rfc822;a@b"),
    );
    client.rcpt(&mailbox("a@b"), Some(Notify::Never), Some("rfc822;x\r\nRCPT TO:<evil@b>"));
    client.mail(None, &MailParams { envid: Some("a b"), ..MailParams::default() });
    assert_eq!(
        written(&mut client),
        "MAIL FROM:<ü@example.com> SIZE=18446744073709551615 BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=a+20b REQUIRETLS\r\n\
         RCPT TO:<a@b> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;a@b\r\nRCPT TO:<a@b> NOTIFY=NEVER\r\nMAIL FROM:<>\r\n"
    );
}

#[test]
fn ehlo_falls_back_to_helo_and_lhlo_does_not() {
    let mut client = Client::new(Dialect::Smtp, "us.example");
    feed(&mut client, "220 old\r\n");
    written(&mut client);
    assert_eq!(feed(&mut client, "502 what?\r\n"), []);
    assert_eq!(written(&mut client), "HELO us.example\r\n");
    assert_eq!(feed(&mut client, "250 old\r\n"), [Ok(Event::Ready)]);

    let mut client = Client::new(Dialect::Lmtp, "us.example");
    feed(&mut client, "220 lmtp\r\n");
    assert_eq!(written(&mut client), "LHLO us.example\r\n");
    assert_eq!(feed(&mut client, "500 what?\r\n"), [Ok(Event::Refused(Command::Ehlo))]);
}

#[test]
fn anything_in_clear_after_the_reply_to_starttls_ends_the_session() {
    for (input, expected) in [
        ("220 go\r\n", Ok(Event::StartTls)),
        ("220 go\r\n250-evil\r\n250 AUTH PLAIN\r\n", Err(Violation::Injection)),
        ("220 go\r\n2", Err(Violation::Injection)),
    ] {
        let mut client = ready("STARTTLS");
        client.starttls();
        assert_eq!(feed(&mut client, input), [expected]);
    }
}

#[test]
fn what_was_offered_in_clear_is_forgotten_after_the_handshake() {
    let mut client = ready("STARTTLS");
    client.starttls();
    written(&mut client);
    assert_eq!(feed(&mut client, "220 go\r\n"), [Ok(Event::StartTls)]);
    client.tls_started();
    assert_eq!(written(&mut client), "EHLO us.example\r\n");
    assert_eq!(client.extensions(), &Extensions::default());
}

#[test]
fn under_implicit_tls_the_greeting_comes_first() {
    let mut client = Client::new(Dialect::Smtp, "us.example");
    client.tls_started();
    assert!(client.output().is_empty());
    assert_eq!(feed(&mut client, "220 mx\r\n"), []);
    assert_eq!(written(&mut client), "EHLO us.example\r\n");
}

#[test]
fn replies_that_nothing_asked_for_end_the_session_but_a_421_is_a_farewell() {
    assert_eq!(feed(&mut ready("SIZE"), "250 hello?\r\n"), [Err(Violation::Unasked)]);
    assert_eq!(feed(&mut ready("SIZE"), "421 idle\r\n"), [Ok(Event::Farewell)]);
    let mut client = Client::new(Dialect::Smtp, "us.example");
    assert_eq!(feed(&mut client, "220 mx\r\n250 early\r\n"), [Err(Violation::OutOfTurn)]);
    let mut client = Client::new(Dialect::Smtp, "us.example");
    assert_eq!(feed(&mut client, "554 go away\r\n"), [Ok(Event::Refused(Command::Greeting))]);
}

#[test]
fn secrets_are_not_in_the_transcript() {
    let mut client = ready("AUTH PLAIN");
    client.auth("PLAIN", Some("AHVzZXIAc2VjcmV0"));
    client.auth_line("c2VjcmV0");
    client.auth("PLAIN", Some(""));
    assert_eq!(written(&mut client), "AUTH PLAIN AHVzZXIAc2VjcmV0\r\nc2VjcmV0\r\nAUTH PLAIN =\r\n");
    let text = client.transcript().text();
    assert!(
        text.contains("C: AUTH PLAIN ****\nC: ****\n") && !text.contains("c2Vj") && !text.contains("AHVz")
    );
}

#[test]
fn the_end_of_the_content_has_a_reply_per_recipient_with_lmtp() {
    let mut client = ready("CHUNKING");
    client.bdat(3, false, 2);
    client.bdat(0, true, 2);
    assert_eq!(written(&mut client), "BDAT 3\r\nBDAT 0 LAST\r\n");
    let events = feed(&mut client, "250 a\r\n250 b\r\n452 c\r\n");
    assert_eq!(
        events[1..],
        [Ok(Event::Reply { to: Command::End, code: 250 }), Ok(Event::Reply { to: Command::End, code: 452 })]
    );
}
