//! The target alone, under a source made of frames: each step at the position the test wants.

use crate::skip::{skipped, this_test};
use crate::support::{LONG, V, cluster, plain_pair, tree_at};
use skc::base::Epoch;
use skc::proto::frame::{self, FrameBuf, Kind};
use skc::proto::fsop::Time;
use skc::proto::stream::{Entry, EntryKind, OpFrame, Plan, Reply, Resync, StreamHello, Welcome};
use skc::proto::{Attr, FileId, FsOp};
use skc::replica::wire::{WireReader, WireWriter};
use skc::replica::{Event, Standby, standby};
use skc::sys::file::flags;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

const EPOCH: Epoch = Epoch { g: 1, s: 1 };
const TIME: Time = (1_000_000, 5);
const DIR: u32 = libc::S_IFDIR | 0o755;

/// A source made of frames, and the real target that it resyncs.
struct Source {
    _standby: Arc<Standby>,
    events: Receiver<Event>,
    reader: WireReader,
    writer: WireWriter,
    buf: FrameBuf,
    seq: u64,
}

impl Source {
    fn new(root: &Path, quarantine: bool) -> Self {
        let (a, b) = plain_pair();
        let plan = Plan::Resync { quarantine };
        let (tx, events) = channel();
        let tx = std::sync::Mutex::new(tx);
        let sink = Arc::new(move |event| drop(tx.lock().unwrap().send(event)));
        let standby =
            Arc::new(Standby::new(standby::Config::new(cluster()), vec![tree_at(root)], sink).unwrap());
        let accepting = Arc::clone(&standby);
        let accepting = std::thread::spawn(move || accepting.accept(b, EPOCH, plan));
        let (reader, writer) = a.split("fake").unwrap();
        let mut me = Self { _standby: standby, events, reader, writer, buf: FrameBuf::new(), seq: 0 };
        let hello = StreamHello { cluster: cluster(), stream: 1, plan, from: 1, volumes: 1 };
        me.send(Kind::Hello, 0, &hello, &[]);
        me.reader.set_timeout(Some(LONG)).unwrap();
        loop {
            if let Some(frame) = me.buf.next_frame().unwrap() {
                assert_eq!(frame.message::<Welcome>().unwrap(), Welcome::Accepted { applied: 0 });
                break;
            }
            me.reader.fill(&mut me.buf).unwrap();
        }
        accepting.join().unwrap().unwrap();
        me
    }

    fn send<T: serde::Serialize>(&self, kind: Kind, seq: u64, message: &T, bulk: &[u8]) {
        let mut out = Vec::new();
        frame::encode_into(&mut out, kind, seq, EPOCH, message, bulk).unwrap();
        self.writer.send(&out).unwrap();
    }

    /// Sends one live operation; what the target asks for until it has applied it.
    fn op(&mut self, op: FsOp, bulk: &[u8]) -> Vec<Reply> {
        self.seq += 1;
        self.send(Kind::Op, self.seq, &OpFrame { volume: V, sync: false, op }, bulk);
        self.replies()
    }

    /// Sends one step of the resync; what the target asks for until it has applied it.
    fn step(&mut self, step: &Resync) -> Vec<Reply> {
        self.seq += 1;
        self.send(Kind::Resync, self.seq, step, &[]);
        self.replies()
    }

    fn replies(&mut self) -> Vec<Reply> {
        let mut out = Vec::new();
        loop {
            while let Some(frame) = self.buf.next_frame().unwrap() {
                match frame.message::<Reply>().unwrap() {
                    Reply::Ack { applied } if applied >= self.seq => return out,
                    Reply::Ack { .. } | Reply::Progress { .. } => {}
                    reply => out.push(reply),
                }
            }
            if let Err(error) = self.reader.fill(&mut self.buf) {
                panic!("{error:?} {:?} {out:?}", self.events.try_iter().collect::<Vec<_>>());
            }
        }
    }

    fn list(&mut self, id: FileId, entries: &[(&str, u64, EntryKind)]) -> Vec<Reply> {
        let entry = |(name, id, kind): &(&str, u64, EntryKind)| Entry {
            name: name.as_bytes().to_vec(),
            id: FileId(*id),
            kind: kind.clone(),
        };
        let entries = entries.iter().map(entry).collect();
        let attr = Attr { mode: DIR, mtime: TIME, ..Attr::default() };
        self.step(&Resync::Dir { volume: V, id, entries, end: Some((attr, Vec::new())) })
    }

    fn bind(&mut self, parent: u64, name: &str, id: u64) -> Vec<Reply> {
        let (parent, id) = (FileId(parent), FileId(id));
        self.op(FsOp::Bind { id, parent, name: name.into() }, &[])
    }

    fn rename(&mut self, from: (u64, &str), to: (u64, &str)) -> Vec<Reply> {
        let op = FsOp::Rename {
            parent: FileId(from.0),
            name: from.1.into(),
            to_parent: FileId(to.0),
            to_name: to.1.into(),
            flags: 0,
            dir_mtime: TIME,
            to_dir_mtime: TIME,
            exchanged: None,
        };
        self.op(op, &[])
    }
}

