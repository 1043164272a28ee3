//! What the two agents say to each other: versions, frames and file-system operations.

pub mod fsop;

pub use fsop::{Attr, FileId, FsOp};
