//! What the two decision cores say and what each remembers: bytes of version 1, what is refused, and
//! that nothing that arrives or lies on the disk makes a reader panic.

#[path = "any.rs"]
mod any;

use any::{any_envelope, any_heartbeat, any_message, any_record};
use proptest::prelude::*;
use skc::base::{ClusterId, Epoch, Generation, NodeId, OpSeq};
use skc::daemon::beat::{self, Key};
use skc::engine::{
    Damage, Durable, HeartbeatBody, Hello, Inconsistent, LiveRole, PeerMessage, Plan, SwapRefusal, TreeState,
    Verdict, VerdictKind,
};
use skc::proto::control::{VERSIONS, VersionRange};
use skc::proto::envelope::{Envelope, Lacks, SpecStamp};
use skc::store::{FenceSlots, StoreError};
use std::fmt::Write;

const EPOCH: Epoch = Epoch { g: 3, s: 4 };
const DAMAGES: [Damage; 5] =
    [Damage::Resync, Damage::Apply { errno: 28 }, Damage::Sync, Damage::Stamp, Damage::Returning];
const ROLES: [LiveRole; 6] =
    [LiveRole::Stop, LiveRole::Wait, LiveRole::Alone, LiveRole::Prim, LiveRole::Frozen, LiveRole::Second];
const TREES: [TreeState; 8] = [
    TreeState::Unknown,
    TreeState::Ok { empty: true, stamp_ok: false },
    TreeState::Missing,
    TreeState::Replaced,
    TreeState::EmptyWhereNotEmpty,
    TreeState::DiskError,
    TreeState::Unmounted,
    TreeState::DiskHangs,
];
const PLANS: [Plan; 5] = [
    Plan::Replay { applied: OpSeq(7) },
    Plan::Ranges,
    Plan::FullCompare { quarantine: true },
    Plan::SeedEmpty,
    Plan::Continue,
];
const REFUSALS: [SwapRefusal; 3] = [SwapRefusal::NotPrimary, SwapRefusal::StandbyNotReady, SwapRefusal::Busy];

fn stays() -> [VerdictKind; 6] {
    [
        VerdictKind::AskSource,
        VerdictKind::SplitBrain { keeps: NodeId::B },
        VerdictKind::BothInconsistent,
        VerdictKind::Unrelated,
        VerdictKind::NotStarted,
        VerdictKind::NoTree,
    ]
}

/// Every field set, the integers as long as they can be.
fn hello(role: LiveRole, tree: TreeState) -> Hello {
    Hello {
        n: u64::MAX,
        node: NodeId::A,
        started: true,
        epoch: EPOCH,
        owner: Some(NodeId::B),
        grant: u128::MAX - 1,
        cur: Generation(1),
        base: Generation(1 << 100),
        history: vec![Generation(2), Generation(u128::MAX)],
        alone: true,
        last_primary: false,
        intact: true,
        inconsistent: Some(Inconsistent { source: Generation(5), damage: Damage::Apply { errno: -1 } }),
        role,
        replay_from: Some(OpSeq(9)),
        applied: None,
        tree,
        adopt: Some(NodeId::A),
        adopt_force: false,
        mint: 1 << 64,
        preferred: None,
        timeout: 2_000,
        interval: 200,
    }
}

fn verdict(kind: VerdictKind) -> PeerMessage {
    let verdict = Box::new(Verdict { kind, row: 13, epoch: EPOCH });
    PeerMessage::Verdict { mine: 1, yours: u64::MAX, verdict }
}

/// The compiler's reminder: a new variant of a message needs a sample, and new golden bytes a new version.
fn kind(message: &PeerMessage) -> usize {
    match message {
        PeerMessage::Hello(_) => 0,
        PeerMessage::Verdict { .. } => 1,
        PeerMessage::SourceReady { .. } => 2,
        PeerMessage::TargetReady { .. } => 3,
        PeerMessage::UpToDate { .. } => 4,
        PeerMessage::Token { .. } => 5,
        PeerMessage::TokenTaken { .. } => 6,
        PeerMessage::Leaving { .. } => 7,
        PeerMessage::LeaveTaken { .. } => 8,
        PeerMessage::Ejected { .. } => 9,
        PeerMessage::SwapRequest => 10,
        PeerMessage::SwapRefused { .. } => 11,
    }
}

