//! The server's side of AUTH (RFC 4954), without the line protocol around it.

use crate::directory::Directory;
use crate::scram::{self, client_final, client_first};
use crate::verifier::Verifier;
use aws_lc_rs::constant_time;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use thiserror::Error;

/// Octets of a decoded response; RFC 4954 §4 lets lines have 12,288.
pub const RESPONSE_SIZE_MAX: usize = 9_216;

/// The mechanisms that we speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mechanism {
    /// RFC 4616.
    Plain,
    /// draft-murchison-sasl-login: for clients that know nothing else.
    Login,
    /// RFC 5802, RFC 7677; without channel binding.
    ScramSha256,
}

impl Mechanism {
    /// Its name in EHLO.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Mechanism::Plain => "PLAIN",
            Mechanism::Login => "LOGIN",
            Mechanism::ScramSha256 => "SCRAM-SHA-256",
        }
    }
}

impl fmt::Display for Mechanism {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Mechanism {
    type Err = Failure;

    fn from_str(name: &str) -> Result<Self, Failure> {
        [Mechanism::ScramSha256, Mechanism::Plain, Mechanism::Login]
            .into_iter()
            .find(|mechanism| mechanism.name().eq_ignore_ascii_case(name))
            .ok_or(Failure::Mechanism)
    }
}

/// Why nobody was authenticated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Failure {
    /// `504 5.5.4`.
    #[error("unknown authentication mechanism")]
    Mechanism,
    /// `501 5.5.2`: not what the mechanism says, or out of turn.
    #[error("malformed authentication exchange")]
    Malformed,
    /// `535 5.7.8`: no such name or wrong password; nobody is told which.
    #[error("authentication credentials invalid")]
    Credentials,
    /// `535 5.7.8`: a name wants to act as another.
    #[error("not authorised to act as another account")]
    Authorisation,
}

/// The proof that an account's password was shown. Only this room makes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authenticated {
    account: Box<str>,
}

impl Authenticated {
    /// Whose.
    #[must_use]
    pub fn account(&self) -> &str {
        &self.account
    }
}

/// What to do next.
#[must_use]
#[derive(Debug)]
pub enum Step {
    /// Send `334` with this, base64-encoded, and give the answer to [`Exchange::step`].
    Challenge(Vec<u8>),
    /// Run [`Job::verify`], on a thread that may be busy for milliseconds, and give the answer to
    /// [`Exchange::verdict`].
    Verify(Job),
    /// `235`.
    Success(Authenticated),
    /// Refuse; the exchange is over.
    Failure(Failure),
}

/// Whether a password is the right one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is.
    Accepted,
    /// It is not, or the name does not exist.
    Refused,
}

/// A password to be checked. The work is PBKDF2: milliseconds.
pub struct Job {
    pub(crate) name: Box<str>,
    pub(crate) password: Box<[u8]>,
    pub(crate) verifier: Arc<Verifier>,
    exists: bool,
}

impl Job {
    pub(crate) fn new(name: &str, password: &[u8], verifier: Arc<Verifier>, exists: bool) -> Self {
        Job { name: name.into(), password: password.into(), verifier, exists }
    }

    /// Does the work. Takes as long whether or not the name exists.
    #[must_use]
    pub fn verify(&self) -> Verdict {
        let accepted = self.verifier.accepts(&self.password);
        if accepted && self.exists { Verdict::Accepted } else { Verdict::Refused }
    }

    /// The name, for the log.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Job({}, …)", self.name)
    }
}

enum State {
    Plain,
    LoginName,
    LoginPassword {
        name: Box<str>,
    },
    ScramFirst,
    ScramFinal(Box<ScramFinal>),
    /// The client has our signature and answers with nothing.
    ScramAcknowledge {
        account: Box<str>,
    },
    Verifying {
        account: Box<str>,
    },
    Ended,
}

struct ScramFinal {
    account: Box<str>,
    verifier: Arc<Verifier>,
    exists: bool,
    gs2_header: Box<str>,
    nonce: Box<str>,
    /// `client-first-bare,server-first,` of RFC 5802 §3.
    auth_message: String,
}

/// One AUTH command, from its mechanism to its verdict.
pub struct Exchange {
    state: State,
    nonce: [u8; 18],
}

impl Exchange {
    /// For a mechanism that was offered. The nonce must be random and new.
    #[must_use]
    pub fn new(mechanism: Mechanism, nonce: [u8; 18]) -> Self {
        let state = match mechanism {
            Mechanism::Plain => State::Plain,
            Mechanism::Login => State::LoginName,
            Mechanism::ScramSha256 => State::ScramFirst,
        };
        Exchange { state, nonce }
    }

