//! Joins spool and queue: what every recipient's state is, and what happens next.
