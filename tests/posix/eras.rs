//! What was opened or mapped before a demotion must not write after the next promotion: the kernel's idea of
//! the file is from another time.

use super::mapping::{Mapping, PAGE};
use super::support::{Mounted, isolated};
use skc::base::Epoch;
use skc::fuse::Local;
use skc::ports::Gate;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(5);

fn demote(m: &Mounted, local: &Local) {
    local.set_gate(Gate::ReadOnly);
    assert!(m.mount().invalidate_all(LIMIT));
}

fn promote(m: &Mounted, local: &Local) {
    assert!(m.mount().invalidate_all(LIMIT));
    local.set_gate(Gate::Alone(Epoch { g: 2, s: 1 }));
}

fn stale<T: std::fmt::Debug>(result: std::io::Result<T>) {
    assert_eq!(result.expect_err("of another time").raw_os_error(), Some(libc::ESTALE));
}

#[test]
fn an_append_through_an_old_descriptor_overwrites_nothing() {
    isolated(|| {
        let (m, local) = Mounted::local();
        std::fs::write(m.path("log"), b"one ").expect("write");
        let mut old = File::options().append(true).open(m.path("log")).expect("open");
        old.write_all(b"two ").expect("append");
        demote(&m, &local);
        let mut below = File::options().append(true).open(m.below().join("log")).expect("open below");
        below.write_all(b"three ").expect("append below");
        promote(&m, &local);
        stale(old.write_all(b"X"));
        assert_eq!(std::fs::read(m.below().join("log")).expect("read"), b"one two three ");
        // A descriptor of this time knows the size.
        let mut new = File::options().append(true).open(m.path("log")).expect("open");
        new.write_all(b"four").expect("append");
        assert_eq!(std::fs::read(m.below().join("log")).expect("read"), b"one two three four");
        assert_eq!(std::fs::read(m.path("log")).expect("read"), b"one two three four");
    });
}

#[test]
fn an_old_descriptor_changes_no_data_but_reads_and_closes() {
    isolated(|| {
        let (m, local) = Mounted::local();
        std::fs::write(m.path("f"), b"0123456789").expect("write");
        let old = File::options().read(true).write(true).open(m.path("f")).expect("open");
        let other = File::options().read(true).open(m.path("f")).expect("open");
        demote(&m, &local);
        promote(&m, &local);
        use skc::sys::file;
        let errno = |r: Result<(), skc::ports::Errno>| assert_eq!(r.map_err(|e| e.0), Err(libc::ESTALE));
        stale(old.write_at(b"x", 3));
        stale(old.set_len(4));
        errno(file::fallocate(old.as_fd(), 0, 0, 100));
        errno(file::fallocate(old.as_fd(), 3, 0, 4));
        errno(file::copy_range(other.as_fd(), 0, old.as_fd(), 20, 5).map(drop));
        // What names the file is of no time, nor is reading.
        old.set_modified(std::time::SystemTime::UNIX_EPOCH).expect("utimens");
        let mut buf = [0; 10];
        old.read_exact_at(&mut buf, 0).expect("read");
        assert_eq!(&buf, b"0123456789");
        let new = File::options().write(true).open(m.path("f")).expect("open");
        new.set_len(4).expect("truncate");
        file::copy_range(old.as_fd(), 0, new.as_fd(), 4, 2).expect("an old one may be the source");
        assert_eq!(std::fs::read(m.below().join("f")).expect("read"), b"012301");
    });
}

#[test]
fn dirty_pages_from_before_never_reach_the_file() {
    isolated(|| {
        let (m, local) = Mounted::local();
        std::fs::write(m.path("f"), vec![b'a'; PAGE]).expect("write");
        let old = File::options().read(true).write(true).open(m.path("f")).expect("open");
        let mut map = Mapping::new(old.as_fd(), PAGE);
        map.write(0, b"dirty at the demotion");
        demote(&m, &local);
        std::fs::write(m.below().join("f"), vec![b'b'; PAGE]).expect("write below");
        map.write(100, b"dirty at the promotion");
        std::fs::write(m.below().join("f"), vec![b'c'; PAGE]).expect("write below");
        // The order that lets the pages out: the gate first.
        local.set_gate(Gate::Alone(Epoch { g: 2, s: 1 }));
        assert!(m.mount().invalidate_all(LIMIT));
        let now = || std::fs::read(m.below().join("f")).expect("read");
        assert!(now() == vec![b'c'; PAGE], "old pages were written");
        let mut seen = [0; 8];
        map.read(100, &mut seen);
        assert_eq!(&seen, b"cccccccc", "the mapping shows the file as it is");
        map.write(200, b"of another time");
        assert!(map.sync().is_err(), "an old mapping is refused as well");
        assert!(now() == vec![b'c'; PAGE], "an old mapping wrote");
        let new = File::options().read(true).write(true).open(m.path("f")).expect("open");
        let mut map = Mapping::new(new.as_fd(), PAGE);
        map.write(0, b"new");
        map.sync().expect("msync of a new mapping");
        assert_eq!(now()[..4], *b"newc");
    });
}
