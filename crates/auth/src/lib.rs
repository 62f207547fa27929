//! Credentials: who may send.
//!
//! **For:** SCRAM verifiers ([`Verifier`], which `postrider password` makes), the server's side of AUTH
//! ([`Exchange`]: SCRAM-SHA-256, PLAIN, LOGIN, all against the same verifiers), and the client's side toward
//! smarthosts ([`Client`]); API keys ([`ApiKey`]), of which only a hash is stored.
//! **Promises:** no password is stored or printed; a name that does not exist takes as long to refuse as a
//! wrong password; the costly step (PBKDF2) is a [`Job`] that may run on any thread, and [`AcceptedPasswords`]
//! spares it to clients that come back.
//! **Never:** I/O, clocks, randomness (nonces, salts and times are arguments), or a decision about what an
//! account may send.
//!
//! ```
//! use postrider_auth::{Directory, Exchange, Mechanism, Step, Verdict, Verifier};
//!
//! let verifier = Verifier::new("correct horse", &[7; 16], 4096).unwrap().to_string();
//! let directory = Directory::new([("ada", verifier.as_str())], [1; 32]).unwrap();
//! let mut exchange = Exchange::new(Mechanism::Plain, [2; 18]);
//! let Step::Verify(job) = exchange.start(Some(b"\0ada\0correct horse"), &directory) else { panic!() };
//! assert_eq!(job.verify(), Verdict::Accepted);
//! let Step::Success(authenticated) = exchange.verdict(job.verify()) else { panic!() };
//! assert_eq!(authenticated.account(), "ada");
//! ```

mod accepted;
mod api_key;
mod client;
mod directory;
mod exchange;
mod scram;
mod verifier;

pub use accepted::{ACCEPTED_MAX, ACCEPTED_TTL, AcceptedPasswords};
pub use api_key::{ApiKey, key_hash, secret_text};
pub use client::{Client, ClientError, ScramMemory};
pub use directory::{Directory, DirectoryError};
pub use exchange::{Authenticated, Exchange, Failure, Job, Mechanism, RESPONSE_SIZE_MAX, Step, Verdict};
pub use verifier::{
    ITERATIONS_DEFAULT, ITERATIONS_MAX, ITERATIONS_MIN, PasswordError, Verifier, VerifierError,
};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Decodes what stands on an AUTH line (RFC 4954 §4); `=` alone is an empty response.
///
/// # Errors
/// [`Failure::Malformed`] when it is no base64 or decodes to more than [`RESPONSE_SIZE_MAX`] octets.
pub fn decode_response(line: &[u8]) -> Result<Vec<u8>, Failure> {
    if line == b"=" {
        return Ok(Vec::new());
    }
    if line.len() > RESPONSE_SIZE_MAX.div_ceil(3) * 4 {
        return Err(Failure::Malformed);
    }
    STANDARD.decode(line).map_err(|_| Failure::Malformed)
}

/// Encodes a challenge or a response for an AUTH line.
#[must_use]
pub fn encode_challenge(octets: &[u8]) -> String {
    STANDARD.encode(octets)
}
