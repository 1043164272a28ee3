//! What the lab remembers between two invocations: one JSON file, replaced atomically under a lock.

use super::error::{Context, LabError, Result};
use super::forward::shape::Shape;
use super::topology::Node;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// Version of the file; another version is cleaned up by `down`, never interpreted further.
const VERSION: u32 = 1;

/// A booted node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// PID 1 of the node as the host numbers it.
    pub init: u32,
    /// Start time of that process in clock ticks: with the pid it names one process for good.
    pub started: u64,
    /// What the node's programs see as `SKC_BOOT_ID`.
    pub boot_id: String,
}

/// One direction in which frames are dropped.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Cut {
    /// Network number, 1 or 2.
    pub net: u8,
    /// Sender; `None` = everyone.
    pub from: Option<Node>,
    /// Receiver; `None` = everyone.
    pub to: Option<Node>,
}

/// The process that carries the frames of a node while a link has a shape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forwarder {
    /// Whose frames.
    pub node: Node,
    /// The process as the host numbers it.
    pub pid: u32,
    /// Its start time in clock ticks.
    pub started: u64,
}

/// The whole memory of a lab.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    version: u32,
    /// Nodes that were booted and not killed since.
    pub boots: BTreeMap<Node, Boot>,
    /// Active cuts.
    pub cuts: Vec<Cut>,
    /// What `lab link` asked for.
    #[serde(default)]
    pub link: Option<Shape>,
    /// Forwarder processes of `lab link`.
    #[serde(default)]
    pub forwarders: Vec<Forwarder>,
}

impl State {
    /// A lab without booted nodes.
    pub fn fresh() -> Self {
        Self { version: VERSION, ..Self::default() }
    }

    /// The file in lab directory `dir`.
    pub fn path(dir: &Path) -> PathBuf {
        dir.join("lab.json")
    }

    /// Reads the state of the lab in `dir`; `None` if there is no lab.
    pub fn load(dir: &Path) -> Result<Option<Self>> {
        let path = Self::path(dir);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.context("read", &path)?,
        };
        match serde_json::from_slice(&text) {
            Ok(state) => Ok(Some(state)),
            Err(error) => Err(LabError::Refused(format!(
                "{} is not a lab file of this version ({error}); `skc lab down` removes the lab",
                path.display()
            ))),
        }
    }

    /// Replaces the file.
    pub fn save(&self, dir: &Path) -> Result<()> {
        let path = Self::path(dir);
        let temporary = dir.join("lab.json.new");
        let text = serde_json::to_vec_pretty(self)
            .map_err(|error| LabError::Refused(format!("lab state cannot be encoded: {error}")))?;
        fs::write(&temporary, text).context("write", &temporary)?;
        fs::rename(&temporary, &path).context("rename", &path)
    }
}

/// Holds off other invocations on the same lab as long as it lives.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "the open description is the lock")] File);

impl Lock {
    /// Waits for its turn; operations under the lock are all bounded, so the wait is, too.
    pub fn take(dir: &Path) -> Result<Self> {
        let path = dir.join(".lock");
        let file =
            File::options().create(true).truncate(false).write(true).open(&path).context("open", &path)?;
        file.lock().context("lock", &path)?;
        Ok(Self(file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_survives_a_round_trip_and_garbage_is_named() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(State::load(dir.path()).unwrap(), None);
        let mut state = State::fresh();
        state.boots.insert(Node::NodeA, Boot { init: 7, started: 9, boot_id: "x".into() });
        state.cuts.push(Cut { net: 1, from: Some(Node::NodeA), to: None });
        state.save(dir.path()).unwrap();
        assert_eq!(State::load(dir.path()).unwrap(), Some(state));
        fs::write(State::path(dir.path()), b"{").unwrap();
        assert!(State::load(dir.path()).unwrap_err().to_string().contains("lab.json"));
    }
}
