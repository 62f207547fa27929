use super::*;
use proptest::prelude::*;

const RULES: Rules<'static> =
    Rules { extended: true, smtputf8: false, requiretls: false, lenient: false, hostname: "mx.example.net" };

fn command(line: &str) -> Command<'_> {
    parse(line.as_bytes(), &RULES).unwrap_or_else(|error| panic!("{line}: {error}"))
}

fn check_error(line: &str, expected: &str) {
    let reply = parse(line.as_bytes(), &RULES).expect_err(line).reply();
    assert!(reply.to_string().starts_with(expected), "{line}: {reply}");
}

fn mail_of(line: &str) -> Mail {
    match command(line) {
        Command::Mail(mail) => mail,
        other => panic!("{line}: {other:?}"),
    }
}

fn recipient_of(line: &str) -> RecipientParams {
    match command(line) {
        Command::Rcpt(recipient) => recipient,
        other => panic!("{line}: {other:?}"),
    }
}

#[test]
fn verbs_are_read_in_any_case() {
    assert_eq!(command("ehlo Client.Example"), Command::Ehlo("Client.Example"));
    assert_eq!(command("HELO [192.0.2.1]"), Command::Helo("[192.0.2.1]"));
    assert_eq!(command("lhlo x"), Command::Lhlo("x"));
    assert_eq!(command("DaTa "), Command::Data);
    assert_eq!(command("RSET"), Command::Rset);
    assert_eq!(command("NOOP what ever"), Command::Noop);
    assert_eq!(command("HELP MAIL"), Command::Help);
    assert_eq!(command("VRFY ada"), Command::Vrfy);
    assert_eq!(command("quit"), Command::Quit);
    assert_eq!(command("starttls"), Command::StartTls);
    assert_eq!(command("BDAT 86 LAST"), Command::Bdat { size_bytes: 86, last: true });
    assert_eq!(command("bdat 0"), Command::Bdat { size_bytes: 0, last: false });
    assert_eq!(command("AUTH PLAIN ="), Command::Auth { mechanism: "PLAIN", initial: Some("=") });
    assert_eq!(command("auth login"), Command::Auth { mechanism: "login", initial: None });
}

#[test]
fn mail_takes_every_parameter_once() {
    let mail =
        mail_of("MAIL FROM:<a@example.com> SIZE=1000 BODY=8BITMIME SMTPUTF8 RET=hdrs ENVID=QQ+2B1 AUTH=<>");
    assert_eq!(mail.size_bytes, Some(1000));
    assert_eq!(mail.envelope.body, BodyKind::EightBitMime);
    assert_eq!(mail.envelope.ret, Some(Ret::Headers));
    assert_eq!(mail.envelope.envid.as_deref(), Some("QQ+2B1"));
    assert!(mail.envelope.smtputf8);
    assert_eq!(mail_of("MAIL FROM:<>").envelope.reverse_path, None);
    assert!(mail_of("mail from: <a@b>  body=BinaryMime").envelope.body == BodyKind::BinaryMime);
    assert!(mail_of("MAIL FROM:<jürgen@bücher.example> SMTPUTF8").envelope.reverse_path.is_some());
    check_error("MAIL FROM:<a@b> SIZE=1 SIZE=1", "501 5.5.4 Parameter SIZE is given twice");
    check_error("MAIL FROM:<a@b> SIZE=", "501 5.5.4 Parameter SIZE");
    check_error("MAIL FROM:<a@b> SIZE=-1", "501 5.5.4 Parameter SIZE");
    check_error("MAIL FROM:<a@b> SIZE=99999999999999999999", "501 5.5.4 Parameter SIZE");
    check_error("MAIL FROM:<a@b> BODY=9BIT", "501 5.5.4 Parameter BODY");
    check_error("MAIL FROM:<a@b> SMTPUTF8=1", "501 5.5.4 Parameter SMTPUTF8");
    check_error("MAIL FROM:<a@b> RET=NONE", "501 5.5.4 Parameter RET");
    check_error("MAIL FROM:<a@b> ENVID=a+2", "501 5.5.4 Parameter ENVID");
    check_error(&format!("MAIL FROM:<a@b> ENVID={}", "a".repeat(101)), "501 5.5.4 Parameter ENVID");
    check_error("MAIL FROM:<a@b> AUTH=", "501 5.5.4 Parameter AUTH");
    check_error("MAIL FROM:<a@b> REQUIRETLS", "555 5.5.4 Parameter REQUIRETLS");
    check_error("MAIL FROM:<a@b> MT-PRIORITY=3", "555 5.5.4 Parameter MT-PRIORITY");
    check_error(&format!("MAIL FROM:<a@b>{}", " X".repeat(3)), "555 5.5.4");
}

