//! An independent comparison of two trees (I4): shares no code with the resync.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

#[derive(Debug, PartialEq, Eq)]
pub struct Object {
    kind: String,
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: (i64, i64),
    size: u64,
    rdev: u64,
    flags: u32,
    /// First path (in order) that names the same inode.
    group: PathBuf,
    target: Option<PathBuf>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    digest: Option<String>,
    data: Vec<(u64, u64)>,
}

impl Object {
    /// Forgets what file systems of different types need not have alike.
    pub fn only_what_all_have(&mut self) {
        self.xattrs.retain(|name, _| !name.starts_with(b"btrfs."));
        self.data = Vec::new();
        self.flags = 0;
    }
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let c = CString::new(path.as_os_str().as_bytes()).unwrap();
    let mut list = vec![0u8; 1 << 16];
    let n = unsafe { libc::llistxattr(c.as_ptr(), list.as_mut_ptr().cast(), list.len()) };
    let mut out = BTreeMap::new();
    for name in list[..n.max(0) as usize].split(|b| *b == 0).filter(|n| !n.is_empty()) {
        if name.starts_with(b"trusted.skc.") {
            continue;
        }
        let cname = CString::new(name).unwrap();
        let mut value = vec![0u8; 1 << 16];
        let n =
            unsafe { libc::lgetxattr(c.as_ptr(), cname.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
        assert!(n >= 0, "xattr {}", String::from_utf8_lossy(name));
        value.truncate(n as usize);
        out.insert(name.to_vec(), value);
    }
    out
}

/// chattr's flags, those that are about the layout left out.
fn flags(path: &Path) -> u32 {
    let Ok(file) = fs::File::open(path) else { return 0 };
    let mut flags: libc::c_long = 0;
    match unsafe { libc::ioctl(file.as_raw_fd(), libc::FS_IOC_GETFLAGS, &raw mut flags) } {
        0 => flags as u32 & 0x83_04ff,
        _ => 0,
    }
}

fn data_map(file: &fs::File, size: u64) -> Vec<(u64, u64)> {
    let (mut at, mut out) = (0, Vec::new());
    while at < size as i64 {
        let start = unsafe { libc::lseek(file.as_raw_fd(), at, libc::SEEK_DATA) };
        if start < 0 {
            break;
        }
        let end = unsafe { libc::lseek(file.as_raw_fd(), start, libc::SEEK_HOLE) };
        out.push((start as u64, end as u64));
        at = end;
    }
    out
}

pub fn scan(root: &Path) -> BTreeMap<PathBuf, Object> {
    let mut out = BTreeMap::new();
    let mut groups: BTreeMap<(u64, u64), PathBuf> = BTreeMap::new();
    walk(root, Path::new(""), &mut out, &mut groups);
    out
}

fn walk(
    root: &Path,
    rel: &Path,
    out: &mut BTreeMap<PathBuf, Object>,
    groups: &mut BTreeMap<(u64, u64), PathBuf>,
) {
    let full = root.join(rel);
    let m = fs::symlink_metadata(&full).unwrap();
    let t = m.file_type();
    let kind = match () {
        () if t.is_dir() => "dir",
        () if t.is_symlink() => "symlink",
        () if t.is_fifo() => "fifo",
        () if t.is_socket() => "socket",
        () if t.is_char_device() => "char",
        () if t.is_block_device() => "block",
        () => "file",
    };
    let (mut digest, mut data) = (None, Vec::new());
    if t.is_file() {
        let file = fs::File::open(&full).unwrap();
        // Delayed allocation would show data where a hole will be.
        file.sync_all().unwrap();
        // So would a page that was read from a preallocated block, as long as it is cached.
        let dropped = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
        assert_eq!(dropped, 0);
        data = data_map(&file, m.len());
        digest = Some(blake3::hash(&fs::read(&full).unwrap()).to_string());
    }
    let group = if t.is_dir() {
        rel.to_path_buf()
    } else {
        groups.entry((m.dev(), m.ino())).or_insert_with(|| rel.to_path_buf()).clone()
    };
    out.insert(
        rel.to_path_buf(),
        Object {
            kind: kind.into(),
            mode: m.mode(),
            uid: m.uid(),
            gid: m.gid(),
            mtime: (m.mtime(), m.mtime_nsec()),
            size: if t.is_dir() { 0 } else { m.len() },
            rdev: m.rdev(),
            flags: if t.is_file() || t.is_dir() { flags(&full) } else { 0 },
            group,
            target: t.is_symlink().then(|| fs::read_link(&full).unwrap()),
            xattrs: xattrs(&full),
            digest,
            data,
        },
    );
    if t.is_dir() {
        let mut names: Vec<_> = fs::read_dir(&full).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        for name in names {
            if rel == Path::new("") && name == ".skc" {
                continue;
            }
            let name = std::ffi::OsString::from_vec(name.into_vec());
            walk(root, &rel.join(name), out, groups);
        }
    }
}

pub fn differences(a: &Path, b: &Path) -> Vec<String> {
    let (a, b) = (scan(a), scan(b));
    let mut out = Vec::new();
    for (path, one) in &a {
        match b.get(path) {
            None => out.push(format!("{} is missing on the target: {one:?}", path.display())),
            Some(two) if one != two => out.push(format!("{} differs:\n  {one:?}\n  {two:?}", path.display())),
            Some(_) => {}
        }
    }
    out.extend(
        b.keys().filter(|p| !a.contains_key(*p)).map(|p| format!("{} is only on the target", p.display())),
    );
    out
}

pub fn assert_equal(a: &Path, b: &Path) {
    let found = differences(a, b);
    assert!(found.is_empty(), "{} differences:\n{}", found.len(), found[..found.len().min(10)].join("\n"));
}
