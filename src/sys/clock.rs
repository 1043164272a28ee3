//! The one monotone clock of the daemon: CLOCK_BOOTTIME, which goes on during suspend, so that a
//! machine that slept past a lease knows it (tokio and `Instant` use CLOCK_MONOTONIC, which stops).

use crate::base::Mono;

/// Now.
pub fn boottime() -> Mono {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a writable timespec. The call cannot fail: the clock exists since Linux 2.6.39.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut now) };
    Mono(now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000)
}

#[cfg(test)]
mod tests {
    #[test]
    fn time_does_not_go_back() {
        let first = super::boottime();
        assert!(super::boottime() >= first);
        assert!(first.0 > 0);
    }
}
