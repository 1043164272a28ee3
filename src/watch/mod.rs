//! Watches a directory of specs (a GitOps checkout, configuration management) and reports its content.
//!
//! Purpose: `skc agent --specs DIR`. Inputs: notifications of the kernel. Outputs: the whole content
//! of the directory, once at the start and after every change that was followed by [`QUIET`].
//! Invariants: a change is never missed: a notification only says "look again", the content is
//! always read in full. Failure: a missing or unreadable directory is reported and looked at again.
//! Deliberately absent: git itself, and deleting clusters whose file went away.

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecursiveMode, Watcher};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::mpsc;

/// A checkout writes many files: the content is read when nothing changed for this long.
pub const QUIET: Duration = Duration::from_millis(500);

/// Time until a directory that is missing or unreadable is looked at again: a checkout is soon there, and a
/// look costs nothing.
pub const RETRY: Duration = Duration::from_secs(5);

/// Files at most, and bytes a file: as for `skc apply`.
const FILES_MAX: usize = 1000;
const FILE_MAX: u64 = 1 << 20;

/// What the directory holds.
pub type Content = Vec<(PathBuf, String)>;

/// What went wrong with the watched directory.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The kernel's watch could not be set.
    #[error("cannot watch {path}: {source}; trying again")]
    Watch {
        /// Which directory.
        path: PathBuf,
        /// Why.
        source: notify::Error,
    },
    /// A file or directory could not be read.
    #[error("cannot read {path}: {source}; trying again")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// There is too much.
    #[error("{path} has {what}; nothing of the directory is applied")]
    Limit {
        /// Which file or directory.
        path: PathBuf,
        /// Of what.
        what: &'static str,
    },
}

/// Sends the content of `dir` to `out` at once and after every change, until `out` closes. What goes wrong is
/// sent, too, once until it changes; a directory that is not there is looked for again every [`RETRY`].
///
/// # Cancel safety
/// Dropping the future ends the watch; nothing is left behind.
pub async fn run(dir: PathBuf, out: mpsc::Sender<Result<Content, WatchError>>) {
    follow(dir, out, RETRY).await;
}

async fn follow(dir: PathBuf, out: mpsc::Sender<Result<Content, WatchError>>, retry: Duration) {
    let mut said = None;
    loop {
        // One pending "look again" is enough: the content is read in full.
        let (poke, mut poked) = mpsc::channel::<()>(1);
        // A new watch before each look: the directory may be another one now (a checkout that was swapped).
        let (watcher, content) = match watch(&dir, poke) {
            Ok(watcher) => (Some(watcher), read(&dir)),
            Err(error) => (None, Err(error)),
        };
        let failure = content.as_ref().err().map(ToString::to_string);
        let failed = failure.is_some();
        if (!failed || said != failure) && out.send(content).await.is_err() {
            return;
        }
        said = failure;
        // What failed may mend without a notification: it is looked at again by itself.
        let again = async {
            match (&watcher, failed) {
                (Some(_), false) => poked.recv().await,
                (Some(_), true) => tokio::time::timeout(retry, poked.recv()).await.unwrap_or(Some(())),
                (None, _) => {
                    tokio::time::sleep(retry).await;
                    Some(())
                }
            }
        };
        tokio::select! {
            biased; // a closed consumer ends the watch before another look
            () = out.closed() => return,
            more = again => if more.is_none() { return },
        }
        if watcher.is_some() {
            while tokio::time::timeout(QUIET, poked.recv()).await.is_ok_and(|more| more.is_some()) {}
        }
    }
}

fn watch(dir: &Path, poke: mpsc::Sender<()>) -> Result<notify::RecommendedWatcher, WatchError> {
    let failed = |source| WatchError::Watch { path: dir.to_owned(), source };
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Our own reading must not be taken for a change. An error of the watch is a reason to look.
        if event.is_ok_and(|event| is_reading(event.kind)) {
            return;
        }
        let _ = poke.try_send(());
    })
    .map_err(failed)?;
    watcher.watch(dir, RecursiveMode::Recursive).map_err(failed)?;
    Ok(watcher)
}

