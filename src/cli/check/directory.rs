//! A directory that is to be mirrored.

use super::Finding;
use crate::base::codes;
use crate::fuse::mountinfo::{self, FS_TYPE};
use crate::sys::backing::Backing;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// File systems that the tests of the mirror or its users run on: owners, modes, extended attributes and
/// durable renames are as POSIX has them.
const GOOD: [&str; 6] = ["ext4", "xfs", "btrfs", "tmpfs", "zfs", "f2fs"];
/// File systems that lack one of these or are served by somebody else who may be away.
const UNFIT: [&str; 11] =
    ["nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "vfat", "exfat", "ntfs3", "proc", "sysfs"];
/// Room for the first quarantine and the records beside it.
const FREE_MIN: u64 = 64 << 20;
/// Writes of which the median is told.
const WRITES: u64 = 9;
/// What one write has: a page of a database.
const BLOCK: usize = 4096;

pub(super) fn all(path: &Path) -> Vec<Finding> {
    let named = |what: &str| format!("{what} {}", path.display());
    let path = match path.canonicalize() {
        Ok(real) if real.is_dir() => real,
        Ok(_) => return vec![Finding::bad(named("directory"), codes::FS_MOUNT, "it is no directory")],
        Err(error) => return vec![Finding::bad(named("directory"), codes::FS_MOUNT, error.to_string())],
    };
    let mounts = mountinfo::read().unwrap_or_default();
    let here = mountinfo::at(&mounts, &path);
    if here.is_some_and(|m| m.fs_type == FS_TYPE) {
        let note = "our own mirror is mounted; what is below it cannot be looked at while it serves";
        return vec![Finding::good(named("directory"), note)];
    }
    let covering = mountinfo::covering(&mounts, &path);
    let kind = covering.map_or("?", |m| m.fs_type.as_str());
    let mut findings = vec![
        Finding::good(
            named("directory"),
            if here.is_some() { "a file system of its own" } else { "a directory of a larger file system" },
        ),
        file_system(named("file system"), kind),
    ];
    findings.extend(space(named("space"), &path));
    findings.push(match latency(&path) {
        Ok(median) => {
            let us = median.as_micros();
            Finding::good(
                named("fsync"),
                format!("4 KiB written and on the disk in {us} us (median of {WRITES})"),
            )
        }
        Err(error) => Finding::bad(named("fsync"), codes::FS_IO, error.to_string()),
    });
    findings
}

fn file_system(what: String, kind: &str) -> Finding {
    if UNFIT.contains(&kind) || kind == "fuse" || kind.starts_with("fuse.") {
        return Finding::bad(what, codes::FS_MOUNT, format!("{kind} cannot be mirrored: use a local disk"));
    }
    let tried = if GOOD.contains(&kind) { "" } else { " (not one that is tested: ext4, xfs, btrfs are)" };
    Finding::good(what, format!("{kind}{tried}"))
}

fn space(what: String, path: &Path) -> Option<Finding> {
    let stat = Backing::open(path).and_then(|backing| backing.stat_fs()).ok()?;
    let free = stat.bavail.saturating_mul(u64::from(stat.frsize));
    let all = stat.blocks.saturating_mul(u64::from(stat.frsize));
    let mut note = format!("{} MiB of {} MiB free", free >> 20, all >> 20);
    // File systems without a fixed number of inodes say 0 of 0.
    let inodes = stat.files == 0 || stat.ffree > stat.files / 100;
    if !inodes {
        note += ", and hardly an inode";
    }
    Some(Finding::of(what, codes::FS_SPACE, free >= FREE_MIN && inodes, note))
}

/// A file of ours that is gone at the end.
struct Probe(PathBuf);

impl Drop for Probe {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn latency(path: &Path) -> std::io::Result<Duration> {
    let probe = Probe(path.join(format!(".skc-check-{}", std::process::id())));
    let file = File::create_new(&probe.0)?;
    let mut times = Vec::new();
    for n in 0..WRITES {
        let begin = Instant::now();
        file.write_all_at(&[0x5a; BLOCK], n * BLOCK as u64)?;
        file.sync_data()?;
        times.push(begin.elapsed());
    }
    times.sort_unstable();
    Ok(times.get(times.len() / 2).copied().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_directory_is_measured_and_left_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let findings = all(dir.path());
        assert_eq!(findings.len(), 4, "{findings:?}");
        assert!(findings[3].ok && findings[3].note.contains("us"), "{findings:?}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_cannot_be_mirrored_is_named() {
        assert!(!all(Path::new("/nonexistent"))[0].ok);
        assert!(!file_system(String::new(), "nfs4").ok && !file_system(String::new(), "fuse.sshfs").ok);
        assert!(file_system(String::new(), "xfs").ok && file_system(String::new(), "bcachefs").ok);
    }
}
