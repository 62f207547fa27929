//! RFC 5321 §5.1 and RFC 7505, by script.
#![allow(missing_docs, clippy::unwrap_used)]

use postrider_dns::{
    Addresses, Answer, Culprit, DnsError, MailRoute, Query, RecordKind, Route, Scripted, Skip,
};
use postrider_model::{Domain, EnhancedCode};
use proptest::prelude::*;

fn route(dns: &Scripted, domain: &str, seed: u64) -> MailRoute {
    match dns.answer(&Query::MailRoute { domain: domain.parse().unwrap(), seed }) {
        Answer::MailRoute(route) => route,
        Answer::Addresses(_) => panic!("an answer to another question"),
    }
}

fn hosts(dns: &Scripted, domain: &str) -> Route {
    match route(dns, domain, 7) {
        MailRoute::Hosts(route) => route,
        other => panic!("{other:?}"),
    }
}

fn names(route: &Route) -> Vec<&str> {
    route.hosts.iter().map(|host| host.name.as_str()).collect()
}

/// The reply's code and enhanced code.
fn check_refused(dns: &Scripted, domain: &str, code: u16, enhanced: (u8, u16, u16)) {
    let found = route(dns, domain, 7);
    let reply = found.reply(&domain.parse().unwrap()).unwrap_or_else(|| panic!("{found:?}"));
    let expected = EnhancedCode(enhanced.0, enhanced.1, enhanced.2);
    assert_eq!((reply.code(), reply.enhanced()), (code, Some(expected)), "{domain}: {found:?}");
}

fn skips(route: &Route) -> Vec<(&str, &Skip)> {
    route.skipped.iter().map(|skipped| (&*skipped.host, &skipped.why)).collect()
}

#[test]
fn exchangers_are_tried_by_preference_with_all_their_addresses() {
    let dns = Scripted::new()
        .mx("example.com", &[(20, "mx2.example.com"), (10, "MX1.example.com.")])
        .a("mx1.example.com", &["192.0.2.1", "192.0.2.2"])
        .aaaa("mx1.example.com", &["2001:db8::1"])
        .a("mx2.example.com", &["192.0.2.3"]);
    let found = hosts(&dns, "example.com");
    assert_eq!(names(&found), ["mx1.example.com", "mx2.example.com"]);
    let addresses: Vec<_> = found.hosts[0].addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["2001:db8::1", "192.0.2.1", "192.0.2.2"]);
    assert!(!found.implicit);
    assert_eq!(found.site_key(), "{mx1,mx2}.example.com");
}

#[test]
fn equal_preferences_are_shuffled_by_the_seed_and_only_among_themselves() {
    let equal: Vec<String> = (0..4).map(|i| format!("mx{i}.example.com")).collect();
    let mut mx: Vec<(u16, &str)> = equal.iter().map(|name| (10, name.as_str())).collect();
    mx.push((5, "first.example.com"));
    mx.push((20, "last.example.com"));
    let mut dns = Scripted::new().mx("example.com", &mx);
    for (_, name) in &mx {
        dns = dns.a(name, &["192.0.2.1"]);
    }
    let orders: std::collections::BTreeSet<Vec<String>> = (0..500)
        .map(|seed| {
            let MailRoute::Hosts(found) = route(&dns, "example.com", seed) else { panic!("no route") };
            assert_eq!(names(&found)[0], "first.example.com");
            assert_eq!(names(&found)[5], "last.example.com");
            names(&found).into_iter().map(str::to_owned).collect()
        })
        .collect();
    assert_eq!(orders.len(), 24, "every order of four hosts comes up");
    assert_eq!(route(&dns, "example.com", 3), route(&dns, "example.com", 3));
}

#[test]
fn a_domain_without_mx_is_its_own_exchanger() {
    let dns = Scripted::new().a("example.com", &["192.0.2.1"]);
    let found = hosts(&dns, "example.com");
    assert!(found.implicit);
    assert_eq!((names(&found), found.site_key()), (vec!["example.com"], "example.com"));
}

