//! From a domain to a lane: routes, look-ups, plans, slots, and what a lane has seen.

use crate::effect::{Effect, HostQuestion, Question, Resolution};
use crate::outflow::{ConnectionEnd, ConnectionId, Plan, PlanHost};
use crate::replies::{ReplyRef, Said};
use crate::shard::{NewRecord, Shard};
use crate::transaction::Link;
use postrider_model::record::{self, Kind};
use postrider_model::snapshot::{CAPTURE_ROUTE, Host, Route, Target};
use postrider_model::{
    Domain, EnhancedCode, Mailbox, RecipientParams, Reply, Snapshot, Terminal, Timestamp, Via,
};
use postrider_queue::{Backoff, Closed, DomainId, LaneId, LaneLimits, Settings, Throttle};
use rustc_hash::FxHashMap;
use std::cmp::Ordering;
use std::sync::Arc;
use std::time::Duration;

/// Recipients looked at between two collections when a route has gone.
const REROUTE_STEP: u32 = 4_096;
/// Begins the key of a domain's back-off in the log.
const DNS_KEY: &str = "dns:";
/// The reference to no reply.
const NOTHING_SAID: u32 = ReplyRef::NONE.0;
/// Captures at once.
const SANDBOX_CONNECTIONS_MAX: usize = 4;

/// What is known of lanes beyond their scheduling.
#[derive(Debug, Default)]
pub(crate) struct Lanes {
    /// Routes by the numbers that the queue knows them by: a route keeps its number over reloads.
    route_names: Vec<Box<str>>,
    by_lane: FxHashMap<LaneId, Lane>,
}

/// What is known of a lane.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) key: Arc<str>,
    pub(crate) plan: Arc<Plan>,
    /// The configuration to which the plan's numbers belong.
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) slots: usize,
    pub(crate) sandbox: bool,
    pub(crate) last_reply: Option<Reply>,
    pub(crate) transcript: Arc<[String]>,
    /// The queue's reference to it.
    said: ReplyRef,
    /// Connections without work.
    idle: Vec<ConnectionId>,
    pub(crate) delivered: u64,
    pub(crate) deferred: u64,
}

impl Lane {
    fn new(key: Arc<str>, plan: Arc<Plan>, snapshot: Arc<Snapshot>, slots: usize, sandbox: bool) -> Self {
        Lane {
            key,
            plan,
            snapshot,
            slots,
            sandbox,
            last_reply: None,
            transcript: Arc::new([]),
            said: ReplyRef::NONE,
            idle: Vec::new(),
            delivered: 0,
            deferred: 0,
        }
    }
}

impl Lanes {
    pub(crate) fn route_number(&mut self, name: &str) -> u16 {
        let at = self.route_names.iter().position(|known| &**known == name).unwrap_or_else(|| {
            self.route_names.push(name.into());
            self.route_names.len() - 1
        });
        // More routes than this in one life, reloads included, share the last number.
        u16::try_from(at).unwrap_or(u16::MAX)
    }

    pub(crate) fn get(&self, lane: LaneId) -> Option<&Lane> {
        self.by_lane.get(&lane)
    }

    pub(crate) fn get_mut(&mut self, lane: LaneId) -> Option<&mut Lane> {
        self.by_lane.get_mut(&lane)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (LaneId, &Lane)> {
        self.by_lane.iter().map(|(id, lane)| (*id, lane))
    }
}

/// The queue's settings under a configuration.
pub(crate) fn queue_settings(snapshot: &Snapshot, shards: u16) -> Settings {
    let mut settings = Settings::from(&snapshot.delivery);
    // Each shard has its part of the connections; rounded up, so that none is left without.
    settings.connections_max = settings.connections_max.div_ceil(u32::from(shards.max(1)));
    settings
}

impl Shard {
    /// The number of the route by which a recipient goes; the built-in one stands behind the table.
    pub(crate) fn way(&self, recipient: &RecipientParams, reverse_path: Option<&Mailbox>) -> Option<usize> {
        if recipient.captured {
            return Some(self.snapshot.routes.len());
        }
        self.snapshot.route(recipient.mailbox.domain(), reverse_path).map(|(index, _)| index)
    }

    /// The route of this number.
    pub(crate) fn route_at(&self, index: usize) -> Option<&Arc<Route>> {
        match index.cmp(&self.snapshot.routes.len()) {
            Ordering::Less => self.snapshot.routes.get(index),
            Ordering::Equal => Some(&self.capture),
            Ordering::Greater => None,
        }
    }

