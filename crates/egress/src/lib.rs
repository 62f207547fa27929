//! Connections that deliver: transactions, TLS policy, outcomes.
