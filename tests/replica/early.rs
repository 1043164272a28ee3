//! The modes `commit` and `async`: what is answered when, the window, what is replayed, what is kept.

use crate::random::{Rng, step};
use crate::support::{FakeTarget, Got, LONG, Pair, Unique, until};
use skc::ports::{Errno, Gate};
use skc::proto::FsOp;
use skc::proto::stream::{Plan, Reply};
use skc::replica::Event;
use skc::replica::primary::{EarlyWindow, Lag, SyncError, Synced};
use skc::spec::Consistency::{self, Async, Commit, Strict};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

const WIDE: EarlyWindow = EarlyWindow { bytes: 16 << 20, age: LONG };

fn mode(pair: &Pair, mode: Consistency, window: EarlyWindow) {
    pair.mirror.primary.set_consistency(vec![mode], window);
}

fn answered(pair: &Pair, unique: Unique) -> bool {
    pair.mirror.replies.get(unique).is_some()
}

fn lag(pair: &Pair) -> Lag {
    pair.mirror.primary.lag()
}

/// A complete standby that acknowledges only what the test tells it to; the file `f` exists on both.
fn silent(configured: Consistency, window: EarlyWindow) -> (Pair, FakeTarget) {
    let mut pair = Pair::new();
    pair.ready();
    pair.mirror.create("f").map(|u| assert_eq!(pair.mirror.wait(u), 0)).unwrap();
    assert!(pair.mirror.primary.drain(LONG));
    pair.standby.close(LONG);
    pair.event("StreamDown", |_, e| matches!(e, Event::StreamDown { .. }).then_some(()));
    pair.gate(Gate::Frozen);
    let target = FakeTarget::connect(&mut pair, Plan::Replay, |from| from - 1);
    pair.gate(Gate::Replicated(pair.epoch));
    mode(&pair, configured, window);
    (pair, target)
}

/// Reads frames up to the one of the write number `n`, acknowledges nothing; its position.
fn position_of(target: &mut FakeTarget, n: u64) -> u64 {
    loop {
        if let Got::Op(seq, FsOp::Write { offset, .. }) = target.next()
            && offset == n
        {
            return seq;
        }
    }
}

fn write(pair: &Pair, n: u64) -> Unique {
    pair.mirror.write("f", n, b"x").unwrap()
}

/// An fsync of `f` whose local half ends when the sender is used or dropped.
fn held_fsync(pair: &Pair) -> (Unique, Sender<()>) {
    let (release, held) = channel();
    let local = move || {
        let _ = held.recv_timeout(LONG);
        Ok(())
    };
    (pair.mirror.fsync_by("f", local).unwrap(), release)
}

fn next_fsync(target: &mut FakeTarget) -> u64 {
    loop {
        if let Got::Op(seq, FsOp::Fsync { .. }) = target.next() {
            return seq;
        }
    }
}

#[test]
fn each_mode_answers_a_write_when_it_says() {
    for (configured, early) in [(Strict, false), (Commit, true), (Async, true)] {
        let (pair, mut target) = silent(configured, WIDE);
        let unique = write(&pair, 0);
        assert_eq!(answered(&pair, unique), early, "{configured:?}");
        let seq = position_of(&mut target, 0);
        assert_eq!(answered(&pair, unique), early, "{configured:?}: it was only sent");
        assert_eq!(lag(&pair).answered > 0, early);
        target.reply(&Reply::Ack { applied: seq });
        assert_eq!(pair.mirror.wait(unique), 0);
        until("nothing in flight", || lag(&pair) == Lag::default());
    }
}

#[test]
fn an_fsync_of_commit_waits_for_both_disks_and_one_of_async_for_its_own() {
    for (configured, early) in [(Commit, false), (Async, true)] {
        let (pair, mut target) = silent(configured, WIDE);
        write(&pair, 0);
        let (unique, release) = held_fsync(&pair);
        let seq = next_fsync(&mut target);
        assert!(!answered(&pair, unique), "{configured:?}: its own disk is not done");
        drop(release);
        if !early {
            // Applied is not durable.
            target.reply(&Reply::Ack { applied: seq });
            until("acknowledged", || lag(&pair).frames == 0);
            assert!(!answered(&pair, unique), "the standby's disk is not done");
            target.reply(&Reply::SyncAck { seq, errno: 0 });
        }
        assert_eq!(pair.mirror.wait(unique), 0, "{configured:?}");
    }
}