    /// Begins, with the decoded initial response if the AUTH command had one.
    pub fn start(&mut self, initial: Option<&[u8]>, directory: &Directory) -> Step {
        match (initial, &self.state) {
            (Some(response), _) => self.step(response, directory),
            (None, State::LoginName) => Step::Challenge(b"Username:".to_vec()),
            (None, _) => Step::Challenge(Vec::new()),
        }
    }

    /// Takes the decoded answer to the last challenge.
    pub fn step(&mut self, response: &[u8], directory: &Directory) -> Step {
        let state = std::mem::replace(&mut self.state, State::Ended);
        if response.len() > RESPONSE_SIZE_MAX {
            return Step::Failure(Failure::Malformed);
        }
        match self.advance(state, response, directory) {
            Ok(step) => step,
            Err(failure) => Step::Failure(failure),
        }
    }

    /// Takes the answer to [`Step::Verify`].
    pub fn verdict(&mut self, verdict: Verdict) -> Step {
        match (std::mem::replace(&mut self.state, State::Ended), verdict) {
            (State::Verifying { account }, Verdict::Accepted) => Step::Success(Authenticated { account }),
            (State::Verifying { .. }, Verdict::Refused) => Step::Failure(Failure::Credentials),
            _ => Step::Failure(Failure::Malformed),
        }
    }

    fn advance(&mut self, state: State, response: &[u8], directory: &Directory) -> Result<Step, Failure> {
        match state {
            State::Plain => {
                let mut parts = response.split(|b| *b == 0);
                let (Some(authzid), Some(name), Some(password), None) =
                    (parts.next(), parts.next(), parts.next(), parts.next())
                else {
                    return Err(Failure::Malformed);
                };
                let name = account_name(name)?;
                if !authzid.is_empty() && account_name(authzid)? != name {
                    return Err(Failure::Authorisation);
                }
                self.check(name, password, directory)
            }
            State::LoginName => {
                self.state = State::LoginPassword { name: account_name(response)? };
                Ok(Step::Challenge(b"Password:".to_vec()))
            }
            State::LoginPassword { name } => self.check(name, response, directory),
            State::ScramFirst => self.scram_first(response, directory),
            State::ScramFinal(last) => self.scram_final(*last, response),
            State::ScramAcknowledge { account } if response.is_empty() => {
                Ok(Step::Success(Authenticated { account }))
            }
            State::ScramAcknowledge { .. } | State::Verifying { .. } | State::Ended => {
                Err(Failure::Malformed)
            }
        }
    }

    fn check(&mut self, name: Box<str>, password: &[u8], directory: &Directory) -> Result<Step, Failure> {
        if password.contains(&0) {
            return Err(Failure::Malformed);
        }
        if directory.admits(&name) {
            return Ok(Step::Success(Authenticated { account: name }));
        }
        let (verifier, exists) = directory.verifier(&name);
        let job = Job::new(&name, password, verifier, exists);
        self.state = State::Verifying { account: name };
        Ok(Step::Verify(job))
    }

    fn scram_first(&mut self, response: &[u8], directory: &Directory) -> Result<Step, Failure> {
        let message = std::str::from_utf8(response).map_err(|_| Failure::Malformed)?;
        let first = client_first(message).ok_or(Failure::Malformed)?;
        let account = account_name(first.name.as_bytes())?;
        if !first.authzid.is_empty() && account_name(first.authzid.as_bytes())? != account {
            return Err(Failure::Authorisation);
        }
        let (verifier, exists) = directory.verifier(&account);
        let nonce = format!("{}{}", first.nonce, STANDARD.encode(self.nonce));
        let challenge = format!("r={nonce},s={},i={}", STANDARD.encode(&verifier.salt), verifier.iterations);
        self.state = State::ScramFinal(Box::new(ScramFinal {
            account,
            verifier,
            exists,
            gs2_header: first.gs2_header.into(),
            nonce: nonce.into(),
            auth_message: format!("{},{challenge},", first.bare),
        }));
        Ok(Step::Challenge(challenge.into_bytes()))
    }

    fn scram_final(&mut self, state: ScramFinal, response: &[u8]) -> Result<Step, Failure> {
        let message = std::str::from_utf8(response).map_err(|_| Failure::Malformed)?;
        let last = client_final(message).ok_or(Failure::Malformed)?;
        // The binding repeats the first message's header, so that nobody between us has changed it (§6).
        if last.channel_binding != STANDARD.encode(state.gs2_header.as_bytes()) || last.nonce != &*state.nonce
        {
            return Err(Failure::Malformed);
        }
        let proof = STANDARD.decode(last.proof).map_err(|_| Failure::Malformed)?;
        let proof = proof.try_into().map_err(|_| Failure::Malformed)?;
        let auth_message = state.auth_message + last.without_proof;
        let signature = scram::hmac_sha256(&state.verifier.stored_key, auth_message.as_bytes());
        let stored_key = scram::stored_key(&scram::xor(&proof, &signature));
        let proven = constant_time::verify_slices_are_equal(&stored_key, &state.verifier.stored_key).is_ok();
        if !proven || !state.exists {
            return Err(Failure::Credentials);
        }
        let signature = scram::hmac_sha256(&state.verifier.server_key, auth_message.as_bytes());
        self.state = State::ScramAcknowledge { account: state.account };
        Ok(Step::Challenge(format!("v={}", STANDARD.encode(signature)).into_bytes()))
    }
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Exchange")
    }
}

