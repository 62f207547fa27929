//! What a reply means to the person who wrote the message, and what that person can do.

use postrider_model::{EnhancedCode, Reply};

/// A meaning and an advice, each a whole sentence.
pub(crate) struct Advice {
    pub(crate) meaning: &'static str,
    pub(crate) action: &'static str,
}

const fn advice(meaning: &'static str, action: &'static str) -> Advice {
    Advice { meaning, action }
}

/// By the enhanced status code (RFC 3463 and IANA's registry); without one, by the reply code.
pub(crate) fn advice_on(reply: &Reply) -> Advice {
    match reply.enhanced() {
        Some(EnhancedCode(_, subject, detail)) if subject != 0 => by_status(subject, detail),
        _ => by_code(reply.code()),
    }
}

fn by_status(subject: u16, detail: u16) -> Advice {
    match (subject, detail) {
        (1, 2) => advice(
            "The part of the address after the @ does not exist, or takes no mail.",
            "Check the address for typing errors, or ask the recipient for the current one.",
        ),
        (1, 7 | 8) => advice(
            "The receiving server did not accept your own address as the sender.",
            "Ask your mail administrator to check your address.",
        ),
        (1, 10) => advice(
            "The recipient's domain says that it takes no mail at all.",
            "Ask the recipient for another address.",
        ),
        (1, _) => advice(
            "The receiving server does not know this address.",
            "Check the address for typing errors, or ask the recipient for the current one.",
        ),
        (2, 1) => advice(
            "The recipient's mailbox is switched off and takes no mail now.",
            "Reach the recipient another way, or ask for another address.",
        ),
        (2, 2) => advice(
            "The recipient's mailbox is full.",
            "Tell the recipient another way, and send the message again when there is room.",
        ),
        (2 | 3, 3 | 4) => advice(
            "The message is larger than the receiving server takes.",
            "Send it with smaller attachments, or share large files another way.",
        ),
        (4, 6) => advice(
            "The message went in circles between servers.",
            "Ask your mail administrator to look at this report: the recipient's domain is set up wrongly.",
        ),
        (4, _) => advice(
            "The receiving server could not be reached, or broke off.",
            "Send the message again later; if it fails again, tell the recipient another way.",
        ),
        (6, 7 | 9 | 10) => advice(
            "The address or the message holds characters that the receiving server cannot handle.",
            "Ask the recipient for an address in plain letters.",
        ),
        (6, _) => advice(
            "The receiving server did not accept the form of the message.",
            "Send it again as plain text, or without its attachments.",
        ),
        (7, 20..=27 | 29 | 30) => advice(
            "The receiving server could not verify that the message comes from your domain.",
            "Ask your mail administrator to look at this report.",
        ),
        (7, _) => advice(
            "The receiving server does not take this message, by its own rules; it may take it for unwanted mail.",
            "Tell the recipient another way, and pass this report to your mail administrator.",
        ),
        _ => by_code(0),
    }
}

fn by_code(code: u16) -> Advice {
    match code {
        550 | 551 | 553 => advice(
            "The receiving server does not know this address, or does not take mail for it.",
            "Check the address for typing errors, or ask the recipient for the current one.",
        ),
        552 | 452 => advice(
            "The recipient's mailbox is full, or the message is too large for it.",
            "Send a smaller message, or try again later.",
        ),
        _ => advice(
            "The receiving server did not accept the message.",
            "Its own words above may say why; if not, pass this report to your mail administrator.",
        ),
    }
}