#[test]
fn failures_of_the_mx_look_up_are_never_taken_for_its_absence() {
    let dns = Scripted::new()
        .a("example.com", &["192.0.2.1"])
        .fails("example.com", RecordKind::Mx, DnsError::Timeout)
        .a("broken.example", &["192.0.2.1"])
        .fails("broken.example", RecordKind::Mx, DnsError::ServerFailure("SERVFAIL".into()));
    check_refused(&dns, "example.com", 451, (4, 4, 3));
    check_refused(&dns, "broken.example", 451, (4, 4, 3));
    let MailRoute::TemporaryFailure { asked, error, .. } = route(&dns, "broken.example", 1) else {
        panic!("no failure")
    };
    assert_eq!((&*asked, error.culprit()), ("MX of broken.example", Culprit::Zone));
}

#[test]
fn domains_that_take_no_mail_are_told_apart() {
    let dns = Scripted::new()
        .mx("null.example", &[(0, ".")])
        .a("null.example", &["192.0.2.1"])
        .aaaa("empty.example", &[])
        .mx("gone.example", &[(10, "mx.gone.example")]);
    check_refused(&dns, "null.example", 556, (5, 1, 10));
    check_refused(&dns, "nowhere.example", 550, (5, 1, 2));
    check_refused(&dns, "empty.example", 550, (5, 4, 4));
    // The exchanger does not exist.
    check_refused(&dns, "gone.example", 550, (5, 4, 4));
}

#[test]
fn exchangers_that_are_none_are_skipped_with_their_reason() {
    let dns = Scripted::new()
        .mx(
            "example.com",
            &[
                (1, "192.0.2.9"),
                (2, "a name.example"),
                (3, "."),
                (4, "missing.example.com"),
                (5, "mx.example.com"),
            ],
        )
        .a("mx.example.com", &["192.0.2.1"]);
    let found = hosts(&dns, "example.com");
    assert_eq!(names(&found), ["mx.example.com"]);
    assert_eq!(
        skips(&found),
        [
            ("192.0.2.9", &Skip::Literal),
            ("a name.example", &Skip::NoHostName),
            ("", &Skip::NoHostName),
            ("missing.example.com", &Skip::NoAddress),
        ]
    );
    let dns = Scripted::new().mx("example.com", &[(1, "192.0.2.9")]);
    check_refused(&dns, "example.com", 550, (5, 4, 4));
}

#[test]
fn an_exchanger_that_fails_is_skipped_or_waited_for() {
    let dns = Scripted::new()
        .mx("example.com", &[(1, "slow.example.com"), (2, "mx.example.com"), (3, "none.example.com")])
        .fails("slow.example.com", RecordKind::A, DnsError::Timeout)
        .a("mx.example.com", &["192.0.2.1"]);
    let found = hosts(&dns, "example.com");
    assert_eq!(names(&found), ["mx.example.com"]);
    assert_eq!(skips(&found)[0], ("slow.example.com", &Skip::Failed(DnsError::Timeout)));
    // With nobody else to try, it is too early to give up.
    let dns = Scripted::new().mx("example.com", &[(1, "slow.example.com"), (3, "none.example.com")]).fails(
        "slow.example.com",
        RecordKind::A,
        DnsError::Timeout,
    );
    check_refused(&dns, "example.com", 451, (4, 4, 3));
}

#[test]
fn one_family_is_enough_and_only_both_say_that_there_is_none() {
    let dns = Scripted::new()
        .a("v4.example", &["192.0.2.1"])
        .fails("v4.example", RecordKind::Aaaa, DnsError::Timeout)
        .fails("half.example", RecordKind::Aaaa, DnsError::Timeout);
    let addresses = |host: &str| match dns.answer(&Query::Addresses { host: host.parse().unwrap() }) {
        Answer::Addresses(addresses) => addresses,
        Answer::MailRoute(_) => panic!("an answer to another question"),
    };
    assert!(matches!(addresses("v4.example"), Addresses::Found { .. }));
    assert!(matches!(addresses("half.example"), Addresses::TemporaryFailure { .. }));
    assert!(matches!(addresses("none.example"), Addresses::None { .. }));
    assert!(matches!(addresses("[192.0.2.7]"), Addresses::Found { .. }));
}

