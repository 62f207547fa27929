//! Who a client is, and what that lets it do (design P7).

use crate::session::SessionContext;
use postrider_message::{AuthorError, Authors};
use postrider_model::control::{Application, Control, Denied, Environment, Gate, Login, Writer};
use postrider_model::snapshot::{Account, AddressPattern, Legacy, Listener, listed};
use postrider_model::{EnhancedCode, Envelope, Mailbox, RecipientParams, Reply, Snapshot, Timestamp};
use postrider_smtp::command::Mail;
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
    /// An account of the configuration file, by AUTH.
    Account(Arc<Account>),
    /// An application, by AUTH with one of its credentials.
    Application(Arc<Login>),
    /// An application, by one of its API keys.
    Key {
        /// Which.
        application: Arc<Application>,
        /// Its id as text, for records.
        account: Box<str>,
        /// What the key was made for.
        environment: Environment,
    },
    /// One of a legacy listener's clients, by its address.
    Legacy(Arc<Listener>),
    /// Anyone on a sandbox listener: may send as anyone, and all of it is captured.
    Sandbox(Box<str>),
}

/// A recipient that is taken.
#[derive(Debug)]
pub(crate) enum Admitted {
    /// As the client named it.
    Itself(RecipientParams),
    /// The message goes to this address instead, once for all its recipients.
    Redirected {
        /// Whom the client named.
        from: Mailbox,
        /// Who gets it.
        to: RecipientParams,
    },
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

    /// Of a name whose password was shown, or that a trusted proxy vouches for.
    pub(crate) fn by_name(context: &SessionContext, name: &str) -> Option<Self> {
        if let Some(account) = context.snapshot.account(name)
            && !context.listener.sandbox
        {
            return Some(Identity::Account(Arc::clone(account)));
        }
        context.control.login(name).map(|login| Identity::Application(Arc::clone(login)))
    }

    /// Of an API key.
    pub(crate) fn of_key(application: Arc<Application>, environment: Environment) -> Self {
        let account = application.id.to_string().into();
        Identity::Key { application, account, environment }
    }

    fn application(&self) -> Option<&Application> {
        match self {
            Identity::Application(login) => Some(&login.application),
            Identity::Key { application, .. } => Some(application),
            Identity::Nobody | Identity::Account(_) | Identity::Legacy(_) | Identity::Sandbox(_) => None,
        }
    }

    /// The name for the record: of an application its id, which outlives its name.
    pub(crate) fn name(&self) -> &str {
        match self {
            Identity::Nobody => "",
            Identity::Account(account) => &account.name,
            Identity::Application(login) => &login.account,
            Identity::Key { account, .. } => account,
            Identity::Legacy(listener) => &listener.name,
            Identity::Sandbox(name) => name,
        }
    }

    fn patterns(&self) -> &[AddressPattern] {
        match self {
            Identity::Nobody => &[],
            Identity::Account(account) => &account.from,
            Identity::Application(login) => &login.application.settings.from,
            Identity::Key { application, .. } => &application.settings.from,
            Identity::Legacy(listener) => legacy(listener).map_or(&[], |legacy| &legacy.from),
            Identity::Sandbox(_) => &[AddressPattern::Any],
        }
    }

    /// It may send as anyone.
    pub(crate) fn is_anyone(&self) -> bool {
        self.patterns().contains(&AddressPattern::Any)
    }

    /// May it send, now and with this reverse-path? The null one is judged by the header too.
    pub(crate) fn allows_mail(&self, now: Timestamp, mail: &Mail) -> Result<(), Reply> {
        let reverse_path = mail.envelope.reverse_path.as_ref();
        if let Identity::Application(login) = self {
            if !login.is_valid(now) {
                let text = format!("The credential {} is not valid any more", login.credential.username);
                return Err(Reply::ours(550, NOT_ALLOWED, &text));
            }
            let application = &login.application;
            application.may_send(now).map_err(|denied| denial(&denied))?;
            application.may_send_as(Writer::Envelope, reverse_path).map_err(|denied| denial(&denied))?;
            return self.allows_size(mail.size_bytes.unwrap_or(0));
        }
        match reverse_path {
            Some(mailbox) if !self.allows(mailbox) => {
                Err(self.refusal(&format!("with the envelope sender {mailbox}")))
            }
            _ => Ok(()),
        }
    }

