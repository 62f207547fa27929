//! What can be seen from outside, and why something waits.

use crate::arena::NIL;
use crate::entry::{Place, from_seconds};
use crate::queue::{DomainId, FlowId, LaneId, Queue, RecipientSlot};
use crate::settings::LaneLimits;
use crate::table::Lane;
use crate::wheel::Bucket;
use postrider_model::{Class, Timestamp};

/// What keeps a lane from opening one more connection, or from using one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Limit {
    /// Nothing: there is no more to send than its connections take.
    #[default]
    None,
    /// The limit of connections of the lane.
    Connections,
    /// The window learned from how the site behaves.
    Window,
    /// The limit of new connections in a time.
    ConnectionRate,
    /// The limit of messages in a time.
    MessageRate,
    /// No connection slot from the broker: other shards have them.
    Slots,
    /// The limit of connections over all lanes, of which the last quarter is for lanes that have none.
    ConnectionsMax,
    /// The site does not answer; it is tried again later.
    Backoff,
    /// An operator suspended it.
    Suspended,
}

/// A lane as it is now.
#[derive(Clone, Copy, Debug)]
pub struct LaneView<'a> {
    /// Which.
    pub lane: LaneId,
    /// Its key: source and site.
    pub key: &'a str,
    /// Recipients that are due and wait for their turn.
    pub ready: u32,
    /// Recipients that are due but whose flow is suspended.
    pub stalled: u32,
    /// Recipients that wait for their time, or are held.
    pub parked: u32,
    /// Recipients in transactions.
    pub in_flight: u32,
    /// Connections open.
    pub connections: u32,
    /// Connections on their way.
    pub opening: u32,
    /// Connections open and without work.
    pub idle: u32,
    /// Connections that what was learned allows.
    pub window: u32,
    /// Connections that were too much, where that is known.
    pub ceiling: Option<u32>,
    /// What was configured.
    pub limits: LaneLimits,
    /// What keeps it from doing more.
    pub limit: Limit,
    /// Failures in a row.
    pub failures: u16,
    /// Until when it is backed off.
    pub backoff_until: Option<Timestamp>,
    /// The engine's number of what the site said last about load, or why it failed.
    pub reply: u32,
    /// An operator suspended it.
    pub is_suspended: bool,
}

/// A routing domain as it is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DomainView<'a> {
    /// Its route.
    pub route: u16,
    /// Its name.
    pub name: &'a str,
    /// Where it leads, if known.
    pub lane: Option<LaneId>,
    /// Recipients of it, wherever they are.
    pub recipients: u32,
    /// Recipients that are due and wait for its site to be known, or for its release.
    pub waiting: u32,
    /// Resolutions in a row that came to nothing.
    pub failures: u16,
    /// Until when it is not looked up again.
    pub backoff_until: Option<Timestamp>,
    /// The engine's number of what went wrong.
    pub reply: u32,
    /// An operator suspended it.
    pub is_suspended: bool,
}

/// A recipient as the queue knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecipientView {
    /// The engine's number of the message.
    pub message: u32,
    /// Its place in the message.
    pub ordinal: u16,
    /// Where it goes.
    pub domain: DomainId,
    /// Whose it is.
    pub flow: FlowId,
    /// How urgent.
    pub class: Class,
    /// When it is, or was, to be tried.
    pub due: Timestamp,
    /// Attempts made.
    pub attempts: u16,
    /// When it is given up.
    pub expires: Option<Timestamp>,
    /// When a delay warning is due.
    pub warn: Option<Timestamp>,
    /// Size of the content in KiB.
    pub size_kib: u16,
    /// The engine's number of the last reply.
    pub reply: u32,
    /// It is held.
    pub is_held: bool,
    /// It is in a transaction.
    pub is_in_flight: bool,
    /// The bucket it is checkpointed in.
    pub bucket: Bucket,
}

/// What a recipient waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// Its release.
    Held,
    /// Its time.
    Due(Timestamp),
    /// Its site to be found out.
    Dns,
    /// Another try at finding out its site.
    DnsBackoff {
        /// When.
        until: Timestamp,
        /// Failures in a row.
        failures: u16,
        /// The engine's number of what went wrong.
        reply: u32,
    },
    /// All to be resumed.
    Suspended,
    /// Its domain to be resumed.
    DomainSuspended,
    /// Its flow to be resumed.
    FlowSuspended,
    /// Its lane, which waits for this.
    Lane {
        /// Which.
        lane: LaneId,
        /// What the lane waits for; [`Limit::None`] if the recipient only waits for its turn.
        limit: Limit,
        /// Until when, where that is known.
        until: Option<Timestamp>,
    },
    /// The outcome of its transaction.
    Outcome(LaneId),
    /// The engine's verdict.
    Verdict,
}