    /// The queue's name for a domain under a route.
    pub(crate) fn intern_route(&mut self, route: Option<usize>, domain: &Domain) -> DomainId {
        let route = route.and_then(|index| self.route_at(index)).cloned();
        let route = self.lanes.route_number(route.as_deref().map_or("", |route| &route.name));
        self.queue.intern_domain(route, domain.as_str())
    }

    /// The domain under a route, if the queue knows it.
    pub(crate) fn find_route(&self, route: usize, domain: &Domain) -> Option<DomainId> {
        let route = self.route_at(route)?;
        let number = self.lanes.route_names.iter().position(|known| *known == route.name)?;
        self.queue.find_domain(u16::try_from(number).ok()?, domain.as_str())
    }

    /// The route by which a domain goes, with its index; none if it has left the configuration.
    pub(crate) fn route_of(&self, domain: DomainId) -> Option<(usize, &Arc<Route>)> {
        let name = self.route_name(domain);
        if name == CAPTURE_ROUTE {
            return Some((self.snapshot.routes.len(), &self.capture));
        }
        self.snapshot.routes.iter().enumerate().find(|(_, route)| &*route.name == name)
    }

    pub(crate) fn route_name(&self, domain: DomainId) -> &str {
        let number = usize::from(self.queue.domain(domain).route);
        self.lanes.route_names.get(number).map_or("", |name| name)
    }

    /// Finds out where a domain's mail goes, or asks.
    pub(crate) fn resolve(&mut self, now: Timestamp, domain: DomainId) {
        let name: Box<str> = self.queue.domain(domain).name.into();
        let Some((_, route)) = self.route_of(domain) else {
            // The route has left the configuration while these recipients were under way.
            if self.reroute_domain(now, domain) {
                return;
            }
            let text = format!("No route leads to {name} any more; the configuration has changed");
            let reply = Reply::ours(451, EnhancedCode(4, 3, 5), &text);
            return self.resolved(now, domain, Resolution::Temporary(reply));
        };
        match &route.to {
            Target::Sandbox => {
                let resolution =
                    Resolution::Hosts { site: "sandbox".into(), hosts: Vec::new(), ttl: Duration::MAX };
                self.resolved(now, domain, resolution);
            }
            Target::Hosts(hops) => {
                let hosts: Vec<_> = (0..)
                    .zip(hops)
                    .map(|(hop, next)| HostQuestion { hop, host: next.host.clone() })
                    .collect();
                match addresses_at_hand(&hosts) {
                    Some(hosts) => {
                        let resolution =
                            Resolution::Hosts { site: "hosts".into(), hosts, ttl: Duration::MAX };
                        self.resolved(now, domain, resolution);
                    }
                    None => {
                        self.effects.push_back(Effect::Resolve { domain, question: Question::Hosts(hosts) });
                    }
                }
            }
            Target::Mx => match name.parse::<Domain>() {
                Ok(name) => {
                    let question = Question::MailExchangers(name);
                    self.effects.push_back(Effect::Resolve { domain, question });
                }
                // Invariant: the queue's names were domains when they were interned.
                Err(_) => {
                    let reply = Reply::ours(550, EnhancedCode(5, 1, 2), "Not a domain");
                    self.resolved(now, domain, Resolution::Nowhere(reply));
                }
            },
        }
    }

    /// Takes the answer to [`Effect::Resolve`].
    pub fn resolved(&mut self, now: Timestamp, domain: DomainId, resolution: Resolution) {
        match resolution {
            Resolution::Hosts { site, hosts, ttl } => {
                let Some((index, route)) = self.route_of(domain) else {
                    // It left the configuration while the question was out; the queue waits for an answer.
                    self.reroute_domain(now, domain);
                    let text = "The route left the configuration";
                    let gone = Resolution::Temporary(Reply::ours(451, EnhancedCode(4, 3, 5), text));
                    return self.resolved(now, domain, gone);
                };
                if !hosts.iter().all(|host| is_hop_of(host, route)) {
                    // The answer is to a question about the hosts of another configuration.
                    return self.resolve(now, domain);
                }
                let sandbox = route.to == Target::Sandbox;
                let key: Arc<str> = format!("{}/{site}", route.name).into();
                let (slots, limits) = self.limits(index);
                let lane = self.queue.resolved(now, domain, &key, limits, ttl);
                let plan = Arc::new(Plan { lane, route: index, hosts });
                match self.lanes.by_lane.get_mut(&lane).filter(|known| known.key == key) {
                    Some(known) => {
                        (known.plan, known.slots, known.sandbox) = (plan, slots, sandbox);
                        known.snapshot = self.snapshot.clone();
                    }
                    None => {
                        let known = Lane::new(key, plan, self.snapshot.clone(), slots, sandbox);
                        self.lanes.by_lane.insert(lane, known);
                    }
                }
            }
            Resolution::Nowhere(reply) => {
                let mut recipients = Vec::new();
                while let Some(recipient) = self.queue.take_domain(domain) {
                    recipients.push(recipient);
                }
                self.settle_waiting(now, recipients, Terminal::Bounced, &reply);
            }
            Resolution::Temporary(reply) => {
                let said = self.keep_said(&reply, "DNS", false);
                let backoff = self.queue.unresolvable_for_now(now, domain, said.0);
                let key = format!("{DNS_KEY}{}/{}", self.route_name(domain), self.queue.domain(domain).name);
                self.record_backoff(&key, backoff, reply);
            }
        }
    }

