//! What a process does: operation `n` of a process is a function of the seed, of `n` and of what the operations
//! before it returned. Every operation makes at most one change that can be seen in the tree.

use crate::world::Rng;
use std::collections::BTreeMap;
use std::ffi::CString;

/// Descriptors a process keeps open across operations.
pub const SLOTS: usize = 4;
/// Objects of a process beyond which more is removed than made.
const CROWDED: usize = 48;
/// Depth of the deepest directories.
const DEPTH: usize = 3;
/// Longest file: every call on it is one request to the file system.
const LONGEST: u64 = 200_000;
pub const PAGE: u64 = 4096;
/// Times that are set are before this, times that are taken from the clock after it.
pub const SET_TIMES_END: i64 = 1_200_000_000;

/// A path below the process' directory, in any bytes; empty = the directory itself.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Path(Vec<u8>);

impl std::ops::Deref for Path {
    type Target = Vec<u8>;
    fn deref(&self) -> &Vec<u8> {
        &self.0
    }
}

impl std::ops::DerefMut for Path {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }
}

impl std::fmt::Debug for Path {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The longest name is a single letter all over.
        match self.0.iter().position(|byte| *byte == b'x') {
            Some(at) if self.0.len() > 200 => {
                let (before, rest) = self.0.split_at(at);
                let end = rest.iter().position(|byte| *byte != b'x').unwrap_or(rest.len());
                write!(f, "{}x*{end}{}", before.escape_ascii(), rest[end..].escape_ascii())
            }
            _ => write!(f, "{}", self.0.escape_ascii()),
        }
    }
}

/// The value of an attribute.
#[derive(Clone)]
pub struct Value(pub Vec<u8>);

impl std::fmt::Debug for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    File,
    Dir,
    Link,
    Node,
}

/// One call (some need an open and a close around it).
#[derive(Debug, Clone)]
pub enum Op {
    Create {
        path: Path,
        mode: u32,
        slot: usize,
    },
    Open {
        path: Path,
        append: bool,
        slot: usize,
    },
    Tmpfile {
        dir: Path,
        mode: u32,
        slot: usize,
    },
    Close {
        slot: usize,
    },
    /// pwrite through a kept descriptor (at the end of the file if it is one for appending).
    WriteSlot {
        slot: usize,
        at: u64,
        len: u64,
        fill: u64,
    },
    TruncateSlot {
        slot: usize,
        size: u64,
    },
    FsyncSlot {
        slot: usize,
        data_only: bool,
    },
    LinkSlot {
        slot: usize,
        path: Path,
    },
    Write {
        path: Path,
        at: u64,
        len: u64,
        fill: u64,
        flags: i32,
    },
    Append {
        path: Path,
        len: u64,
        fill: u64,
    },
    /// open(O_TRUNC)
    Empty {
        path: Path,
    },
    Truncate {
        path: Path,
        size: u64,
    },
    Map {
        path: Path,
        at: u64,
        len: u64,
        fill: u64,
    },
    Allocate {
        path: Path,
        mode: i32,
        at: u64,
        len: u64,
    },
    Copy {
        from: Path,
        at: u64,
        to: Path,
        to_at: u64,
        len: u64,
    },
    Mkdir {
        path: Path,
        mode: u32,
    },
    Rmdir {
        path: Path,
    },
    Unlink {
        path: Path,
    },
    Link {
        from: Path,
        to: Path,
    },
    Symlink {
        target: Path,
        path: Path,
    },
    Rename {
        from: Path,
        to: Path,
        flags: u32,
    },
    Mknod {
        path: Path,
        mode: u32,
        device: u64,
    },
    Chmod {
        path: Path,
        mode: u32,
    },
    Chown {
        path: Path,
        uid: u32,
        gid: u32,
    },
    Utimens {
        path: Path,
        times: [(i64, i64); 2],
    },
    SetXattr {
        path: Path,
        name: CString,
        value: Value,
        flags: i32,
    },
    RemoveXattr {
        path: Path,
        name: CString,
    },
    Fsync {
        path: Path,
        data_only: bool,
    },
    ReadAll {
        path: Path,
    },
    Stat {
        path: Path,
    },
    List {
        path: Path,
    },
}

