//! What people and programs ask for, checked in one place: every refusal names the field and what to do.

use super::{ApplicationSettings, DeliveryMode, Environment, Scopes};
use crate::snapshot::{AddressPattern, Cidr};
use crate::{Mailbox, Timestamp};
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;

/// Characters of a name.
pub const NAME_SIZE_MAX: usize = 64;
/// Characters of an owner.
const OWNER_SIZE_MAX: usize = 200;
/// Patterns of `from`.
pub const FROM_MAX: usize = 100;
/// Patterns of `only`.
pub const ONLY_MAX: usize = 1_000;
/// Networks of a key.
const NETWORKS_MAX: usize = 100;
/// Octets of a message, at least.
const MESSAGE_SIZE_MIN: u64 = 1_024;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// Where: `from[1]`.
    pub field: String,
    /// What is wrong and what to do.
    pub detail: String,
}

/// Everything that is wrong. Never empty where it is an error.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Violations(pub Vec<Violation>);

impl Violations {
    /// Of one.
    #[must_use]
    pub fn one(field: &str, detail: impl Into<String>) -> Self {
        let mut violations = Violations::default();
        violations.add(field, detail);
        violations
    }

    /// Notes one more.
    pub fn add(&mut self, field: impl Into<String>, detail: impl Into<String>) {
        self.0.push(Violation { field: field.into(), detail: detail.into() });
    }

    /// The value, if nothing is wrong with it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn into_result<T>(self, value: T) -> Result<T, Violations> {
        if self.0.is_empty() { Ok(value) } else { Err(self) }
    }
}

impl fmt::Display for Violations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, violation) in self.0.iter().enumerate() {
            write!(f, "{}{}: {}", if index == 0 { "" } else { "; " }, violation.field, violation.detail)?;
        }
        Ok(())
    }
}

impl std::error::Error for Violations {}

/// An application as it is asked for: all of it at creation, only what changes later.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ApplicationDraft {
    /// See [`ApplicationSettings::name`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// See [`ApplicationSettings::owner`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// See [`ApplicationSettings::from`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Vec<String>>,
    /// See [`ApplicationSettings::delivery`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delivery: Option<DeliveryDraft>,
    /// See [`ApplicationSettings::enabled`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// See [`ApplicationSettings::null_sender`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub null_sender: Option<bool>,
    /// See [`ApplicationSettings::message_size_max_bytes`]; `null` takes the limit away.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "given")]
    pub message_size_max_bytes: Option<Option<u64>>,
    /// See [`ApplicationSettings::expires_at`]; `null` takes the end away.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "given")]
    pub expires_at: Option<Option<String>>,
}

/// A delivery mode as it is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeliveryDraft {
    /// See [`DeliveryMode::Live`].
    Live,
    /// See [`DeliveryMode::Sandbox`].
    Sandbox,
    /// See [`DeliveryMode::Redirect`].
    Redirect(String),
    /// See [`DeliveryMode::Only`].
    Only(Vec<String>),
}

/// An SMTP credential as it is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CredentialDraft {
    /// What a person calls it.
    pub name: String,
    /// When it ends, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
}

/// An API key as it is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KeyDraft {
    /// What a person calls it.
    pub name: String,
    /// The application it stands for, by id or name; without one it manages the tenant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub application: Option<String>,
    /// What it is for; without a word, what the instance is in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub environment: Option<Environment>,
    /// What it may do; without a word, what an application needs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scopes: Option<Vec<String>>,
    /// Whence it may be used; without a word, from anywhere.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<String>,
    /// When it ends, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
}

/// A field that is there, also when it is `null`.
fn given<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

impl ApplicationDraft {
    /// A new application's settings.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn create(&self) -> Result<ApplicationSettings, Violations> {
        let mut violations = Violations::default();
        if self.name.is_none() {
            violations.add("name", "is missing; say what the application is called");
        }
        if self.from.is_none() {
            violations.add("from", "is missing; say as whom it may send, such as [\"*@example.com\"]");
        }
        let nothing = ApplicationSettings {
            name: Box::default(),
            owner: Box::default(),
            from: Vec::new(),
            delivery: DeliveryMode::Live,
            enabled: true,
            null_sender: false,
            message_size_max_bytes: None,
            expires_at: None,
        };
        let settings = self.apply(nothing, &mut violations);
        violations.into_result(settings)
    }

    /// An application's settings after this change.
    ///
    /// # Errors
    /// Everything that is wrong; then nothing changes.
    pub fn change(&self, before: &ApplicationSettings) -> Result<ApplicationSettings, Violations> {
        let mut violations = Violations::default();
        let settings = self.apply(before.clone(), &mut violations);
        violations.into_result(settings)
    }

    fn apply(&self, mut settings: ApplicationSettings, violations: &mut Violations) -> ApplicationSettings {
        if let Some(name) = &self.name {
            settings.name = checked_name("name", name, violations);
        }
        if let Some(owner) = &self.owner {
            if owner.chars().count() > OWNER_SIZE_MAX || owner.chars().any(char::is_control) {
                violations.add("owner", format!("write at most {OWNER_SIZE_MAX} printable characters"));
            }
            settings.owner = owner.as_str().into();
        }
        if let Some(from) = &self.from {
            settings.from = patterns("from", from, FROM_MAX, violations);
            if settings.from.contains(&AddressPattern::Any) {
                violations.add("from", "\"*\" would let it send as anybody; name domains, \"*@example.com\"");
            }
        }
        if let Some(delivery) = &self.delivery {
            settings.delivery = checked_delivery(delivery, violations);
        }
        if let Some(enabled) = self.enabled {
            settings.enabled = enabled;
        }
        if let Some(null_sender) = self.null_sender {
            settings.null_sender = null_sender;
        }
        if let Some(size) = self.message_size_max_bytes {
            if size.is_some_and(|size| size < MESSAGE_SIZE_MIN) {
                let detail = format!("write at least {MESSAGE_SIZE_MIN} octets, or null for no limit");
                violations.add("message_size_max_bytes", detail);
            }
            settings.message_size_max_bytes = size;
        }
        if let Some(expires_at) = &self.expires_at {
            settings.expires_at =
                expires_at.as_deref().and_then(|text| checked_time("expires_at", text, violations));
        }
        settings
    }
}