/// One of every message, with every word that a message may carry.
fn messages() -> Vec<PeerMessage> {
    let mut out: Vec<PeerMessage> = ROLES
        .into_iter()
        .zip(TREES)
        .map(|(role, tree)| PeerMessage::Hello(Box::new(hello(role, tree))))
        .collect();
    out.extend(PLANS.map(|plan| {
        verdict(VerdictKind::Sync {
            source: NodeId::B,
            plan,
            target_was_intact: true,
            cur: Generation(u128::MAX),
        })
    }));
    out.extend(stays().map(verdict));
    out.extend([
        PeerMessage::SourceReady { epoch: EPOCH },
        PeerMessage::TargetReady { epoch: EPOCH },
        PeerMessage::UpToDate { epoch: EPOCH },
        PeerMessage::Token { epoch: EPOCH },
        PeerMessage::TokenTaken { epoch: EPOCH },
        PeerMessage::Leaving { epoch: EPOCH },
        PeerMessage::LeaveTaken { epoch: EPOCH },
    ]);
    out.extend(DAMAGES.map(|damage| PeerMessage::Ejected { epoch: EPOCH, damage }));
    out.push(PeerMessage::SwapRequest);
    out.extend(REFUSALS.map(|why| PeerMessage::SwapRefused { why }));
    out
}

fn envelopes() -> Vec<Envelope> {
    let cluster = ClusterId("shop-db".into());
    let stamp =
        |removed| SpecStamp { cluster: cluster.clone(), number: u64::MAX, node: "node-a".into(), removed };
    let lacks = Lacks { path: "/srv/a".into(), what: vec!["access control lists".into()] };
    vec![
        Envelope::Core { cluster: cluster.clone(), body: vec![0, 0xc1, 0xff] },
        Envelope::SpecList(vec![stamp(false), stamp(true)]),
        Envelope::SpecPut { stamp: stamp(false), text: "kind: ClusterSpec\n".into(), lacks: vec![lacks] },
        Envelope::SpecPut { stamp: stamp(true), text: String::new(), lacks: Vec::new() },
        Envelope::SpecWant(cluster.clone()),
        Envelope::SpecRefused { stamp: stamp(true), code: "SKC-E7022".into(), reason: "it runs here".into() },
    ]
}

fn heartbeats() -> Vec<(Key, HeartbeatBody)> {
    let full = HeartbeatBody {
        role: LiveRole::Frozen,
        epoch: EPOCH,
        alone: true,
        ready: true,
        heard_ms: Some(0),
        sure_ms: Some(u64::MAX),
        ask_yield: Some(EPOCH),
        yielded: Some(Epoch { g: u64::MAX, s: 0 }),
    };
    vec![
        (Key::of(&ClusterId("shop-db".into())), full),
        (Key::of(&ClusterId("files".into())), HeartbeatBody::default()),
    ]
}

fn records() -> Vec<Durable> {
    let full = Durable {
        epoch: EPOCH,
        owner: Some(NodeId::A),
        grant: u128::MAX,
        cur: Generation(u128::MAX),
        base: Generation(2),
        history: vec![Generation(2), Generation(1 << 80)],
        alone: true,
        peer_outdated: true,
        last_primary: true,
        intact_boot: Some(u128::MAX - 2),
        clean: true,
        behind: true,
        inconsistent: Some(Inconsistent { source: Generation(9), damage: Damage::Apply { errno: 28 } }),
        handed: Some(u64::MAX),
        stopped: true,
        boot: Some(1),
    };
    let mut all = vec![Durable::default()];
    all.extend(DAMAGES.map(|damage| Durable {
        inconsistent: Some(Inconsistent { source: Generation(9), damage }),
        ..full.clone()
    }));
    all.push(full);
    all
}

