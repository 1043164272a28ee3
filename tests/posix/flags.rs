//! chattr's flags on the mount: shown, set, obeyed, as on the bare directory.

use super::support::{Mounted, eventually, isolated};
use crate::skip::{skipped, this_test};
use skc::ports::Errno;
use skc::sys::file::flags::{self, APPEND, IMMUTABLE};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

const NODUMP: u32 = 0x40;
const NOATIME: u32 = 0x80;
/// Not one of those that travel.
const JOURNAL_DATA: u32 = 0x4000;

fn set(path: &Path, on: u32, off: u32) -> Result<(), Errno> {
    let file = File::open(path).expect("open");
    let now = flags::get_flags(file.as_fd())?;
    flags::set_flags(file.as_fd(), (now | on) & !off)
}

fn get(path: &Path) -> u32 {
    flags::get_flags(File::open(path).expect("open").as_fd()).expect("flags")
}

fn errno<T>(result: std::io::Result<T>) -> Result<(), i32> {
    result.map(drop).map_err(|e| e.raw_os_error().unwrap_or(-1))
}

/// What can be done with a file `f` and a directory `d` that have `flag`, in numbers.
fn tries(dir: &Path, flag: u32) -> Vec<(&'static str, Result<(), i32>)> {
    let (f, d) = (dir.join("f"), dir.join("d"));
    std::fs::write(&f, b"0123456789").expect("write");
    std::fs::create_dir(&d).expect("mkdir");
    std::fs::write(d.join("old"), b"x").expect("write");
    let before = File::options().write(true).open(&f).expect("open");
    for path in [&f, &d] {
        set(path, flag, 0).expect("set the flag");
    }
    let append = |path: &Path| File::options().append(true).open(path).and_then(|mut f| f.write_all(b"more"));
    let out = vec![
        ("open for writing", errno(File::options().write(true).open(&f))),
        ("append", errno(append(&f))),
        ("append again", errno(append(&f))),
        ("append and truncate", errno(File::options().write(true).truncate(true).open(&f))),
        ("truncate", errno(before.set_len(3))),
        ("chmod", errno(std::fs::set_permissions(&f, std::os::unix::fs::PermissionsExt::from_mode(0o600)))),
        ("set times", errno(File::open(&f).and_then(|f| f.set_modified(std::time::SystemTime::UNIX_EPOCH)))),
        ("rename", errno(std::fs::rename(&f, dir.join("g")))),
        ("link", errno(std::fs::hard_link(&f, dir.join("g")))),
        ("unlink", errno(std::fs::remove_file(&f))),
        ("create in it", errno(File::create_new(d.join("new")))),
        ("unlink in it", errno(std::fs::remove_file(d.join("old")))),
        ("rename in it", errno(std::fs::rename(d.join("old"), d.join("older")))),
        ("rmdir", errno(std::fs::remove_dir_all(&d))),
    ];
    assert_eq!(get(&f) & (IMMUTABLE | APPEND), flag);
    for path in [&f, &d] {
        set(path, 0, flag).expect("clear the flag");
    }
    before.write_all_at(b"X", 0).expect("write through the old descriptor");
    out
}

#[test]
fn immutable_and_append_only_do_what_they_do_on_the_bare_directory() {
    isolated(|| {
        let (m, _) = Mounted::local();
        for (n, flag) in [IMMUTABLE, APPEND].into_iter().enumerate() {
            let (on, bare) = (m.path(&n.to_string()), m.scratch().join(n.to_string()));
            std::fs::create_dir(&on).expect("mkdir");
            std::fs::create_dir(&bare).expect("mkdir");
            std::fs::write(bare.join("probe"), b"").expect("write");
            if set(&bare.join("probe"), flag, 0).is_err() {
                skipped(&this_test(), "the file system of the temporary directory has no inode flags");
                return;
            }
            set(&bare.join("probe"), 0, flag).expect("clear");
            assert_eq!(tries(&on, flag), tries(&bare, flag), "flag {flag:#x}");
            let read = |dir: &Path| std::fs::read(dir.join("f")).expect("read");
            assert_eq!(read(&on), read(&bare));
        }
    });
}

