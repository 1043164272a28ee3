//! The live stream: equality, gates, replay, failures.

use crate::random::{Rng, step};
use crate::support::{FakeTarget, Got, LONG, Pair, V, until};
use skc::ports::{Admission, Errno, Gate, PendingReply, Replicator};
use skc::proto::FsOp;
use skc::proto::stream::{Plan, Reply, Resync};
use skc::replica::{Event, primary};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

fn run_random(pair: &Pair, seed: u64, steps: usize) -> Vec<u64> {
    let mut r = Rng(seed);
    (0..steps).filter_map(|_| step(&pair.mirror, &mut r).ok()).collect()
}

#[test]
fn random_operations_leave_equal_trees() {
    for seed in 0..6 {
        let mut pair = Pair::new();
        pair.ready();
        for unique in run_random(&pair, seed, 600) {
            assert_eq!(pair.mirror.wait(unique), 0, "seed {seed}");
        }
        pair.assert_equal();
    }
}

#[test]
fn random_operations_leave_equal_trees_over_tls() {
    let mut pair = Pair::new();
    pair.gate(Gate::Alone(pair.epoch));
    pair.try_connect(Plan::Resync { quarantine: false }, true).unwrap();
    pair.finish_resync();
    pair.gate(Gate::Replicated(pair.epoch));
    for unique in run_random(&pair, 99, 600) {
        assert_eq!(pair.mirror.wait(unique), 0);
    }
    let big = vec![7; 1 << 20];
    pair.mirror.create("big").unwrap();
    for n in 0..40 {
        let unique = pair.mirror.write("big", n << 20, &big).unwrap();
        assert_eq!(pair.mirror.wait(unique), 0);
    }
    pair.assert_equal();
}

#[test]
fn nothing_is_answered_before_the_standby_has_it() {
    let mut pair = Pair::new();
    pair.ready();
    pair.mirror.create("f").unwrap();
    for n in 0..200_u64 {
        let unique = pair.mirror.write("f", n * 8, &n.to_le_bytes()).unwrap();
        assert_eq!(pair.mirror.wait(unique), 0);
        let there = std::fs::read(pair.b.path().join("f")).unwrap();
        assert!(there[(n * 8) as usize..] == n.to_le_bytes());
    }
}

#[test]
fn frozen_parks_and_replay_brings_what_was_missed() {
    let mut pair = Pair::new();
    pair.ready();
    pair.mirror.create("f").map(|u| pair.mirror.wait(u)).unwrap();
    // The connection breaks under load: some operations are applied here only.
    let mut waiting = run_random(&pair, 5, 100);
    pair.standby.close(LONG);
    pair.event("StreamDown", |_, e| matches!(e, Event::StreamDown { .. }).then_some(()));
    waiting.extend(run_random(&pair, 6, 50));
    waiting.push(pair.mirror.write("f", 0, b"unsent").unwrap());
    pair.gate(Gate::Frozen);
    let last = *waiting.last().unwrap();
    assert_eq!(pair.mirror.replies.get(last), None, "answered without a standby");
    pair.connect(Plan::Replay);
    pair.event("ReplayDone", |_, e| matches!(e, Event::ReplayDone { .. }).then_some(()));
    assert_eq!(pair.mirror.replies.get(last), None, "answered while frozen");
    pair.gate(Gate::Replicated(pair.epoch));
    for unique in waiting {
        assert_eq!(pair.mirror.wait(unique), 0);
    }
    for unique in run_random(&pair, 7, 100) {
        assert_eq!(pair.mirror.wait(unique), 0);
    }
    pair.assert_equal();
}

#[test]
fn parked_requests_run_after_the_thaw() {
    let mut pair = Pair::new();
    pair.ready();
    pair.gate(Gate::Frozen);
    std::thread::scope(|scope| {
        let mirror = &pair.mirror;
        let threads: Vec<_> = (0..8)
            .map(|n| scope.spawn(move || mirror.create(&format!("f{n}")).map(|u| mirror.wait(u))))
            .collect();
        assert!(std::fs::read_dir(pair.a.path()).unwrap().next().is_none(), "applied while frozen");
        pair.gate(Gate::Replicated(pair.epoch));
        for thread in threads {
            assert_eq!(thread.join().unwrap(), Ok(0));
        }
    });
    pair.assert_equal();
}