/// As the agents do it: structs as arrays in the order of their fields.
fn encode(message: &PeerMessage) -> Vec<u8> {
    rmp_serde::to_vec(message).unwrap()
}

fn decode(bytes: &[u8]) -> Result<PeerMessage, rmp_serde::decode::Error> {
    rmp_serde::from_slice(bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn lines<'a>(all: impl IntoIterator<Item = (String, &'a [u8])>) -> String {
    all.into_iter().fold(String::new(), |mut text, (name, bytes)| {
        let _ = writeln!(text, "{name} {}", hex(bytes));
        text
    })
}

/// A fencing file in a directory of its own.
struct Fence {
    dir: tempfile::TempDir,
}

impl Fence {
    fn new(record: &Durable) -> Self {
        let fence = Self { dir: tempfile::tempdir().unwrap() };
        FenceSlots::open(&fence.path()).unwrap().write(record).unwrap();
        fence
    }

    fn path(&self) -> std::path::PathBuf {
        self.dir.path().join("fence")
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(self.path()).unwrap()
    }

    fn read(&self) -> Result<Option<Durable>, StoreError> {
        let reading = FenceSlots::open(&self.path())?.read()?;
        Ok(reading.map(|r| r.value))
    }

    /// Reads again after `change` of the first slot, its checksum made to fit.
    fn changed(&self, change: impl FnOnce(&mut [u8])) -> Result<Option<Durable>, StoreError> {
        let mut bytes = self.bytes();
        let slot = &mut bytes[..SLOT];
        change(slot);
        let crc = crc32c::crc32c(&slot[4..]);
        slot[..4].copy_from_slice(&crc.to_le_bytes());
        std::fs::write(self.path(), &bytes).unwrap();
        self.read()
    }
}

/// Length of a slot of the fencing file, and where its payload begins.
const SLOT: usize = 4096;
const PAYLOAD: usize = 24;

#[test]
fn golden_bytes_of_the_cores_messages_of_version_1() {
    let all = messages();
    let kinds: std::collections::BTreeSet<usize> = all.iter().map(kind).collect();
    assert_eq!(kinds, (0..12).collect(), "every kind of message has a sample");
    let encoded: Vec<Vec<u8>> = all.iter().map(encode).collect();
    for (message, bytes) in all.iter().zip(&encoded) {
        assert_eq!(decode(bytes).unwrap(), *message);
    }
    let named =
        |m: &PeerMessage| format!("{m:?}").split([' ', '(', '{']).next().unwrap_or_default().to_owned();
    let text = lines(all.iter().zip(&encoded).map(|(m, b)| (named(m), b.as_slice())));
    insta::assert_snapshot!("core_messages_v1", text);
}

#[test]
fn golden_bytes_of_envelopes_of_version_1() {
    let encoded: Vec<Vec<u8>> = envelopes().iter().map(Envelope::encode).collect();
    for (envelope, bytes) in envelopes().iter().zip(&encoded) {
        assert_eq!(Envelope::decode(bytes).unwrap(), *envelope);
    }
    let named = |e: &Envelope| match e {
        Envelope::Core { .. } => "Core".to_owned(),
        Envelope::SpecList(_) => "SpecList".to_owned(),
        Envelope::SpecPut { .. } => "SpecPut".to_owned(),
        Envelope::SpecWant(_) => "SpecWant".to_owned(),
        Envelope::SpecRefused { .. } => "SpecRefused".to_owned(),
    };
    let text = lines(envelopes().iter().zip(&encoded).map(|(e, b)| (named(e), b.as_slice())));
    insta::assert_snapshot!("envelopes_v1", text);
}

