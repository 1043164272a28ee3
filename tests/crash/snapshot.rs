//! What a tree holds, read without any code of the replication.

use crate::op::SET_TIMES_END;
use skc::sys::inspect;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

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
    target: Option<PathBuf>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    content: Option<Vec<u8>>,
    /// The first path of the same inode, and how many there are.
    group: (PathBuf, u64),
    mtime: (i64, i64),
}

/// A tree by path.
pub type Snapshot = BTreeMap<PathBuf, Object>;

/// Reads the tree at `root`; empty if there is none.
pub fn read(root: &Path) -> io::Result<Snapshot> {
    let mut all = Snapshot::new();
    let mut inodes = BTreeMap::<u64, Vec<PathBuf>>::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(relative) = todo.pop() {
        let path = if relative.as_os_str().is_empty() { root.to_owned() } else { root.join(&relative) };
        let meta = match fs::symlink_metadata(&path) {
            Err(error) if relative.as_os_str().is_empty() && error.kind() == io::ErrorKind::NotFound => break,
            other => other?,
        };
        if meta.is_dir() {
            for entry in fs::read_dir(&path)? {
                todo.push(relative.join(entry?.file_name()));
            }
        } else {
            inodes.entry(meta.ino()).or_default().push(relative.clone());
        }
        all.insert(relative, object(&path, &meta)?);
    }
    for mut paths in inodes.into_values() {
        paths.sort();
        let group = (paths[0].clone(), paths.len() as u64);
        for path in paths {
            if let Some(object) = all.get_mut(&path) {
                object.group = group.clone();
            }
        }
    }
    Ok(all)
}

fn object(path: &Path, meta: &fs::Metadata) -> io::Result<Object> {
    let kind = meta.file_type();
    let mut xattrs = inspect::xattrs(path)?;
    xattrs.retain(|name, _| !name.starts_with(HIDDEN));
    Ok(Object {
        mode: meta.mode(),
        owner: (meta.uid(), meta.gid()),
        // A directory's size is its file system's own affair.
        size: if kind.is_dir() { 0 } else { meta.size() },
        device: meta.rdev(),
        target: if kind.is_symlink() { Some(fs::read_link(path)?) } else { None },
        xattrs,
        content: if kind.is_file() { Some(fs::read(path)?) } else { None },
        group: (PathBuf::new(), 0),
        mtime: (meta.mtime(), meta.mtime_nsec()),
    })
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

/// What differs, in words; empty = nothing.
pub fn differences(have: &Snapshot, want: &Snapshot, times: Times) -> Vec<String> {
    let mut out = Vec::new();
    let show = |path: &Path| path.as_os_str().as_bytes().escape_ascii().to_string();
    for (path, object) in have {
        match want.get(path) {
            None => out.push(format!("{} is there and should not be", show(path))),
            Some(wanted) => {
                out.extend(object.differs(wanted, times).map(|what| format!("{}: {what}", show(path))));
            }
        }
    }
    let missing = want.keys().filter(|path| !have.contains_key(*path));
    out.extend(missing.map(|path| format!("{} is not there", show(path))));
    out
}

impl Object {
    /// What of it is not as wanted.
    fn differs(&self, want: &Self, times: Times) -> Option<String> {
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
        check("target", &self.target, &want.target, self.target == want.target);
        check("group", &self.group, &want.group, self.group == want.group);
        check("mtime", &self.mtime, &want.mtime, times.equal(self.mtime, want.mtime));
        let (ours, theirs) = (self.attributes(), want.attributes());
        check("xattrs", &ours, &theirs, self.xattrs == want.xattrs);
        if self.content != want.content {
            out.push(format!("content: {}", content(self.content.as_deref(), want.content.as_deref())));
        }
        if out.is_empty() { None } else { Some(out.join("; ")) }
    }

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