    /// Connections that a site of this route may have from all shards together, and the lane's limits.
    fn limits(&self, route: usize) -> (usize, LaneLimits) {
        let route = self.route_at(route);
        let slots = match route.map(|route| (&route.to, route.connections_per_site_max)) {
            Some((Target::Sandbox, _)) => SANDBOX_CONNECTIONS_MAX,
            Some((_, Some(max))) => max,
            Some((_, None)) | None => self.snapshot.delivery.connections_per_site_max,
        };
        let mut limits = LaneLimits::from(&self.snapshot.delivery);
        limits.connections = u32::try_from(slots).unwrap_or(u32::MAX);
        (slots, limits)
    }

    fn record_backoff(&mut self, key: &str, backoff: Backoff, reply: Reply) {
        let record =
            record::Backoff { lane: key.into(), failures: backoff.failures, until: backoff.until, reply };
        self.append(NewRecord::riding(Kind::Backoff, |head| record.encode(head)));
    }

    /// Lanes and domains that wait as a whole, by the keys under which the log knows them.
    pub(crate) fn backoffs(&self) -> Vec<(String, Backoff)> {
        let lanes = self.queue.lanes().filter(|lane| lane.failures > 0).map(|lane| {
            let until = lane.backoff_until.unwrap_or_default();
            (lane.key.to_owned(), Backoff { failures: lane.failures, until, reply: lane.reply })
        });
        let domains = self.queue.domains().filter_map(|domain| {
            let view = self.queue.domain(domain);
            let until = view.backoff_until?;
            let key = format!("{DNS_KEY}{}/{}", self.route_name(domain), view.name);
            Some((key, Backoff { failures: view.failures, until, reply: view.reply }))
        });
        lanes.chain(domains).collect()
    }

    pub(crate) fn replay_backoff(&mut self, record: &record::Backoff) {
        let said = self.keep_said(&record.reply, "", false);
        let backoff = Backoff { failures: record.failures, until: record.until, reply: said.0 };
        match record.lane.strip_prefix(DNS_KEY) {
            None => self.queue.restore_backoff(&record.lane, backoff),
            Some(key) => {
                let Some((route, name)) = key.split_once('/') else { return };
                let route = self.lanes.route_number(route);
                let domain = self.queue.intern_domain(route, name);
                self.queue.restore_domain_backoff(domain, backoff);
            }
        }
    }

    pub(crate) fn connect(&mut self, now: Timestamp, lane: LaneId) {
        let Some(known) = self.lanes.get(lane) else { return };
        if known.sandbox {
            self.capture_more(now, lane);
        } else {
            self.effects
                .push_back(Effect::Connect { plan: known.plan.clone(), snapshot: known.snapshot.clone() });
        }
    }

    /// A connection for this lane exists and has been greeted; it calls `Outflow::next` now.
    pub fn connection_opened(&mut self, now: Timestamp, connection: ConnectionId, lane: LaneId) {
        self.links.insert(connection, Link::default());
        self.queue.connection_opened(now, lane);
    }

    /// The connection has been greeted and takes transactions.
    #[must_use]
    pub fn is_linked(&self, connection: ConnectionId) -> bool {
        self.links.contains_key(&connection)
    }