#[test]
fn going_alone_answers_what_waits_and_bars_replay() {
    let mut pair = Pair::new();
    pair.ready();
    pair.mirror.create("f").map(|u| pair.mirror.wait(u)).unwrap();
    pair.standby.close(LONG);
    pair.event("StreamDown", |_, e| matches!(e, Event::StreamDown { .. }).then_some(()));
    let unique = pair.mirror.write("f", 0, b"alone").unwrap();
    let sync = pair.mirror.fsync("f", Ok(())).unwrap();
    pair.gate(Gate::Frozen);
    assert!(pair.mirror.primary.replay_from().is_some());
    assert_eq!(pair.mirror.replies.get(unique), None);
    pair.gate(Gate::Alone(pair.epoch));
    assert_eq!((pair.mirror.wait(unique), pair.mirror.wait(sync)), (0, 0));
    assert_eq!(pair.mirror.primary.replay_from(), None);
    assert!(pair.try_connect(Plan::Replay, false).is_err());
    pair.ready();
    pair.assert_equal();
}

#[test]
fn what_only_this_side_has_is_not_answered_by_a_gate() {
    let mut pair = Pair::new();
    pair.ready();
    pair.mirror.create("f").map(|u| pair.mirror.wait(u)).unwrap();
    pair.standby.close(LONG);
    pair.event("StreamDown", |_, e| matches!(e, Event::StreamDown { .. }).then_some(()));
    let unique = pair.mirror.write("f", 0, b"here only").unwrap();
    pair.gate(Gate::Frozen);
    // A target that has to be compared: until the marker it is not known to hold the write.
    let mut target = FakeTarget::connect(&mut pair, Plan::Resync { quarantine: false }, |from| from - 1);
    pair.gate(Gate::Replicated(pair.epoch));
    let Got::Resync(seq, _) = target.next() else { panic!("a step") };
    target.reply(&Reply::Ack { applied: seq });
    let next = pair.mirror.write("f", 0, b"this, too").unwrap();
    let (mut written, mut ended) = (false, false);
    while !(written && ended) {
        let got = target.next();
        written |= matches!(got, Got::Op(_, FsOp::Write { .. }));
        ended |= matches!(got, Got::Resync(_, Resync::End));
        let (Got::Op(seq, _) | Got::Resync(seq, _) | Got::Marker(seq)) = got;
        target.reply(&Reply::Ack { applied: seq });
    }
    until("acknowledged", || pair.mirror.primary.in_flight().1 == 0);
    assert_eq!((pair.mirror.replies.get(unique), pair.mirror.replies.get(next)), (None, None));
    pair.gate(Gate::Alone(pair.epoch));
    assert_eq!((pair.mirror.wait(unique), pair.mirror.wait(next)), (0, 0));
}

#[test]
fn shut_answers_eio_and_refuses() {
    let mut pair = Pair::new();
    pair.ready();
    pair.mirror.create("f").map(|u| pair.mirror.wait(u)).unwrap();
    pair.standby.close(LONG);
    let unique = pair.mirror.write("f", 0, b"lost").unwrap();
    pair.gate(Gate::Frozen);
    pair.gate(Gate::Shut);
    assert_eq!(pair.mirror.wait(unique), libc::EIO);
    assert_eq!(pair.mirror.create("g"), Err(Errno(libc::EIO)));
    pair.gate(Gate::ReadOnly);
    assert_eq!(pair.mirror.create("g"), Err(Errno(libc::EROFS)));
}

#[test]
fn fsync_waits_for_both_disks() {
    let mut pair = Pair::new();
    pair.ready();
    pair.mirror.create("f").unwrap();
    pair.mirror.write("f", 0, b"x").unwrap();
    let unique = pair.mirror.fsync("f", Ok(())).unwrap();
    assert_eq!(pair.mirror.wait(unique), 0);
    let unique = pair.mirror.fsync("f", Err(Errno(libc::EIO))).unwrap();
    assert_eq!(pair.mirror.wait(unique), libc::EIO);
    pair.event("LocalDiskError", |_, e| {
        matches!(e, Event::LocalDiskError { errno: libc::EIO }).then_some(())
    });
    assert!(pair.mirror.primary.drain(LONG));
    assert_eq!(pair.mirror.primary.position(), pair.standby.applied());
}

