//! What a person can do about a refusal.

use postrider_model::{EnhancedCode, Reply};

/// What to do, if that is known.
pub(crate) fn advice(reply: &Reply) -> Option<&'static str> {
    let enhanced = reply.enhanced().map(|EnhancedCode(class, subject, detail)| (class, subject, detail));
    Some(match (reply.code(), enhanced) {
        (530, Some((5, 7, 0))) if reply.text().to_ascii_lowercase().contains("starttls") => {
            "this listener wants TLS first: leave out --tls none"
        }
        (530, _) => "this listener wants a login: --user NAME (the password is asked for)",
        (535, _) => {
            "user name or password are wrong; accounts are the [[account]] tables of the configuration, and \
             a listener marked `sandbox` takes any"
        }
        (538, _) => "a password is taken only under TLS: leave out --tls none",
        (534 | 504, _) => "the server knows none of our ways to log in",
        (550 | 553 | 554, Some((5, 7, 1))) => {
            "this sender may not use this From address or this recipient here: see `from` of the account or \
             of the legacy listener, and the routes"
        }
        (550, Some((5, 1, _))) => "the server does not know the recipient: check the address",
        (552, Some((5, 3, 4))) => "the message is larger than the server takes: see max_message_size",
        (552, _) => "the message is larger than the server takes, or the mailbox is full",
        (452, Some((4, 3, 1))) => "the server's disk is full; it takes mail again when there is space",
        (452, _) => "too many recipients at once, or no space: send fewer, or try again later",
        (451, _) => "the server could not store it: try again, and read its log",
        (421, _) => "the server is busy or stopping: try again in a moment",
        (450, _) => "try again later: the server is not ready for this recipient yet",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_lead_to_advice() {
        let check = |code, enhanced, text, part: &str| {
            let reply = Reply::ours(code, enhanced, text);
            assert!(advice(&reply).is_some_and(|advice| advice.contains(part)), "{reply}");
        };
        check(530, EnhancedCode(5, 7, 0), "Authentication required", "--user");
        check(530, EnhancedCode(5, 7, 0), "Must issue a STARTTLS command first", "--tls");
        check(535, EnhancedCode(5, 7, 8), "no", "[[account]]");
        check(550, EnhancedCode(5, 7, 1), "no", "From address");
        check(452, EnhancedCode(4, 3, 1), "full", "disk");
        assert_eq!(advice(&Reply::ours(599, EnhancedCode(5, 0, 0), "odd")), None);
    }
}
