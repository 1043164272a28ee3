//! The guard: the small process that outlives the worker and makes its death harmless.
//!
//! One thread, one poll loop, nothing that waits for a disk, a mount, a peer, the worker or a log collector (two more
//! threads read environments and write the log, see `table` and `log`). It owns what must not die with the worker (descriptors, services' processes) and what
//! must be undone when it does (addresses, mounts, services).
//!
//! ```text
//!            spawn            Hello, Ready                exit, EOF, no ping
//!  (none) ----------> starting ----------> serving -----------------------------> fencing
//!    ^                                                                               |
//!    +--- back-off over ---- old worker reaped, fence executed <---------------------+
//!         without a ready worker for the freeze budget, and everything surely down: tombstone
//! ```
//!
//! Invariants:
//! * Services are stopped, then addresses dropped, then mounts aborted, on **every** death of a worker, before the
//!   next one starts.
//! * The tombstone leaves only when the worker is reaped, every service is gone, every address is dropped and
//!   every mount is dead; once sent, every later worker is told until it sets another.
//! * The worker and the programs of services get SIGKILL from the kernel when the guard dies. Grandchildren do not:
//!   the next guard kills them by the mark in their environment.
//!
//! Entry points: [`run()`] for the guard's side, [`client::Guard`] for the worker's.

pub mod client;
mod command;
mod config;
mod fence;
mod log;
pub mod message;
mod notify;
mod record;
mod requests;
mod run;
pub(crate) mod table;
mod tombstone;
mod worker;

pub use config::GuardConfig;
pub use log::LogQueue;
pub use run::run;

/// Environment variable with the number of the worker's end of the socket pair.
pub const FD_VARIABLE: &str = "SKC_GUARD_FD";