impl Op {
    /// A like operation that is one request to the file system: what begins with a page is.
    pub fn single(self) -> Self {
        let page = |at: u64| at / PAGE * PAGE;
        match self {
            Self::Map { path, .. } => Self::Stat { path },
            Self::Append { path, len, fill } => Self::Write { path, at: 0, len, fill, flags: 0 },
            Self::Write { path, at, len, fill, flags } => {
                Self::Write { path, at: page(at), len, fill, flags }
            }
            Self::WriteSlot { slot, at, len, fill } => Self::WriteSlot { slot, at: page(at), len, fill },
            Self::Open { path, slot, .. } => Self::Open { path, append: false, slot },
            other => other,
        }
    }

    /// The paths that it names.
    pub fn paths(&self) -> Vec<&Path> {
        match self {
            Self::Close { .. }
            | Self::WriteSlot { .. }
            | Self::TruncateSlot { .. }
            | Self::FsyncSlot { .. } => Vec::new(),
            Self::Copy { from, to, .. } | Self::Link { from, to } | Self::Rename { from, to, .. } => {
                vec![from, to]
            }
            Self::Create { path, .. }
            | Self::Open { path, .. }
            | Self::Tmpfile { dir: path, .. }
            | Self::LinkSlot { path, .. }
            | Self::Write { path, .. }
            | Self::Append { path, .. }
            | Self::Empty { path }
            | Self::Truncate { path, .. }
            | Self::Map { path, .. }
            | Self::Allocate { path, .. }
            | Self::Mkdir { path, .. }
            | Self::Rmdir { path }
            | Self::Unlink { path }
            | Self::Symlink { path, .. }
            | Self::Mknod { path, .. }
            | Self::Chmod { path, .. }
            | Self::Chown { path, .. }
            | Self::Utimens { path, .. }
            | Self::SetXattr { path, .. }
            | Self::RemoveXattr { path, .. }
            | Self::Fsync { path, .. }
            | Self::ReadAll { path }
            | Self::Stat { path }
            | Self::List { path } => vec![path],
        }
    }

    /// The kept descriptor that it uses.
    pub const fn slot(&self) -> Option<usize> {
        match self {
            Self::WriteSlot { slot, .. } | Self::TruncateSlot { slot, .. } | Self::LinkSlot { slot, .. } => {
                Some(*slot)
            }
            _ => None,
        }
    }

    /// Promises the caller that what was done before is durable.
    pub fn syncs(&self) -> bool {
        match self {
            Self::Fsync { .. } | Self::FsyncSlot { .. } | Self::Map { .. } => true,
            Self::Write { flags, .. } => flags & libc::O_DSYNC != 0,
            _ => false,
        }
    }
}

/// The names that a process believes to have.
#[derive(Debug, Default, Clone)]
pub struct Names(BTreeMap<Path, Kind>);

fn is_below(path: &[u8], dir: &[u8]) -> bool {
    path.strip_prefix(dir).is_some_and(|rest| rest.first() == Some(&b'/'))
}

impl Names {
    /// Notes what a successful operation made of them.
    pub fn note(&mut self, op: &Op) {
        match op {
            Op::Create { path, .. } | Op::LinkSlot { path, .. } => self.add(path, Kind::File),
            Op::Mkdir { path, .. } if path.is_empty() => {}
            Op::Mkdir { path, .. } => self.add(path, Kind::Dir),
            Op::Symlink { path, .. } => self.add(path, Kind::Link),
            Op::Mknod { path, .. } => self.add(path, Kind::Node),
            Op::Rmdir { path } | Op::Unlink { path } => drop(self.0.remove(path)),
            Op::Link { from, to } => {
                if let Some(kind) = self.0.get(from).copied() {
                    self.add(to, kind);
                }
            }
            Op::Rename { from, to, flags } => self.renamed(from, to, *flags & libc::RENAME_EXCHANGE != 0),
            _ => {}
        }
    }

