//! The postrider binary: configuration, wiring, command line.
fn main() {}
