//! What a tree holds, read without any code of the replication.

use crate::call;
use crate::op::{PAGE, SET_TIMES_END};
use skc::sys::inspect;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

/// Attributes of ours.
const HIDDEN: &[u8] = b"trusted.skc.";

/// One object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Type and permissions.
    mode: u32,
    owner: (u32, u32),
    size: u64,
    device: u64,
    /// The first path of the same inode, and how many there are.
    group: (Rc<Path>, u64),
    mtime: (i64, i64),
    inner: Rc<Inner>,
}

/// What of an object is read by calls of its own.
#[derive(Debug, PartialEq, Eq)]
struct Inner {
    target: Option<PathBuf>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    content: Option<Content>,
}

/// Bytes, and their hash before them: what differs is told apart without a look at the bytes.
#[derive(PartialEq, Eq)]
struct Content {
    hash: [u8; 32],
    bytes: Vec<u8>,
}

impl Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.bytes.len())
    }
}

/// A tree by path.
pub type Snapshot = BTreeMap<Rc<Path>, Object>;

/// Reads the tree at `root`; empty if there is none.
pub fn read(root: &Path) -> io::Result<Snapshot> {
    Reader::new(root).read(&[])
}

/// What tells that an inode is not what it was: type and mode, size, both times.
type Stamp = (u32, u64, (i64, i64), (i64, i64));

fn stamp(meta: &fs::Metadata) -> Stamp {
    (meta.mode(), meta.size(), (meta.mtime(), meta.mtime_nsec()), (meta.ctime(), meta.ctime_nsec()))
}

/// Reads a tree again and again. Every name and every attribute that stat(2) gives is read anew each time; bytes,
/// targets and extended attributes are read again only of inodes that were named as touched or whose stamp changed.
pub struct Reader {
    root: PathBuf,
    known: BTreeMap<u64, (Stamp, Rc<Inner>)>,
    /// By path, as of the last time.
    inodes: BTreeMap<Rc<Path>, u64>,
}

impl Reader {
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), known: BTreeMap::new(), inodes: BTreeMap::new() }
    }

    /// The tree as it is; empty if there is none.
    pub fn read(&mut self, touched: &[u64]) -> io::Result<Snapshot> {
        let mut all = Snapshot::new();
        let mut old = std::mem::take(&mut self.known);
        old.retain(|inode, _| !touched.contains(inode));
        self.inodes.clear();
        let mut groups = BTreeMap::<u64, Vec<Rc<Path>>>::new();
        let mut todo = vec![PathBuf::new()];
        while let Some(relative) = todo.pop() {
            let is_root = relative.as_os_str().is_empty();
            let path = if is_root { self.root.clone() } else { self.root.join(&relative) };
            let meta = match fs::symlink_metadata(&path) {
                Err(error) if is_root && error.kind() == io::ErrorKind::NotFound => break,
                other => other?,
            };
            if meta.is_dir() {
                for entry in fs::read_dir(&path)? {
                    todo.push(relative.join(entry?.file_name()));
                }
            }
            let relative = Rc::<Path>::from(relative);
            let unknown = || old.remove(&meta.ino()).filter(|(stamp_then, _)| *stamp_then == stamp(&meta));
            let known = self.known.get(&meta.ino()).cloned().or_else(unknown);
            let inner = known.map_or_else(|| inner(&path, &meta).map(Rc::new), |(_, inner)| Ok(inner))?;
            self.known.insert(meta.ino(), (stamp(&meta), Rc::clone(&inner)));
            if !meta.is_dir() {
                groups.entry(meta.ino()).or_default().push(Rc::clone(&relative));
            }
            self.inodes.insert(Rc::clone(&relative), meta.ino());
            all.insert(Rc::clone(&relative), object(relative, &meta, inner));
        }
        group(&mut all, groups);
        Ok(all)
    }
}

/// A tree at a moment, to be compared with itself later.
pub struct Moment {
    tree: Snapshot,
    inodes: BTreeMap<Rc<Path>, u64>,
    when: SystemTime,
}

/// Longest time for which a file system may give the same time twice: a tick of a slow kernel.
const TICK: Duration = Duration::from_millis(10);

impl Reader {
    /// What [`Self::read`] just found.
    pub fn moment(&self, tree: &Snapshot) -> Moment {
        Moment { tree: tree.clone(), inodes: self.inodes.clone(), when: SystemTime::now() }
    }