    fn add(&mut self, path: &Path, kind: Kind) {
        self.0.insert(path.clone(), kind);
    }

    /// Takes a name and all below it out, as suffixes.
    fn take(&mut self, path: &Path) -> Vec<(Vec<u8>, Kind)> {
        let all: Vec<Path> =
            self.0.keys().filter(|other| *other == path || is_below(other, path)).cloned().collect();
        let suffix = |old: Path| Some((old[path.len()..].to_vec(), self.0.remove(&old)?));
        all.into_iter().filter_map(suffix).collect()
    }

    fn put(&mut self, path: &Path, what: Vec<(Vec<u8>, Kind)>) {
        for (suffix, kind) in what {
            self.0.insert(Path([path.as_slice(), &suffix].concat()), kind);
        }
    }

    fn renamed(&mut self, from: &Path, to: &Path, exchange: bool) {
        let moved = self.take(from);
        let other = self.take(to);
        self.put(to, moved);
        if exchange {
            self.put(from, other);
        }
    }

    fn pick(&self, rng: &mut Rng, want: impl Fn(Kind) -> bool) -> Option<Path> {
        let fitting = || self.0.iter().filter(|(_, kind)| want(**kind)).map(|(path, _)| path);
        let count = fitting().count() as u64;
        if count == 0 { None } else { fitting().nth(rng.below(count) as usize).cloned() }
    }

    /// A directory, most often one that is there.
    fn dir(&self, rng: &mut Rng) -> Path {
        if rng.one_in(3) {
            return Path::default();
        }
        let deep = |path: &Path| path.split(|byte| *byte == b'/').count() >= DEPTH;
        self.pick(rng, |kind| kind == Kind::Dir).filter(|path| !deep(path)).unwrap_or_default()
    }

    /// A name that may or may not be there yet.
    fn some(&self, rng: &mut Rng) -> Path {
        let mut path = self.dir(rng);
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend(name(rng));
        path
    }

    /// A name that is there, now and then one that may not be.
    fn known(&self, rng: &mut Rng, want: impl Fn(Kind) -> bool) -> Path {
        if rng.one_in(25) {
            return self.some(rng);
        }
        self.pick(rng, want).unwrap_or_else(|| self.some(rng))
    }

    fn file(&self, rng: &mut Rng) -> Path {
        self.known(rng, |kind| kind == Kind::File)
    }

    fn any(&self, rng: &mut Rng) -> Path {
        self.known(rng, |_| true)
    }

    /// Anything through which a path-following call stays inside: a symbolic link leads nowhere.
    fn solid(&self, rng: &mut Rng) -> Path {
        self.known(rng, |kind| kind != Kind::Link)
    }
}

fn name(rng: &mut Rng) -> Vec<u8> {
    match rng.below(24) {
        0 => b"with space".to_vec(),
        1 => b"new\nline".to_vec(),
        2 => b"\xff\xfe bytes".to_vec(),
        3 => "é-utf8".as_bytes().to_vec(),
        4 => b".hidden".to_vec(),
        5 => vec![b'x'; 255],
        n => format!("n{n}").into_bytes(),
    }
}

fn length(rng: &mut Rng) -> u64 {
    match rng.below(8) {
        0 => 1 + rng.below(60_000),
        1 => PAGE * (1 + rng.below(4)),
        _ => 1 + rng.below(3000),
    }
}

fn at(rng: &mut Rng) -> u64 {
    let at = if rng.one_in(3) { rng.below(LONGEST) } else { rng.below(20_000) };
    if rng.one_in(4) { at / PAGE * PAGE } else { at }
}

