//! The PROXY protocol, versions 1 and 2, as a receiver (the specification is HAProxy's proxy-protocol.txt).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use thiserror::Error;

/// The longest version 1 header (§2.1), with its CRLF.
const V1_SIZE_MAX_BYTES: usize = 107;
const V2_SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2: signature, command, family and length.
const V2_FIXED_BYTES: usize = 16;
/// What may follow the fixed part: addresses and TLVs. The protocol allows 65,535; proxies send under 600.
const V2_REST_MAX_BYTES: usize = 4_096;

/// What the beginning of a connection says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proxied {
    /// The header is not whole yet.
    NeedMore,
    /// The header.
    Parsed(ProxyHeader),
    /// No header: the peer is misconfigured or lies about being a proxy. The session ends.
    Invalid(ProxyError),
}

/// A whole header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProxyHeader {
    /// The client, as the proxy saw it. `None`: the proxy speaks for itself (a health check) or does not know;
    /// the connection's own addresses count.
    pub source: Option<SocketAddr>,
    /// The address that the client connected to.
    pub destination: Option<SocketAddr>,
    /// Octets of the header; what follows is the client's.
    pub consumed: usize,
}

/// Why this is no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ProxyError {
    /// Something else than a header came first.
    #[error("the connection does not begin with a PROXY header")]
    Signature,
    /// Version 1 without CRLF in its first 107 octets, or version 2 with too much in it.
    #[error("the PROXY header is too long")]
    TooLong,
    /// A command, family or address that is not one.
    #[error("the PROXY header is malformed")]
    Malformed,
}

/// Reads the header at the beginning of `bytes`. Looks at no more than 4,112 octets, however many there are.
#[must_use]
pub fn parse_proxy_header(bytes: &[u8]) -> Proxied {
    let begins = |signature: &[u8]| {
        let compared = bytes.len().min(signature.len());
        bytes[..compared] == signature[..compared]
    };
    let parsed = if begins(b"PROXY ") {
        parse_v1(bytes)
    } else if begins(V2_SIGNATURE) {
        parse_v2(bytes)
    } else {
        Err(ProxyError::Signature)
    };
    match parsed {
        Ok(Some(header)) => Proxied::Parsed(header),
        Ok(None) => Proxied::NeedMore,
        Err(error) => Proxied::Invalid(error),
    }
}

/// `PROXY TCP4 192.0.2.1 198.51.100.1 40000 25` CRLF, or `PROXY UNKNOWN` and anything (§2.1).
fn parse_v1(bytes: &[u8]) -> Result<Option<ProxyHeader>, ProxyError> {
    let window = &bytes[..bytes.len().min(V1_SIZE_MAX_BYTES)];
    let Some(end) = window.windows(2).position(|pair| pair == b"\r\n") else {
        return if bytes.len() >= V1_SIZE_MAX_BYTES { Err(ProxyError::TooLong) } else { Ok(None) };
    };
    let line = std::str::from_utf8(&window[..end]).map_err(|_| ProxyError::Malformed)?;
    let mut words = line.split(' ').skip(1);
    let is_v4 = match words.next() {
        Some("UNKNOWN") => {
            return Ok(Some(ProxyHeader { source: None, destination: None, consumed: end + 2 }));
        }
        Some("TCP4") => true,
        Some("TCP6") => false,
        _ => return Err(ProxyError::Malformed),
    };
    let (Some(source), Some(destination), Some(source_port), Some(destination_port), None) =
        (words.next(), words.next(), words.next(), words.next(), words.next())
    else {
        return Err(ProxyError::Malformed);
    };
    let address = |ip: &str, port: &str| {
        let ip: IpAddr = ip.parse().map_err(|_| ProxyError::Malformed)?;
        // `parse` would take a sign; leading zeros are no number of this protocol.
        let is_number = port.bytes().all(|b| b.is_ascii_digit()) && (port == "0" || !port.starts_with('0'));
        match port.parse::<u16>() {
            Ok(port) if is_number && ip.is_ipv4() == is_v4 => Ok(SocketAddr::new(ip.to_canonical(), port)),
            _ => Err(ProxyError::Malformed),
        }
    };
    Ok(Some(ProxyHeader {
        source: Some(address(source, source_port)?),
        destination: Some(address(destination, destination_port)?),
        consumed: end + 2,
    }))
}

/// The binary header (§2.2).
fn parse_v2(bytes: &[u8]) -> Result<Option<ProxyHeader>, ProxyError> {
    let Some((fixed, rest)) = bytes.split_first_chunk::<V2_FIXED_BYTES>() else { return Ok(None) };
    let [.., command, family, high, low] = *fixed;
    let length = usize::from(u16::from_be_bytes([high, low]));
    let is_local = match command {
        0x20 => true,
        0x21 => false,
        _ => return Err(ProxyError::Malformed),
    };
    if length > V2_REST_MAX_BYTES {
        return Err(ProxyError::TooLong);
    }
    let Some(rest) = rest.get(..length) else { return Ok(None) };
    let consumed = V2_FIXED_BYTES + length;
    let addresses = match family {
        // What a health check says of addresses is to be ignored.
        _ if is_local => None,
        0x11 => Some(addresses_v2::<4>(rest)?),
        0x21 => Some(addresses_v2::<16>(rest)?),
        // Unspecified, datagrams, Unix sockets: nothing that names a TCP client.
        0x00 | 0x12 | 0x22 | 0x31 | 0x32 => None,
        _ => return Err(ProxyError::Malformed),
    };
    let (source, destination) = addresses.unzip();
    Ok(Some(ProxyHeader { source, destination, consumed }))
}

