//! Replication of one volume between two directories of this machine, without FUSE: live stream,
//! ordered resync, replay, failures. Needs root (file handles, ownership).

mod compare;
mod early;
mod flags;
mod forget;
mod latency;
mod live;
mod local;
mod random;
mod resync;
#[path = "../skip/mod.rs"]
mod skip;
mod support;
mod syncs;
mod target;
mod unlike;