fn slot(rng: &mut Rng) -> usize {
    rng.below(SLOTS as u64) as usize
}

fn mode(rng: &mut Rng) -> u32 {
    [0o600, 0o640, 0o644, 0o755, 0o777, 0o4755, 0o2750][rng.below(7) as usize]
}

/// The operation number `n`, from 1.
pub fn next(names: &Names, seed: u64, process: u64, n: u64) -> Op {
    if n == 1 {
        return Op::Mkdir { path: Path::default(), mode: 0o755 };
    }
    let mut rng = Rng::of(seed, (process << 40) | n);
    let r = &mut rng;
    if names.0.len() > CROWDED && r.one_in(3) {
        let path = names.any(r);
        let is_dir = names.0.get(&path) == Some(&Kind::Dir);
        return if is_dir { Op::Rmdir { path } } else { Op::Unlink { path } };
    }
    match r.below(100) {
        0..=27 => data(names, r),
        28..=39 => by_slot(names, r),
        40..=69 => namespace(names, r),
        70..=88 => attributes(names, r),
        89 | 90 if r.one_in(2) => Op::Fsync { path: names.dir(r), data_only: false },
        89..=91 => Op::Fsync { path: names.file(r), data_only: r.one_in(2) },
        92..=95 => Op::ReadAll { path: names.file(r) },
        96 | 97 => Op::Stat { path: names.any(r) },
        _ => Op::List { path: names.dir(r) },
    }
}

fn data(names: &Names, r: &mut Rng) -> Op {
    let path = names.file(r);
    match r.below(16) {
        0..=5 => {
            let flags = if r.one_in(12) { [libc::O_DSYNC, libc::O_SYNC][r.below(2) as usize] } else { 0 };
            Op::Write { path, at: at(r), len: length(r), fill: r.next(), flags }
        }
        6 | 7 => Op::Append { path, len: length(r), fill: r.next() },
        8 => Op::Empty { path },
        9 | 10 => Op::Truncate { path, size: at(r) },
        11 => {
            let at = r.below(40) * PAGE + r.below(PAGE - 1);
            Op::Map { path, at, len: 1 + r.below(PAGE - at % PAGE), fill: r.next() }
        }
        12 | 13 => {
            let (keep, punch, zero) =
                (libc::FALLOC_FL_KEEP_SIZE, libc::FALLOC_FL_PUNCH_HOLE, libc::FALLOC_FL_ZERO_RANGE);
            let mode = [0, keep, punch | keep, zero, zero | keep][r.below(5) as usize];
            Op::Allocate { path, mode, at: at(r), len: length(r) }
        }
        _ => Op::Copy { from: path, at: r.below(10_000), to: names.file(r), to_at: at(r), len: length(r) },
    }
}

fn by_slot(names: &Names, r: &mut Rng) -> Op {
    let slot = slot(r);
    match r.below(12) {
        0 => Op::Open { path: names.file(r), append: r.one_in(3), slot },
        1 => Op::Tmpfile { dir: names.dir(r), mode: mode(r), slot },
        2 => Op::Close { slot },
        3..=7 => Op::WriteSlot { slot, at: at(r), len: length(r), fill: r.next() },
        8 => Op::TruncateSlot { slot, size: at(r) },
        9 => Op::FsyncSlot { slot, data_only: r.one_in(2) },
        _ => Op::LinkSlot { slot, path: names.some(r) },
    }
}