    /// A connection, or the attempt to make one, has ended.
    pub fn connection_ended(
        &mut self,
        now: Timestamp,
        connection: ConnectionId,
        lane: LaneId,
        end: ConnectionEnd,
        transcript: Vec<String>,
    ) {
        let link = self.links.get(&connection);
        let (opened, idle) = (link.is_some(), link.is_some_and(|link| link.idle));
        self.unlink(now, connection);
        if let Some(known) = self.lanes.get_mut(lane) {
            known.idle.retain(|idle| *idle != connection);
            if !transcript.is_empty() {
                known.transcript = transcript.into();
            }
        }
        let quietly = if idle { Closed::Idle } else { Closed::Done };
        let (backoff, reply) = match end {
            ConnectionEnd::Done => {
                self.queue.connection_closed(now, lane, quietly, NOTHING_SAID);
                return;
            }
            ConnectionEnd::Broken(reply) => {
                let said = self.note_reply(lane, &reply);
                let how = if idle { Closed::Idle } else { Closed::Lost };
                (self.queue.connection_closed(now, lane, how, said), reply)
            }
            ConnectionEnd::Throttled(reply) if opened => {
                let said = self.note_reply(lane, &reply);
                let first = self.queue.throttled(now, lane, Throttle::Session, said);
                let second = self.queue.connection_closed(now, lane, quietly, said);
                (first.or(second), reply)
            }
            ConnectionEnd::Throttled(reply) => {
                let said = self.note_reply(lane, &reply);
                (self.queue.throttled(now, lane, Throttle::Connect, said), reply)
            }
            ConnectionEnd::Unreachable(reply) if opened => {
                let said = self.note_reply(lane, &reply);
                (self.queue.connection_closed(now, lane, Closed::Lost, said), reply)
            }
            ConnectionEnd::Unreachable(reply) => {
                let said = self.note_reply(lane, &reply);
                (self.queue.connection_failed(now, lane, said), reply)
            }
        };
        if let (Some(backoff), Some(key)) = (backoff, self.lanes.get(lane).map(|known| known.key.clone())) {
            self.record_backoff(&key, backoff, reply);
        }
    }

    /// Keeps what a site said last about load or failure.
    fn note_reply(&mut self, lane: LaneId, reply: &Reply) -> u32 {
        let said = self.keep_said(reply, "", false);
        if let Some(known) = self.lanes.get_mut(lane) {
            known.last_reply = Some(reply.clone());
            let before = std::mem::replace(&mut known.said, said);
            self.replies.drop(before);
        }
        said.0
    }

    pub(crate) fn site_asks_for_less(&mut self, now: Timestamp, lane: LaneId, at: Throttle, reply: &Reply) {
        let said = self.note_reply(lane, reply);
        let backoff = self.queue.throttled(now, lane, at, said);
        if let (Some(backoff), Some(key)) = (backoff, self.lanes.get(lane).map(|known| known.key.clone())) {
            self.record_backoff(&key, backoff, reply.clone());
        }
    }

    /// The site is well again.
    pub(crate) fn recovered(&mut self, now: Timestamp, lane: LaneId) {
        let Some(key) = self.lanes.get(lane).map(|known| known.key.clone()) else { return };
        let reply = Reply::ours(250, EnhancedCode(2, 0, 0), "The site answers again");
        self.record_backoff(&key, Backoff { failures: 0, until: now, reply: NOTHING_SAID }, reply);
    }

    /// A connection has no work.
    pub(crate) fn idle(&mut self, connection: ConnectionId, lane: LaneId) {
        self.links.entry(connection).or_default().idle = true;
        if let Some(known) = self.lanes.get_mut(lane) {
            known.idle.push(connection);
        }
    }

    /// There is work for a connection without.
    pub(crate) fn pull(&mut self, now: Timestamp, lane: LaneId) {
        if self.lanes.get(lane).is_some_and(|known| known.sandbox) {
            return self.capture_more(now, lane);
        }
        if let Some(connection) = self.take_idle(lane) {
            self.effects.push_back(Effect::Resume { connection });
        }
    }

    pub(crate) fn close_idle(&mut self, _now: Timestamp, lane: LaneId) {
        if let Some(connection) = self.take_idle(lane) {
            // It counts as idle until it is gone.
            self.links.entry(connection).or_default().idle = true;
            self.effects.push_back(Effect::Close { connection });
        }
    }

    fn take_idle(&mut self, lane: LaneId) -> Option<ConnectionId> {
        let connection = self.lanes.get_mut(lane)?.idle.pop()?;
        if let Some(link) = self.links.get_mut(&connection) {
            link.idle = false;
        }
        Some(connection)
    }

    pub(crate) fn want_slot(&mut self, lane: LaneId) {
        let Some(known) = self.lanes.get(lane) else { return };
        self.effects.push_back(Effect::WantSlot { lane, key: known.key.clone(), slots: known.slots });
    }

    pub(crate) fn return_slot(&mut self, lane: LaneId) {
        let Some(known) = self.lanes.get(lane) else { return };
        self.effects.push_back(Effect::ReturnSlot { key: known.key.clone() });
    }

