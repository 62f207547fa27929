//! What an application may send, and whom it reaches. Every way in asks here.

use super::{Application, Control, DeliveryMode, Environment, InstanceMode};
use crate::{Mailbox, Timestamp};
use std::fmt;

/// Patterns that a refusal lists.
const LISTED_MAX: usize = 5;

/// Whom a message names as its writer, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writer {
    /// The reverse-path.
    Envelope,
    /// A mailbox of the From field.
    From,
    /// The Sender field.
    Sender,
}

impl Writer {
    fn describe(self) -> &'static str {
        match self {
            Writer::Envelope => "the envelope sender",
            Writer::From => "the From header",
            Writer::Sender => "the Sender header",
        }
    }
}

/// Why an application may not send. Prints what was wrong and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denied {
    /// The kill switch was thrown.
    Disabled {
        /// Its name.
        application: Box<str>,
    },
    /// Its time is over.
    Expired {
        /// Its name.
        application: Box<str>,
        /// Since when.
        since: Timestamp,
    },
    /// It may not send as this address.
    From {
        /// Its name.
        application: Box<str>,
        /// Where the address stands.
        writer: Writer,
        /// The address.
        address: Mailbox,
        /// As whom it may send, as text.
        allowed: String,
    },
    /// It may not send with the null reverse-path.
    NullSender {
        /// Its name.
        application: Box<str>,
    },
    /// The message is larger than it may be.
    Size {
        /// Its name.
        application: Box<str>,
        /// Octets.
        max_bytes: u64,
    },
}

impl Denied {
    /// The rule's name, the same for every way in.
    #[must_use]
    pub fn rule(&self) -> &'static str {
        match self {
            Denied::Disabled { .. } => "application.enabled",
            Denied::Expired { .. } => "application.expires_at",
            Denied::From { .. } => "application.from",
            Denied::NullSender { .. } => "application.null_sender",
            Denied::Size { .. } => "application.message_size_max_bytes",
        }
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rule = self.rule();
        match self {
            Denied::Disabled { application } => {
                write!(
                    f,
                    "Application {application} is disabled (rule {rule}); to enable it: postrider app set {application} \
                     --enabled true"
                )
            }
            Denied::Expired { application, since } => write!(
                f,
                "Application {application} expired at {since} (rule {rule}); to set a later time: postrider app set \
                 {application} --expires"
            ),
            Denied::From { application, writer, address, allowed } => write!(
                f,
                "Application {application} may not send with {} {address} (rule {rule}); it may send as \
                 {allowed}. Send as one of these, or allow it: postrider app set {application} --from",
                writer.describe()
            ),
            Denied::NullSender { application } => write!(
                f,
                "Application {application} may not send with the null reverse-path (rule {rule}); give MAIL \
                 FROM an address, or allow it: postrider app set {application} --null-sender"
            ),
            Denied::Size { application, max_bytes } => {
                write!(f, "Application {application} may send messages of {max_bytes} octets (rule {rule})")
            }
        }
    }
}

impl std::error::Error for Denied {}

/// What becomes of a recipient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate<'a> {
    /// Mail for it leaves.
    Open,
    /// Mail for it is captured.
    Captured,
    /// Mail for it goes to this address, together with all others of the message.
    Redirected(&'a Mailbox),
}

impl Application {
    /// May it send now?
    ///
    /// # Errors
    /// It is disabled or has expired.
    pub fn may_send(&self, now: Timestamp) -> Result<(), Denied> {
        let application = || self.settings.name.clone();
        if !self.settings.enabled {
            return Err(Denied::Disabled { application: application() });
        }
        match self.settings.expires_at {
            Some(since) if now >= since => Err(Denied::Expired { application: application(), since }),
            _ => Ok(()),
        }
    }

    /// May it send as this address? The null reverse-path (`None`) needs a permission of its own.
    ///
    /// # Errors
    /// It may not.
    pub fn may_send_as(&self, writer: Writer, address: Option<&Mailbox>) -> Result<(), Denied> {
        let application = || self.settings.name.clone();
        match address {
            None if self.settings.null_sender => Ok(()),
            None => Err(Denied::NullSender { application: application() }),
            Some(address) if self.settings.from.iter().any(|pattern| pattern.matches(address)) => Ok(()),
            Some(address) => Err(Denied::From {
                application: application(),
                writer,
                address: address.clone(),
                allowed: crate::snapshot::listed(&self.settings.from, LISTED_MAX),
            }),
        }
    }

    /// May it send a message of this size?
    ///
    /// # Errors
    /// It may not.
    pub fn may_send_size(&self, size_bytes: u64) -> Result<(), Denied> {
        match self.settings.message_size_max_bytes {
            Some(max_bytes) if size_bytes > max_bytes => {
                Err(Denied::Size { application: self.settings.name.clone(), max_bytes })
            }
            _ => Ok(()),
        }
    }
}

impl Control {
    /// Whether mail of an application for a recipient leaves. `environment` is that of the key with which it
    /// was sent, `Live` where there was none.
    #[must_use]
    pub fn gate<'a>(
        &self,
        application: &'a Application,
        environment: Environment,
        recipient: &Mailbox,
    ) -> Gate<'a> {
        if self.mode == InstanceMode::Sandbox || environment == Environment::Test {
            return Gate::Captured;
        }
        match &application.settings.delivery {
            DeliveryMode::Live => Gate::Open,
            DeliveryMode::Sandbox => Gate::Captured,
            DeliveryMode::Redirect(address) => Gate::Redirected(address),
            DeliveryMode::Only(patterns) if patterns.iter().any(|pattern| pattern.matches(recipient)) => {
                Gate::Open
            }
            DeliveryMode::Only(_) => Gate::Captured,
        }
    }
}
