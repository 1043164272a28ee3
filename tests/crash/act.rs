//! Does the operations of one process in a directory: on the mount, and again on a plain one for the judge.

use crate::call::{self, Res, errno};
use crate::mapping::Mapping;
use crate::op::{self, Names, Op, PAGE, SLOTS};
use crate::world::Rng;
use skc::sys::inspect;
use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Errors of a mount whose agent is gone: the operation was not answered.
pub const GONE: [i32; 2] = [libc::ENOTCONN, libc::ECONNABORTED];

/// One process: its directory, what it believes to have there, its descriptors.
pub struct Actor {
    root: PathBuf,
    seed: u64,
    process: u64,
    n: u64,
    names: Names,
    slots: [Option<Slot>; SLOTS],
    /// Bytes of the operation that is about to be performed which were written already.
    begun: u64,
    /// Every call is a single request of the kernel, and none outlives its operation.
    single: bool,
    /// Nothing is written through a mapping.
    unmapped: bool,
}

/// A descriptor that is kept open.
struct Slot {
    file: File,
    append: bool,
}

/// What an operation returned: a number or minus its errno.
pub type Outcome = i64;

impl Actor {
    /// The process number `process` of a seed, about to make its directory in `dir`.
    pub fn new(dir: &Path, seed: u64, process: u64) -> Self {
        let root = dir.join(format!("p{process}"));
        Self {
            root,
            seed,
            process,
            n: 0,
            names: Names::default(),
            slots: Default::default(),
            begun: 0,
            single: false,
            unmapped: false,
        }
    }

    /// Its directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The same, with operations only that are one request each: refused half-way, none is half done.
    pub fn single(dir: &Path, seed: u64, process: u64) -> Self {
        Self { single: true, ..Self::new(dir, seed, process) }
    }

    /// The same, for a plain directory whose holes are compared: what goes through a mapping is written instead. The
    /// page cache of a file system may give blocks to a whole folio in which one byte was mapped and changed, while the
    /// mirror is asked to write a page.
    pub fn unmapped(dir: &Path, seed: u64, process: u64) -> Self {
        Self { unmapped: true, ..Self::new(dir, seed, process) }
    }

    /// From now on its directory is reached through `dir`; what it has open is closed.
    pub fn moves(&mut self, dir: &Path) {
        self.root = dir.join(format!("p{}", self.process));
        self.slots = Default::default();
    }

    /// The next operation, to be handed to [`Self::perform`] once.
    pub fn next(&self) -> Op {
        let op = op::next(&self.names, self.seed, self.process, self.n + 1);
        if self.single { op.single() } else { op }
    }

    /// Does it, or says with which of `errors` it was refused: then it is still to be done.
    pub fn attempt(&mut self, op: &Op, errors: &[i32]) -> Result<Outcome, i32> {
        let outcome = self.perform(op);
        match errors.iter().find(|errno| outcome == -i64::from(**errno)) {
            Some(errno) => {
                self.n -= 1;
                Err(*errno)
            }
            None => Ok(outcome),
        }
    }

    /// Does it.
    pub fn perform(&mut self, op: &Op) -> Outcome {
        self.n += 1;
        let result = self.run(op);
        self.begun = 0;
        match result {
            Ok(value) => {
                self.names.note(op);
                // Results fit: sizes and hashes of 63 bits.
                (value >> 1) as i64
            }
            Err(errno) => -i64::from(errno),
        }
    }

    /// Does the part of a write after which a power cut may fall: the kernel asks for what goes to the first page
    /// alone if it does not have that page. `false`: there is no such part. [`Self::perform`] does the rest.
    pub fn begin(&mut self, op: &Op) -> bool {
        let size = |file: Res<File>| Some(file.ok()?.metadata().ok()?.size());
        let (at, len) = match op {
            Op::Write { path, at, len, .. } => {
                (self.regular(path, libc::O_RDONLY).is_ok().then_some(*at), *len)
            }
            Op::Append { path, len, .. } => (size(self.regular(path, libc::O_RDONLY)), *len),
            Op::WriteSlot { slot, at, len, .. } => {
                let slot = self.slots[*slot].as_ref();
                let at = |slot: &Slot| if slot.append { size(io(slot.file.try_clone())) } else { Some(*at) };
                (slot.and_then(at), *len)
            }
            _ => return false,
        };
        let Some(part) = at.map(|at| PAGE - at % PAGE).filter(|part| *part < PAGE && *part < len) else {
            return false;
        };
        let mut first = op.clone();
        if let Op::Write { len, .. } | Op::Append { len, .. } | Op::WriteSlot { len, .. } = &mut first {
            *len = part;
        }
        // Failing, it fails again as a whole.
        if self.run(&first).is_ok() {
            self.begun = part;
        }
        self.begun > 0
    }

