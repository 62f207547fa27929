//! Whether a message fits what a server offers, and in which form it goes.

use bytes::Bytes;
use postrider_message::{DowngradeError, SevenBit};
use postrider_model::record::Message;
use postrider_model::{BodyKind, Encoding, EnhancedCode, Mailbox, Reply};
use postrider_smtp::client::{Extensions, MailParams};

/// How protected the session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Protection {
    /// In clear.
    None,
    /// TLS, nobody checked with whom.
    Encrypted,
    /// TLS with the host that we meant.
    Verified,
}

/// The form in which a message goes to this server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fit {
    body: Option<BodyKind>,
    size: bool,
    dsn: bool,
    /// SMTPUTF8 is given with MAIL.
    smtputf8: bool,
    /// By BDAT rather than DATA.
    pub(crate) chunking: bool,
    /// The content must first be turned into seven-bit lines.
    pub(crate) converts: bool,
}

impl Fit {
    /// Compares what a message needs with what is offered.
    ///
    /// # Errors
    /// The reply with which all its recipients fail.
    pub(crate) fn of(message: &Message, offered: &Extensions, protection: Protection) -> Result<Fit, Reply> {
        let envelope = &message.envelope;
        if envelope.requires_tls && !(offered.requires_tls && protection == Protection::Verified) {
            // RFC 8689 §4.2.1: both the extension and a verified certificate.
            return Err(refusal(
                EnhancedCode(5, 7, 30),
                "The message demands REQUIRETLS, and the next hop does not offer it under verified TLS.",
            ));
        }
        if let Some(limit) = offered.size.filter(|&limit| limit > 0 && message.content_size > limit) {
            let text =
                format!("The message has {} octets; the next hop takes {limit}.", message.content_size);
            return Err(refusal(EnhancedCode(5, 3, 4), &text));
        }
        let from_needs = envelope.reverse_path.as_ref().is_some_and(Mailbox::needs_smtputf8);
        let header_needs = envelope.smtputf8 && message.utf8_header;
        if (from_needs || header_needs) && !offered.smtputf8 {
            let text = if from_needs {
                "The sender's address holds other than ASCII, and the next hop does not offer SMTPUTF8."
            } else {
                "The header holds UTF-8, and the next hop does not offer SMTPUTF8."
            };
            return Err(refusal(EnhancedCode(5, 6, 7), text));
        }
        let body = body(message, offered);
        Ok(Fit {
            body: body.unwrap_or_default(),
            converts: body.is_none(),
            size: offered.size.is_some(),
            dsn: offered.dsn,
            smtputf8: offered.smtputf8
                && (envelope.smtputf8
                    || from_needs
                    || message.recipients.iter().any(|recipient| recipient.mailbox.needs_smtputf8())),
            chunking: body == Some(Some(BodyKind::BinaryMime))
                || body.is_some()
                    && offered.chunking
                    && offered.pipelining
                    && message.encoding == Encoding::Plain,
        })
    }

    /// The parameters of MAIL.
    pub(crate) fn params<'a>(&self, message: &'a Message, content_size: u64) -> MailParams<'a> {
        let envelope = &message.envelope;
        MailParams {
            size: self.size.then_some(content_size),
            body: self.body,
            smtputf8: self.smtputf8,
            ret: envelope.ret.filter(|_| self.dsn),
            envid: envelope.envid.as_deref().filter(|_| self.dsn),
            requires_tls: envelope.requires_tls,
        }
    }

    /// NOTIFY and ORCPT are passed on.
    pub(crate) fn passes_dsn(&self) -> bool {
        self.dsn
    }

    /// SMTPUTF8 was given, so that a local part may hold UTF-8.
    pub(crate) fn smtputf8(&self) -> bool {
        self.smtputf8
    }
}

/// The BODY parameter: the weakest that is true (RFC 6152 §3, RFC 3030 §3). `None` if the content cannot go
/// as it is.
fn body(message: &Message, offered: &Extensions) -> Option<Option<BodyKind>> {
    if message.encoding == Encoding::Binary || message.envelope.body == BodyKind::BinaryMime {
        return (offered.chunking && offered.binary_mime).then_some(Some(BodyKind::BinaryMime));
    }
    match (message.eight_bit, offered.eight_bit_mime) {
        (false, _) => Some(None),
        (true, true) => Some(Some(BodyKind::EightBitMime)),
        (true, false) => None,
    }
}

/// RFC 1870 §6.1: a message that is larger than the server takes is not sent to it.
pub(crate) fn check_size(content_size: u64, offered: &Extensions) -> Result<(), Reply> {
    match offered.size {
        Some(limit) if limit > 0 && content_size > limit => {
            let text = format!("The message has {content_size} octets; the next hop takes {limit}.");
            Err(refusal(EnhancedCode(5, 3, 4), &text))
        }
        _ => Ok(()),
    }
}

/// The content in seven-bit lines.
///
/// # Errors
/// The reply with which the message fails.
pub(crate) fn convert(content: &[Bytes], encoding: Encoding) -> Result<SevenBit, Reply> {
    postrider_message::to_seven_bit(content, encoding).map_err(|error| {
        let enhanced = match error {
            // RFC 6531 §3.5 and RFC 6152 §3.
            DowngradeError::Header => EnhancedCode(5, 6, 7),
            DowngradeError::Signed | DowngradeError::Malformed | DowngradeError::TooLarge => {
                EnhancedCode(5, 6, 3)
            }
        };
        let mut text = error.to_string();
        text[..1].make_ascii_uppercase();
        refusal(enhanced, &format!("{text}."))
    })
}

/// A final refusal of ours.
pub(crate) fn refusal(enhanced: EnhancedCode, text: &str) -> Reply {
    Reply::ours(554, enhanced, text)
}
