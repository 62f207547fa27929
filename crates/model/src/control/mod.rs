//! Who may send what: tenants, applications with their credentials and keys, and the instance's mode.
//!
//! A [`Control`] is what the data plane reads of it: immutable, whole and checked. The store holds the same as
//! rows ([`ControlParts`]) and makes a new `Control` of them at every change.

mod draft;
mod gate;
mod key;
mod scope;

pub use draft::{
    ApplicationDraft, CredentialDraft, CredentialRequest, DeliveryDraft, FROM_MAX, KeyDraft, KeyRequest,
    NAME_SIZE_MAX, ONLY_MAX, Violation, Violations,
};
pub use gate::{Denied, Gate, Writer};
pub use key::{KeyHash, KeyRefusal};
pub use scope::{Scope, Scopes};

use crate::snapshot::{AddressPattern, Cidr};
use crate::{ApplicationId, CredentialId, KeyId, Mailbox, TenantId, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Whether mail of applications may leave at all. An instance begins in the sandbox; going live is one act.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InstanceMode {
    /// All mail of applications is captured, whatever their delivery modes say.
    #[default]
    Sandbox,
    /// Each application's delivery mode decides.
    Live,
}

impl InstanceMode {
    /// `sandbox` or `live`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            InstanceMode::Sandbox => "sandbox",
            InstanceMode::Live => "live",
        }
    }
}

/// What an API key was made for; it stands in the key itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Environment {
    /// `pr_live_…`: instance and application decide what leaves.
    Live,
    /// `pr_test_…`: nothing sent with it ever leaves.
    Test,
}

impl Environment {
    /// `live` or `test`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Environment::Live => "live",
            Environment::Test => "test",
        }
    }
}

/// Where the mail of an application goes when the instance is live.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeliveryMode {
    /// To its recipients.
    Live,
    /// Nowhere: it is captured.
    Sandbox,
    /// To this one address, once for each message, whoever its recipients are.
    Redirect(Mailbox),
    /// To recipients that match; for the others it is captured.
    Only(Vec<AddressPattern>),
}

/// An isolation boundary: its own applications, keys and people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tenant {
    /// Its id.
    pub id: TenantId,
    /// Its name, unique.
    pub name: Box<str>,
    /// When it was made.
    pub created_at: Timestamp,
}

/// A system that may send.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Application {
    /// Its id.
    pub id: ApplicationId,
    /// Whose it is.
    pub tenant: TenantId,
    /// What can be changed about it.
    #[serde(flatten)]
    pub settings: ApplicationSettings,
    /// Counts its changes, from 1.
    pub version: u64,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
}

/// What can be changed about an application.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApplicationSettings {
    /// Its name, unique within the tenant.
    pub name: Box<str>,
    /// Who answers for it: a person or a team, in free words.
    pub owner: Box<str>,
    /// As whom it may send, in the envelope and in the header. Never empty.
    pub from: Vec<AddressPattern>,
    /// Where its mail goes.
    pub delivery: DeliveryMode,
    /// False once the kill switch was thrown.
    pub enabled: bool,
    /// It may send with the null reverse-path (notifications that must never bounce).
    pub null_sender: bool,
    /// Octets of a message; `None` leaves it to the listener.
    pub message_size_max_bytes: Option<u64>,
    /// From then on it may not send.
    pub expires_at: Option<Timestamp>,
}

/// A user name and a verifier for SMTP AUTH.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credential {
    /// Its id.
    pub id: CredentialId,
    /// Whom it stands for.
    pub application: ApplicationId,
    /// The user name, unique in the instance.
    pub username: Box<str>,
    /// `scram-sha-256:…`, checked by `auth`; the password itself is nowhere.
    pub verifier: Box<str>,
    /// What a person calls it.
    pub name: Box<str>,
    /// When it was made.
    pub created_at: Timestamp,
    /// From then on it is refused: the old one of a rotation.
    pub expires_at: Option<Timestamp>,
    /// Since then it is refused.
    pub revoked_at: Option<Timestamp>,
}

