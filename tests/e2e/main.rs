//! End-to-end tests on `skc lab`: real processes, real FUSE mounts, real packets, real power cuts.
//!
//! Every scenario has its own lab, runs alone, has a hard deadline and cleans up. They need root;
//! without it each says so and passes. `cargo test --test e2e` runs all, `cargo test --test e2e NAME` one.

mod application;
mod disk;
mod harness;
mod machines;
mod network;
mod refusals;
mod scenario;
mod wire;
