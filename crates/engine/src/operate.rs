//! What an operator can ask of a running relay and what it answers: the words of the CLI and the API.

use postrider_model::{Class, Domain, Mailbox, MessageId, RecipientId, Reply, Terminal, Timestamp};
use serde::{Deserialize, Serialize};

/// Which recipients are meant. All that is given must match; an empty filter matches nothing unless
/// `all` is set, so that a forgotten argument acts on nobody.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Filter {
    /// Everything that waits.
    pub all: bool,
    /// Message or recipient ids (`msg_…`, `rcp_…`).
    pub ids: Vec<String>,
    /// Reverse-path: an address, `*@domain`, or `<>`.
    pub sender: Option<String>,
    /// Recipient: an address or `*@domain`.
    pub recipient: Option<String>,
    /// Recipient domain, `*.domain` for its subdomains.
    pub domain: Option<String>,
    /// Account or legacy listener that brought it.
    pub account: Option<String>,
    /// Accepted at least this many seconds ago.
    pub older_than_s: Option<u64>,
    /// Part of the last reply, compared without case.
    pub reply: Option<String>,
    /// In this state: `ready`, `scheduled`, `deferred`, `held`, `sending`.
    pub state: Option<String>,
}

/// An act on recipients that wait.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Act {
    /// Due now, whatever their schedule; lanes that back off are tried at once.
    Retry,
    /// Not sent until released.
    Hold,
    /// Held no more.
    Release,
    /// Never sent: terminal state `cancelled`, with a DSN only if `notify`.
    Cancel {
        /// Whether the sender gets a DSN.
        notify: bool,
    },
    /// Sent by another route, named as in the configuration.
    Move {
        /// The route's name.
        route: String,
    },
    /// Due at this time, whatever their schedule.
    Schedule {
        /// Microseconds since the Unix epoch.
        at_us: u64,
    },
    /// A standing rule: matching recipients, also those that come later, wait until it is resumed.
    Suspend {
        /// Why, for whoever finds it.
        reason: String,
    },
    /// Ends a suspension by its number.
    Resume {
        /// The suspension's number; `None` ends all.
        number: Option<u64>,
    },
}

/// A question or an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Recipients that wait, the oldest message first.
    List {
        /// Which; an empty filter here means all.
        filter: Filter,
        /// At most so many.
        limit: usize,
        /// Goes on after the last id of the page before.
        after: Option<String>,
    },
    /// One message (`msg_…`) or recipient (`rcp_…`), with its envelope and schedule.
    Show {
        /// The id.
        id: String,
    },
    /// An act by filter.
    Act {
        /// What.
        act: Act,
        /// On whom.
        filter: Filter,
    },
    /// Progress of an act that goes on in the background.
    Progress {
        /// The act's number.
        number: u64,
    },
    /// Standing suspensions.
    Suspensions,
    /// Why does it wait: a recipient id, an address or a domain.
    Explain {
        /// What to explain.
        target: String,
    },
    /// Live lanes.
    Lanes,
    /// Totals.
    Totals,
}

/// The answer of one shard; answers of all shards are merged by the shell with [`Response::merge`].
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// To `List` and `Show`.
    Recipients(Vec<RecipientView>),
    /// To `Act` and `Progress`.
    Acted(ActView),
    /// To `Suspensions`.
    Suspensions(Vec<SuspensionView>),
    /// To `Explain`.
    Explanations(Vec<Explanation>),
    /// To `Lanes`.
    Lanes(Vec<LaneView>),
    /// To `Totals`.
    Totals(Totals),
    /// The question was wrong; says how to ask.
    Error(String),
}

