//! What `exclude` leaves to each side: a resync and live operations do not touch it, unless the directory
//! around it goes.

use crate::support::{Pair, until};
use skc::lab::compare;
use skc::proto::stream::Plan;
use skc::replica::Event;
use std::fs;
use std::path::Path;

const EXCLUDE: &[&str] = &["*.tmp", "/cache"];

fn pair() -> Pair {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    Pair::patterned(a, b, EXCLUDE, |_| {}, |_| {})
}

fn assert_mirrored_equal(pair: &Pair) {
    let is_mirrored = |path: &Path, _: bool| {
        !path.starts_with("cache")
            && !path.iter().any(|p| Path::new(p).extension().is_some_and(|e| e == "tmp"))
    };
    let found = compare::mirrored(pair.a.path(), pair.b.path(), &is_mirrored).unwrap();
    assert!(found.equal(), "{found:?}");
}

fn write(root: &Path, files: &[&str]) {
    for file in files {
        fs::create_dir_all(root.join(file).parent().unwrap()).unwrap();
        fs::write(root.join(file), format!("{}/{file}", root.display())).unwrap();
    }
}

#[test]
fn a_resync_leaves_each_side_its_own() {
    for quarantine in [false, true] {
        let mut pair = pair();
        write(pair.a.path(), &["f", "a.tmp", "d/f", "d/deep/x.tmp", "cache/only-a", "cache/both"]);
        write(
            pair.b.path(),
            &["f", "b.tmp", "d/f", "d/deep/y.tmp", "cache/only-b", "cache/both", "gone", "e/gone"],
        );
        pair.gate(skc::ports::Gate::Alone(pair.epoch));
        pair.connect(Plan::Resync { quarantine });
        pair.finish_resync();
        assert_mirrored_equal(&pair);
        let own = format!("{}/cache/both", pair.b.path().display());
        assert_eq!(fs::read_to_string(pair.b.path().join("cache/both")).unwrap(), own);
        for (file, there) in [
            ("b.tmp", true),
            ("d/deep/y.tmp", true),
            ("cache/only-b", true),
            ("a.tmp", false),
            ("gone", false),
            ("e", false),
        ] {
            assert_eq!(pair.b.path().join(file).exists(), there, "{file}");
        }
    }
}

/// So deep that the kernel cannot tell its path in one piece.
#[test]
fn a_directory_is_placed_however_deep_it_is() {
    use skc::sys::file;
    use std::os::fd::AsFd;
    let mut pair = pair();
    for root in [pair.a.path(), pair.b.path()] {
        let mut dir: std::os::fd::OwnedFd = fs::File::open(root).unwrap().into();
        for n in 0..40 {
            let name = format!("{n:0200}").into_bytes();
            file::make_dir(dir.as_fd(), &name, 0o755).unwrap();
            dir = file::open_at(dir.as_fd(), &name, libc::O_RDONLY | libc::O_DIRECTORY, 0).unwrap();
        }
        let name = format!("{}.tmp", if root == pair.a.path() { "a" } else { "b" });
        file::make_dir(dir.as_fd(), name.as_bytes(), 0o755).unwrap();
    }
    pair.ready();
    let depth = |root: &Path| {
        let mut dir: std::os::fd::OwnedFd = fs::File::open(root).unwrap().into();
        for n in 0..40 {
            let name = format!("{n:0200}").into_bytes();
            dir = file::open_at(dir.as_fd(), &name, libc::O_RDONLY | libc::O_DIRECTORY, 0).unwrap();
        }
        ["a.tmp", "b.tmp"].map(|name| file::stat_at(dir.as_fd(), name.as_bytes()).is_ok())
    };
    assert_eq!((depth(pair.a.path()), depth(pair.b.path())), ([true, false], [false, true]));
}

#[test]
fn what_is_local_goes_with_the_directory_around_it() {
    let mut pair = pair();
    write(pair.a.path(), &["d/f", "e/f", "x/f"]);
    pair.ready();
    write(pair.b.path(), &["d/old.tmp", "d/sub.tmp/deep/f", "e/old.tmp"]);
    let done = |unique: Result<u64, skc::ports::Errno>| assert_eq!(pair.mirror.wait(unique.unwrap()), 0);
    done(pair.mirror.unlink("d/f"));
    done(pair.mirror.rmdir("d"));
    // A directory over an empty one.
    done(pair.mirror.unlink("e/f"));
    done(pair.mirror.rename("x", "e", 0));
    until("both went", || !pair.b.path().join("d").exists() && !pair.b.path().join("x").exists());
    assert!(!pair.b.path().join("e/old.tmp").exists());
    assert_mirrored_equal(&pair);
}

#[test]
fn a_mirrored_name_in_the_way_is_no_leftover() {
    let mut pair = pair();
    write(pair.a.path(), &["d/f"]);
    pair.ready();
    // Somebody bypassed the standby's mount.
    write(pair.b.path(), &["d/old.tmp", "d/mine"]);
    assert_eq!(pair.mirror.wait(pair.mirror.unlink("d/f").unwrap()), 0);
    let _ = pair.mirror.rmdir("d");
    pair.event("ApplyFailed", |_, e| matches!(e, Event::ApplyFailed { .. }).then_some(()));
    assert!(pair.b.path().join("d/old.tmp").exists() && pair.b.path().join("d/mine").exists());
}
