//! The client's side of AUTH, toward a smarthost.

use crate::exchange::Mechanism;
use crate::scram;
use crate::verifier::{Key, prepared, salted_password};
use aws_lc_rs::constant_time;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use postrider_model::snapshot::Credentials;
use std::num::NonZeroU32;
use thiserror::Error;

/// Rounds of PBKDF2 that a server may ask of us: about 30 ms of a core.
const ITERATIONS_MAX: u32 = 100_000;
const SALT_SIZE_MAX: usize = 1_024;

/// Why we break off: the server is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ClientError {
    /// A challenge that the mechanism does not know, or one too many.
    #[error("the server's authentication challenge is malformed")]
    Malformed,
    /// More rounds of PBKDF2 than we are ready to do.
    #[error("the server asks for too many iterations")]
    Iterations,
    /// The server does not know the password itself (RFC 5802 §5): an impostor.
    #[error("the server did not prove that it knows the password")]
    Impostor,
}

/// What PBKDF2 made of a password for one server's salt: kept with the smarthost, it spares that work on the
/// next connection (RFC 5802 §5.1).
#[derive(Clone)]
pub struct ScramMemory {
    salt: Box<[u8]>,
    iterations: NonZeroU32,
    salted_password: Key,
}

impl std::fmt::Debug for ScramMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ScramMemory")
    }
}

enum State {
    Plain,
    LoginName,
    LoginPassword,
    ScramFirst,
    ScramFinal,
    ScramVerify { signature: Key },
    Done,
}

/// One AUTH command that we give.
pub struct Client {
    mechanism: Mechanism,
    credentials: Credentials,
    nonce: String,
    memory: Option<ScramMemory>,
    state: State,
}

