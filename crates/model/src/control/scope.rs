//! What a key may do.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// One permission. Sending, reading content and changing things are separate, so that whoever may do one may
/// not do the others by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Scope {
    /// `emails:send`
    Send,
    /// `emails:read`: what became of messages, without their content.
    Read,
    /// `content:read`: content of messages, the sandbox's too.
    Content,
    /// `applications:read`
    ReadApplications,
    /// `applications:write`: applications and their credentials.
    WriteApplications,
    /// `keys:write`: make and revoke keys with no more scopes than the own key has.
    WriteKeys,
    /// `instance:write`: going live, and other acts that concern the whole instance.
    WriteInstance,
    /// `audit:read`
    ReadAudit,
    /// `queue:write`: hold, cancel, move, retry.
    WriteQueue,
}

impl Scope {
    /// All of them.
    pub const ALL: [Scope; 9] = [
        Scope::Send,
        Scope::Read,
        Scope::Content,
        Scope::ReadApplications,
        Scope::WriteApplications,
        Scope::WriteKeys,
        Scope::WriteInstance,
        Scope::ReadAudit,
        Scope::WriteQueue,
    ];

    /// `emails:send` and the like.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Scope::Send => "emails:send",
            Scope::Read => "emails:read",
            Scope::Content => "content:read",
            Scope::ReadApplications => "applications:read",
            Scope::WriteApplications => "applications:write",
            Scope::WriteKeys => "keys:write",
            Scope::WriteInstance => "instance:write",
            Scope::ReadAudit => "audit:read",
            Scope::WriteQueue => "queue:write",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// There is no scope of this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no scope {0:?}; there are {names}", names = Scopes::ALL)]
pub struct ScopeError(String);

impl FromStr for Scope {
    type Err = ScopeError;

    fn from_str(text: &str) -> Result<Self, ScopeError> {
        Scope::ALL.into_iter().find(|scope| scope.name() == text).ok_or_else(|| ScopeError(text.to_owned()))
    }
}

/// A set of scopes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Vec<String>", try_from = "Vec<String>")]
pub struct Scopes(u16);

impl Scopes {
    /// Every scope.
    pub const ALL: Scopes = Scopes((1 << Scope::ALL.len()) - 1);
    /// What the key of an application has unless it is told otherwise.
    pub const OF_AN_APPLICATION: Scopes =
        Scopes(1 << Scope::Send as u8 | 1 << Scope::Read as u8 | 1 << Scope::Content as u8);

    /// True if it is one of these.
    #[must_use]
    pub fn has(self, scope: Scope) -> bool {
        self.0 & (1 << scope as u8) != 0
    }

    /// True if these are all among the others.
    #[must_use]
    pub fn are_within(self, others: Scopes) -> bool {
        self.0 & !others.0 == 0
    }

    /// True if there is none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Each of them.
    pub fn iter(self) -> impl Iterator<Item = Scope> {
        Scope::ALL.into_iter().filter(move |scope| self.has(*scope))
    }
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        Scopes(scopes.into_iter().fold(0, |bits, scope| bits | 1 << scope as u8))
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, scope) in self.iter().enumerate() {
            write!(f, "{}{scope}", if index == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

impl From<Scopes> for Vec<String> {
    fn from(scopes: Scopes) -> Self {
        scopes.iter().map(|scope| scope.name().to_owned()).collect()
    }
}

impl TryFrom<Vec<String>> for Scopes {
    type Error = ScopeError;

    fn try_from(names: Vec<String>) -> Result<Self, ScopeError> {
        names.iter().map(|name| name.parse::<Scope>()).collect()
    }
}
