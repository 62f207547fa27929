//! The event loops that carry sessions, connections and timers: a relay that runs.
//!
//! **For:** starting a relay in a data directory, asking it, changing its configuration, stopping it. One
//! thread per core is one shard: it owns its sessions, connections and part of the queue, and shares nothing
//! that is touched for a message.
//! **Promises:** what was durable is back after any end (P3); a change of configuration is taken whole or
//! not at all; stopping ends within its bound.
//! **Never:** a decision about mail: those are in `ingress`, `egress`, `engine` and `queue`. No process-wide
//! state: two relays run in one process.
//!
//! ```no_run
//! # use postrider_relay::{Relay, RelayConfig};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let snapshot = unimplemented!();
//! let relay = Relay::start(RelayConfig::new(snapshot, "./postrider-data"))?;
//! for (name, address) in relay.addresses() {
//!     println!("{name} listens on {address}");
//! }
//! relay.stop(std::time::Duration::from_secs(30));
//! # Ok(())
//! # }
//! ```

mod broker;
mod checkpointer;
mod clock;
mod config;
mod event_loop;
mod inbound;
mod inbox;
mod instance;
mod letter;
mod loader;
mod lookup;
mod memory;
mod outbound;
mod recover;
mod relay;
mod shared;
mod submissions;
mod timers;
mod turns;
mod workers;

pub use clock::Clock;
pub use loader::LoadError;
pub use memory::MemoryView;
pub use relay::{Relay, RelayConfig, StartError};
