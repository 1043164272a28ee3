//! A guard under test, the diary its workers write, and waiting with a deadline.

use skc::sys::process::{self, ProcessId};
use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Everything here takes milliseconds; a busy machine may take this much longer.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Polls `found` until it has something, or fails.
pub fn eventually<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = found() {
            return value;
        }
        assert!(Instant::now() < end, "not within {PATIENCE:?}: {what}");
        process::poll_readable(&[], 5);
    }
}

pub fn lives(id: ProcessId) -> bool {
    process::stat(id.pid).is_some_and(|stat| stat.id == id && !stat.is_dead())
}

pub fn until_dead(what: &str, id: ProcessId) {
    eventually(&format!("{what} dies"), || (!lives(id)).then_some(()));
}

/// Appends one line to the diary.
pub fn note(dir: &Path, line: &str) {
    let mut file = OpenOptions::new().create(true).append(true).open(dir.join("diary")).expect("diary");
    file.write_all(format!("{line}\n").as_bytes()).expect("diary");
}

/// A guard process in a directory of its own.
pub struct Stage {
    pub dir: TempDir,
    guard: Child,
}

impl Stage {
    /// A guard with workers that play `scenario`, in network and mount namespaces of its own if wanted.
    pub fn new(scenario: &str, namespaces: bool) -> Self {
        let dir = tempfile::tempdir().expect("directory");
        let guard = start(scenario, dir.path(), namespaces);
        Self { dir, guard }
    }

    /// A guard in a prepared directory.
    pub fn within(dir: TempDir, scenario: &str) -> Self {
        let guard = start(scenario, dir.path(), false);
        Self { dir, guard }
    }

    /// A second guard beside the first; returns its end.
    pub fn rival(&self, scenario: &str) -> ExitStatus {
        let mut rival = start(scenario, self.dir.path(), false);
        eventually("the rival exits", || rival.try_wait().expect("wait"))
    }

    /// Another guard on the same directory.
    pub fn again(&mut self, scenario: &str) {
        self.guard = start(scenario, self.dir.path(), false);
    }

    pub fn guard_id(&self) -> ProcessId {
        process::stat(self.guard.id() as i32).expect("the guard lives").id
    }

    pub fn signal(&self, signal: i32) {
        assert!(process::signal(self.guard_id(), signal).expect("signal"));
    }

    pub fn wait(&mut self) -> ExitStatus {
        let guard = &mut self.guard;
        eventually("the guard exits", || guard.try_wait().expect("wait"))
    }

    pub fn diary(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("diary")).unwrap_or_default()
    }

    /// The rest of the n-th diary line (from 0) that starts with `head`.
    pub fn read(&self, head: &str, n: usize) -> String {
        let head = format!("{head} ");
        eventually(
            &format!("line {n} {head:?} in the diary:\n{}\nlog:\n{}", self.diary(), self.log()),
            || {
                let text = self.diary();
                // A line counts when it is complete.
                let complete = text.rsplit_once('\n')?.0;
                complete.lines().filter_map(|line| line.strip_prefix(&head)).nth(n).map(str::to_owned)
            },
        )
    }

    /// The n-th process noted under `head`.
    pub fn process(&self, head: &str, n: usize) -> ProcessId {
        let line = self.read(head, n);
        let (pid, start) = line.split_once(' ').expect("pid and start");
        ProcessId { pid: pid.parse().expect("pid"), start: start.parse().expect("start") }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // An error means that it is dead already.
        let _ = self.guard.kill();
        let _ = self.guard.wait();
        if std::thread::panicking() {
            eprintln!("--- diary\n{}--- log\n{}", self.diary(), self.log());
        }
    }
}

fn start(scenario: &str, dir: &Path, namespaces: bool) -> Child {
    let exe = std::env::current_exe().expect("own path");
    let mut command = if namespaces {
        let mut unshare = Command::new("unshare");
        unshare.args(["--net", "--mount", "--propagation", "private"]).arg(exe);
        unshare
    } else {
        Command::new(exe)
    };
    let log = OpenOptions::new().create(true).append(true).open(dir.join("log")).expect("log");
    command
        .args(["role:guard", scenario])
        .arg(dir)
        .env("SKC_LOG", "debug")
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("log"))
        .stderr(log)
        .spawn()
        .expect("guard starts")
}