    /// Paths of objects whose time is of the clock and was not taken again after that moment: it is the same, and was
    /// older than a tick then. `now` is what was just read.
    pub fn untouched_since(&self, moment: &Moment, now: &Snapshot) -> Vec<PathBuf> {
        let before = moment.when.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let before = before.checked_sub(TICK).unwrap_or_default();
        let before = (before.as_secs() as i64, i64::from(before.subsec_nanos()));
        let untouched = |(path, object): &(&Rc<Path>, &Object)| {
            let of_the_clock = object.mtime.0 >= SET_TIMES_END && object.mtime < before;
            let then = moment.tree.get(*path).is_some_and(|then| then.mtime == object.mtime);
            of_the_clock && then && moment.inodes.get(*path) == self.inodes.get(*path)
        };
        now.iter().filter(untouched).map(|(path, _)| path.to_path_buf()).collect()
    }
}

/// Notes which paths are one inode.
fn group(all: &mut Snapshot, groups: BTreeMap<u64, Vec<Rc<Path>>>) {
    for paths in groups.into_values().filter(|paths| paths.len() > 1) {
        let count = paths.len() as u64;
        let Some(first) = paths.iter().min().map(Rc::clone) else { continue };
        for path in paths {
            if let Some(object) = all.get_mut(&path) {
                object.group = (Rc::clone(&first), count);
            }
        }
    }
}

fn inner(path: &Path, meta: &fs::Metadata) -> io::Result<Inner> {
    let kind = meta.file_type();
    let mut xattrs = inspect::xattrs(path)?;
    xattrs.retain(|name, _| !name.starts_with(HIDDEN));
    let content = |bytes: Vec<u8>| Content { hash: *blake3::hash(&bytes).as_bytes(), bytes };
    Ok(Inner {
        target: if kind.is_symlink() { Some(fs::read_link(path)?) } else { None },
        xattrs,
        content: if kind.is_file() { Some(content(fs::read(path)?)) } else { None },
    })
}

fn object(path: Rc<Path>, meta: &fs::Metadata, inner: Rc<Inner>) -> Object {
    Object {
        mode: meta.mode(),
        owner: (meta.uid(), meta.gid()),
        // A directory's size is its file system's own affair.
        size: if meta.is_dir() { 0 } else { meta.size() },
        device: meta.rdev(),
        group: (path, 1),
        mtime: (meta.mtime(), meta.mtime_nsec()),
        inner,
    }
}

/// By path of a regular file, the ranges that have blocks; the rest of it is holes.
pub type Holes = BTreeMap<PathBuf, Vec<(u64, u64)>>;

/// Where the files of a tree have blocks. Written and preallocated ones are not told apart: ext4 writes zeros to the
/// preallocated neighbours of a block when it thinks that is cheaper.
pub fn holes(root: &Path, snapshot: &Snapshot) -> io::Result<Holes> {
    let mut all = Holes::new();
    for (path, object) in snapshot.iter().filter(|(_, object)| object.inner.content.is_some()) {
        let file = File::open(root.join(path))?;
        let mut joined = Vec::<(u64, u64)>::new();
        for (begin, end) in blocks(&file)? {
            let end = end.min(object.size.next_multiple_of(PAGE));
            match joined.last_mut() {
                // Behind the end of the file a file system may have blocks in stock.
                _ if begin >= end => {}
                Some(last) if begin <= last.1 => last.1 = end,
                _ => joined.push((begin, end)),
            }
        }
        all.insert(path.to_path_buf(), joined);
    }
    Ok(all)
}

fn blocks(file: &File) -> io::Result<Vec<(u64, u64)>> {
    match call::allocated(file) {
        // A tmpfs does not tell its blocks; there data are all that is allocated.
        Err(libc::EOPNOTSUPP) => inspect::data_ranges(file),
        other => other.map_err(io::Error::from_raw_os_error),
    }
}

/// Which files have holes where they should not, or blocks; empty = none.
pub fn differing_holes(have: &Holes, want: &Holes) -> Vec<String> {
    let one = |(path, have): (&PathBuf, &Vec<(u64, u64)>)| {
        let want = want.get(path).filter(|want| *want != have)?;
        Some(format!("{}: blocks at {have:?}, not {want:?}", shown(path)))
    };
    have.iter().filter_map(one).collect()
}

fn shown(path: &Path) -> String {
    path.as_os_str().as_bytes().escape_ascii().to_string()
}

/// Which times must be equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Times {
    /// All.
    All,
    /// Those that an operation set; the others must be of the clock on both sides.
    Set,
}

impl Times {
    fn equal(self, a: (i64, i64), b: (i64, i64)) -> bool {
        let of_the_clock = |time: (i64, i64)| time.0 >= SET_TIMES_END;
        a == b || (self == Self::Set && of_the_clock(a) && of_the_clock(b))
    }
}