/// The ids asked for again.
fn asked(replies: &[Reply]) -> Vec<u64> {
    let mut out: Vec<u64> = replies
        .iter()
        .flat_map(|reply| match reply {
            Reply::Redo { ids, .. } => ids.iter().map(|id| id.0).collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        })
        .collect();
    out.sort_unstable();
    out.dedup();
    out
}

/// A target with two directories in which `one/x` and `two/y` are the same file.
fn linked() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    for dir in ["one", "two"] {
        fs::create_dir(root.path().join(dir)).unwrap();
    }
    let (x, y) = (root.path().join("one/x"), root.path().join("two/y"));
    fs::write(&x, b"content").unwrap();
    fs::hard_link(&x, &y).unwrap();
    (root, x, y)
}

fn ino(path: &Path) -> u64 {
    fs::metadata(path).unwrap().ino()
}

const ROOT: [(&str, u64, EntryKind); 2] = [("one", 2, EntryKind::Dir), ("two", 3, EntryKind::Dir)];

#[test]
fn a_forgotten_id_keeps_no_object_from_its_next_id() {
    let (root, x, y) = linked();
    let mut source = Source::new(root.path(), false);
    source.list(FileId::ROOT, &ROOT);
    assert!(source.bind(2, "x", 10).is_empty());
    source.op(FsOp::Forget { ids: vec![FileId(10)] }, &[]);
    source.list(FileId(3), &[("y", 11, EntryKind::File)]);
    assert_eq!(ino(&x), ino(&y), "the link was broken");
    source.list(FileId(2), &[("x", 11, EntryKind::File)]);
    assert_eq!(ino(&x), ino(&y), "the link was broken");
    assert_eq!(fs::read(&x).unwrap(), b"content");
}

#[test]
fn two_ids_never_share_an_object_of_the_target() {
    let (root, x, y) = linked();
    let mut source = Source::new(root.path(), false);
    source.list(FileId::ROOT, &ROOT);
    source.list(FileId(2), &[("x", 10, EntryKind::File)]);
    // On the source these are two files.
    assert_eq!(asked(&source.bind(3, "y", 11)), [3, 11]);
    let write = FsOp::Write { id: FileId(11), offset: 0, mtime: TIME, clear: None };
    assert_eq!(asked(&source.op(write, b"other")), [11]);
    assert_eq!(fs::read(&x).unwrap(), b"content");
    source.list(FileId(3), &[("y", 11, EntryKind::File)]);
    assert_ne!(ino(&x), ino(&y));
}

#[test]
fn a_rename_of_a_link_that_only_the_target_has_is_looked_at_again() {
    let (root, x, _) = linked();
    let mut source = Source::new(root.path(), false);
    source.list(FileId::ROOT, &ROOT);
    source.list(FileId(2), &[("x", 10, EntryKind::File)]);
    // On the source `two/y` is a file of its own, and so is what becomes of it.
    assert_eq!(asked(&source.rename((3, "y"), (2, "z"))), [2]);
    source.list(FileId(2), &[("x", 10, EntryKind::File), ("z", 11, EntryKind::File)]);
    assert_ne!(ino(&x), ino(&root.path().join("one/z")));
    // In a directory that was made exact every name is what the source means.
    fs::hard_link(&x, root.path().join("two/w")).unwrap();
    source.list(FileId(3), &[("w", 10, EntryKind::File)]);
    assert!(source.rename((3, "w"), (2, "w")).is_empty());
    // What is known and has one name is believed.
    assert!(source.rename((2, "x"), (3, "x")).is_empty());
    assert!(source.rename((1, "one"), (3, "one")).is_empty());
}

#[test]
fn a_rename_that_does_nothing_here_is_looked_at_again() {
    let (root, x, y) = linked();
    let mut source = Source::new(root.path(), false);
    source.list(FileId::ROOT, &ROOT);
    source.list(FileId(2), &[("x", 10, EntryKind::File)]);
    // On the source `two/y` is another file and replaces `one/x`; here rename(2) changes nothing. What
    // stays in `two` is found when that is listed.
    assert_eq!(asked(&source.rename((3, "y"), (2, "x"))), [2]);
    source.list(FileId(2), &[("x", 11, EntryKind::File)]);
    source.list(FileId(3), &[]);
    assert!(x.exists() && !y.exists());
}

