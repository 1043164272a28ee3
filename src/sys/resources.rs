//! What the kernel lets this process have: descriptors, and memory while others wait for it.
//!
//! Deliberately absent: mlockall(2). Bulk buffers come and go by the megabyte, and locking and unlocking each
//! of their pages costs more than the copy; the inode table of a large tree is hundreds of megabytes that the
//! application would then miss. What must not happen is a circle (a page of the worker waits for memory, memory
//! for dirty mapped pages, those for the worker), and [`io_flusher`] breaks it.

use super::errno::check;
use crate::ports::Errno;

/// linux/prctl.h, since Linux 5.6.
const PR_SET_IO_FLUSHER: i32 = 57;

fn limit() -> Result<libc::rlimit, Errno> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is writable.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) })?;
    Ok(limit)
}

/// Most descriptors this process may have now (RLIMIT_NOFILE, soft). Where the kernel does not tell: 1024, the
/// limit that systemd sets where nobody asks for another.
pub fn descriptors() -> usize {
    limit().map_or(1024, |l| usize::try_from(l.rlim_cur).unwrap_or(usize::MAX))
}

/// Raises the soft limit of descriptors to the hard one; the limit from then on.
pub fn raise_descriptors() -> Result<u64, Errno> {
    let mut limit = limit()?;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: `limit` is readable.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) })?;
    Ok(limit.rlim_max)
}

/// Tells the kernel that file systems are served here (PR_SET_IO_FLUSHER): memory this thread asks for never
/// waits for dirty pages that it would have to write itself, and its writes are not slowed down by them. Holds
/// for this thread and those it starts later. EPERM without CAP_SYS_RESOURCE, EINVAL before Linux 5.6.
pub fn io_flusher() -> Result<(), Errno> {
    let (on, unused) = (1 as libc::c_ulong, 0 as libc::c_ulong);
    // SAFETY: no pointers.
    check(unsafe { libc::prctl(PR_SET_IO_FLUSHER, on, unused, unused, unused) }).map(drop)
}

/// Prepares the process that serves mounts; to be called before it starts threads. Nothing here is
/// indispensable, so failures are only told.
pub fn prepare() {
    match raise_descriptors() {
        Ok(descriptors) => tracing::debug!(descriptors, "limit of descriptors"),
        Err(errno) => tracing::warn!(errno = errno.0, "the limit of descriptors stays as it is"),
    }
    if let Err(errno) = io_flusher() {
        tracing::warn!(
            errno = errno.0,
            "the kernel does not take this process for one that writes pages back"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Set in the process that the test below starts.
    const INSIDE: &str = "SKC_TEST_RESOURCES";

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        if std::env::var_os(INSIDE).is_some() {
            assert_eq!(descriptors(), 100);
            prepare();
            assert_eq!(descriptors(), 200);
            return;
        }
        let test = "sys::resources::tests::the_soft_limit_becomes_the_hard_one";
        let exe = std::env::current_exe().expect("own path");
        let script = "ulimit -Sn 100 && ulimit -Hn 200 && exec \"$0\" --exact \"$1\"";
        let mut inside = std::process::Command::new("sh");
        inside.args(["-c", script]).arg(exe).arg(test).env(INSIDE, "1");
        let output = inside.output().expect("run");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&[output.stdout, output.stderr].concat())
        );
    }
}