#[test]
fn golden_bytes_of_heartbeat_bodies_of_version_1() {
    let all = heartbeats();
    let (body, next) = beat::encode(&all, 0);
    assert_eq!((beat::decode(&body), next), (all.clone(), 0));
    let roles: Vec<(Key, HeartbeatBody)> = ROLES
        .into_iter()
        .map(|role| (Key::of(&ClusterId("c".into())), HeartbeatBody { role, ..HeartbeatBody::default() }))
        .collect();
    let (words, _) = beat::encode(&roles, 0);
    assert_eq!(beat::decode(&words), roles);
    let text = lines([("all".to_owned(), body.as_slice()), ("roles".to_owned(), words.as_slice())]);
    insta::assert_snapshot!("heartbeat_bodies_v1", text);
}

/// The slot as it lies on the disk: checksum, magic, version, length, counter, record. A change of these
/// bytes is a new version of the store, unless it is a field that an older release may ignore.
#[test]
fn golden_bytes_of_the_fencing_record_of_version_1() {
    let mut text = String::new();
    for record in records() {
        let fence = Fence::new(&record);
        let bytes = fence.bytes();
        assert_eq!((bytes.len(), fence.read().unwrap()), (2 * SLOT, Some(record)));
        assert!(bytes[SLOT..].iter().all(|b| *b == 0), "the second slot is blank at birth");
        let length = u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize;
        let (record, rest) = bytes[PAYLOAD..SLOT].split_at(length);
        assert!(rest.iter().all(|b| *b == 0), "the rest of the slot is blank");
        let _ = writeln!(text, "{} {}", hex(&bytes[..PAYLOAD]), hex(record));
    }
    insta::assert_snapshot!("fencing_records_v1", text);
}

/// The first release wrote no `boot`: its records are read, and say nothing about it.
#[test]
fn a_fencing_record_without_the_later_fields_is_read() {
    #[derive(serde::Serialize)]
    struct First {
        epoch: Epoch,
        owner: Option<NodeId>,
        grant: u128,
        cur: Generation,
        base: Generation,
        history: Vec<Generation>,
        alone: bool,
        peer_outdated: bool,
        last_primary: bool,
        intact_boot: Option<u128>,
        behind: bool,
        inconsistent: Option<Inconsistent>,
        handed: Option<u64>,
        stopped: bool,
    }
    let first = First {
        epoch: EPOCH,
        owner: None,
        grant: 0,
        cur: Generation(1),
        base: Generation(0),
        history: Vec::new(),
        alone: true,
        peer_outdated: false,
        last_primary: true,
        intact_boot: None,
        behind: false,
        inconsistent: None,
        handed: None,
        stopped: true,
    };
    let fence = Fence::new(&Durable::default());
    FenceSlots::open(&fence.path()).unwrap().write(&first).unwrap();
    let expected = Durable {
        epoch: EPOCH,
        cur: Generation(1),
        alone: true,
        last_primary: true,
        stopped: true,
        ..Durable::default()
    };
    assert_eq!(fence.read().unwrap(), Some(expected));
}

#[test]
fn the_longest_fencing_record_fits_its_slot() {
    let history = vec![Generation(u128::MAX); skc::engine::durable::HISTORY_MAX];
    for record in records() {
        let record = Durable { history: history.clone(), ..record };
        assert_eq!(Fence::new(&record).read().unwrap(), Some(record));
    }
}

#[test]
fn a_fencing_record_of_another_version_is_refused_and_says_which() {
    for version in [2_u32, u32::MAX] {
        let fence = Fence::new(&records()[1]);
        let error = fence.changed(|slot| slot[8..12].copy_from_slice(&version.to_le_bytes())).unwrap_err();
        assert_eq!(error.code(), "SKC-E2103", "{error}");
        let text = error.to_string();
        assert!(text.contains(&version.to_string()) && text.contains("fence"), "{text}");
    }
}

#[test]
fn a_peer_that_speaks_only_later_versions_has_none_in_common() {
    let later = VersionRange { min: VERSIONS.max + 1, max: u16::MAX };
    assert_eq!(VERSIONS.common(later), None);
    assert_eq!(VERSIONS.common(VersionRange { min: 1, max: u16::MAX }), Some(VERSIONS.max));
}

