//! Which addresses a stranger's DNS may lead us to.
//!
//! An MX record can name any address. Without a guard, mail to a domain of an attacker's would reach the
//! services behind our firewall, or ourselves in a loop.

use postrider_model::snapshot::Cidr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use thiserror::Error;

/// What kind of address was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// One of our own listeners: the mail would come back.
    #[error("an address that this relay listens on")]
    Own,
    /// `0.0.0.0/8`, `::`
    #[error("no address of a host")]
    Unspecified,
    /// `127.0.0.0/8`, `::1`
    #[error("a loopback address")]
    Loopback,
    /// RFC 1918 and RFC 4193, site-local addresses (RFC 3879).
    #[error("a private address")]
    Private,
    /// `169.254.0.0/16`, `fe80::/10`: also where clouds keep their metadata services.
    #[error("a link-local address")]
    LinkLocal,
    /// `100.64.0.0/10` (RFC 6598).
    #[error("an address behind a carrier's NAT")]
    SharedNat,
    /// `224.0.0.0/4`, `ff00::/8`, broadcast.
    #[error("a multicast or broadcast address")]
    Multicast,
    /// Documentation (RFC 5737, RFC 3849, RFC 9637) and benchmarking (RFC 2544, RFC 5180).
    #[error("an address for documentation or benchmarks")]
    Documentation,
    /// Anything else that the IANA registries keep out of the public Internet.
    #[error("a reserved address")]
    Reserved,
}

/// An address that mail must not go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{address} is {refusal}; mail goes there only by a route that names it or a network in delivery.allowed_networks", address = address.ip())]
pub struct Refused {
    /// Where it should have gone.
    pub address: SocketAddr,
    /// Why not.
    pub refusal: Refusal,
}

/// A destination that may be dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admitted {
    address: SocketAddr,
    /// One of our listeners takes this port on every address of this host, so whether this is one is seen
    /// only once the connection stands.
    may_be_own: bool,
}

impl Admitted {
    /// A destination that the operator named in a route: any address will do.
    #[must_use]
    pub fn named_by_a_route(address: SocketAddr) -> Self {
        Admitted { address, may_be_own: false }
    }

    /// Where.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The connection from `local` to this address, which now stands, leads to ourselves.
    pub(crate) fn is_own(&self, local: SocketAddr) -> bool {
        let itself = local == self.address;
        itself || self.may_be_own && local.ip().to_canonical() == self.address.ip().to_canonical()
    }
}

/// Keeps mail that DNS routes away from private and own addresses.
#[derive(Clone, Debug, Default)]
pub struct Guard {
    own: Vec<SocketAddr>,
    allowed: Vec<Cidr>,
}

impl Guard {
    /// `own`: the addresses we listen on, as configured (with their real ports). `allowed`: private or loopback
    /// networks that mail may go to.
    #[must_use]
    pub fn new(own: Vec<SocketAddr>, allowed: Vec<Cidr>) -> Self {
        Guard { own, allowed }
    }

    /// Admits a destination that DNS named.
    ///
    /// # Errors
    /// What kind of address it is.
    pub fn admit(&self, address: SocketAddr) -> Result<Admitted, Refused> {
        self.check(address)?;
        let may_be_own = self.own.iter().any(|own| own.ip().is_unspecified() && own.port() == address.port());
        Ok(Admitted { address, may_be_own })
    }

    /// As [`Guard::admit`], for those who only want to know.
    ///
    /// # Errors
    /// What kind of address it is.
    pub fn check(&self, address: SocketAddr) -> Result<(), Refused> {
        let ip = address.ip().to_canonical();
        let refusal = if self.listens_on(ip, address.port()) {
            Some(Refusal::Own)
        } else if self.allowed.iter().any(|network| network.contains(address.ip())) {
            None
        } else {
            special_use(ip)
        };
        refusal.map_or(Ok(()), |refusal| Err(Refused { address, refusal }))
    }

    fn listens_on(&self, ip: IpAddr, port: u16) -> bool {
        self.own.iter().any(|own| {
            own.port() == port
                && (own.ip().to_canonical() == ip || own.ip().is_unspecified() && ip.is_loopback())
        })
    }
}

/// What keeps an address out of the public Internet, by the IANA special-purpose registries (RFC 6890).
fn special_use(ip: IpAddr) -> Option<Refusal> {
    match ip.to_canonical() {
        IpAddr::V4(ip) => special_use_v4(ip),
        IpAddr::V6(ip) => special_use_v6(ip),
    }
}

fn special_use_v4(ip: Ipv4Addr) -> Option<Refusal> {
    Some(match ip.octets() {
        [0, ..] => Refusal::Unspecified,
        [127, ..] => Refusal::Loopback,
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => Refusal::Private,
        [169, 254, ..] => Refusal::LinkLocal,
        [100, 64..=127, ..] => Refusal::SharedNat,
        [224..=239, ..] | [255, 255, 255, 255] => Refusal::Multicast,
        [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] | [198, 18..=19, ..] => Refusal::Documentation,
        // Protocol assignments, the 6to4 relays that no longer exist, and class E.
        [192, 0, 0, _] | [192, 88, 99, _] | [240..=255, ..] => Refusal::Reserved,
        _ => return None,
    })
}