impl Client {
    /// The best mechanism among those a server offers: SCRAM shows the password to nobody. What shows it is
    /// taken only under TLS.
    #[must_use]
    pub fn choose<'a>(offered: impl IntoIterator<Item = &'a str>, under_tls: bool) -> Option<Mechanism> {
        let rank = |mechanism: &Mechanism| match mechanism {
            Mechanism::ScramSha256 => 2,
            Mechanism::Plain => 1,
            Mechanism::Login => 0,
        };
        offered
            .into_iter()
            .filter_map(|name| name.parse().ok())
            .filter(|mechanism| under_tls || *mechanism == Mechanism::ScramSha256)
            .max_by_key(rank)
    }

    /// Begins. The nonce must be random and new; `memory` is that of the last connection, if any.
    #[must_use]
    pub fn new(
        mechanism: Mechanism,
        credentials: Credentials,
        nonce: [u8; 18],
        memory: Option<ScramMemory>,
    ) -> Self {
        let state = match mechanism {
            Mechanism::Plain => State::Plain,
            Mechanism::Login => State::LoginName,
            Mechanism::ScramSha256 => State::ScramFirst,
        };
        Client { mechanism, credentials, nonce: STANDARD.encode(nonce), memory, state }
    }

    /// The mechanism, for the AUTH command.
    #[must_use]
    pub fn mechanism(&self) -> Mechanism {
        self.mechanism
    }

    /// The initial response for the AUTH command, not yet in base64; LOGIN has none.
    pub fn initial(&mut self) -> Option<Vec<u8>> {
        match self.state {
            State::Plain | State::ScramFirst => self.step(b"").ok(),
            _ => None,
        }
    }

    /// The answer to a decoded `334` challenge, not yet in base64.
    ///
    /// # Errors
    /// When the server must not be trusted further: answer `*` and hang up.
    pub fn step(&mut self, challenge: &[u8]) -> Result<Vec<u8>, ClientError> {
        let (username, password) = (&self.credentials.username, &self.credentials.password);
        match std::mem::replace(&mut self.state, State::Done) {
            State::Plain => Ok(format!("\0{username}\0{password}").into_bytes()),
            State::LoginName => {
                self.state = State::LoginPassword;
                Ok(username.as_bytes().to_vec())
            }
            State::LoginPassword => Ok(password.as_bytes().to_vec()),
            State::ScramFirst => {
                self.state = State::ScramFinal;
                Ok(format!("n,,{}", self.first_bare()).into_bytes())
            }
            State::ScramFinal => self.scram_final(challenge),
            State::ScramVerify { signature } => {
                let verified = std::str::from_utf8(challenge)
                    .ok()
                    .and_then(|text| text.strip_prefix("v="))
                    .and_then(|text| STANDARD.decode(text).ok())
                    .is_some_and(|v| constant_time::verify_slices_are_equal(&v, &signature).is_ok());
                if verified { Ok(Vec::new()) } else { Err(ClientError::Impostor) }
            }
            State::Done => Err(ClientError::Malformed),
        }
    }

    /// Takes the server's `235`.
    ///
    /// # Errors
    /// When it comes before the server has proven itself.
    pub fn accepted(&self) -> Result<(), ClientError> {
        match self.state {
            State::Done => Ok(()),
            State::ScramFinal | State::ScramVerify { .. } => Err(ClientError::Impostor),
            _ => Err(ClientError::Malformed),
        }
    }

    /// What to keep for the next connection to the same smarthost.
    #[must_use]
    pub fn into_memory(self) -> Option<ScramMemory> {
        self.memory
    }

    fn first_bare(&self) -> String {
        format!("n={},r={}", scram::encode_name(&self.credentials.username), self.nonce)
    }

    fn scram_final(&mut self, challenge: &[u8]) -> Result<Vec<u8>, ClientError> {
        let server_first = std::str::from_utf8(challenge).map_err(|_| ClientError::Malformed)?;
        let mut attributes = server_first.split(',');
        let mut attribute = |name| attributes.next().and_then(|text| text.strip_prefix(name));
        let (Some(nonce), Some(salt), Some(iterations)) = (attribute("r="), attribute("s="), attribute("i="))
        else {
            return Err(ClientError::Malformed);
        };
        // The server's part must have been added, else an old exchange could be replayed (RFC 5802 §5.1).
        if nonce.len() <= self.nonce.len() || !nonce.starts_with(&self.nonce) {
            return Err(ClientError::Malformed);
        }
        let salt = STANDARD.decode(salt).map_err(|_| ClientError::Malformed)?;
        let iterations: NonZeroU32 = iterations.parse().map_err(|_| ClientError::Malformed)?;
        if salt.is_empty() || salt.len() > SALT_SIZE_MAX {
            return Err(ClientError::Malformed);
        }
        if iterations.get() > ITERATIONS_MAX {
            return Err(ClientError::Iterations);
        }
        let salted = self.salted_password(&salt, iterations);
        let without_proof = format!("c=biws,r={nonce}");
        let auth_message = format!("{},{server_first},{without_proof}", self.first_bare());
        let client_key = scram::client_key(&salted);
        let signature = scram::hmac_sha256(&scram::stored_key(&client_key), auth_message.as_bytes());
        let proof = STANDARD.encode(scram::xor(&client_key, &signature));
        let signature = scram::hmac_sha256(&scram::server_key(&salted), auth_message.as_bytes());
        self.state = State::ScramVerify { signature };
        Ok(format!("{without_proof},p={proof}").into_bytes())
    }

    fn salted_password(&mut self, salt: &[u8], iterations: NonZeroU32) -> Key {
        match &self.memory {
            Some(memory) if *memory.salt == *salt && memory.iterations == iterations => {
                memory.salted_password
            }
            _ => {
                let password = prepared(self.credentials.password.as_bytes());
                let salted_password = salted_password(&password, salt, iterations);
                self.memory = Some(ScramMemory { salt: salt.into(), iterations, salted_password });
                salted_password
            }
        }
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Client({}, {:?})", self.mechanism, self.credentials)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Directory, Exchange, Step, Verifier};

    fn credentials(username: &str, password: &str) -> Credentials {
        Credentials { username: username.into(), password: password.into() }
    }

    #[test]
    fn the_exchange_of_rfc_7677_is_answered_to_the_letter() {
        let mut client = Client::new(Mechanism::ScramSha256, credentials("user", "pencil"), [0; 18], None);
        client.nonce = "rOprNGfwEbeRWgbNEkqO".into();
        assert_eq!(client.initial().unwrap(), b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
        let server_first = b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
            s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
        let last = client.step(server_first).unwrap();
        assert_eq!(
            String::from_utf8(last).unwrap(),
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
             p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
        );
        assert_eq!(client.accepted(), Err(ClientError::Impostor));
        assert_eq!(client.step(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=").unwrap(), b"");
        assert_eq!(client.accepted(), Ok(()));
    }

    #[test]
    fn both_sides_agree_by_every_mechanism() {
        let verifier = Verifier::new("p=,ß", &[5; 16], 4096).unwrap().to_string();
        let directory = Directory::new([("a=,b", verifier.as_str())], [1; 32]).unwrap();
        let mut memory = None;
        for mechanism in [Mechanism::Plain, Mechanism::Login, Mechanism::ScramSha256, Mechanism::ScramSha256]
        {
            let mut client = Client::new(mechanism, credentials("a=,b", "p=,ß"), [4; 18], memory.take());
            let mut server = Exchange::new(mechanism, [3; 18]);
            let mut step = server.start(client.initial().as_deref(), &directory);
            let account = loop {
                step = match step {
                    Step::Challenge(challenge) => server.step(&client.step(&challenge).unwrap(), &directory),
                    Step::Verify(job) => server.verdict(job.verify()),
                    Step::Success(who) => break who.account().to_owned(),
                    Step::Failure(failure) => panic!("{mechanism}: {failure}"),
                };
            };
            assert_eq!(account, "a=,b");
            assert_eq!(client.accepted(), Ok(()));
            memory = client.into_memory();
        }
        assert!(memory.is_some());
    }

    #[test]
    fn an_impostor_is_found_out() {
        let start = || {
            let mut client = Client::new(Mechanism::ScramSha256, credentials("u", "p"), [0; 18], None);
            client.initial().unwrap();
            client
        };
        let nonce = STANDARD.encode([0; 18]);
        let check = |challenge: String, error| {
            assert_eq!(start().step(challenge.as_bytes()), Err(error), "{challenge}");
        };
        check(String::new(), ClientError::Malformed);
        check(format!("r={nonce},s=AAAA,i=4096"), ClientError::Malformed);
        check("r=xyz,s=AAAA,i=4096".into(), ClientError::Malformed);
        check(format!("r={nonce}x,s=,i=4096"), ClientError::Malformed);
        check(format!("r={nonce}x,s=AAAA,i=0"), ClientError::Malformed);
        check(format!("r={nonce}x,s=AAAA,i=2000000000"), ClientError::Iterations);
        let mut client = start();
        client.step(format!("r={nonce}x,s=AAAA,i=4096").as_bytes()).unwrap();
        assert_eq!(client.step(b"v=AAAA"), Err(ClientError::Impostor));
    }

    #[test]
    fn the_password_is_shown_only_under_tls() {
        assert_eq!(Client::choose(["LOGIN", "plain"], true), Some(Mechanism::Plain));
        assert_eq!(Client::choose(["LOGIN", "PLAIN"], false), None);
        assert_eq!(Client::choose(["PLAIN", "SCRAM-SHA-256"], false), Some(Mechanism::ScramSha256));
        assert_eq!(Client::choose(["CRAM-MD5"], true), None);
    }
}
