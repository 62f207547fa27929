//! Values as people write them: lengths of time, sizes, URLs of hosts.

use postrider_model::Domain;
use postrider_model::snapshot::{AddressPattern, Credentials, DomainPattern, Host, NextHop, Scheme};
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// What to write instead.
pub type Fix = String;

/// `"1h30m"`, `"500ms"`, `"5 d"`.
///
/// # Errors
/// Says what a length of time looks like.
pub fn duration(text: &str) -> Result<Duration, Fix> {
    let fix = || "write a number and a unit (ms, s, m, h, d, w), such as \"90s\" or \"1h30m\"".to_owned();
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(fix());
    }
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let (digits, after) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len()));
        let number: u64 = digits.parse().map_err(|_| fix())?;
        let after = after.trim_start();
        let (unit, after) =
            after.split_at(after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len()));
        let millis_per_unit: u64 = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            "w" => 604_800_000,
            _ => return Err(fix()),
        };
        let millis = number.checked_mul(millis_per_unit).ok_or_else(fix)?;
        total = total.checked_add(Duration::from_millis(millis)).ok_or_else(fix)?;
        rest = after.trim_start();
    }
    Ok(total)
}

/// The shortest exact way to write a length of time.
#[must_use]
pub fn duration_text(duration: Duration) -> String {
    const UNITS: [(u128, &str); 5] =
        [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s"), (1, "ms")];
    let mut millis = duration.as_millis();
    if millis == 0 {
        return "0s".to_owned();
    }
    let mut text = String::new();
    for (unit, name) in UNITS {
        if millis >= unit {
            let _ = write!(text, "{}{name}", millis / unit);
            millis %= unit;
        }
    }
    text
}

/// `"50 MiB"`, `"10MB"`, `"512 B"`, `"512"`.
///
/// # Errors
/// Says what a size looks like.
pub fn size(text: &str) -> Result<u64, Fix> {
    let fix = || "write a number and a unit (B, KB, MB, GB, KiB, MiB, GiB), such as \"50 MiB\"".to_owned();
    let text = text.trim();
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let number: u64 = digits.parse().map_err(|_| fix())?;
    let bytes_per_unit: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        "kib" | "k" => 1 << 10,
        "mib" | "m" => 1 << 20,
        "gib" | "g" => 1 << 30,
        "tib" | "t" => 1 << 40,
        _ => return Err(fix()),
    };
    number.checked_mul(bytes_per_unit).ok_or_else(fix)
}