impl Queue {
    /// All lanes, in no order.
    pub fn lanes(&self) -> impl Iterator<Item = LaneView<'_>> {
        self.lanes.iter().map(|(index, lane)| self.lane_view(index, lane))
    }

    /// One lane.
    #[must_use]
    pub fn lane(&self, lane: LaneId) -> LaneView<'_> {
        self.lane_view(lane.0, &self.lanes[lane.0])
    }

    /// The lane of this key.
    #[must_use]
    pub fn find_lane(&self, key: &str) -> Option<LaneId> {
        self.lanes.find(0, key).map(LaneId)
    }

    /// A routing domain by its name.
    #[must_use]
    pub fn find_domain(&self, route: u16, name: &str) -> Option<DomainId> {
        self.domains.find(route, name).map(DomainId)
    }

    /// A routing domain.
    #[must_use]
    pub fn domain(&self, domain: DomainId) -> DomainView<'_> {
        let entry = &self.domains[domain.0];
        DomainView {
            route: entry.route,
            name: &entry.name,
            lane: (entry.lane != NIL).then_some(LaneId(entry.lane)),
            recipients: entry.members,
            waiting: entry.waiting_count,
            failures: entry.failures,
            backoff_until: (entry.failures > 0).then_some(entry.until),
            reply: entry.reply,
            is_suspended: entry.is_suspended,
        }
    }

    /// The name of a flow.
    #[must_use]
    pub fn flow_name(&self, flow: FlowId) -> &str {
        &self.flows[flow.0].name
    }

    /// Domains known, idle ones included.
    #[must_use]
    pub fn domain_count(&self) -> usize {
        self.domains.len()
    }

    /// A recipient, while it is queued.
    #[must_use]
    pub fn recipient(&self, slot: RecipientSlot) -> Option<RecipientView> {
        let entry = self.entries.get(slot.0).filter(|entry| entry.place != Place::Free)?;
        let flow = match entry.place {
            Place::Ready | Place::InFlight => self.lines[entry.group].flow,
            _ => entry.group,
        };
        Some(RecipientView {
            message: entry.message,
            ordinal: entry.ordinal,
            domain: DomainId(entry.domain),
            flow: FlowId(flow),
            class: entry.class(),
            due: entry.due,
            attempts: entry.attempts,
            expires: from_seconds(entry.expires_s),
            warn: from_seconds(entry.warn_s),
            size_kib: entry.size_kib,
            reply: entry.reply,
            is_held: entry.place == Place::Held,
            is_in_flight: entry.place == Place::InFlight,
            bucket: Bucket::of(entry.due),
        })
    }

    /// What a recipient waits for.
    #[must_use]
    pub fn why(&self, slot: RecipientSlot) -> Option<Waiting> {
        let entry = self.entries.get(slot.0)?;
        let domain = self.domains_of(entry.place, entry.domain);
        Some(match entry.place {
            Place::Free => return None,
            Place::Held => Waiting::Held,
            Place::Parked | Place::Imminent | Place::Alarmed => Waiting::Due(entry.due),
            Place::Taken => Waiting::Verdict,
            Place::InFlight => Waiting::Outcome(LaneId(self.lines[entry.group].lane)),
            Place::Waiting => domain?,
            Place::Ready if self.domains[entry.domain].is_suspended => Waiting::DomainSuspended,
            Place::Ready => self.why_ready(entry.group),
        })
    }

    fn domains_of(&self, place: Place, domain: u32) -> Option<Waiting> {
        if place != Place::Waiting {
            return None;
        }
        let domain = &self.domains[domain];
        Some(if domain.is_suspended {
            Waiting::DomainSuspended
        } else if domain.is_failing {
            Waiting::Verdict
        } else if domain.lane == NIL && domain.until > self.now {
            Waiting::DnsBackoff { until: domain.until, failures: domain.failures, reply: domain.reply }
        } else if domain.lane == NIL {
            Waiting::Dns
        } else {
            self.why_lane(domain.lane)
        })
    }

    fn why_ready(&self, line: u32) -> Waiting {
        let line = &self.lines[line];
        if self.is_suspended {
            Waiting::Suspended
        } else if self.flows[line.flow].is_suspended {
            Waiting::FlowSuspended
        } else {
            self.why_lane(line.lane)
        }
    }

    fn why_lane(&self, index: u32) -> Waiting {
        let lane = &self.lanes[index];
        let limit = self.blocked(index, self.now).unwrap_or(lane.limit);
        let until = match limit {
            Limit::Backoff => Some(lane.backoff.until),
            Limit::MessageRate => lane.limits.message_rate.map(|rate| lane.message_gcra.allowed_at(rate)),
            Limit::ConnectionRate => {
                lane.limits.connection_rate.map(|rate| lane.connection_gcra.allowed_at(rate))
            }
            _ => None,
        };
        Waiting::Lane { lane: LaneId(index), limit, until }
    }

    fn lane_view<'a>(&self, index: u32, lane: &'a Lane) -> LaneView<'a> {
        let due = lane.ready + lane.stalled + lane.in_flight;
        LaneView {
            lane: LaneId(index),
            key: &lane.key,
            ready: lane.ready,
            stalled: lane.stalled,
            parked: lane.members.saturating_sub(due),
            in_flight: lane.in_flight,
            connections: lane.connections,
            opening: lane.opening,
            idle: lane.idle_connections,
            window: lane.pace.window(),
            ceiling: lane.pace.ceiling(),
            limits: lane.limits,
            limit: self.blocked(index, self.now).unwrap_or(lane.limit),
            failures: lane.backoff.failures,
            backoff_until: (lane.backoff.until > self.now).then_some(lane.backoff.until),
            reply: lane.backoff.reply,
            is_suspended: lane.is_suspended,
        }
    }
}
