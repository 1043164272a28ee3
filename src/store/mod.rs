//! The state directory of a node: layout, atomic writes, fencing slots, specs, event log.
//!
//! One agent owns a state directory at a time (an exclusive `flock` on `lock`). Everything but the
//! fencing slots and the event log is written as a whole: temporary file, fsync, rename, fsync of
//! the directory, so that a power cut leaves the old or the new content and never a mixture.
//! Blocking calls throughout: callers on the async side use a blocking thread.
//!
//! | path | content |
//! |---|---|
//! | `version` | layout version, refused if newer than ours |
//! | `lock` | held by the running agent |
//! | `pair.json` | pair id, both nodes, heartbeat key |
//! | `pki/` | certificates, keys, one-time tokens |
//! | `starts` | how often the agent started (orders heartbeats of its incarnations) |
//! | `fence/NAME.slots` | fencing record of a cluster |
//! | `specs/NAME.yaml` | spec in force with its revision |
//! | `events.jsonl` | event log |

pub mod error;
pub mod events;
pub mod fence;
pub mod specs;
pub mod state;

pub use error::StoreError;
pub use events::EventLog;
pub use fence::FenceSlots;
pub use specs::{Revision, SpecStore, StoredSpec};
pub use state::{StateDir, StateLock};
