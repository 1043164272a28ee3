//! Drives the decision core of one cluster: inputs in, effects out, in order.
//!
//! Owner task: one [`Driver`] a cluster. Inputs: link, heartbeats, data streams, probes, services,
//! operators, time. Outputs: calls into a [`World`], which does the I/O. Invariants: effects run one at a
//! time in the order the core gave them; a failed `Persist` drops the rest of its list, so nothing acts
//! on a decision that is not on disk. Deliberately absent: every decision.

pub mod config;
pub mod driver;
pub mod world;

pub use driver::{Driver, Handle};
pub use world::World;
