//! A backing file system that is full, read-only or limited: applications get the errors that it gives itself, and
//! what the stream says of the operations that failed half-way keeps the standby equal.

use super::standby::Standby;
use super::support::{Mounted, isolated};
use skc::fuse::Options;
use skc::lab::compare;
use skc::sys::backing::Backing;
use skc::sys::file;
use skc::sys::namespace::{self, Mount};
use skc::tree::Descriptors;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

fn errno<T>(result: std::io::Result<T>) -> Result<(), i32> {
    result.map(drop).map_err(|e| e.raw_os_error().unwrap_or(-1))
}

fn own<T>(result: Result<T, skc::ports::Errno>) -> Result<(), i32> {
    result.map(drop).map_err(|e| e.0)
}

fn furnish(dir: &Path) {
    std::fs::create_dir(dir.join("d")).expect("mkdir");
    std::fs::write(dir.join("f"), vec![7; 70_000]).expect("write");
    std::fs::hard_link(dir.join("f"), dir.join("h")).expect("link");
    symlink("f", dir.join("s")).expect("symlink");
}

/// Takes all blocks but some kilobytes, and then all inodes.
fn fill(dir: &Path) {
    let mut file = File::create(dir.join("filler")).expect("create a filler");
    while file.write(&[1; 4096]).is_ok_and(|n| n > 0) {}
    file.set_len(file.metadata().expect("stat").len() - 8192).expect("leave two blocks");
    let mut n = 0;
    while File::create_new(dir.join(format!("inode-{n}"))).is_ok() {
        n += 1;
    }
}

/// Every kind of operation, in an order in which those that free something come last.
fn tries(dir: &Path) -> Vec<(&'static str, Result<(), i32>)> {
    let top = File::open(dir).expect("open");
    let rw = || File::options().read(true).write(true).open(dir.join("f"));
    let with = |run: &dyn Fn(&File) -> Result<(), i32>| match rw() {
        Ok(file) => run(&file),
        Err(error) => Err(error.raw_os_error().unwrap_or(-1)),
    };
    let long = "t".repeat(3000);
    vec![
        ("create", errno(File::create_new(dir.join("new")))),
        ("mkdir", errno(std::fs::create_dir(dir.join("new")))),
        ("symlink", errno(symlink(&long, dir.join("new")))),
        ("mkfifo", own(file::make_node(top.as_fd(), b"new", libc::S_IFIFO | 0o600, 0))),
        ("link", errno(std::fs::hard_link(dir.join("f"), dir.join("new")))),
        ("tmpfile", own(file::open_tmpfile(top.as_fd(), 0o600, false))),
        ("large write", with(&|f| errno(f.write_all_at(&vec![3; 1 << 20], 1 << 20)))),
        ("write of one byte far away", with(&|f| errno(f.write_all_at(b"x", 5 << 20)))),
        ("overwrite", with(&|f| errno(f.write_all_at(b"over", 100)))),
        ("truncate up", with(&|f| errno(f.set_len(9 << 20)))),
        ("fallocate", with(&|f| own(file::fallocate(f.as_fd(), 0, 0, 4 << 20)))),
        ("fallocate, size kept", with(&|f| own(file::fallocate(f.as_fd(), 1, 0, 4 << 20)))),
        ("copy", with(&|f| own(file::copy_range(f.as_fd(), 0, f.as_fd(), 6 << 20, 60_000)))),
        ("xattr larger than any", own(file::set_xattr(top.as_fd(), b"user.a", &vec![1; 65_537], 0))),
        ("name longer than any", errno(File::create_new(dir.join("n".repeat(256))))),
        ("chmod", with(&|f| own(file::chmod(f.as_fd(), 0o640)))),
        ("chown", with(&|f| own(file::chown(f.as_fd(), Some(5), None)))),
        (
            "utimens",
            errno(File::open(dir.join("f")).and_then(|f| f.set_modified(std::time::SystemTime::UNIX_EPOCH))),
        ),
        ("rename", errno(std::fs::rename(dir.join("f"), dir.join("d/f")))),
        ("rename back", errno(std::fs::rename(dir.join("d/f"), dir.join("f")))),
        ("punch", with(&|f| own(file::fallocate(f.as_fd(), 3, 0, 4096)))),
        ("truncate down", with(&|f| errno(f.set_len(10)))),
        ("unlink", errno(std::fs::remove_file(dir.join("h")))),
        ("rmdir", errno(std::fs::remove_dir(dir.join("d")))),
    ]
}

fn tmpfs(at: &Path) {
    namespace::mount(Mount::New("tmpfs", "size=3m,nr_inodes=40,mode=755"), at).expect("tmpfs");
}

#[test]
fn a_full_file_system_gives_applications_its_own_errors_and_the_standby_stays_equal() {
    isolated(|| {
        let other = tempfile::tempdir().expect("temporary directory");
        let (bare, mirror) = (other.path().join("bare"), other.path().join("mirror"));
        std::fs::create_dir(&bare).expect("mkdir");
        std::fs::create_dir(&mirror).expect("mkdir");
        tmpfs(&bare);
        let standby = Backing::open(&mirror).expect("open");
        let (options, all) = (Options::default(), Descriptors::of_process());
        let m = Mounted::prepared(|tree| Arc::new(Standby::new(tree, standby)), options, all, tmpfs);
        for dir in [&bare, &m.dir] {
            furnish(dir);
            fill(dir);
        }
        let (got, expected) = (tries(&m.dir), tries(&bare));
        assert!(expected.iter().filter(|(_, r)| *r == Err(libc::ENOSPC)).count() > 5, "{expected:?}");
        assert_eq!(got, expected);
        // Holes aside: tmpfs and the standby's file system allocate differently.
        let mut found = compare::trees(&m.below().join("."), &mirror).expect("compare");
        found.examples.retain(|text| !text.contains("holes"));
        assert_eq!(found.examples, Vec::<String>::new());
        namespace::unmount(&bare, true).expect("unmount");
    });
}

#[test]
fn a_read_only_file_system_says_so() {
    isolated(|| {
        let other = tempfile::tempdir().expect("temporary directory");
        let bare = other.path().join("bare");
        std::fs::create_dir(&bare).expect("mkdir");
        let (options, all) = (Options::default(), Descriptors::of_process());
        let read_only = |at: &Path| {
            tmpfs(at);
            furnish(at);
            let status = Command::new("mount").args(["-o", "remount,ro"]).arg(at).status();
            assert!(status.expect("mount").success());
        };
        read_only(&bare);
        let m = Mounted::prepared(|_| Arc::new(skc::fuse::Local::default()), options, all, read_only);
        let tries = |dir: &Path| {
            let mut all = tries(dir);
            // What is not there: read-only on the bare directory, not there on the mount.
            all.retain(|(what, _)| *what != "rename back");
            all
        };
        let (got, expected) = (tries(&m.dir), tries(&bare));
        assert!(expected.iter().filter(|(_, r)| *r == Err(libc::EROFS)).count() > 10, "{expected:?}");
        assert_eq!(got, expected);
        namespace::unmount(&bare, true).expect("unmount");
    });
}
