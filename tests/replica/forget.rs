//! A slow resync of trees full of hard links, while the kernel forgets what it looked up.

use crate::random::{Rng, grow, step};
use crate::support::{FakeTarget, Got, LONG, Mirror, Pair, Unique, V, plain_pair};
use skc::ports::{Gate, Replicator};
use skc::proto::stream::{Plan, Reply, Resync};
use skc::proto::{FileId, FsOp};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Stops the writer also when the test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn files(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            files(&entry.path(), out);
        } else if kind.is_file() {
            out.push(entry.path());
        }
    }
}

/// Makes hard links at names that the other side uses for other things, or for files of their own.
fn link_at_random(root: &Path, r: &mut Rng, links: usize) {
    let mut all = Vec::new();
    files(root, &mut all);
    all.sort();
    for _ in 0..links {
        let from = &all[r.below(all.len() as u64) as usize];
        let dir = all[r.below(all.len() as u64) as usize].parent().unwrap();
        let to = dir.join(["a", "b", "c", "d", "e"][r.below(5) as usize]);
        if from != &to && !to.is_dir() {
            let _ = fs::remove_file(&to);
            let _ = fs::hard_link(from, &to);
        }
    }
}

/// As the file system does it when the kernel forgets: one object, or everything it knew.
fn forget(mirror: &Mirror, r: &mut Rng) {
    let mut gone = Vec::new();
    if r.below(4) == 0 {
        mirror.tree.inodes.forget_all_lookups(&mut gone);
    } else if let Ok(id) = mirror.resolve(["a", "b/a", "c", "d/b", "e/c"][r.below(5) as usize]) {
        mirror.tree.inodes.forget(id, u64::MAX, &mut gone);
    }
    if !gone.is_empty() {
        mirror.primary.forget(V, &gone);
    }
}

/// Gives an object of a directory that may not be listed yet a place in one that never will be, because
/// the stream itself made it; then the kernel forgets both.
fn move_and_forget(mirror: &Mirror, r: &mut Rng, n: usize) -> Vec<Unique> {
    let name = |r: &mut Rng| ["a", "b", "c", "d", "e"][r.below(5) as usize];
    let old = format!("{}/{}", name(r), name(r));
    let dir = format!("new{n}");
    let mut done = vec![mirror.mkdir(&dir)];
    done.push(match r.below(3) {
        0 => mirror.rename(&old, &format!("{dir}/x"), 0),
        1 => mirror.link(&old, &format!("{dir}/x")),
        _ => mirror.link(&old, &format!("{dir}/x")).and_then(|_| mirror.rename(&old, &format!("{dir}/y"), 0)),
    });
    done.push(mirror.write(&format!("{dir}/x"), r.below(100_000), b"by its new name"));
    let mut gone = Vec::new();
    mirror.tree.inodes.forget_all_lookups(&mut gone);
    mirror.primary.forget(V, &gone);
    done.into_iter().filter_map(Result::ok).collect()
}

fn forgetful(seed: u64, quarantine: bool) {
    let mut pair = Pair::with(
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
        // One step at a time, and seconds for all of them.
        |c| (c.resync_busy, c.resync_idle, c.bandwidth) = (1, 1, Some(8 << 20)),
        |_| {},
    );
    grow(pair.a.path(), &mut Rng(seed), 300);
    grow(pair.b.path(), &mut Rng(seed + u64::from(seed.is_multiple_of(2)) * 1000), 300);
    link_at_random(pair.a.path(), &mut Rng(seed + 1), 10);
    link_at_random(pair.b.path(), &mut Rng(seed + 2), 60);
    pair.gate(Gate::Alone(pair.epoch));
    pair.epoch.s += 1;
    let (epoch, plan) = (pair.epoch, Plan::Resync { quarantine });
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (mirror, stop) = (&pair.mirror, &stop);
        let _stop = Stop(stop);
        let writer = scope.spawn(move || {
            let mut r = Rng(seed + 3);
            for n in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                if n % 8 == 0 && n < 400 {
                    for unique in move_and_forget(mirror, &mut r, n) {
                        assert_eq!(mirror.wait(unique), 0, "seed {seed}");
                    }
                }
                if let Ok(unique) = step(mirror, &mut r) {
                    assert_eq!(mirror.wait(unique), 0, "seed {seed}");
                }
                if r.below(5) == 0 {
                    forget(mirror, &mut r);
                }
            }
        });
        let (a, b) = plain_pair();
        let standby = pair.standby.clone();
        let accepting = std::thread::spawn(move || standby.accept(b, epoch, plan));
        pair.mirror.primary.connect(a, epoch, plan).unwrap();
        accepting.join().unwrap().unwrap();
        pair.finish_resync();
        pair.gate(Gate::Replicated(epoch));
        stop.store(true, Ordering::Relaxed);
        writer.join().unwrap();
    });
    assert!(pair.mirror.primary.drain(LONG));
    pair.assert_equal();
}

#[test]
fn a_slow_resync_converges_while_ids_are_forgotten_and_links_differ() {
    // More seeds: SKC_TEST_SEEDS=100.
    let seeds = std::env::var("SKC_TEST_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(4);
    for seed in 0..seeds {
        eprintln!("seed {seed}");
        forgetful(seed, seed % 3 == 0);
    }
}

#[test]
fn what_is_asked_for_by_a_forgotten_id_is_found_by_its_new_one() {
    let mut pair = Pair::new();
    pair.gate(Gate::Alone(pair.epoch));
    let plan = Plan::Resync { quarantine: false };
    let mut target = FakeTarget::connect(&mut pair, plan, |from| from - 1);
    let next = |target: &mut FakeTarget| {
        let got = target.next();
        let (Got::Op(seq, _) | Got::Resync(seq, _) | Got::Marker(seq)) = got;
        target.reply(&Reply::Ack { applied: seq });
        got
    };
    while !matches!(next(&mut target), Got::Resync(_, Resync::End)) {}
    pair.mirror.mkdir("d").unwrap();
    let Got::Op(seq, FsOp::Make { id: old, .. }) = next(&mut target) else { panic!("the new directory") };
    let mut gone = Vec::new();
    pair.mirror.tree.inodes.forget(old, u64::MAX, &mut gone);
    assert_eq!(gone, [old]);
    pair.mirror.primary.forget(V, &gone);
    // Something in it could not be applied, and the source hears of it when the kernel has forgotten it.
    target.reply(&Reply::Redo { seq, volume: V, ids: vec![old], lost: false });
    let mut new = None;
    loop {
        match next(&mut target) {
            Got::Resync(_, Resync::Dir { id: FileId::ROOT, entries, .. }) => {
                new = entries.iter().find(|entry| entry.name == b"d").map(|entry| entry.id);
                assert!(new.is_some_and(|new| new != old), "{entries:?}");
            }
            Got::Resync(_, Resync::Dir { id, .. }) if Some(id) == new => break,
            Got::Resync(_, Resync::End) => panic!("it was not looked at again"),
            _ => {}
        }
    }
}