/// A recipient that waits.
#[derive(Clone, Debug, Serialize)]
pub struct RecipientView {
    /// Sorts by message and recipient, over all shards.
    #[serde(skip)]
    pub order: (u64, u16),
    /// `rcp_…`
    pub id: RecipientId,
    /// `msg_…`
    pub message: MessageId,
    /// `ready`, `scheduled` (its first attempt is still to come), `deferred`, `held` or `sending`.
    pub state: &'static str,
    /// The address.
    pub recipient: Mailbox,
    /// The reverse-path; absent for `<>`.
    pub sender: Option<Mailbox>,
    /// Account or legacy listener.
    pub account: Box<str>,
    /// Priority class.
    pub class: Class,
    /// The route's name.
    pub route: Box<str>,
    /// Octets of content.
    pub size: u64,
    /// When we took it.
    pub accepted_at: Timestamp,
    /// When it expires.
    pub expires_at: Timestamp,
    /// Attempts made.
    pub attempts: u16,
    /// When it is due next.
    pub due: Timestamp,
    /// What was said last: to an attempt for it, or to a look-up or connection that all for its domain wait for.
    pub last_reply: Option<Reply>,
    /// Who said so.
    pub last_peer: Option<Box<str>>,
    /// The last attempt's outcome is unknown: a copy may have arrived.
    pub in_doubt: bool,
}

/// An act and how far it is.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ActView {
    /// Its number.
    pub number: u64,
    /// Recipients looked at so far.
    pub scanned: u64,
    /// Recipients to look at in all.
    pub total: u64,
    /// Recipients changed.
    pub changed: u64,
    /// Every recipient has been looked at.
    pub done: bool,
}

/// A standing suspension.
#[derive(Clone, Debug, Serialize)]
pub struct SuspensionView {
    /// Its number.
    pub number: u64,
    /// Since when.
    pub at: Timestamp,
    /// Why.
    pub reason: String,
    /// Whom it stops.
    pub filter: Filter,
}

/// Why something waits, in order from the nearest cause.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    /// What is explained: a recipient or a domain.
    pub subject: String,
    /// The recipient, if one is explained.
    pub recipient: Option<RecipientView>,
    /// The route's name and kind.
    pub route: Option<String>,
    /// The lane: route and site.
    pub lane: Option<LaneView>,
    /// Hosts that would be tried, in order, with their addresses.
    pub hosts: Vec<String>,
    /// The egress source: EHLO name and local address.
    pub source: Option<String>,
    /// Sentences: each names the rule, limit or reply and what ends it.
    pub because: Vec<String>,
    /// The last transcript with that site, `C: …` and `S: …` lines.
    pub transcript: Vec<String>,
}

/// A lane: one source to one site.
#[derive(Clone, Debug, Serialize)]
pub struct LaneView {
    /// Route and site.
    pub key: Box<str>,
    /// Recipients ready to go.
    pub ready: u64,
    /// Recipients whose time has not come.
    pub parked: u64,
    /// Recipients in transactions.
    pub in_flight: u64,
    /// Open connections.
    pub connections: u32,
    /// Connections allowed now.
    pub window: u32,
    /// What bounds it now, if anything does.
    pub limit: Option<String>,
    /// Backing off until.
    pub backoff_until: Option<Timestamp>,
    /// Failures in a row.
    pub failures: u16,
    /// What was said last.
    pub last_reply: Option<Reply>,
    /// Delivered since the start.
    pub delivered: u64,
    /// Deferred since the start.
    pub deferred: u64,
}

/// Totals since the start and now.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Totals {
    /// Messages that wait.
    pub messages: u64,
    /// Recipients that wait.
    pub recipients: u64,
    /// Of these: ready.
    pub ready: u64,
    /// Of these: their time has not come.
    pub parked: u64,
    /// Of these: held.
    pub held: u64,
    /// Of these: in a transaction.
    pub in_flight: u64,
    /// Recipients of the checkpoint that are still being loaded after a start, about; not counted above.
    pub loading: u64,
    /// Messages accepted since the start.
    pub accepted: u64,
    /// Recipients by verdict since the start.
    pub terminal: std::collections::BTreeMap<&'static str, u64>,
    /// Attempts deferred since the start.
    pub deferred: u64,
}

impl Totals {
    /// Counts a verdict.
    pub fn count(&mut self, terminal: Terminal, recipients: u64) {
        *self.terminal.entry(terminal.name()).or_default() += recipients;
    }
}

