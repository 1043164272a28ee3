//! The wire between the agents: nothing a peer sends can make the decoder panic or allocate
//! without bound, and the bytes of version 1 stay what they are.

#[path = "proto_wire/core.rs"]
mod core;

use proptest::prelude::*;
use skc::base::{ClusterId, Epoch, Generation, Volume};
use skc::proto::frame::{FrameBuf, FrameError, FrameRef, Kind, PREFIX, encode_into};
use skc::proto::stream::{
    Entry, EntryKind, Marker, OpFrame, OpFrameRef, Plan, Reply, Resync, StreamHello, Welcome,
};
use skc::proto::{Attr, FileId, FsOp};

const EPOCH: Epoch = Epoch { g: 3, s: 4 };
const ATTR: Attr =
    Attr { mode: 0o100_644, uid: 1, gid: 2, rdev: 0, size: 5, atime: (6, 7), mtime: (-8, 9), flags: 0x30 };

/// One of every message, with awkward values.
fn samples() -> Vec<(Kind, Vec<u8>)> {
    let mut out = Vec::new();
    let mut push = |kind, bytes: Result<Vec<u8>, FrameError>| out.push((kind, bytes.unwrap()));
    fn enc<T: serde::Serialize>(kind: Kind, message: &T, bulk: &[u8]) -> Result<Vec<u8>, FrameError> {
        let mut frame = Vec::new();
        encode_into(&mut frame, kind, 11, EPOCH, message, bulk)?;
        Ok(frame)
    }
    let hello = StreamHello {
        cluster: ClusterId("shop-db".into()),
        stream: u128::MAX - 1,
        plan: Plan::Resync { quarantine: true },
        from: 1,
        volumes: 2,
    };
    push(Kind::Hello, enc(Kind::Hello, &hello, b""));
    push(Kind::Welcome, enc(Kind::Welcome, &Welcome::Accepted { applied: 9 }, b""));
    push(Kind::Welcome, enc(Kind::Welcome, &Welcome::Refused { reason: "no".into() }, b""));
    let xattrs = vec![(b"user.a".to_vec(), serde_bytes::ByteBuf::from(vec![0, 255]))];
    let ops = vec![
        FsOp::Bind { id: FileId(2), parent: FileId::ROOT, name: b"\xff\n".to_vec() },
        FsOp::Forget { ids: vec![FileId(2), FileId(u64::MAX)] },
        FsOp::Make {
            parent: FileId::ROOT,
            name: b"f".to_vec(),
            id: FileId(3),
            mode_arg: 0o666,
            attr: ATTR,
            xattrs: xattrs.clone(),
            dir_mtime: (1, 2),
        },
        FsOp::Tmpfile { parent: FileId::ROOT, id: FileId(4), attr: ATTR, xattrs: xattrs.clone() },
        FsOp::Symlink {
            parent: FileId::ROOT,
            name: b"s".to_vec(),
            id: FileId(5),
            target: b"../x".to_vec(),
            attr: ATTR,
            dir_mtime: (1, 2),
        },
        FsOp::Link { id: FileId(4), parent: FileId::ROOT, name: b"l".to_vec(), dir_mtime: (1, 2) },
        FsOp::Unlink { parent: FileId::ROOT, name: b"l".to_vec(), dir_mtime: (1, 2) },
        FsOp::Rmdir { parent: FileId::ROOT, name: b"d".to_vec(), dir_mtime: (1, 2) },
        FsOp::Rename {
            parent: FileId::ROOT,
            name: b"a".to_vec(),
            to_parent: FileId(6),
            to_name: b"b".to_vec(),
            flags: 1,
            dir_mtime: (1, 2),
            to_dir_mtime: (3, 4),
            exchanged: Some([(5, 6), (7, 8)]),
        },
        FsOp::Write { id: FileId(3), offset: 4096, mtime: (1, 2), clear: Some(0o755) },
        FsOp::SetAttr {
            id: FileId(3),
            mode: Some(0o600),
            uid: None,
            gid: Some(7),
            size: Some(0),
            atime: None,
            mtime: (1, 2),
        },
        FsOp::SetXattr { id: FileId(3), name: b"user.a".to_vec(), flags: 1, mode: 0o644 },
        FsOp::RemoveXattr { id: FileId(3), name: b"user.a".to_vec(), mode: 0o644 },
        FsOp::Fallocate { id: FileId(3), mode: 3, offset: 1, length: 2, mtime: (1, 2), clear: Some(0o755) },
        FsOp::SetFlags { id: FileId(3), flags: 0x10 },
        FsOp::Fsync { id: FileId(3), data_only: true },
        FsOp::SyncFs,
        FsOp::Touch { parent: FileId(1), dir_mtime: (7, 8), other: Some((FileId(3), (9, 10))) },
    ];
    for op in &ops {
        let by_ref = OpFrameRef { volume: Volume(1), sync: true, op };
        push(Kind::Op, enc(Kind::Op, &by_ref, b"some bulk"));
    }
    let entries = vec![
        Entry { name: b"f".to_vec(), id: FileId(3), kind: EntryKind::File },
        Entry { name: b"s".to_vec(), id: FileId(5), kind: EntryKind::Symlink(b"t".to_vec()) },
        Entry { name: b"c".to_vec(), id: FileId(7), kind: EntryKind::Char(259) },
    ];
    let v = Volume(0);
    let resync = vec![
        Resync::Dir { volume: v, id: FileId::ROOT, entries, end: Some((ATTR, xattrs.clone())) },
        Resync::Hash {
            volume: v,
            id: FileId(3),
            offset: 0,
            length: 65_537,
            holes: vec![(0, 4096)],
            digests: vec![7; 64],
        },
        Resync::Fill { volume: v, id: FileId(3), offset: 65_536 },
        Resync::Hole { volume: v, id: FileId(3), offset: 0, length: 4096 },
        Resync::Meta { volume: v, id: FileId(3), attr: ATTR, xattrs, more: false },
        Resync::End,
    ];
    for step in &resync {
        push(Kind::Resync, enc(Kind::Resync, step, b""));
    }
    push(Kind::Marker, enc(Kind::Marker, &Marker::UpToDate { g: 2, cur: Generation(1 << 100) }, b""));
    push(Kind::Ping, enc(Kind::Ping, &(), b""));
    let replies = vec![
        Reply::Ack { applied: 12 },
        Reply::SyncAck { seq: 12, errno: 5 },
        Reply::Redo { seq: 12, volume: v, ids: vec![FileId(3)], lost: true },
        Reply::Want { volume: v, id: FileId(3), ranges: vec![(0, 65_536)] },
        Reply::Failed { seq: 12, errno: 28, what: "pwrite".into() },
        Reply::UpToDate { seq: 13 },
        Reply::Progress { kept_bytes: 1, kept_objects: 2, truncated: false },
    ];
    for reply in &replies {
        push(Kind::Reply, enc(Kind::Reply, reply, b""));
    }
    out
}

