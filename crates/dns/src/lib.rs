//! One resolver face: where mail for a domain goes, with the failures told apart.
//!
//! **For:** turning a recipient's domain into a [`MailRoute`] (RFC 5321 §5.1, RFC 7505) and a smarthost's name
//! into [`Addresses`], for shards that must not wait: a question is handed over, the answer comes back through
//! a callback that wakes the shard.
//! **Promises:** "there is no MX" is only ever concluded from an answer that says so, never from a failure;
//! answers are kept for as long as their TTL says and, while the name servers do not answer, served stale for
//! a day; equal questions are asked once; look-ups, hosts, addresses and the cache are bounded; every answer
//! can be explained.
//! **Never:** decides whether an address may be dialled (`net` does), retries mail, or blocks a caller.
//!
//! ```
//! use postrider_dns::{Answer, MailRoute, Query, Scripted};
//! // The face of the real resolver, with a script in place of name servers.
//! let dns = Scripted::new().mx("example.com", &[(10, "mx.example.com")]).a("mx.example.com", &["192.0.2.1"]);
//! let query = Query::MailRoute { domain: "example.com".parse().unwrap(), seed: 1 };
//! let Answer::MailRoute(MailRoute::Hosts(route)) = dns.answer(&query) else { panic!("no route") };
//! assert_eq!(route.hosts[0].name.as_str(), "mx.example.com");
//! assert_eq!(route.site_key(), "mx.example.com");
//! ```

mod answer;
mod cache;
mod error;
mod hickory;
mod records;
mod resolver;
mod route;
mod scripted;
mod site;

pub use answer::{Addresses, Answer, MailRoute, MxHost, Query, Route, Skip, Skipped};
pub use cache::CacheLimits;
pub use error::{Culprit, DnsError};
pub use records::RecordKind;
pub use resolver::{Lookup, Resolver, ResolverOptions, StartError};
pub use scripted::Scripted;