/// The shortest exact way to write a size.
#[must_use]
pub fn size_text(bytes: u64) -> String {
    for (unit, name) in [(1_u64 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")] {
        if bytes >= unit && bytes.is_multiple_of(unit) {
            return format!("{} {name}", bytes / unit);
        }
    }
    format!("{bytes} B")
}

/// `*`, `*@example.com`, `*@*.example.com` or an address.
///
/// # Errors
/// Says what a pattern looks like.
pub fn address_pattern(text: &str) -> Result<AddressPattern, Fix> {
    text.parse().map_err(|error: postrider_model::snapshot::PatternError| error.to_string())
}

/// `*`, `example.com`, `*.example.com` or `.example.com`.
///
/// # Errors
/// Says what a pattern looks like.
pub fn domain_pattern(text: &str) -> Result<DomainPattern, Fix> {
    if text == "*" {
        return Ok(DomainPattern::Any);
    }
    let fix = "write \"example.com\", \"*.example.com\" (subdomains) or \"*\"";
    let suffix = text.strip_prefix("*.").or_else(|| text.strip_prefix('.'));
    if suffix.unwrap_or(text).contains(['*', '@']) {
        return Err(fix.to_owned());
    }
    let domain: Domain = suffix.unwrap_or(text).parse().map_err(|error| format!("{error}; {fix}"))?;
    Ok(if suffix.is_some() { DomainPattern::Suffix(domain) } else { DomainPattern::Exact(domain) })
}

/// An address and port of ours.
///
/// # Errors
/// Says what it looks like.
pub fn socket_address(text: &str) -> Result<SocketAddr, Fix> {
    text.parse().map_err(|_| match text.parse::<IpAddr>() {
        Ok(ip) => format!("add a port: \"{}\"", SocketAddr::new(ip, 25)),
        Err(_) if text.starts_with("localhost:") => {
            format!("write the address: \"127.0.0.1:{}\"", &text["localhost:".len()..])
        }
        Err(_) if text.starts_with(':') || text.starts_with("*:") => {
            let port = text.trim_start_matches(['*', ':']);
            format!("write \"0.0.0.0:{port}\" for all IPv4 addresses, \"[::]:{port}\" for IPv6 too")
        }
        Err(_) => "write an IP address and a port, such as \"127.0.0.1:2525\" or \"[::1]:2525\"".to_owned(),
    })
}

/// An address with the port of DNS unless another one is given.
///
/// # Errors
/// Says what it looks like.
pub fn dns_server(text: &str) -> Result<SocketAddr, Fix> {
    text.parse().or_else(|_| text.parse().map(|ip| SocketAddr::new(ip, 53))).map_err(|_| {
        "write an IP address, with a port if it is not 53: \"192.0.2.53\" or \"127.0.0.1:5353\"".to_owned()
    })
}

/// The URL of a host that mail is handed to.
///
/// # Errors
/// Says what it looks like.
pub fn next_hop(text: &str) -> Result<NextHop, Fix> {
    const FIX: &str = "write \"mx\", \"sandbox\" or a URL: \"smtp://host:25\", \
                       \"smtps://user:password@host\", \"lmtp://host:24\" or \"lmtp:///run/dovecot/lmtp\"";
    let fix = || FIX.to_owned();
    let (scheme, rest) = text.split_once("://").ok_or_else(fix)?;
    let (scheme, default_port) = match scheme {
        "smtp" => (Scheme::Smtp, 25),
        "smtps" => (Scheme::Smtps, 465),
        "lmtp" => (Scheme::Lmtp, 24),
        other => return Err(format!("no such scheme `{other}`; {FIX}")),
    };
    if rest.starts_with('/') {
        if scheme != Scheme::Lmtp {
            return Err(format!("only lmtp speaks over a Unix socket; {FIX}"));
        }
        return Ok(NextHop { scheme, host: Host::Socket(PathBuf::from(rest)), credentials: None });
    }
    let (credentials, place) = match rest.rsplit_once('@') {
        Some((userinfo, place)) => (Some(self::credentials(userinfo)?), place),
        None => (None, rest),
    };
    let place = place.strip_suffix('/').unwrap_or(place);
    if place.contains(['/', '?', '#']) {
        return Err("nothing may follow the host and port".to_owned());
    }
    Ok(NextHop { scheme, host: host(place, default_port)?, credentials })
}

fn credentials(userinfo: &str) -> Result<Credentials, Fix> {
    let (username, password) = userinfo
        .split_once(':')
        .ok_or("the URL has a user name and no password; write user:password@host, or use auth")?;
    let decode = |text: &str| {
        percent_decoded(text)
            .ok_or_else(|| "write %40 for @, %3A for :, %25 for % in the password".to_owned())
    };
    Ok(Credentials { username: decode(username)?.into(), password: decode(password)?.into() })
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        if byte == b'%' {
            let hex = std::str::from_utf8(after.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(hex, 16).ok()?);
            rest = &after[2..];
        } else {
            bytes.push(byte);
            rest = after;
        }
    }
    String::from_utf8(bytes).ok()
}

fn host(place: &str, default_port: u16) -> Result<Host, Fix> {
    if let Ok(address) = place.parse::<SocketAddr>() {
        return Ok(Host::Address(address));
    }
    if let Ok(ip) = place.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        return Ok(Host::Address(SocketAddr::new(ip, default_port)));
    }
    let (name, port) = match place.rsplit_once(':') {
        Some((name, port)) => {
            (name, port.parse().ok().filter(|&port| port != 0).ok_or("the port is a number from 1 to 65535")?)
        }
        None => (place, default_port),
    };
    let name: Domain = name.parse().map_err(|error| format!("the host is wrong: {error}"))?;
    Ok(Host::Name(name, port))
}