    /// May it hand in a message, now, with this envelope and of this size?
    pub(crate) fn allows_submission(
        &self,
        now: Timestamp,
        envelope: &Envelope,
        size_bytes: u64,
    ) -> Result<(), Reply> {
        if let Some(application) = self.application() {
            application.may_send(now).map_err(|denied| denial(&denied))?;
            let reverse_path = envelope.reverse_path.as_ref();
            application.may_send_as(Writer::Envelope, reverse_path).map_err(|denied| denial(&denied))?;
        }
        self.allows_size(size_bytes)
    }

    /// May it send a message that has so many octets already?
    pub(crate) fn allows_size(&self, size_bytes: u64) -> Result<(), Reply> {
        match self.application() {
            Some(application) => application.may_send_size(size_bytes).map_err(|denied| denial(&denied)),
            None => Ok(()),
        }
    }

    /// May a message say that it is from these? Not asked of those who may send as anyone.
    pub(crate) fn allows_authors(&self, authors: Result<Authors, AuthorError>) -> Result<(), Reply> {
        let authors = authors.map_err(|error| {
            let text = format!("It must be certain who the message is from, but {error}");
            Reply::ours(550, NOT_ALLOWED, &text)
        })?;
        if let Some(application) = self.application() {
            let fields = authors.from.iter().map(|mailbox| (Writer::From, mailbox));
            for (writer, mailbox) in
                fields.chain(authors.sender.iter().map(|mailbox| (Writer::Sender, mailbox)))
            {
                application.may_send_as(writer, Some(mailbox)).map_err(|denied| denial(&denied))?;
            }
            return Ok(());
        }
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

    /// May it send to this recipient, and what becomes of that?
    pub(crate) fn admit(
        &self,
        control: &Control,
        snapshot: &Snapshot,
        reverse_path: Option<&Mailbox>,
        recipient: RecipientParams,
    ) -> Result<Admitted, Reply> {
        let captured = |recipient| Ok(Admitted::Itself(RecipientParams { captured: true, ..recipient }));
        let gate = match self {
            Identity::Sandbox(_) => Gate::Captured,
            Identity::Application(login) => {
                control.gate(&login.application, Environment::Live, &recipient.mailbox)
            }
            Identity::Key { application, environment, .. } => {
                control.gate(application, *environment, &recipient.mailbox)
            }
            Identity::Nobody | Identity::Account(_) | Identity::Legacy(_) => Gate::Open,
        };
        let to = match gate {
            Gate::Captured => return captured(recipient),
            // Whoever redirects wants nothing refused: without a route there, it is captured.
            Gate::Redirected(to) if snapshot.route(to.domain(), reverse_path).is_none() => {
                return captured(recipient);
            }
            Gate::Redirected(to) => {
                let to = RecipientParams { notify: recipient.notify, ..to.clone().into() };
                return Ok(Admitted::Redirected { from: recipient.mailbox, to });
            }
            Gate::Open => recipient,
        };
        let domain = to.mailbox.domain();
        if snapshot.route(domain, reverse_path).is_none() {
            let text = format!("Relay refused: no route leads to {domain}");
            return Err(Reply::ours(550, NOT_ALLOWED, &text));
        }
        Ok(Admitted::Itself(to))
    }

    fn allows(&self, mailbox: &Mailbox) -> bool {
        self.patterns().iter().any(|pattern| pattern.matches(mailbox))
    }

    fn refusal(&self, what: &str) -> Reply {
        let allowed = listed(self.patterns(), LISTED_MAX);
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

/// What an application is told.
fn denial(denied: &Denied) -> Reply {
    let (code, enhanced) = match denied {
        Denied::Size { .. } => (552, EnhancedCode(5, 3, 4)),
        _ => (550, NOT_ALLOWED),
    };
    Reply::ours(code, enhanced, &denied.to_string())
}
