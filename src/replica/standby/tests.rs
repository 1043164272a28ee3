//! A standby whose disk hangs or failed, under a real primary on loopback.

use super::*;
use crate::base::{Generation, Volume};
use crate::ports::{Admission, Gate, PendingReply, Replicator, ReplySink};
use crate::proto::{FileId, FsOp};
use crate::replica::{Primary, StreamEnd, primary};
use crate::sys::backing::Backing;
use std::cell::Cell;
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};

const LONG: Duration = Duration::from_secs(60);
const RESYNC: Plan = Plan::Resync { quarantine: false };

struct Nobody;

impl ReplySink for Nobody {
    fn send(&self, _unique: u64, _error: i32, _body: &[u8]) {}
}

struct Two {
    _dirs: [tempfile::TempDir; 2],
    target: Arc<Tree>,
    primary: Primary,
    standby: Arc<Standby>,
    events: Receiver<Event>,
    epoch: Epoch,
}

impl Two {
    fn new(sync_stall: Duration) -> Self {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        std::fs::write(dirs[0].path().join("f"), vec![1; 100_000]).unwrap();
        std::fs::write(dirs[1].path().join("f"), vec![2; 70_000]).unwrap();
        let tree = |n: usize| Arc::new(Tree::new(Volume(0), Backing::open(dirs[n].path()).unwrap()));
        let (source, target) = (tree(0), tree(1));
        let (tx, events) = channel();
        let tx = Mutex::new(tx);
        let sink: EventSink = Arc::new(move |event| {
            let _ = lock(&tx).send(event);
        });
        let id = ClusterId("two".into());
        let primary = Primary::new(primary::Config::new(id.clone()), vec![source], sink.clone()).unwrap();
        let cfg = Config { sync_threads: 1, sync_stall, ..Config::new(id) };
        let standby = Arc::new(Standby::new(cfg, vec![target.clone()], sink).unwrap());
        Self { _dirs: dirs, target, primary, standby, events, epoch: Epoch { g: 1, s: 0 } }
    }

    fn connect(&mut self, plan: Plan) -> Result<(), String> {
        self.epoch.s += 1;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let a = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let b = listener.accept().unwrap().0;
        let (standby, epoch) = (self.standby.clone(), self.epoch);
        let accepting = std::thread::spawn(move || standby.accept(DataConn::plain(b), epoch, plan));
        let opened = self.primary.connect(DataConn::plain(a), epoch, plan);
        accepting.join().unwrap().map_err(|e| e.to_string())?;
        opened.map_err(|e| e.to_string())
    }

    fn event(&self, what: &str, f: impl Fn(&Event) -> bool) {
        let end = Instant::now() + LONG;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let event = self.events.recv_timeout(left).unwrap_or_else(|_| panic!("no {what}"));
            if f(&event) {
                return;
            }
        }
    }

    fn ready(&mut self) {
        self.primary.set_gate(Gate::Alone(self.epoch), LONG).unwrap();
        self.connect(RESYNC).unwrap();
        self.event("ResyncDone", |e| matches!(e, Event::ResyncDone { .. }));
        self.primary.mark_up_to_date(self.epoch, 1, Generation(7)).unwrap();
        self.event("MarkerReached", |e| matches!(e, Event::MarkerReached { .. }));
        self.standby.sync().unwrap();
        self.standby.release_marker(self.epoch);
        self.event("UpToDateAcked", |e| matches!(e, Event::UpToDateAcked { .. }));
        self.primary.set_gate(Gate::Replicated(self.epoch), LONG).unwrap();
    }
}