/// The paths of some inodes.
pub fn paths_of(root: &Path, inodes: &[u64]) -> io::Result<Vec<PathBuf>> {
    let tree = read(root)?;
    let all = tree.keys().map(|path| Ok((path, fs::symlink_metadata(root.join(path))?.ino())));
    let all: Vec<_> = all.collect::<io::Result<_>>()?;
    Ok(all
        .into_iter()
        .filter(|(_, inode)| inodes.contains(inode))
        .map(|(path, _)| path.to_path_buf())
        .collect())
}

/// Takes over the time that an object has in `other`, where it is earlier.
pub fn take_back(tree: &mut Snapshot, path: &Path, other: &Snapshot) {
    if let (Some(object), Some(other)) = (tree.get_mut(path), other.get(path)) {
        object.mtime = object.mtime.min(other.mtime);
    }
}

/// How many paths differ.
pub fn distance(have: &Snapshot, want: &Snapshot, times: Times) -> usize {
    let differs = |(path, object): (&Rc<Path>, &Object)| {
        want.get(path).is_none_or(|wanted| !object.equals(wanted, times))
    };
    let missing = want.keys().filter(|path| !have.contains_key(*path)).count();
    have.iter().filter(|one| differs(*one)).count() + missing
}

/// What differs, in words; empty = nothing.
pub fn differences(have: &Snapshot, want: &Snapshot, times: Times) -> Vec<String> {
    let mut out = Vec::new();
    for (path, object) in have {
        match want.get(path) {
            None => out.push(format!("{} is there and should not be", shown(path))),
            Some(wanted) if object.equals(wanted, times) => {}
            Some(wanted) => out.push(format!("{}: {}", shown(path), object.differs(wanted, times))),
        }
    }
    let missing = want.keys().filter(|path| !have.contains_key(*path));
    out.extend(missing.map(|path| format!("{} is not there", shown(path))));
    out
}

impl Object {
    fn equals(&self, want: &Self, times: Times) -> bool {
        // A field that is added and forgotten here still counts.
        times.equal(self.mtime, want.mtime) && Self { mtime: want.mtime, ..self.clone() } == *want
    }

    /// What of it is not as wanted.
    fn differs(&self, want: &Self, times: Times) -> String {
        let mut out = Vec::new();
        let mut check = |what: &str, have: &dyn Debug, wanted: &dyn Debug, same: bool| {
            if !same {
                out.push(format!("{what} is {have:?}, not {wanted:?}"));
            }
        };
        check("mode (octal)", &Octal(self.mode), &Octal(want.mode), self.mode == want.mode);
        check("owner", &self.owner, &want.owner, self.owner == want.owner);
        check("size", &self.size, &want.size, self.size == want.size);
        check("device", &self.device, &want.device, self.device == want.device);
        check("group", &self.group, &want.group, self.group == want.group);
        check("mtime", &self.mtime, &want.mtime, times.equal(self.mtime, want.mtime));
        let (inner, wanted) = (&self.inner, &want.inner);
        check("target", &inner.target, &wanted.target, inner.target == wanted.target);
        check("xattrs", &inner.attributes(), &wanted.attributes(), inner.xattrs == wanted.xattrs);
        if inner.content != wanted.content {
            let [have, want] =
                [inner, wanted].map(|inner| inner.content.as_ref().map(|c| c.bytes.as_slice()));
            out.push(format!("content: {}", content(have, want)));
        }
        out.join("; ")
    }
}

impl Inner {
    /// Names, lengths and the first bytes of its attributes.
    fn attributes(&self) -> Vec<String> {
        let show = |(name, value): (&Vec<u8>, &Vec<u8>)| {
            let first: Vec<_> = value.iter().take(4).collect();
            format!("{}={}:{first:?}", String::from_utf8_lossy(name), value.len())
        };
        self.xattrs.iter().map(show).collect()
    }
}

struct Octal(u32);

impl Debug for Octal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:o}", self.0)
    }
}

/// Where two contents differ.
fn content(have: Option<&[u8]>, want: Option<&[u8]>) -> String {
    let (Some(have), Some(want)) = (have, want) else { return "of one only".to_owned() };
    let pairs = || have.iter().zip(want).enumerate().filter(|(_, (a, b))| a != b);
    let count = pairs().count();
    match (pairs().next(), pairs().next_back()) {
        (Some((first, (a, b))), Some((last, _))) => {
            format!("{count} bytes in {first}..={last} differ, the first is {a}, not {b}")
        }
        _ => "one is longer".to_owned(),
    }
}
