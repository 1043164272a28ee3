//! Every kind of operation meets an error of the file system below, on either node.
//!
//! `strace` makes one system call of the threads concerned return the error without being run. On the standby: the
//! application does not notice, the standby is ejected loudly and heals by itself. On the primary: the application
//! gets that error. Both trees are equal afterwards.

use crate::harness::{Arena, arena_for, until};
use crate::scenario::{Cluster, SETTLE, Spec};
use skc::lab::wait::Part;
use skc::lab::{Lab, Node};
use skc::sys::file::{self, SetTime, flags};
use skc::sys::namespace::{Signal, signal};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A disk that failed counts as well again soon, so that the scenarios are short.
const SPEC: Spec = Spec { replication: "diskTimeout: 2s", ..Spec::LEDGER };
/// Name and number of the errors.
const ERRORS: [(&str, i32); 4] = [("ENOSPC", 28), ("EDQUOT", 122), ("EIO", 5), ("EROFS", 30)];

/// Threads that apply, and those that sync, on the standby.
const APPLIES: &str = "apply-";
const SYNCS: &str = "sbsync-";

/// An operation on a directory that [`prepare`] made, and the system call that fails in it.
struct Case {
    name: &'static str,
    /// As strace calls it.
    call: &'static str,
    /// The thread of the standby that makes it.
    thread: &'static str,
    run: fn(&Path) -> io::Result<()>,
}

fn errno<T>(result: Result<T, skc::ports::Errno>) -> io::Result<T> {
    result.map_err(|e| io::Error::from_raw_os_error(e.0))
}

fn open(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).open(path)
}

const fn case(name: &'static str, call: &'static str, run: fn(&Path) -> io::Result<()>) -> Case {
    Case { name, call, thread: APPLIES, run }
}

const CASES: [Case; 20] = [
    case("create", "openat", |dir| File::create_new(dir.join("new")).map(drop)),
    case("unnamed", "openat", |dir| {
        errno(file::open_tmpfile(File::open(dir)?.as_fd(), 0o600, false)).map(drop)
    }),
    case("mkdir", "mkdirat", |dir| fs::create_dir(dir.join("new"))),
    case("mknod", "mknodat", |dir| {
        errno(file::make_node(File::open(dir)?.as_fd(), b"new", libc::S_IFIFO | 0o600, 0))
    }),
    case("symlink", "symlinkat", |dir| symlink("there", dir.join("new"))),
    case("link", "linkat", |dir| fs::hard_link(dir.join("f"), dir.join("new"))),
    case("unlink", "unlinkat", |dir| fs::remove_file(dir.join("f"))),
    case("rmdir", "unlinkat", |dir| fs::remove_dir(dir.join("d"))),
    case("rename", "renameat,renameat2", |dir| fs::rename(dir.join("f"), dir.join("new"))),
    case("write", "pwrite64", |dir| open(&dir.join("f"))?.write_all_at(b"written", 100)),
    // The standby has it no longer open: it is looked up by its handle.
    case("reach", "open_by_handle_at", |dir| {
        fs::set_permissions(dir.join("f"), PermissionsExt::from_mode(0o640))
    }),
    case("truncate", "ftruncate", |dir| open(&dir.join("f"))?.set_len(10)),
    case("chmod", "chmod", |dir| fs::set_permissions(dir.join("f"), PermissionsExt::from_mode(0o640))),
    case("chown", "fchownat", |dir| chown(dir.join("f"), Some(1234), None)),
    case("times", "utimensat", |dir| {
        errno(file::set_times(open(&dir.join("f"))?.as_fd(), SetTime::At((1, 2)), SetTime::At((3, 4))))
    }),
    case("setxattr", "setxattr", |dir| {
        errno(file::set_xattr(open(&dir.join("f"))?.as_fd(), b"user.new", b"value", 0))
    }),
    case("removexattr", "removexattr", |dir| {
        errno(file::remove_xattr(open(&dir.join("f"))?.as_fd(), b"user.old"))
    }),
    case("fallocate", "fallocate", |dir| {
        errno(file::fallocate(open(&dir.join("f"))?.as_fd(), 0, 0, 100_000))
    }),
    case("chattr", "ioctl", |dir| {
        let file = open(&dir.join("f"))?;
        let own = errno(flags::get_flags(file.as_fd()))?;
        // No dump.
        errno(flags::set_flags(file.as_fd(), own | 0x40))
    }),
    // Whatever the error, what is on the standby's disk is unknown.
    Case { name: "sync", call: "fsync", thread: SYNCS, run: |dir| open(&dir.join("f"))?.sync_all() },
];

/// What the operations work on.
fn prepare(dir: &Path) -> io::Result<()> {
    fs::create_dir(dir)?;
    fs::create_dir(dir.join("d"))?;
    let mut f = File::create(dir.join("f"))?;
    f.write_all(&[7; 5000])?;
    errno(file::set_xattr(f.as_fd(), b"user.old", b"value", 0))
}

/// System calls that fail until it is dropped.
struct Fault {
    strace: Child,
    log: PathBuf,
}

