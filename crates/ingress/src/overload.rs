//! Clients that are turned away before a session begins, and how short memory is for those that have begun.

use postrider_model::{Domain, EnhancedCode, Reply};

/// Why no session is begun. The client may come back (`421`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overload {
    /// The listener has as many sessions as it may.
    Listener {
        /// That many.
        connections_max: usize,
    },
    /// This client has.
    Client {
        /// That many.
        connections_per_client_max: usize,
    },
    /// Memory is short (design P4).
    Memory,
    /// The server is about to stop.
    Stopping,
}

impl Overload {
    /// What to write before closing, in the greeting's place (RFC 5321 §3.1).
    #[must_use]
    pub fn greeting(self, hostname: &Domain) -> Vec<u8> {
        let (status, why) = match self {
            Overload::Listener { connections_max } => {
                (EnhancedCode(4, 3, 2), format!("all {connections_max} connections are in use"))
            }
            Overload::Client { connections_per_client_max } => (
                EnhancedCode(4, 7, 0),
                format!("you have {connections_per_client_max} connections, the most for one client"),
            ),
            Overload::Memory => (EnhancedCode(4, 3, 2), "short of memory".to_owned()),
            Overload::Stopping => (EnhancedCode(4, 3, 2), "about to stop".to_owned()),
        };
        let mut out = Vec::new();
        Reply::ours(421, status, &format!("{hostname}: {why}; try again later")).write_wire(&mut out);
        out
    }
}

/// How short memory is (design P4). Each level does what the ones before it do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pressure {
    /// There is enough.
    #[default]
    None,
    /// Half is used: content goes to the log in smaller chunks, so that sessions hold less of it.
    Spills,
    /// Three quarters are used: no session is begun ([`Overload::Memory`]). The rest is for those that go on.
    Refuses,
    /// All is used: whatever can goes to the log at once, and a message with a large header that is not complete
    /// is refused (`452 4.3.1`).
    Sheds,
}

impl Pressure {
    /// When sessions hold so much of what they may hold together.
    #[must_use]
    pub fn of(held_bytes: usize, max_bytes: usize) -> Self {
        if held_bytes >= max_bytes {
            Pressure::Sheds
        } else if held_bytes >= max_bytes - max_bytes / 4 {
            Pressure::Refuses
        } else if held_bytes >= max_bytes / 2 {
            Pressure::Spills
        } else {
            Pressure::None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_rises_with_what_is_held() {
        let levels = [0, 49, 50, 74, 75, 99, 100, 1_000].map(|held| Pressure::of(held, 100));
        use Pressure::{None, Refuses, Sheds, Spills};
        assert_eq!(levels, [None, None, Spills, Spills, Refuses, Refuses, Sheds, Sheds]);
    }

    #[test]
    fn the_greeting_names_the_limit() {
        let hostname = "mx.example.net".parse().unwrap();
        let check = |overload: Overload, expected: &str| {
            assert_eq!(String::from_utf8(overload.greeting(&hostname)).unwrap(), expected);
        };
        check(
            Overload::Client { connections_per_client_max: 5 },
            "421 4.7.0 mx.example.net: you have 5 connections, the most for one client; try again later\r\n",
        );
        check(Overload::Memory, "421 4.3.2 mx.example.net: short of memory; try again later\r\n");
    }
}