fn special_use_v6(ip: Ipv6Addr) -> Option<Refusal> {
    let segments = ip.segments();
    let embedded = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        special_use_v4(Ipv4Addr::new(a, b, c, d))
    };
    Some(match segments {
        [0, 0, 0, 0, 0, 0, 0, 0] => Refusal::Unspecified,
        [0, 0, 0, 0, 0, 0, 0, 1] => Refusal::Loopback,
        // A NAT64 gateway (RFC 6052) or a 6to4 one (RFC 3056) leads to the IPv4 address inside.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => return embedded(high, low),
        [0xfc00..=0xfdff | 0xfec0..=0xfeff, ..] => Refusal::Private,
        [0xfe80..=0xfebf, ..] => Refusal::LinkLocal,
        [0xff00..=0xffff, ..] => Refusal::Multicast,
        [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] | [0x2001, 2, 0, ..] => Refusal::Documentation,
        // Teredo, ORCHID and other protocol assignments; then all that is no global unicast address (RFC 4291
        // §2.4), among it the IPv4-compatible addresses and the local NAT64 prefixes (RFC 8215).
        [0x2001, 0..=0x1ff, ..] => Refusal::Reserved,
        [0x2000..=0x3fff, ..] => return None,
        _ => Refusal::Reserved,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(address: &str, expected: Option<Refusal>) {
        let ip: IpAddr = address.parse().unwrap();
        let refused = Guard::default().check(SocketAddr::new(ip, 25)).err();
        assert_eq!(refused.map(|refused| refused.refusal), expected, "{address}");
    }

    #[test]
    fn public_addresses_are_admitted() {
        for address in ["1.1.1.1", "8.8.8.8", "100.63.255.255", "100.128.0.1", "172.15.0.1", "172.32.0.1"] {
            check(address, None);
        }
        for address in ["192.0.1.1", "223.255.255.255", "2606:4700::1", "2001:200::1", "2a00::1", "3ffe::1"] {
            check(address, None);
        }
    }

    #[test]
    fn special_addresses_are_refused_by_kind() {
        check("0.0.0.0", Some(Refusal::Unspecified));
        check("0.1.2.3", Some(Refusal::Unspecified));
        check("127.8.9.1", Some(Refusal::Loopback));
        check("10.0.0.1", Some(Refusal::Private));
        check("172.16.0.1", Some(Refusal::Private));
        check("172.31.255.255", Some(Refusal::Private));
        check("192.168.1.1", Some(Refusal::Private));
        check("169.254.169.254", Some(Refusal::LinkLocal));
        check("100.64.0.1", Some(Refusal::SharedNat));
        check("224.0.0.1", Some(Refusal::Multicast));
        check("255.255.255.255", Some(Refusal::Multicast));
        check("192.0.2.1", Some(Refusal::Documentation));
        check("198.18.0.1", Some(Refusal::Documentation));
        check("240.0.0.1", Some(Refusal::Reserved));
        check("192.0.0.8", Some(Refusal::Reserved));
        check("::", Some(Refusal::Unspecified));
        check("::1", Some(Refusal::Loopback));
        check("fd00::1", Some(Refusal::Private));
        check("fec0::1", Some(Refusal::Private));
        check("fe80::1", Some(Refusal::LinkLocal));
        check("ff02::1", Some(Refusal::Multicast));
        check("2001:db8::1", Some(Refusal::Documentation));
        check("3fff:fff::1", Some(Refusal::Documentation));
        check("2001::1", Some(Refusal::Reserved));
        check("100::1", Some(Refusal::Reserved));
        check("4000::1", Some(Refusal::Reserved));
    }

    #[test]
    fn an_address_inside_an_address_is_seen() {
        check("::ffff:10.0.0.1", Some(Refusal::Private));
        check("::ffff:127.0.0.1", Some(Refusal::Loopback));
        check("::ffff:8.8.8.8", None);
        check("64:ff9b::10.0.0.1", Some(Refusal::Private));
        check("64:ff9b::8.8.8.8", None);
        check("64:ff9b:1::8.8.8.8", Some(Refusal::Reserved));
        check("2002:7f00:1::1", Some(Refusal::Loopback));
        check("2002:808:808::1", None);
        check("::127.0.0.1", Some(Refusal::Reserved));
    }

    #[test]
    fn own_listeners_are_refused_even_in_an_allowed_network() {
        let own = vec!["127.0.0.1:2525".parse().unwrap(), "0.0.0.0:25".parse().unwrap()];
        let guard = Guard::new(own, vec!["127.0.0.0/8".parse().unwrap(), "10.0.0.0/8".parse().unwrap()]);
        let check = |address: &str| guard.check(address.parse().unwrap()).map_err(|refused| refused.refusal);
        assert_eq!(check("127.0.0.1:2525"), Err(Refusal::Own));
        assert_eq!(check("[::ffff:127.0.0.1]:2525"), Err(Refusal::Own));
        assert_eq!(check("127.0.0.1:2526"), Ok(()));
        assert_eq!(check("127.0.0.2:25"), Err(Refusal::Own));
        assert_eq!(check("10.1.2.3:25"), Ok(()));
        assert_eq!(check("192.168.0.1:25"), Err(Refusal::Private));
    }

    #[test]
    fn a_connection_to_ourselves_is_seen_once_it_stands() {
        let guard = Guard::new(vec!["0.0.0.0:25".parse().unwrap()], vec!["10.0.0.0/8".parse().unwrap()]);
        let admitted = guard.admit("10.1.2.3:25".parse().unwrap()).unwrap();
        assert!(admitted.is_own("10.1.2.3:40000".parse().unwrap()));
        assert!(!admitted.is_own("10.1.2.4:40000".parse().unwrap()));
    }
}