/// A bearer key of the HTTP API; only its hash is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiKey {
    /// Its id.
    pub id: KeyId,
    /// Whose it is.
    pub tenant: TenantId,
    /// The application it stands for; `None` for one that manages the tenant.
    pub application: Option<ApplicationId>,
    /// What a person calls it.
    pub name: Box<str>,
    /// What it was made for.
    pub environment: Environment,
    /// SHA-256 of the key.
    pub hash: KeyHash,
    /// Its first characters, by which a person knows it again.
    pub hint: Box<str>,
    /// What it may do.
    pub scopes: Scopes,
    /// Whence it may be used; empty means from anywhere.
    pub networks: Vec<Cidr>,
    /// When it was made.
    pub created_at: Timestamp,
    /// From then on it is refused.
    pub expires_at: Option<Timestamp>,
    /// Since then it is refused.
    pub revoked_at: Option<Timestamp>,
}

/// Everything of which a [`Control`] is made, as the store holds it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlParts {
    /// The instance's mode.
    pub mode: InstanceMode,
    /// Tenants.
    pub tenants: Vec<Tenant>,
    /// Applications.
    pub applications: Vec<Application>,
    /// SMTP credentials, the revoked ones too.
    pub credentials: Vec<Credential>,
    /// API keys, the revoked ones too.
    pub keys: Vec<ApiKey>,
}

/// A credential and whom it stands for.
#[derive(Clone, Debug)]
pub struct Login {
    /// The credential.
    pub credential: Credential,
    /// The application.
    pub application: Arc<Application>,
    /// The application's id as text, for records.
    pub account: Box<str>,
}

/// Who may send what: immutable, whole and checked.
#[derive(Clone, Debug, Default)]
pub struct Control {
    mode: InstanceMode,
    tenants: BTreeMap<TenantId, Arc<Tenant>>,
    applications: BTreeMap<ApplicationId, Arc<Application>>,
    names: BTreeMap<(TenantId, Arc<str>), ApplicationId>,
    logins: BTreeMap<Arc<str>, Arc<Login>>,
    keys: BTreeMap<KeyHash, Arc<ApiKey>>,
}

/// One change of the control plane. What is put replaces what has the same id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The instance's mode.
    Mode(InstanceMode),
    /// Puts a tenant.
    Tenant(Tenant),
    /// Puts an application.
    Application(Application),
    /// Takes an application away, with its credentials and keys.
    RemoveApplication(ApplicationId),
    /// Puts a credential.
    Credential(Credential),
    /// Puts a key.
    Key(ApiKey),
}

impl Control {
    /// Joins the parts.
    ///
    /// # Errors
    /// Everything that does not fit together.
    pub fn new(parts: ControlParts) -> Result<Self, Violations> {
        let changes: Vec<_> = std::iter::once(Change::Mode(parts.mode))
            .chain(parts.tenants.into_iter().map(Change::Tenant))
            .chain(parts.applications.into_iter().map(Change::Application))
            .chain(parts.credentials.into_iter().map(Change::Credential))
            .chain(parts.keys.into_iter().map(Change::Key))
            .collect();
        Control::default().with(&changes)
    }

    /// The parts of which it is made.
    #[must_use]
    pub fn parts(&self) -> ControlParts {
        ControlParts {
            mode: self.mode,
            tenants: self.tenants.values().map(|tenant| Tenant::clone(tenant)).collect(),
            applications: self.applications.values().map(|one| Application::clone(one)).collect(),
            credentials: self.logins.values().map(|login| login.credential.clone()).collect(),
            keys: self.keys.values().map(|key| ApiKey::clone(key)).collect(),
        }
    }

    /// This one after changes.
    ///
    /// # Errors
    /// Everything that does not fit together; a change is made whole or refused whole.
    pub fn with(&self, changes: &[Change]) -> Result<Self, Violations> {
        let mut violations = Violations::default();
        let mut after = self.clone();
        for change in changes {
            match change {
                Change::Mode(mode) => after.mode = *mode,
                Change::Tenant(tenant) => {
                    after.tenants.insert(tenant.id, Arc::new(tenant.clone()));
                }
                Change::Application(application) => after.put_application(application, &mut violations),
                Change::RemoveApplication(id) => after.remove_application(*id),
                Change::Credential(credential) => after.put_credential(credential, &mut violations),
                Change::Key(key) => after.put_key(key, &mut violations),
            }
            // What follows may rest on what was refused.
            if !violations.0.is_empty() {
                break;
            }
        }
        violations.into_result(after)
    }

