//! Who exists, for the exchanges.

use crate::exchange::Mechanism;
use crate::scram::hmac_sha256;
use crate::verifier::{ITERATIONS_DEFAULT, Verifier, VerifierError, bounded};
use postrider_model::control::Control;
use postrider_model::snapshot::Account;
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::sync::Arc;
use thiserror::Error;

/// A verifier that cannot be read, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("account {name}: {error}")]
pub struct DirectoryError {
    /// The account.
    pub name: Box<str>,
    /// What is wrong.
    pub error: VerifierError,
}

/// The accounts' verifiers by name, and a secret from which the answers to unknown names are made, the same
/// ones every time (RFC 5802 §9: a salt must not tell whether a name exists). Built once per snapshot.
#[derive(Clone)]
pub struct Directory {
    verifiers: Arc<BTreeMap<Box<str>, Known>>,
    /// Of most verifiers, so that an unknown name costs as much.
    iterations: NonZeroU32,
    secret: [u8; 32],
    anyone: bool,
    /// Names that are nobody's any more; they are refused even where anyone is let in.
    retired: Arc<BTreeSet<Box<str>>>,
}

/// A verifier, and the text of which it was read.
#[derive(Clone)]
struct Known {
    text: Box<str>,
    verifier: Arc<Verifier>,
}

impl Known {
    fn read(text: &str) -> Result<Self, VerifierError> {
        text.parse().map(|verifier| Known { text: text.into(), verifier: Arc::new(verifier) })
    }
}

impl Directory {
    /// From names and verifiers. The secret must be random and the same for all shards, best for the life of
    /// the data directory.
    ///
    /// # Errors
    /// All verifiers that cannot be read.
    pub fn new<'a>(
        accounts: impl IntoIterator<Item = (&'a str, &'a str)>,
        secret: [u8; 32],
    ) -> Result<Self, Vec<DirectoryError>> {
        let mut verifiers = BTreeMap::new();
        let mut errors = Vec::new();
        for (name, text) in accounts {
            match Known::read(text) {
                Ok(known) => {
                    verifiers.insert(name.into(), known);
                }
                Err(error) => errors.push(DirectoryError { name: name.into(), error }),
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let iterations = usual_iterations(&verifiers);
        Ok(Directory {
            verifiers: verifiers.into(),
            iterations,
            secret,
            anyone: false,
            retired: Arc::default(),
        })
    }

    /// From a snapshot's accounts.
    ///
    /// # Errors
    /// All verifiers that cannot be read.
    pub fn of_accounts(accounts: &[Arc<Account>], secret: [u8; 32]) -> Result<Self, Vec<DirectoryError>> {
        Self::new(accounts.iter().map(|account| (&*account.name, &*account.verifier)), secret)
    }

    /// One in which every name exists with every password, for a sandbox listener.
    #[must_use]
    pub fn anyone() -> Self {
        let iterations = usual_iterations(&BTreeMap::new());
        Directory {
            verifiers: Arc::default(),
            iterations,
            secret: [0; 32],
            anyone: true,
            retired: Arc::default(),
        }
    }

    /// From what the control plane knows: its logins that may be used. Those of them that cannot be read are
    /// given back by name; nobody logs in with them. What the one `before` has read is not read again.
    #[must_use]
    pub fn of_control(
        control: &Control,
        before: Option<&Directory>,
        secret: [u8; 32],
    ) -> (Self, Vec<DirectoryError>) {
        let mut verifiers = BTreeMap::new();
        let (mut retired, mut errors) = (BTreeSet::new(), Vec::new());
        for login in control.logins() {
            let name = login.credential.username.clone();
            if login.credential.revoked_at.is_some() {
                retired.insert(name);
                continue;
            }
            let text = &login.credential.verifier;
            let known = before.and_then(|before| before.verifiers.get(&name));
            match known.filter(|known| known.text == *text).cloned().map_or_else(|| Known::read(text), Ok) {
                Ok(known) => {
                    verifiers.insert(name, known);
                }
                Err(error) => {
                    errors.push(DirectoryError { name: name.clone(), error });
                    retired.insert(name);
                }
            }
        }
        let iterations = usual_iterations(&verifiers);
        let (verifiers, retired) = (verifiers.into(), retired.into());
        (Directory { verifiers, iterations, secret, anyone: false, retired }, errors)
    }

    /// The same and in which every other name exists with every password, for a sandbox listener.
    #[must_use]
    pub fn with_anyone(&self) -> Self {
        Directory { anyone: true, ..self.clone() }
    }

    /// The names of both; where they share one it is the other's.
    #[must_use]
    pub fn joined(&self, other: &Directory) -> Self {
        if other.is_empty() {
            return self.clone();
        }
        let mut verifiers = BTreeMap::clone(&self.verifiers);
        verifiers.extend(other.verifiers.iter().map(|(name, known)| (name.clone(), known.clone())));
        let iterations = usual_iterations(&verifiers);
        let retired: BTreeSet<_> =
            self.retired.iter().filter(|name| !verifiers.contains_key(*name)).cloned().collect();
        let (verifiers, retired) = (verifiers.into(), retired.into());
        Directory { verifiers, iterations, secret: self.secret, anyone: false, retired }
    }

    /// True if nobody is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.verifiers.is_empty()
    }

    /// The mechanisms to offer, the best first. Where anyone is let in there is no key for SCRAM.
    #[must_use]
    pub fn mechanisms(&self) -> &'static [Mechanism] {
        if self.anyone {
            &[Mechanism::Plain, Mechanism::Login]
        } else {
            &[Mechanism::ScramSha256, Mechanism::Plain, Mechanism::Login]
        }
    }

    /// True if this name is let in whatever its password.
    pub(crate) fn admits(&self, name: &str) -> bool {
        self.anyone && !self.verifiers.contains_key(name) && !self.retired.contains(name)
    }

    /// The name's verifier, or for a name that does not exist one that accepts nothing; true if it exists.
    pub(crate) fn verifier(&self, name: &str) -> (Arc<Verifier>, bool) {
        match self.verifiers.get(name) {
            Some(known) => (Arc::clone(&known.verifier), true),
            None => (Arc::new(self.nobody(name)), false),
        }
    }

    fn nobody(&self, name: &str) -> Verifier {
        let derive = |what: &str| hmac_sha256(&self.secret, format!("{what}\0{name}").as_bytes());
        Verifier {
            iterations: self.iterations,
            salt: derive("salt")[..16].into(),
            stored_key: derive("stored key"),
            server_key: derive("server key"),
        }
    }
}

