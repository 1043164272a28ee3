//! fsync: two disks, either of which may be late, silent or broken.

use crate::support::{FakeTarget, Got, LONG, Pair, until};
use skc::ports::{Gate, Replicator};
use skc::proto::FsOp;
use skc::proto::stream::{Plan, Reply};
use skc::replica::{Event, StreamEnd};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

#[test]
fn an_fsync_survives_a_replay_while_its_local_half_still_runs() {
    let mut pair = Pair::new();
    pair.ready();
    pair.mirror.create("f").map(|u| pair.mirror.wait(u)).unwrap();
    pair.standby.close(LONG);
    pair.event("StreamDown", |_, e| matches!(e, Event::StreamDown { .. }).then_some(()));
    let (release, held) = channel::<()>();
    let unique = pair
        .mirror
        .fsync_by("f", move || {
            let _ = held.recv_timeout(LONG);
            Ok(())
        })
        .unwrap();
    pair.gate(Gate::Frozen);
    // The target had applied the sync's frame; its answer was lost with the connection.
    let mut target = FakeTarget::connect(&mut pair, Plan::Replay, |from| from);
    let Got::Op(seq, FsOp::Fsync { .. }) = target.next() else { panic!("the sync is asked again") };
    target.reply(&Reply::Ack { applied: seq });
    target.reply(&Reply::SyncAck { seq, errno: 0 });
    pair.event("ReplayDone", |_, e| matches!(e, Event::ReplayDone { .. }).then_some(()));
    pair.gate(Gate::Replicated(pair.epoch));
    release.send(()).unwrap();
    assert_eq!(pair.mirror.wait(unique), 0);
    assert!(pair.mirror.primary.drain(LONG));
}

#[test]
fn a_standby_that_answers_no_fsync_is_dropped() {
    let mut pair = Pair::with(
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
        |c| c.sync_stall = Duration::from_millis(300),
        |_| {},
    );
    pair.ready();
    pair.mirror.create("f").map(|u| pair.mirror.wait(u)).unwrap();
    pair.standby.close(LONG);
    pair.event("StreamDown", |_, e| matches!(e, Event::StreamDown { .. }).then_some(()));
    pair.gate(Gate::Frozen);
    let mut target = FakeTarget::connect(&mut pair, Plan::Replay, |from| from - 1);
    pair.gate(Gate::Replicated(pair.epoch));
    let unique = pair.mirror.fsync("f", Ok(())).unwrap();
    // Its page cache takes everything, its disk hangs.
    let Got::Op(seq, FsOp::Fsync { .. }) = target.next() else { panic!("a sync") };
    target.reply(&Reply::Ack { applied: seq });
    let epoch = pair.epoch;
    until("stalled", || {
        pair.events.try_iter().any(|(_, e)| e == Event::StreamDown { epoch, why: StreamEnd::Stalled })
    });
    assert_eq!(pair.mirror.replies.get(unique), None);
    pair.gate(Gate::Alone(epoch));
    assert_eq!(pair.mirror.wait(unique), 0);
}

#[test]
fn what_the_kernel_forgets_in_a_drained_stream_does_not_spoil_the_hand_over() {
    let mut pair = Pair::new();
    pair.ready();
    pair.mirror.create("f").map(|u| pair.mirror.wait(u)).unwrap();
    let id = pair.mirror.resolve("f").unwrap();
    pair.gate(Gate::Frozen);
    assert!(pair.mirror.primary.drain(LONG));
    let position = pair.mirror.primary.position();
    assert!(position.is_some());
    pair.mirror.primary.forget(crate::support::V, &[id]);
    assert_eq!(pair.mirror.primary.position(), position);
    pair.gate(Gate::ReadOnly);
    pair.mirror.primary.forget(crate::support::V, &[id]);
    assert_eq!(pair.mirror.primary.position(), position);
}

#[test]
fn a_target_that_is_busy_with_one_step_is_waited_for() {
    let stall = Duration::from_millis(500);
    let mut pair = Pair::with(
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
        |c| c.ack_stall = stall,
        |_| {},
    );
    pair.gate(Gate::Alone(pair.epoch));
    let target = FakeTarget::connect(&mut pair, Plan::Resync { quarantine: false }, |from| from - 1);
    let start = Instant::now();
    while start.elapsed() < stall * 4 {
        target.reply(&Reply::Progress { kept_bytes: 0, kept_objects: 0, truncated: false });
        std::thread::park_timeout(stall / 10);
    }
    let down = |event: &Event| matches!(event, Event::StreamDown { .. });
    assert!(!pair.events.try_iter().any(|(_, event)| down(&event)), "it was alive");
    until("stalled", || pair.events.try_iter().any(|(_, event)| down(&event)));
}
