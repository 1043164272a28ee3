//! What can go wrong in the lab.

use crate::base::codes::{self, Code};
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// An operation on the lab that failed.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// Not root.
    #[error("the lab makes network namespaces and mounts and therefore needs root: run it again with sudo")]
    NeedsRoot,
    /// The kernel or the machine lacks something.
    #[error("this machine lacks {what}: {hint}")]
    Missing {
        /// What is not there.
        what: String,
        /// What to do about it.
        hint: &'static str,
    },
    /// A system call or file operation failed.
    #[error("{op} {path}: {source}")]
    Io {
        /// What was tried.
        op: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A command ended with an error.
    #[error("`{command}` failed: {stderr}")]
    Command {
        /// The command line.
        command: String,
        /// What it said.
        stderr: String,
    },
    /// Something did not happen in time.
    #[error("{what} did not happen within {after:?}{detail}")]
    Timeout {
        /// What was awaited.
        what: String,
        /// How long.
        after: Duration,
        /// What was seen last, starting with a separator, or empty.
        detail: String,
    },
    /// No such lab, node, link, or not in the state that the verb needs.
    #[error("{0}")]
    Refused(String),
}

impl LabError {
    /// Its page for `skc explain`.
    pub fn code(&self) -> Code {
        match self {
            Self::NeedsRoot => codes::CLI_ROOT,
            Self::Missing { .. } | Self::Io { .. } | Self::Command { .. } => codes::LAB_SETUP,
            Self::Timeout { .. } => codes::CLI_TIMEOUT,
            Self::Refused(_) => codes::LAB_REFUSED,
        }
    }
}

/// Result of a lab operation.
pub type Result<T> = std::result::Result<T, LabError>;

/// Adds operation and path to an I/O result.
pub(crate) trait Context<T> {
    fn context(self, op: &'static str, path: impl Into<PathBuf>) -> Result<T>;
}

impl<T> Context<T> for io::Result<T> {
    fn context(self, op: &'static str, path: impl Into<PathBuf>) -> Result<T> {
        self.map_err(|source| LabError::Io { op, path: path.into(), source })
    }
}