#[test]
fn a_tmpfile_gets_its_name_on_both_sides() {
    let mut pair = Pair::new();
    // Made before there is a stream: sent whole when it is linked.
    pair.gate(Gate::Alone(pair.epoch));
    let old = pair.mirror.tmpfile().unwrap();
    pair.mirror.write_id(old, 70_000, b"old content").unwrap();
    pair.ready();
    pair.mirror.link_id(old, "old").map(|u| assert_eq!(pair.mirror.wait(u), 0)).unwrap();
    let new = pair.mirror.tmpfile().unwrap();
    pair.mirror.write_id(new, 5, b"new content").unwrap();
    pair.mirror.link_id(new, "new").map(|u| assert_eq!(pair.mirror.wait(u), 0)).unwrap();
    pair.mirror.link("new", "newer").map(|u| assert_eq!(pair.mirror.wait(u), 0)).unwrap();
    pair.assert_equal();
}

#[test]
fn a_file_that_is_sent_whole_gets_its_name_last() {
    let mut pair = Pair::new();
    pair.gate(Gate::Alone(pair.epoch));
    let old = pair.mirror.tmpfile().unwrap();
    // A v2 capability set: cap_net_bind_service+ep.
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    pair.mirror.write_id(old, 0, &vec![7; 3 << 19]).unwrap();
    {
        let path = pair.mirror.tree.open_path(old).unwrap();
        for (name, value) in [("security.capability", &capability[..]), ("user.note", b"x")] {
            skc::sys::file::set_xattr(path.as_fd(), name.as_bytes(), value, 0).unwrap();
        }
    }
    // The same file under two names: one for each target.
    let mut target = FakeTarget::connect(&mut pair, Plan::Resync { quarantine: false }, |from| from - 1);
    pair.mirror.link_id(old, "first").unwrap();
    let mut ops = Vec::new();
    loop {
        match target.next() {
            Got::Op(_, op) => ops.push(op),
            Got::Resync(seq, _) | Got::Marker(seq) => target.reply(&Reply::Ack { applied: seq }),
        }
        if matches!(ops.last(), Some(FsOp::Link { .. })) {
            break;
        }
    }
    assert!(matches!(ops[0], FsOp::Tmpfile { .. }), "{:?}", ops[0]);
    assert!(ops[1..].iter().all(|op| !matches!(op, FsOp::Make { .. })));
    pair.mirror.primary.disconnect(LONG);
    pair.mirror.unlink("first").unwrap();
    while pair.events.try_recv().is_ok() {}
    let new = pair.mirror.tmpfile().unwrap();
    pair.mirror.write_id(new, 0, &vec![8; 3 << 19]).unwrap();
    {
        let path = pair.mirror.tree.open_path(new).unwrap();
        skc::sys::file::set_xattr(path.as_fd(), b"security.capability", &capability, 0).unwrap();
    }
    pair.ready();
    pair.mirror.link_id(new, "second").map(|u| assert_eq!(pair.mirror.wait(u), 0)).unwrap();
    pair.assert_equal();
}

#[test]
fn an_unlinked_file_can_still_be_written() {
    let mut pair = Pair::new();
    pair.ready();
    pair.mirror.create("f").unwrap();
    let id = pair.mirror.resolve("f").unwrap();
    pair.mirror.write("f", 0, b"x").map(|u| pair.mirror.wait(u)).unwrap();
    let kept = pair.mirror.tree.open(id, libc::O_RDWR).unwrap();
    pair.mirror.unlink("f").map(|u| assert_eq!(pair.mirror.wait(u), 0)).unwrap();
    pair.mirror.tree.inodes.set_kept(id, Some(kept));
    let unique = pair.mirror.write_id(id, 1, b"y").unwrap();
    assert_eq!(pair.mirror.wait(unique), 0);
    let unique = pair.mirror.create("f").unwrap();
    assert_eq!(pair.mirror.wait(unique), 0);
    pair.assert_equal();
}

#[test]
fn a_standby_that_cannot_apply_says_so_and_stops() {
    let mut pair = Pair::new();
    pair.ready();
    pair.mirror.create("f").map(|u| pair.mirror.wait(u)).unwrap();
    // Somebody changed the standby's tree behind our back.
    std::fs::remove_file(pair.b.path().join("f")).unwrap();
    std::fs::create_dir(pair.b.path().join("g")).unwrap();
    let unique = pair.mirror.create("g").unwrap();
    let (errno, what) = pair.event("ApplyFailed", |_, e| match e {
        Event::ApplyFailed { errno, what, .. } => Some((*errno, what.clone())),
        _ => None,
    });
    assert_eq!(errno, libc::EEXIST, "{what}");
    assert_eq!(pair.standby.applied(), None);
    until("stream down", || pair.mirror.primary.in_flight().1 > 0);
    assert_eq!(pair.mirror.replies.get(unique), None, "answered although the standby failed");
}

