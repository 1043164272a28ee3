//! What `exclude` and `include` leave to each node: in the mount like everything else, in the stream not at all,
//! and no way from one side to the other.

use super::equal::{Rng, describe_only, step};
use super::standby::Standby;
use super::support::{Mounted, isolated};
use skc::sys::backing::Backing;
use skc::sys::file;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A mount, and the directory that is rebuilt from its stream.
fn pair(exclude: &[&str], include: &[&str]) -> (Mounted, tempfile::TempDir) {
    let mirror = tempfile::tempdir().expect("temporary directory");
    let standby = Backing::open(mirror.path()).expect("open");
    let mounted = Mounted::patterned(|tree| Arc::new(Standby::new(tree, standby)), exclude, include);
    (mounted, mirror)
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .expect("readdir")
        .flatten()
        .map(|e| e.file_name().into_string().expect("utf-8"))
        .collect();
    names.sort();
    names
}

fn assert_crosses<T: std::fmt::Debug>(result: std::io::Result<T>) {
    assert_eq!(result.expect_err("crosses").kind(), ErrorKind::CrossesDevices);
}

#[test]
fn excluded_objects_are_seen_and_stay_here() {
    isolated(|| {
        let (m, mirror) = pair(&["*.tmp", "/cache"], &[]);
        fs::create_dir_all(m.path("cache/deep")).expect("mkdir");
        fs::write(m.path("cache/deep/f"), b"local").expect("write");
        fs::create_dir(m.path("d")).expect("mkdir");
        fs::write(m.path("d/a.tmp"), b"local").expect("write");
        fs::write(m.path("d/a"), b"mirrored").expect("write");
        File::open(m.path("d/a.tmp")).and_then(|f| f.sync_all()).expect("fsync");
        fs::rename(m.path("d/a.tmp"), m.path("b.tmp")).expect("local to local");
        fs::hard_link(m.path("b.tmp"), m.path("cache/deep/g")).expect("a link between local names");
        fs::set_permissions(m.path("b.tmp"), std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .expect("chmod");
        assert_eq!(fs::read(m.path("cache/deep/g")).expect("read"), b"local");
        fs::remove_file(m.path("cache/deep/f")).expect("unlink");
        assert_eq!(names(&m.dir), ["b.tmp", "cache", "d"]);
        assert_eq!(names(mirror.path()), ["d"]);
        assert_eq!(names(&mirror.path().join("d")), ["a"]);
        for dir in ["", "d"] {
            let time = |root: &Path| {
                fs::metadata(root.join(dir)).map(|m| (m.mtime(), m.mtime_nsec())).expect("stat")
            };
            assert_eq!(
                time(mirror.path()),
                time(&m.below()),
                "the time of {dir:?} moved with what is local in it"
            );
        }
    });
}

#[test]
fn nothing_crosses_the_border() {
    isolated(|| {
        let (m, mirror) = pair(&["*.tmp", "/a/cache"], &[]);
        for dir in ["a", "b", "a/cache"] {
            fs::create_dir(m.path(dir)).expect("mkdir");
        }
        for file in ["f", "g.tmp"] {
            fs::write(m.path(file), file).expect("write");
        }
        assert_crosses(fs::rename(m.path("f"), m.path("f.tmp")));
        assert_crosses(fs::rename(m.path("g.tmp"), m.path("g")));
        assert_crosses(fs::hard_link(m.path("f"), m.path("a/cache/f")));
        assert_crosses(fs::hard_link(m.path("g.tmp"), m.path("g")));
        // What is below would change sides.
        assert_crosses(fs::rename(m.path("a"), m.path("c")));
        assert_crosses(fs::rename(m.path("b"), m.path("a/cache/b")));
        let root = File::open(&m.dir).expect("open");
        let exchange =
            |a: &str, b: &str| file::rename(root.as_fd(), a.as_bytes(), root.as_fd(), b.as_bytes(), 2);
        assert_eq!(exchange("f", "g.tmp").map_err(|e| e.0), Err(18));
        assert_eq!(exchange("a", "b").map_err(|e| e.0), Err(18));
        fs::rename(m.path("b"), m.path("c")).expect("nothing below it changes sides");
        let unnamed = File::from(file::open_tmpfile(root.as_fd(), 0o600, false).expect("O_TMPFILE"));
        let link = |name: &str| file::link_at(unnamed.as_fd(), root.as_fd(), name.as_bytes());
        assert_eq!(link("h.tmp").map_err(|e| e.0), Err(18));
        link("h").expect("a mirrored name");
        assert_eq!(names(mirror.path()), ["a", "c", "f", "h"]);
        assert_eq!(names(&m.dir), ["a", "c", "f", "g.tmp", "h"]);
    });
}

#[test]
fn included_only_is_what_matches_and_the_way_to_it() {
    isolated(|| {
        let (m, mirror) = pair(&["*-journal"], &["*.db*", "/keep/this"]);
        fs::create_dir_all(m.path("d/e")).expect("mkdir");
        fs::create_dir_all(m.path("keep/this/all")).expect("mkdir");
        for file in ["x.db", "x.db-journal", "note", "d/e/y.db", "d/e/z", "keep/no", "keep/this/all/f"] {
            fs::write(m.path(file), file).expect("write");
        }
        // Every directory may lead to a *.db.
        assert_eq!(names(mirror.path()), ["d", "keep", "x.db"]);
        assert_eq!(names(&mirror.path().join("d/e")), ["y.db"]);
        assert_eq!(names(&mirror.path().join("keep")), ["this"]);
        assert_eq!(fs::read(mirror.path().join("keep/this/all/f")).expect("read"), b"keep/this/all/f");
        assert_crosses(fs::rename(m.path("note"), m.path("note.db")));
    });
}

/// By hand what the patterns below say.
fn is_local(path: &Path) -> bool {
    let parts: Vec<&str> = path.iter().map(|p| p.to_str().expect("utf-8")).collect();
    parts.contains(&"f1") || parts.contains(&"d2") || parts.starts_with(&["d0", "f3"])
}

#[test]
fn random_operations_rebuild_what_is_mirrored_and_nothing_else() {
    isolated(|| {
        for seed in 1..=4 {
            let (m, mirror) = pair(&["f1", "d2", "/d0/f3"], &[]);
            let mut rng = Rng(seed * 7919);
            for _ in 0..2500 {
                let (what, got) = step(&m.dir, &mut rng);
                assert!(!matches!(got, Err(5 | 107)), "seed {seed}: {what}: {got:?}");
            }
            let seen = |path: &Path| !is_local(path);
            let below = describe_only(&m.below(), true, &seen);
            assert_eq!(
                describe_only(mirror.path(), true, &|_| true),
                below,
                "standby and backing, seed {seed}"
            );
            let all = describe_only(&m.below(), true, &|_| true);
            assert_eq!(describe_only(&m.dir, true, &|_| true), all, "mount and backing, seed {seed}");
            assert!(all.len() > below.len(), "something was local");
        }
    });
}

#[test]
fn concurrent_operations_keep_to_their_sides() {
    isolated(|| {
        let (m, mirror) = pair(&["f1", "d2", "/d0/f3"], &[]);
        std::thread::scope(|scope| {
            for seed in 1..=4 {
                let dir: PathBuf = m.dir.clone();
                scope.spawn(move || {
                    let mut rng = Rng(seed * 104_729);
                    for _ in 0..700 {
                        let (what, got) = step(&dir, &mut rng);
                        assert!(!matches!(got, Err(5 | 107)), "thread {seed}: {what}: {got:?}");
                    }
                });
            }
        });
        let below = describe_only(&m.below(), true, &|path| !is_local(path));
        assert_eq!(describe_only(mirror.path(), true, &|_| true), below, "standby and backing");
    });
}
