//! Bearer keys of the HTTP API: `pr_live_…` and `pr_test_…`.

use aws_lc_rs::digest;
use postrider_model::control::{Environment, KeyHash};
use std::fmt;

/// Characters of a key that a person may be shown to know it again: the prefix and four more.
const HINT_SIZE: usize = 12;
/// Octets of a text that may be a key; longer ones are not hashed.
const KEY_SIZE_MAX: usize = 128;
/// Letters and digits that are not taken for one another; 32, so that each carries five bits evenly.
const ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";

/// A key as it is told once, to whom it is for. It is not stored.
pub struct ApiKey(String);

impl ApiKey {
    /// Makes a key of 32 random octets.
    #[must_use]
    pub fn new(environment: Environment, random: &[u8; 32]) -> Self {
        ApiKey(format!("pr_{}_{}", environment.name(), secret_text(random)))
    }

    /// The key itself.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Its first characters.
    #[must_use]
    pub fn hint(&self) -> &str {
        &self.0[..HINT_SIZE]
    }

    /// What is stored of it.
    #[must_use]
    pub fn hash(&self) -> KeyHash {
        hash(&self.0)
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiKey({}…)", self.hint())
    }
}

/// The hash under which a key that someone shows is known, if it may be one of ours at all.
#[must_use]
pub fn key_hash(text: &str) -> Option<KeyHash> {
    let ours = text.starts_with("pr_live_") || text.starts_with("pr_test_");
    (ours && text.len() <= KEY_SIZE_MAX).then(|| hash(text))
}

/// Random octets as letters and digits that can be read aloud, five bits each; a last incomplete group is
/// left out.
#[must_use]
pub fn secret_text(random: &[u8]) -> String {
    let mut text = String::with_capacity(random.len() * 8 / 5);
    let (mut bits, mut count) = (0_u32, 0);
    for octet in random {
        bits = bits << 8 | u32::from(*octet);
        count += 8;
        while count >= 5 {
            count -= 5;
            text.push(char::from(ALPHABET[(bits >> count & 31) as usize]));
        }
        bits &= (1 << count) - 1;
    }
    text
}

fn hash(text: &str) -> KeyHash {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, text.as_bytes()).as_ref());
    KeyHash(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_known_by_its_hash_and_not_shown_by_accident() {
        let key = ApiKey::new(Environment::Test, &[0xA5; 32]);
        assert!(key.reveal().starts_with("pr_test_") && key.reveal().len() == 8 + 51, "{}", key.reveal());
        assert_eq!(key_hash(key.reveal()), Some(key.hash()));
        assert_eq!(key.hint().len(), HINT_SIZE);
        assert!(!format!("{key:?}").contains(key.reveal()));
        assert_eq!(key_hash("re_something"), None);
        assert_eq!(key_hash(&format!("pr_live_{}", "a".repeat(KEY_SIZE_MAX))), None);
        assert_ne!(ApiKey::new(Environment::Live, &[0xA5; 32]).hash(), key.hash());
    }

    #[test]
    fn five_bits_make_a_letter() {
        assert_eq!(secret_text(&[0; 5]), "aaaaaaaa");
        assert_eq!(secret_text(&[0xFF; 5]), "99999999");
        assert_eq!(secret_text(&[0x00, 0x44, 0x32, 0x14, 0xC7]), "abcdefgh");
        assert_eq!(secret_text(&[0xFF]), "9");
    }
}