#[test]
fn rcpt_takes_the_parameters_of_dsn() {
    let rcpt = recipient_of("RCPT TO:<a@b> NOTIFY=failure,DELAY ORCPT=rfc822;a+2Bx@example.com");
    assert_eq!(rcpt.notify, Some(Notify::On { success: false, failure: true, delay: true }));
    assert_eq!(rcpt.orcpt.as_deref(), Some("rfc822;a+2Bx@example.com"));
    assert_eq!(recipient_of("RCPT TO:<a@b> NOTIFY=NEVER").notify, Some(Notify::Never));
    check_error("RCPT TO:<a@b> NOTIFY=NEVER,DELAY", "501 5.5.4 Parameter NOTIFY");
    check_error("RCPT TO:<a@b> NOTIFY=DELAY,DELAY", "501 5.5.4 Parameter NOTIFY");
    check_error("RCPT TO:<a@b> NOTIFY=", "501 5.5.4 Parameter NOTIFY");
    check_error("RCPT TO:<a@b> ORCPT=a@b", "501 5.5.4 Parameter ORCPT");
    check_error("RCPT TO:<a@b> ORCPT=rfc822;a b", "555 5.5.4 Parameter b");
    check_error("RCPT TO:<a@b> ORCPT=utf-8;jürgen@b", "501 5.5.4 Parameter ORCPT");
    check_error(&format!("RCPT TO:<a@b> ORCPT=rfc822;{}", "a".repeat(500)), "501 5.5.4 Parameter ORCPT");
    check_error("RCPT TO:<a@b> SIZE=1", "555 5.5.4 Parameter SIZE");
}

#[test]
fn a_path_that_is_none_says_why() {
    check_error("MAIL", "501 5.5.4 Syntax: MAIL FROM:<address>");
    check_error("MAIL a@b", "501 5.5.4 Syntax: MAIL FROM:<address>");
    check_error("MAIL FROM:a@b", "501 5.5.4 Syntax: MAIL FROM:<address>");
    check_error("MAIL FROM:<a@b", "501 5.5.4 Syntax: MAIL FROM:<address>");
    check_error("MAIL FROM:<a@b>SIZE=1", "501 5.5.4 Syntax: MAIL FROM:<address>");
    check_error("MAIL FROM:<a>", "501 5.1.7 The sender address is wrong: the address has no @");
    check_error("RCPT TO:<>", "501 5.5.4 Syntax: RCPT TO:<address>");
    check_error("RCPT TO:<a b@c>", "501 5.1.3 The recipient address is wrong");
    check_error("RCPT TO:<@relay.example:a@b>", "553 5.1.3 Source routes");
    check_error("MAIL FROM:<@relay.example:a@b>", "553 5.1.3 Source routes");
    check_error("RCPT TO:<jürgen@b>", "553 5.6.7 This address needs the SMTPUTF8");
    check_error("MAIL FROM:<jürgen@b>", "553 5.6.7 This address needs the SMTPUTF8");
}

#[test]
fn a_quoted_local_part_may_hold_brackets() {
    assert_eq!(recipient_of("RCPT TO:<\"a>\\\"b\"@c> NOTIFY=NEVER").mailbox.local(), "\"a>\\\"b\"");
    check_error("RCPT TO:<\"a>@c>", "501 5.5.4 Syntax");
}

#[test]
fn postmaster_needs_no_domain() {
    assert_eq!(recipient_of("RCPT TO:<PostMaster>").mailbox.as_str(), "PostMaster@mx.example.net");
    check_error("RCPT TO:<hostmaster>", "501 5.1.3");
}

