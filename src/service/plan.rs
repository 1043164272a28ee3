//! The plan of one service: made by the worker from the spec, executed by the guard as it stands.
//!
//! User names are resolved before the plan is made: a name service may hang, and the guard must not.

use crate::base::{ClusterId, Millis};
use crate::spec::types::{Exec, Service};
use crate::sys::process::{self, Credentials};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::PathBuf;

/// A service of a cluster: `cluster.service`. Both halves are DNS-label-like names, so the dot separates.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ServiceId(pub String);

impl ServiceId {
    /// The id of service `name` in `cluster`.
    pub fn new(cluster: &ClusterId, name: &str) -> Self {
        Self(format!("{}.{name}", cluster.0))
    }

    /// Is it usable as a file name and short enough to list?
    pub fn is_valid(&self) -> bool {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        (1..=160).contains(&self.0.len()) && !self.0.starts_with('.') && self.0.chars().all(plain)
    }
}

impl fmt::Display for ServiceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How a service is run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Program {
    /// One program in the foreground; its exit is a failure, SIGTERM its stop.
    Run {
        /// Program and arguments.
        argv: Vec<String>,
    },
    /// Three commands around something that goes into the background.
    Commands {
        /// Exit 0 = started.
        start: Vec<String>,
        /// Exit 0 = stopped.
        stop: Vec<String>,
        /// Exit 0 = running.
        status: Vec<String>,
    },
}

/// Where output goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Output {
    /// `<run_dir>/services/<id>.log`, rotated once at 4 MiB.
    File,
    /// The guard's own standard output and error.
    Inherit,
}

/// Everything needed to run one service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePlan {
    /// Which.
    pub id: ServiceId,
    /// What runs.
    pub program: Program,
    /// Added to the guard's environment.
    pub env: BTreeMap<String, String>,
    /// Whose rights; the guard's when absent.
    pub credentials: Option<Credentials>,
    /// Where its commands run; `/` when absent.
    pub directory: Option<PathBuf>,
    /// Longest run of the start command.
    pub start_timeout: Millis,
    /// Time between asking it to stop and SIGKILL.
    pub stop_timeout: Millis,
    /// Time between two status commands.
    pub status_interval: Millis,
    /// Where output goes.
    pub output: Output,
}

impl ServicePlan {
    /// The plan for `service` of `cluster`. Looks the user up, which **may block**: not for an async thread.
    ///
    /// # Errors
    /// The user does not exist or cannot be looked up.
    pub fn from_spec(cluster: &ClusterId, service: &Service) -> io::Result<Self> {
        let mut env = BTreeMap::new();
        let mut credentials = None;
        if let Some(user) = &service.user {
            let (rights, home) = process::lookup_user(user)?;
            env.insert("USER".to_owned(), user.clone());
            env.insert("LOGNAME".to_owned(), user.clone());
            env.insert("HOME".to_owned(), home.to_string_lossy().into_owned());
            credentials = Some(rights);
        }
        env.extend(service.env.clone());
        let program = match service.exec.clone() {
            Exec::Run { argv } => Program::Run { argv },
            Exec::Commands { start, stop, status } => Program::Commands { start, stop, status },
        };
        Ok(Self {
            id: ServiceId::new(cluster, &service.name),
            program,
            env,
            credentials,
            directory: service.working_directory.clone(),
            start_timeout: service.start_timeout.as_millis(),
            stop_timeout: service.stop_timeout.as_millis(),
            status_interval: service.status_interval.as_millis(),
            output: Output::File,
        })
    }

    /// Equal for equal plans: a start with another digest restarts the service.
    pub fn digest(&self) -> [u8; 32] {
        // Plain owned data without maps of unstable order: cannot fail to encode; an empty encoding would
        // only compare equal to another impossible one.
        *blake3::hash(&rmp_serde::to_vec(self).unwrap_or_default()).as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_safe_as_file_names() {
        assert!(ServiceId::new(&ClusterId("shop-db".into()), "postgres").is_valid());
        for bad in ["", "../x", "a/b", ".hidden", "a b", &"x".repeat(161)] {
            assert!(!ServiceId(bad.to_owned()).is_valid(), "{bad}");
        }
        assert!(ServiceId("x".repeat(160)).is_valid());
    }
}
