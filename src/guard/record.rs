//! The record of started processes on disk, and killing what an earlier guard left behind.
//!
//! A process is a leftover if its pid **and** start time are recorded, or if its environment carries the mark with
//! the recorded random number of that guard's run. A record of another boot says nothing about this one.

use crate::guard::table::MARK;
use crate::sys::process::{self, ProcessId};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};
use tracing::{error, warn};

/// Leftovers that live longer than this under SIGKILL are stuck in the kernel; the guard starts regardless.
const KILL_PATIENCE: Duration = Duration::from_secs(5);
/// Reading environments can block on a dead mount.
const MARK_PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    boot: String,
    nonce: String,
    processes: Vec<ProcessId>,
}

fn path(run_dir: &Path) -> PathBuf {
    run_dir.join("services.json")
}

fn boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

/// Replaces the record.
pub(super) fn write(run_dir: &Path, nonce: &str, processes: Vec<ProcessId>) -> io::Result<()> {
    let record = Record { boot: boot(), nonce: nonce.to_owned(), processes };
    let bytes = serde_json::to_vec(&record).map_err(io::Error::other)?;
    let target = path(run_dir);
    let temporary = target.with_extension("json.new");
    std::fs::write(&temporary, bytes)?;
    std::fs::rename(temporary, target)
}

fn living(record: &Record) -> HashSet<ProcessId> {
    let named = record
        .processes
        .iter()
        .copied()
        .filter(|id| process::stat(id.pid).is_some_and(|stat| stat.id == *id && !stat.is_dead()));
    named.chain(marked(&record.nonce)).collect()
}

fn marked(nonce: &str) -> Vec<ProcessId> {
    let prefix = format!("{MARK}={nonce}:");
    let (send, receive) = sync_channel(1);
    let reader = std::thread::Builder::new().name("guard-leftovers".into()).spawn(move || {
        let own = std::process::id() as i32;
        let found: Vec<ProcessId> = process::all()
            .into_iter()
            .filter(|stat| stat.id.pid != own && !stat.is_dead())
            .filter(|stat| {
                process::environment(stat.id.pid)
                    .iter()
                    .any(|e| e.to_str().is_some_and(|e| e.starts_with(&prefix)))
            })
            .map(|stat| stat.id)
            .collect();
        let _ = send.send(found); // the receiver may have lost patience
    });
    if let Err(error) = reader {
        warn!(%error, "cannot look for leftovers by their mark");
        return Vec::new();
    }
    receive.recv_timeout(MARK_PATIENCE).unwrap_or_else(|_| {
        warn!("reading environments takes too long: leftovers are only known by pid and start time");
        Vec::new()
    })
}

/// Kills what an earlier guard of this run directory left; returns how many. Bounded by [`KILL_PATIENCE`].
pub(super) fn kill_leftovers(run_dir: &Path) -> usize {
    let bytes = match std::fs::read(path(run_dir)) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return 0,
        Err(error) => {
            warn!(%error, "cannot read the record of an earlier guard");
            return 0;
        }
    };
    let record: Record = match serde_json::from_slice(&bytes) {
        Ok(record) => record,
        Err(error) => {
            warn!(%error, "the record of an earlier guard is damaged; leftovers stay");
            return 0;
        }
    };
    if record.boot != boot() || record.nonce.is_empty() {
        return 0;
    }
    let mut killed = HashSet::new();
    let end = Instant::now() + KILL_PATIENCE;
    loop {
        let left = living(&record);
        if left.is_empty() {
            return killed.len();
        }
        if Instant::now() > end {
            error!(?left, "leftovers of an earlier guard survive SIGKILL");
            return killed.len();
        }
        for id in left {
            if killed.insert(id) {
                warn!(pid = id.pid, "killing a leftover of an earlier guard");
            }
            if let Err(error) = process::signal(id, libc::SIGKILL) {
                warn!(pid = id.pid, %error, "cannot kill a leftover");
            }
        }
        process::poll_readable(&[], 20);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_very_process_of_this_boot_is_a_leftover() {
        let dir = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let id = process::stat(child.id() as i32).unwrap().id;
        assert_eq!(kill_leftovers(dir.path()), 0, "no record");
        std::fs::write(path(dir.path()), b"{damaged").unwrap();
        assert_eq!(kill_leftovers(dir.path()), 0);
        write(dir.path(), "nonce-of-nobody", vec![ProcessId { start: id.start + 1, ..id }]).unwrap();
        assert_eq!(kill_leftovers(dir.path()), 0, "a recycled pid");
        let record = Record { boot: "another boot".into(), nonce: "n".into(), processes: vec![id] };
        std::fs::write(path(dir.path()), serde_json::to_vec(&record).unwrap()).unwrap();
        assert_eq!(kill_leftovers(dir.path()), 0);
        assert!(child.try_wait().unwrap().is_none(), "nobody was hurt");
        write(dir.path(), "nonce-of-nobody", vec![id]).unwrap();
        assert_eq!(kill_leftovers(dir.path()), 1);
        assert!(!child.wait().unwrap().success());
    }
}