/// A URL without its password, as it may be shown.
#[must_use]
pub fn masked_url(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    match rest.rsplit_once('@') {
        Some((userinfo, place)) => {
            let username = userinfo.split(':').next().unwrap_or_default();
            format!("{scheme}://{username}:…@{place}")
        }
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_are_read_and_written_back() {
        let check = |text: &str, millis: u64, written: &str| {
            let read = duration(text).unwrap();
            assert_eq!(read, Duration::from_millis(millis), "{text}");
            assert_eq!(duration_text(read), written);
            assert_eq!(duration(written).unwrap(), read);
        };
        check("1m", 60_000, "1m");
        check("90s", 90_000, "1m30s");
        check("1h30m", 5_400_000, "1h30m");
        check("1 h 30 min", 5_400_000, "1h30m");
        check("5d", 432_000_000, "5d");
        check("1w", 604_800_000, "7d");
        check("500ms", 500, "500ms");
        check("0s", 0, "0s");
        for wrong in ["", "5", "m", "1y", "-1s", "1.5h", "1m-", "99999999999999999999s", "9999999999999999w"]
        {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_are_read_and_written_back() {
        let check = |text: &str, bytes: u64, written: &str| {
            assert_eq!(size(text).unwrap(), bytes, "{text}");
            assert_eq!(size_text(bytes), written);
            assert_eq!(size(written).unwrap(), bytes);
        };
        check("50 MiB", 50 << 20, "50 MiB");
        check("10MB", 10_000_000, "10000000 B");
        check("512", 512, "512 B");
        check("64k", 64 << 10, "64 KiB");
        for wrong in ["", "MiB", "1 parsec", "-1", "1.5 MiB", "99999999999 TiB"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn hosts_are_read_from_urls() {
        let check = |text: &str, expected: &str| {
            let hop = next_hop(text).map(|hop| {
                let login = hop.credentials.map(|c| format!(" as {} with {}", c.username, c.password));
                format!("{:?} {:?}{}", hop.scheme, hop.host, login.unwrap_or_default()).replace("Domain", "")
            });
            match hop {
                Ok(hop) => assert_eq!(hop, expected, "{text}"),
                Err(fix) => assert!(expected.is_empty(), "{text}: {fix}"),
            }
        };
        check("smtp://127.0.0.1:2526", "Smtp Address(127.0.0.1:2526)");
        check("smtp://[::1]", "Smtp Address([::1]:25)");
        check("smtp://[::1]:26", "Smtp Address([::1]:26)");
        check("smtps://mail.example.com", "Smtps Name((mail.example.com), 465)");
        check(
            "smtps://a%40b:p%3Aq@mail.example.com:466/",
            "Smtps Name((mail.example.com), 466) as a@b with p:q",
        );
        check("lmtp:///run/dovecot/lmtp", "Lmtp Socket(\"/run/dovecot/lmtp\")");
        check("lmtp://mail.example.com", "Lmtp Name((mail.example.com), 24)");
        for wrong in [
            "mail.example.com",
            "http://a.example",
            "smtp://",
            "smtp:///run/x",
            "smtp://a.example:0",
            "smtp://a.example:99999",
            "smtp://a.example/path",
            "smtp://user@a.example",
            "smtp://u:%zz@a.example",
            "smtp://u:%e@a.example",
        ] {
            check(wrong, "");
        }
    }

    #[test]
    fn a_shown_url_has_no_password() {
        assert_eq!(masked_url("smtps://ada:secret@mail.example"), "smtps://ada:…@mail.example");
        assert_eq!(masked_url("smtp://mail.example"), "smtp://mail.example");
    }
}
