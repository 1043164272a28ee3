//! One file, random operations of every kind the kernel can do to its data, against a model in memory: in the
//! manner of fsx. The same seed is the same sequence.
//!
//! `SKC_FSX_OPS` asks for that many operations, `SKC_FSX_SEED` for that seed only, `SKC_FSX_DIR` for a file in
//! that directory (say below `skc passthrough`) instead of a mount of the test's own.

use super::mapping::{Aligned, Mapping, PAGE};
use super::standby::Standby;
use super::support::{Mounted, isolated};
use skc::fuse::Options;
use skc::sys::backing::Backing;
use skc::sys::file;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Operations of one seed in a usual run.
const OPS: u64 = 2500;

struct Rng(u64);

impl Rng {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

/// The file under test and what it must hold.
struct Fsx {
    path: PathBuf,
    rng: Rng,
    model: Vec<u8>,
    /// Longest size of the file.
    max: usize,
    file: File,
    direct: File,
    append: File,
    map: Mapping,
    /// What was done, for the report.
    log: Vec<String>,
}

fn open(path: &Path, max: usize) -> (File, File, File, Mapping) {
    let file = File::options().read(true).write(true).open(path).expect("open");
    let direct = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .expect("open O_DIRECT");
    let append = File::options().append(true).open(path).expect("open O_APPEND");
    let map = Mapping::new(file.as_fd(), max.next_multiple_of(PAGE));
    (file, direct, append, map)
}

impl Fsx {
    fn new(path: PathBuf, seed: u64, max: usize) -> Self {
        File::create_new(&path).expect("create");
        let (file, direct, append, map) = open(&path, max);
        let rng = Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        Self { path, rng, model: Vec::new(), max, file, direct, append, map, log: Vec::new() }
    }

    /// A range that may reach behind the end of the file.
    fn range(&mut self) -> (usize, usize) {
        let at = self.rng.below(self.max);
        let longest = if self.rng.below(8) == 0 { self.max } else { 40_000 };
        (at, 1 + self.rng.below(longest.min(self.max - at)))
    }

    /// A range inside the file.
    fn inside(&mut self) -> Option<(usize, usize)> {
        let size = self.model.len();
        if size == 0 {
            return None;
        }
        let at = self.rng.below(size);
        Some((at, 1 + self.rng.below((size - at).min(60_000))))
    }

    fn data(&mut self, len: usize) -> Vec<u8> {
        let seed = self.rng.below(251);
        (0..len).map(|n| (seed + n * 7 + n / 256) as u8).collect()
    }

    fn grow(&mut self, size: usize) {
        if self.model.len() < size {
            self.model.resize(size, 0);
        }
    }

    fn stands(&mut self, at: usize, data: &[u8]) {
        self.grow(at + data.len());
        self.model[at..at + data.len()].copy_from_slice(data);
    }

    fn zero(&mut self, at: usize, len: usize) {
        let end = (at + len).min(self.model.len());
        if at < end {
            self.model[at..end].fill(0);
        }
    }

    fn compare(&self, what: &str, at: usize, got: &[u8]) {
        let want = &self.model[at..at + got.len()];
        if let Some(first) = got.iter().zip(want).position(|(a, b)| a != b) {
            let last = self.log.len().saturating_sub(25);
            panic!(
                "{what}: byte {} is {} and not {}, after {} operations, the last of them\n  {}",
                at + first,
                got[first],
                want[first],
                self.log.len(),
                self.log[last..].join("\n  ")
            );
        }
    }

    fn allocate(&mut self, name: &str, mode: u32) {
        let (at, len) = self.range();
        match file::fallocate(self.file.as_fd(), mode, at as u64, len as u64) {
            Ok(()) => {
                if mode & (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE) as u32 != 0 {
                    self.zero(at, len);
                }
                if mode & libc::FALLOC_FL_KEEP_SIZE as u32 == 0 {
                    self.grow(at + len);
                }
            }
            Err(skc::ports::Errno(libc::EOPNOTSUPP)) => {}
            Err(errno) => panic!("{name}: errno {}", errno.0),
        }
        self.log.push(format!("{name} {at}+{len}"));
    }

