//! The mirror file system against the kernel: mounted in a private mount namespace, without a peer.
//! Needs root and /dev/fuse; without them each test says SKIPPED and what is missing.

mod behave;
mod equal;
mod eras;
mod flags;
mod fsx;
mod full;
mod kernel;
mod local;
mod many;
mod mapping;
mod roles;
mod room;
mod rude;
#[path = "../skip/mod.rs"]
mod skip;
mod standby;
mod support;
mod times;
mod uring;
