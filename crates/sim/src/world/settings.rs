//! The relay that lives in the world: its configuration and its shards.

use super::{CONNECTIONS_PER_SITE_MAX, SHARDS};
use postrider_engine::{Shard, ShardConfig};
use postrider_model::snapshot::{
    AddressPattern, Delivery, DomainPattern, Legacy, Listener, Protocol, Route, SessionLimits, Source,
    Target, TlsLevel,
};
use postrider_model::{Domain, IdCipher, Snapshot};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

pub(super) fn snapshot() -> Snapshot {
    let domain = |text: &str| text.parse::<Domain>().unwrap_or_else(|e| panic!("{text}: {e}"));
    let route = |name: &str, domains, to| {
        Arc::new(Route {
            name: name.into(),
            domains,
            senders: Vec::new(),
            to,
            tls: TlsLevel::None,
            source: Source::default(),
            connections_per_site_max: None,
        })
    };
    let client = "127.0.0.0/8".parse().unwrap_or_else(|e| panic!("{e}"));
    Snapshot {
        hostname: domain("relay.test"),
        listeners: vec![Arc::new(Listener {
            name: "relay".into(),
            protocol: Protocol::Smtp,
            address: SocketAddr::from(([127, 0, 0, 1], 25)),
            tls: None,
            legacy: Some(Legacy { clients: vec![client], from: vec![AddressPattern::Any] }),
            sandbox: false,
            limits: SessionLimits::default(),
            xclient: Vec::new(),
            proxy: Vec::new(),
        })],
        accounts: Vec::new(),
        routes: vec![
            route("sandbox", vec![DomainPattern::Exact(domain("sandbox.test"))], Target::Sandbox),
            route("mx", vec![DomainPattern::Any], Target::Mx),
        ],
        delivery: Delivery {
            retry: vec![Duration::from_secs(5), Duration::from_secs(30)],
            expire: Duration::from_secs(3_600),
            delay_warning: Duration::from_secs(600),
            connections_per_site_max: CONNECTIONS_PER_SITE_MAX,
            recipients_per_transaction_max: 3,
            messages_per_connection_max: 20,
            ..Delivery::default()
        },
    }
}

pub(super) fn make_shards(snapshot: &Arc<Snapshot>, seed: u64) -> Vec<Shard> {
    (0..SHARDS)
        .map(|index| {
            Shard::new(ShardConfig {
                index,
                shards: SHARDS,
                snapshot: snapshot.clone(),
                cipher: IdCipher::new([9; 16]),
                seed: seed ^ u64::from(index),
                fresh_size_max_bytes: 64 << 10,
            })
        })
        .collect()
}