/// Local failure is local news in every mode.
#[test]
fn a_failed_sync_reaches_its_caller_whatever_the_mode() {
    for configured in [Strict, Commit, Async] {
        let (pair, _target) = silent(configured, WIDE);
        let unique = pair.mirror.fsync("f", Err(Errno(libc::EIO))).unwrap();
        assert_eq!(pair.mirror.wait(unique), libc::EIO, "{configured:?}");
    }
}

#[test]
fn a_standby_whose_disk_fails_is_reported_in_every_mode() {
    for configured in [Commit, Async] {
        let (pair, mut target) = silent(configured, WIDE);
        let unique = pair.mirror.fsync("f", Ok(())).unwrap();
        let seq = next_fsync(&mut target);
        target.reply(&Reply::SyncAck { seq, errno: libc::EIO });
        pair.event("PeerFailed", |_, e| {
            matches!(e, Event::PeerFailed { errno: libc::EIO, .. }).then_some(())
        });
        // As the driver: without a session, then alone.
        pair.gate(Gate::Frozen);
        pair.mirror.primary.disconnect(LONG);
        assert!(configured == Async || !answered(&pair, unique));
        pair.gate(Gate::Alone(pair.epoch));
        assert_eq!(pair.mirror.wait(unique), 0, "{configured:?}");
    }
}

#[test]
fn syncs_that_nobody_waits_for_do_not_pile_up_at_the_standby() {
    let (pair, mut target) = silent(Async, WIDE);
    for _ in 0..100 {
        let unique = pair.mirror.fsync("f", Ok(())).unwrap();
        assert_eq!(pair.mirror.wait(unique), 0);
    }
    let last = write(&pair, 7);
    assert_eq!(pair.mirror.wait(last), 0);
    let mut syncs = Vec::new();
    loop {
        match target.next() {
            Got::Op(seq, FsOp::Fsync { .. }) => syncs.push(seq),
            Got::Op(_, FsOp::Write { .. }) => break,
            _ => {}
        }
    }
    assert_eq!(syncs.len(), 16);
    for seq in syncs {
        target.reply(&Reply::SyncAck { seq, errno: 0 });
    }
    // There is room again.
    until("asked again", || {
        let unique = pair.mirror.fsync("f", Ok(())).unwrap();
        assert_eq!(pair.mirror.wait(unique), 0);
        lag(&pair).frames > 18
    });
}

#[test]
fn past_the_window_calls_wait_for_room_in_their_order() {
    let window = EarlyWindow { bytes: 1000, age: LONG };
    let (pair, mut target) = silent(Async, window);
    let uniques: Vec<_> = (0..20).map(|n| write(&pair, n)).collect();
    let done = || uniques.iter().take_while(|u| answered(&pair, **u)).count();
    let first = done();
    assert!((2..20).contains(&first), "{first} of 20 fit");
    assert!(uniques[first..].iter().all(|u| !answered(&pair, *u)));
    assert!(lag(&pair).answered <= window.bytes);
    // Half of them acknowledged: as many more are answered, in order.
    let mut acked = 0;
    for n in 0..20 {
        let seq = position_of(&mut target, n);
        target.reply(&Reply::Ack { applied: seq });
        acked += 1;
        let due = (first + acked).min(20);
        until("room is used", || done() >= due);
        assert!(lag(&pair).answered <= window.bytes);
    }
    until("nothing is left", || lag(&pair) == Lag::default());
}

#[test]
fn one_call_larger_than_the_window_passes_and_the_next_one_waits() {
    let (pair, mut target) = silent(Commit, EarlyWindow { bytes: 1000, age: LONG });
    let large = pair.mirror.write("f", 0, &vec![1; 50_000]).unwrap();
    assert!(answered(&pair, large));
    let next = write(&pair, 1);
    assert!(!answered(&pair, next));
    let seq = position_of(&mut target, 0);
    target.reply(&Reply::Ack { applied: seq });
    assert_eq!(pair.mirror.wait(next), 0);
}

