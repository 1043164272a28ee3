//! Starting, watching and ending processes: what the guard needs and `std` does not give.
//!
//! * [`spawn`] never waits for the child. `std::process::Command` waits until the child has executed
//!   its program, which hangs as long as the working directory or the program lies on a mount that
//!   does not answer; a guard that hangs cannot fence. Here an exec failure arrives later through a pipe.
//! * A process is named by (pid, start time): a recycled pid is somebody else. Signals to processes that
//!   are not our own children go through a pidfd whose start time was checked after it was opened.
//! * PR_SET_PDEATHSIG watches the *thread* that forked: spawn from a thread that lives as long as the process.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::ptr;

/// A process, immune to the reuse of its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct ProcessId {
    /// Number in our pid namespace.
    pub pid: i32,
    /// Start time in clock ticks since boot (field 22 of /proc/PID/stat).
    pub start: u64,
}

/// What /proc/PID/stat says about one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// Who.
    pub id: ProcessId,
    /// State letter; `Z` and `X` are dead.
    pub state: u8,
    /// Parent.
    pub parent: i32,
    /// Session.
    pub session: i32,
}

impl Stat {
    /// Is it only waiting to be reaped?
    pub fn is_dead(&self) -> bool {
        matches!(self.state, b'Z' | b'X')
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

/// Whose rights a child gets.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Credentials {
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// What to start. Standard input is /dev/null, a new session is made, signals are at their defaults.
#[derive(Debug)]
pub struct Spawn<'a> {
    /// Program and arguments; a program without a slash is searched in the child's PATH.
    pub argv: &'a [OsString],
    /// The whole environment.
    pub env: &'a [(OsString, OsString)],
    /// Working directory; `/` when absent.
    pub directory: Option<&'a Path>,
    /// Rights; ours when absent.
    pub credentials: Option<&'a Credentials>,
    /// Standard output; ours when absent.
    pub stdout: Option<BorrowedFd<'a>>,
    /// Standard error; ours when absent.
    pub stderr: Option<BorrowedFd<'a>>,
    /// One more descriptor that the child inherits under the same number.
    pub inherit: Option<BorrowedFd<'a>>,
}

/// A started child.
#[derive(Debug)]
pub struct Child {
    /// Who.
    pub id: ProcessId,
    exec_error: File,
}

impl Child {
    /// Why the program could not be executed, if that is how the child ended. Call after its exit.
    pub fn exec_error(&mut self) -> Option<io::Error> {
        let mut code = [0; 4];
        match self.exec_error.read(&mut code) {
            Ok(4) => Some(io::Error::from_raw_os_error(i32::from_ne_bytes(code))),
            _ => None,
        }
    }
}

fn cstring(text: &OsStr) -> io::Result<CString> {
    CString::new(text.as_bytes())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "NUL byte in an argument"))
}

/// The paths that execvp would try, computed before the fork (allocation is not allowed after it).
fn candidates(program: &OsStr, env: &[(OsString, OsString)]) -> io::Result<Vec<CString>> {
    if program.as_bytes().contains(&b'/') {
        return Ok(vec![cstring(program)?]);
    }
    let fallback = OsStr::new("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    let path = env.iter().rfind(|(key, _)| key == "PATH").map_or(fallback, |(_, value)| value);
    std::env::split_paths(path)
        .filter(|dir| dir.is_absolute())
        .map(|dir| cstring(dir.join(program).as_os_str()))
        .collect()
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect()
}

/// A close-on-exec pipe whose reading end does not block.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds: [RawFd; 2] = [-1; 2];
    // SAFETY: `fds` has room for the two descriptors that the call writes.
    if unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: fresh descriptors, owned by nobody else.
    let (reader, writer) = unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) };
    super::fdpass::set_nonblocking(std::os::fd::AsFd::as_fd(&reader))?;
    Ok((reader, writer))
}

