//! The workloads: own loops, one system call measured at a time, no benchmark program needed.

use crate::lab::ledger::Random;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Work {
    /// 4 KiB overwritten in place, in order.
    Write4k,
    /// The same, each followed by fdatasync.
    Write4kSync,
    /// 1 MiB appended in order.
    Write1m,
    /// 4 KiB read at random from cached data.
    Read4k,
    /// Create, write nothing, close.
    Create,
    /// Directories, small files with mode and time, as an archive is unpacked.
    Untar,
}

impl Work {
    /// All, in the order of the table.
    pub const ALL: [Self; 6] =
        [Self::Write4k, Self::Write4kSync, Self::Write1m, Self::Read4k, Self::Create, Self::Untar];

    /// For the table.
    pub fn title(self) -> &'static str {
        match self {
            Self::Write4k => "4k write",
            Self::Write4kSync => "4k write + fdatasync",
            Self::Write1m => "1 MiB sequential write",
            Self::Read4k => "4k hot read",
            Self::Create => "create storm (a file)",
            Self::Untar => "untar-like (a file)",
        }
    }

    /// Operations of one round: enough for a 99th percentile over all rounds, few enough that
    /// rounds alternate every second or so.
    fn operations(self) -> usize {
        match self {
            Self::Write4k => 3000,
            Self::Write4kSync => 300,
            Self::Write1m => 64,
            Self::Read4k => 20_000,
            Self::Create => 500,
            Self::Untar => 400,
        }
    }

    /// Bytes of one operation, where a rate says more than a latency.
    pub fn bytes(self) -> Option<u64> {
        (self == Self::Write1m).then_some(1 << 20)
    }
}

const BLOCK: usize = 4096;
/// Size of the file that is overwritten and read: fits every cache.
const FILE: u64 = 16 << 20;

/// One round of `work` in `dir`, `scale` in percent of the full number of operations; returns the time of each operation.
pub fn round(work: Work, dir: &Path, scale: usize) -> io::Result<Vec<Duration>> {
    let count = (work.operations() * scale / 100).max(1);
    let sub = dir.join("bench-work");
    if sub.exists() {
        fs::remove_dir_all(&sub)?;
    }
    fs::create_dir(&sub)?;
    let times = match work {
        Work::Write4k => overwrite(&sub, count, false),
        Work::Write4kSync => overwrite(&sub, count, true),
        Work::Write1m => sequential(&sub, count),
        Work::Read4k => read(&sub, count),
        Work::Create => create(&sub, count),
        Work::Untar => untar(&sub, count),
    }?;
    fs::remove_dir_all(&sub)?;
    Ok(times)
}

fn timed<T>(times: &mut Vec<Duration>, call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let begin = Instant::now();
    let value = call()?;
    times.push(begin.elapsed());
    Ok(value)
}

fn prepared(dir: &Path) -> io::Result<File> {
    let file = File::options().create(true).truncate(true).read(true).write(true).open(dir.join("file"))?;
    let chunk = vec![7; 1 << 20];
    for at in (0..FILE).step_by(chunk.len()) {
        file.write_all_at(&chunk, at)?;
    }
    file.sync_all()?;
    Ok(file)
}

fn overwrite(dir: &Path, count: usize, sync: bool) -> io::Result<Vec<Duration>> {
    let file = prepared(dir)?;
    let block = [9; BLOCK];
    let mut times = Vec::with_capacity(count);
    for n in 0..count {
        let at = (n * BLOCK) as u64 % FILE;
        timed(&mut times, || {
            file.write_all_at(&block, at)?;
            if sync { file.sync_data() } else { Ok(()) }
        })?;
    }
    Ok(times)
}

fn sequential(dir: &Path, count: usize) -> io::Result<Vec<Duration>> {
    let file = File::create(dir.join("file"))?;
    let chunk = vec![5; 1 << 20];
    let mut times = Vec::with_capacity(count);
    for n in 0..count {
        timed(&mut times, || file.write_all_at(&chunk, (n * chunk.len()) as u64))?;
    }
    Ok(times)
}

fn read(dir: &Path, count: usize) -> io::Result<Vec<Duration>> {
    let file = prepared(dir)?;
    let mut block = [0; BLOCK];
    for at in (0..FILE).step_by(BLOCK) {
        file.read_exact_at(&mut block, at)?;
    }
    let mut random = Random(1);
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let at = random.below(FILE / BLOCK as u64) * BLOCK as u64;
        timed(&mut times, || file.read_exact_at(&mut block, at))?;
    }
    Ok(times)
}

fn create(dir: &Path, count: usize) -> io::Result<Vec<Duration>> {
    let mut times = Vec::with_capacity(count);
    for n in 0..count {
        let path = dir.join(format!("{n:06}"));
        timed(&mut times, || File::create_new(&path).map(drop))?;
    }
    Ok(times)
}

fn untar(dir: &Path, count: usize) -> io::Result<Vec<Duration>> {
    const FILES_PER_DIRECTORY: usize = 20;
    let mut random = Random(2);
    let content = vec![3; 32 << 10];
    let time = std::time::UNIX_EPOCH + Duration::from_secs(1_600_000_000);
    let mut times = Vec::with_capacity(count);
    let mut parent = dir.to_owned();
    for n in 0..count {
        let size = 512 + random.below(32 << 10) as usize - 512;
        let directory = n % FILES_PER_DIRECTORY == 0;
        if directory {
            parent = dir.join(format!("d{n:05}"));
        }
        timed(&mut times, || {
            if directory {
                fs::create_dir(&parent)?;
            }
            let file = File::create_new(parent.join(format!("f{n:05}")))?;
            file.write_all_at(content.get(..size).unwrap_or_default(), 0)?;
            file.set_permissions(fs::Permissions::from_mode(0o644))?;
            file.set_modified(time)
        })?;
    }
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_workload_runs_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        for work in Work::ALL {
            assert!(!round(work, dir.path(), 1).unwrap().is_empty());
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
