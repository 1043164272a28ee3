//! [`StateDir`]: layout, atomic writes, layout version, the lock.

use super::StoreError;
use crate::base::ClusterId;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Layout version this release writes and the newest it reads.
const LAYOUT: u32 = 1;

/// Largest small file read whole (pair, counters, certificates): far above any of ours.
const SMALL_FILE_MAX: u64 = 1 << 20;

/// Longest cluster name used as a file name: NAME_MAX (255) less our suffixes.
const NAME_LENGTH_MAX: usize = 200;

/// A state directory whose layout version is known. Cheap to clone; holds no descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateDir {
    root: PathBuf,
}

/// Held by the running agent; dropping it (or dying) releases the directory.
#[derive(Debug)]
pub struct StateLock {
    _file: File,
}

impl StateDir {
    /// Opens the directory, making it (0700) and its parents if absent.
    ///
    /// # Errors
    /// I/O, or a layout newer than this release.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(root)
            .map_err(StoreError::io("create directory", root))?;
        let state = Self { root: root.to_owned() };
        let path = state.path("version");
        match state.read_small("version")? {
            None => state.write_atomic("version", format!("{LAYOUT}\n").as_bytes())?,
            Some(text) => {
                let found = std::str::from_utf8(&text).ok().and_then(|t| t.trim().parse::<u32>().ok());
                match found {
                    Some(LAYOUT) => {}
                    Some(found) if found > LAYOUT => {
                        return Err(StoreError::TooNew { path, found, known: LAYOUT });
                    }
                    _ => return Err(StoreError::Damaged { path, why: "no version number".into() }),
                }
            }
        }
        Ok(state)
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A path below the directory.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.root.join(name)
    }

    /// Where the fencing record of a cluster is.
    ///
    /// # Errors
    /// A name that cannot be a file name.
    pub fn fence_path(&self, cluster: &ClusterId) -> Result<PathBuf, StoreError> {
        Ok(self.path("fence").join(format!("{}.slots", file_name(cluster)?)))
    }

    /// Takes the directory for this process.
    ///
    /// # Errors
    /// [`StoreError::Locked`] while another process has it.
    pub fn lock(&self) -> Result<StateLock, StoreError> {
        let path = self.path("lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(StoreError::io("open", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(StateLock { _file: file }),
            Err(TryLockError::WouldBlock) => Err(StoreError::Locked(self.root.clone())),
            Err(TryLockError::Error(source)) => Err(StoreError::Io { operation: "lock", path, source }),
        }
    }

    /// Makes a subdirectory (0700).
    ///
    /// # Errors
    /// I/O.
    pub fn make_dir(&self, name: &str) -> Result<PathBuf, StoreError> {
        let path = self.path(name);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .map_err(StoreError::io("create directory", &path))?;
        sync_dir(&self.root)?;
        Ok(path)
    }

    /// Replaces a file (mode 0600) so that a crash leaves the old or the new content.
    ///
    /// # Errors
    /// I/O; the old content is then still in place.
    pub fn write_atomic(&self, name: impl AsRef<Path>, content: &[u8]) -> Result<(), StoreError> {
        write_atomic(&self.path(name), content)
    }

    /// Content of a small file, `None` if it does not exist.
    ///
    /// # Errors
    /// I/O, or a file larger than any of ours.
    pub fn read_small(&self, name: impl AsRef<Path>) -> Result<Option<Vec<u8>>, StoreError> {
        read_small(&self.path(name))
    }

    /// Counts one more start of the agent and returns a number above every earlier one, durable
    /// before it is used. The wall clock (seconds) is a lower bound, so that a state directory
    /// restored from a backup does not fall behind what the peer has already seen.
    ///
    /// # Errors
    /// I/O. A damaged counter is not an error: the clock replaces it.
    pub fn next_start(&self) -> Result<u64, StoreError> {
        let stored = self
            .read_small("starts")?
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .and_then(|text| text.trim().parse::<u64>().ok())
            .unwrap_or(0);
        let clock = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        let next = stored.saturating_add(1).max(clock);
        self.write_atomic("starts", format!("{next}\n").as_bytes())?;
        Ok(next)
    }
}

/// A cluster's name as a file name. Specs are validated long before; this guards against a peer
/// that sends what its own validation should have refused.
pub(crate) fn file_name(cluster: &ClusterId) -> Result<&str, StoreError> {
    let name = cluster.0.as_str();
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > NAME_LENGTH_MAX || name.starts_with('.') || !name.chars().all(legal) {
        return Err(StoreError::Name(name.chars().take(NAME_LENGTH_MAX).collect()));
    }
    Ok(name)
}

/// Content of a file of at most [`SMALL_FILE_MAX`] bytes, `None` if absent.
pub(crate) fn read_small(path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(StoreError::Io { operation: "open", path: path.to_owned(), source }),
    };
    let mut content = Vec::new();
    file.take(SMALL_FILE_MAX + 1).read_to_end(&mut content).map_err(StoreError::io("read", path))?;
    if content.len() as u64 > SMALL_FILE_MAX {
        return Err(StoreError::Damaged { path: path.to_owned(), why: "larger than 1 MiB".into() });
    }
    Ok(Some(content))
}

/// Temporary file, fsync, rename, fsync of the directory. The temporary name is fixed per target:
/// one process owns the directory, and a leftover of a crash is simply overwritten.
pub(crate) fn write_atomic(path: &Path, content: &[u8]) -> Result<(), StoreError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(StoreError::io("create", &temporary))?;
    file.write_all(content).map_err(StoreError::io("write", &temporary))?;
    file.sync_all().map_err(StoreError::io("fsync", &temporary))?;
    fs::rename(&temporary, path).map_err(StoreError::io("rename", &temporary))?;
    sync_dir(path.parent().unwrap_or(Path::new("/")))
}

/// Makes the entries of a directory durable.
pub(crate) fn sync_dir(path: &Path) -> Result<(), StoreError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(StoreError::io("fsync directory", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_agents_cannot_share_a_state_directory() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let held = state.lock().unwrap();
        assert!(matches!(state.lock(), Err(StoreError::Locked(_))));
        drop(held);
        state.lock().unwrap();
    }

    #[test]
    fn a_newer_layout_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        StateDir::open(dir.path()).unwrap();
        std::fs::write(dir.path().join("version"), "2\n").unwrap();
        assert!(matches!(StateDir::open(dir.path()), Err(StoreError::TooNew { found: 2, known: 1, .. })));
        std::fs::write(dir.path().join("version"), [0xff, 0]).unwrap();
        assert!(matches!(StateDir::open(dir.path()), Err(StoreError::Damaged { .. })));
    }

    #[test]
    fn atomic_write_replaces_and_keeps_the_secret_mode() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        state.write_atomic("x", b"one").unwrap();
        state.write_atomic("x", b"two").unwrap();
        assert_eq!(state.read_small("x").unwrap().unwrap(), b"two");
        let mode = std::fs::metadata(state.path("x")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(!state.path("x.tmp").exists());
    }

    #[test]
    fn starts_only_grow() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let first = state.next_start().unwrap();
        assert!(state.next_start().unwrap() > first);
        state.write_atomic("starts", b"garbage").unwrap();
        assert!(state.next_start().unwrap() >= first);
    }

    #[test]
    fn names_that_leave_the_directory_are_refused() {
        for name in ["", ".", "..", "../x", "a/b", "a\0b", ".hidden", &"x".repeat(201)] {
            assert!(file_name(&ClusterId(name.into())).is_err(), "{name:?}");
        }
        assert_eq!(file_name(&ClusterId("shop-db".into())).unwrap(), "shop-db");
    }
}