#[test]
fn past_the_age_calls_wait_until_the_oldest_is_acknowledged() {
    let age = Duration::from_millis(100);
    let (pair, mut target) = silent(Async, EarlyWindow { age, ..WIDE });
    let first = write(&pair, 0);
    assert!(answered(&pair, first));
    until("old enough", || lag(&pair).oldest.is_some_and(|oldest| oldest >= age));
    let second = write(&pair, 1);
    assert!(!answered(&pair, second));
    // An fsync is a call like the others: it waits, for what it would wait for in strict.
    let sync = pair.mirror.fsync("f", Ok(())).unwrap();
    let seq = position_of(&mut target, 0);
    target.reply(&Reply::Ack { applied: seq });
    assert_eq!(pair.mirror.wait(second), 0);
    assert!(!answered(&pair, sync));
    let seq = next_fsync(&mut target);
    target.reply(&Reply::SyncAck { seq, errno: 0 });
    assert_eq!(pair.mirror.wait(sync), 0);
}

#[test]
fn nothing_is_answered_without_a_complete_standby_on_a_live_connection() {
    let (pair, target) = silent(Async, WIDE);
    drop(target);
    pair.event("StreamDown", |_, e| matches!(e, Event::StreamDown { .. }).then_some(()));
    // The gate has not followed yet.
    let unique = write(&pair, 0);
    assert!(!answered(&pair, unique));
    pair.gate(Gate::Frozen);
    assert!(!answered(&pair, unique));
    pair.gate(Gate::Shut);
    assert_eq!(pair.mirror.wait(unique), libc::EIO);
}

#[test]
fn a_frozen_gate_answers_no_sync_in_any_mode() {
    for configured in [Commit, Async] {
        let (pair, _target) = silent(configured, WIDE);
        let (unique, release) = held_fsync(&pair);
        pair.gate(Gate::Frozen);
        drop(release);
        std::thread::park_timeout(Duration::from_millis(50));
        assert!(!answered(&pair, unique), "{configured:?}");
        pair.gate(Gate::Alone(pair.epoch));
        assert_eq!(pair.mirror.wait(unique), 0);
    }
}

#[test]
fn a_change_of_mode_holds_from_the_next_call_on() {
    let (pair, mut target) = silent(Strict, WIDE);
    let strict = write(&pair, 0);
    mode(&pair, Async, WIDE);
    let early = write(&pair, 1);
    assert!(answered(&pair, early) && !answered(&pair, strict));
    mode(&pair, Strict, WIDE);
    let last = write(&pair, 2);
    assert!(!answered(&pair, last));
    // It waits for everything before it.
    let seq = position_of(&mut target, 1);
    target.reply(&Reply::Ack { applied: seq });
    assert_eq!(pair.mirror.wait(strict), 0);
    assert!(!answered(&pair, last));
    let seq = position_of(&mut target, 2);
    target.reply(&Reply::Ack { applied: seq });
    assert_eq!(pair.mirror.wait(last), 0);
    // A wider window lets go what waits for room.
    mode(&pair, Commit, EarlyWindow { bytes: 10, age: LONG });
    let [_, second] = [write(&pair, 3), write(&pair, 4)];
    assert!(!answered(&pair, second));
    mode(&pair, Commit, WIDE);
    assert_eq!(pair.mirror.wait(second), 0);
}

#[test]
fn answered_frames_are_replayed_after_a_glitch() {
    let mut pair = Pair::new();
    pair.ready();
    mode(&pair, Async, WIDE);
    let mut r = Rng(5);
    for round in 0..12 {
        for _ in 0..100 {
            if let Ok(unique) = step(&pair.mirror, &mut r) {
                assert_eq!(pair.mirror.wait(unique), 0, "round {round}");
            }
        }
        // In the middle of it: what was read and not applied is dropped there.
        pair.standby.close(LONG);
        pair.event("StreamDown", |who, e| {
            (who == 'a' && matches!(e, Event::StreamDown { .. })).then_some(())
        });
        pair.gate(Gate::Frozen);
        assert!(pair.mirror.primary.replay_from().is_some());
        pair.connect(Plan::Replay);
        pair.gate(Gate::Replicated(pair.epoch));
        pair.event("ReplayDone", |_, e| matches!(e, Event::ReplayDone { .. }).then_some(()));
    }
    assert!(pair.mirror.primary.drain(LONG));
    pair.assert_equal();
}

