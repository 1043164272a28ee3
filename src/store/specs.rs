//! [`SpecStore`]: the specs in force, each with its revision, one YAML file a cluster.
//!
//! The first line is a comment that carries the revision, the rest is the operator's text as it
//! came. A removed spec leaves its revision behind, so that a peer that was away cannot bring it
//! back; [`SpecStore::forget`] drops that too.

use super::state::{file_name, read_small, sync_dir};
use super::{StateDir, StoreError};
use crate::base::ClusterId;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

const MARK: &str = "# skc-revision:";

/// Order of the versions of one spec: number first, then the name of the node that made it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Revision {
    /// One more than the newest its author knew.
    pub number: u64,
    /// The author; breaks ties.
    pub node: String,
}

/// A spec as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredSpec {
    /// Whose spec.
    pub cluster: ClusterId,
    /// Which version.
    pub revision: Revision,
    /// The YAML text; `None` = removed.
    pub yaml: Option<String>,
}

/// The `specs` folder of a state directory.
#[derive(Debug, Clone)]
pub struct SpecStore {
    state: StateDir,
    folder: PathBuf,
}

impl SpecStore {
    /// Opens the folder, making it if absent.
    ///
    /// # Errors
    /// I/O.
    pub fn open(state: &StateDir) -> Result<Self, StoreError> {
        Ok(Self { state: state.clone(), folder: state.make_dir("specs")? })
    }

    /// Makes `yaml` the spec of `cluster`; durable when it returns.
    ///
    /// # Errors
    /// I/O, or a name that cannot be a file name.
    pub fn save(&self, cluster: &ClusterId, revision: &Revision, yaml: &str) -> Result<(), StoreError> {
        self.put(cluster, &format!("{MARK} {} {}\n{yaml}", revision.number, revision.node))
    }

    /// Removes the spec and remembers at which revision.
    ///
    /// # Errors
    /// As [`Self::save`].
    pub fn remove(&self, cluster: &ClusterId, revision: &Revision) -> Result<(), StoreError> {
        self.put(cluster, &format!("{MARK} {} {} removed\n", revision.number, revision.node))
    }

    /// Drops every trace of a cluster's spec.
    ///
    /// # Errors
    /// I/O.
    pub fn forget(&self, cluster: &ClusterId) -> Result<(), StoreError> {
        let path = self.path(cluster)?;
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(StoreError::Io { operation: "remove", path, source: error })
            }
            _ => sync_dir(&self.folder),
        }
    }

    /// The stored version of a cluster's spec, removed ones included.
    ///
    /// # Errors
    /// I/O, or a file that is not ours.
    pub fn load(&self, cluster: &ClusterId) -> Result<Option<StoredSpec>, StoreError> {
        let path = self.path(cluster)?;
        let Some(bytes) = read_small(&path)? else { return Ok(None) };
        parse(cluster, &bytes).map(Some).ok_or_else(|| StoreError::Damaged {
            path,
            why: "no revision in the first line, or not UTF-8".into(),
        })
    }

    /// Every stored spec by name, removed ones included; a file that cannot be read is listed with
    /// its error and hides no other.
    ///
    /// # Errors
    /// The folder itself cannot be read.
    pub fn list(&self) -> Result<Vec<Result<StoredSpec, StoreError>>, StoreError> {
        let mut names = Vec::new();
        let failed = || StoreError::io("read directory", &self.folder);
        for entry in std::fs::read_dir(&self.folder).map_err(failed())? {
            let name = entry.map_err(failed())?.file_name();
            if let Some(cluster) = name.to_str().and_then(|name| name.strip_suffix(".yaml")) {
                names.push(ClusterId(cluster.to_owned()));
            }
        }
        names.sort();
        Ok(names.iter().filter_map(|cluster| self.load(cluster).transpose()).collect())
    }

    fn put(&self, cluster: &ClusterId, text: &str) -> Result<(), StoreError> {
        let path = self.path(cluster)?;
        self.state.write_atomic(path, text.as_bytes())
    }

    fn path(&self, cluster: &ClusterId) -> Result<PathBuf, StoreError> {
        Ok(self.folder.join(format!("{}.yaml", file_name(cluster)?)))
    }
}

fn parse(cluster: &ClusterId, bytes: &[u8]) -> Option<StoredSpec> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (first, yaml) = text.split_once('\n')?;
    let mut words = first.strip_prefix(MARK)?.split_whitespace();
    let revision = Revision { number: words.next()?.parse().ok()?, node: words.next()?.to_owned() };
    let yaml = match words.next() {
        None => Some(yaml.to_owned()),
        Some("removed") => None,
        Some(_) => return None,
    };
    Some(StoredSpec { cluster: cluster.clone(), revision, yaml })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_comes_back_unchanged_and_removal_is_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let specs = SpecStore::open(&state).unwrap();
        let shop = ClusterId("shop-db".into());
        let yaml = "# mine\napiVersion: skc.dev/v1\n\n";
        let first = Revision { number: 1, node: "node-a".into() };
        specs.save(&shop, &first, yaml).unwrap();
        specs.save(&ClusterId("mail".into()), &first, "").unwrap();
        let stored = specs.load(&shop).unwrap().unwrap();
        assert_eq!((stored.yaml.as_deref(), &stored.revision), (Some(yaml), &first));
        let second = Revision { number: 2, node: "node-b".into() };
        specs.remove(&shop, &second).unwrap();
        let listed: Vec<_> = specs.list().unwrap().into_iter().map(Result::unwrap).collect();
        assert_eq!(listed.len(), 2);
        assert_eq!((listed[1].yaml.as_deref(), &listed[1].revision), (None, &second));
        specs.forget(&shop).unwrap();
        assert_eq!(specs.load(&shop).unwrap(), None);
        assert!(second > first && Revision { number: 2, node: "node-a".into() } < second);
    }

    #[test]
    fn a_damaged_file_hides_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let specs = SpecStore::open(&state).unwrap();
        let revision = Revision { number: 1, node: "node-a".into() };
        specs.save(&ClusterId("good".into()), &revision, "x: 1\n").unwrap();
        std::fs::write(state.path("specs/bad.yaml"), [0xff, 0xfe]).unwrap();
        std::fs::write(state.path("specs/good.yaml.tmp"), "leftover").unwrap();
        let listed = specs.list().unwrap();
        assert_eq!(listed.iter().filter(|entry| entry.is_ok()).count(), 1);
        assert_eq!(listed.iter().filter(|entry| entry.is_err()).count(), 1);
    }
}