impl Response {
    /// Joins the answers of two shards to one question.
    #[must_use]
    pub fn merge(self, other: Response) -> Response {
        match (self, other) {
            (Response::Error(error), _) | (_, Response::Error(error)) => Response::Error(error),
            (Response::Recipients(mut a), Response::Recipients(b)) => {
                a.extend(b);
                a.sort_by_key(|view| view.order);
                Response::Recipients(a)
            }
            (Response::Acted(a), Response::Acted(b)) => Response::Acted(ActView {
                number: a.number,
                scanned: a.scanned + b.scanned,
                total: a.total + b.total,
                changed: a.changed + b.changed,
                done: a.done && b.done,
            }),
            // Standing suspensions are the same on every shard.
            (Response::Suspensions(a), Response::Suspensions(_)) => Response::Suspensions(a),
            (Response::Explanations(a), Response::Explanations(b)) => {
                Response::Explanations(merge_explanations(a, b))
            }
            (Response::Lanes(a), Response::Lanes(b)) => Response::Lanes(merge_lanes(a, b)),
            (Response::Totals(a), Response::Totals(b)) => Response::Totals(merge_totals(a, b)),
            (a, _) => a,
        }
    }
}

/// A domain is explained by every shard: theirs become one, its causes those of the shards that have a lane.
fn merge_explanations(mut a: Vec<Explanation>, b: Vec<Explanation>) -> Vec<Explanation> {
    for other in b {
        let same = |known: &&mut Explanation| {
            known.recipient.is_none() && other.recipient.is_none() && known.subject == other.subject
        };
        match a.iter_mut().find(same) {
            None => a.push(other),
            Some(_) if other.lane.is_none() => {}
            Some(known) if known.lane.is_none() => *known = other,
            Some(known) => {
                let lanes =
                    merge_lanes(known.lane.take().into_iter().collect(), other.lane.into_iter().collect());
                known.lane = lanes.into_iter().next();
                let more: Vec<_> =
                    other.because.into_iter().filter(|cause| !known.because.contains(cause)).collect();
                known.because.extend(more);
                if known.transcript.is_empty() {
                    known.transcript = other.transcript;
                }
            }
        }
    }
    a
}

fn merge_lanes(mut a: Vec<LaneView>, b: Vec<LaneView>) -> Vec<LaneView> {
    for lane in b {
        match a.iter_mut().find(|known| known.key == lane.key) {
            None => a.push(lane),
            Some(known) => {
                known.ready += lane.ready;
                known.parked += lane.parked;
                known.in_flight += lane.in_flight;
                known.connections += lane.connections;
                known.window += lane.window;
                known.limit = known.limit.take().or(lane.limit);
                known.backoff_until = known.backoff_until.max(lane.backoff_until);
                known.failures = known.failures.max(lane.failures);
                known.last_reply = known.last_reply.take().or(lane.last_reply);
                known.delivered += lane.delivered;
                known.deferred += lane.deferred;
            }
        }
    }
    a
}

fn merge_totals(mut a: Totals, b: Totals) -> Totals {
    a.messages += b.messages;
    a.recipients += b.recipients;
    a.ready += b.ready;
    a.parked += b.parked;
    a.held += b.held;
    a.in_flight += b.in_flight;
    a.loading += b.loading;
    a.accepted += b.accepted;
    a.deferred += b.deferred;
    for (name, count) in b.terminal {
        *a.terminal.entry(name).or_default() += count;
    }
    a
}

/// A recipient or reverse-path pattern of a [`Filter`].
#[must_use]
pub fn address_matches(pattern: &str, mailbox: Option<&Mailbox>) -> bool {
    match (pattern, mailbox) {
        ("<>", None) => true,
        ("<>", Some(_)) | (_, None) => false,
        (pattern, Some(mailbox)) => match pattern.strip_prefix("*@") {
            Some(domain) => domain_matches(domain, mailbox.domain()),
            None => pattern.eq_ignore_ascii_case(mailbox.as_str()),
        },
    }
}

/// A domain pattern of a [`Filter`]: `example.com`, or `*.example.com` for its subdomains.
#[must_use]
pub fn domain_matches(pattern: &str, domain: &Domain) -> bool {
    match pattern.strip_prefix("*.") {
        Some(parent) => {
            parent.parse::<Domain>().is_ok_and(|parent| domain != &parent && domain.is_within(&parent))
        }
        None => pattern.parse::<Domain>().is_ok_and(|pattern| &pattern == domain),
    }
}
