//! Removes a lab's directory without ever crossing a mount.

use super::error::{Context, LabError, Result};
use super::process;
use crate::sys::namespace;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Unmounts what is mounted below `dir` in this mount namespace, innermost first.
pub fn unmount_below(dir: &Path) -> Result<()> {
    for path in process::mounts_below(dir).iter().rev() {
        if let Err(error) = namespace::unmount(path, false) {
            tracing::warn!(path = %path.display(), %error, "busy: detaching");
            namespace::unmount(path, true).context("unmount", path)?;
        }
    }
    Ok(())
}

/// Deletes `dir` and everything in it; refuses before the first deletion if anything is mounted
/// below, and at every directory that is on another device (a mount that appeared since).
pub fn tree(dir: &Path) -> Result<()> {
    let meta = match fs::symlink_metadata(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.context("look at", dir)?,
    };
    if let Some(mount) = process::mounts_below(dir).first() {
        return Err(LabError::Refused(format!(
            "{} is mounted; not deleting {}",
            mount.display(),
            dir.display()
        )));
    }
    remove(dir, meta.dev())
}

fn remove(dir: &Path, device: u64) -> Result<()> {
    for entry in fs::read_dir(dir).context("list", dir)? {
        let path = entry.context("list", dir)?.path();
        let meta = fs::symlink_metadata(&path).context("look at", &path)?;
        if meta.dev() != device {
            return Err(LabError::Refused(format!(
                "{} is on another file system; not deleting it",
                path.display()
            )));
        }
        if meta.is_dir() {
            remove(&path, device)?;
        } else {
            fs::remove_file(&path).context("delete", &path)?;
        }
    }
    fs::remove_dir(dir).context("delete", dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_symbolic_link_is_removed_and_its_target_is_not() {
        let keep = tempfile::tempdir().unwrap();
        fs::write(keep.path().join("precious"), b"x").unwrap();
        let gone = tempfile::tempdir().unwrap();
        let dir = gone.path().join("lab");
        fs::create_dir_all(dir.join("deep/er")).unwrap();
        std::os::unix::fs::symlink(keep.path(), dir.join("deep/link")).unwrap();
        tree(&dir).unwrap();
        assert!(!dir.exists());
        assert!(keep.path().join("precious").exists());
        tree(&dir).unwrap();
    }
}
