//! The ordered resync: any two trees become equal, also while the source is written.

use crate::random::{Rng, grow, step};
use crate::skip::{skipped, this_test};
use crate::support::{FakeTarget, Got, LONG, Pair, tree_at};
use skc::ports::Gate;
use skc::proto::stream::{Entry, Plan, Reply, Resync};
use std::fs;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

const RESYNC: Plan = Plan::Resync { quarantine: false };

#[test]
fn different_trees_become_equal() {
    for seed in 0..8 {
        let mut pair = Pair::new();
        grow(pair.a.path(), &mut Rng(seed), 250);
        grow(pair.b.path(), &mut Rng(seed + 1000), 250);
        pair.ready();
        pair.assert_equal();
        // And it is a live pair afterwards.
        let mut r = Rng(seed + 5000);
        for unique in (0..200).filter_map(|_| step(&pair.mirror, &mut r).ok()).collect::<Vec<_>>() {
            assert_eq!(pair.mirror.wait(unique), 0);
        }
        pair.assert_equal();
    }
}

#[test]
fn an_equal_tree_costs_no_data() {
    let mut pair = Pair::new();
    grow(pair.a.path(), &mut Rng(1), 300);
    assert!(pair.ready().bytes_sent > 0);
    pair.mirror.primary.disconnect(LONG);
    pair.standby.close(LONG);
    while pair.events.try_recv().is_ok() {}
    let again = pair.ready();
    assert_eq!(again.bytes_sent, 0);
    assert!(again.bytes_compared > 0);
    pair.assert_equal();
}

#[test]
fn one_changed_block_costs_one_block() {
    let mut pair = Pair::new();
    let data = Rng(3).bytes(16 << 20);
    fs::write(pair.a.path().join("big"), &data).unwrap();
    fs::write(pair.b.path().join("big"), &data).unwrap();
    let file = fs::File::options().write(true).open(pair.a.path().join("big")).unwrap();
    file.write_all_at(b"changed", 5 << 20).unwrap();
    drop(file);
    let progress = pair.ready();
    assert_eq!(progress.bytes_sent, 65_536);
    assert_eq!(progress.bytes_compared, 16 << 20);
    pair.assert_equal();
}

#[test]
fn equal_size_and_time_do_not_prove_equality() {
    let mut pair = Pair::new();
    for (dir, byte) in [(&pair.a, b'a'), (&pair.b, b'b')] {
        let path = dir.path().join("f");
        fs::write(&path, vec![byte; 1000]).unwrap();
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000)).unwrap();
    }
    pair.ready();
    assert_eq!(fs::read(pair.b.path().join("f")).unwrap(), vec![b'a'; 1000]);
    pair.assert_equal();
}

#[test]
fn holes_travel_as_holes() {
    let mut pair = Pair::new();
    for (dir, spots) in [(&pair.a, [64_u64 << 20, 1 << 20]), (&pair.b, [3 << 20, 5 << 20])] {
        let file = fs::File::create(dir.path().join("sparse")).unwrap();
        for spot in spots {
            file.write_all_at(b"here", spot).unwrap();
        }
    }
    let progress = pair.ready();
    assert!(progress.bytes_sent <= 4 * 65_536, "{progress:?}");
    use std::os::unix::fs::MetadataExt;
    assert!(fs::metadata(pair.b.path().join("sparse")).unwrap().blocks() * 512 < 1 << 20);
    pair.assert_equal();
}

/// A page that was read from a preallocated block passes for data as long as it is cached.
#[test]
fn preallocated_blocks_stay_holes_though_their_pages_are_cached() {
    use skc::sys::file;
    use std::os::fd::AsFd;
    let mut pair = Pair::new();
    let path = pair.a.path().join("f");
    let file = fs::File::create(&path).unwrap();
    if file::fallocate(file.as_fd(), 0, 0, 40 * 4096).is_err() {
        return;
    }
    file.write_all_at(&[1; 4096], 20 * 4096).unwrap();
    file.sync_all().unwrap();
    fs::read(&path).unwrap();
    pair.ready();
    pair.assert_equal();
}

