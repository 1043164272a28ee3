//! What is mounted where, from `/proc/self/mountinfo`: never by touching the mount, which could hang.

use crate::ports::Errno;
use crate::sys::{errno, file, mount};
use std::ffi::OsString;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

/// The file system type of our mounts.
pub const FS_TYPE: &str = "fuse.skc";

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    /// Number of the mount.
    pub id: u32,
    /// Number of the mount it lies on.
    pub parent: u32,
    /// Device (major, minor); the minor number of a FUSE mount is its connection's number.
    pub dev: (u32, u32),
    /// Mount point.
    pub path: PathBuf,
    /// File system type.
    pub fs_type: String,
}

/// Octal escapes (`\040`) of the kernel.
fn unescape(field: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let digits = tail.get(..3).filter(|d| first == b'\\' && d.iter().all(|b| (b'0'..b'8').contains(b)));
        if let Some(d) = digits {
            out.push(d.iter().fold(0u8, |n, b| n.wrapping_mul(8).wrapping_add(b - b'0')));
            rest = &tail[3..];
        } else {
            out.push(first);
            rest = tail;
        }
    }
    PathBuf::from(OsString::from_vec(out))
}

fn line(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|b| *b == b' ');
    let mut number = || std::str::from_utf8(fields.next()?).ok()?.parse().ok();
    let (id, parent) = (number()?, number()?);
    let dev = std::str::from_utf8(fields.next()?).ok()?;
    let (major, minor) = dev.split_once(':')?;
    let path = unescape(fields.nth(1)?);
    let mut fields = fields.skip_while(|f| *f != b"-").skip(1);
    let fs_type = String::from_utf8_lossy(fields.next()?).into_owned();
    Some(MountEntry { id, parent, dev: (major.parse().ok()?, minor.parse().ok()?), path, fs_type })
}

/// Parses the file's content; lines that make no sense are left out.
pub fn parse(text: &[u8]) -> Vec<MountEntry> {
    text.split(|b| *b == b'\n').filter_map(line).collect()
}

/// All mounts of this thread's namespace, in the order they were made.
pub fn read() -> Result<Vec<MountEntry>, Errno> {
    // Not /proc/self: a thread may be in a namespace of its own.
    let text = std::fs::read("/proc/thread-self/mountinfo").map_err(|e| errno::of(&e))?;
    Ok(parse(&text))
}

/// The topmost mount exactly at `path`.
pub fn at<'a>(mounts: &'a [MountEntry], path: &Path) -> Option<&'a MountEntry> {
    mounts.iter().rev().find(|m| m.path == path)
}

/// The mount that `path` lies in.
pub fn covering<'a>(mounts: &'a [MountEntry], path: &Path) -> Option<&'a MountEntry> {
    path.ancestors().find_map(|p| at(mounts, p))
}

/// What is mounted below `path` on the mount number `on`, directly or on one that is. What another mount over
/// `path` hides already is not meant.
pub fn below<'a>(mounts: &'a [MountEntry], path: &Path, on: u32) -> Vec<&'a Path> {
    let mut reached = vec![on];
    let mut found = Vec::new();
    // A mount comes after the one it lies on.
    for m in mounts {
        if m.path != path && m.path.starts_with(path) && reached.contains(&m.parent) {
            reached.push(m.id);
            found.push(m.path.as_path());
        }
    }
    found
}

/// What stands in the way of mounting.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PrepareError {
    /// The path's parent cannot be resolved.
    #[error("{path}: errno {}", errno.0)]
    Path {
        /// As given.
        path: PathBuf,
        /// Why.
        errno: Errno,
    },
    /// mountinfo cannot be read.
    #[error("reading mountinfo failed with errno {}", .0.0)]
    MountInfo(Errno),
    /// A live mirror is mounted there already.
    #[error("{0} is already mounted by a running skc")]
    AlreadyMounted(PathBuf),
    /// The directory is on another FUSE file system.
    #[error("{path} is on a {fs_type} file system; skc does not mirror a FUSE file system")]
    OtherFuse {
        /// The directory.
        path: PathBuf,
        /// Its type.
        fs_type: String,
    },
    /// Something is mounted below the directory; the mirror would hide it, and what is in it is no part of it.
    #[error(
        "{below} is a mount point; skc mirrors one file system and would hide it: unmount it, or mirror it by itself"
    )]
    MountedBelow {
        /// The first of them.
        below: PathBuf,
    },
    /// A dead mount of ours could not be detached.
    #[error("detaching the dead mount at {path} failed with errno {}", errno.0)]
    Detach {
        /// Where.
        path: PathBuf,
        /// Why.
        errno: Errno,
    },
}

/// Longest wait for a mount to say whether it lives: a live one answers in microseconds, a frozen one
/// does not and counts as live.
const PROBE: Duration = Duration::from_secs(1);

