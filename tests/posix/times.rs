//! After every kind of change, at rest: the modification time to the nanosecond is the same on the mount, in the
//! backing directory and on the standby. And what a write takes away is gone on the standby, too.

use super::mapping::{Aligned, Mapping, PAGE};
use super::standby::Standby;
use super::support::{Mounted, isolated};
use skc::fuse::Options;
use skc::sys::backing::Backing;
use skc::sys::file::{self, SetTime};
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

/// A mount whose stream is applied to a second directory at once.
fn mirrored() -> (Mounted, tempfile::TempDir, PathBuf) {
    let other = tempfile::tempdir().expect("temporary directory");
    let mirror = other.path().join("mirror");
    std::fs::create_dir(&mirror).expect("mkdir");
    let standby = Backing::open(&mirror).expect("open");
    let m = Mounted::with(|tree| Arc::new(Standby::new(tree, standby)), Options::default());
    (m, other, mirror)
}

fn mtime(path: &Path) -> (i64, i64) {
    let meta = path.symlink_metadata().unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    (meta.mtime(), meta.mtime_nsec())
}

#[test]
fn the_modification_time_is_the_same_everywhere_after_every_kind_of_change() {
    isolated(|| {
        let (m, _other, mirror) = mirrored();
        let path = m.path("f");
        let open = || File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let file = open().expect("open");
        file.set_len(1 << 20).expect("truncate");
        let top = File::open(&m.dir).expect("open");
        let same = |what: &str| {
            for name in [".", "f", "copy", "named", "d", "d/l"] {
                let join = |root: &Path| root.join(name);
                if join(&m.below()).symlink_metadata().is_err() {
                    continue;
                }
                let seen = [mtime(&join(&m.dir)), mtime(&join(&m.below())), mtime(&join(&mirror))];
                assert_eq!(seen, [seen[0]; 3], "after {what}: {name:?}");
            }
        };
        same("create and truncate");
        file.write_all_at(b"hello", 5).expect("write");
        same("a write");
        let mut mapping = Mapping::new(file.as_fd(), 1 << 20);
        mapping.write(70_000, b"mapped");
        mapping.sync().expect("msync");
        same("msync");
        mapping.write(80_000, b"mapped and left to the kernel");
        drop(mapping);
        file.sync_all().expect("fsync");
        same("munmap and fsync");
        let direct = File::options().write(true).custom_flags(libc::O_DIRECT).open(&path).expect("O_DIRECT");
        let mut page = Aligned::new(PAGE);
        page.fill(7);
        direct.write_all_at(&page, 8192).expect("direct write");
        same("O_DIRECT");
        let dsync = File::options().write(true).custom_flags(libc::O_DSYNC).open(&path).expect("O_DSYNC");
        dsync.write_all_at(b"x", 0).expect("synchronous write");
        same("O_DSYNC");
        let copy = File::create_new(m.path("copy")).expect("create");
        assert!(file::copy_range(file.as_fd(), 0, copy.as_fd(), 100, 100_000).expect("copy") > 0);
        same("copy_file_range");
        // Allocate, keep size, punch, zero, collapse, insert.
        for mode in [0u32, 1, 3, 16, 8, 32] {
            match file::fallocate(file.as_fd(), mode, 64 << 10, 64 << 10) {
                Ok(()) => same(&format!("fallocate mode {mode}")),
                Err(errno) => assert_eq!(errno.0, libc::EOPNOTSUPP, "fallocate mode {mode}"),
            }
        }
        file.set_len(12_345).expect("truncate");
        same("ftruncate");
        drop(File::options().write(true).truncate(true).open(m.path("copy")).expect("O_TRUNC"));
        same("O_TRUNC");
        file::set_times(file.as_fd(), SetTime::At((5, 6)), SetTime::At((7, 999_999_999))).expect("utimensat");
        same("utimensat");
        file::set_times(file.as_fd(), SetTime::Omit, SetTime::Now).expect("utimensat");
        same("utimensat now");
        let tmp = file::open_tmpfile(top.as_fd(), 0o640, false).expect("O_TMPFILE");
        file::pwrite(tmp.as_fd(), b"tmp", 0).expect("write");
        file::link_at(tmp.as_fd(), top.as_fd(), b"named").expect("link");
        same("O_TMPFILE and linkat");
        std::fs::create_dir(m.path("d")).expect("mkdir");
        std::fs::hard_link(&path, m.path("d/l")).expect("link");
        same("mkdir and link");
        std::fs::rename(m.path("copy"), m.path("d/c")).expect("rename");
        std::fs::rename(m.path("d/c"), m.path("named")).expect("rename over");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).expect("chmod");
        file::set_xattr(top.as_fd(), b"user.a", b"b", 0).expect("setxattr");
        std::os::unix::fs::symlink("f", m.path("s")).expect("symlink");
        std::fs::remove_file(m.path("s")).expect("unlink");
        same("names and attributes");
        let before = mtime(&m.below().join("f"));
        std::fs::read(&path).expect("read");
        assert_eq!(mtime(&path), before);
    });
}

