//! Says where mail for domains goes: `cargo run -p postrider-dns --example route -- [@SERVER:PORT] DOMAIN…`

use postrider_dns::{Answer, Lookup, Query, Resolver, ResolverOptions};
use postrider_model::Domain;
use std::error::Error;
use std::sync::mpsc;
use std::time::Instant;

fn main() -> Result<(), Box<dyn Error>> {
    let mut options = ResolverOptions::default();
    let mut domains: Vec<Domain> = Vec::new();
    for argument in std::env::args().skip(1) {
        match argument.strip_prefix('@') {
            Some(server) => options.servers.push(server.parse()?),
            None => domains.push(argument.parse()?),
        }
    }
    let resolver = Resolver::start(options)?;
    for domain in domains {
        let (sender, receiver) = mpsc::channel();
        let asked = Instant::now();
        let query = Query::MailRoute { domain: domain.clone(), seed: 1 };
        resolver.lookup(query, Box::new(move |answer| drop(sender.send(answer))));
        if let Answer::MailRoute(route) = receiver.recv()? {
            println!("{}\n  after {:?}", route.explain(&domain), asked.elapsed());
        }
    }
    Ok(())
}
