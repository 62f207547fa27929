//! AUTH toward a smarthost (RFC 4954).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use postrider_auth::{Client, ClientError, Mechanism, ScramMemory};
use postrider_model::snapshot::Credentials;
use postrider_smtp::client::Mechanisms;

/// One AUTH exchange: `auth`'s mechanism in SMTP's lines.
pub(crate) struct Exchange {
    client: Client,
    /// Where the mechanism begins with a message of ours, for a server that overlooks it in AUTH itself.
    initial: Option<String>,
    answered: bool,
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

/// Shows no secret.
impl std::fmt::Debug for Exchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Exchange({})", self.client.mechanism())
    }
}

impl Exchange {
    /// Chooses the best of the mechanisms offered. Those that show the password are taken only where it may
    /// be shown: under TLS, within the machine, or where the route says `tls = "none"`.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) fn new(
        credentials: &Credentials,
        offered: Mechanisms,
        may_show_password: bool,
        nonce: [u8; 18],
        memory: Option<ScramMemory>,
    ) -> Result<Self, &'static str> {
        let names =
            [("PLAIN", offered.plain), ("LOGIN", offered.login), ("SCRAM-SHA-256", offered.scram_sha_256)];
        let spoken = names.iter().filter(|(_, offered)| *offered).map(|(name, _)| *name);
        let Some(mechanism) = Client::choose(spoken, may_show_password) else {
            return Err(if !offered.any {
                "it offers no AUTH"
            } else if offered.plain || offered.login {
                "its AUTH would show the password in clear (tls = \"none\" on the route permits that)"
            } else {
                "it offers no mechanism that we speak"
            });
        };
        let client = Client::new(mechanism, credentials.clone(), nonce, memory);
        Ok(Exchange { client, initial: None, answered: false })
    }

    /// The AUTH command's mechanism and initial response.
    pub(crate) fn begin(&mut self) -> (&'static str, Option<&str>) {
        let name = match self.client.mechanism() {
            Mechanism::Plain => "PLAIN",
            Mechanism::Login => "LOGIN",
            Mechanism::ScramSha256 => "SCRAM-SHA-256",
        };
        self.initial = self.client.initial().map(|message| STANDARD.encode(message));
        (name, self.initial.as_deref())
    }

    /// Takes a reply.
    pub(crate) fn step(&mut self, code: u16, text: &[u8]) -> Step {
        match code {
            235 if self.client.accepted().is_ok() => Step::Done,
            235 => Step::Failed("it did not prove that it knows the password"),
            334 => self.challenged(text),
            _ => Step::Failed("it refused the credentials"),
        }
    }

    fn challenged(&mut self, text: &[u8]) -> Step {
        let first = !std::mem::replace(&mut self.answered, true);
        if first
            && text.iter().all(|&b| b == b' ' || b == b'=')
            && let Some(initial) = &self.initial
        {
            return Step::Answer(initial.clone());
        }
        // LOGIN's challenges are prompts for people, not always in base64; they carry nothing.
        let challenge = match self.client.mechanism() {
            Mechanism::Login => Vec::new(),
            Mechanism::Plain | Mechanism::ScramSha256 => match STANDARD.decode(text.trim_ascii()) {
                Ok(challenge) => challenge,
                Err(_) => return Step::Failed("its challenge is not base64"),
            },
        };
        match self.client.step(&challenge) {
            Ok(answer) => Step::Answer(STANDARD.encode(answer)),
            Err(ClientError::Malformed) => Step::Failed("its challenge is malformed"),
            Err(ClientError::Iterations) => Step::Failed("it asks for too many iterations"),
            Err(ClientError::Impostor) => Step::Failed("it did not prove that it knows the password"),
        }
    }

    /// What SCRAM spares the next connection.
    pub(crate) fn into_memory(self) -> Option<ScramMemory> {
        self.client.into_memory()
    }
}
