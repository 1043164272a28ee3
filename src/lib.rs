//! skc: two ordinary Linux machines become one highly available service.
//!
//! The pure part (`base`, `spec`, `proto`, `engine`, `ports`) compiles without the
//! `daemon` feature; every module behind the feature may do I/O. The direction of
//! imports is held by `tests/tidy.rs`. Start reading at `src/docs/architecture.md`.

pub mod base;
pub mod engine;
pub mod ports;
pub mod proto;
pub mod spec;

#[cfg(feature = "daemon")]
pub mod api;
#[cfg(feature = "daemon")]
pub mod bus;
#[cfg(feature = "daemon")]
pub mod cli;
#[cfg(feature = "daemon")]
pub mod controller;
#[cfg(feature = "daemon")]
pub mod daemon;
#[cfg(feature = "daemon")]
pub mod failover;
#[cfg(feature = "daemon")]
pub mod fuse;
#[cfg(feature = "daemon")]
pub mod guard;
#[cfg(feature = "daemon")]
pub mod lab;
#[cfg(feature = "daemon")]
pub mod link;
#[cfg(feature = "daemon")]
pub mod net;
#[cfg(feature = "daemon")]
pub mod reconcile;
#[cfg(feature = "daemon")]
pub mod replica;
#[cfg(feature = "daemon")]
pub mod service;
#[cfg(feature = "daemon")]
pub mod store;
#[cfg(feature = "daemon")]
pub mod sys;
#[cfg(feature = "daemon")]
pub mod telemetry;
#[cfg(feature = "daemon")]
pub mod tree;
#[cfg(feature = "daemon")]
pub mod watch;