/// Appends in turn to several files; each record carries its number in the one order of all.
fn append(pair: &Pair, n: u64) {
    let path = format!("log-{}", n % 3);
    let unique = pair.mirror.write(&path, n / 3 * 8, &n.to_le_bytes()).unwrap();
    assert_eq!(pair.mirror.wait(unique), 0);
}

/// The number of records that a tree holds, if they are the first ones of the order.
fn prefix(root: &std::path::Path) -> u64 {
    let mut found: Vec<u64> = Vec::new();
    for file in 0..3 {
        let bytes = std::fs::read(root.join(format!("log-{file}"))).unwrap();
        assert_eq!(bytes.len() % 8, 0, "no torn record");
        found.extend(bytes.chunks(8).map(|c| u64::from_le_bytes(c.try_into().unwrap())));
    }
    found.sort_unstable();
    assert!(found.iter().enumerate().all(|(at, n)| *n == at as u64), "a gap: {found:?}");
    found.len() as u64
}

#[test]
fn a_standby_whose_primary_dies_is_an_exact_prefix_and_holds_what_was_synced() {
    for configured in [Commit, Async] {
        for round in 0..10_u64 {
            let mut pair = Pair::new();
            pair.ready();
            for file in 0..3 {
                pair.mirror.create(&format!("log-{file}")).map(|u| pair.mirror.wait(u)).unwrap();
            }
            mode(&pair, configured, WIDE);
            let (total, mut synced) = (400 + round * 37, 0);
            for n in 0..total {
                append(&pair, n);
                if configured == Commit && n % 97 == 96 {
                    let unique = pair.mirror.fsync(&format!("log-{}", n % 3), Ok(())).unwrap();
                    assert_eq!(pair.mirror.wait(unique), 0);
                    synced = n + 1;
                }
            }
            // As a promotion does it: the queue dies with the session.
            assert!(pair.standby.close(LONG));
            let held = prefix(pair.b.path());
            assert!((synced..=total).contains(&held), "{configured:?}: {held} of {total}, {synced} synced");
        }
    }
}

#[test]
fn the_tail_of_a_former_primary_is_kept_when_it_is_made_equal() {
    let mut pair = Pair::new();
    pair.ready();
    for file in 0..3 {
        pair.mirror.create(&format!("log-{file}")).map(|u| pair.mirror.wait(u)).unwrap();
    }
    (0..30).for_each(|n| append(&pair, n));
    mode(&pair, Async, WIDE);
    // The standby hears nothing of what follows, and is promoted.
    pair.standby.close(LONG);
    pair.event("StreamDown", |_, e| matches!(e, Event::StreamDown { .. }).then_some(()));
    pair.gate(Gate::Frozen);
    let _deaf = FakeTarget::connect(&mut pair, Plan::Replay, |from| from - 1);
    pair.gate(Gate::Replicated(pair.epoch));
    (30..45).for_each(|n| append(&pair, n));
    assert_eq!(pair.mirror.create("only-here").map(|u| pair.mirror.wait(u)), Ok(0));
    assert!(lag(&pair).answered > 0);
    pair.gate(Gate::Shut);
    assert_eq!(pair.mirror.primary.replay_from(), None, "it is never replayed as if nothing happened");
    pair.mirror.primary.disconnect(LONG);
    let Pair { a, b, .. } = pair;
    let mut back = Pair::with(b, a, |_| {}, |_| {});
    back.gate(Gate::Alone(back.epoch));
    back.connect(Plan::Resync { quarantine: true });
    back.finish_resync();
    back.assert_equal();
    assert_eq!(prefix(back.b.path()), 30);
    let tree = crate::support::tree_at(back.b.path());
    let kept = skc::replica::kept::survey(&tree).unwrap();
    assert_eq!(kept.len(), 1);
    assert!(kept[0].objects >= 1 && kept[0].incomplete.is_none(), "{kept:?}");
    let folder = back.b.path().join(".skc/quarantine").join(&kept[0].name);
    let mut tail: Vec<u64> = Vec::new();
    for block in std::fs::read_dir(folder.join("blocks")).unwrap().flatten() {
        let bytes = std::fs::read(block.path()).unwrap();
        tail.extend(bytes.chunks_exact(8).map(|c| u64::from_le_bytes(c.try_into().unwrap())));
    }
    for n in 30..45 {
        assert!(tail.contains(&n), "record {n} is kept: {tail:?}");
    }
}