#[test]
fn what_another_s_write_takes_away_is_gone_on_the_standby_too() {
    isolated(|| {
        let (m, _other, mirror) = mirrored();
        for dir in [m.scratch(), &m.dir] {
            std::fs::set_permissions(dir, PermissionsExt::from_mode(0o777)).expect("chmod");
        }
        let f = m.path("f");
        // struct vfs_cap_data, revision 2: CAP_NET_RAW permitted
        let caps = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        for script in ["printf x >> F", "truncate -s 3 F", "printf y | dd of=F conv=notrunc bs=1 2>/dev/null"]
        {
            std::fs::write(&f, b"0123456789").expect("write");
            chown(&f, Some(1000), Some(1000)).expect("chown");
            std::fs::set_permissions(&f, PermissionsExt::from_mode(0o6777)).expect("chmod");
            let fd = File::open(&f).expect("open");
            file::set_xattr(fd.as_fd(), b"security.capability", &caps, 0).expect("capability");
            let on_standby = || {
                let file = File::open(mirror.join("f")).expect("open");
                let caps = file::fd_get_xattr(file.as_fd(), b"security.capability").is_ok();
                (file.metadata().expect("stat").mode() & 0o7777, caps)
            };
            assert_eq!(on_standby(), (0o6777, true));
            let script = script.replace('F', &f.display().to_string());
            let status = Command::new("sh").args(["-c", &script]).uid(1001).gid(1001).status();
            assert!(status.expect("sh").success());
            assert_eq!(on_standby(), (0o777, false), "{script}");
        }
    });
}

#[test]
fn names_of_any_bytes_and_paths_longer_than_any_call_takes_are_mirrored() {
    isolated(|| {
        let (m, _other, mirror) = mirrored();
        let top = File::open(&m.dir).expect("open");
        // Every byte a name may hold, the longest name, and what other systems would mangle.
        let all: Vec<u8> = (1..=255).filter(|b| *b != b'/').collect();
        let names =
            [all, vec![b'x'; 255], b"\xff\xfe\n\t\\ ".to_vec(), "caf\u{e9}/".replace('/', "").into_bytes()];
        for name in &names {
            drop(file::open_at(top.as_fd(), name, libc::O_CREAT | libc::O_RDWR, 0o600).expect("create"));
        }
        let too_long = file::open_at(top.as_fd(), &[b'x'; 256], libc::O_CREAT | libc::O_RDWR, 0o600);
        assert_eq!(too_long.err().map(|e| e.0), Some(libc::ENAMETOOLONG));
        let listed = |dir: &Path| {
            use std::os::unix::ffi::OsStringExt;
            let names = std::fs::read_dir(dir).expect("readdir").flatten();
            let mut names: Vec<_> = names.map(|e| e.file_name().into_vec()).collect();
            names.sort_unstable();
            names
        };
        assert_eq!(listed(&m.dir).len(), names.len());
        assert_eq!(listed(&m.dir), listed(&mirror));
        // 40 levels of 200 bytes: twice PATH_MAX.
        let step = [b'd'; 200];
        let down = |from: &Path, make: bool| {
            let mut at: std::os::fd::OwnedFd = File::open(from).expect("open").into();
            for _ in 0..40 {
                if make {
                    file::make_dir(at.as_fd(), &step, 0o755).expect("mkdir");
                }
                at = file::open_at(at.as_fd(), &step, libc::O_RDONLY | libc::O_DIRECTORY, 0).expect("open");
            }
            at
        };
        let deep = down(&m.dir, true);
        let fd = file::open_at(deep.as_fd(), b"f", libc::O_CREAT | libc::O_RDWR, 0o600).expect("create");
        file::pwrite(fd.as_fd(), b"deep", 0).expect("write");
        file::rename(deep.as_fd(), b"f", top.as_fd(), b"up", 0).expect("rename to the top");
        file::rename(top.as_fd(), b"up", deep.as_fd(), b"g", 0).expect("and down again");
        file::rename(top.as_fd(), &step, top.as_fd(), b"D", 0).expect("rename of the first level");
        file::pwrite(fd.as_fd(), b"!", 4).expect("write");
        file::rename(top.as_fd(), b"D", top.as_fd(), &step, 0).expect("and back");
        let deep = down(&mirror, false);
        let there = file::open_at(deep.as_fd(), b"g", libc::O_RDONLY, 0).expect("open on the standby");
        let mut text = [0; 8];
        assert_eq!(file::pread(there.as_fd(), &mut text, 0), Ok(5));
        assert_eq!(&text[..5], b"deep!");
        // std removes by path, which is too long here.
        let status = Command::new("rm").args(["-rf", "--"]).arg(m.path(&"d".repeat(200))).status();
        assert!(status.expect("rm").success());
        assert_eq!(listed(&m.dir), listed(&mirror), "removed on the standby as well");
    });
}
