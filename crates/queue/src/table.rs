//! What stands in the tables of names: domains, flows and lanes, and the lines between them.

use crate::arena::{Links, List, NIL, Node};
use crate::names::Named;
use crate::pace::Pace;
use crate::settings::{Gcra, LaneLimits};
use crate::view::Limit;
use postrider_model::{Class, Timestamp};

/// Where the question for a domain's site stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Question {
    /// Nothing is asked.
    #[default]
    None,
    /// Waits for its turn to be asked.
    Queued,
    /// The engine is asking.
    Asked,
}

/// A routing domain.
#[derive(Default)]
pub(crate) struct Domain {
    pub(crate) route: u16,
    pub(crate) name: Box<str>,
    /// Recipients of it, wherever they are.
    pub(crate) members: u32,
    /// Its lane, `NIL` while unknown.
    pub(crate) lane: u32,
    /// Until when the lane is sure, or until when nobody asks again.
    pub(crate) until: Timestamp,
    pub(crate) question: Question,
    /// The engine is failing the recipients that wait here.
    pub(crate) is_failing: bool,
    pub(crate) is_suspended: bool,
    /// Those that wait here are being moved to the lane.
    pub(crate) is_draining: bool,
    pub(crate) is_idle: bool,
    /// Resolutions in a row that came to nothing.
    pub(crate) failures: u16,
    pub(crate) reply: u32,
    pub(crate) waiting: List<0>,
    pub(crate) waiting_count: u32,
    /// Among the domains of the lane.
    pub(crate) siblings: Links,
    pub(crate) idle: Links,
}

impl Domain {
    pub(crate) fn new(route: u16, name: &str) -> Self {
        Domain { route, name: name.into(), lane: NIL, ..Domain::default() }
    }
}

/// Whose mail it is: the unit of fairness within a class.
#[derive(Default)]
pub(crate) struct Flow {
    pub(crate) name: Box<str>,
    /// Recipients of it, wherever they are.
    pub(crate) members: u32,
    /// Lines of it in all lanes.
    pub(crate) lines: u32,
    pub(crate) weight: u16,
    pub(crate) is_suspended: bool,
    pub(crate) is_idle: bool,
    pub(crate) free: Links,
    pub(crate) idle: Links,
}

/// The recipients of one flow in one class of one lane, first in, first out.
#[derive(Default)]
pub(crate) struct Line {
    pub(crate) lane: u32,
    pub(crate) flow: u32,
    pub(crate) class: u8,
    pub(crate) is_idle: bool,
    /// Takes its turn in the lane; not so when empty or suspended.
    pub(crate) in_ring: bool,
    pub(crate) ready: List<0>,
    pub(crate) ready_count: u32,
    pub(crate) in_flight: u32,
    /// What it may still send in this turn; below zero when it has sent more.
    pub(crate) deficit: i64,
    pub(crate) ring: Links,
    pub(crate) idle: Links,
}

/// A class of a lane.
#[derive(Clone, Copy, Default)]
pub(crate) struct ClassQueue {
    /// Lines that have something to send, the one whose turn it is first.
    pub(crate) ring: List<0>,
    pub(crate) lines: u32,
    pub(crate) ready: u32,
    /// Reserved share saved up, in thousandths of a cost.
    pub(crate) credit: i64,
}

/// Why a lane waits as a whole.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LaneBackoff {
    pub(crate) failures: u16,
    pub(crate) until: Timestamp,
    pub(crate) reply: u32,
}

