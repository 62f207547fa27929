//! The arithmetic and the messages of SCRAM-SHA-256 (RFC 5802 §3, §7; RFC 7677).

use crate::verifier::Key;
use aws_lc_rs::{digest, hmac};

pub(crate) fn hmac_sha256(key: &[u8], text: &[u8]) -> Key {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    array(hmac::sign(&key, text).as_ref())
}

fn array(octets: &[u8]) -> Key {
    // Invariant: every caller passes an output of SHA-256, which has 32 octets.
    octets.try_into().expect("SHA-256 makes 32 octets")
}

pub(crate) fn client_key(salted_password: &Key) -> Key {
    hmac_sha256(salted_password, b"Client Key")
}

pub(crate) fn server_key(salted_password: &Key) -> Key {
    hmac_sha256(salted_password, b"Server Key")
}

pub(crate) fn stored_key(client_key: &Key) -> Key {
    array(digest::digest(&digest::SHA256, client_key).as_ref())
}

pub(crate) fn xor(a: &Key, b: &Key) -> Key {
    std::array::from_fn(|i| a[i] ^ b[i])
}

/// The client's first message, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ClientFirst<'a> {
    /// `n,,` or `y,,`, with an authorisation identity: what `c=` must repeat.
    pub(crate) gs2_header: &'a str,
    /// The authorisation identity; empty if there is none.
    pub(crate) authzid: String,
    pub(crate) bare: &'a str,
    pub(crate) name: String,
    pub(crate) nonce: &'a str,
}

/// Takes apart `n,a=authzid,n=name,r=nonce`. `None` when it is malformed or wants channel binding (`p=`), which
/// we do not offer; with `y` the client could and thinks that we cannot, which is right (§6).
pub(crate) fn client_first(message: &str) -> Option<ClientFirst<'_>> {
    let mut parts = message.splitn(3, ',');
    let (flag, authzid, bare) = (parts.next()?, parts.next()?, parts.next()?);
    if flag != "n" && flag != "y" {
        return None;
    }
    let authzid = match authzid {
        "" => String::new(),
        text => decode_name(text.strip_prefix("a=")?)?,
    };
    // A mandatory extension (`m=`) would stand first; we know none, so it is refused (§5.1).
    let mut attributes = bare.split(',');
    let name = decode_name(attributes.next()?.strip_prefix("n=")?)?;
    let nonce = attributes.next()?.strip_prefix("r=")?;
    if nonce.is_empty() || !is_printable(nonce) {
        return None;
    }
    let gs2_header = &message[..message.len() - bare.len()];
    Some(ClientFirst { gs2_header, authzid, bare, name, nonce })
}

/// The client's final message, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ClientFinal<'a> {
    pub(crate) without_proof: &'a str,
    pub(crate) channel_binding: &'a str,
    pub(crate) nonce: &'a str,
    pub(crate) proof: &'a str,
}

pub(crate) fn client_final(message: &str) -> Option<ClientFinal<'_>> {
    let (without_proof, proof) = message.rsplit_once(",p=")?;
    let mut attributes = without_proof.split(',');
    let channel_binding = attributes.next()?.strip_prefix("c=")?;
    let nonce = attributes.next()?.strip_prefix("r=")?;
    Some(ClientFinal { without_proof, channel_binding, nonce, proof })
}

/// Printable ASCII but the comma (§7).
fn is_printable(text: &str) -> bool {
    text.bytes().all(|b| (0x21..=0x7e).contains(&b) && b != b',')
}

/// `=2C` is a comma, `=3D` an equals sign, any other `=` an error (§5.1).
fn decode_name(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('=') {
        out.push_str(&rest[..at]);
        out.push(match rest.get(at..at + 3)? {
            "=2C" => ',',
            "=3D" => '=',
            _ => return None,
        });
        rest = &rest[at + 3..];
    }
    out.push_str(rest);
    if out.is_empty() || out.contains('\0') { None } else { Some(out) }
}

pub(crate) fn encode_name(name: &str) -> String {
    name.replace('=', "=3D").replace(',', "=2C")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_messages_are_taken_apart() {
        let first = client_first("n,,n=user,r=rOprNGfwEbeRWgbNEkqO").unwrap();
        assert_eq!((first.gs2_header, first.bare), ("n,,", "n=user,r=rOprNGfwEbeRWgbNEkqO"));
        let first = client_first("y,a=x=2Cy,n=a=3Db,r=n,ext=1").unwrap();
        assert_eq!((&*first.authzid, &*first.name, first.nonce), ("x,y", "a=b", "n"));
        assert_eq!(first.gs2_header, "y,a=x=2Cy,");
        for bad in [
            "",
            "n,,",
            "n,n=user,r=x",
            "p=tls-exporter,,n=user,r=x",
            "n,,m=1,n=user,r=x",
            "n,,n=,r=x",
            "n,,n=a=2c,r=x",
            "n,,n=a=,r=x",
            "n,,n=user,r=",
            "n,,n=user,r=a b",
            "n,,n=user",
            "x,,n=user,r=x",
            "n,b=x,n=user,r=x",
        ] {
            assert_eq!(client_first(bad), None, "{bad}");
        }
    }

    #[test]
    fn final_messages_are_taken_apart() {
        let last = client_final("c=biws,r=abc,x=1,p=AAAA").unwrap();
        assert_eq!((last.without_proof, last.proof), ("c=biws,r=abc,x=1", "AAAA"));
        for bad in ["", "c=biws,r=abc", "r=abc,c=biws,p=x", "c=biws,p=x"] {
            assert_eq!(client_final(bad), None, "{bad}");
        }
    }

    #[test]
    fn names_survive_their_encoding() {
        for name in ["a", "a=b,c", "=2C", "ü"] {
            assert_eq!(decode_name(&encode_name(name)).unwrap(), name);
        }
    }
}
