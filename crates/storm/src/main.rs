//! Load generator, sink and exact-accounting checker.
fn main() {}
