//! Watches a directory of specs (a GitOps checkout, configuration management) and reports its content.
//!
//! Purpose: `skc agent --specs DIR`. Inputs: notifications of the kernel. Outputs: the whole content
//! of the directory, once at the start and after every change that was followed by [`QUIET`].
//! Invariants: a change is never missed: a notification only says "look again", the content is
//! always read in full. Failure: an unreadable directory is reported and looked at again at the next
//! notification. Deliberately absent: git itself, and deleting clusters whose file went away.

use notify::{RecursiveMode, Watcher};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::mpsc;

/// A checkout writes many files: the content is read when nothing changed for this long.
pub const QUIET: Duration = Duration::from_millis(500);

/// Files at most, and bytes a file: as for `skc apply`.
const FILES_MAX: usize = 1000;
const FILE_MAX: u64 = 1 << 20;

/// What the directory holds.
pub type Content = Vec<(PathBuf, String)>;

/// What went wrong with the watched directory.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The kernel's watch could not be set.
    #[error("cannot watch {path}")]
    Watch {
        /// Which directory.
        path: PathBuf,
        /// Why.
        source: notify::Error,
    },
    /// A file or directory could not be read.
    #[error("cannot read {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Sends the content of `dir` to `out` at once and after every change, until `out` closes.
///
/// # Cancel safety
/// Dropping the future ends the watch; nothing is left behind.
pub async fn run(dir: PathBuf, out: mpsc::Sender<Result<Content, WatchError>>) -> Result<(), WatchError> {
    // One pending "look again" is enough: the content is read in full.
    let (poke, mut poked) = mpsc::channel::<()>(1);
    let failed = |source| WatchError::Watch { path: dir.clone(), source };
    let mut watcher = notify::recommended_watcher(move |_event| {
        let _ = poke.try_send(());
    })
    .map_err(failed)?;
    watcher.watch(&dir, RecursiveMode::Recursive).map_err(failed)?;
    loop {
        if out.send(read(&dir)).await.is_err() {
            return Ok(());
        }
        tokio::select! {
            biased; // a closed consumer ends the watch before another look
            () = out.closed() => return Ok(()),
            more = poked.recv() => if more.is_none() { return Ok(()) },
        }
        while tokio::time::timeout(QUIET, poked.recv()).await.is_ok_and(|more| more.is_some()) {}
    }
}

/// Every `*.yaml`/`*.yml` below `dir` by path; hidden entries (`.git`) are left out.
pub fn read(dir: &Path) -> Result<Content, WatchError> {
    let mut content = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(path) = todo.pop() {
        let failed = |source| WatchError::Read { path: path.clone(), source };
        for entry in std::fs::read_dir(&path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let file = entry.path();
            if entry.file_name().as_encoded_bytes().starts_with(b".") || content.len() >= FILES_MAX {
                continue;
            }
            let kind = entry.file_type().map_err(failed)?;
            let yaml = file.extension().is_some_and(|e| e == "yaml" || e == "yml");
            if kind.is_dir() {
                todo.push(file);
            } else if yaml && entry.metadata().map_err(failed)?.len() <= FILE_MAX {
                let text = std::fs::read_to_string(&file)
                    .map_err(|source| WatchError::Read { path: file.clone(), source })?;
                content.push((file, text));
            }
        }
    }
    content.sort();
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn content_is_reported_at_start_and_after_a_change() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.yaml"), "one").unwrap();
        std::fs::write(dir.path().join("b.txt"), "no").unwrap();
        let (tx, mut rx) = mpsc::channel(4);
        let task = tokio::spawn(run(dir.path().to_owned(), tx));
        let wait = Duration::from_secs(10);
        let first = tokio::time::timeout(wait, rx.recv()).await.unwrap().unwrap().unwrap();
        assert_eq!(first, vec![(dir.path().join("a.yaml"), "one".to_owned())]);
        std::fs::write(dir.path().join("a.yaml"), "two").unwrap();
        let second = tokio::time::timeout(wait, rx.recv()).await.unwrap().unwrap().unwrap();
        assert_eq!(second[0].1, "two");
        drop(rx);
        tokio::time::timeout(wait, task).await.unwrap().unwrap().unwrap();
    }
}
