//! What can go wrong with the state directory.

use std::io;
use std::path::{Path, PathBuf};

/// An operation on the state directory failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The operating system refused.
    #[error("cannot {operation} {}: {source}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Another process holds the lock.
    #[error("state directory {} is in use by another agent", .0.display())]
    Locked(PathBuf),
    /// The layout was written by a newer release.
    #[error("{} has format version {found}; this release reads up to {known}", path.display())]
    TooNew {
        /// Which file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// Content that no release of ours writes.
    #[error("{} is damaged: {why}", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A record that does not fit its slot.
    #[error("a fencing record of {bytes} bytes does not fit into {limit}")]
    TooLarge {
        /// Size of the encoded record.
        bytes: usize,
        /// Capacity of a slot.
        limit: usize,
    },
    /// A cluster name that cannot be a file name.
    #[error("cluster name {0:?} cannot be used as a file name")]
    Name(String),
    /// A value that serde cannot encode.
    #[error("cannot encode {what}: {why}")]
    Encode {
        /// What was to be written.
        what: &'static str,
        /// Why not.
        why: String,
    },
}

impl StoreError {
    /// The code shown to the operator.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Io { .. } => "SKC-E2101",
            Self::Locked(_) => "SKC-E2102",
            Self::TooNew { .. } => "SKC-E2103",
            Self::Damaged { .. } => "SKC-E2104",
            Self::TooLarge { .. } | Self::Encode { .. } => "SKC-E2105",
            Self::Name(_) => "SKC-E2106",
        }
    }

    /// `map_err` helper: names the operation and the path.
    pub fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { operation, path, source }
    }
}