/// Within a version nothing is guessed: an unknown kind or one field more or less is an error with its name.
#[test]
fn a_message_of_another_shape_is_refused() {
    let mut unknown = vec![0xa6];
    unknown.extend_from_slice(b"Quorum");
    let error = decode(&unknown).unwrap_err().to_string();
    assert!(error.contains("Quorum"), "{error}");
    let error = Envelope::decode(&unknown).unwrap_err().to_string();
    assert!(error.contains("Quorum"), "{error}");
    // {"Token": [[3, 4]]}: the epoch alone, then with a second field, then without any.
    let token = encode(&PeerMessage::Token { epoch: EPOCH });
    assert_eq!(token[7], 0x91);
    let mut more = token.clone();
    more[7] = 0x92;
    more.push(0xc0);
    let mut less = token[..8].to_vec();
    less[7] = 0x90;
    for bytes in [more, less] {
        assert!(decode(&bytes).is_err(), "{}", hex(&bytes));
    }
}

/// Feeds the bytes to every reader; that there is an answer is all that counts.
fn feed(bytes: &[u8]) {
    let _ = decode(bytes);
    if let Ok(Envelope::Core { body, .. }) = Envelope::decode(bytes) {
        let _ = decode(&body);
    }
    assert!(beat::decode(bytes).len() <= bytes.len());
    let _ = rmp_serde::from_slice::<Durable>(bytes);
}

fn golden() -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = messages().iter().map(encode).collect();
    all.extend(envelopes().iter().map(Envelope::encode));
    all.push(beat::encode(&heartbeats(), 0).0);
    all.extend(records().iter().map(|record| rmp_serde::to_vec_named(record).unwrap()));
    all
}

#[test]
fn every_cut_and_every_telling_byte_in_the_cores_messages_is_survived() {
    for bytes in golden() {
        for at in 0..bytes.len() {
            feed(&bytes[..at]);
            for value in [0, 0x7f, 0x80, 0x9f, 0xc1, 0xc6, 0xdd, 0xdf, 0xff] {
                let mut changed = bytes.clone();
                changed[at] = value;
                feed(&changed);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn every_message_of_a_core_comes_back_equal(message in any_message()) {
        prop_assert_eq!(decode(&encode(&message)).unwrap(), message);
    }

    #[test]
    fn every_envelope_comes_back_equal(envelope in any_envelope()) {
        prop_assert_eq!(Envelope::decode(&envelope.encode()).unwrap(), envelope);
    }

    #[test]
    fn every_heartbeat_body_comes_back_equal(
        all in prop::collection::vec(("[a-z]{1,8}", any_heartbeat()), 0..8),
    ) {
        let all: Vec<_> = all.into_iter().map(|(name, body)| (Key::of(&ClusterId(name)), body)).collect();
        prop_assert_eq!(beat::decode(&beat::encode(&all, 0).0), all);
    }

    #[test]
    fn no_bytes_make_a_reader_of_core_messages_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        feed(&bytes);
    }

    #[test]
    fn no_change_of_golden_bytes_makes_a_reader_panic(
        pick in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let all = golden();
        let mut bytes = pick.get(&all).clone();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        feed(&bytes);
    }
}

proptest! {
    // Each case writes and syncs a file.
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn every_fencing_record_comes_back_equal(record in any_record()) {
        prop_assert_eq!(Fence::new(&record).read().unwrap(), Some(record));
    }

    /// Damage that a checksum does not show is an error with a code, or another record; never a panic, never "new".
    #[test]
    fn a_damaged_fencing_record_is_never_taken_for_none(
        pick in any::<prop::sample::Index>(),
        changes in prop::collection::vec((4..400_usize, any::<u8>()), 1..8),
    ) {
        let all = records();
        let read = Fence::new(pick.get(&all)).changed(|slot| {
            for (at, value) in changes {
                slot[at] = value;
            }
        });
        prop_assert!(!matches!(read, Ok(None)));
    }
}