/// Everything the child needs between fork and exec, laid out beforehand.
struct Prepared {
    programs: Vec<CString>,
    argv: Vec<*const libc::c_char>,
    envp: Vec<*const libc::c_char>,
    directory: CString,
    credentials: Option<(u32, u32, Vec<libc::gid_t>)>,
    stdin: RawFd,
    stdout: Option<RawFd>,
    stderr: Option<RawFd>,
    inherit: Option<RawFd>,
    parent: libc::pid_t,
}

impl Prepared {
    /// Runs in the child. Returns the error number of the step that failed; on success it does not return.
    ///
    /// # Safety
    /// Only between fork and exec: async-signal-safe calls only, no allocation, no locks. All pointers in
    /// `self` are valid C strings or null-terminated arrays of them.
    unsafe fn exec(&self) -> i32 {
        let errno = || io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
        // SAFETY: a full signal set is written by sigemptyset before it is used; SIGPIPE and the mask are
        // plain settings of this process.
        unsafe {
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
            libc::signal(libc::SIGPIPE, libc::SIG_DFL);
            libc::setsid();
        }
        for (from, to) in [(Some(self.stdin), 0), (self.stdout, 1), (self.stderr, 2)] {
            // SAFETY: dup2 takes no pointers.
            if let Some(from) = from
                && unsafe { libc::dup2(from, to) } < 0
            {
                return errno();
            }
        }
        // SAFETY: fcntl with F_SETFD takes no pointers.
        if let Some(fd) = self.inherit
            && unsafe { libc::fcntl(fd, libc::F_SETFD, 0) } < 0
        {
            return errno();
        }
        if let Some((uid, gid, groups)) = &self.credentials {
            // SAFETY: pointer and length describe `groups`; the others take plain ids. Group rights go
            // before the user's, else there would be no right left to drop them.
            let dropped = unsafe {
                libc::setgroups(groups.len(), groups.as_ptr()) == 0
                    && libc::setresgid(*gid, *gid, *gid) == 0
                    && libc::setresuid(*uid, *uid, *uid) == 0
            };
            if !dropped {
                return errno();
            }
        }
        // After the change of credentials, which clears it. The parent may have died before: then nobody
        // would ever send the signal.
        // SAFETY: PR_SET_PDEATHSIG takes a signal number; getppid takes nothing.
        unsafe {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong, 0, 0, 0) != 0 {
                return errno();
            }
            if libc::getppid() != self.parent {
                return libc::ESRCH;
            }
        }
        // SAFETY: a C string. May block on a dead mount: that hangs this child alone.
        if unsafe { libc::chdir(self.directory.as_ptr()) } != 0 {
            return errno();
        }
        let mut answer = libc::ENOENT;
        for program in &self.programs {
            // SAFETY: C strings and null-terminated arrays of C strings, all alive.
            unsafe { libc::execve(program.as_ptr(), self.argv.as_ptr(), self.envp.as_ptr()) };
            let failed = errno();
            if failed == libc::EACCES || answer == libc::ENOENT {
                answer = failed;
            }
            if !matches!(failed, libc::ENOENT | libc::ENOTDIR | libc::EACCES) {
                return failed;
            }
        }
        answer
    }
}

