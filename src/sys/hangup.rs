//! Noticing that the reader of a pipe went away without writing to it.

use std::os::fd::{AsRawFd, BorrowedFd};

/// Waits until nobody reads `fd` any more: for ever on a file or a terminal that lives.
pub fn wait(fd: BorrowedFd<'_>) {
    // No event is asked for: poll(2) reports POLLERR and POLLHUP anyway.
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: 0, revents: 0 };
    loop {
        // SAFETY: one pollfd that outlives the call; the descriptor is borrowed for as long.
        let ready = unsafe { libc::poll(&raw mut poll, 1, -1) };
        let interrupted =
            ready < 0 && std::io::Error::last_os_error().kind() == std::io::ErrorKind::Interrupted;
        if !interrupted {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn the_end_of_the_reader_is_noticed() {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        wait(writer.as_fd());
    }
}