/// Source, destination and their ports. TLVs behind them are skipped.
fn addresses_v2<const N: usize>(rest: &[u8]) -> Result<(SocketAddr, SocketAddr), ProxyError> {
    let parse = || {
        let (source, rest) = rest.split_first_chunk::<N>()?;
        let (destination, rest) = rest.split_first_chunk::<N>()?;
        let (source_port, rest) = rest.split_first_chunk::<2>()?;
        let (destination_port, _) = rest.split_first_chunk::<2>()?;
        let address = |ip: &[u8], port: &[u8; 2]| {
            let ip = match ip {
                [a, b, c, d] => IpAddr::V4(Ipv4Addr::new(*a, *b, *c, *d)),
                _ => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(ip).ok()?)).to_canonical(),
            };
            Some(SocketAddr::new(ip, u16::from_be_bytes(*port)))
        };
        Some((address(source, source_port)?, address(destination, destination_port)?))
    };
    parse().ok_or(ProxyError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(source: &str, destination: &str, consumed: usize) -> Proxied {
        let address = |text: &str| (!text.is_empty()).then(|| text.parse().unwrap());
        Proxied::Parsed(ProxyHeader { source: address(source), destination: address(destination), consumed })
    }

    /// Whatever the header is, every beginning of it asks for more.
    fn check(bytes: &[u8], expected: &Proxied) {
        assert_eq!(&parse_proxy_header(bytes), expected, "{}", bytes.escape_ascii());
        if let Proxied::Parsed(header) = expected {
            for end in 0..header.consumed {
                assert_eq!(parse_proxy_header(&bytes[..end]), Proxied::NeedMore, "cut at {end}");
            }
        }
    }

    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let mut bytes = V2_SIGNATURE.to_vec();
        bytes.extend([command, family]);
        bytes.extend(u16::try_from(rest.len()).unwrap().to_be_bytes());
        bytes.extend(rest);
        bytes
    }

    #[test]
    fn version_1_names_client_and_destination() {
        let line = b"PROXY TCP4 192.0.2.1 198.51.100.1 40000 25\r\nEHLO a\r\n";
        check(line, &header("192.0.2.1:40000", "198.51.100.1:25", 44));
        let line = b"PROXY TCP6 2001:db8::1 2001:db8::2 1 0\r\n";
        check(line, &header("[2001:db8::1]:1", "[2001:db8::2]:0", 40));
        check(b"PROXY UNKNOWN\r\n", &header("", "", 15));
        check(b"PROXY UNKNOWN ffff::1 rest of it\r\n", &header("", "", 34));
    }

    #[test]
    fn version_1_that_is_none_is_refused() {
        let malformed = Proxied::Invalid(ProxyError::Malformed);
        for line in [
            "PROXY \r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 40000\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 40000 25 1\r\n",
            "PROXY TCP4 192.0.2.1  198.51.100.1 40000 25\r\n",
            "PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 65536 25\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 +1 25\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 01 25\r\n",
            "PROXY TCP4 192.0.2.999 198.51.100.1 1 25\r\n",
            "PROXY UDP4 192.0.2.1 198.51.100.1 1 25\r\n",
        ] {
            check(line.as_bytes(), &malformed);
        }
        check(b"EHLO client.example\r\n", &Proxied::Invalid(ProxyError::Signature));
        check(b"PROXZ", &Proxied::Invalid(ProxyError::Signature));
        check("PROXY TCP4 é".as_bytes(), &Proxied::NeedMore);
        check(&[b"PROXY UNKNOWN ", &[b'a'; 100][..]].concat(), &Proxied::Invalid(ProxyError::TooLong));
    }

    #[test]
    fn version_2_names_client_and_destination_and_its_tlvs_are_skipped() {
        let v4 = [192, 0, 2, 1, 198, 51, 100, 1, 0x9c, 0x40, 0, 25];
        check(&v2(0x21, 0x11, &v4), &header("192.0.2.1:40000", "198.51.100.1:25", 28));
        let with_tlv = [&v4[..], &[4, 0, 1, 0]].concat();
        check(&v2(0x21, 0x11, &with_tlv), &header("192.0.2.1:40000", "198.51.100.1:25", 32));
        let mut v6 = [0; 36];
        (v6[15], v6[31], v6[33], v6[35]) = (1, 2, 3, 4);
        check(&v2(0x21, 0x21, &v6), &header("[::1]:3", "[::2]:4", 52));
        check(&v2(0x20, 0x11, &v4), &header("", "", 28));
        check(&v2(0x20, 0x00, &[]), &header("", "", 16));
        check(&v2(0x21, 0x31, &[0; 216]), &header("", "", 232));
    }

    #[test]
    fn version_2_that_is_none_is_refused() {
        check(&v2(0x11, 0x11, &[0; 12]), &Proxied::Invalid(ProxyError::Malformed));
        check(&v2(0x22, 0x11, &[0; 12]), &Proxied::Invalid(ProxyError::Malformed));
        check(&v2(0x21, 0x41, &[0; 12]), &Proxied::Invalid(ProxyError::Malformed));
        check(&v2(0x21, 0x11, &[0; 11]), &Proxied::Invalid(ProxyError::Malformed));
        check(&v2(0x21, 0x11, &[0; 4_097]), &Proxied::Invalid(ProxyError::TooLong));
        check(b"\r\n\r\n\0\r\nQUIT\r", &Proxied::Invalid(ProxyError::Signature));
    }

    proptest! {
        #[test]
        fn no_input_panics(bytes: Vec<u8>, family: u8, command in 0x20u8..0x22) {
            let _ = parse_proxy_header(&bytes);
            let _ = parse_proxy_header(&v2(command, family, &bytes[..bytes.len().min(60_000)]));
            let _ = parse_proxy_header(&[&b"PROXY TCP6 "[..], &bytes].concat());
        }
    }
}