fn usual_iterations(verifiers: &BTreeMap<Box<str>, Known>) -> NonZeroU32 {
    let mut counts = BTreeMap::new();
    for known in verifiers.values() {
        *counts.entry(known.verifier.iterations).or_insert(0usize) += 1;
    }
    let usual = counts.into_iter().max_by_key(|(_, count)| *count).map(|(iterations, _)| iterations);
    // Invariant: the default is within its own bounds.
    usual.or_else(|| bounded(ITERATIONS_DEFAULT)).expect("the default is within bounds")
}

impl std::fmt::Debug for Directory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Directory({} accounts)", self.verifiers.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bad_verifier_is_named() {
        let good = Verifier::new("x", &[1; 16], 4096).unwrap().to_string();
        let errors =
            Directory::new([("a", "plain"), ("b", &*good), ("c", "scram-sha-256:1")], [0; 32]).unwrap_err();
        assert_eq!(errors.len(), 2);
        assert!(errors[0].to_string().starts_with("account a: this is not a verifier"));
        assert_eq!((&*errors[1].name, errors[1].error), ("c", VerifierError::Shape));
    }

    #[test]
    fn an_unknown_name_looks_like_a_known_one_and_always_the_same() {
        let good = Verifier::new("x", &[1; 16], 5000).unwrap().to_string();
        let directory = Directory::new([("b", &*good)], [9; 32]).unwrap();
        let (nobody, exists) = directory.verifier("a");
        assert!(!exists);
        assert_eq!((nobody.salt.len(), nobody.iterations.get()), (16, 5000));
        assert_eq!(directory.verifier("a").0, nobody);
        assert_ne!(directory.verifier("c").0.salt, nobody.salt);
    }

    #[test]
    fn only_changed_logins_are_read_again_and_retired_names_are_refused_everywhere() {
        use postrider_model::control::{
            Application, ApplicationDraft, Change, ControlParts, Credential, Tenant,
        };
        use postrider_model::{ApplicationId, CredentialId, TenantId, Timestamp};
        let now = Timestamp::from_secs(1);
        let verifier = |password| Verifier::new(password, &[1; 16], 4096).unwrap().to_string();
        let draft = ApplicationDraft {
            name: Some("shop".into()),
            from: Some(vec!["*@example.com".into()]),
            ..ApplicationDraft::default()
        };
        let tenant = Tenant { id: TenantId::new(now, 1), name: "default".into(), created_at: now };
        let application = Application {
            id: ApplicationId::new(now, 1),
            tenant: tenant.id,
            settings: draft.create().unwrap(),
            version: 1,
            created_at: now,
            updated_at: now,
        };
        let credential = |number, username: &str, verifier: String| Credential {
            id: CredentialId::new(now, number),
            application: application.id,
            username: username.into(),
            verifier: verifier.into(),
            name: "".into(),
            created_at: now,
            expires_at: None,
            revoked_at: None,
        };
        let (a, b) = (credential(1, "a", verifier("x")), credential(2, "b", verifier("y")));
        let parts = ControlParts {
            tenants: vec![tenant],
            applications: vec![application.clone()],
            credentials: vec![a.clone(), b.clone()],
            ..ControlParts::default()
        };
        let control = Control::new(parts).unwrap();
        let (before, wrong) = Directory::of_control(&control, None, [1; 32]);
        assert!(wrong.is_empty());
        let changes = [
            Change::Credential(Credential { verifier: verifier("z").into(), ..a }),
            Change::Credential(Credential { revoked_at: Some(now), ..b }),
            Change::Credential(credential(3, "c", "damaged".into())),
        ];
        let control = control.with(&changes).unwrap();
        let (after, wrong) = Directory::of_control(&control, Some(&before), [1; 32]);
        assert_eq!(&*wrong[0].name, "c");
        assert_ne!(after.verifier("a").0, before.verifier("a").0);
        let again = Directory::of_control(&control, Some(&after), [1; 32]).0;
        assert!(Arc::ptr_eq(&again.verifier("a").0, &after.verifier("a").0));
        let anyone = after.with_anyone();
        assert!(anyone.admits("d") && !anyone.admits("a") && !anyone.admits("b") && !anyone.admits("c"));
    }
}