/// Starts a child in a session of its own; it gets SIGKILL when the calling thread dies.
pub fn spawn(order: &Spawn<'_>) -> io::Result<Child> {
    let program = order
        .argv
        .first()
        .filter(|p| !p.is_empty())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "empty command"))?;
    let programs = candidates(program, order.env)?;
    let argv: Vec<CString> = order.argv.iter().map(|a| cstring(a)).collect::<io::Result<_>>()?;
    let env: Vec<CString> = order
        .env
        .iter()
        .map(|(key, value)| {
            let mut pair = key.clone();
            pair.push("=");
            pair.push(value);
            cstring(&pair)
        })
        .collect::<io::Result<_>>()?;
    let null = File::open("/dev/null")?;
    let (reader, writer) = pipe()?;
    let prepared = Prepared {
        programs,
        argv: pointers(&argv),
        envp: pointers(&env),
        directory: cstring(order.directory.unwrap_or(Path::new("/")).as_os_str())?,
        credentials: order.credentials.map(|c| (c.uid, c.gid, c.groups.clone())),
        stdin: null.as_raw_fd(),
        stdout: order.stdout.map(|fd| fd.as_raw_fd()),
        stderr: order.stderr.map(|fd| fd.as_raw_fd()),
        inherit: order.inherit.map(|fd| fd.as_raw_fd()),
        // SAFETY: takes nothing.
        parent: unsafe { libc::getpid() },
    };
    // SAFETY: the child only runs `Prepared::exec`, write and _exit, all async-signal-safe.
    let pid = unsafe { libc::fork() };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            // SAFETY: we are between fork and exec; `prepared` owns or borrows everything it points to.
            let code = unsafe { prepared.exec() }.to_ne_bytes();
            // SAFETY: pointer and length describe `code`; _exit does not return.
            unsafe {
                libc::write(writer.as_raw_fd(), code.as_ptr().cast(), code.len());
                libc::_exit(127)
            }
        }
        pid => {
            // The child cannot be reaped by anybody else, so its stat entry is there even if it is a zombie.
            let start = stat(pid).map_or(0, |s| s.id.start);
            Ok(Child { id: ProcessId { pid, start }, exec_error: File::from(reader) })
        }
    }
}

/// Reaps one dead child, if there is one.
pub fn reap() -> Option<(i32, Exit)> {
    let mut status = 0;
    loop {
        // SAFETY: `status` is writable.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
        if pid > 0 {
            let exit = if libc::WIFEXITED(status) {
                Exit::Code(libc::WEXITSTATUS(status))
            } else {
                Exit::Signal(libc::WTERMSIG(status))
            };
            return Some((pid, exit));
        }
        if pid == 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return None;
        }
    }
}

/// Sends `signal` to exactly this process; `Ok(false)` if it is gone.
pub fn signal(process: ProcessId, signal: i32) -> io::Result<bool> {
    if process.pid < 2 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: no pointers.
    let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, process.pid, 0) };
    if raw < 0 {
        let error = io::Error::last_os_error();
        return if error.raw_os_error() == Some(libc::ESRCH) { Ok(false) } else { Err(error) };
    }
    // SAFETY: just opened, owned by nobody else.
    let pidfd = unsafe { OwnedFd::from_raw_fd(raw as RawFd) };
    // The pidfd pins the process: if the start time matches now, the signal below cannot hit another.
    if stat(process.pid).is_none_or(|s| s.id != process) {
        return Ok(false);
    }
    // SAFETY: a null siginfo and flags 0 are allowed.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if rc == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::ESRCH) { Ok(false) } else { Err(error) }
}

/// Parses one /proc/PID/stat line.
fn parse_stat(text: &str) -> Option<Stat> {
    // The command may contain spaces and parentheses: everything up to the last ')' is it.
    let (head, tail) = text.rsplit_once(')')?;
    let pid = head.split_once(' ')?.0.parse().ok()?;
    let mut fields = tail.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    let parent = fields.next()?.parse().ok()?;
    let session = fields.nth(1)?.parse().ok()?;
    let start = fields.nth(15)?.parse().ok()?;
    Some(Stat { id: ProcessId { pid, start }, state, parent, session })
}

/// One process; `None` if it is gone. Never blocks on the process's memory.
pub fn stat(pid: i32) -> Option<Stat> {
    parse_stat(&String::from_utf8_lossy(&std::fs::read(format!("/proc/{pid}/stat")).ok()?))
}

/// All processes of our pid namespace.
pub fn all() -> Vec<Stat> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok()).filter_map(stat).collect()
}

