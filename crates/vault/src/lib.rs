//! Content at rest beyond the queue: the sandbox.