#[test]
fn a_disk_that_answers_no_fsync_ends_the_stream() {
    let mut two = Two::new(Duration::from_secs(2));
    two.ready();
    let (release, held) = channel::<()>();
    two.standby.shared.pool.run(Box::new(move || {
        let _ = held.recv_timeout(LONG);
    }));
    let Admission::Go(ticket) = two.primary.admit() else { panic!("the gate is open") };
    let op = FsOp::Fsync { id: FileId::ROOT, data_only: false };
    let reply = PendingReply::new(Arc::new(Nobody), 1, &[]);
    two.primary.submit_sync(ticket, Volume(0), &op, &[], Box::new(|| Ok(())), reply);
    // Both sides say so; whose event comes first is open.
    let (here, there) = (Cell::new(false), Cell::new(false));
    two.event("ApplyFailed and PeerFailed", |e| {
        match e {
            Event::ApplyFailed { errno: libc::ETIMEDOUT, .. } => here.set(true),
            Event::PeerFailed { errno: libc::ETIMEDOUT, .. } => there.set(true),
            _ => {}
        }
        here.get() && there.get()
    });
    assert_eq!(two.standby.applied(), None);
    release.send(()).unwrap();
}

#[test]
fn a_spoiled_tree_ends_the_stream_and_is_never_replayed() {
    let mut two = Two::new(LONG);
    two.ready();
    assert!(two.primary.replay_from().is_some());
    two.primary.spoil(Volume(0), "something failed half-way");
    two.event(
        "StreamDown",
        |e| matches!(e, Event::StreamDown { why: StreamEnd::Unnamed(why), .. } if why.contains("half-way")),
    );
    assert_eq!((two.primary.replay_from(), two.primary.position()), (None, None));
    assert!(two.connect(Plan::Replay).is_err());
    // Without a stream it is as bad: the next standby must be compared.
    two.ready();
    assert!(two.primary.replay_from().is_some());
    two.primary.disconnect(LONG);
    two.primary.spoil(Volume(0), "again");
    assert_eq!(two.primary.replay_from(), None);
}

#[test]
fn after_a_failed_sync_only_a_compare_makes_a_standby() {
    let mut two = Two::new(LONG);
    two.ready();
    assert!(two.standby.close(LONG));
    two.event("StreamDown", |e| matches!(e, Event::StreamDown { .. }));
    assert!(two.standby.applied().is_some());
    // The answer of a disk that comes after the stream it belonged to.
    let (_reader, writer) = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        DataConn::plain(TcpStream::connect(listener.local_addr().unwrap()).unwrap()).split("old").unwrap()
    };
    let id = two.standby.shared.syncs.begin();
    two.standby.shared.sync_done(id, &writer, two.epoch, 1, Err(Errno(libc::EIO)));
    assert!(two.target.is_cache_distrusted());
    // Not even if a position is adopted meanwhile.
    let position = two.primary.position();
    two.standby.adopt_position(position);
    assert_eq!(two.standby.applied(), None);
    assert!(two.connect(Plan::Replay).is_err());
    assert!(two.target.is_cache_distrusted());
    while two.events.try_recv().is_ok() {}
    two.ready();
    assert!(!two.target.is_cache_distrusted());
}

#[test]
fn nothing_is_called_durable_after_a_failed_sync() {
    let two = Two::new(LONG);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let a = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut reader, _keep) = DataConn::plain(a).split("peer").unwrap();
    let (_reader, writer) = DataConn::plain(listener.accept().unwrap().0).split("own").unwrap();
    let shared = &two.standby.shared;
    shared.sync_done(shared.syncs.begin(), &writer, two.epoch, 1, Ok(()));
    // Another thread of the pool has just failed.
    shared.failed.store(true, Ordering::Release);
    shared.sync_done(shared.syncs.begin(), &writer, two.epoch, 2, Ok(()));
    shared.set_applied(Some(7));
    assert_eq!(two.standby.applied(), None);
    shared.sync_done(shared.syncs.begin(), &writer, two.epoch, 3, Err(Errno(libc::EIO)));
    reader.set_timeout(Some(LONG)).unwrap();
    let mut buf = FrameBuf::new();
    let mut answers = Vec::new();
    while reader.fill(&mut buf).is_ok() {
        while let Some(frame) = buf.next_frame().unwrap() {
            let Reply::SyncAck { seq, errno } = frame.message().unwrap() else { panic!("a SyncAck") };
            answers.push((seq, errno));
        }
    }
    assert_eq!(answers, [(1, 0), (3, libc::EIO)]);
}