#[test]
fn old_devices_may_leave_the_brackets_out() {
    let lenient = Rules { lenient: true, ..RULES };
    let parsed = parse(b"MAIL FROM:a@b SIZE=10", &lenient);
    assert!(matches!(parsed, Ok(Command::Mail(mail)) if mail.size_bytes == Some(10)));
    assert!(parse(b"MAIL FROM:", &lenient).is_err());
}

#[test]
fn parameters_need_ehlo() {
    let plain = Rules { extended: false, ..RULES };
    assert_eq!(parse(b"MAIL FROM:<a@b> SIZE=1", &plain), Err(CommandError::NotExtended));
    assert!(parse(b"MAIL FROM:<a@b>", &plain).is_ok());
}

#[test]
fn what_is_no_command_says_what_is_wrong() {
    check_error("", "500 5.5.1 Unknown command");
    check_error("MIAL FROM:<a@b>", "500 5.5.1 Unknown command MIAL");
    check_error("EHLO", "501 5.5.4 Syntax: EHLO your.host.name");
    check_error("EHLO a b", "501 5.5.4 Syntax: EHLO your.host.name");
    check_error("EHLO evil(comment", "501 5.5.4 Syntax: EHLO your.host.name");
    check_error(&format!("EHLO {}", "a".repeat(256)), "501 5.5.4 Syntax: EHLO your.host.name");
    check_error("DATA now", "501 5.5.4 Syntax: DATA");
    check_error("BDAT", "501 5.5.4 Syntax: BDAT");
    check_error("BDAT x", "501 5.5.4 Syntax: BDAT");
    check_error("BDAT 1 FIRST", "501 5.5.4 Syntax: BDAT");
    check_error("BDAT 18446744073709551616", "501 5.5.4 Syntax: BDAT");
    check_error("AUTH", "501 5.5.4 Syntax: AUTH");
    check_error("AUTH PLAIN a b", "501 5.5.4 Syntax: AUTH");
    check_error("EXPN list", "502 5.5.1 EXPN");
    check_error("NO\0OP", "500 5.5.2");
    assert_eq!(parse(b"NOOP \xff", &RULES), Err(CommandError::NotText));
}

#[test]
fn xclient_is_read_with_its_unknowns() {
    let Command::Xclient(found) =
        command("XCLIENT ADDR=IPv6:2001:db8::1 NAME=[UNAVAILABLE] LOGIN=a+40b HELO=x PROTO=ESMTP")
    else {
        panic!()
    };
    assert_eq!(found.address, Some("2001:db8::1".parse().unwrap()));
    assert_eq!((found.name.as_deref(), found.login.as_deref()), (Some(""), Some("a@b")));
    check_error("XCLIENT", "501 5.5.4 Syntax: XCLIENT");
    check_error("XCLIENT ADDR=nowhere", "501 5.5.4 Syntax: XCLIENT");
    check_error("XCLIENT COLOUR=red", "501 5.5.4 Syntax: XCLIENT");
}

#[test]
fn http_is_known_by_its_verbs() {
    assert!(is_http(b"GET / HTTP/1.1") && is_http(b"POST /x HTTP/1.0"));
    assert!(!is_http(b"GETTING") && !is_http(b"HELP") && !is_http(b"GET"));
}

proptest! {
    #[test]
    fn any_line_is_read_or_refused_without_a_panic(line: Vec<u8>, extended: bool, lenient: bool) {
        let _ = parse(&line, &Rules { extended, lenient, smtputf8: lenient, ..RULES });
    }

    #[test]
    fn nearly_right_lines_never_panic(
        words in proptest::collection::vec(proptest::sample::select(vec![
            "MAIL FROM:", "RCPT TO:", "<", ">", "a@b", "\"", "\\", " ", "SIZE=", "1", "ORCPT=", "rfc822;", "+",
            "BDAT ", "LAST", "ü", "@", ":", ",", "NOTIFY=", "NEVER", "XCLIENT ADDR=", "IPv6:", "ENVID=",
        ]), 0..12),
    ) {
        let _ = parse(words.concat().as_bytes(), &RULES);
    }
}