impl Fault {
    /// The first `call` of each thread of the node's agent whose name begins with `thread`; `every`: all of them.
    #[track_caller]
    fn inject(lab: &Arena, node: Node, thread: &str, call: &str, error: &str, every: bool) -> Self {
        let log = lab.dir().join("strace.log");
        let _ = fs::remove_file(&log);
        let when = if every { "" } else { ":when=1" };
        let mut command = Command::new("strace");
        command.arg("-o").arg(&log).args(["-e", &format!("inject={call}:error={error}{when}")]);
        command.args(["-e", &format!("trace={call}")]);
        let threads = threads(lab, node, thread);
        assert!(!threads.is_empty(), "{node} has a thread {thread}");
        for id in &threads {
            command.args(["-p", &id.to_string()]);
        }
        let strace = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("strace");
        let fault = Self { strace, log };
        let pid = fault.strace.id();
        let attached = |id: &u32| {
            fs::read_to_string(format!("/proc/{id}/status"))
                .is_ok_and(|s| s.lines().any(|l| l.split_whitespace().eq(["TracerPid:", &pid.to_string()])))
        };
        until("strace is attached", SETTLE, || threads.iter().all(attached));
        fault
    }

    fn has_hit(&self) -> bool {
        fs::read_to_string(&self.log).is_ok_and(|log| log.contains("(INJECTED)"))
    }
}

impl Drop for Fault {
    fn drop(&mut self) {
        // SIGTERM: it lets go of the threads, which go on. Its own end says that they do.
        let _ = signal(self.strace.id(), Signal::Term);
        let _ = self.strace.wait();
    }
}

fn threads(lab: &Lab, node: Node, name: &str) -> Vec<u32> {
    let workers = lab.processes(node, Part::Agent).expect("the node runs");
    let tasks =
        workers.iter().flat_map(|pid| fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten());
    let named = tasks
        .flatten()
        .filter(|task| fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.starts_with(name)));
    named.filter_map(|task| task.file_name().to_str()?.parse().ok()).collect()
}

fn can_run() -> bool {
    let found = Command::new("strace").arg("-V").stdout(Stdio::null()).status().is_ok_and(|s| s.success());
    if !found {
        crate::skip::skipped(&crate::skip::this_test(), "strace is not installed");
    }
    found
}

/// One error in one operation of the standby.
fn on_the_standby(
    lab: &Arena,
    cluster: &Cluster<'_>,
    [primary, standby]: [Node; 2],
    case: &Case,
    error: &str,
) {
    let what = format!("{} {error}", case.name);
    let dir = lab.mounted(primary, "/srv/ledger").expect("mounted").join(what.replace(' ', "-"));
    prepare(&dir).unwrap_or_else(|e| panic!("{what}: {e}"));
    cluster.wait(standby, &["SECOND", "Ready", "UpToDate"]);
    let before = cluster.events(standby).len();
    let fault = Fault::inject(lab, standby, case.thread, case.call, error, false);
    (case.run)(&dir).unwrap_or_else(|e| panic!("{what}: the application is not concerned: {e}"));
    until(&format!("{what}: it failed"), SETTLE, || fault.has_hit());
    drop(fault);
    let loud = if case.thread == SYNCS { "SKC-E3008" } else { "SKC-E4001" };
    let said = || cluster.events(standby)[before..].iter().any(|(code, _)| code == loud);
    until(&format!("{what}: the standby says so: {:?}", cluster.events(standby).get(before..)), SETTLE, said);
    cluster.wait(standby, &["SECOND", "Ready", "UpToDate"]);
    cluster.wait(primary, &["PRIM", "Ready", "vip"]);
    cluster.trees_equal();
}

/// One error in one operation of the primary.
fn on_the_primary(
    lab: &Arena,
    cluster: &Cluster<'_>,
    primary: Node,
    case: &Case,
    (error, number): (&str, i32),
) {
    let what = format!("{} {error} here", case.name);
    let dir = lab.mounted(primary, "/srv/ledger").expect("mounted").join(what.replace(' ', "-"));
    prepare(&dir).unwrap_or_else(|e| panic!("{what}: {e}"));
    let fault = Fault::inject(lab, primary, "fuse-", case.call, error, true);
    let told = (case.run)(&dir).expect_err(&what);
    assert!(fault.has_hit(), "{what}: it failed");
    drop(fault);
    assert_eq!(told.raw_os_error(), Some(number), "{what}: the application is told: {told}");
    cluster.trees_equal();
}

fn run(name: &str, longer: Duration, pick: impl Fn(usize) -> Vec<(&'static str, i32)>) {
    let Some(lab) = arena_for(name, longer) else { return };
    if !can_run() {
        return;
    }
    let (cluster, primary, standby) = Cluster::start(&lab, &SPEC);
    for (n, case) in CASES.iter().enumerate() {
        for error in pick(n) {
            on_the_standby(&lab, &cluster, [primary, standby], case, error.0);
            // Errors of the disk itself, and failed syncs, end in a hand-over: `sick` has them.
            if matches!(error.0, "ENOSPC" | "EDQUOT") && case.thread == APPLIES {
                on_the_primary(&lab, &cluster, primary, case, error);
            }
        }
    }
    cluster.verdict();
}

#[test]
fn an_error_in_each_operation_is_told_or_heals() {
    run("faults", Duration::ZERO, |n| vec![ERRORS[n % 2], ERRORS[2 + n % 2]][n % 3 / 2..].to_vec());
}

#[test]
#[ignore = "every error in every operation; run it on purpose"]
fn every_error_in_each_operation_is_told_or_heals() {
    run("faults-all", Duration::from_secs(900), |_| ERRORS.to_vec());
}
