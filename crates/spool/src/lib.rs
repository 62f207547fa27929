//! The durable log as a state machine.
