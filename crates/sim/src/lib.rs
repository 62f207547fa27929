//! Deterministic simulation of the real rooms.
