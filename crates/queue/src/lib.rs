//! Pure scheduling: lanes, fairness, priorities, retry times and limits.