    fn put_application(&mut self, application: &Application, violations: &mut Violations) {
        let id = application.id;
        if !self.tenants.contains_key(&application.tenant) {
            violations.add("tenant", format!("application {id} belongs to no tenant"));
        }
        let name = (application.tenant, Arc::<str>::from(&*application.settings.name));
        let before =
            self.applications.get(&id).map(|before| (before.tenant, Arc::from(&*before.settings.name)));
        if self.names.get(&name).is_some_and(|other| *other != id) {
            violations
                .add("name", format!("{:?} is the name of another application; choose another", name.1));
            return;
        }
        let application = Arc::new(application.clone());
        if let Some(before) = before {
            self.names.remove(&before);
            for login in self.logins.values_mut().filter(|login| login.application.id == id) {
                let renewed = Login { application: application.clone(), ..Login::clone(login) };
                *login = Arc::new(renewed);
            }
        }
        self.names.insert(name, id);
        self.applications.insert(id, application);
    }

    fn remove_application(&mut self, id: ApplicationId) {
        if let Some(before) = self.applications.remove(&id) {
            self.names.remove(&(before.tenant, Arc::from(&*before.settings.name)));
            self.logins.retain(|_, login| login.application.id != id);
            self.keys.retain(|_, key| key.application != Some(id));
        }
    }

    fn put_credential(&mut self, credential: &Credential, violations: &mut Violations) {
        let Some(application) = self.applications.get(&credential.application).cloned() else {
            violations.add("application", format!("credential {} belongs to none", credential.id));
            return;
        };
        let username = Arc::<str>::from(&*credential.username);
        if self.logins.get(&username).is_some_and(|other| other.credential.id != credential.id) {
            violations.add("username", format!("{username:?} stands for another credential"));
            return;
        }
        let account = application.id.to_string().into();
        let login = Login { credential: credential.clone(), application, account };
        self.logins.insert(username, Arc::new(login));
    }

    fn put_key(&mut self, key: &ApiKey, violations: &mut Violations) {
        if key.application.is_some_and(|id| !self.applications.contains_key(&id)) {
            violations.add("application", format!("key {} belongs to none", key.id));
        }
        if self.keys.get(&key.hash).is_some_and(|other| other.id != key.id) {
            violations.add("hash", format!("key {} exists twice", key.id));
            return;
        }
        self.keys.insert(key.hash, Arc::new(key.clone()));
    }

    /// An application by its name within a tenant.
    #[must_use]
    pub fn application_named(&self, tenant: TenantId, name: &str) -> Option<&Arc<Application>> {
        self.applications.get(self.names.get(&(tenant, name.into()))?)
    }

    /// The instance's mode.
    #[must_use]
    pub fn mode(&self) -> InstanceMode {
        self.mode
    }

    /// An application.
    #[must_use]
    pub fn application(&self, id: ApplicationId) -> Option<&Arc<Application>> {
        self.applications.get(&id)
    }

    /// All applications, the oldest first.
    pub fn applications(&self) -> impl Iterator<Item = &Arc<Application>> {
        self.applications.values()
    }

    /// Whom a user name stands for, whether or not it may still log in.
    #[must_use]
    pub fn login(&self, username: &str) -> Option<&Arc<Login>> {
        self.logins.get(username)
    }

    /// All logins, also those that are refused.
    pub fn logins(&self) -> impl Iterator<Item = &Arc<Login>> {
        self.logins.values()
    }

    /// All keys, also those that are refused.
    pub fn keys(&self) -> impl Iterator<Item = &Arc<ApiKey>> {
        self.keys.values()
    }

    /// All tenants, the oldest first.
    pub fn tenants(&self) -> impl Iterator<Item = &Arc<Tenant>> {
        self.tenants.values()
    }
}

impl Login {
    /// True while it may log in.
    #[must_use]
    pub fn is_valid(&self, now: Timestamp) -> bool {
        self.credential.revoked_at.is_none() && self.credential.expires_at.is_none_or(|end| now < end)
    }
}

#[cfg(test)]
mod tests;