/// The initial environment of a process. **May block** while the process is stuck in a page fault.
pub fn environment(pid: i32) -> Vec<OsString> {
    let bytes = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    bytes.split(|b| *b == 0).map(|item| OsString::from_vec(item.to_vec())).collect()
}

/// Makes this process the parent of its orphaned descendants.
pub fn become_subreaper() -> io::Result<()> {
    // SAFETY: no pointers.
    let rc = unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1 as libc::c_ulong, 0, 0, 0) };
    if rc != 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The signals in `wanted`, blocked for this thread (and threads it starts later) and readable as records.
pub fn signal_descriptor(wanted: &[i32]) -> io::Result<OwnedFd> {
    // SAFETY: sigset_t is plain data, initialised by sigemptyset.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is writable.
    unsafe { libc::sigemptyset(&raw mut set) };
    for signal in wanted {
        // SAFETY: `set` is initialised.
        unsafe { libc::sigaddset(&raw mut set, *signal) };
    }
    // SAFETY: `set` is initialised; no old set is asked for.
    let rc = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()) };
    if rc != 0 {
        return Err(io::Error::from_raw_os_error(rc));
    }
    // SAFETY: `set` is initialised; -1 asks for a new descriptor.
    let raw = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just opened, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Takes the next signal from a [`signal_descriptor`]; `None` when there is none.
pub fn next_signal(descriptor: BorrowedFd<'_>) -> Option<i32> {
    // SAFETY: plain data, all zero is valid.
    let mut record: libc::signalfd_siginfo = unsafe { std::mem::zeroed() };
    let size = size_of::<libc::signalfd_siginfo>();
    // SAFETY: pointer and length describe `record`.
    let n = unsafe { libc::read(descriptor.as_raw_fd(), (&raw mut record).cast(), size) };
    (n == size as isize).then_some(record.ssi_signo as i32)
}

/// Waits until one of `fds` can be read or is closed, at most `timeout_ms`; says which.
pub fn poll_readable(fds: &[BorrowedFd<'_>], timeout_ms: u64) -> Vec<bool> {
    let mut set: Vec<libc::pollfd> =
        fds.iter().map(|fd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 }).collect();
    let timeout = i32::try_from(timeout_ms).unwrap_or(i32::MAX);
    // SAFETY: pointer and length describe `set`. An error (EINTR) leaves every revents at zero.
    unsafe { libc::poll(set.as_mut_ptr(), set.len() as libc::nfds_t, timeout) };
    set.iter().map(|entry| entry.revents != 0).collect()
}

/// Takes the advisory lock of `file`; `Ok(false)` if another process has it.
pub fn try_lock(file: &File) -> io::Result<bool> {
    // SAFETY: no pointers.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    if error.kind() == io::ErrorKind::WouldBlock { Ok(false) } else { Err(error) }
}