    fn step(&mut self) {
        match self.rng.below(24) {
            0..=3 => {
                let (at, len) = self.range();
                let data = self.data(len);
                self.file.write_all_at(&data, at as u64).expect("write");
                self.stands(at, &data);
                self.log.push(format!("write {at}+{len}"));
            }
            4 | 5 => {
                let Some((at, len)) = self.inside() else { return };
                let mut buf = vec![0; len];
                self.file.read_exact_at(&mut buf, at as u64).expect("read");
                self.log.push(format!("read {at}+{len}"));
                self.compare("read", at, &buf);
            }
            6..=8 => {
                let Some((at, len)) = self.inside() else { return };
                let data = self.data(len);
                self.map.write(at, &data);
                self.stands(at, &data);
                self.log.push(format!("map-write {at}+{len}"));
            }
            9 | 10 => {
                let Some((at, len)) = self.inside() else { return };
                let mut buf = vec![0; len];
                self.map.read(at, &mut buf);
                self.log.push(format!("map-read {at}+{len}"));
                self.compare("map-read", at, &buf);
            }
            11 => {
                self.map.sync().expect("msync");
                self.log.push("msync".into());
            }
            12 | 13 => {
                let size = self.rng.below(self.max);
                if self.rng.below(2) == 0 {
                    self.file.set_len(size as u64).expect("ftruncate");
                } else {
                    let path = File::options().write(true).open(&self.path).expect("open");
                    file::truncate(path.as_fd(), size as u64).expect("truncate");
                }
                self.model.resize(size, 0);
                self.log.push(format!("truncate {size}"));
            }
            14 => self.allocate("punch", (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE) as u32),
            15 => {
                let keep = if self.rng.below(2) == 0 { libc::FALLOC_FL_KEEP_SIZE } else { 0 };
                self.allocate("zero", (libc::FALLOC_FL_ZERO_RANGE | keep) as u32);
            }
            16 => {
                let keep = if self.rng.below(2) == 0 { libc::FALLOC_FL_KEEP_SIZE } else { 0 };
                self.allocate("allocate", keep as u32);
            }
            17 | 18 => self.copy(),
            19 => {
                let blocks = self.max / PAGE;
                let at = self.rng.below(blocks);
                let len = (1 + self.rng.below((blocks - at).min(32))) * PAGE;
                let at = at * PAGE;
                let mut data = Aligned::new(len);
                data.copy_from_slice(&self.data(len));
                self.direct.write_all_at(&data, at as u64).expect("direct write");
                self.stands(at, &data);
                self.log.push(format!("direct-write {at}+{len}"));
            }
            20 => {
                let Some((at, len)) = self.inside() else { return };
                let at = at / PAGE * PAGE;
                let mut buf = Aligned::new(len.next_multiple_of(PAGE));
                let got = self.direct.read_at(&mut buf, at as u64).expect("direct read");
                assert_eq!(got, buf.len().min(self.model.len() - at), "direct read at {at}");
                self.log.push(format!("direct-read {at}+{got}"));
                self.compare("direct-read", at, &buf[..got]);
            }
            21 => {
                let room = self.max - self.model.len();
                if room == 0 {
                    return;
                }
                let len = 1 + self.rng.below(room.min(9000));
                let data = self.data(len);
                std::io::Write::write_all(&mut self.append, &data).expect("append");
                self.stands(self.model.len(), &data);
                self.log.push(format!("append {len}"));
            }
            22 => {
                let result =
                    if self.rng.below(2) == 0 { self.file.sync_all() } else { self.file.sync_data() };
                result.expect("fsync");
                self.log.push("fsync".into());
            }
            _ => {
                (self.file, self.direct, self.append, self.map) = open(&self.path, self.max);
                self.log.push("reopen".into());
            }
        }
        let size = self.file.metadata().expect("stat").size();
        assert_eq!(size, self.model.len() as u64, "size after {:?}", self.log.last());
    }

    /// copy_file_range within the file; ranges that overlap are refused.
    fn copy(&mut self) {
        let Some((from, len)) = self.inside() else { return };
        let to = self.rng.below(self.max - len + 1);
        let overlap = from < to + len && to < from + len;
        match file::copy_range(self.file.as_fd(), from as u64, self.file.as_fd(), to as u64, len) {
            Ok(copied) => {
                assert!(!overlap && copied > 0, "copied {copied} bytes, {from}+{len} to {to}");
                let data = self.model[from..from + copied].to_vec();
                self.stands(to, &data);
            }
            Err(errno) => assert!(overlap && errno.0 == libc::EINVAL, "copy: errno {}", errno.0),
        }
        self.log.push(format!("copy {from}+{len} to {to}"));
    }

    /// Everything, through a fresh descriptor.
    fn compare_all(&mut self, what: &str, path: &Path) {
        let got = std::fs::read(path).expect("read");
        assert_eq!(got.len(), self.model.len(), "{what}: length");
        self.compare(what, 0, &got);
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|s| s.parse().expect("a number"))
}

/// (seed, longest size): small files meet their own ends more often, large ones need several requests a call.
fn runs() -> Vec<(u64, usize)> {
    let all = [(1, 200_000), (2, 30_000), (3, 3_000_000)];
    match number("SKC_FSX_SEED") {
        Some(seed) => all.iter().map(|(_, max)| (seed, *max)).collect(),
        None => all.to_vec(),
    }
}

#[test]
fn random_operations_on_one_file_leave_what_the_model_says() {
    let ops = number("SKC_FSX_OPS").unwrap_or(OPS);
    if let Some(dir) = std::env::var_os("SKC_FSX_DIR") {
        for (seed, max) in runs() {
            let path = PathBuf::from(&dir).join(format!("fsx-{seed}-{max}"));
            let mut fsx = Fsx::new(path.clone(), seed, max);
            (0..ops).for_each(|_| fsx.step());
            fsx.compare_all("at the end", &path);
            std::fs::remove_file(path).expect("remove");
        }
        return;
    }
    isolated(move || {
        let other = tempfile::tempdir().expect("temporary directory");
        let standby = Backing::open(other.path()).expect("open");
        let m = Mounted::with(|tree| Arc::new(Standby::new(tree, standby)), Options::default());
        for (seed, max) in runs() {
            let name = format!("fsx-{seed}-{max}");
            let mut fsx = Fsx::new(m.path(&name), seed, max);
            (0..ops).for_each(|_| fsx.step());
            fsx.compare_all("mount", &m.path(&name));
            fsx.file.sync_all().expect("fsync");
            fsx.compare_all("backing", &m.below().join(&name));
            fsx.compare_all("standby", &other.path().join(&name));
        }
    });
}
