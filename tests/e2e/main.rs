//! End-to-end tests on `skc lab`: real processes, real FUSE mounts, real packets, real power cuts.
//!
//! Every scenario has its own lab, runs alone, has a hard deadline and cleans up. They need root;
//! without it each says SKIPPED and passes. `cargo test --test e2e` runs all, `cargo test --test e2e NAME` one.

mod application;
mod clusters;
mod disk;
mod exclude;
mod faults;
mod handover;
mod harness;
mod levels;
mod limits;
mod machines;
mod modes;
mod network;
mod records;
mod refusals;
mod resync;
mod scenario;
mod sick;
#[path = "../skip/mod.rs"]
mod skip;
mod specs;
mod stalls;
mod stress;
mod verbs;
mod watch;
mod wire;
