//! Namespaces, mounts and process calls of the lab.
//!
//! The only users are `lab` and its tests. Every call is synchronous and short. Joining a PID
//! namespace concerns *children* of the calling thread only, therefore [`spawn_in`] forks on a
//! thread of its own that ends right after.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};

/// The namespaces of a process, held open so that they can be joined.
#[derive(Debug)]
pub struct Namespaces {
    net: OwnedFd,
    mount: OwnedFd,
    uts: OwnedFd,
    ipc: OwnedFd,
    pid: OwnedFd,
}

impl Namespaces {
    /// Opens the namespaces that process `pid` runs in.
    pub fn of(pid: u32) -> io::Result<Self> {
        let open = |kind: &str| File::open(format!("/proc/{pid}/ns/{kind}")).map(OwnedFd::from);
        Ok(Self {
            net: open("net")?,
            mount: open("mnt")?,
            uts: open("uts")?,
            ipc: open("ipc")?,
            pid: open("pid")?,
        })
    }
}

/// Moves the calling thread into the network namespace behind `path` (`/run/netns/NAME` or `/proc/PID/ns/net`).
pub fn join_net(path: &Path) -> io::Result<()> {
    let ns = File::open(path)?;
    set_ns(ns.as_raw_fd(), libc::CLONE_NEWNET)
}

fn set_ns(fd: i32, kind: i32) -> io::Result<()> {
    // SAFETY: plain integers; the descriptor is open for the duration of the call.
    check(unsafe { libc::setns(fd, kind) })
}

fn check(rc: i32) -> io::Result<()> {
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// What becomes of a child when the process that started it dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Orphan {
    /// It lives on until its namespace ends.
    LivesOn,
    /// SIGKILL. Bound to the *thread* that spawned it: use it from a thread that outlives the child.
    Dies,
}

/// Starts `command` inside all namespaces of `ns`, as a child of this process.
///
/// With [`Orphan::Dies`] the calling thread itself joins the PID namespace for its later children
/// (the death signal watches the spawning thread); otherwise a short-lived thread does.
pub fn spawn_in(ns: &Namespaces, command: &mut Command, orphan: Orphan) -> io::Result<Child> {
    let fds = [
        (ns.net.as_raw_fd(), libc::CLONE_NEWNET),
        (ns.uts.as_raw_fd(), libc::CLONE_NEWUTS),
        (ns.ipc.as_raw_fd(), libc::CLONE_NEWIPC),
        (ns.mount.as_raw_fd(), libc::CLONE_NEWNS),
    ];
    let here = std::env::current_dir().and_then(|dir| c_path(&dir)).unwrap_or_default();
    let enter = move || {
        for (fd, kind) in fds {
            set_ns(fd, kind)?;
        }
        // Joining a mount namespace leads to its root; the old directory may not exist there.
        // SAFETY: NUL-terminated string, chdir is async-signal-safe.
        unsafe { libc::chdir(here.as_ptr()) };
        if orphan == Orphan::Dies {
            death_signal()?;
        }
        Ok(())
    };
    // SAFETY: the closure runs in the forked child and makes only async-signal-safe system calls
    // on integers; `ns` is borrowed until spawn returns, so the descriptors are open.
    unsafe { command.pre_exec(enter) };
    let pid_ns = ns.pid.as_raw_fd();
    let start = |command: &mut Command| {
        set_ns(pid_ns, libc::CLONE_NEWPID)?;
        command.spawn()
    };
    if orphan == Orphan::Dies {
        return start(command);
    }
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| start(command));
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the spawning thread panicked")))
    })
}

fn death_signal() -> io::Result<()> {
    // SAFETY: PR_SET_PDEATHSIG takes one integer.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) })
}

/// Makes `command` run in the network namespace `net`, with fresh mount, UTS, IPC and (for its
/// children) PID namespaces, in a session of its own.
pub fn isolate_on_exec(command: &mut Command, net: File) {
    let isolate = move || {
        set_ns(net.as_raw_fd(), libc::CLONE_NEWNET)?;
        let fresh = libc::CLONE_NEWNS | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC | libc::CLONE_NEWPID;
        // SAFETY: one integer; the forked child is single-threaded.
        check(unsafe { libc::unshare(fresh) })?;
        new_session()
    };
    // SAFETY: only async-signal-safe system calls in the forked child; `net` is owned by the closure.
    unsafe { command.pre_exec(isolate) };
}

