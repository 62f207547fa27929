//! Debian's servers, run unchanged.
//!
//! **For** tests and benchmarks that need other people's servers: a room is a place in which a server runs under its
//! own paths and users, beside other rooms and beside whatever the machine has installed. It is a mount and PID
//! namespace over unpacked packages.
//!
//! **Promises.** Nothing is installed on the machine and nothing outside the folder is written. What runs in a room
//! ends with it, and with the thread that started it.
//!
//! **Never** is any of this part of the product. It is no sandbox for what one does not trust, either: the network is
//! the machine's.
//!
//! ```no_run
//! use enclosure::{Packages, Room, User};
//!
//! # fn main() -> anyhow::Result<()> {
//! let scratch = std::path::Path::new("/tmp/scratch");
//! let packages = Packages::unpack(&scratch.join("nsd"), &["nsd"])?;
//! let user = User { name: "nsd", id: 960, home: "/nonexistent" };
//! let room = Room::build(&scratch.join("room"), &packages, &[user])?;
//! let running = room.start("nsd -d &\nwait\n")?;
//! println!("{}", running.enter("nsd -v")?);
//! # Ok(())
//! # }
//! ```

mod apt;
mod room;

pub use apt::{Packages, apt_get, once};
pub use room::{Room, Running, User, dying_with_us};
