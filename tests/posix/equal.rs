//! The same random operations on the mount and on a bare directory: same results, same trees; and the tree
//! rebuilt from the stream equals both.

use super::standby::Standby;
use super::support::{Mounted, isolated};
use skc::fuse::Options;
use skc::sys::backing::Backing;
use skc::sys::file::{self, SetTime};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::Path;
use std::sync::Arc;

/// xorshift: the same sequence every time.
pub struct Rng(pub u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }

    fn path(&mut self) -> String {
        let depth = self.below(3);
        let mut path = String::new();
        for _ in 0..depth {
            write!(path, "d{}/", self.below(3)).expect("a string takes all");
        }
        path + &format!("{}{}", if self.below(3) == 0 { 'd' } else { 'f' }, self.below(4))
    }
}

fn done<T>(result: std::io::Result<T>) -> Result<(), i32> {
    result.map(drop).map_err(|e| e.raw_os_error().unwrap_or(-1))
}

fn held(root: &Path, path: &str) -> Result<std::os::fd::OwnedFd, i32> {
    use std::os::unix::fs::OpenOptionsExt;
    let path_only = 0o10_000_000 | 0o400_000;
    let file = std::fs::File::options().read(true).custom_flags(path_only).open(root.join(path));
    file.map(Into::into).map_err(|e| e.raw_os_error().unwrap_or(-1))
}

/// One operation, the same for the same generator state.
pub fn step(root: &Path, rng: &mut Rng) -> (String, Result<(), i32>) {
    let (a, b) = (rng.path(), rng.path());
    let (n, m) = (rng.below(200_000), rng.below(40_000));
    let (pa, pb) = (root.join(&a), root.join(&b));
    let errno = |r: Result<(), skc::ports::Errno>| r.map_err(|e| e.0);
    let kind = rng.below(20);
    let result = match kind {
        0 | 1 => done(std::fs::create_dir(&pa)),
        2 => done(std::fs::File::options().write(true).create_new(true).open(&pa)),
        3 | 4 => done(std::fs::write(&pa, vec![n as u8; m as usize])),
        5 => done(
            std::fs::File::options().write(true).open(&pa).and_then(|f| f.write_at(&vec![m as u8; 5000], n)),
        ),
        6 => done(std::fs::File::options().append(true).open(&pa).and_then(|mut f| {
            use std::io::Write;
            f.write_all(b"appended")
        })),
        7 => done(std::fs::File::options().write(true).open(&pa).and_then(|f| f.set_len(n))),
        8 => done(std::fs::remove_file(&pa)),
        9 => done(std::fs::remove_dir(&pa)),
        10 | 11 => done(std::fs::rename(&pa, &pb)),
        12 => done(std::fs::hard_link(&pa, &pb)),
        13 => done(symlink(&b, &pa)),
        14 => held(root, &a).and_then(|fd| errno(file::chown(fd.as_fd(), Some(n as u32), None))),
        15 => held(root, &a).and_then(|fd| errno(file::chmod(fd.as_fd(), m as u32 & 0o7777))),
        16 => held(root, &a).and_then(|fd| {
            errno(file::set_times(fd.as_fd(), SetTime::At((n as i64, 5)), SetTime::At((m as i64, 7))))
        }),
        17 => held(root, &a).and_then(|fd| {
            let name = if n % 2 == 0 { &b"user.one"[..] } else { b"trusted.two" };
            if n % 3 == 0 {
                errno(file::remove_xattr(fd.as_fd(), name))
            } else {
                errno(file::set_xattr(fd.as_fd(), name, b.as_bytes(), 0))
            }
        }),
        18 => done(std::fs::File::options().write(true).open(&pa)).and_then(|()| {
            let f = std::fs::File::options().write(true).open(&pa).map_err(|_| -1)?;
            // 0 allocate, 1 keep size, 3 punch hole, 16 zero range
            let mode = [0, 1, 3, 16][(n % 4) as usize];
            errno(file::fallocate(f.as_fd(), mode, m, 1 + n))
        }),
        _ => {
            let (Ok(da), Ok(db)) = (held(root, "."), held(root, ".")) else { return (a, Err(-1)) };
            let flags = 1 + (n % 2) as u32; // NOREPLACE or EXCHANGE
            let top = |p: &str| p.split('/').next_back().unwrap_or(p).to_owned();
            let (a, b) = (top(&a), top(&b));
            errno(file::rename(da.as_fd(), a.as_bytes(), db.as_fd(), b.as_bytes(), flags))
        }
    };
    (format!("{kind} {a} {b} {n} {m}"), result)
}

/// Everything the trees must agree on. `times`: also mtimes.
fn describe(root: &Path, times: bool) -> BTreeMap<Vec<u8>, String> {
    describe_only(root, times, &|_| true)
}

