//! Are two trees equal? The judge of invariant I4: names, types, modes, owners, mtimes (ns), sizes,
//! bytes, link groups, targets, device numbers, extended attributes, ACLs, inode flags, holes.
//!
//! An independent reader: plain `std::fs` on the backing directories, nothing shared with
//! replication. Inode flags, and attributes of other namespaces than the common ones, are compared where both
//! trees are on file systems of one type: each type has its own. Left out by definition: `.skc` in the root, `trusted.skc.*` attributes, ctime,
//! btime, inode and device numbers of the file systems. The trees must be at rest.

use crate::sys::inspect;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// How many differences are spelled out.
const SHOWN: usize = 20;
/// Directory of ours in the root of a mirrored directory.
const HIDDEN: &str = ".skc";
/// Prefix of attributes of ours.
const HIDDEN_XATTR: &[u8] = b"trusted.skc.";
/// Inode flags that travel: s u c S i a d A, no compression, D T C.
const FLAGS: u32 = 0x83_04ff;

/// Result of a comparison.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Comparison {
    /// Objects that were compared.
    pub objects: u64,
    /// Bytes of file content that were compared.
    pub bytes: u64,
    /// Number of differences.
    pub differences: u64,
    /// The first of them, in words.
    pub examples: Vec<String>,
}

impl Comparison {
    /// No difference at all.
    pub fn equal(&self) -> bool {
        self.differences == 0
    }

