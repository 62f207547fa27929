//! The name of a receiving system.

use postrider_model::Domain;

/// A longer key is cut and told apart by a hash: it stands in metrics, logs and every parked recipient's lane.
const KEY_SIZE_MAX_BYTES: usize = 160;

/// One stable text for a set of host names: sorted, and the common end written once, as a shell would expand
/// it: `{alt1,alt2,@}.aspmx.l.google.com`, where `@` is the end itself.
pub(crate) fn site_key(names: &[Domain]) -> Box<str> {
    let mut names: Vec<&str> = names.iter().map(Domain::as_str).collect();
    names.sort_unstable();
    names.dedup();
    let key = match names.as_slice() {
        [only] => (*only).to_owned(),
        several => rolled_up(several),
    };
    if key.len() <= KEY_SIZE_MAX_BYTES {
        return key.into();
    }
    let hash = key.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        // FNV-1a: stable across builds, unlike the standard hasher.
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    // Invariant: a domain is ASCII, so every index is a character's.
    format!("{}…{hash:016x}", &key[..KEY_SIZE_MAX_BYTES - 20]).into()
}

fn rolled_up(names: &[&str]) -> String {
    let Some((first, others)) = names.split_first() else { return String::new() };
    // Candidates for the common end, longest first; two labels at least, for a shared `com` says nothing.
    let ends = std::iter::successors(Some(*first), |end| end.split_once('.').map(|(_, rest)| rest));
    let is_end_of = |name: &str, end: &str| {
        name.strip_suffix(end).is_some_and(|begin| begin.is_empty() || begin.ends_with('.'))
    };
    let common =
        ends.filter(|end| end.contains('.')).find(|end| others.iter().all(|name| is_end_of(name, end)));
    match common {
        None => names.join(","),
        Some(end) => {
            let begins: Vec<&str> = names
                .iter()
                .map(|name| match name[..name.len() - end.len()].trim_end_matches('.') {
                    "" => "@",
                    begin => begin,
                })
                .collect();
            format!("{{{}}}.{end}", begins.join(","))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(names: &str) -> String {
        let names: Vec<Domain> = names.split_whitespace().map(|name| name.parse().unwrap()).collect();
        site_key(&names).into()
    }

    #[test]
    fn a_set_of_hosts_has_one_key_in_any_order() {
        let google = "aspmx.l.google.com alt1.aspmx.l.google.com alt2.aspmx.l.google.com";
        assert_eq!(key(google), "{alt1,alt2,@}.aspmx.l.google.com");
        assert_eq!(
            key("alt2.aspmx.l.google.com aspmx.l.google.com alt1.aspmx.l.google.com ASPMX.L.google.com"),
            key(google)
        );
        assert_eq!(key("mx1.example.com mx2.example.com"), "{mx1,mx2}.example.com");
        assert_eq!(key("mx.example.com"), "mx.example.com");
        assert_eq!(key("mx.example.com mx.example.net"), "mx.example.com,mx.example.net");
        assert_eq!(key("a.com b.com"), "a.com,b.com");
        assert_eq!(key("ab.example.com b.example.com"), "{ab,b}.example.com");
    }

    #[test]
    fn a_long_key_is_cut_and_still_its_own() {
        let names =
            |last: &str| (0..30).map(|i| format!("mx{i}.host{i}.example.{last} ")).collect::<String>();
        let (com, net) = (key(&names("com")), key(&names("net")));
        assert!(com.len() <= KEY_SIZE_MAX_BYTES, "{}", com.len());
        assert_ne!(com, net);
    }
}
