//! Volumes: a small separate file system for a node, to fill it up or to leave it unmounted.
//!
//! A volume is a tmpfs at `NODE/volumes/NAME` of the lab's directory (its content outlives power
//! cuts) that is bound to a path of the node's disk. A running node keeps the mounts it booted
//! with: attach before `boot`.

use super::error::{Context, Result};
use super::process;
use super::{Lab, Node};
use crate::sys::namespace::{self, Mount};
use std::fs;
use std::path::PathBuf;

impl Lab {
    fn volume_path(&self, node: Node, path: &str) -> PathBuf {
        self.node_dir(node).join("volumes").join(path.trim_matches('/').replace('/', "-"))
    }

    /// Creates a volume of `mebibytes` and attaches it at `path` (below `/srv`) of `node`.
    pub fn create_volume(&self, node: Node, path: &str, mebibytes: u32) -> Result<()> {
        let home = self.volume_path(node, path);
        fs::create_dir_all(&home).context("create", &home)?;
        let options = format!("size={mebibytes}m,mode=755");
        namespace::mount(Mount::New("tmpfs", &options), &home).context("mount a tmpfs at", &home)?;
        self.attach_volume(node, path)
    }

    /// Binds an existing volume to its path; the node sees it from its next boot on.
    pub fn attach_volume(&self, node: Node, path: &str) -> Result<()> {
        let (home, at) = (self.volume_path(node, path), self.backing(node, path));
        fs::create_dir_all(&at).context("create", &at)?;
        namespace::mount(Mount::Bind(&home), &at).context("bind a volume to", &at)
    }

    /// Takes it away again: the next boot finds the empty directory below.
    pub fn detach_volume(&self, node: Node, path: &str) -> Result<()> {
        let at = self.backing(node, path);
        for mount in process::mounts_below(&at).iter().rev() {
            namespace::unmount(mount, true).context("unmount", mount)?;
        }
        Ok(())
    }
}