/// Of the paths below the root for which `is_seen` holds, and all below whose parents it does.
pub fn describe_only(root: &Path, times: bool, is_seen: &dyn Fn(&Path) -> bool) -> BTreeMap<Vec<u8>, String> {
    let mut out = BTreeMap::new();
    let mut links: BTreeMap<u64, usize> = BTreeMap::new();
    let mut todo = vec![std::path::PathBuf::new()];
    while let Some(rel) = todo.pop() {
        let path = root.join(&rel);
        let m = path.symlink_metadata().expect("stat");
        let mut text = format!("{:o} {} {}", m.mode(), m.uid(), m.gid());
        if times || m.mtime() < 1_000_000 {
            write!(text, " {}.{:09}", m.mtime(), m.mtime_nsec()).expect("a string takes all");
        }
        if m.is_dir() || rel.as_os_str().is_empty() {
            let mut names: Vec<_> = std::fs::read_dir(&path).expect("readdir").flatten().collect();
            names.sort_by_key(std::fs::DirEntry::file_name);
            let below = names.iter().rev().map(|e| rel.join(e.file_name()));
            todo.extend(below.filter(|path| is_seen(path)));
        } else {
            let next = links.len();
            write!(text, " {} links, group {}", m.nlink(), links.entry(m.ino()).or_insert(next))
                .expect("a string takes all");
        }
        if m.is_symlink() {
            write!(text, " -> {}", path.read_link().expect("readlink").display())
                .expect("a string takes all");
        } else if m.is_file() {
            let bytes = std::fs::read(&path).expect("read");
            let sum = bytes.iter().fold(7u64, |h, b| h.wrapping_mul(31).wrapping_add(u64::from(*b)));
            write!(text, " {} bytes {sum:x}", bytes.len()).expect("a string takes all");
        }
        if !rel.as_os_str().is_empty() {
            let fd = held(root, rel.to_str().expect("utf-8")).expect("open");
            let list = file::list_xattr(fd.as_fd()).expect("listxattr");
            let mut names: Vec<_> = list.split(|b| *b == 0).filter(|n| !n.is_empty()).collect();
            names.sort_unstable();
            for name in names {
                let value = file::get_xattr(fd.as_fd(), name).expect("getxattr");
                write!(text, " {}={value:?}", String::from_utf8_lossy(name)).expect("a string takes all");
            }
        }
        out.insert(rel.as_os_str().as_bytes().to_vec(), text);
    }
    out
}

fn run(seed: u64, steps: usize, init_mask: u64) {
    let other = tempfile::tempdir().expect("temporary directory");
    let (bare, mirror) = (other.path().join("bare"), other.path().join("mirror"));
    std::fs::create_dir(&bare).expect("mkdir");
    std::fs::create_dir(&mirror).expect("mkdir");
    let standby = Backing::open(&mirror).expect("open");
    let options = Options { init_mask, ..Options::default() };
    let m = Mounted::with(|tree| Arc::new(Standby::new(tree, standby)), options);
    let (mut one, mut two) = (Rng(seed), Rng(seed));
    for n in 0..steps {
        let (what, expected) = step(&bare, &mut one);
        let (_, got) = step(&m.dir, &mut two);
        assert_eq!(got, expected, "seed {seed}, step {n}: {what}");
    }
    assert_eq!(describe(&m.dir, false), describe(&bare, false), "mount and bare, seed {seed}");
    let below = describe(&m.below(), true);
    assert_eq!(describe(&m.dir, true), below, "mount and its backing, seed {seed}");
    assert_eq!(describe(&mirror, true), below, "standby and backing, seed {seed}");
}

#[test]
fn random_operations_give_what_the_bare_directory_gives_and_the_stream_rebuilds_it() {
    isolated(|| {
        for seed in 1..=6 {
            run(seed * 7919, 1500, 0);
        }
    });
}

#[test]
fn without_the_optional_features_the_result_is_the_same() {
    // Everything but KILLPRIV_V2 (28), POSIX_ACL (20) and DONT_MASK (6).
    let mandatory = (1 << 28) | (1 << 20) | (1 << 6);
    isolated(move || run(4242, 1500, !mandatory));
}

/// INIT flags that an older kernel may not have (7.45 of linux/fuse.h; the mandatory ones left out).
const OPTIONAL: [u64; 13] = [0, 5, 13, 14, 15, 18, 22, 23, 25, 29, 34, 36, 39];

#[test]
fn each_optional_feature_may_be_missing() {
    isolated(|| {
        for bit in OPTIONAL {
            run(4242 + bit, 250, 1 << bit);
        }
        // INIT_EXT is what the flags above 31 hang on.
        run(4242, 250, 1 << 30 | (u64::MAX << 32));
    });
}

#[test]
fn concurrent_operations_reach_the_stream_in_the_order_of_their_effect() {
    isolated(|| {
        let other = tempfile::tempdir().expect("temporary directory");
        let mirror = other.path().join("mirror");
        std::fs::create_dir(&mirror).expect("mkdir");
        let standby = Backing::open(&mirror).expect("open");
        let m = Mounted::with(|tree| Arc::new(Standby::new(tree, standby)), Options::default());
        std::thread::scope(|scope| {
            for seed in 1..=6 {
                let dir = &m.dir;
                scope.spawn(move || {
                    let mut rng = Rng(seed * 104_729);
                    for n in 0..700 {
                        let (what, got) = step(dir, &mut rng);
                        assert!(!matches!(got, Err(5 | 107)), "thread {seed}, step {n}: {what}: {got:?}");
                    }
                });
            }
        });
        assert_eq!(describe(&mirror, true), describe(&m.below(), true), "standby and backing");
        assert_eq!(describe(&m.dir, true), describe(&m.below(), true), "mount and backing");
    });
}