/// Source × site: the unit of shaping.
#[derive(Default)]
pub(crate) struct Lane {
    pub(crate) key: Box<str>,
    pub(crate) limits: LaneLimits,
    pub(crate) domains: List<0>,
    pub(crate) domain_count: u32,
    /// Recipients of its domains, wherever they are.
    pub(crate) members: u32,
    pub(crate) classes: [ClassQueue; Class::ALL.len()],
    pub(crate) lines: u32,
    /// Ready and free to go.
    pub(crate) ready: u32,
    /// Transactions that the ready ones make, about.
    pub(crate) units: u32,
    /// Ready, but their flow is suspended.
    pub(crate) stalled: u32,
    /// Recipients taken by connections.
    pub(crate) in_flight: u32,
    /// Transactions taken by connections.
    pub(crate) transactions: u32,
    /// Open connections.
    pub(crate) connections: u32,
    /// Connections on their way.
    pub(crate) opening: u32,
    /// Open connections without work.
    pub(crate) idle_connections: u32,
    /// Open connections that were told to pull and have not done so yet.
    pub(crate) pulling: u32,
    /// Open connections that were told to close.
    pub(crate) closing: u32,
    /// Slots the broker gave us.
    pub(crate) slots: u32,
    /// The broker was asked for one more.
    pub(crate) is_wanting: bool,
    /// When the broker may be asked again.
    pub(crate) ask_again: Timestamp,
    pub(crate) pace: Pace,
    pub(crate) backoff: LaneBackoff,
    /// Connections lost in a row, without a transaction that came through.
    pub(crate) losses: u16,
    pub(crate) connection_gcra: Gcra,
    pub(crate) message_gcra: Gcra,
    /// Why it does not open one more connection.
    pub(crate) limit: Limit,
    /// Its place on the agenda is taken.
    pub(crate) on_agenda: bool,
    /// Waits for any connection to end.
    pub(crate) is_starved: bool,
    /// The same, for more connections than the first.
    pub(crate) is_starved_more: bool,
    /// Stands among the lanes that have connections without work.
    pub(crate) is_idler: bool,
    pub(crate) is_suspended: bool,
    pub(crate) is_idle: bool,
    /// The failures ended and the engine does not know yet.
    pub(crate) has_recovered: bool,
    /// The earliest timer set for it.
    pub(crate) timer: Timestamp,
    pub(crate) free: Links,
    pub(crate) idle: Links,
    pub(crate) idler: Links,
}

impl Lane {
    pub(crate) fn new(key: &str, limits: LaneLimits, window: u32) -> Self {
        Lane { key: key.into(), limits, pace: Pace::new(window), timer: Timestamp::MAX, ..Lane::default() }
    }

    /// Connections it may have now.
    pub(crate) fn allowed(&self) -> u32 {
        if self.backoff.failures > 0 {
            // The first one after a back-off finds out whether the site is well again.
            return 1;
        }
        self.pace.window().min(self.limits.connections).max(1)
    }

    /// Connections open or on their way.
    pub(crate) fn used(&self) -> u32 {
        self.connections + self.opening
    }

    pub(crate) fn is_unused(&self, now: Timestamp) -> bool {
        self.domain_count == 0
            && self.lines == 0
            && self.used() == 0
            && self.slots == 0
            && !self.is_wanting
            && !self.is_starved
            && !self.is_starved_more
            && !self.is_suspended
            && !self.has_recovered
            && self.backoff.until <= now
    }
}

macro_rules! node {
    ($type:ident, $list:literal, $field:ident) => {
        impl Node<$list> for $type {
            #[inline]
            fn links(&self) -> Links {
                self.$field
            }
            #[inline]
            fn links_mut(&mut self) -> &mut Links {
                &mut self.$field
            }
        }
    };
}

node!(Domain, 0, siblings);
node!(Domain, 1, idle);
node!(Flow, 0, free);
node!(Flow, 1, idle);
node!(Line, 0, ring);
node!(Line, 1, idle);
node!(Lane, 0, free);
node!(Lane, 1, idle);
node!(Lane, 2, idler);

macro_rules! named {
    ($type:ident, $name:ident, $route:expr) => {
        impl Named for $type {
            fn route(&self) -> u16 {
                let route: fn(&Self) -> u16 = $route;
                route(self)
            }
            fn name(&self) -> &str {
                &self.$name
            }
            fn idle_mut(&mut self) -> &mut bool {
                &mut self.is_idle
            }
        }
    };
}

named!(Domain, name, |domain| domain.route);
named!(Flow, name, |_| 0);
named!(Lane, key, |_| 0);
