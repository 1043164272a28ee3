//! One operation at a time through io_uring and through the older asynchronous I/O, by the kernel's interface.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

const IORING_OFF_CQ_RING: i64 = 0x800_0000;
const IORING_OFF_SQES: i64 = 0x1000_0000;
const IORING_ENTER_GETEVENTS: u32 = 1;
const IORING_OP_FSYNC: u8 = 3;
const IORING_OP_READ: u8 = 22;
const IORING_OP_WRITE: u8 = 23;
/// struct io_uring_sqe.
const SQE: usize = 64;

/// A ring of the smallest size.
pub struct Uring {
    fd: OwnedFd,
    sq: *mut u32,
    cq: *mut u32,
    sqes: *mut u32,
    /// struct io_uring_params as the kernel filled it, in 32-bit words.
    params: [u32; 30],
}

impl Uring {
    pub fn new() -> io::Result<Self> {
        let mut params = [0u32; 30];
        // SAFETY: `params` has the size of struct io_uring_params.
        let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 2, params.as_mut_ptr()) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel returned this descriptor to us just now.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        let map = |offset| {
            let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
            // SAFETY: a fresh place; a page holds a ring of two entries.
            let at = unsafe { libc::mmap(std::ptr::null_mut(), 4096, prot, flags, fd.as_raw_fd(), offset) };
            if at == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(at.cast::<u32>()) }
        };
        let (sq, cq, sqes) = (map(0)?, map(IORING_OFF_CQ_RING)?, map(IORING_OFF_SQES)?);
        Ok(Self { fd, sq, cq, sqes, params })
    }

    fn word(ring: *mut u32, offset: u32) -> &'static AtomicU32 {
        // SAFETY: offsets that the kernel gave lie in the mapped page, aligned; the ring outlives the test's use.
        unsafe { &*ring.add(offset as usize / 4).cast::<AtomicU32>() }
    }

    fn run(&mut self, op: u8, file: BorrowedFd<'_>, at: *mut u8, len: usize, offset: u64) -> i32 {
        let mut sqe = [0u8; SQE];
        sqe[0] = op;
        sqe[4..8].copy_from_slice(&file.as_raw_fd().to_ne_bytes());
        sqe[8..16].copy_from_slice(&offset.to_ne_bytes());
        sqe[16..24].copy_from_slice(&(at as u64).to_ne_bytes());
        sqe[24..28].copy_from_slice(&(len as u32).to_ne_bytes());
        // io_sqring_offsets: head, tail, ring_mask, ring_entries, flags, dropped, array from word 10 on;
        // io_cqring_offsets: head, tail, ring_mask, ring_entries, overflow, cqes from word 20 on.
        let (sq_tail, sq_mask, array) = (self.params[11], self.params[12], self.params[16]);
        let (cq_head, cq_mask, cqes) = (self.params[20], self.params[22], self.params[25]);
        let tail = Self::word(self.sq, sq_tail).load(Ordering::Acquire);
        let index = tail & Self::word(self.sq, sq_mask).load(Ordering::Relaxed);
        // SAFETY: the entry lies in the mapped page.
        unsafe {
            std::ptr::copy_nonoverlapping(sqe.as_ptr(), self.sqes.add(index as usize * SQE / 4).cast(), SQE);
        };
        Self::word(self.sq, array + index * 4).store(index, Ordering::Relaxed);
        Self::word(self.sq, sq_tail).store(tail.wrapping_add(1), Ordering::Release);
        let (fd, none) = (self.fd.as_raw_fd(), std::ptr::null::<u8>());
        // SAFETY: no signal mask is passed; the entry's buffer lives until the completion is there.
        let entered =
            unsafe { libc::syscall(libc::SYS_io_uring_enter, fd, 1, 1, IORING_ENTER_GETEVENTS, none, 0) };
        assert_eq!(entered, 1, "io_uring_enter: {}", io::Error::last_os_error());
        let head = Self::word(self.cq, cq_head).load(Ordering::Acquire);
        let index = head & Self::word(self.cq, cq_mask).load(Ordering::Relaxed);
        // struct io_uring_cqe: user_data, res, flags.
        let result = Self::word(self.cq, cqes + index * 16 + 8).load(Ordering::Acquire) as i32;
        Self::word(self.cq, cq_head).store(head.wrapping_add(1), Ordering::Release);
        result
    }

    pub fn write(&mut self, file: BorrowedFd<'_>, data: &[u8], offset: u64) -> i32 {
        self.run(IORING_OP_WRITE, file, data.as_ptr().cast_mut(), data.len(), offset)
    }

    pub fn read(&mut self, file: BorrowedFd<'_>, into: &mut [u8], offset: u64) -> i32 {
        self.run(IORING_OP_READ, file, into.as_mut_ptr(), into.len(), offset)
    }

    pub fn fsync(&mut self, file: BorrowedFd<'_>) -> i32 {
        self.run(IORING_OP_FSYNC, file, std::ptr::null_mut(), 0, 0)
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        for page in [self.sq, self.cq, self.sqes] {
            // SAFETY: exactly what was mapped.
            unsafe { libc::munmap(page.cast(), 4096) };
        }
    }
}

/// An io_setup(2) context.
pub struct Aio(u64);

impl Aio {
    pub fn new() -> io::Result<Self> {
        let mut context = 0u64;
        // SAFETY: the call writes one context number.
        match unsafe { libc::syscall(libc::SYS_io_setup, 1, &raw mut context) } {
            0 => Ok(Self(context)),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn run(&self, op: u16, file: BorrowedFd<'_>, at: *mut u8, len: usize, offset: u64) -> i64 {
        // struct iocb: data, key, rw_flags, opcode, reqprio, fildes, buf, nbytes, offset, ...
        let mut iocb = [0u8; 64];
        iocb[16..18].copy_from_slice(&op.to_ne_bytes());
        iocb[20..24].copy_from_slice(&file.as_raw_fd().to_ne_bytes());
        iocb[24..32].copy_from_slice(&(at as u64).to_ne_bytes());
        iocb[32..40].copy_from_slice(&(len as u64).to_ne_bytes());
        iocb[40..48].copy_from_slice(&offset.to_ne_bytes());
        let list = [iocb.as_ptr()];
        // SAFETY: one valid iocb whose buffer lives until its event is there.
        let submitted = unsafe { libc::syscall(libc::SYS_io_submit, self.0, 1, list.as_ptr()) };
        assert_eq!(submitted, 1, "io_submit: {}", io::Error::last_os_error());
        // struct io_event: data, obj, res, res2.
        let mut event = [0i64; 4];
        let none = std::ptr::null::<libc::timespec>();
        // SAFETY: room for one event.
        let got = unsafe { libc::syscall(libc::SYS_io_getevents, self.0, 1, 1, event.as_mut_ptr(), none) };
        assert_eq!(got, 1, "io_getevents: {}", io::Error::last_os_error());
        event[2]
    }

    pub fn write(&self, file: BorrowedFd<'_>, data: &[u8], offset: u64) -> i64 {
        self.run(1, file, data.as_ptr().cast_mut(), data.len(), offset)
    }

    pub fn read(&self, file: BorrowedFd<'_>, into: &mut [u8], offset: u64) -> i64 {
        self.run(0, file, into.as_mut_ptr(), into.len(), offset)
    }
}

impl Drop for Aio {
    fn drop(&mut self) {
        // SAFETY: the context is ours.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.0) };
    }
}
