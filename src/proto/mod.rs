//! What the two agents say to each other: versions, frames and file-system operations.

pub mod control;
pub mod envelope;
pub mod frame;
pub mod fsop;
pub mod stream;

pub use fsop::{Attr, FileId, FsOp};
