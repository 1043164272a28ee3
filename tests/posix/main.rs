//! The mirror file system against the kernel: mounted in a private mount namespace, without a peer.
//! Needs root and /dev/fuse; without them each test prints why it was skipped.

mod behave;
mod equal;
mod eras;
mod fsx;
mod mapping;
mod roles;
mod rude;
mod standby;
mod support;
