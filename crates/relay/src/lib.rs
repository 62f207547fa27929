//! The event loops that carry sessions, connections and timers.
