//! Octets between clients and sessions, and between connections and sites, a little at a time.

use super::{Event, InLink, OutLink, SHARDS, World};
use crate::client::Client;
use crate::site::SiteSession;
use postrider_auth::Directory;
use postrider_egress::{Connection, Setup, Wants as OutWants};
use postrider_engine::{ConnectionEnd, ConnectionId, Plan, PlanHost, Question, Resolution};
use postrider_ingress::{Pressure, Session, SessionContext, SessionTls, Wants as InWants};
use postrider_model::{EnhancedCode, Reply};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

impl World {
    pub(super) fn new_client(&mut self) {
        if self.messages_left == 0 {
            return;
        }
        let messages = self.messages_left.min(1 + u32::try_from(self.dice.below(10)).unwrap_or(0));
        self.messages_left -= messages;
        self.ids += 1;
        let id = self.ids;
        let shard = u16::try_from(self.dice.below(u64::from(SHARDS))).unwrap_or(0);
        let session = Session::new(SessionContext {
            control: Arc::default(),
            snapshot: self.snapshot.clone(),
            listener: self.snapshot.listeners[0].clone(),
            directory: Arc::new(Directory::anyone()),
            ids: self.shards[0].cipher().clone(),
            peer: SocketAddr::from(([127, 0, 0, 1], 4_000)),
            local: SocketAddr::from(([127, 0, 0, 1], 25)),
            tls: SessionTls::Unavailable,
            seed: self.dice.roll(),
            now: self.now,
        });
        let client = Client::new(messages, 700 << 10);
        self.inbound.insert(id, InLink { shard, session, client, leftover: Vec::new(), ticket: None });
        self.after_millis(1, Event::ToSession(id));
    }

    /// Lets a client and its session talk until both wait.
    pub(super) fn serve(&mut self, id: u32) {
        loop {
            let Some(link) = self.inbound.get_mut(&id) else { return };
            let shard = &mut self.shards[usize::from(link.shard)];
            let said = std::mem::take(link.session.output());
            link.client.hear(&said, &mut self.ledger, &mut self.dice);
            let mut progress = !said.is_empty();
            let pressure = match self.dice.below(100) {
                0 => Pressure::Sheds,
                1..5 => Pressure::Spills,
                _ => Pressure::None,
            };
            link.session.set_pressure(self.now, pressure, shard);
            match link.session.wants() {
                InWants::Close => return self.hang_up(id),
                InWants::Read => {
                    if link.leftover.is_empty() {
                        let most = 1 + usize::try_from(self.dice.below(9_000)).unwrap_or(0);
                        let count = link.client.out.len().min(most);
                        link.leftover.extend(link.client.out.drain(..count));
                    }
                    if !link.leftover.is_empty() {
                        let taken = link.session.receive(self.now, &link.leftover, shard);
                        link.leftover.drain(..taken);
                        progress |= taken > 0;
                        let more = link.client.out.len().min(4_096);
                        if taken == 0 && more > 0 {
                            link.leftover.extend(link.client.out.drain(..more));
                            progress = true;
                        }
                    }
                }
                InWants::Write | InWants::Blocked | InWants::StartTls => {}
            }
            if let Some(ticket) = shard.take_submitted() {
                link.ticket = Some(ticket);
            }
            if link.client.is_over && link.client.out.is_empty() && link.leftover.is_empty() && !progress {
                return self.hang_up(id);
            }
            if !progress {
                return;
            }
        }
    }

    fn hang_up(&mut self, id: u32) {
        if let Some(mut link) = self.inbound.remove(&id) {
            link.session.disconnected(&mut self.shards[usize::from(link.shard)]);
        }
        self.after_millis(50, Event::Client);
    }

    pub(super) fn connected(&mut self, shard: u16, plan: &Arc<Plan>) {
        self.ids += 1;
        let id = ConnectionId(self.ids);
        let now = self.now;
        if self.dice.chance(self.manners.refuses_connections) {
            let end = ConnectionEnd::Unreachable(Reply::ours(451, EnhancedCode(4, 4, 1), "refused"));
            return self.shards[usize::from(shard)].connection_ended(now, id, plan.lane, end, Vec::new());
        }
        let connection = Connection::new(
            now,
            Setup {
                id,
                plan: plan.clone(),
                host: 0,
                address: plan.hosts.first().and_then(|host| host.addresses.first().copied()),
                snapshot: self.snapshot.clone(),
                plain_only: false,
                nonce: [7; 18],
                scram: None,
            },
        );
        let site = SiteSession::new(self.manners, &mut self.dice);
        self.outbound.insert(id.0, OutLink { shard, lane: plan.lane, connection, site });
        self.after_millis(2, Event::ToConnection(id.0));
    }

    /// Lets a connection and its site talk, a little at a time.
    pub(super) fn carry(&mut self, id: u32) {
        for _ in 0..4 {
            let Some(link) = self.outbound.get_mut(&id) else { return };
            let shard = &mut self.shards[usize::from(link.shard)];
            let mut progress = false;
            let octets: Vec<u8> = link.connection.output().flatten().copied().collect();
            if !octets.is_empty() {
                let most = 1 + usize::try_from(self.dice.below(octets.len() as u64)).unwrap_or(0);
                let count = if self.dice.chance(500) { octets.len() } else { most };
                for taken in link.site.hear(&octets[..count], &mut self.dice) {
                    taken.recipients.iter().for_each(|recipient| self.ledger.arrived(recipient));
                    assert!(taken.sender.is_empty() || taken.sender.ends_with("@sender.test"));
                }
                self.ledger.allowance += std::mem::take(&mut link.site.dropped_after_the_dot);
                link.connection.advance(self.now, count, shard);
                progress = true;
            }
            let said = std::mem::take(&mut link.site.out);
            if !said.is_empty() {
                link.connection.receive(self.now, &said, shard);
                progress = true;
            } else if link.site.closes && link.connection.end().is_none() {
                link.connection.closed(self.now, None, shard);
                progress = true;
            }
            if link.connection.wants() == OutWants::Close {
                if let Some(link) = self.outbound.remove(&id) {
                    let end = link.connection.end().cloned().unwrap_or(ConnectionEnd::Done);
                    let shard = &mut self.shards[usize::from(link.shard)];
                    shard.connection_ended(self.now, ConnectionId(id), link.lane, end, Vec::new());
                }
                return;
            }
            if !progress {
                return;
            }
        }
        self.after_millis(1, Event::ToConnection(id));
    }

    pub(super) fn resolution(&mut self, question: &Question) -> Resolution {
        let Question::MailExchangers(domain) = question else { panic!("seed {}: {question:?}", self.seed) };
        if self.dice.chance(self.manners.refuses_connections / 4) {
            return Resolution::Temporary(Reply::ours(451, EnhancedCode(4, 4, 3), "no answer"));
        }
        if domain.as_str() == "d7.test" {
            return Resolution::Nowhere(Reply::ours(556, EnhancedCode(5, 1, 10), "takes no mail"));
        }
        let site =
            if ["d1.test", "d2.test"].contains(&domain.as_str()) { "shared.test" } else { domain.as_str() };
        let address = SocketAddr::from(([192, 0, 2, 1], 25));
        let host = PlanHost { name: site.into(), addresses: vec![address], hop: None };
        Resolution::Hosts { site: site.into(), hosts: vec![host], ttl: Duration::from_secs(60) }
    }
}