fn is_reading(kind: EventKind) -> bool {
    matches!(kind, EventKind::Access(access) if access != AccessKind::Close(AccessMode::Write))
}

/// Every `*.yaml`/`*.yml` below `dir` by path; hidden entries (`.git`) are left out. What does not fit a limit
/// is an error, not left out: it would look like a spec that is not wanted.
pub fn read(dir: &Path) -> Result<Content, WatchError> {
    let mut content = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(path) = todo.pop() {
        let failed = |source| WatchError::Read { path: path.clone(), source };
        for entry in std::fs::read_dir(&path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let file = entry.path();
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let kind = entry.file_type().map_err(failed)?;
            let yaml = file.extension().is_some_and(|e| e == "yaml" || e == "yml");
            if kind.is_dir() {
                todo.push(file);
                continue;
            }
            if !yaml {
                continue;
            }
            if content.len() >= FILES_MAX {
                return Err(WatchError::Limit { path: dir.to_owned(), what: "more than 1000 specs" });
            }
            let named = |source| WatchError::Read { path: file.clone(), source };
            // Not the entry's own data: the entry may be a link to the file.
            if std::fs::metadata(&file).map_err(named)?.len() > FILE_MAX {
                return Err(WatchError::Limit {
                    path: file,
                    what: "more than the 1 MiB that a spec may have",
                });
            }
            let text = std::fs::read_to_string(&file).map_err(named)?;
            content.push((file, text));
        }
    }
    content.sort();
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Next = mpsc::Receiver<Result<Content, WatchError>>;

    async fn next(rx: &mut Next) -> Result<Content, WatchError> {
        tokio::time::timeout(Duration::from_secs(10), rx.recv()).await.unwrap().unwrap()
    }

    #[tokio::test]
    async fn content_is_reported_at_start_and_after_a_change() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.yaml"), "one").unwrap();
        std::fs::write(dir.path().join("b.txt"), "no").unwrap();
        let (tx, mut rx) = mpsc::channel(4);
        let task = tokio::spawn(run(dir.path().to_owned(), tx));
        assert_eq!(next(&mut rx).await.unwrap(), [(dir.path().join("a.yaml"), "one".to_owned())]);
        std::fs::write(dir.path().join("a.yaml"), "two").unwrap();
        assert_eq!(next(&mut rx).await.unwrap()[0].1, "two");
        let more = tokio::time::timeout(QUIET * 3, rx.recv()).await;
        assert!(more.is_err(), "our own reading is no change: {more:?}");
        drop(rx);
        tokio::time::timeout(Duration::from_secs(10), task).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_directory_that_comes_later_is_found() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("specs");
        let (tx, mut rx) = mpsc::channel(4);
        let task = tokio::spawn(follow(dir.clone(), tx, Duration::from_millis(20)));
        let error = next(&mut rx).await.unwrap_err().to_string();
        assert!(error.contains("specs"), "{error}");
        let made = home.path().join("new");
        std::fs::create_dir(&made).unwrap();
        std::fs::write(made.join("a.yaml"), "one").unwrap();
        std::fs::rename(&made, &dir).unwrap();
        assert_eq!(next(&mut rx).await.unwrap().len(), 1, "the error was told once");
        task.abort();
    }

    #[test]
    fn what_does_not_fit_a_limit_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let big = dir.path().join("big.yaml");
        std::fs::write(&big, vec![b' '; FILE_MAX as usize]).unwrap();
        assert_eq!(read(dir.path()).unwrap().len(), 1);
        std::fs::write(&big, vec![b' '; FILE_MAX as usize + 1]).unwrap();
        assert!(read(dir.path()).unwrap_err().to_string().contains("big.yaml"));
        std::fs::remove_file(&big).unwrap();
        for n in 0..FILES_MAX {
            std::fs::write(dir.path().join(format!("{n}.yaml")), "x").unwrap();
        }
        assert_eq!(read(dir.path()).unwrap().len(), FILES_MAX);
        std::fs::write(dir.path().join("one-more.yaml"), "x").unwrap();
        assert!(matches!(read(dir.path()), Err(WatchError::Limit { .. })));
    }
}