/// Makes `command` the leader of a new session: signals of the terminal do not reach it.
pub fn session_on_exec(command: &mut Command) {
    // SAFETY: setsid is async-signal-safe.
    unsafe { command.pre_exec(new_session) };
}

fn new_session() -> io::Result<()> {
    // SAFETY: no arguments.
    if unsafe { libc::setsid() } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "path contains a NUL byte"))
}

/// What to mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mount<'a> {
    /// Turns the mount and all below it private: nothing propagates in or out.
    Private,
    /// `source` with everything mounted below it appears at the target.
    Bind(&'a Path),
    /// A new file system of this type, with these options.
    New(&'a str, &'a str),
}

/// Mounts in the calling process' mount namespace.
pub fn mount(what: Mount<'_>, target: &Path) -> io::Result<()> {
    let none = CString::default();
    let (source, kind, flags, options) = match what {
        Mount::Private => (none.clone(), none.clone(), libc::MS_REC | libc::MS_PRIVATE, none),
        Mount::Bind(from) => (c_path(from)?, none.clone(), libc::MS_BIND | libc::MS_REC, none),
        Mount::New(kind, options) => (CString::new(kind)?, CString::new(kind)?, 0, CString::new(options)?),
    };
    let target = c_path(target)?;
    // SAFETY: all pointers are to NUL-terminated strings that live through the call.
    check(unsafe {
        libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, options.as_ptr().cast())
    })
}

/// Unmounts the topmost mount at `target`, without following a symbolic link; `lazy` detaches a busy one.
pub fn unmount(target: &Path, lazy: bool) -> io::Result<()> {
    let target = c_path(target)?;
    let flags = libc::UMOUNT_NOFOLLOW | if lazy { libc::MNT_DETACH } else { 0 };
    // SAFETY: NUL-terminated string.
    check(unsafe { libc::umount2(target.as_ptr(), flags) })
}

/// Sets the host name of the calling process' UTS namespace.
pub fn set_hostname(name: &str) -> io::Result<()> {
    // SAFETY: pointer and length describe `name`.
    check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) })
}

/// Signals that the lab sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGKILL
    Kill,
    /// SIGTERM
    Term,
    /// SIGSTOP
    Stop,
    /// SIGCONT
    Continue,
}

/// Sends `signal` to exactly one process. A process that is gone already is no error.
pub fn signal(pid: u32, signal: Signal) -> io::Result<()> {
    let Some(pid) = i32::try_from(pid).ok().filter(|pid| *pid > 1) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a process that the lab may signal"));
    };
    let number = match signal {
        Signal::Kill => libc::SIGKILL,
        Signal::Term => libc::SIGTERM,
        Signal::Stop => libc::SIGSTOP,
        Signal::Continue => libc::SIGCONT,
    };
    // SAFETY: integers; pid > 1, so never a group and never every process.
    match check(unsafe { libc::kill(pid, number) }) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        other => other,
    }
}

/// Waits for children for ever: the life of a node's PID 1. Returns only if the kernel refuses to wait.
pub fn reap_forever() -> io::Error {
    loop {
        let mut status = 0;
        // SAFETY: `status` is a valid place for the result.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, 0) };
        if pid >= 0 {
            continue;
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            // No children: nothing to do until an orphan arrives, which sends no signal. One second
            // bounds how long a zombie may lie about.
            Some(libc::ECHILD) => std::thread::sleep(std::time::Duration::from_secs(1)),
            Some(libc::EINTR) => {}
            _ => return error,
        }
    }
}

/// Is this process root (effective user id 0)?
pub fn is_root() -> bool {
    // SAFETY: no arguments, cannot fail.
    unsafe { libc::geteuid() == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_never_goes_to_a_group_or_to_init() {
        assert!(signal(0, Signal::Kill).is_err());
        assert!(signal(1, Signal::Kill).is_err());
        assert!(signal(u32::MAX, Signal::Kill).is_err());
    }

    #[test]
    fn a_path_with_a_nul_byte_is_refused() {
        assert!(unmount(Path::new("/nowhere\0"), false).is_err());
    }
}
