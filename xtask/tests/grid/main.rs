//! Grids: skipped cells, failures, and the state after a kill. Most tests use a stand-in for `lowrank`, one
//! uses the program itself.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

mod bench;
mod cells;
mod kills;
mod slurm;