    /// The inodes whose bytes or attributes an operation that was just done may have changed.
    pub fn touched(&self, op: &Op) -> Vec<u64> {
        let named = |path: &&op::Path| {
            let path = self.path(path);
            fs::symlink_metadata(OsStr::from_bytes(path.to_bytes())).ok()
        };
        let kept = op.slot().and_then(|slot| self.slots[slot].as_ref()?.file.metadata().ok());
        op.paths().iter().filter_map(named).chain(kept).map(|meta| meta.ino()).collect()
    }

    /// Writes what is left of an operation's bytes.
    fn write(&self, file: &File, at: u64, len: u64, fill: u64) -> Res<u64> {
        let data = bytes(len, fill);
        let written = io(file.write_at(&data[self.begun as usize..], at + self.begun))?;
        Ok(shifted(self.begun + written as u64))
    }

    fn path(&self, relative: &[u8]) -> CString {
        let mut all = self.root.as_os_str().as_bytes().to_vec();
        if !relative.is_empty() {
            all.push(b'/');
            all.extend(relative);
        }
        CString::new(all).expect("no NUL in a path")
    }

    fn open(&self, relative: &[u8], flags: i32) -> Res<File> {
        // Never waits for the other end of a FIFO.
        call::open(&self.path(relative), flags | libc::O_NONBLOCK | libc::O_NOFOLLOW, 0)
    }

    /// As [`Self::open`], a regular file: what a device or a FIFO does with data is no affair of the mirror.
    fn regular(&self, relative: &[u8], flags: i32) -> Res<File> {
        let path = self.path(relative);
        let meta = fs::symlink_metadata(OsStr::from_bytes(path.to_bytes())).map_err(|e| errno(&e))?;
        if meta.is_file() { self.open(relative, flags) } else { Err(libc::ENOTTY) }
    }

    fn slot(&self, slot: usize) -> Res<&File> {
        self.slots[slot].as_ref().map(|slot| &slot.file).ok_or(libc::EBADF)
    }

