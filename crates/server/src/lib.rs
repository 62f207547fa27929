//! The binary's parts, so that tests can reach them.
pub mod config;
