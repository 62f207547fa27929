//! Which replies ask us to send less.
//!
//! The table is small on purpose and mostly by code. The few words it knows are those that large receivers
//! use without an enhanced code; the worst that a remote can do with them is to have us send it less.
//!
//! | where | reply | meaning |
//! |---|---|---|
//! | anywhere | 421 | less, and this connection ends (RFC 5321 §3.8) |
//! | greeting, EHLO, MAIL | 450, 451, 452 with x.7.y | less: a policy of rates or connections |
//! | greeting, EHLO, MAIL | 450, 451, 452 with "too many", "rate", "throttl…" | less |
//!
//! RCPT is not in the table: a 450 4.7.1 there is greylisting and means this recipient alone.

use postrider_smtp::reply::RawReply;

/// Texts of rate and connection limits, in lower case. See the module's table.
const LIMIT_WORDS: [&[u8]; 2] = [b"too many", b"throttl"];

/// True if a reply to the connection, EHLO or MAIL asks for fewer connections or a lower rate.
pub(crate) fn asks_for_less(reply: RawReply<'_>) -> bool {
    match reply.code() {
        421 => true,
        450..=452 => {
            reply.enhanced().is_some_and(|code| code.1 == 7)
                || LIMIT_WORDS.iter().any(|words| find(reply.text(), words).is_some())
                || has_word_rate(reply.text())
        }
        _ => false,
    }
}

/// True if a refusal of RCPT, after others were accepted, means that the transaction is full: 452, or the
/// 552 that RFC 5321 §4.5.3.1.10 asks to be taken for one, with 4.5.3 or no enhanced code.
pub(crate) fn is_full(reply: RawReply<'_>) -> bool {
    let bare_or = |class| reply.enhanced().is_none_or(|code| (code.0, code.1, code.2) == (class, 5, 3));
    match reply.code() {
        452 => bare_or(4),
        552 => bare_or(5),
        _ => false,
    }
}

/// `rate` as a word of its own, not as part of `separate`.
fn has_word_rate(text: &[u8]) -> bool {
    let mut from = 0;
    while let Some(at) = find(&text[from..], b"rate") {
        let (start, end) = (from + at, from + at + 4);
        let is_letter = |i: Option<usize>| i.and_then(|i| text.get(i)).is_some_and(u8::is_ascii_alphabetic);
        if !is_letter(start.checked_sub(1)) && !is_letter(Some(end)) {
            return true;
        }
        from = end;
    }
    false
}

fn find(text: &[u8], words: &[u8]) -> Option<usize> {
    text.windows(words.len()).position(|window| window.eq_ignore_ascii_case(words))
}

#[cfg(test)]
mod tests {
    use super::*;
    use postrider_smtp::reply::ReplyParser;

    fn with(line: &str, test: impl FnOnce(RawReply<'_>) -> bool) -> bool {
        let mut parser = ReplyParser::default();
        parser.next(&mut format!("{line}\r\n").as_bytes()).unwrap().unwrap();
        test(parser.reply())
    }

    #[test]
    fn limits_are_told_from_other_trouble() {
        let check = |line, expected| assert_eq!(with(line, asks_for_less), expected, "{line}");
        check("421 4.3.2 shutting down", true);
        check("450 4.7.1 try later", true);
        check("451 4.7.650 deferred", true);
        check("452 Too many connections from your host", true);
        check("450 rate limit exceeded", true);
        check("451 Rate-limited", true);
        check("450 Throttling applied", true);
        check("451 4.3.0 separate and corporate trouble", false);
        check("452 4.3.1 disk full", false);
        check("550 5.7.1 too many", false);
        check("454 4.7.0 TLS not available", false);
    }

    #[test]
    fn a_full_transaction_is_told_from_a_full_mailbox() {
        let check = |line, expected| assert_eq!(with(line, is_full), expected, "{line}");
        check("452 too many recipients", true);
        check("452 4.5.3 too many recipients", true);
        check("552 too many recipients", true);
        check("552 5.5.3 too many recipients", true);
        check("452 4.2.2 mailbox full", false);
        check("452 4.3.1 disk full", false);
        check("552 5.2.2 over quota", false);
        check("450 4.5.3 odd", false);
    }
}
