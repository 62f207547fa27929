//! Pure scheduling for one shard: who may go, when, and over how many connections.
//!
//! **For:** deciding which recipient is sent next. A recipient waits for its time in a wheel; when it is due
//! it waits by routing domain until the site is known, then in its lane (source × site): priority class with
//! reserved share → flow by deficit round robin → first in, first out. Lanes open connections as far as their
//! limits and what was learned about the site allow.
//! **Promises:** a recipient is in exactly one place; nothing is dispatched early or by two connections at
//! once; one lane never slows another; every wait can be named ([`Queue::why`], [`Queue::lanes`]); memory is
//! 48 octets per recipient plus its domain, flow and lane.
//! **Never:** I/O, clocks, randomness that is not from the seed, or knowledge of what a message says. Messages
//! and replies are the engine's numbers.
//!
//! ```
//! use postrider_model::{Class, Timestamp};
//! use postrider_queue::{Action, LaneLimits, Queue, Recipient, Settings};
//! use std::time::Duration;
//!
//! let now = Timestamp::from_secs(1_800_000_000);
//! let mut queue = Queue::new(Settings::default(), 7);
//! let domain = queue.intern_domain(0, "example.net");
//! let flow = queue.intern_flow("app1", 1);
//! let slot = queue.insert(now, &Recipient::fresh(1, 0, domain, flow, Class::Normal, now));
//!
//! assert_eq!(queue.poll(now), Some(Action::Resolve(domain)));
//! let lane = queue.resolved(now, domain, "mx.example.net", LaneLimits::default(), Duration::from_secs(300));
//! assert_eq!(queue.poll(now), Some(Action::WantSlot(lane)));
//! queue.grant(lane);
//! assert_eq!(queue.poll(now), Some(Action::Connect(lane)));
//! queue.connection_opened(now, lane);
//! let batch = queue.next(now, lane).unwrap();
//! assert_eq!((batch.message, batch.recipients[0]), (1, slot));
//! queue.finished(slot);
//! ```

mod acts;
mod arena;
#[cfg(test)]
mod check;
mod dispatch;
mod entry;
mod fair;
mod feedback;
mod names;
mod pace;
mod queue;
mod resolve;
mod settings;
mod table;
mod view;
mod wheel;

pub use acts::Scope;
pub use dispatch::{Action, Batch};
pub use feedback::{Backoff, Closed};
pub use pace::Throttle;
pub use queue::{DomainId, FlowId, LaneId, Queue, Recipient, RecipientSlot};
pub use settings::{LaneLimits, Rate, Settings};
pub use view::{DomainView, LaneView, Limit, RecipientView, Waiting};
pub use wheel::{Bucket, BucketView};
