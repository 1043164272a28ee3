//! Signals to process groups.

use std::io;

/// Sends `signal` to every process of group `pgid`. A group that is gone is no error.
///
/// The caller must not have reaped the group's leader yet, else the id may belong to a stranger.
/// Ids below 2 are refused: 0 would be our own group, 1 (as -1) everybody.
pub fn kill_group(pgid: u32, signal: i32) -> io::Result<()> {
    let pgid = i32::try_from(pgid).ok().filter(|p| *p > 1).ok_or(io::ErrorKind::InvalidInput)?;
    // SAFETY: no memory is passed.
    let done = unsafe { libc::kill(-pgid, signal) };
    if done == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::ESRCH) { Ok(()) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn our_own_group_and_everybody_are_never_hit() {
        for pgid in [0, 1, u32::MAX] {
            assert!(super::kill_group(pgid, 0).is_err(), "{pgid}");
        }
    }
}
