//! The decision core of one cluster on one node. Pure: it sees no clock, file, socket or randomness.
//!
//! Purpose: decide who may write, from what the node observes ([`Input`]) to what it must do, in
//! order ([`Effect`]). The daemon's driver, the exhaustive model in `tests/model` and the seeded simulator in
//! `tests/sim` run this same code.
//!
//! Invariants: persist before acting, act before telling (the order of the effect list *is* the
//! order of persistence of facts b5); every waiting state has a deadline or names one operator
//! command ([`View::command`]); an impossible input is ignored, never a panic.
//!
//! The driver's calls (`seed` is OS randomness, fresh in every process):
//! `Cluster::new(me, boot_id: u128, seed: u128, config, durable: Option<Durable>, now: Mono)`,
//! `step(now, Input) -> Vec<Effect>`, `view(now) -> View`, `heartbeat(now) -> HeartbeatBody`,
//! `next_deadline() -> Option<Mono>`.

pub mod cluster;
pub mod config;
pub mod durable;
mod failover;
pub mod health;
pub mod io;
pub mod lineage;
pub mod peer;
pub mod restart;
mod session;
mod status;
pub mod timers;
pub mod view;

pub use cluster::Cluster;
pub use config::{BootPolicy, Config, Failback, Level, Mode, Rules};
pub use durable::{Damage, Durable, Inconsistent};
pub use io::{
    Effect, Event, EventKind, Gate, Input, LinkId, OnFailure, OperatorCommand, OperatorResult, Plan,
    ProbeResult, ServiceState, StreamFacts, StreamLoss, StreamRole, Ticket, Token, Tombstone, TreeState,
    WitnessState,
};
pub use peer::{HeartbeatBody, Hello, LiveRole, PeerMessage, SwapRefusal, Verdict, VerdictKind};
pub use view::{DataState, FailoverOutlook, Readiness, Reason, Role, View};
