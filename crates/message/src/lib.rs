//! Content of messages: header scan, deltas, reports.
