//! Who a client is, and what that lets it do (design P7).

use postrider_message::{AuthorError, Authors};
use postrider_model::snapshot::{Account, AddressPattern, Legacy, Listener, Target};
use postrider_model::{EnhancedCode, Mailbox, RecipientParams, Reply, Snapshot};
use std::net::IpAddr;
use std::sync::Arc;

/// Patterns that a refusal lists.
const LISTED_MAX: usize = 5;
const NOT_ALLOWED: EnhancedCode = EnhancedCode(5, 7, 1);

/// Who the client has shown to be.
#[derive(Clone, Debug)]
pub(crate) enum Identity {
    /// Nobody: it may look, not send.
    Nobody,
    /// An account, by AUTH.
    Account(Arc<Account>),
    /// One of a legacy listener's clients, by its address.
    Legacy(Arc<Listener>),
    /// Anyone on a sandbox listener: may send as anyone, to the sandbox only.
    Sandbox(Box<str>),
}

impl Identity {
    /// Of a client that has shown nothing but its address.
    pub(crate) fn by_address(listener: &Arc<Listener>, client: IpAddr) -> Self {
        if listener
            .legacy
            .as_ref()
            .is_some_and(|legacy| legacy.clients.iter().any(|net| net.contains(client)))
        {
            return Identity::Legacy(Arc::clone(listener));
        }
        if listener.sandbox { Identity::Sandbox(listener.name.clone()) } else { Identity::Nobody }
    }

    /// The name for the record.
    pub(crate) fn name(&self) -> &str {
        match self {
            Identity::Nobody => "",
            Identity::Account(account) => &account.name,
            Identity::Legacy(listener) => &listener.name,
            Identity::Sandbox(name) => name,
        }
    }

    fn patterns(&self) -> &[AddressPattern] {
        match self {
            Identity::Nobody => &[],
            Identity::Account(account) => &account.from,
            Identity::Legacy(listener) => legacy(listener).map_or(&[], |legacy| &legacy.from),
            Identity::Sandbox(_) => &[AddressPattern::Any],
        }
    }

    /// It may send as anyone.
    pub(crate) fn is_anyone(&self) -> bool {
        self.patterns().contains(&AddressPattern::Any)
    }

    /// May it send with this reverse-path? The null one is judged by the header.
    pub(crate) fn allows_sender(&self, reverse_path: Option<&Mailbox>) -> Result<(), Reply> {
        match reverse_path {
            Some(mailbox) if !self.allows(mailbox) => {
                Err(self.refusal(&format!("with the envelope sender {mailbox}")))
            }
            _ => Ok(()),
        }
    }

    /// May a message say that it is from these? Not asked of those who may send as anyone.
    pub(crate) fn allows_authors(&self, authors: Result<Authors, AuthorError>) -> Result<(), Reply> {
        let authors = authors.map_err(|error| {
            let text = format!("It must be certain who the message is from, but {error}");
            Reply::ours(550, NOT_ALLOWED, &text)
        })?;
        if let Some(other) = authors.from.iter().find(|mailbox| !self.allows(mailbox)) {
            return Err(self.refusal(&format!("with the From header {other}")));
        }
        match authors.sender {
            Some(sender) if !self.allows(&sender) => {
                Err(self.refusal(&format!("with the Sender header {sender}")))
            }
            _ => Ok(()),
        }
    }

    /// May it send to this recipient?
    pub(crate) fn allows_recipient(
        &self,
        snapshot: &Snapshot,
        reverse_path: Option<&Mailbox>,
        recipient: &RecipientParams,
    ) -> Result<(), Reply> {
        let domain = recipient.mailbox.domain();
        match snapshot.route(domain, reverse_path) {
            None => {
                let text = format!("Relay refused: no route leads to {domain}");
                Err(Reply::ours(550, NOT_ALLOWED, &text))
            }
            // Whoever says any name is taken for it here; that must never reach a foreign domain.
            Some((_, route)) if matches!(self, Identity::Sandbox(_)) && route.to != Target::Sandbox => {
                let text = format!(
                    "Relay refused: a sandbox listener takes mail for sandbox routes only, and route {} to \
                     {domain} is none",
                    route.name
                );
                Err(Reply::ours(550, NOT_ALLOWED, &text))
            }
            Some(_) => Ok(()),
        }
    }

    fn allows(&self, mailbox: &Mailbox) -> bool {
        self.patterns().iter().any(|pattern| pattern.matches(mailbox))
    }

    fn refusal(&self, what: &str) -> Reply {
        let patterns = self.patterns();
        let mut allowed = String::new();
        for pattern in patterns.iter().take(LISTED_MAX) {
            if !allowed.is_empty() {
                allowed.push_str(", ");
            }
            allowed.push_str(&describe(pattern));
        }
        if patterns.len() > LISTED_MAX {
            allowed.push_str(", …");
        }
        if allowed.is_empty() {
            allowed.push_str("nobody");
        }
        let text = format!("{} may not send {what}; it may send as {allowed}", self.name());
        Reply::ours(550, NOT_ALLOWED, &text)
    }
}

/// What a client that is nobody is told when it wants to send.
pub(crate) fn refusal_of_nobody(listener: &Listener, client: IpAddr, auth: AuthHint) -> Reply {
    let needs_auth = match auth {
        AuthHint::Now => "say AUTH first",
        AuthHint::AfterTls => "say STARTTLS, then AUTH first",
        AuthHint::Never => {
            let text = match &listener.legacy {
                Some(_) => {
                    format!("Relay refused: {client} is not among the clients of listener {}", listener.name)
                }
                None => format!("Relay refused: nobody can be identified on listener {}", listener.name),
            };
            return Reply::ours(550, NOT_ALLOWED, &text);
        }
    };
    let text = match &listener.legacy {
        Some(_) => format!(
            "Authentication required: {client} is not among the clients of listener {}; {needs_auth}",
            listener.name
        ),
        None => format!("Authentication required: {needs_auth}"),
    };
    Reply::ours(530, EnhancedCode(5, 7, 0), &text)
}

/// How a client can show who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AuthHint {
    Now,
    AfterTls,
    Never,
}

fn legacy(listener: &Listener) -> Option<&Legacy> {
    listener.legacy.as_ref()
}

fn describe(pattern: &AddressPattern) -> String {
    match pattern {
        AddressPattern::Any => "*".to_owned(),
        AddressPattern::Domain(domain) => format!("*@{domain}"),
        AddressPattern::Subdomains(domain) => format!("*@*.{domain}"),
        AddressPattern::Mailbox(mailbox) => mailbox.to_string(),
    }
}