#[test]
fn frames_of_another_epoch_are_refused() {
    let mut pair = Pair::new();
    pair.ready();
    let (a, b) = crate::support::plain_pair();
    let standby = pair.standby.clone();
    let right = skc::base::Epoch { g: 9, s: 9 };
    let accepting = std::thread::spawn(move || standby.accept(b, right, Plan::Resync { quarantine: false }));
    let wrong = skc::base::Epoch { g: 8, s: 9 };
    assert!(pair.mirror.primary.connect(a, wrong, Plan::Resync { quarantine: false }).is_err());
    assert!(accepting.join().unwrap().is_err());
}

#[test]
fn a_target_that_claims_the_largest_position_is_refused() {
    let mut pair = Pair::new();
    pair.gate(Gate::Alone(pair.epoch));
    for plan in [Plan::Resync { quarantine: false }, Plan::Replay] {
        let opened = FakeTarget::try_connect(&mut pair, plan, |_| u64::MAX);
        assert!(matches!(opened, Err(primary::ConnectError::NoReplay { .. })), "{:?}", opened.err());
        pair.ready();
        pair.standby.close(LONG);
        pair.event("StreamDown", |_, e| matches!(e, Event::StreamDown { .. }).then_some(()));
    }
}

#[test]
fn a_full_window_parks_and_moves_on() {
    let mut pair = Pair::with(
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
        |c| (c.window_ops, c.window_bytes) = (4, 64 << 10),
        |_| {},
    );
    pair.ready();
    pair.mirror.create("f").unwrap();
    let data = vec![1; 30_000];
    std::thread::scope(|scope| {
        for t in 0..8_u64 {
            let (mirror, data) = (&pair.mirror, &data);
            scope.spawn(move || {
                for n in 0..30 {
                    let unique = mirror.write("f", (t * 30 + n) * 30_000, data).unwrap();
                    assert_eq!(mirror.wait(unique), 0);
                }
            });
        }
    });
    pair.assert_equal();
}

#[test]
fn a_target_that_does_not_acknowledge_is_dropped() {
    let mut pair = Pair::with(
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
        |c| c.ack_stall = Duration::from_millis(300),
        |_| {},
    );
    pair.gate(Gate::Alone(pair.epoch));
    pair.connect(Plan::Resync { quarantine: false });
    pair.event("ResyncDone", |_, e| matches!(e, Event::ResyncDone { .. }).then_some(()));
    // A second stream whose other end never reads.
    pair.standby.close(LONG);
    pair.mirror.primary.disconnect(LONG);
    let (a, b) = crate::support::plain_pair();
    let epoch = skc::base::Epoch { g: 1, s: 50 };
    let silent = std::thread::spawn(move || {
        let (mut reader, writer) = b.split("silent").unwrap();
        let mut buf = skc::proto::frame::FrameBuf::new();
        let hello = loop {
            if let Some(frame) = buf.next_frame().unwrap() {
                break frame.message::<skc::proto::stream::StreamHello>().unwrap();
            }
            reader.fill(&mut buf).unwrap();
        };
        let mut out = Vec::new();
        let welcome = skc::proto::stream::Welcome::Accepted { applied: hello.from - 1 };
        skc::proto::frame::encode_into(&mut out, skc::proto::frame::Kind::Welcome, 0, epoch, &welcome, &[])
            .unwrap();
        writer.send(&out).unwrap();
        (reader, writer)
    });
    pair.mirror.primary.connect(a, epoch, Plan::Resync { quarantine: false }).unwrap();
    let _open = silent.join().unwrap();
    let start = Instant::now();
    until("stalled", || {
        pair.events.try_iter().any(|(_, e)| {
            matches!(e, Event::StreamDown { why: skc::replica::StreamEnd::Stalled, epoch: e } if e == epoch)
        })
    });
    assert!(start.elapsed() < Duration::from_secs(5));
    // The application goes on.
    pair.mirror.create("f").map(|u| assert_eq!(pair.mirror.wait(u), 0)).unwrap();
}

