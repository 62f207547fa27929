//! What is told once and never stored.

use postrider_auth::{ApiKey, ITERATIONS_MIN, Verifier, secret_text};
use postrider_model::control::Environment;
use postrider_store::StoreError;

/// Random octets of a password: 160 bits, 32 letters and digits.
const PASSWORD_SIZE: usize = 20;
/// Characters of a name that go into a user name.
const NAME_SIZE_MAX: usize = 24;

fn random<const N: usize>() -> Result<[u8; N], StoreError> {
    let mut octets = [0; N];
    aws_lc_rs::rand::fill(&mut octets)
        .map_err(|_| StoreError::Unavailable("the system gives no random octets".to_owned()))?;
    Ok(octets)
}

/// For an id.
pub(super) fn number() -> Result<u128, StoreError> {
    random().map(u128::from_le_bytes)
}

/// A user name and password for SMTP.
pub(super) struct Password {
    pub(super) username: String,
    pub(super) password: String,
    pub(super) verifier: String,
}

/// New ones for an application of this name. The password is random and long, so that guessing it is hopeless
/// however few rounds a guess takes; the fewest keep AUTH cheap.
pub(super) fn password(name: &str) -> Result<Password, StoreError> {
    let password = secret_text(&random::<PASSWORD_SIZE>()?);
    let verifier = Verifier::new(&password, &random::<16>()?, ITERATIONS_MIN)
        .map_err(|error| StoreError::Damaged(error.to_string()))?
        .to_string();
    let username = format!("{}-{}", plain(name), secret_text(&random::<5>()?));
    Ok(Password { username, password, verifier })
}

/// A key.
pub(super) fn key(environment: Environment) -> Result<ApiKey, StoreError> {
    Ok(ApiKey::new(environment, &random()?))
}

/// The name in letters, digits and hyphens, as user names go through every client.
fn plain(name: &str) -> String {
    let mut out = String::new();
    for c in name.chars().take(NAME_SIZE_MAX) {
        match c.to_ascii_lowercase() {
            c if c.is_ascii_alphanumeric() => out.push(c),
            _ if out.ends_with('-') || out.is_empty() => {}
            _ => out.push('-'),
        }
    }
    let out = out.trim_end_matches('-');
    if out.is_empty() { "app".to_owned() } else { out.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_name_is_plain_whatever_the_name() {
        let check = |name: &str, text: &str| assert_eq!(plain(name), text);
        check("shop", "shop");
        check("Büro 2 / Drucker", "b-ro-2-drucker");
        check("  ", "app");
        check("日本", "app");
    }

    #[test]
    fn no_two_secrets_are_the_same() {
        let (one, two) = (password("shop").unwrap(), password("shop").unwrap());
        assert_eq!(one.password.len(), 32);
        assert!(one.username != two.username && one.password != two.password && one.verifier != two.verifier);
    }
}
