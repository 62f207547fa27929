//! The shell of the log: runs the spool's operations on files.
