//! Plain values shared by every layer: ids, epoch, time as a number, errno.
//!
//! Nothing here reads a clock, opens a file or allocates on a hot path.

pub mod codes;
pub mod ids;
pub mod patterns;
pub mod time;
pub mod units;

pub use ids::{ClusterId, Epoch, Generation, NodeId, OpSeq, Volume};
pub use patterns::Patterns;
pub use time::{Millis, Mono};
pub use units::{Rate, Size, Timespan};
