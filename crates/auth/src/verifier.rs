//! What is stored of a password: a SCRAM-SHA-256 verifier (RFC 5802 §3, RFC 7677).

use crate::scram;
use aws_lc_rs::{constant_time, pbkdf2};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::borrow::Cow;
use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use thiserror::Error;

/// RFC 7677 §4.
pub const ITERATIONS_MIN: u32 = 4_096;
/// What `postrider password` takes: about 2 ms of one core for each guess, and for each new PLAIN client.
pub const ITERATIONS_DEFAULT: u32 = 10_000;
/// More would let one login hold a core for long.
pub const ITERATIONS_MAX: u32 = 1_000_000;
const SALT_SIZE_MIN: usize = 8;
const SALT_SIZE_MAX: usize = 64;
const PREFIX: &str = "scram-sha-256:";

/// A SHA-256 output.
pub(crate) type Key = [u8; 32];

/// Lets a password be checked and tells nothing else of it. Its text form is
/// `scram-sha-256:ITERATIONS:SALT:STORED-KEY:SERVER-KEY`, the last three in base64.
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    pub(crate) iterations: NonZeroU32,
    pub(crate) salt: Box<[u8]>,
    pub(crate) stored_key: Key,
    pub(crate) server_key: Key,
}

/// Why a password cannot be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PasswordError {
    /// Nothing.
    #[error("the password is empty")]
    Empty,
    /// Characters that SASLprep (RFC 4013) prohibits.
    #[error("the password holds control or unassigned characters, or mixes writing directions")]
    Characters,
    /// A salt too short or too long.
    #[error("the salt must have 8 to 64 octets")]
    Salt,
    /// A count out of bounds.
    #[error("iterations must be 4096 to 1000000")]
    Iterations,
}

/// Why a text is no verifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum VerifierError {
    /// It does not begin like one: most likely it is the password.
    #[error(
        "this is not a verifier but, it seems, a plain password; `postrider password` makes a verifier of it"
    )]
    Plain,
    /// Not five parts.
    #[error(
        "a verifier reads scram-sha-256:ITERATIONS:SALT:STORED-KEY:SERVER-KEY; make one with `postrider password`"
    )]
    Shape,
    /// A count that is none or out of bounds.
    #[error("the verifier's iterations must be a number from 4096 to 1000000")]
    Iterations,
    /// A part that is no base64 or has a wrong length; names the part.
    #[error("the verifier's {0} is damaged; make a new one with `postrider password`")]
    Part(&'static str),
}

impl Verifier {
    /// Makes the verifier of a password; costs `iterations` rounds of PBKDF2. The salt must be random.
    ///
    /// # Errors
    /// When the password, the salt or the count cannot be taken.
    pub fn new(password: &str, salt: &[u8], iterations: u32) -> Result<Self, PasswordError> {
        if password.is_empty() {
            return Err(PasswordError::Empty);
        }
        if !(SALT_SIZE_MIN..=SALT_SIZE_MAX).contains(&salt.len()) {
            return Err(PasswordError::Salt);
        }
        let iterations = bounded(iterations).ok_or(PasswordError::Iterations)?;
        let password = stringprep::saslprep(password).map_err(|_| PasswordError::Characters)?;
        let salted = salted_password(password.as_bytes(), salt, iterations);
        Ok(Verifier {
            iterations,
            salt: salt.into(),
            stored_key: scram::stored_key(&scram::client_key(&salted)),
            server_key: scram::server_key(&salted),
        })
    }

    /// True if this is the password; costs the verifier's rounds of PBKDF2 whatever the answer.
    pub(crate) fn accepts(&self, password: &[u8]) -> bool {
        let salted = salted_password(&prepared(password), &self.salt, self.iterations);
        let stored_key = scram::stored_key(&scram::client_key(&salted));
        constant_time::verify_slices_are_equal(&stored_key, &self.stored_key).is_ok()
    }
}

/// SASLprep (RFC 4013) where it applies; a password that it prohibits is no stored one and is compared as
/// it is, so that refusing it takes as long.
pub(crate) fn prepared(password: &[u8]) -> Cow<'_, [u8]> {
    match std::str::from_utf8(password).map(stringprep::saslprep) {
        Ok(Ok(Cow::Owned(text))) => Cow::Owned(text.into_bytes()),
        _ => Cow::Borrowed(password),
    }
}

/// `Hi(password, salt, i)` of RFC 5802 §2.2.
pub(crate) fn salted_password(password: &[u8], salt: &[u8], iterations: NonZeroU32) -> Key {
    let mut salted = [0; 32];
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations, salt, password, &mut salted);
    salted
}

