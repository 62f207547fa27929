//! AUTH toward a smarthost (RFC 4954).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use postrider_model::snapshot::Credentials;
use postrider_smtp::client::Mechanisms;

/// One AUTH exchange.
pub(crate) struct Exchange {
    credentials: Credentials,
    mechanism: Mechanism,
    answers: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mechanism {
    Plain,
    Login,
}

/// What to do after a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// We are in.
    Done,
    /// Send this line.
    Answer(String),
    /// We are not in.
    Failed(&'static str),
}

impl std::fmt::Debug for Exchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Exchange({:?})", self.mechanism)
    }
}

impl Exchange {
    /// Chooses the best of the mechanisms offered. Those that show the password are taken only where it may
    /// be shown: under TLS, or where the route says `tls = "none"`.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) fn new(
        credentials: &Credentials,
        offered: Mechanisms,
        may_show_password: bool,
        _nonce: [u8; 18],
    ) -> Result<Self, &'static str> {
        let mechanism = match offered {
            Mechanisms { any: false, .. } => return Err("it offers no AUTH"),
            _ if !may_show_password => return Err("its AUTH would show the password in clear"),
            Mechanisms { plain: true, .. } => Mechanism::Plain,
            Mechanisms { login: true, .. } => Mechanism::Login,
            _ => return Err("it offers no mechanism that we speak"),
        };
        Ok(Exchange { credentials: credentials.clone(), mechanism, answers: 0 })
    }

    /// The AUTH command's mechanism and initial response.
    pub(crate) fn begin(&mut self) -> (&'static str, Option<String>) {
        match self.mechanism {
            Mechanism::Plain => ("PLAIN", Some(self.plain())),
            Mechanism::Login => ("LOGIN", None),
        }
    }

    /// Takes a reply.
    pub(crate) fn step(&mut self, code: u16, _text: &[u8]) -> Step {
        match code {
            235 => return Step::Done,
            334 => {}
            _ => return Step::Failed("the credentials were refused"),
        }
        self.answers += 1;
        match (self.mechanism, self.answers) {
            // A server that overlooks the initial response asks for it.
            (Mechanism::Plain, 1) => Step::Answer(self.plain()),
            (Mechanism::Login, 1) => Step::Answer(STANDARD.encode(self.credentials.username.as_bytes())),
            (Mechanism::Login, 2) => Step::Answer(STANDARD.encode(self.credentials.password.as_bytes())),
            _ => Step::Failed("the server asks for more than the mechanism has"),
        }
    }

    fn plain(&self) -> String {
        STANDARD.encode(format!("\0{}\0{}", self.credentials.username, self.credentials.password))
    }
}