    fn add(&mut self, path: &Path, what: impl FnOnce() -> String) {
        self.differences += 1;
        if self.examples.len() < SHOWN {
            self.examples.push(format!("{}: {}", path.display(), what()));
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Object {
    kind: &'static str,
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, i64),
    size: u64,
    device: u64,
    flags: u32,
    target: Option<PathBuf>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// First path of the same inode and how many there are in the tree.
    group: (PathBuf, u64),
    content: Option<[u8; 32]>,
    data: Vec<(u64, u64)>,
}

/// Compares the trees at `left` and `right`.
pub fn trees(left: &Path, right: &Path) -> io::Result<Comparison> {
    mirrored(left, right, &|_, _| true)
}

/// Compares what of the trees at `left` and `right` is mirrored: `is_mirrored` is asked with the path below the
/// root of each object in a mirrored directory, and whether it is a directory.
pub fn mirrored(
    left: &Path,
    right: &Path,
    is_mirrored: &dyn Fn(&Path, bool) -> bool,
) -> io::Result<Comparison> {
    let block = fs::metadata(left)?.blksize().max(fs::metadata(right)?.blksize()).max(1);
    let of_type = |path: &Path| -> io::Result<i64> {
        let stat = crate::sys::file::stat_fs(File::open(path)?.as_fd());
        Ok(stat.map_err(|e| io::Error::from_raw_os_error(e.0))?.kind)
    };
    let flags = if of_type(left)? == of_type(right)? { FLAGS } else { 0 };
    let (a, b) = (read(left, block, flags, is_mirrored)?, read(right, block, flags, is_mirrored)?);
    let mut result = Comparison::default();
    for (path, one) in &a {
        result.objects += 1;
        result.bytes += one.size;
        match b.get(path) {
            None => result.add(path, || format!("only in {}", left.display())),
            Some(other) => differences(path, one, other, &mut result),
        }
    }
    for path in b.keys().filter(|path| !a.contains_key(*path)) {
        result.objects += 1;
        result.add(path, || format!("only in {}", right.display()));
    }
    Ok(result)
}

fn differences(path: &Path, a: &Object, b: &Object, result: &mut Comparison) {
    let mut check = |same: bool, what: &dyn Fn() -> String| {
        if !same {
            result.add(path, what);
        }
    };
    check(a.kind == b.kind, &|| format!("type {} / {}", a.kind, b.kind));
    check(a.mode == b.mode, &|| format!("mode {:o} / {:o}", a.mode, b.mode));
    check(a.owner == b.owner, &|| format!("owner {:?} / {:?}", a.owner, b.owner));
    check(a.mtime == b.mtime, &|| format!("mtime {:?} / {:?}", a.mtime, b.mtime));
    check(a.size == b.size, &|| format!("size {} / {}", a.size, b.size));
    check(a.device == b.device, &|| format!("device number {} / {}", a.device, b.device));
    check(a.flags == b.flags, &|| format!("inode flags {:#x} / {:#x}", a.flags, b.flags));
    check(a.target == b.target, &|| format!("target {:?} / {:?}", a.target, b.target));
    check(a.xattrs == b.xattrs, &|| format!("extended attributes {} / {}", names(a), names(b)));
    check(a.group == b.group, &|| format!("links {:?} / {:?}", a.group, b.group));
    check(a.content == b.content, &|| "content".to_owned());
    check(a.content != b.content || a.data == b.data, &|| {
        format!("holes: data at {:?} / {:?}", a.data, b.data)
    });
}

fn names(object: &Object) -> String {
    let show =
        |(name, value): (&Vec<u8>, &Vec<u8>)| format!("{}={}B", String::from_utf8_lossy(name), value.len());
    format!("[{}]", object.xattrs.iter().map(show).collect::<Vec<_>>().join(" "))
}

fn read(
    root: &Path,
    block: u64,
    flags: u32,
    is_mirrored: &dyn Fn(&Path, bool) -> bool,
) -> io::Result<BTreeMap<PathBuf, Object>> {
    let mut objects = BTreeMap::new();
    let mut inodes = BTreeMap::<u64, Vec<PathBuf>>::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(relative) = todo.pop() {
        let path = if relative.as_os_str().is_empty() { root.to_owned() } else { root.join(&relative) };
        let meta = fs::symlink_metadata(&path).map_err(|e| named(&path, &e))?;
        if !relative.as_os_str().is_empty() && !is_mirrored(&relative, meta.is_dir()) {
            continue;
        }
        if meta.is_dir() {
            for entry in fs::read_dir(&path).map_err(|e| named(&path, &e))? {
                let name = entry.map_err(|e| named(&path, &e))?.file_name();
                if !(relative.as_os_str().is_empty() && name == HIDDEN) {
                    todo.push(relative.join(name));
                }
            }
        } else {
            inodes.entry(meta.ino()).or_default().push(relative.clone());
        }
        let object = object(&path, &meta, block, flags).map_err(|e| named(&path, &e))?;
        objects.insert(relative, object);
    }
    for mut paths in inodes.into_values() {
        paths.sort();
        let count = paths.len() as u64;
        let first = paths.first().cloned().unwrap_or_default();
        for path in paths {
            if let Some(object) = objects.get_mut(&path) {
                object.group = (first.clone(), count);
            }
        }
    }
    Ok(objects)
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn object(path: &Path, meta: &fs::Metadata, block: u64, flags: u32) -> io::Result<Object> {
    let kind = meta.file_type();
    let file = if kind.is_file() { Some(File::open(path)?) } else { None };
    let dir = if kind.is_dir() && flags != 0 { Some(File::open(path)?) } else { None };
    let own_flags = file.as_ref().or(dir.as_ref()).filter(|_| flags != 0).map(inspect::inode_flags);
    let is_device = kind.is_block_device() || kind.is_char_device();
    let mut xattrs = inspect::xattrs(path)?;
    let common: [&[u8]; 4] = [b"user.", b"trusted.", b"security.", b"system."];
    let is_common = |name: &[u8]| common.iter().any(|prefix| name.starts_with(prefix));
    xattrs.retain(|name, _| !name.starts_with(HIDDEN_XATTR) && (flags != 0 || is_common(name)));
    Ok(Object {
        kind: match kind {
            k if k.is_file() => "file",
            k if k.is_dir() => "directory",
            k if k.is_symlink() => "symbolic link",
            k if k.is_fifo() => "FIFO",
            k if k.is_socket() => "socket",
            k if k.is_block_device() => "block device",
            k if k.is_char_device() => "character device",
            _ => "unknown",
        },
        mode: meta.mode() & 0o7777,
        owner: (meta.uid(), meta.gid()),
        mtime: (meta.mtime(), meta.mtime_nsec()),
        // A directory's size is its file system's own affair.
        size: if kind.is_dir() { 0 } else { meta.size() },
        device: if is_device { meta.rdev() } else { 0 },
        flags: own_flags.transpose()?.unwrap_or(0) & flags,
        target: if kind.is_symlink() { Some(fs::read_link(path)?) } else { None },
        xattrs,
        group: (PathBuf::new(), 0),
        content: file.as_ref().map(hash).transpose()?,
        data: file.as_ref().map(|file| data(file, meta.size(), block)).transpose()?.unwrap_or_default(),
    })
}

fn hash(file: &File) -> io::Result<[u8; 32]> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 256 * 1024];
    let mut reader = file;
    loop {
        let length = reader.read(&mut buffer)?;
        if length == 0 {
            return Ok(*hasher.finalize().as_bytes());
        }
        hasher.update(buffer.get(..length).unwrap_or_default());
    }
}

/// Data ranges in whole blocks, joined where they touch. Flushed first: only then do they mean anything.
fn data(file: &File, size: u64, block: u64) -> io::Result<Vec<(u64, u64)>> {
    if size == 0 {
        return Ok(Vec::new());
    }
    file.sync_data()?;
    // A page that was read from a preallocated block counts as data for as long as it is cached.
    crate::sys::file::drop_cache(file.as_fd(), 0, 0).map_err(|e| io::Error::from_raw_os_error(e.0))?;
    let mut out = Vec::<(u64, u64)>::new();
    for (begin, end) in inspect::data_ranges(file)? {
        let (begin, end) = (begin / block * block, end.min(size).next_multiple_of(block));
        match out.last_mut() {
            Some(last) if begin <= last.1 => last.1 = last.1.max(end),
            _ => out.push((begin, end)),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
    use std::time::{Duration, SystemTime};

    fn build(dir: &Path) {
        let time = SystemTime::UNIX_EPOCH + Duration::from_nanos(1_700_000_000_123_456_789);
        let set_time = |path: &Path| File::open(path).unwrap().set_modified(time).unwrap();
        fs::create_dir_all(dir.join("d/e")).unwrap();
        fs::write(dir.join("d/f"), b"hello").unwrap();
        fs::hard_link(dir.join("d/f"), dir.join("g")).unwrap();
        let sparse = File::create(dir.join("sparse")).unwrap();
        sparse.write_all_at(&[1; 4096], 1 << 20).unwrap();
        fs::create_dir_all(dir.join(HIDDEN)).unwrap();
        for path in ["d/f", "sparse", "d/e", "d", ""] {
            set_time(&dir.join(path));
        }
    }

    #[test]
    fn every_kind_of_difference_is_found() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        build(a.path());
        build(b.path());
        fs::write(a.path().join(".skc/ours"), b"x").unwrap();
        let same = trees(a.path(), b.path()).unwrap();
        assert!(same.equal(), "{same:?}");
        let time = fs::metadata(b.path().join("d/f")).unwrap().modified().unwrap();
        let touch = |path: &str, time| File::open(b.path().join(path)).unwrap().set_modified(time).unwrap();

        fs::write(b.path().join("d/f"), b"hellO").unwrap();
        touch("d/f", time);
        let dumped = File::open(b.path().join("d/e")).unwrap();
        let flagged = crate::sys::file::flags::set_flags(dumped.as_fd(), 0x40).is_ok();
        fs::set_permissions(b.path().join("d/e"), fs::Permissions::from_mode(0o700)).unwrap();
        touch("d/e", time + Duration::from_nanos(1));
        let found = trees(a.path(), b.path()).unwrap().examples.join("\n");
        for what in ["d/f: content", "g: content", "d/e: mode", "d/e: mtime"] {
            assert!(found.contains(what), "{what} in {found}");
        }
        assert_eq!(found.contains("d/e: inode flags"), flagged, "{found}");

        fs::remove_file(b.path().join("g")).unwrap();
        symlink("nowhere", b.path().join("new")).unwrap();
        let full = vec![0_u8; (1 << 20) + 4096];
        fs::write(b.path().join("sparse"), &full).unwrap();
        File::options()
            .write(true)
            .open(b.path().join("sparse"))
            .unwrap()
            .write_all_at(&[1; 4096], 1 << 20)
            .unwrap();
        let found = trees(a.path(), b.path()).unwrap().examples.join("\n");
        for what in ["g: only in", "new: only in", "d/f: links", "sparse: holes"] {
            assert!(found.contains(what), "{what} in {found}");
        }
    }
}