#[test]
fn a_hole_at_the_end_frees_the_block_that_the_end_cuts() {
    let mut pair = Pair::new();
    for (dir, len) in [(&pair.a, 4096), (&pair.b, 9000)] {
        let file = fs::File::create(dir.path().join("f")).unwrap();
        let mut data = vec![1; 4096];
        data.resize(len, 0);
        file.write_all_at(&data, 0).unwrap();
        if len == 4096 {
            file.set_len(5000).unwrap();
        }
    }
    pair.ready();
    pair.mirror.truncate("f", 20_000).map(|u| assert_eq!(pair.mirror.wait(u), 0)).unwrap();
    pair.assert_equal();
}

#[test]
fn every_kind_of_object_and_attribute_arrives() {
    let mut pair = Pair::new();
    let root = pair.a.path();
    fs::create_dir_all(root.join("d/e/empty")).unwrap();
    fs::write(root.join("d/f"), b"x").unwrap();
    fs::hard_link(root.join("d/f"), root.join("d/e/g")).unwrap();
    std::os::unix::fs::symlink("nowhere", root.join("d/s")).unwrap();
    std::os::unix::fs::lchown(root.join("d/s"), Some(7), Some(8)).unwrap();
    let odd =
        std::ffi::OsStr::new(unsafe { std::ffi::OsStr::from_encoded_bytes_unchecked(b"\xff\n\x01 '\"") });
    fs::write(root.join(odd), b"odd name").unwrap();
    let c = |p: &str| std::ffi::CString::new(root.join(p).to_str().unwrap()).unwrap();
    for (path, mode, dev) in
        [("d/fifo", libc::S_IFIFO, 0), ("d/null", libc::S_IFCHR, 259), ("d/sock", libc::S_IFSOCK, 0)]
    {
        assert_eq!(unsafe { libc::mknod(c(path).as_ptr(), mode | 0o620, dev) }, 0, "{path}");
    }
    let set = |p: &str, name: &std::ffi::CStr, value: &[u8]| unsafe {
        libc::lsetxattr(c(p).as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0)
    };
    // user::rwx, user:1234:r-x, group::r-x, mask::rwx, other::---
    let mut acl = vec![2, 0, 0, 0];
    for (tag, perm, id) in
        [(1, 7, u32::MAX), (2, 5, 1234), (4, 5, u32::MAX), (16, 7, u32::MAX), (32, 0, u32::MAX)]
    {
        acl.extend_from_slice(&u16::to_le_bytes(tag));
        acl.extend_from_slice(&u16::to_le_bytes(perm));
        acl.extend_from_slice(&u32::to_le_bytes(id));
    }
    let acls = set("d/f", c"system.posix_acl_access", &acl) == 0
        && set("d/e", c"system.posix_acl_default", &acl) == 0;
    if !acls {
        skipped(&this_test(), "the part about ACLs: this file system has none");
    }
    assert_eq!(set("d/s", c"trusted.note", b"on a symlink"), 0);
    assert_eq!(set("d", c"trusted.big", &vec![5; 3000]), 0);
    // A v2 capability set: cap_net_bind_service+ep.
    let cap = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(set("d/f", c"security.capability", &cap), 0);
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(root.join("d/e"), fs::Permissions::from_mode(0o3775)).unwrap();
    fs::write(root.join("suid"), b"#!").unwrap();
    fs::set_permissions(root.join("suid"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::File::open(root.join("d")).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    // The target has other things at the same places.
    let other = pair.b.path();
    fs::create_dir_all(other.join("d/f/x")).unwrap();
    fs::write(other.join("d/e"), b"a file").unwrap();
    fs::write(other.join("d/s"), b"a file").unwrap();
    fs::write(other.join("stale"), b"gone").unwrap();
    pair.ready();
    pair.assert_equal();
    if acls {
        pair.mirror.create("d/e/inherits").map(|u| assert_eq!(pair.mirror.wait(u), 0)).unwrap();
        pair.mirror.mkdir("d/e/dir").map(|u| assert_eq!(pair.mirror.wait(u), 0)).unwrap();
        pair.assert_equal();
    }
}

#[test]
fn a_directory_larger_than_one_frame_arrives() {
    let mut pair = Pair::new();
    for n in 0..6000 {
        fs::write(pair.a.path().join(format!("{n:0100}")), b"").unwrap();
    }
    for n in 5990..6010 {
        fs::write(pair.b.path().join(format!("{n:0100}")), b"x").unwrap();
    }
    pair.ready();
    pair.assert_equal();
}

struct OnDrop<F: Fn()>(F);

impl<F: Fn()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

fn under_load(seed: u64, quarantine: bool) {
    let mut pair = Pair::new();
    grow(pair.a.path(), &mut Rng(seed), 400);
    grow(pair.b.path(), &mut Rng(seed + 77), 400);
    for n in 0..3 {
        let data = Rng(n).bytes(3 << 20);
        fs::write(pair.a.path().join(format!("big{n}")), data).unwrap();
    }
    pair.gate(Gate::Alone(pair.epoch));
    let (stop, failed) = (AtomicBool::new(false), AtomicBool::new(false));
    pair.epoch.s += 1;
    let epoch = pair.epoch;
    let plan = Plan::Resync { quarantine };
    std::thread::scope(|scope| {
        let (mirror, stop, failed) = (&pair.mirror, &stop, &failed);
        // A failure below must not leave the writer writing, also if no write succeeds any more.
        let _end = OnDrop(|| failed.store(true, Ordering::Relaxed));
        let writer = scope.spawn(move || {
            let mut r = Rng(seed + 31);
            let mut done = 0_u64;
            while !failed.load(Ordering::Relaxed) && (!stop.load(Ordering::Relaxed) || done < 300) {
                if let Ok(unique) = step(mirror, &mut r) {
                    assert_eq!(mirror.wait(unique), 0, "seed {seed}");
                    done += 1;
                }
            }
            done
        });
        let (a, b) = crate::support::plain_pair();
        let standby = pair.standby.clone();
        let accepting = std::thread::spawn(move || standby.accept(b, epoch, plan));
        pair.mirror.primary.connect(a, epoch, plan).unwrap();
        accepting.join().unwrap().unwrap();
        pair.finish_resync();
        pair.gate(Gate::Replicated(epoch));
        stop.store(true, Ordering::Relaxed);
        assert!(writer.join().unwrap() >= 300);
    });
    assert!(pair.mirror.primary.drain(LONG));
    pair.assert_equal();
}

#[test]
fn resync_under_live_writes_converges() {
    // More seeds: SKC_TEST_SEEDS=100.
    let seeds = std::env::var("SKC_TEST_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(6);
    for seed in 0..seeds {
        under_load(seed, seed % 3 == 0);
    }
}

/// A displaced directory takes no name of a file with it that has another one outside.
#[test]
fn what_stays_is_not_linked_to_what_is_kept() {
    use std::os::unix::fs::MetadataExt;
    let mut pair = Pair::new();
    fs::write(pair.a.path().join("f"), b"stays").unwrap();
    fs::write(pair.b.path().join("f"), b"stays").unwrap();
    fs::create_dir(pair.b.path().join("dir")).unwrap();
    fs::write(pair.b.path().join("dir/only-here"), b"kept").unwrap();
    fs::hard_link(pair.b.path().join("f"), pair.b.path().join("dir/g")).unwrap();
    pair.gate(Gate::Alone(pair.epoch));
    pair.connect(Plan::Resync { quarantine: true });
    pair.finish_resync();
    pair.assert_equal();
    assert_eq!(fs::metadata(pair.b.path().join("f")).unwrap().nlink(), 1);
}

#[test]
fn removed_and_overwritten_data_is_kept() {
    let mut pair = Pair::new();
    let old = Rng(9).bytes(300_000);
    fs::create_dir(pair.b.path().join("dir")).unwrap();
    fs::write(pair.b.path().join("dir/only-here"), &old).unwrap();
    fs::write(pair.b.path().join("both"), &old).unwrap();
    let mut new = old.clone();
    new[100_000] ^= 1;
    new.truncate(250_000);
    fs::write(pair.a.path().join("both"), &new).unwrap();
    pair.gate(Gate::Alone(pair.epoch));
    pair.connect(Plan::Resync { quarantine: true });
    let progress = pair.finish_resync();
    pair.assert_equal();
    assert!(progress.kept_objects == 1 && !progress.kept_truncated, "{progress:?}");
    let base = pair.b.path().join(".skc/quarantine");
    let run = fs::read_dir(base).unwrap().next().unwrap().unwrap().path();
    let index = fs::read_to_string(run.join("index.jsonl")).unwrap();
    assert!(index.contains("\"path\":\"/dir\"") && index.contains("\"path\":\"both\""), "{index}");
    let kept = fs::read_dir(run.join("objects")).unwrap().next().unwrap().unwrap().path();
    assert_eq!(fs::read(kept.join("only-here")).unwrap(), old);
    let blocks = fs::read_dir(run.join("blocks")).unwrap().next().unwrap().unwrap().path();
    let saved = fs::read(blocks).unwrap();
    assert!(saved[65_536..131_072] == old[65_536..131_072], "the changed block");
    assert!(saved[250_000..] == old[250_000..], "the cut tail");
}

#[test]
fn what_is_kept_is_told_and_what_cannot_be_kept_even_more_so() {
    for objects in [8, 1] {
        let mut pair = Pair::with(
            tempfile::tempdir().unwrap(),
            tempfile::tempdir().unwrap(),
            |_| {},
            |c| c.quarantine.objects = objects,
        );
        for name in ["one", "two"] {
            fs::write(pair.b.path().join(name), b"only here").unwrap();
        }
        pair.gate(Gate::Alone(pair.epoch));
        pair.connect(Plan::Resync { quarantine: true });
        let told = pair.event("Kept", |who, e| match e {
            skc::replica::Event::Kept { objects, truncated, .. } if who == 'b' => {
                Some((*objects, truncated.clone()))
            }
            _ => None,
        });
        let progress = pair.finish_resync();
        let found = skc::replica::kept::survey(&tree_at(pair.b.path())).unwrap();
        let whole = objects > 1;
        assert_eq!((told.0, told.1.is_none()), (2.min(objects), whole), "{told:?}");
        assert_eq!((progress.kept_objects, !progress.kept_truncated), (2.min(objects), whole));
        assert_eq!((found.len(), found[0].objects), (1, 2.min(objects)), "{found:?}");
        assert_eq!(found[0].incomplete, told.1);
    }
}

#[test]
fn an_interrupted_resync_starts_again() {
    let mut pair = Pair::new();
    grow(pair.a.path(), &mut Rng(11), 300);
    let data = Rng(12).bytes(20 << 20);
    fs::write(pair.a.path().join("big"), data).unwrap();
    pair.gate(Gate::Alone(pair.epoch));
    pair.connect(RESYNC);
    pair.standby.close(LONG);
    pair.mirror.primary.disconnect(LONG);
    while pair.events.try_recv().is_ok() {}
    pair.ready();
    pair.assert_equal();
}

#[test]
fn a_full_target_disk_is_reported() {
    let b = tempfile::tempdir().unwrap();
    let c = std::ffi::CString::new(b.path().to_str().unwrap()).unwrap();
    let done = unsafe {
        libc::mount(c"tmpfs".as_ptr(), c.as_ptr(), c"tmpfs".as_ptr(), 0, c"size=1m".as_ptr().cast())
    };
    if done != 0 {
        skipped(&this_test(), "mounting a tmpfs needs root");
        return;
    }
    let mut pair = Pair::with(tempfile::tempdir().unwrap(), b, |_| {}, |_| {});
    pair.ready();
    pair.mirror.create("f").unwrap();
    let data = vec![1; 1 << 20];
    let last = (0..3).map(|n| pair.mirror.write("f", n << 20, &data).unwrap()).last().unwrap();
    let errno = std::iter::from_fn(|| pair.events.recv_timeout(LONG).ok())
        .find_map(|(_, event)| match event {
            skc::replica::Event::PeerFailed { errno, .. } => Some(errno),
            _ => None,
        })
        .expect("PeerFailed");
    assert_eq!(errno, libc::ENOSPC);
    pair.gate(Gate::Frozen);
    assert_eq!(pair.mirror.replies.get(last), None);
    pair.gate(Gate::Alone(pair.epoch));
    assert_eq!(pair.mirror.wait(last), 0);
    pair.standby.close(LONG);
    let target = pair.b.path().to_path_buf();
    drop(pair);
    let c = std::ffi::CString::new(target.to_str().unwrap()).unwrap();
    unsafe { libc::umount2(c.as_ptr(), libc::MNT_DETACH) };
}

#[test]
fn a_file_that_lost_its_name_before_its_visit_is_left_out() {
    let mut pair = Pair::with(
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
        // One step at a time.
        |c| (c.resync_busy, c.resync_idle) = (1, 1),
        |_| {},
    );
    fs::write(pair.a.path().join("gone"), b"held open by an application").unwrap();
    fs::write(pair.a.path().join("there"), b"x").unwrap();
    let id = pair.mirror.resolve("gone").unwrap();
    pair.gate(Gate::Alone(pair.epoch));
    let mut target = FakeTarget::connect(&mut pair, RESYNC, |from| from - 1);
    let Got::Resync(listed, Resync::Dir { entries, .. }) = target.next() else { panic!("the root") };
    assert!(entries.iter().any(|e: &Entry| e.id == id));
    let held = pair.mirror.tree.open(id, libc::O_RDWR).unwrap();
    pair.mirror.unlink("gone").unwrap();
    pair.mirror.tree.inodes.set_kept(id, Some(held));
    target.reply(&Reply::Redo { seq: listed, volume: crate::support::V, ids: vec![id], lost: true });
    target.reply(&Reply::Ack { applied: listed });
    loop {
        match target.next() {
            Got::Resync(seq, Resync::End) => {
                target.reply(&Reply::Ack { applied: seq });
                break;
            }
            Got::Resync(seq, step) => {
                let about = match &step {
                    Resync::Hash { id, .. } | Resync::Hole { id, .. } | Resync::Meta { id, .. } => Some(*id),
                    _ => None,
                };
                assert_ne!(about, Some(id), "{step:?}");
                target.reply(&Reply::Ack { applied: seq });
            }
            Got::Op(seq, _) | Got::Marker(seq) => target.reply(&Reply::Ack { applied: seq }),
        }
    }
    // Once no application can reach it, a pin of the resync must not keep its space.
    let mut gone = Vec::new();
    pair.mirror.tree.inodes.forget(id, u64::MAX, &mut gone);
    assert!(pair.mirror.tree.stat(id).is_err());
}

#[test]
fn what_live_operations_destroy_on_the_target_is_kept() {
    let mut pair = Pair::with(
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
        // After the first file the resync pauses for seconds: the operations below come first.
        |c| c.bandwidth = Some(50_000),
        |_| {},
    );
    let old = Rng(40).bytes(100_000);
    for name in ["f", "g", "n"] {
        fs::write(pair.a.path().join(name), vec![3; 100_000]).unwrap();
    }
    for name in ["f", "g"] {
        fs::write(pair.b.path().join(name), &old).unwrap();
    }
    pair.gate(Gate::Alone(pair.epoch));
    pair.connect(Plan::Resync { quarantine: true });
    // An application goes on writing to the file that it unlinks.
    let id = pair.mirror.resolve("f").unwrap();
    let held = pair.mirror.tree.open(id, libc::O_RDWR).unwrap();
    pair.mirror.unlink("f").map(|u| assert_eq!(pair.mirror.wait(u), 0)).unwrap();
    pair.mirror.tree.inodes.set_kept(id, Some(held));
    pair.mirror.write_id(id, 0, b"not into the kept one").map(|u| pair.mirror.wait(u)).unwrap();
    pair.mirror.rename("n", "g", 0).map(|u| assert_eq!(pair.mirror.wait(u), 0)).unwrap();
    let progress = pair.finish_resync();
    pair.gate(Gate::Replicated(pair.epoch));
    let unique = pair.mirror.write_id(id, 50, b"nor now").unwrap();
    assert_eq!(pair.mirror.wait(unique), 0);
    pair.assert_equal();
    assert!(progress.kept_objects == 2 && !progress.kept_truncated, "{progress:?}");
    let run = fs::read_dir(pair.b.path().join(".skc/quarantine")).unwrap().next().unwrap().unwrap().path();
    let kept: Vec<_> = fs::read_dir(run.join("objects")).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(kept.len(), 2);
    for path in kept {
        assert!(fs::read(&path).unwrap() == old, "{}", path.display());
    }
}
