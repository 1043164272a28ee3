//! The mirror file system: FUSE mounted in place over the backing directory.
//!
//! `session` reads requests on one or two threads; `fs` executes them on the backing tree and hands
//! mutations to a [`crate::ports::Replicator`]; replies go back through `device`, written by whoever
//! finishes last. [`Mount`] is what the daemon holds.
//!
//! Invariants: the daemon never touches a path below its own mount; no reply holds a thread; the kernel
//! caches only what this node alone may change ([`fs`] asks the gate for every answer that may be kept).
//! Failure: a dead daemon is ENOTCONN for applications, never a hang, once nobody holds the device.

pub mod abi;
mod device;
mod era;
pub mod fs;
pub mod holders;
mod init;
mod local;
mod mount;
pub mod mountinfo;
mod session;

pub use device::Device;
pub use era::Era;
pub use init::{InitError, InitValues, MAX_WRITE};
pub use local::Local;
pub use mount::{Mount, MountError, Options, abort, detach};
pub use mountinfo::{PrepareError, prepare};