/// A name after SASLprep. One that cannot be prepared belongs to nobody.
fn account_name(name: &[u8]) -> Result<Box<str>, Failure> {
    let name = std::str::from_utf8(name).map_err(|_| Failure::Malformed)?;
    let name = stringprep::saslprep(name).map_err(|_| Failure::Credentials)?;
    if name.is_empty() { Err(Failure::Malformed) } else { Ok(name.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn directory() -> Directory {
        let salt = STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let pencil = Verifier::new("pencil", &salt, 4096).unwrap().to_string();
        Directory::new([("user", pencil.as_str())], [1; 32]).unwrap()
    }

    fn outcome(mechanism: Mechanism, initial: Option<&[u8]>, then: &[&[u8]]) -> Result<String, Failure> {
        let directory = directory();
        let mut exchange = Exchange::new(mechanism, [2; 18]);
        let mut step = exchange.start(initial, &directory);
        let mut then = then.iter();
        loop {
            step = match step {
                Step::Challenge(_) => exchange.step(then.next().expect("an answer"), &directory),
                Step::Verify(job) => exchange.verdict(job.verify()),
                Step::Success(authenticated) => return Ok(authenticated.account().into()),
                Step::Failure(failure) => return Err(failure),
            }
        }
    }

    #[test]
    fn plain_is_checked_against_the_verifier() {
        let check = |response: &[u8], expected: Result<&str, Failure>| {
            let expected = expected.map(String::from);
            assert_eq!(outcome(Mechanism::Plain, Some(response), &[]), expected);
            assert_eq!(outcome(Mechanism::Plain, None, &[response]), expected);
        };
        check(b"\0user\0pencil", Ok("user"));
        check(b"user\0user\0pencil", Ok("user"));
        check(b"\0user\0pencils", Err(Failure::Credentials));
        check(b"\0nobody\0pencil", Err(Failure::Credentials));
        check(b"\0user\0", Err(Failure::Credentials));
        check(b"other\0user\0pencil", Err(Failure::Authorisation));
        check(b"\0\0pencil", Err(Failure::Malformed));
        check(b"user\0pencil", Err(Failure::Malformed));
        check(b"\0user\0pencil\0", Err(Failure::Malformed));
        check(b"", Err(Failure::Malformed));
        check(b"\0us\xffer\0pencil", Err(Failure::Malformed));
        check(&[b'x'; RESPONSE_SIZE_MAX + 1], Err(Failure::Malformed));
    }

    #[test]
    fn login_asks_for_the_name_and_the_password() {
        let directory = directory();
        let mut exchange = Exchange::new(Mechanism::Login, [0; 18]);
        let Step::Challenge(question) = exchange.start(None, &directory) else { panic!() };
        assert_eq!(question, b"Username:");
        let Step::Challenge(question) = exchange.step(b"user", &directory) else { panic!() };
        assert_eq!(question, b"Password:");
        assert_eq!(outcome(Mechanism::Login, None, &[b"user", b"pencil"]), Ok("user".into()));
        assert_eq!(outcome(Mechanism::Login, Some(b"user"), &[b"pencil"]), Ok("user".into()));
        assert_eq!(outcome(Mechanism::Login, Some(b"user"), &[b"wrong"]), Err(Failure::Credentials));
        assert_eq!(outcome(Mechanism::Login, Some(b""), &[]), Err(Failure::Malformed));
    }

    /// The exchange of RFC 7677 §3, but for the server's nonce, which is an argument.
    fn scram(first: &str, make_final: impl Fn(&str) -> String) -> Result<(String, String), Failure> {
        let directory = directory();
        let mut exchange = Exchange::new(Mechanism::ScramSha256, [2; 18]);
        let mut step = exchange.start(Some(first.as_bytes()), &directory);
        let mut last = String::new();
        loop {
            step = match step {
                Step::Challenge(challenge) => {
                    last = String::from_utf8(challenge).unwrap();
                    let response = if last.starts_with("v=") { String::new() } else { make_final(&last) };
                    exchange.step(response.as_bytes(), &directory)
                }
                Step::Verify(_) => panic!("SCRAM needs no PBKDF2 of the server"),
                Step::Success(authenticated) => return Ok((authenticated.account().into(), last)),
                Step::Failure(failure) => return Err(failure),
            }
        }
    }

    /// A client's final message made by the book, independently of the client in this crate.
    fn answer(password: &str, first_bare: &str, binding: &str, server_first: &str) -> String {
        let attribute = |name: &str| server_first.split(',').find_map(|a| a.strip_prefix(name)).unwrap();
        let salt = STANDARD.decode(attribute("s=")).unwrap();
        let iterations = attribute("i=").parse().unwrap();
        let salted = crate::verifier::salted_password(password.as_bytes(), &salt, iterations);
        let without_proof = format!("c={},r={}", STANDARD.encode(binding), attribute("r="));
        let auth_message = format!("{first_bare},{server_first},{without_proof}");
        let client_key = scram::client_key(&salted);
        let signature = scram::hmac_sha256(&scram::stored_key(&client_key), auth_message.as_bytes());
        format!("{without_proof},p={}", STANDARD.encode(scram::xor(&client_key, &signature)))
    }

    #[test]
    fn scram_proves_both_sides() {
        let bare = "n=user,r=rOprNGfwEbeRWgbNEkqO";
        let (account, signature) =
            scram(&format!("n,,{bare}"), |first| answer("pencil", bare, "n,,", first)).unwrap();
        assert_eq!(account, "user");
        assert!(signature.starts_with("v="));
        assert!(scram(&format!("y,,{bare}"), |first| answer("pencil", bare, "y,,", first)).is_ok());
        assert!(scram(&format!("n,a=user,{bare}"), |f| answer("pencil", bare, "n,a=user,", f)).is_ok());
    }

    #[test]
    fn scram_refuses_what_does_not_fit() {
        let bare = "n=user,r=abc";
        let good = format!("n,,{bare}");
        let wrong = |f: &str| answer("pencils", bare, "n,,", f);
        assert_eq!(scram(&good, wrong), Err(Failure::Credentials));
        let unknown = "n=nobody,r=abc";
        let guess = |f: &str| answer("pencil", unknown, "n,,", f);
        assert_eq!(scram(&format!("n,,{unknown}"), guess), Err(Failure::Credentials));
        let unbound = |f: &str| answer("pencil", bare, "y,,", f);
        assert_eq!(scram(&good, unbound), Err(Failure::Malformed));
        let short_nonce = |f: &str| answer("pencil", bare, "n,,", f).replacen("r=abc", "r=ab", 1);
        assert_eq!(scram(&good, short_nonce), Err(Failure::Malformed));
        assert_eq!(scram(&good, |_| "c=biws,r=abc,p=AAAA".into()), Err(Failure::Malformed));
        let bound = |f: &str| answer("pencil", bare, "p=tls-exporter,,", f);
        assert_eq!(scram(&format!("p=tls-exporter,,{bare}"), bound), Err(Failure::Malformed));
        assert_eq!(scram(&format!("n,a=other,{bare}"), wrong), Err(Failure::Authorisation));
    }

    #[test]
    fn an_exchange_that_is_over_stays_over() {
        let directory = directory();
        let mut exchange = Exchange::new(Mechanism::Plain, [0; 18]);
        assert!(matches!(exchange.verdict(Verdict::Accepted), Step::Failure(Failure::Malformed)));
        assert!(matches!(exchange.step(b"\0user\0pencil", &directory), Step::Failure(Failure::Malformed)));
    }

    #[test]
    fn a_sandbox_lets_anyone_in_without_work() {
        let directory = Directory::anyone();
        assert_eq!(directory.mechanisms(), [Mechanism::Plain, Mechanism::Login]);
        let mut exchange = Exchange::new(Mechanism::Plain, [0; 18]);
        let Step::Success(who) = exchange.start(Some(b"\0ada\0x"), &directory) else { panic!() };
        assert_eq!(who.account(), "ada");
    }

    #[test]
    fn no_password_is_printed() {
        let Step::Verify(job) =
            Exchange::new(Mechanism::Plain, [0; 18]).start(Some(b"\0user\0pencil"), &directory())
        else {
            panic!()
        };
        assert!(!format!("{job:?}").contains("pencil"));
    }

    proptest! {
        #[test]
        fn any_responses_are_answered_without_a_panic(first: Vec<u8>, second: Vec<u8>, text: String) {
            let directory = Directory::anyone();
            for mechanism in [Mechanism::Plain, Mechanism::Login, Mechanism::ScramSha256] {
                let mut exchange = Exchange::new(mechanism, [0; 18]);
                let _ = exchange.start(Some(&first), &directory);
                let _ = exchange.step(&second, &directory);
                let _ = Exchange::new(mechanism, [0; 18]).start(Some(text.as_bytes()), &directory);
            }
        }
    }
}