/// Rights, home directory of a user by name (goes through NSS, which **may block** on the network).
pub fn lookup_user(name: &str) -> io::Result<(Credentials, PathBuf)> {
    const BUFFER: usize = 64 * 1024;
    let cname = cstring(OsStr::new(name))?;
    let mut buffer = vec![0 as libc::c_char; BUFFER];
    // SAFETY: passwd is plain data, filled by the call below before it is read.
    let mut entry: libc::passwd = unsafe { std::mem::zeroed() };
    let mut found: *mut libc::passwd = ptr::null_mut();
    // SAFETY: all pointers are valid and the length is the buffer's.
    let rc = unsafe {
        libc::getpwnam_r(cname.as_ptr(), &raw mut entry, buffer.as_mut_ptr(), BUFFER, &raw mut found)
    };
    if rc != 0 {
        return Err(io::Error::from_raw_os_error(rc));
    }
    if found.is_null() {
        return Err(io::Error::new(io::ErrorKind::NotFound, format!("no user {name:?}")));
    }
    let home = if entry.pw_dir.is_null() {
        PathBuf::from("/")
    } else {
        // SAFETY: a C string inside `buffer`.
        PathBuf::from(OsStr::from_bytes(unsafe { std::ffi::CStr::from_ptr(entry.pw_dir) }.to_bytes()))
    };
    let mut groups: Vec<libc::gid_t> = vec![0; 1024];
    let mut count = groups.len() as libc::c_int;
    // SAFETY: `count` says how many entries `groups` has room for.
    let rc = unsafe { libc::getgrouplist(cname.as_ptr(), entry.pw_gid, groups.as_mut_ptr(), &raw mut count) };
    if rc < 0 {
        return Err(io::Error::other(format!("user {name:?} is in more than 1024 groups")));
    }
    groups.truncate(usize::try_from(count).unwrap_or(0));
    Ok((Credentials { uid: entry.pw_uid, gid: entry.pw_gid, groups }, home))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_command_name_with_spaces_and_parentheses_does_not_shift_the_fields() {
        let line = "42 (a) (b c) S 7 42 41 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 998877 100 5";
        let stat = parse_stat(line).unwrap();
        assert_eq!(
            stat,
            Stat { id: ProcessId { pid: 42, start: 998_877 }, state: b'S', parent: 7, session: 41 }
        );
        assert_eq!(parse_stat("garbage"), None);
        assert_eq!(parse_stat("1 (x) S"), None);
    }

    #[test]
    fn a_recycled_pid_is_never_hit() {
        let me = stat(std::process::id() as i32).unwrap().id;
        assert!(signal(me, 0).unwrap());
        assert!(!signal(ProcessId { start: me.start + 1, ..me }, libc::SIGKILL).unwrap());
        assert!(signal(ProcessId { pid: -1, start: 0 }, 0).is_err());
    }

    #[test]
    fn a_child_writes_where_it_was_told_and_a_missing_program_is_reported() {
        let (reader, writer) = pipe().unwrap();
        let argv = ["sh".into(), "-c".into(), "echo $NAME; pwd".into()];
        let env = [("NAME".into(), "value".into()), ("PATH".into(), "/usr/bin:/bin".into())];
        let order = Spawn {
            argv: &argv,
            env: &env,
            directory: Some(Path::new("/usr")),
            credentials: None,
            stdout: Some(writer.as_fd()),
            stderr: None,
            inherit: None,
        };
        let child = spawn(&order).unwrap();
        drop(writer);
        let mut output = String::new();
        let mut file = File::from(reader);
        let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
        loop {
            assert!(std::time::Instant::now() < end, "no output");
            poll_readable(&[file.as_fd()], 1000);
            let mut chunk = [0; 64];
            match file.read(&mut chunk) {
                Ok(0) => break,
                Ok(n) => output.push_str(&String::from_utf8_lossy(&chunk[..n])),
                Err(_) => {}
            }
        }
        assert_eq!(output, "value\n/usr\n");
        let wait = |pid: i32| {
            let mut status = 0;
            // SAFETY: `status` is writable; the child is ours.
            assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
            status
        };
        assert_eq!(wait(child.id.pid), 0);
        let argv = ["/nonexistent/program".into()];
        let order = Spawn {
            argv: &argv,
            env: &env,
            directory: None,
            credentials: None,
            stdout: None,
            stderr: None,
            inherit: None,
        };
        let mut child = spawn(&order).unwrap();
        assert_eq!(libc::WEXITSTATUS(wait(child.id.pid)), 127);
        assert_eq!(child.exec_error().unwrap().raw_os_error(), Some(libc::ENOENT));
    }

    #[test]
    fn root_is_a_known_user() {
        let (root, home) = lookup_user("root").unwrap();
        assert_eq!((root.uid, root.gid), (0, 0));
        assert!(home.is_absolute());
        assert!(lookup_user("no-such-user-here").is_err());
    }
}
