//! API keys: found by their hash, refused for one reason.

use super::{ApiKey, Control};
use crate::Timestamp;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

/// SHA-256 of a key. The keys are random, so the hash needs neither salt nor rounds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyHash(pub [u8; 32]);

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|octet| write!(f, "{octet:02x}"))
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyHash({self})")
    }
}

/// Not 64 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a hash has 64 hexadecimal digits")]
pub struct KeyHashError;

impl FromStr for KeyHash {
    type Err = KeyHashError;

    fn from_str(text: &str) -> Result<Self, KeyHashError> {
        let mut hash = [0; 32];
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(KeyHashError);
        }
        for (index, octet) in hash.iter_mut().enumerate() {
            *octet = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).map_err(|_| KeyHashError)?;
        }
        Ok(KeyHash(hash))
    }
}

crate::text::text_serde!(KeyHash);

/// Why a key is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyRefusal {
    /// There is no such key, or it was revoked; nobody is told which.
    #[error("the API key is not valid; make one with `postrider key create`")]
    Unknown,
    /// Its time is over.
    #[error("the API key has expired; make a new one with `postrider key create`")]
    Expired,
    /// It may not be used from this address.
    #[error("the API key may not be used from {0}; its networks do not contain that address")]
    Network(IpAddr),
}

impl Control {
    /// The key with this hash, if it may be used by `client` now.
    ///
    /// # Errors
    /// Why it may not.
    pub fn key(&self, hash: &KeyHash, client: IpAddr, now: Timestamp) -> Result<&Arc<ApiKey>, KeyRefusal> {
        let key = self.keys.get(hash).filter(|key| key.revoked_at.is_none()).ok_or(KeyRefusal::Unknown)?;
        if key.expires_at.is_some_and(|end| now >= end) {
            return Err(KeyRefusal::Expired);
        }
        if !key.networks.is_empty() && !key.networks.iter().any(|network| network.contains(client)) {
            return Err(KeyRefusal::Network(client));
        }
        Ok(key)
    }
}