#[test]
fn the_roles_are_exchanged_without_a_compare() {
    let mut pair = Pair::new();
    pair.ready();
    for unique in run_random(&pair, 21, 200) {
        assert_eq!(pair.mirror.wait(unique), 0);
    }
    // Hand-over: freeze, drain, close, number on from the same position.
    pair.gate(Gate::Frozen);
    assert!(pair.mirror.primary.drain(LONG));
    pair.mirror.primary.disconnect(LONG);
    pair.standby.close(LONG);
    let position = pair.mirror.primary.position();
    assert_eq!(position, pair.standby.applied());
    pair.gate(Gate::ReadOnly);
    let Pair { a, b, .. } = pair;
    let mut back = Pair::with(b, a, |_| {}, |_| {});
    back.mirror.primary.adopt_position(position.unwrap());
    back.standby.adopt_position(position);
    back.connect(Plan::Replay);
    back.event("ReplayDone", |_, e| matches!(e, Event::ReplayDone { .. }).then_some(()));
    back.gate(Gate::Replicated(back.epoch));
    for unique in run_random(&back, 22, 200) {
        assert_eq!(back.mirror.wait(unique), 0);
    }
    back.assert_equal();
}

#[test]
fn parked_requests_are_bounded_by_their_bytes() {
    let mut pair = Pair::with(
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
        |c| (c.parked_bytes, c.freeze_limit) = (1000, Duration::from_millis(200)),
        |_| {},
    );
    pair.ready();
    pair.gate(Gate::Frozen);
    let (tx, ran) = std::sync::mpsc::channel();
    let park = |name: &'static str, weight: usize| {
        let tx = tx.clone();
        pair.mirror.primary.park(Box::new(move || tx.send(name).unwrap()), weight);
    };
    // One is always taken, however large; then what still fits.
    park("large", 1000);
    assert!(ran.try_recv().is_err());
    // Past the bound its caller waits, and past the limit of a freeze it is run to be refused.
    park("too much", 1);
    assert_eq!(ran.try_recv(), Ok("too much"));
    assert_eq!(pair.mirror.create("f"), Err(Errno(libc::EIO)));
    pair.gate(Gate::Replicated(pair.epoch));
    assert_eq!(ran.recv_timeout(LONG), Ok("large"));
    park("again", 1000);
    assert_eq!(ran.recv_timeout(LONG), Ok("again"));
}

#[test]
fn a_parked_request_that_panics_takes_no_other_with_it() {
    let mut pair = Pair::new();
    pair.ready();
    pair.gate(Gate::Frozen);
    let (tx, ran) = std::sync::mpsc::channel();
    pair.mirror.primary.park(Box::new(|| panic!("as intended")), 0);
    pair.mirror.primary.park(Box::new(move || tx.send(()).unwrap()), 0);
    pair.gate(Gate::Replicated(pair.epoch));
    assert_eq!(ran.recv_timeout(LONG), Ok(()));
    // The helper still watches and runs.
    pair.mirror.create("f").map(|u| assert_eq!(pair.mirror.wait(u), 0)).unwrap();
}

#[test]
fn an_operation_that_hangs_in_the_disk_is_given_up_and_answers_eio() {
    let mut pair = Pair::new();
    pair.ready();
    pair.mirror.create("f").map(|u| pair.mirror.wait(u)).unwrap();
    let (primary, id) = (&pair.mirror.primary, pair.mirror.resolve("f").unwrap());
    let Admission::Go(ticket) = primary.admit() else { panic!("admitted") };
    assert!(primary.set_gate(Gate::ReadOnly, Duration::from_millis(20)).is_err(), "it hangs");
    primary.force_gate(Gate::ReadOnly);
    assert!(primary.is_forced());
    assert_eq!(pair.mirror.create("g"), Err(Errno(libc::EIO)), "nothing is admitted meanwhile");
    // It has changed the tree after all.
    let op = FsOp::Write { id, offset: 0, mtime: (0, 0), clear: None };
    primary.submit(ticket, V, &op, b"late", PendingReply::new(pair.mirror.replies.clone(), 1 << 40, &[]));
    assert_eq!(pair.mirror.wait(1 << 40), libc::EIO);
    assert_eq!((primary.position(), primary.replay_from()), (None, None), "no copy without a compare");
    primary.set_gate(Gate::ReadOnly, LONG).unwrap();
    assert!(!primary.is_forced());
    assert_eq!(pair.mirror.create("g"), Err(Errno(libc::EROFS)));
}
