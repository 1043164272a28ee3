//! Replication of one cluster over one data connection: the primary's stream, the standby's apply
//! and the ordered resync (design 0001).
//!
//! | module | thread(s) | does |
//! |---|---|---|
//! | `primary` | callers, ack reader, helper, fsync pool | gate, ordered stream, replies, replay |
//! | `pump` | one a resync | reads the source under its locks, step by step |
//! | `standby` | apply thread, fsync pool | applies, acknowledges, repairs, keeps what it destroys |
//! | `wire` | drainer | TLS without an async runtime |
//!
//! The driver's calls: `Primary::{set_gate, connect, mark_up_to_date, drain, disconnect, replay_from,
//! position, adopt_position}`, `Standby::{accept, release_marker, sync, close, applied, adopt_position}`;
//! both report by [`Event`]. Connecting and accepting block for seconds: never on an async thread.
//! Known limits: one directory is listed under its locks in one go; the source keeps about 300 bytes an
//! object for the length of a resync, the target as much an object the source's kernel knows; hard
//! links into a directory that goes to quarantine share their content with it.

pub mod event;
pub mod kept;
mod local;
mod pool;
pub mod primary;
mod pump;
pub mod standby;
pub mod wire;

pub use event::{Event, EventSink, Progress, StreamEnd};
pub use local::sync_trees;
pub use primary::Primary;
pub use standby::Standby;
pub use wire::DataConn;