/// The count, if it is within [`ITERATIONS_MIN`] and [`ITERATIONS_MAX`].
pub(crate) fn bounded(iterations: u32) -> Option<NonZeroU32> {
    if (ITERATIONS_MIN..=ITERATIONS_MAX).contains(&iterations) { NonZeroU32::new(iterations) } else { None }
}

impl FromStr for Verifier {
    type Err = VerifierError;

    fn from_str(text: &str) -> Result<Self, VerifierError> {
        let rest = match text.get(..PREFIX.len()) {
            Some(prefix) if prefix.eq_ignore_ascii_case(PREFIX) => &text[PREFIX.len()..],
            _ => return Err(VerifierError::Plain),
        };
        let parts: Vec<&str> = rest.splitn(5, ':').collect();
        let [iterations, salt, stored_key, server_key] = parts[..] else {
            return Err(VerifierError::Shape);
        };
        let iterations = iterations.parse().ok().and_then(bounded).ok_or(VerifierError::Iterations)?;
        let salt = STANDARD.decode(salt).map_err(|_| VerifierError::Part("salt"))?;
        if !(SALT_SIZE_MIN..=SALT_SIZE_MAX).contains(&salt.len()) {
            return Err(VerifierError::Part("salt"));
        }
        let key = |text: &str, part| {
            let octets = STANDARD.decode(text).map_err(|_| VerifierError::Part(part))?;
            Key::try_from(octets).map_err(|_| VerifierError::Part(part))
        };
        Ok(Verifier {
            iterations,
            salt: salt.into(),
            stored_key: key(stored_key, "stored key")?,
            server_key: key(server_key, "server key")?,
        })
    }
}

impl fmt::Display for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{PREFIX}{}:{}:{}:{}",
            self.iterations,
            STANDARD.encode(&self.salt),
            STANDARD.encode(self.stored_key),
            STANDARD.encode(self.server_key)
        )
    }
}

/// With a server key one can pretend to be the server, so it is not printed by accident.
impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Verifier({} iterations, …)", self.iterations)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The example of RFC 7677 §3, as a verifier: user `user`, password `pencil`.
    const PENCIL: &str = "scram-sha-256:4096:W22ZaJ0SNY7soEsUEjb6gQ==:\
        WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";

    #[test]
    fn the_verifier_of_rfc_7677_is_made_and_read() {
        let salt = STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let verifier = Verifier::new("pencil", &salt, 4096).unwrap();
        assert_eq!(verifier.to_string(), PENCIL);
        assert_eq!(PENCIL.parse::<Verifier>().unwrap(), verifier);
        assert!(verifier.accepts(b"pencil"));
        assert!(!verifier.accepts(b"Pencil"));
        assert!(!verifier.accepts(b""));
        assert!(!verifier.accepts(b"\xff"));
    }

    #[test]
    fn passwords_are_compared_after_saslprep() {
        let verifier = Verifier::new("\u{2168}\u{ad}x", &[1; 16], 4096).unwrap();
        assert!(verifier.accepts(b"IXx"));
    }

    #[test]
    fn what_is_no_verifier_says_what_to_do() {
        let check = |text: &str, error| assert_eq!(text.parse::<Verifier>(), Err(error), "{text}");
        check("", VerifierError::Plain);
        check("hunter2", VerifierError::Plain);
        check("$2y$10$abc", VerifierError::Plain);
        check("scram-sha-256:", VerifierError::Shape);
        check("scram-sha-256:4096:AAAA:B", VerifierError::Shape);
        check(&format!("{PENCIL}:x"), VerifierError::Shape);
        check(&PENCIL.replace("4096", "1"), VerifierError::Iterations);
        check(&PENCIL.replace("4096", "99999999999"), VerifierError::Iterations);
        check(&PENCIL.replace("W22Z", "W2!Z"), VerifierError::Part("salt"));
        check(&PENCIL.replace("WG5d", ""), VerifierError::Part("stored key"));
        assert!(VerifierError::Plain.to_string().contains("`postrider password`"));
    }

    #[test]
    fn what_is_no_password_says_why() {
        let check = |password, salt: &[u8], iterations, error| {
            assert_eq!(Verifier::new(password, salt, iterations), Err(error));
        };
        check("", &[0; 16], 4096, PasswordError::Empty);
        check("a\u{7}", &[0; 16], 4096, PasswordError::Characters);
        check("a", &[0; 7], 4096, PasswordError::Salt);
        check("a", &[0; 65], 4096, PasswordError::Salt);
        check("a", &[0; 16], 4095, PasswordError::Iterations);
        check("a", &[0; 16], ITERATIONS_MAX + 1, PasswordError::Iterations);
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_without_a_panic(text: String) {
            let _ = text.parse::<Verifier>();
            let _ = format!("{PREFIX}{text}").parse::<Verifier>();
        }
    }
}