/// Is the FUSE mount at `path` (not served by this process) without a daemon?
fn is_dead(path: &Path) -> bool {
    let (tx, rx) = mpsc::channel();
    let path = path.to_path_buf();
    // statfs is never answered from a cache. It may hang, hence the thread.
    let probe = std::thread::Builder::new().name("mount-probe".into()).spawn(move || {
        let opened = std::fs::File::options().read(true).custom_flags(libc::O_PATH).open(&path);
        let answer = opened.map_err(|e| errno::of(&e)).and_then(|f| file::stat_fs(f.as_fd()));
        // Nobody listens after the deadline.
        let _ = tx.send(answer);
    });
    let dead = |e: Errno| matches!(e.0, libc::ENOTCONN | libc::ECONNABORTED);
    probe.is_ok() && matches!(rx.recv_timeout(PROBE), Ok(Err(e)) if dead(e))
}

/// Absolute path of `path` without touching what may be mounted on it: only its parent is resolved.
pub fn resolve(path: &Path) -> Result<PathBuf, PrepareError> {
    let fail = |e: &std::io::Error| PrepareError::Path { path: path.into(), errno: errno::of(e) };
    let absolute = std::path::absolute(path).map_err(|e| fail(&e))?;
    match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) => Ok(parent.canonicalize().map_err(|e| fail(&e))?.join(name)),
        _ => Err(PrepareError::Path { path: path.into(), errno: Errno(libc::EINVAL) }),
    }
}

/// To be called before the directory is opened: detaches dead mirrors, refuses to stack on live ones and
/// on other FUSE file systems. Returns the resolved path.
pub fn prepare(path: &Path) -> Result<PathBuf, PrepareError> {
    let path = resolve(path)?;
    loop {
        let mounts = read().map_err(PrepareError::MountInfo)?;
        let Some(top) = covering(&mounts, &path) else { return Ok(path) };
        // Also on a dead mirror: detaching it would take them along.
        let nothing_below = || match below(&mounts, &path, top.id).first() {
            Some(first) => Err(PrepareError::MountedBelow { below: first.to_path_buf() }),
            None => Ok(()),
        };
        if top.fs_type == FS_TYPE && top.path == path {
            if !is_dead(&path) {
                return Err(PrepareError::AlreadyMounted(path));
            }
            nothing_below()?;
            tracing::warn!(path = %path.display(), "detaching a dead mount of an earlier skc");
            mount::unmount(&path, mount::Unmount::Detach)
                .map_err(|errno| PrepareError::Detach { path: path.clone(), errno })?;
        } else if top.fs_type == "fuse" || top.fs_type.starts_with("fuse.") {
            return Err(PrepareError::OtherFuse { path, fs_type: top.fs_type.clone() });
        } else {
            nothing_below()?;
            return Ok(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &[u8] = b"\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
40 22 0:36 / /srv/my\\040data rw,relatime shared:2 master:1 - fuse.skc skc rw,user_id=0
garbage
41 22 254:0 /srv/other /srv/other rw - ext4 /dev/vda rw
42 41 0:37 / /srv/other rw - fuse.sshfs host: rw
";

    #[test]
    fn escapes_optional_fields_and_garbage_are_understood() {
        let mounts = parse(SAMPLE);
        assert_eq!(mounts.len(), 4);
        let mine = at(&mounts, Path::new("/srv/my data")).expect("found");
        assert_eq!((mine.dev, mine.fs_type.as_str()), ((0, 36), FS_TYPE));
        assert_eq!(at(&mounts, Path::new("/srv/other")).map(|m| m.dev), Some((0, 37)));
        assert_eq!(covering(&mounts, Path::new("/srv/other/x/y")).map(|m| m.dev), Some((0, 37)));
        assert_eq!(covering(&mounts, Path::new("/srv/none")).map(|m| m.dev), Some((254, 0)));
        assert_eq!(unescape(b"a\\134b\\0"), PathBuf::from("a\\b\\0"));
    }

    #[test]
    fn what_lies_below_is_found_unless_it_is_hidden_already() {
        let text = b"\
1 0 254:0 / / rw - ext4 /dev/vda rw
2 1 0:40 / /srv/x/hidden rw - tmpfs t rw
3 1 0:41 / /srv/x rw - ext4 /dev/vdb rw
4 3 0:42 / /srv/x/a rw - tmpfs t rw
5 4 0:43 / /srv/x/a/b rw - tmpfs t rw
6 1 0:44 / /srv/xy rw - tmpfs t rw
";
        let mounts = parse(text);
        let found = |path: &str, on| below(&mounts, Path::new(path), on);
        assert_eq!(found("/srv/x", 3), [Path::new("/srv/x/a"), Path::new("/srv/x/a/b")]);
        assert_eq!(found("/srv/x/a", 4), [Path::new("/srv/x/a/b")]);
        assert_eq!(found("/srv/xy", 6), [] as [&Path; 0]);
    }

    #[test]
    fn a_plain_directory_is_ready() {
        let tmp = tempfile::tempdir().expect("temporary directory");
        let real = tmp.path().canonicalize().expect("canonical");
        assert_eq!(prepare(&tmp.path().join("x")), Ok(real.join("x")));
    }
}