#[test]
fn mail_never_goes_back_to_ourselves_or_to_a_worse_exchanger() {
    let dns = Scripted::new()
        .own_name("relay.example.net")
        .mx(
            "example.com",
            &[
                (10, "mx1.example.com"),
                (20, "relay.example.net"),
                (20, "mx2.example.com"),
                (30, "mx3.example.com"),
            ],
        )
        .a("mx1.example.com", &["192.0.2.1"])
        .a("mx2.example.com", &["192.0.2.2"])
        .a("mx3.example.com", &["192.0.2.3"])
        .mx("ours.example", &[(5, "Relay.Example.NET")])
        .a("relay.example.net", &["192.0.2.9"]);
    let found = hosts(&dns, "example.com");
    assert_eq!(names(&found), ["mx1.example.com"]);
    assert_eq!(skips(&found).len(), 3);
    // The site is the same as another relay would see it.
    assert!(found.site_key().contains("mx3"), "{}", found.site_key());
    check_refused(&dns, "ours.example", 554, (5, 4, 6));
    check_refused(&dns, "relay.example.net", 554, (5, 4, 6));
}

#[test]
fn an_address_literal_needs_no_look_up() {
    let found = hosts(&Scripted::new(), "[IPv6:2001:db8::25]");
    assert_eq!(found.hosts[0].addresses[0].to_string(), "2001:db8::25");
    assert_eq!(found.site_key(), "[IPv6:2001:db8::25]");
}

#[test]
fn more_exchangers_than_anyone_needs_are_cut() {
    let many: Vec<String> = (0..90).map(|i| format!("mx{i}.example.com")).collect();
    let mx: Vec<(u16, &str)> = many.iter().map(|name| (10, name.as_str())).collect();
    let mut dns = Scripted::new().mx("example.com", &mx);
    for name in &many {
        dns = dns.a(name, &["192.0.2.1"; 50]);
    }
    let found = hosts(&dns, "example.com");
    assert_eq!((found.hosts.len(), found.skipped.len()), (12, 78));
    assert!(found.hosts.iter().all(|host| host.addresses.len() == 8));
    // The key does not depend on which ones were left.
    let MailRoute::Hosts(other) = route(&dns, "example.com", 8) else { panic!("no route") };
    assert_ne!(names(&other), names(&found));
    assert_eq!(other.site_key(), found.site_key());
}

#[test]
fn a_route_explains_itself() {
    let dns = Scripted::new()
        .mx("example.com", &[(10, "mx1.example.com"), (20, "mx2.example.com")])
        .a("mx1.example.com", &["192.0.2.1"]);
    let explain = |domain: &str| {
        let domain: Domain = domain.parse().unwrap();
        route(&dns, domain.as_str(), 1).explain(&domain)
    };
    assert_eq!(
        explain("example.com"),
        "mail for example.com goes to the site {mx1,mx2}.example.com\n  \
         mx1.example.com (preference 10): 192.0.2.1\n  \
         not mx2.example.com: it has no address; this holds for 300 s"
    );
    assert_eq!(explain("nowhere.example"), "the domain nowhere.example does not exist; this holds for 300 s");
}

proptest! {
    #[test]
    fn whatever_the_records_say_a_route_has_usable_hosts_in_order(
        records in proptest::collection::vec((0u16..4, "[a-z.0-9-]{0,12}"), 0..30),
        known in proptest::collection::vec("[a-z.0-9-]{1,12}", 0..10),
        seed: u64,
    ) {
        let mx: Vec<(u16, &str)> = records.iter().map(|(preference, host)| (*preference, host.as_str())).collect();
        let mut dns = Scripted::new().mx("example.com", &mx).own_name("own.example");
        for host in records.iter().map(|(_, host)| host).chain(&known).step_by(2) {
            if host.parse::<Domain>().is_ok() {
                dns = dns.a(host, &["192.0.2.1"]);
            }
        }
        let found = route(&dns, "example.com", seed);
        let domain = "example.com".parse().unwrap();
        prop_assert!(!found.explain(&domain).is_empty());
        prop_assert_eq!(found.reply(&domain).is_none(), matches!(found, MailRoute::Hosts(_)));
        if let MailRoute::Hosts(route) = found {
            prop_assert!(!route.hosts.is_empty());
            prop_assert!(route.hosts.iter().all(|host| !host.addresses.is_empty()));
            prop_assert!(route.hosts.is_sorted_by_key(|host| host.preference));
        }
    }
}
