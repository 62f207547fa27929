//! What is said at the start: what runs, and to a newcomer what to do next.

use crate::cli::Place;
use crate::config::Settings;
use postrider_model::snapshot::{AddressPattern, DomainPattern, Host, Listener, Route, Scheme, Target};
use std::fmt::Write as _;
use std::net::SocketAddr;

/// The text, with the addresses that listeners really have.
pub(crate) fn banner(
    settings: &Settings,
    place: &Place,
    addresses: &[SocketAddr],
    http: Option<SocketAddr>,
    program: &str,
) -> String {
    let mut out = String::new();
    let snapshot = &settings.snapshot;
    let _ = writeln!(out, "Postrider {} runs as {}.", env!("CARGO_PKG_VERSION"), snapshot.hostname);
    let _ = writeln!(out, "  data      {}", settings.data_dir.display());
    for (listener, address) in snapshot.listeners.iter().zip(addresses) {
        let _ = writeln!(out, "  listens   {address}  {}", listener_text(listener));
    }
    if let (Some(address), Some(http)) = (http, &settings.http) {
        let scheme = if http.tls.is_some() { "https" } else { "http" };
        let _ = writeln!(out, "  serves    {scheme}://{address}  the API, with a key");
    }
    for route in &snapshot.routes {
        let _ = writeln!(out, "  route     {}", route_text(route));
    }
    let sandbox = snapshot.listeners.iter().zip(addresses).find(|(listener, _)| listener.sandbox);
    if let Some((_, address)) = sandbox {
        let place = place.arguments();
        let _ = write!(
            out,
            "\nMail is kept, never sent. Send a first one from another terminal, with one of\n\
             \x20 {program} send{place} --to bob@example.net\n\
             \x20 swaks --server {address} --from ada@example.com --to bob@example.net\n\
             \x20 printf 'Subject: Hello\\n\\nIt works.\\n' | curl --url smtp://{address} --crlf \\\n\
             \x20   --mail-from ada@example.com --mail-rcpt bob@example.net --upload-file -\n\
             and look at it:\n\
             \x20 {program} sandbox{place} list\n\
             \x20 {program} sandbox{place} show\n\
             Give a program a login and an API key of its own:\n\
             \x20 {program} app{place} create shop --from '*@example.com'\n\
             To send real mail, write a configuration: docs/configuration.md. Ctrl-C stops.\n"
        );
    }
    out
}

fn listener_text(listener: &Listener) -> String {
    let mut parts = vec![format!("{}: {}", listener.name, format!("{:?}", listener.protocol).to_lowercase())];
    match (&listener.tls, listener.sandbox) {
        (_, true) => parts.push("any login".to_owned()),
        (Some(_), _) => parts.push("login under TLS".to_owned()),
        (None, _) => {}
    }
    if let Some(legacy) = &listener.legacy {
        let clients: Vec<_> = legacy.clients.iter().map(ToString::to_string).collect();
        parts.push(format!("no login from {}", clients.join(" ")));
    }
    parts.join(", ")
}

fn route_text(route: &Route) -> String {
    let domains: Vec<_> = route
        .domains
        .iter()
        .map(|pattern| match pattern {
            DomainPattern::Any => "*".to_owned(),
            DomainPattern::Exact(domain) => domain.to_string(),
            DomainPattern::Suffix(domain) => format!("*.{domain}"),
        })
        .collect();
    let senders: Vec<_> = route.senders.iter().map(sender_text).collect();
    let from = if senders.is_empty() { String::new() } else { format!(" from {}", senders.join(" ")) };
    let to = match &route.to {
        Target::Mx => "mx".to_owned(),
        Target::Sandbox => "sandbox (kept, never sent)".to_owned(),
        Target::Hosts(hops) => {
            let hops: Vec<_> =
                hops.iter().map(|hop| format!("{}{}", scheme(hop.scheme), host(&hop.host))).collect();
            hops.join(", then ")
        }
    };
    format!("{}: {}{from} to {to}", route.name, domains.join(" "))
}

fn sender_text(pattern: &AddressPattern) -> String {
    match pattern {
        AddressPattern::Any => "*".to_owned(),
        AddressPattern::Domain(domain) => format!("*@{domain}"),
        AddressPattern::Subdomains(domain) => format!("*@*.{domain}"),
        AddressPattern::Mailbox(mailbox) => mailbox.to_string(),
    }
}

fn scheme(scheme: Scheme) -> &'static str {
    match scheme {
        Scheme::Smtp => "smtp://",
        Scheme::Smtps => "smtps://",
        Scheme::Lmtp => "lmtp://",
    }
}

fn host(host: &Host) -> String {
    match host {
        Host::Address(address) => address.to_string(),
        Host::Name(name, port) => format!("{name}:{port}"),
        Host::Socket(path) => path.display().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Surroundings, check};

    fn shown(source: &str) -> String {
        let surroundings = Surroundings { hostname: "box".into(), directory: ".".into(), data_dir: None };
        let loaded = check("t.toml".as_ref(), source, &surroundings).unwrap();
        let place = Place { config: None, data_dir: Some("try".into()) };
        banner(&loaded.settings, &place, &["127.0.0.1:2525".parse().unwrap()], None, "postrider")
    }

    #[test]
    fn a_newcomer_is_told_what_to_do() {
        let shown = shown("");
        assert!(shown.contains("postrider send --data-dir try --to bob@example.net"), "{shown}");
        assert!(shown.contains("route     sandbox: * to sandbox (kept, never sent)"), "{shown}");
    }

    #[test]
    fn no_password_is_shown() {
        let shown = shown(
            "[[listener]]\naddress = \"127.0.0.1:2525\"\nlegacy = { clients = \"10.0.0.0/8\", from = \"a@b.example\" }\n\
             [[route]]\nto = [\"smtps://u:hunter2@a.example\", \"lmtp:///run/x\"]\nsenders = \"*@b.example\"\n",
        );
        let route = "route-1: * from *@b.example to smtps://a.example:465, then lmtp:///run/x\n";
        assert!(shown.contains(route) && !shown.contains("hunter2"), "{shown}");
        assert!(shown.contains("listener-1: smtp, no login from 10.0.0.0/8"), "{shown}");
    }
}