#[test]
fn flags_are_shown_set_and_inherited_and_what_would_not_travel_is_refused() {
    isolated(|| {
        let (m, _) = Mounted::local();
        std::fs::create_dir(m.path("d")).expect("mkdir");
        if set(&m.path("d"), NODUMP | NOATIME, 0) == Err(Errno(libc::ENOTTY)) {
            skipped(&this_test(), "the file system of the temporary directory has no inode flags");
            return;
        }
        assert_eq!(get(&m.path("d")), get(&m.below().join("d")));
        std::fs::write(m.path("d/f"), b"x").expect("write");
        assert_eq!(get(&m.path("d/f")), get(&m.below().join("d/f")), "inherited");
        let file = File::open(m.path("d/f")).expect("open");
        let fsx = flags::get_fsx(file.as_fd()).expect("fsgetxattr");
        assert_eq!(
            fsx[..16],
            flags::get_fsx(File::open(m.below().join("d/f")).expect("open").as_fd()).expect("fsx")[..16]
        );
        flags::set_fsx(file.as_fd(), &fsx).expect("the same again");
        let mut project = fsx;
        project[12] ^= 1;
        assert_eq!(flags::set_fsx(file.as_fd(), &project), Err(Errno(libc::EOPNOTSUPP)));
        assert_eq!(set(&m.path("d/f"), JOURNAL_DATA, 0), Err(Errno(libc::EOPNOTSUPP)));
        assert_eq!(set(&m.dir, IMMUTABLE, 0), Err(Errno(libc::EOPNOTSUPP)), "the root");
        assert_eq!(set(&m.dir, NODUMP, 0), Ok(()));
        // The kernel asks whether the caller may before the mirror is asked.
        std::os::unix::fs::chown(m.path("d/f"), Some(1000), Some(1000)).expect("chown");
        for (path, what) in [(m.scratch().to_path_buf(), 0o755), (m.dir.clone(), 0o755)] {
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(what))
                .expect("chmod");
        }
        let chattr = |flag: &str| {
            let mut command = Command::new("chattr");
            command.arg(flag).arg(m.path("d/f")).uid(1000).gid(1000).stderr(Stdio::null());
            command.status().map(|status| status.success())
        };
        match (chattr("+i"), chattr("-d")) {
            (Ok(immutable), Ok(dump)) => assert_eq!((immutable, dump), (false, true)),
            _ => skipped(&this_test(), "chattr is not installed"),
        }
    });
}

#[test]
fn chattr_changes_the_time_of_change_that_is_shown() {
    isolated(|| {
        let (m, _) = Mounted::local();
        let f = m.path("f");
        std::fs::write(&f, b"x").expect("write");
        let time = || {
            let shown = f.metadata().expect("stat");
            (shown.ctime(), shown.ctime_nsec())
        };
        if set(&f, NODUMP, 0).is_err() {
            return skipped(&this_test(), "the file system of the temporary directory has no inode flags");
        }
        let before = time();
        // The clock of a file system goes by ticks.
        eventually("another time", || {
            set(&f, NODUMP, 0).and_then(|()| set(&f, 0, NODUMP)).expect("chattr");
            time() != before
        });
    });
}

#[test]
fn what_does_not_stand_at_the_end_of_an_append_only_file_is_refused() {
    isolated(|| {
        let (m, _) = Mounted::local();
        let f = m.path("f");
        std::fs::write(&f, b"0123").expect("write");
        if set(&f, APPEND, 0).is_err() {
            skipped(&this_test(), "the file system of the temporary directory has no inode flags");
            return;
        }
        let mut file = File::options().append(true).read(true).open(&f).expect("open");
        file.write_all(b"45").expect("append");
        // SAFETY: the descriptor is open.
        let cleared = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, 0) };
        assert_eq!(cleared, 0, "no O_APPEND any more");
        assert_eq!(errno(file.write_all_at(b"X", 0)), Err(libc::EPERM));
        assert_eq!(std::fs::read(&f).expect("read"), b"012345");
        file.write_all_at(b"67", 6).expect("at the end");
        assert_eq!(std::fs::read(m.below().join("f")).expect("read below"), b"01234567");
        set(&f, 0, APPEND).expect("clear, so that it can be removed");
    });
}
