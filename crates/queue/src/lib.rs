//! Pure scheduling: lanes, fairness, priorities, retry times and limits.

/// A lane: one route and source to one site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LaneId(pub u32);
