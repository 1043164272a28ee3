//! Inode flags: they travel, and one that only the target has keeps no resync from making it equal.

use crate::skip::{skipped, this_test};
use crate::support::{Pair, Res};
use skc::ports::Gate;
use skc::proto::stream::Plan;
use skc::sys::file::flags::{self, APPEND, IMMUTABLE};
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::Path;

const NODUMP: u32 = 0x40;

/// Takes the locks off at the end, so that the directory can be removed.
struct Unlocked<'a>(&'a Path);

impl Drop for Unlocked<'_> {
    fn drop(&mut self) {
        unlock(self.0);
    }
}

fn unlock(path: &Path) {
    let Ok(meta) = fs::symlink_metadata(path) else { return };
    if meta.is_dir() || meta.is_file() {
        let _ = flags::unlock(File::open(path).unwrap().as_fd());
    }
    if meta.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            unlock(&entry.unwrap().path());
        }
    }
}

fn set(path: &Path, wanted: u32) {
    flags::set_flags(File::open(path).unwrap().as_fd(), wanted | get(path)).unwrap();
}

fn get(path: &Path) -> u32 {
    flags::get_flags(File::open(path).unwrap().as_fd()).unwrap_or(0)
}

fn without_flags(dir: &Path) -> bool {
    let lacking = flags::get_flags(File::open(dir).unwrap().as_fd()).is_err();
    if lacking {
        skipped(&this_test(), "the file system of the temporary directory has no inode flags");
    }
    lacking
}

#[test]
fn what_is_done_to_locked_objects_is_done_on_the_standby() {
    let mut pair = Pair::new();
    if without_flags(pair.a.path()) {
        return;
    }
    pair.ready();
    let m = &pair.mirror;
    let done = |res: Res| assert_eq!(m.wait(res.unwrap()), 0);
    done(m.mkdir("log"));
    done(m.create("log/a"));
    done(m.write("log/a", 0, b"one"));
    done(m.create("i"));
    done(m.set_flags("log/a", APPEND));
    done(m.set_flags("log", APPEND | NODUMP));
    done(m.set_flags("i", IMMUTABLE));
    let (a, b) = (pair.a.path().to_owned(), pair.b.path().to_owned());
    let _clean = (Unlocked(&a), Unlocked(&b));
    // The standby has to set the times of both although they are append-only.
    done(m.append("log/a", b" two"));
    done(m.create("log/b"));
    done(m.mkdir("log/d"));
    assert!(m.unlink("log/a").is_err() && m.set_xattr("i", "user.a", b"x").is_err());
    pair.assert_equal();
    assert_eq!(fs::read(b.join("log/a")).unwrap(), b"one two");
    assert_eq!(get(&b.join("log/b")) & NODUMP, NODUMP, "inherited");
    done(m.set_flags("i", 0));
    done(m.unlink("i"));
    done(m.set_flags("log", 0));
    done(m.set_flags("log/a", 0));
    done(m.rename("log/a", "b", 0));
    pair.assert_equal();
}

/// A tree in which everything is locked, and everything else than in the other.
fn locked(root: &Path, text: &str, lock: u32) {
    fs::create_dir_all(root.join("d/e/f")).unwrap();
    for path in ["same", "d/same", "d/e/deep", &format!("only-{text}"), &format!("d/e/only-{text}")] {
        fs::write(root.join(path), format!("{path} {text}").repeat(20_000)).unwrap();
    }
    fs::write(root.join("linked"), b"x").unwrap();
    fs::hard_link(root.join("linked"), root.join(format!("d/link-{text}"))).unwrap();
    fs::create_dir(root.join(format!("dir-{text}"))).unwrap();
    fs::write(root.join(format!("dir-{text}/x")), text).unwrap();
    let all = [
        "same",
        "d/same",
        "d/e/deep",
        "linked",
        "d/e/f",
        "d/e",
        "d",
        &format!("only-{text}"),
        &format!("d/e/only-{text}"),
        &format!("dir-{text}/x"),
        &format!("dir-{text}"),
    ];
    for path in all {
        set(&root.join(path), lock);
    }
}

#[test]
fn a_target_full_of_locked_objects_becomes_equal_and_what_it_had_is_kept() {
    for (ours, theirs, quarantine) in [
        (0, IMMUTABLE, false),
        (IMMUTABLE, APPEND, true),
        (APPEND, IMMUTABLE, true),
        (IMMUTABLE, IMMUTABLE, false),
    ] {
        let mut pair = Pair::new();
        if without_flags(pair.a.path()) {
            return;
        }
        let (a, b) = (pair.a.path().to_owned(), pair.b.path().to_owned());
        let _clean = (Unlocked(&a), Unlocked(&b));
        locked(&a, "source", ours);
        locked(&b, "target", theirs);
        pair.gate(Gate::Alone(pair.epoch));
        pair.connect(Plan::Resync { quarantine });
        pair.finish_resync();
        pair.assert_equal();
        if quarantine {
            let kept = fs::read_dir(b.join(".skc/quarantine")).unwrap().count();
            assert_eq!(kept, 1, "something was kept");
            assert!(
                !fs::read_dir(b.join(".skc/quarantine")).unwrap().any(|d| d
                    .unwrap()
                    .path()
                    .join("incomplete")
                    .exists())
            );
        }
    }
}