#[test]
fn an_object_of_another_type_is_asked_for_and_ends_nothing() {
    let root = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("nowhere", root.path().join("f")).unwrap();
    fs::create_dir(root.path().join("g")).unwrap();
    let mut source = Source::new(root.path(), false);
    // On the source both are files.
    source.bind(1, "f", 10);
    source.bind(1, "g", 11);
    let id = FileId(10);
    let xattr = FsOp::SetXattr { id, name: b"user.a".to_vec(), flags: 0, mode: 0o644 };
    assert_eq!(asked(&source.op(xattr, b"x")), [10]);
    let mode =
        FsOp::SetAttr { id, mode: Some(0o600), uid: None, gid: None, size: None, atime: None, mtime: TIME };
    assert_eq!(asked(&source.op(mode, &[])), [10]);
    let link = FsOp::Link { id: FileId(11), parent: FileId::ROOT, name: b"h".to_vec(), dir_mtime: TIME };
    assert_eq!(asked(&source.op(link, &[])), [1, 11]);
    source.list(FileId::ROOT, &[("f", 10, EntryKind::File), ("g", 11, EntryKind::File)]);
    let kind = |name: &str| fs::symlink_metadata(root.path().join(name)).unwrap().is_file();
    assert!(kind("f") && kind("g"));
}

#[test]
fn a_cut_hole_of_terabytes_is_no_long_step() {
    let root = tempfile::tempdir().unwrap();
    let (large, old) = (8_u64 << 40, vec![5; 100_000]);
    let file = fs::File::create(root.path().join("f")).unwrap();
    file.write_all_at(&old, large - (1 << 30)).unwrap();
    if file.set_len(large).is_err() {
        eprintln!("skipped: no file of this size here");
        return;
    }
    let mut source = Source::new(root.path(), true);
    source.list(FileId::ROOT, &[("f", 10, EntryKind::File)]);
    let (id, size) = (FileId(10), Some(4096));
    let cut = FsOp::SetAttr { id, mode: None, uid: None, gid: None, size, atime: None, mtime: TIME };
    let start = Instant::now();
    source.op(cut, &[]);
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    let run = fs::read_dir(root.path().join(".skc/quarantine")).unwrap().next().unwrap().unwrap().path();
    let kept = fs::read_dir(run.join("blocks")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = vec![0; old.len()];
    fs::File::open(kept).unwrap().read_exact_at(&mut bytes, large - (1 << 30)).unwrap();
    assert!(bytes == old);
}

#[test]
fn what_is_left_of_an_object_that_lost_its_name_is_not_it() {
    let (root, x, y) = linked();
    let mut source = Source::new(root.path(), false);
    source.list(FileId::ROOT, &ROOT);
    source.list(FileId(2), &[("x", 10, EntryKind::File)]);
    let unlink = FsOp::Unlink { parent: FileId(2), name: b"x".to_vec(), dir_mtime: TIME };
    source.op(unlink, &[]);
    assert!(!x.exists());
    // On the source `two/y` is another file. Here it is what is left of the first.
    assert_eq!(asked(&source.rename((3, "y"), (2, "z"))), [2]);
    source.op(FsOp::Forget { ids: vec![FileId(10)] }, &[]);
    source.bind(2, "z", 11);
    assert_eq!(asked(&source.rename((2, "z"), (3, "y"))), [3]);
    assert!(y.exists());
    assert_eq!(asked(&source.list(FileId(3), &[("y", 11, EntryKind::File)])), [11]);
}

#[test]
fn what_only_the_target_locks_stops_no_live_operation() {
    let root = tempfile::tempdir().unwrap();
    let at = |path: &str| root.path().join(path);
    for dir in ["one", "two"] {
        fs::create_dir(at(dir)).unwrap();
        fs::write(at(dir).join("x"), b"content").unwrap();
    }
    let lock = |path: &str| {
        let file = fs::File::open(at(path)).unwrap();
        let flags = flags::get_flags(file.as_fd()).unwrap_or(0);
        flags::set_flags(file.as_fd(), flags | flags::IMMUTABLE)
    };
    if lock("one/x").is_err() {
        skipped(&this_test(), "the file system of the temporary directory has no inode flags");
        return;
    }
    for path in ["one", "two/x", "two"] {
        lock(path).unwrap();
    }
    let mut source = Source::new(root.path(), true);
    source.bind(1, "one", 2);
    source.bind(1, "two", 3);
    source.bind(2, "x", 10);
    let make = FsOp::Make {
        parent: FileId(2),
        name: b"new".to_vec(),
        id: FileId(11),
        mode_arg: 0o644,
        attr: Attr { mode: libc::S_IFREG | 0o644, mtime: TIME, ..Attr::default() },
        xattrs: Vec::new(),
        dir_mtime: TIME,
    };
    assert!(asked(&source.op(make, &[])).contains(&2), "its flag is asked for again");
    assert!(at("one/new").exists());
    source.rename((2, "x"), (3, "y"));
    assert!(at("two/y").exists() && !at("one/x").exists());
    let unlink = FsOp::Unlink { parent: FileId(3), name: b"x".to_vec(), dir_mtime: TIME };
    source.op(unlink, &[]);
    assert!(!at("two/x").exists(), "gone, and kept");
    let link = FsOp::Link { id: FileId(10), parent: FileId::ROOT, name: b"h".to_vec(), dir_mtime: TIME };
    source.op(link, &[]);
    assert_eq!(ino(&at("h")), ino(&at("two/y")));
}
