//! Many files under a small limit of descriptors, in a daemon of its own so that its memory can be measured:
//! 30,000 files under 500; `SKC_MANY_FILES=1000000 cargo test --release --test posix many -- --nocapture` takes a
//! million under 20,000.

use super::support::isolated;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Files in one directory.
const EACH: usize = 1000;
/// Clients.
const THREADS: usize = 4;
/// Bytes of the daemon's memory a file that the kernel knows may cost: some 400 are expected.
const MEMORY_MAX: usize = 1500;

/// `skc passthrough` over a directory; ended when dropped.
struct Daemon {
    dir: PathBuf,
    pid: u32,
    _tmp: tempfile::TempDir,
}

impl Daemon {
    fn start(limit: usize) -> Self {
        let tmp = tempfile::tempdir().expect("temporary directory");
        let (dir, pidfile) = (tmp.path().join("dir"), tmp.path().join("pid"));
        std::fs::DirBuilder::new().mode(0o755).create(&dir).expect("mkdir");
        // Hard and soft limit.
        let script = format!("ulimit -n {limit} && exec \"$0\" passthrough \"$1\" --pidfile \"$2\"");
        let status = Command::new("sh")
            .args(["-c", &script, env!("CARGO_BIN_EXE_skc")])
            .args([&dir, &pidfile])
            .stdin(Stdio::null())
            .status();
        assert!(status.expect("sh").success(), "mounted");
        let pid =
            std::fs::read_to_string(&pidfile).expect("the daemon's pid").trim().parse().expect("a number");
        Self { dir, pid, _tmp: tmp }
    }

    /// Bytes of memory that it holds.
    fn memory(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).expect("status");
        let line = status.lines().find(|l| l.starts_with("VmRSS:")).expect("VmRSS");
        line.split_whitespace().nth(1).and_then(|n| n.parse::<usize>().ok()).expect("a number") * 1024
    }

    fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid)).expect("fds").count()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.pid.to_string()).status();
        let end = Instant::now() + Duration::from_secs(30);
        while Path::new(&format!("/proc/{}", self.pid)).exists() && Instant::now() < end {
            std::thread::park_timeout(Duration::from_millis(10));
        }
    }
}

fn in_parallel(dirs: usize, each: impl Fn(usize) + Sync) {
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let each = &each;
            scope.spawn(move || (thread..dirs).step_by(THREADS).for_each(each));
        }
    });
}

#[test]
fn many_files_cost_memory_and_no_descriptors() {
    isolated(|| {
        let files: usize =
            std::env::var("SKC_MANY_FILES").ok().and_then(|n| n.parse().ok()).unwrap_or(30_000);
        let limit = if files > 100_000 { 20_000 } else { 500 };
        let daemon = Daemon::start(limit);
        let (dirs, before, begin) = (files.div_ceil(EACH), daemon.memory(), Instant::now());
        let dir = |n: usize| daemon.dir.join(format!("d{n}"));
        in_parallel(dirs, |n| {
            std::fs::create_dir(dir(n)).expect("mkdir");
            for f in 0..EACH {
                let file = std::fs::File::create_new(dir(n).join(format!("file-{f}"))).expect("create");
                file.write_all_at(&[n as u8], 0).expect("write");
            }
        });
        let (made, created) = (daemon.memory(), begin.elapsed());
        in_parallel(dirs, |n| {
            let listed = std::fs::read_dir(dir(n)).expect("readdir").map(|entry| {
                let entry = entry.expect("entry");
                assert_eq!(entry.metadata().expect("stat").len(), 1);
                assert_eq!(std::fs::read(entry.path()).expect("read"), [n as u8]);
            });
            assert_eq!(listed.count(), EACH);
        });
        let (after, descriptors) = (daemon.memory(), daemon.descriptors());
        let each = after.saturating_sub(before) / files;
        println!(
            "{files} files, limit {limit}: created in {created:.1?}, walked and read in {:.1?}; memory {before} -> {made} -> {after} bytes, \
             {each} a file; {descriptors} descriptors",
            begin.elapsed().saturating_sub(created)
        );
        assert!(each < MEMORY_MAX, "{each} bytes of memory a file");
        assert!(descriptors < 100, "{descriptors} descriptors of a daemon at rest");
    });
}