/// Decodes a frame the way an agent does; the result does not matter, that there is one does.
fn digest(frame: &FrameRef<'_>) -> bool {
    match frame.prefix.kind {
        Kind::Hello => frame.message::<StreamHello>().is_ok(),
        Kind::Welcome => frame.message::<Welcome>().is_ok(),
        Kind::Op => frame.message::<OpFrame>().is_ok(),
        Kind::Resync => frame.message::<Resync>().is_ok(),
        Kind::Marker => frame.message::<Marker>().is_ok(),
        Kind::Ping => frame.message::<()>().is_ok(),
        Kind::Reply => frame.message::<Reply>().is_ok(),
    }
}

fn feed(bytes: &[u8]) {
    let mut buf = FrameBuf::new();
    buf.extend(bytes);
    while let Ok(Some(frame)) = buf.next_frame() {
        digest(&frame);
    }
}

#[test]
fn every_message_survives_the_wire() {
    for (kind, bytes) in samples() {
        let mut buf = FrameBuf::new();
        buf.extend(&bytes);
        let frame = buf.next_frame().unwrap().unwrap();
        assert_eq!((frame.prefix.kind, frame.prefix.seq, frame.prefix.epoch), (kind, 11, EPOCH));
        assert!(digest(&frame), "{kind:?} does not decode");
    }
}

/// A change of these digests is a change of the wire: it needs a new version.
#[test]
fn golden_bytes_of_version_1() {
    use std::fmt::Write;
    let mut all = String::new();
    for (kind, bytes) in samples() {
        let _ = write!(all, "{kind:?} ");
        for byte in &bytes[PREFIX..] {
            let _ = write!(all, "{byte:02x}");
        }
        all.push('\n');
    }
    insta::assert_snapshot!("frames_v1", all);
}

#[test]
fn every_truncation_and_every_single_byte_change_is_survived() {
    for (_, bytes) in samples() {
        for cut in 0..bytes.len() {
            feed(&bytes[..cut]);
        }
        for at in 0..bytes.len() {
            for value in [0, 1, 0x7f, 0x80, 0xc1, 0xc6, 0xdd, 0xdf, 0xff] {
                let mut changed = bytes.clone();
                changed[at] = value;
                feed(&changed);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
        feed(&bytes);
    }

    #[test]
    fn random_headers_never_panic(
        kind in 1_u8..8,
        header in proptest::collection::vec(any::<u8>(), 0..512),
    ) {
        let kind = Kind::from_u8(kind).unwrap();
        let prefix = skc::proto::frame::Prefix { kind, header: header.len(), bulk: 0, seq: 1, epoch: EPOCH };
        let mut bytes = prefix.encode().to_vec();
        bytes.extend_from_slice(&header);
        feed(&bytes);
    }

    #[test]
    fn mutated_frames_never_panic(
        pick in any::<prop::sample::Index>(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let all = samples();
        let (_, mut bytes) = all[pick.index(all.len())].clone();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        feed(&bytes);
    }
}
