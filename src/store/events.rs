//! [`EventLog`]: what happened, one JSON object a line, bounded.
//!
//! Not fsynced: it explains decisions, it does not make them. A power cut may cost its last lines
//! or leave half a line, which readers skip.

use super::{StateDir, StoreError};
use serde::Serialize;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The current file.
const FILE: &str = "events.jsonl";
/// Size at which a file is set aside: some ten thousand events.
const ROTATE_AT: u64 = 4 << 20;
/// Files kept beside the current one.
const KEEP: usize = 2;
/// Longest event; longer ones are refused rather than cut into invalid JSON.
const LINE_MAX: usize = 64 << 10;

/// The event log of a node. One owner.
#[derive(Debug)]
pub struct EventLog {
    path: PathBuf,
    file: File,
    size: u64,
    rotate_at: u64,
}

impl EventLog {
    /// Opens the log of a state directory.
    ///
    /// # Errors
    /// I/O.
    pub fn open(state: &StateDir) -> Result<Self, StoreError> {
        let path = state.path(FILE);
        let (file, size) = append_to(&path)?;
        Ok(Self { path, file, size, rotate_at: ROTATE_AT })
    }

    /// Appends one event.
    ///
    /// # Errors
    /// I/O, or an event that does not encode to at most 64 KiB.
    pub fn append(&mut self, event: &impl Serialize) -> Result<(), StoreError> {
        let encode = |why: String| StoreError::Encode { what: "event", why };
        let mut line = serde_json::to_vec(event).map_err(|error| encode(error.to_string()))?;
        if line.len() > LINE_MAX {
            return Err(encode(format!("{} bytes, at most {LINE_MAX} are kept", line.len())));
        }
        line.push(b'\n');
        if self.size + line.len() as u64 > self.rotate_at && self.size > 0 {
            self.rotate()?;
        }
        self.file.write_all(&line).map_err(StoreError::io("append to", &self.path))?;
        self.size += line.len() as u64;
        Ok(())
    }

    /// The newest `limit` events of a state directory that `keep` wants, oldest first. Lines that do not parse
    /// are skipped. Somebody else may append meanwhile; if the files are rotated just now, some may be missing.
    ///
    /// # Errors
    /// I/O.
    pub fn tail(
        state: &StateDir,
        limit: usize,
        keep: impl Fn(&serde_json::Value) -> bool,
    ) -> Result<Vec<serde_json::Value>, StoreError> {
        let mut newest = std::collections::VecDeque::new();
        for index in (0..=KEEP).rev() {
            let path = numbered(&state.path(FILE), index);
            let file = match File::open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(source) => return Err(StoreError::Io { operation: "open", path, source }),
            };
            for line in BufReader::new(file).split(b'\n') {
                let line = line.map_err(StoreError::io("read", &path))?;
                if let Ok(event) = serde_json::from_slice(&line)
                    && keep(&event)
                {
                    newest.push_back(event);
                    if newest.len() > limit {
                        newest.pop_front();
                    }
                }
            }
        }
        Ok(newest.into())
    }

    fn rotate(&mut self) -> Result<(), StoreError> {
        for index in (0..KEEP).rev() {
            let from = self.numbered(index);
            match std::fs::rename(&from, self.numbered(index + 1)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(StoreError::Io { operation: "rotate", path: from, source: error });
                }
                _ => {}
            }
        }
        (self.file, self.size) = append_to(&self.path)?;
        Ok(())
    }

    fn numbered(&self, index: usize) -> PathBuf {
        numbered(&self.path, index)
    }
}

fn numbered(path: &Path, index: usize) -> PathBuf {
    if index == 0 { path.to_owned() } else { path.with_extension(format!("jsonl.{index}")) }
}

/// Opens for appending; ends a half line that a power cut left, so that the next event stands alone.
fn append_to(path: &Path) -> Result<(File, u64), StoreError> {
    use std::os::unix::fs::FileExt;
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .read(true)
        .mode(0o600)
        .open(path)
        .map_err(StoreError::io("open", path))?;
    let mut size = file.metadata().map_err(StoreError::io("stat", path))?.len();
    let mut last = [b'\n'];
    if size > 0 {
        file.read_exact_at(&mut last, size - 1).map_err(StoreError::io("read", path))?;
    }
    if last != *b"\n" {
        file.write_all(b"\n").map_err(StoreError::io("append to", path))?;
        size += 1;
    }
    Ok((file, size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_bounded_and_keeps_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let mut log = EventLog::open(&state).unwrap();
        log.rotate_at = 1000;
        for n in 0..1000_u64 {
            log.append(&serde_json::json!({ "n": n })).unwrap();
        }
        let total: u64 = std::fs::read_dir(dir.path())
            .unwrap()
            .map(Result::unwrap)
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("events"))
            .map(|entry| entry.metadata().unwrap().len())
            .sum();
        assert!(total <= 3000, "{total}");
        let tail = EventLog::tail(&state, 5, |_| true).unwrap();
        assert_eq!(
            tail.iter().map(|e| e["n"].as_u64().unwrap()).collect::<Vec<_>>(),
            [995, 996, 997, 998, 999]
        );
        let even = EventLog::tail(&state, 2, |e| e["n"].as_u64().unwrap() % 2 == 0).unwrap();
        assert_eq!(even.iter().map(|e| e["n"].as_u64().unwrap()).collect::<Vec<_>>(), [996, 998]);
    }

    #[test]
    fn half_a_line_costs_only_itself() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        std::fs::write(state.path("events.jsonl"), b"{\"n\":1}\n{\"n\":").unwrap();
        let mut log = EventLog::open(&state).unwrap();
        log.append(&serde_json::json!({ "n": 3 })).unwrap();
        let tail = EventLog::tail(&state, 10, |_| true).unwrap();
        assert_eq!(tail.iter().map(|e| e["n"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 3]);
        assert!(log.append(&"x".repeat(LINE_MAX)).is_err());
    }
}
