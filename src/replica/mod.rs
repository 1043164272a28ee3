//! Replication of one cluster over one data connection: the primary's stream, the standby's apply
//! and the ordered resync (design 0001).

pub mod event;
mod local;
mod pool;
pub mod primary;
mod pump;
pub mod standby;
pub mod wire;

pub use event::{Event, EventSink, Progress, StreamEnd};
pub use primary::Primary;
pub use standby::Standby;
pub use wire::DataConn;
