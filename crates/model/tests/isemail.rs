//! The address parser against the cases of is_email (origin and licence in `tests/data/isemail`).
//!
//! An envelope carries `Mailbox` of RFC 5321 §4.1.2, which is narrower than the address of a header. So the
//! categories of that suite mean here:
//!
//! | category | accepted | why |
//! |---|---|---|
//! | VALID, DNSWARN, RFC5321 | yes | fit for SMTP; whether the domain exists is for DNS to say |
//! | RFC5321_TLDNUMERIC | no | no such domain can exist (RFC 3696 §2), and resolvers may take it for an IP address |
//! | IPV6DEPRECATED | yes | `::` for a single group: RFC 5321 forbids writing it so, but it names one address only |
//! | CFWS, DEPREC | no | comments, folding and obsolete forms exist in headers only |
//! | RFC5322 | no | literals of unknown kind, and what is too long for SMTP |
//! | ERR | no | no address at all |

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use postrider_model::Mailbox;

fn is_accepted(category: &str, diagnosis: &str) -> bool {
    match diagnosis {
        "RFC5321_TLDNUMERIC" => false,
        "RFC5321_IPV6DEPRECATED" => true,
        _ => matches!(category, "VALID_CATEGORY" | "DNSWARN" | "RFC5321"),
    }
}

fn unescape(text: &str) -> String {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&b, after)) = rest.split_first() {
        rest = after;
        match (b, after) {
            (b'\\', [b'\\', after @ ..]) => {
                out.push(b'\\');
                rest = after;
            }
            (b'\\', [b'x', high, low, after @ ..]) => {
                let digits = [*high, *low];
                out.push(u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap());
                rest = after;
            }
            _ => out.push(b),
        }
    }
    String::from_utf8(out).unwrap()
}

#[test]
fn every_case_is_accepted_or_refused_by_its_category() {
    let mut wrong = Vec::new();
    let mut count = 0;
    for line in include_str!("data/isemail/cases.tsv").lines() {
        let mut fields = line.split('\t');
        let (category, diagnosis) = (fields.next().unwrap(), fields.next().unwrap());
        let address = unescape(fields.next().unwrap());
        let found = address.parse::<Mailbox>();
        if found.is_ok() != is_accepted(category, diagnosis) {
            wrong.push(format!("{category} {diagnosis} {address:?}: {found:?}"));
        }
        count += 1;
    }
    assert_eq!(wrong, Vec::<String>::new());
    assert_eq!(count, 443);
}