fn namespace(names: &Names, r: &mut Rng) -> Op {
    match r.below(30) {
        0..=7 => Op::Create { path: names.some(r), mode: mode(r), slot: slot(r) },
        8..=11 => Op::Mkdir { path: names.some(r), mode: mode(r) },
        12 | 13 => Op::Rmdir { path: names.known(r, |kind| kind == Kind::Dir) },
        14..=16 => Op::Unlink { path: names.known(r, |kind| kind != Kind::Dir) },
        17..=19 => Op::Link { from: names.known(r, |kind| kind != Kind::Dir), to: names.some(r) },
        20 => {
            let len = if r.one_in(4) { 1000 } else { 5 };
            Op::Symlink {
                target: Path([b"nowhere/".as_slice(), &vec![b't'; len]].concat()),
                path: names.some(r),
            }
        }
        21..=27 => {
            let (exchange, keep) = (libc::RENAME_EXCHANGE, libc::RENAME_NOREPLACE);
            let flags = [0, 0, 0, exchange, keep][r.below(5) as usize];
            let to = if flags == exchange || r.one_in(3) { names.any(r) } else { names.some(r) };
            Op::Rename { from: names.any(r), to, flags }
        }
        _ => {
            let (kind, device) = [
                (libc::S_IFIFO, 0),
                (libc::S_IFSOCK, 0),
                (libc::S_IFCHR, libc::makedev(1, 3)),
                (libc::S_IFBLK, libc::makedev(7, 99)),
                (libc::S_IFREG, 0),
            ][r.below(5) as usize];
            Op::Mknod { path: names.some(r), mode: kind | mode(r), device }
        }
    }
}

fn attributes(names: &Names, r: &mut Rng) -> Op {
    match r.below(20) {
        0..=4 => Op::Chmod { path: names.solid(r), mode: mode(r) },
        5..=7 => {
            // A chown that changes neither is the one call that the kernel does not tell (src/docs/posix.md).
            let (uid, gid) = (owner(r), owner(r));
            Op::Chown { path: names.any(r), uid: if gid == u32::MAX { 1 } else { uid }, gid }
        }
        8..=12 => Op::Utimens { path: names.any(r), times: [time(r), time(r)] },
        13..=15 => {
            let value = Value((0..r.below(300)).map(|_| r.next() as u8).collect());
            let flags = [0, 0, libc::XATTR_CREATE, libc::XATTR_REPLACE][r.below(4) as usize];
            Op::SetXattr { path: names.any(r), name: xattr(r), value, flags }
        }
        16 => Op::RemoveXattr { path: names.any(r), name: xattr(r) },
        17 | 18 => {
            let (path, name) = acl_of(names, r);
            Op::SetXattr { path, name, value: Value(acl(r)), flags: 0 }
        }
        _ => {
            let (path, name) = acl_of(names, r);
            Op::RemoveXattr { path, name }
        }
    }
}

fn owner(r: &mut Rng) -> u32 {
    [0, 0, 1, 1000, 65_534, u32::MAX][r.below(6) as usize]
}

fn time(r: &mut Rng) -> (i64, i64) {
    match r.below(8) {
        0 => (0, libc::UTIME_NOW),
        1 => (0, libc::UTIME_OMIT),
        _ => (r.below(SET_TIMES_END as u64) as i64, r.below(1_000_000_000) as i64),
    }
}

fn xattr(r: &mut Rng) -> CString {
    let space = ["user", "user", "user", "trusted", "security"][r.below(5) as usize];
    CString::new(format!("{space}.x{}", r.below(4))).expect("no NUL")
}

fn acl_of(names: &Names, r: &mut Rng) -> (Path, CString) {
    if r.one_in(2) {
        (names.known(r, |kind| kind == Kind::Dir), c"system.posix_acl_default".into())
    } else {
        (names.solid(r), c"system.posix_acl_access".into())
    }
}

/// An ACL in the kernel's form: owner, a user, group, mask, others.
fn acl(r: &mut Rng) -> Vec<u8> {
    const NOBODY: u32 = u32::MAX;
    let mut out = 2_u32.to_le_bytes().to_vec();
    for (tag, id) in [(1_u16, NOBODY), (2, 1000), (4, NOBODY), (0x10, NOBODY), (0x20, NOBODY)] {
        out.extend(tag.to_le_bytes());
        out.extend((r.below(8) as u16).to_le_bytes());
        out.extend(id.to_le_bytes());
    }
    out
}
