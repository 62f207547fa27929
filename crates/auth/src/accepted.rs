//! Passwords that were accepted lately, so that a client that connects for each message does not cost
//! PBKDF2 each time.

use crate::exchange::Job;
use aws_lc_rs::hmac;
use postrider_model::Timestamp;
use std::collections::BTreeMap;
use std::time::Duration;

/// Entries kept at most.
pub const ACCEPTED_MAX: usize = 4_096;
/// How long an accepted password is remembered.
pub const ACCEPTED_TTL: Duration = Duration::from_secs(600);

/// Remembers accepted names and passwords as digests under a key that lives in memory only. A changed
/// verifier, another name or another password has another digest. Refusals are not remembered.
///
/// A look-up costs about a microsecond. One per shard needs no lock; one per process spares more PBKDF2.
pub struct AcceptedPasswords {
    key: hmac::Key,
    /// Entries begin in `recent` and are dropped with `older`, half a lifetime or half the room later.
    recent: BTreeMap<[u8; 32], Timestamp>,
    older: BTreeMap<[u8; 32], Timestamp>,
    recent_since: Timestamp,
}

impl AcceptedPasswords {
    /// Empty. The secret must be random, and forgotten at exit.
    #[must_use]
    pub fn new(secret: [u8; 32]) -> Self {
        AcceptedPasswords {
            key: hmac::Key::new(hmac::HMAC_SHA256, &secret),
            recent: BTreeMap::new(),
            older: BTreeMap::new(),
            recent_since: Timestamp::default(),
        }
    }

    /// True if this very job was accepted within [`ACCEPTED_TTL`]: the verdict is `Accepted` without work.
    #[must_use]
    pub fn knows(&self, job: &Job, now: Timestamp) -> bool {
        let digest = self.digest(job);
        let until = self.recent.get(&digest).or_else(|| self.older.get(&digest));
        until.is_some_and(|until| now < *until)
    }

    /// Remembers a job whose verdict was `Accepted`.
    pub fn remember(&mut self, job: &Job, now: Timestamp) {
        if self.recent.len() >= ACCEPTED_MAX / 2 || now.since(self.recent_since) >= ACCEPTED_TTL {
            self.older = std::mem::take(&mut self.recent);
            self.recent_since = now;
        }
        self.recent.insert(self.digest(job), now + ACCEPTED_TTL);
    }

    /// Forgets everything, as after a change of accounts that must hold at once.
    pub fn clear(&mut self) {
        self.recent.clear();
        self.older.clear();
    }

    fn digest(&self, job: &Job) -> [u8; 32] {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(&job.verifier.stored_key);
        context.update(&(job.name.len() as u64).to_be_bytes());
        context.update(job.name.as_bytes());
        context.update(&job.password);
        let mut digest = [0; 32];
        digest.copy_from_slice(context.sign().as_ref());
        digest
    }
}

impl std::fmt::Debug for AcceptedPasswords {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AcceptedPasswords({})", self.recent.len() + self.older.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verifier::Verifier;
    use std::sync::Arc;

    fn job(name: &str, password: &str, verifier: &Arc<Verifier>) -> Job {
        Job::new(name, password.as_bytes(), Arc::clone(verifier), true)
    }

    #[test]
    fn only_the_very_same_password_is_remembered_and_not_for_ever() {
        let verifier = Arc::new(Verifier::new("x", &[1; 16], 4096).unwrap());
        let changed = Arc::new(Verifier::new("y", &[1; 16], 4096).unwrap());
        let mut accepted = AcceptedPasswords::new([3; 32]);
        let now = Timestamp::from_secs(1_000_000);
        assert!(!accepted.knows(&job("ab", "x", &verifier), now));
        accepted.remember(&job("ab", "x", &verifier), now);
        assert!(accepted.knows(&job("ab", "x", &verifier), now));
        assert!(!accepted.knows(&job("ab", "y", &verifier), now));
        assert!(!accepted.knows(&job("a", "bx", &verifier), now));
        assert!(!accepted.knows(&job("ab", "x", &changed), now));
        assert!(!accepted.knows(&job("ab", "x", &verifier), now + ACCEPTED_TTL));
        accepted.clear();
        assert!(!accepted.knows(&job("ab", "x", &verifier), now));
    }

    #[test]
    fn it_never_holds_more_than_its_bound() {
        let verifier = Arc::new(Verifier::new("x", &[1; 16], 4096).unwrap());
        let mut accepted = AcceptedPasswords::new([3; 32]);
        let now = Timestamp::from_secs(1_000_000);
        for n in 0..2 * ACCEPTED_MAX {
            accepted.remember(&job(&n.to_string(), "x", &verifier), now);
            assert!(accepted.recent.len() + accepted.older.len() <= ACCEPTED_MAX);
        }
        assert!(accepted.knows(&job(&(2 * ACCEPTED_MAX - 1).to_string(), "x", &verifier), now));
    }
}
