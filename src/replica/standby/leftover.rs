//! What stays local in a directory that the primary removed.
//!
//! There the directory was empty, after whoever removed it had removed what was local in it, too. What this node has
//! there of its own goes the same way. Not kept: `exclude` says of it that nobody would miss it.

use super::apply::Apply;
use super::lenient::{is_dir, names_in, remove};
use super::ops::{Failed, RENAME_EXCHANGE, at};
use crate::ports::Errno;
use crate::proto::FsOp;
use crate::sys::file;
use std::os::fd::AsFd;
use std::sync::Arc;

impl Apply {
    /// Applies `op` to a tree that is equal.
    pub(super) fn apply_exactly(&mut self, v: usize, op: &FsOp, bulk: &[u8]) -> Result<(), Failed> {
        match self.tables[v].apply(op, bulk) {
            Err((Errno(libc::ENOTEMPTY | libc::EEXIST), _)) if self.remove_local(v, op)? => {
                self.tables[v].apply(op, bulk)
            }
            other => other,
        }
    }

    /// Empties the directory that `op` removes or replaces, if all of it is local. True: there was something.
    fn remove_local(&mut self, v: usize, op: &FsOp) -> Result<bool, Failed> {
        let (parent, name) = match op {
            FsOp::Rmdir { parent, name, .. } => (parent, name),
            FsOp::Rename { to_parent, to_name, flags, .. } if flags & RENAME_EXCHANGE == 0 => {
                (to_parent, to_name)
            }
            _ => return Ok(false),
        };
        let tree = Arc::clone(&self.tables[v].tree);
        if tree.patterns.is_none() {
            return Ok(false);
        }
        let parent = self.tables[v].path(*parent).map_err(at("open parent"))?;
        let dir = match file::open_at(parent.as_fd(), name, libc::O_RDONLY | libc::O_DIRECTORY, 0) {
            Ok(dir) => dir,
            Err(Errno(libc::ENOTDIR | libc::ENOENT | libc::ELOOP)) => return Ok(false),
            Err(errno) => return Err((errno, "open the removed")),
        };
        let local = tree.local_names(dir.as_fd()).map_err(at("find the directory's place"))?;
        let mut found = Vec::new();
        for (name, kind) in names_in(dir.as_fd(), &mut self.pulse)? {
            let directory = is_dir(dir.as_fd(), &name, kind);
            if !local.has(&name, directory) {
                return Ok(false);
            }
            found.push((name, directory));
        }
        for (name, directory) in &found {
            remove(dir.as_fd(), name, *directory, 0, &mut self.pulse)?;
        }
        Ok(!found.is_empty())
    }
}