#[test]
fn a_hand_over_drains_what_was_answered() {
    let mut pair = Pair::new();
    pair.ready();
    for file in 0..3 {
        pair.mirror.create(&format!("log-{file}")).map(|u| pair.mirror.wait(u)).unwrap();
    }
    mode(&pair, Async, WIDE);
    (0..2000).for_each(|n| append(&pair, n));
    pair.gate(Gate::Frozen);
    assert!(pair.mirror.primary.drain(LONG));
    pair.mirror.primary.disconnect(LONG);
    pair.standby.close(LONG);
    assert_eq!(pair.mirror.primary.position(), pair.standby.applied());
    assert_eq!(prefix(pair.b.path()), 2000);

    // A standby that acknowledges nothing cannot be handed the role.
    let (pair, _target) = silent(Async, WIDE);
    write(&pair, 0);
    pair.gate(Gate::Frozen);
    assert!(!pair.mirror.primary.drain(Duration::from_millis(200)));
    assert_eq!(pair.mirror.primary.position(), None);
}

#[test]
fn skc_sync_waits_for_both_disks_in_every_mode_and_survives_a_glitch() {
    for configured in [Strict, Commit, Async] {
        let (mut pair, mut target) = silent(configured, WIDE);
        write(&pair, 0);
        let primary = pair.mirror.primary.clone();
        let syncing = std::thread::spawn(move || primary.sync_all(LONG));
        let sync_frame = |target: &mut FakeTarget| loop {
            if let Got::Op(seq, FsOp::SyncFs) = target.next() {
                return seq;
            }
        };
        let seq = sync_frame(&mut target);
        target.reply(&Reply::Ack { applied: seq });
        until("acknowledged", || lag(&pair).frames == 0);
        assert!(!syncing.is_finished(), "{configured:?}: acknowledged is not durable");
        // Its answer is lost with the connection.
        drop(target);
        pair.event("StreamDown", |_, e| matches!(e, Event::StreamDown { .. }).then_some(()));
        pair.gate(Gate::Frozen);
        let mut target = FakeTarget::connect(&mut pair, Plan::Replay, |from| from - 1);
        pair.gate(Gate::Replicated(pair.epoch));
        let seq = sync_frame(&mut target);
        target.reply(&Reply::Ack { applied: seq });
        assert!(!syncing.is_finished());
        target.reply(&Reply::SyncAck { seq, errno: 0 });
        assert_eq!(syncing.join().unwrap(), Ok(Synced::Both));
    }
}

#[test]
fn skc_sync_says_what_it_could_not_reach() {
    let mut pair = Pair::new();
    pair.ready();
    pair.mirror.create("f").map(|u| assert_eq!(pair.mirror.wait(u), 0)).unwrap();
    let sync = |pair: &Pair| pair.mirror.primary.sync_all(Duration::from_millis(300));
    assert_eq!(pair.mirror.primary.sync_all(LONG), Ok(Synced::Both));
    pair.gate(Gate::Frozen);
    assert_eq!(sync(&pair), Err(SyncError::TooLong));
    pair.gate(Gate::Alone(pair.epoch));
    assert_eq!(pair.mirror.primary.sync_all(LONG), Ok(Synced::Here));
    pair.gate(Gate::ReadOnly);
    assert_eq!(sync(&pair), Err(SyncError::Failed(Errno(libc::EROFS))));
}