    /// The broker gave a slot.
    pub fn slot_granted(&mut self, lane: LaneId) {
        self.queue.grant(lane);
    }

    /// The broker has none now; it will call `slot_granted` when one is free.
    pub fn slot_refused(&mut self, lane: LaneId) {
        self.queue.refuse(lane);
    }

    /// How mail of a lane leaves.
    pub(crate) fn via(&self, lane: LaneId) -> Via {
        let route = self.lanes.get(lane).and_then(|known| self.snapshot.routes.get(known.plan.route));
        match route.map(|route| &route.to) {
            Some(Target::Hosts(_)) => Via::Smarthost,
            _ => Via::Mx,
        }
    }

    /// What was said, kept for the recipients that wait with it.
    pub(crate) fn keep_said(&mut self, reply: &Reply, peer: &str, in_doubt: bool) -> ReplyRef {
        self.replies.keep(Said { reply: reply.clone(), peer: peer.into(), in_doubt })
    }

    /// Puts a new configuration in place. What waits goes by the route of the same name if that still
    /// leads to its domain, else by the first that does.
    pub fn reload(&mut self, now: Timestamp, snapshot: Arc<Snapshot>) {
        self.snapshot = snapshot;
        self.queue.set_settings(queue_settings(&self.snapshot, self.shards));
        let domains: Vec<_> = self.queue.domains().collect();
        for domain in domains {
            let Ok(name) = self.queue.domain(domain).name.parse::<Domain>() else { continue };
            let still =
                self.route_of(domain).filter(|(_, route)| route.domains.iter().any(|p| p.matches(&name)));
            match still.map(|(index, route)| (index, route.to == Target::Mx)) {
                None => {
                    self.reroute_domain(now, domain);
                }
                Some((index, true)) => {
                    let lane = self.queue.domain(domain).lane;
                    if let Some(lane) = lane {
                        let (slots, limits) = self.limits(index);
                        if let Some(known) = self.lanes.get_mut(lane) {
                            known.plan = Arc::new(Plan { route: index, ..Plan::clone(&known.plan) });
                            known.snapshot = self.snapshot.clone();
                            known.slots = slots;
                        }
                        self.queue.set_limits(lane, limits);
                    }
                }
                // The hosts may be others now.
                Some((_, false)) if self.queue.domain(domain).lane.is_some() => self.resolve(now, domain),
                Some((_, false)) => {}
            }
        }
    }

    /// Sends a domain's recipients by the first route that leads there; true if there is one.
    fn reroute_domain(&mut self, now: Timestamp, domain: DomainId) -> bool {
        let Ok(name) = self.queue.domain(domain).name.parse::<Domain>() else { return false };
        let Some((index, _)) = self.snapshot.route(&name, None) else { return false };
        let to = self.intern_route(Some(index), &name);
        if to == domain {
            return false;
        }
        let mut recipients = Vec::new();
        let mut cursor = Some(0);
        while let Some(at) = cursor {
            cursor = self.queue.sweep(at, REROUTE_STEP, &mut recipients);
            for recipient in recipients.drain(..) {
                if self.queue.recipient(recipient).is_some_and(|entry| entry.domain == domain) {
                    self.queue.move_to(now, recipient, to);
                }
            }
        }
        true
    }
}

/// A host of a plan stands where the route names it, or comes from DNS.
fn is_hop_of(host: &PlanHost, route: &Route) -> bool {
    let Some(hop) = host.hop else { return matches!(route.to, Target::Mx) };
    let Target::Hosts(hops) = &route.to else { return false };
    match hops.get(hop).map(|next| &next.host) {
        None => false,
        Some(Host::Name(name, port)) => {
            *host.name == *name.as_str() && host.addresses.iter().all(|address| address.port() == *port)
        }
        Some(Host::Address(address)) => host.addresses[..] == [*address],
        Some(Host::Socket(path)) => *host.name == *path.to_string_lossy(),
    }
}

/// The hosts, if none of them has to be looked up.
fn addresses_at_hand(hosts: &[HostQuestion]) -> Option<Vec<PlanHost>> {
    hosts
        .iter()
        .map(|question| match &question.host {
            Host::Address(address) => Some(PlanHost {
                name: format!("[{}]", address.ip()).into(),
                addresses: vec![*address],
                hop: Some(question.hop),
            }),
            Host::Socket(path) => Some(PlanHost {
                name: path.to_string_lossy().into(),
                addresses: Vec::new(),
                hop: Some(question.hop),
            }),
            Host::Name(..) => None,
        })
        .collect()
}