    fn run(&mut self, op: &Op) -> Res<u64> {
        let done = |()| 0;
        match op {
            Op::Create { path, mode, slot } => {
                let flags = libc::O_CREAT | libc::O_EXCL | libc::O_RDWR;
                let file = call::open(&self.path(path), flags, *mode)?;
                self.slots[*slot] = Some(Slot { file, append: false });
                Ok(0)
            }
            Op::Open { path, append, slot } => {
                let flags = libc::O_RDWR | if *append { libc::O_APPEND } else { 0 };
                self.slots[*slot] = Some(Slot { file: self.regular(path, flags)?, append: *append });
                Ok(0)
            }
            Op::Tmpfile { dir, mode, slot } => {
                let file = call::open(&self.path(dir), libc::O_TMPFILE | libc::O_RDWR, *mode)?;
                self.slots[*slot] = Some(Slot { file, append: false });
                Ok(0)
            }
            Op::Close { slot } => self.slots[*slot].take().map(|_| 0).ok_or(libc::EBADF),
            Op::WriteSlot { slot, at, len, fill } => self.write(self.slot(*slot)?, *at, *len, *fill),
            Op::TruncateSlot { slot, size } => io(self.slot(*slot)?.set_len(*size)).map(done),
            Op::FsyncSlot { slot, data_only } => sync(self.slot(*slot)?, *data_only),
            Op::LinkSlot { slot, path } => call::link_file(self.slot(*slot)?, &self.path(path)).map(done),
            Op::Write { path, at, len, fill, flags } => {
                self.write(&self.regular(path, libc::O_RDWR | flags)?, *at, *len, *fill)
            }
            Op::Append { path, len, fill } => {
                self.write(&self.regular(path, libc::O_WRONLY | libc::O_APPEND)?, 0, *len, *fill)
            }
            Op::Empty { path } => self.regular(path, libc::O_WRONLY | libc::O_TRUNC).map(|_| 0),
            Op::Truncate { path, size } => {
                self.regular(path, libc::O_RDONLY)?;
                call::truncate(&self.path(path), *size).map(done)
            }
            Op::Map { path, at, len, fill } => {
                let file = self.regular(path, libc::O_RDWR)?;
                // Behind the end of the file there is nothing to write to.
                if io(file.metadata())?.size() < at + len {
                    return Err(libc::EFAULT);
                }
                if self.unmapped {
                    io(file.write_all_at(&bytes(*len, *fill), *at))?;
                    return sync(&file, false);
                }
                let (at, page) = (*at as usize, PAGE as usize);
                let mut map = Mapping::new(file.as_fd(), (at / page + 1) * page);
                map.write(at, &bytes(*len, *fill));
                io(map.sync()).map(done)
            }
            Op::Allocate { path, mode, at, len } => {
                call::fallocate(&self.regular(path, libc::O_RDWR)?, *mode, *at, *len).map(done)
            }
            Op::Copy { from, at, to, to_at, len } => {
                let (from, to) = (self.regular(from, libc::O_RDONLY)?, self.regular(to, libc::O_RDWR)?);
                call::copy(&from, *at, &to, *to_at, *len as usize).map(shifted)
            }
            Op::Mkdir { path, mode } => call::mkdir(&self.path(path), *mode).map(done),
            Op::Rmdir { path } => call::rmdir(&self.path(path)).map(done),
            Op::Unlink { path } => call::unlink(&self.path(path)).map(done),
            Op::Link { from, to } => call::link(&self.path(from), &self.path(to)).map(done),
            Op::Symlink { target, path } => {
                let target = CString::new(target.as_slice()).expect("no NUL in a target");
                call::symlink(&target, &self.path(path)).map(done)
            }
            Op::Rename { from, to, flags } => {
                call::rename(&self.path(from), &self.path(to), *flags).map(done)
            }
            Op::Mknod { path, mode, device } => call::mknod(&self.path(path), *mode, *device).map(done),
            Op::Chmod { path, mode } => call::chmod(&self.path(path), *mode).map(done),
            Op::Chown { path, uid, gid } => call::lchown(&self.path(path), *uid, *gid).map(done),
            Op::Utimens { path, times } => call::utimens(&self.path(path), *times).map(done),
            Op::SetXattr { path, name, value, flags } => {
                call::set_xattr(&self.path(path), name, &value.0, *flags).map(done)
            }
            Op::RemoveXattr { path, name } => call::remove_xattr(&self.path(path), name).map(done),
            Op::Fsync { path, data_only } => {
                let path = self.path(path);
                let meta = fs::symlink_metadata(OsStr::from_bytes(path.to_bytes())).map_err(|e| errno(&e))?;
                if !meta.is_file() && !meta.is_dir() {
                    return Err(libc::ENOTTY);
                }
                sync(&call::open(&path, libc::O_RDONLY, 0)?, *data_only)
            }
            Op::ReadAll { path } => {
                let mut all = Vec::new();
                io(self.regular(path, libc::O_RDONLY)?.read_to_end(&mut all))?;
                Ok(hash(&all))
            }
            Op::Stat { path } => self.stat(path),
            Op::List { path } => {
                let path = self.path(path);
                let names = io(fs::read_dir(OsStr::from_bytes(path.to_bytes())))?;
                let mut names: Vec<_> = io(names.map(|e| e.map(|e| e.file_name())).collect())?;
                names.sort();
                Ok(hash(names.join(OsStr::new("/")).as_bytes()))
            }
        }
    }

    /// What does not depend on the clock or on the file system's numbers.
    fn stat(&self, relative: &[u8]) -> Res<u64> {
        let path = self.path(relative);
        let path = Path::new(OsStr::from_bytes(path.to_bytes()));
        let meta = io(fs::symlink_metadata(path))?;
        let size = if meta.is_dir() { 0 } else { meta.size() };
        let xattrs = io(inspect::xattrs(path))?;
        let all =
            format!("{:o} {} {} {} {size} {xattrs:?}", meta.mode(), meta.nlink(), meta.uid(), meta.gid());
        Ok(hash(all.as_bytes()))
    }
}

fn io<T>(result: std::io::Result<T>) -> Res<T> {
    result.map_err(|error| errno(&error))
}

/// Room for the sign: see [`Actor::perform`].
const fn shifted(value: u64) -> u64 {
    value << 1
}

fn sync(file: &File, data_only: bool) -> Res<u64> {
    io(if data_only { file.sync_data() } else { file.sync_all() }).map(|()| 0)
}

fn bytes(len: u64, fill: u64) -> Vec<u8> {
    let mut rng = Rng(fill);
    let mut out = Vec::with_capacity(len as usize + 8);
    while out.len() < len as usize {
        out.extend(rng.next().to_le_bytes());
    }
    out.truncate(len as usize);
    out
}

fn hash(bytes: &[u8]) -> u64 {
    let hash = *blake3::hash(bytes).as_bytes();
    u64::from_le_bytes(std::array::from_fn(|n| hash[n]))
}