/// A credential that was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialRequest {
    /// See [`CredentialDraft::name`].
    pub name: Box<str>,
    /// See [`CredentialDraft::expires_at`].
    pub expires_at: Option<Timestamp>,
}

impl CredentialDraft {
    /// Checks it.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn check(&self) -> Result<CredentialRequest, Violations> {
        let mut violations = Violations::default();
        let request = CredentialRequest {
            name: optional_name("name", &self.name, &mut violations),
            expires_at: optional_time("expires_at", self.expires_at.as_deref(), &mut violations),
        };
        violations.into_result(request)
    }
}

/// A key that was checked, but for its application.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRequest {
    /// See [`KeyDraft::name`].
    pub name: Box<str>,
    /// See [`KeyDraft::scopes`].
    pub scopes: Scopes,
    /// See [`KeyDraft::networks`].
    pub networks: Vec<Cidr>,
    /// See [`KeyDraft::expires_at`].
    pub expires_at: Option<Timestamp>,
}

impl KeyDraft {
    /// Checks it.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn check(&self) -> Result<KeyRequest, Violations> {
        let mut violations = Violations::default();
        let scopes = match &self.scopes {
            None => Scopes::OF_AN_APPLICATION,
            Some(names) => {
                let mut known = Vec::new();
                for (index, name) in names.iter().enumerate() {
                    match name.parse() {
                        Ok(scope) => known.push(scope),
                        Err(error) => violations.add(format!("scopes[{index}]"), format!("{error}")),
                    }
                }
                if names.is_empty() {
                    violations
                        .add("scopes", "a key without a scope can do nothing; name one, or leave it out");
                }
                known.into_iter().collect()
            }
        };
        if self.networks.len() > NETWORKS_MAX {
            violations.add("networks", format!("at most {NETWORKS_MAX}"));
        }
        let mut networks = Vec::new();
        for (index, text) in self.networks.iter().enumerate() {
            match text.parse::<Cidr>() {
                Ok(network) => networks.push(network),
                Err(error) => violations.add(format!("networks[{index}]"), format!("{text:?}: {error}")),
            }
        }
        let request = KeyRequest {
            name: optional_name("name", &self.name, &mut violations),
            scopes,
            networks,
            expires_at: optional_time("expires_at", self.expires_at.as_deref(), &mut violations),
        };
        violations.into_result(request)
    }
}

/// A name: letters, digits, and `-`, `_`, `.` or a space between them.
fn checked_name(field: &str, name: &str, violations: &mut Violations) -> Box<str> {
    let size = name.chars().count();
    let plain = name.chars().all(|c| c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | ' '));
    let bounded = name.starts_with(char::is_alphanumeric) && name.ends_with(char::is_alphanumeric);
    if size > NAME_SIZE_MAX || !plain || !bounded {
        let detail = format!(
            "{name:?} is no name; write 1 to {NAME_SIZE_MAX} letters or digits, with - _ . or a space between"
        );
        violations.add(field, detail);
    }
    name.into()
}

fn optional_name(field: &str, name: &str, violations: &mut Violations) -> Box<str> {
    if name.is_empty() { Box::default() } else { checked_name(field, name, violations) }
}

fn checked_time(field: &str, text: &str, violations: &mut Violations) -> Option<Timestamp> {
    text.parse().map_err(|error| violations.add(field, format!("{text:?}: {error}"))).ok()
}

fn optional_time(field: &str, text: Option<&str>, violations: &mut Violations) -> Option<Timestamp> {
    text.and_then(|text| checked_time(field, text, violations))
}

fn checked_delivery(draft: &DeliveryDraft, violations: &mut Violations) -> DeliveryMode {
    match draft {
        DeliveryDraft::Live => DeliveryMode::Live,
        DeliveryDraft::Sandbox => DeliveryMode::Sandbox,
        DeliveryDraft::Redirect(address) => match address.parse::<Mailbox>() {
            Ok(address) => DeliveryMode::Redirect(address),
            Err(error) => {
                violations.add("delivery.redirect", format!("{address:?} is no address: {error}"));
                DeliveryMode::Sandbox
            }
        },
        DeliveryDraft::Only(only) => {
            DeliveryMode::Only(patterns("delivery.only", only, ONLY_MAX, violations))
        }
    }
}

fn patterns(field: &str, texts: &[String], max: usize, violations: &mut Violations) -> Vec<AddressPattern> {
    if texts.is_empty() {
        violations.add(field, "is empty, so that nothing matches; add a pattern such as \"*@example.com\"");
    }
    if texts.len() > max {
        violations.add(field, format!("{} patterns; at most {max}", texts.len()));
    }
    let mut patterns = Vec::new();
    for (index, text) in texts.iter().take(max).enumerate() {
        match text.parse::<AddressPattern>() {
            Ok(pattern) if patterns.contains(&pattern) => {}
            Ok(pattern) => patterns.push(pattern),
            Err(error) => violations.add(format!("{field}[{index}]"), format!("{text:?}: {error}")),
        }
    }
    patterns
}
