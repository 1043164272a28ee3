//! The judge itself: faults that are planted into what survived must be found, and nothing else.

use crate::act::{Actor, Outcome};
use crate::journal::{Acks, Journal, Notes, PROCESSES};
use crate::judge::{self, Promise, State, Verdict, consistent};
use crate::op::{Op, SET_TIMES_END};
use crate::snapshot::{self, Snapshot, Times, distance};
use skc::sys::inspect;
use std::ffi::CString;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

const SEED: u64 = 7;
/// Operations of a process.
const LENGTH: u64 = 200;
/// After so many of them its directory has everything that a fault may be planted into.
const RICH: u64 = 160;

/// What a process did, and what its directory was after each operation, read in full each time.
struct History {
    process: usize,
    ops: Vec<Op>,
    returned: Vec<Outcome>,
    snapshots: Vec<Snapshot>,
}

impl History {
    fn of(process: usize) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let mut actor = Actor::new(dir.path(), SEED, process as u64);
        let (mut ops, mut returned) = (Vec::new(), Vec::new());
        let mut snapshots = vec![Snapshot::new()];
        for _ in 0..LENGTH {
            let op = actor.next();
            returned.push(actor.perform(&op));
            ops.push(op);
            snapshots.push(snapshot::read(actor.root()).expect("read the tree"));
        }
        Self { process, ops, returned, snapshots }
    }

    /// A place with the notes of this history, and with what is left when only these operations were done.
    fn survivor(&self, done: &[u64]) -> Place {
        let place = Place::new();
        self.note(&place);
        self.survives(&place, done);
        place
    }

    fn note(&self, place: &Place) {
        let mut notes = Notes::open(&place.notes(), self.process).expect("notes");
        for (n, (op, returned)) in (1..).zip(self.ops.iter().zip(&self.returned)) {
            notes.starts(n).expect("note");
            notes.acknowledged(n, *returned, op.syncs()).expect("note");
        }
    }

    fn survives(&self, place: &Place, done: &[u64]) {
        let mut actor = Actor::new(&place.survivor(), SEED, self.process as u64);
        for n in done {
            actor.perform(&self.ops[*n as usize - 1]);
        }
    }

    /// The states in which the tree was this.
    fn states(&self, snapshot: &Snapshot) -> Vec<u64> {
        let same = |n: &u64| distance(snapshot, &self.snapshots[*n as usize], Times::Set) == 0;
        (0..=LENGTH).filter(same).collect()
    }
}

/// Where one case is judged.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().expect("a directory"));
        for dir in [place.notes(), place.survivor(), place.plain()] {
            fs::create_dir(dir).expect("make a directory");
        }
        place
    }

    fn notes(&self) -> PathBuf {
        self.0.path().join("notes")
    }

    fn survivor(&self) -> PathBuf {
        self.0.path().join("survivor")
    }

    fn plain(&self) -> PathBuf {
        self.0.path().join("plain")
    }

    /// The directory of process 0.
    fn tree(&self) -> PathBuf {
        self.survivor().join("p0")
    }

    fn judged(&self, promise: Promise) -> Verdict {
        judge::judge(promise, SEED, &self.survivor(), &self.notes(), &self.plain()).expect("judge")
    }
}

fn first(n: u64) -> Vec<u64> {
    (1..=n).collect()
}

/// States in which a whole number of operations was done.
fn whole(states: &[State]) -> Vec<u64> {
    states.iter().filter(|state| state.done == state.begun).map(|state| state.done).collect()
}

#[test]
fn every_earlier_state_is_found_where_it_is() {
    let history = History::of(0);
    for n in (0..=LENGTH).step_by(13) {
        let place = history.survivor(&first(n));
        let verdict = place.judged(Promise::Prefix);
        assert!(verdict.broken.is_empty(), "state {n}: {:?}", verdict.broken);
        let found = whole(&verdict.states[0]);
        assert!(found.contains(&n), "state {n} is one of {found:?}");
        let like = history.states(&history.snapshots[n as usize]);
        assert!(found.iter().all(|n| like.contains(n)), "state {n}: {found:?} look like {like:?}");
        let every = place_again(place).judged(Promise::Every);
        assert_eq!(every.broken.is_empty(), like.contains(&LENGTH), "state {n} is not the last");
    }
}

/// The same place, to be judged once more.
fn place_again(place: Place) -> Place {
    fs::remove_dir_all(place.plain()).expect("remove");
    fs::create_dir(place.plain()).expect("make a directory");
    place
}

#[test]
fn lost_and_swapped_operations_are_found() {
    let history = History::of(0);
    let (mut lost, mut swapped) = (0, 0);
    for n in (RICH - 40..RICH).step_by(3) {
        let without: Vec<u64> = first(RICH).into_iter().filter(|done| *done != n).collect();
        lost += u64::from(is_refused(&history, &without));
        // The later of two came alone.
        let early: Vec<u64> = first(n - 1).into_iter().chain([n + 1]).collect();
        lost += u64::from(is_refused(&history, &early));
        // The next with the same object came before it.
        let op = |n: u64| &history.ops[n as usize - 1];
        let of_both = |m: &u64| op(*m).paths().iter().any(|path| op(n).paths().contains(path));
        if let Some(m) = (n + 1..=RICH).find(of_both) {
            let mut order = first(m);
            order.swap(n as usize - 1, m as usize - 1);
            swapped += u64::from(is_refused(&history, &order));
        }
    }
    // The others changed nothing, or nothing that is left.
    assert!(lost >= 10 && swapped >= 3, "{lost} lost, {swapped} swapped");
}

/// Is what these operations make refused? It must be exactly if the history never was there.
fn is_refused(history: &History, done: &[u64]) -> bool {
    let place = history.survivor(done);
    let like = history.states(&snapshot::read(&place.tree()).expect("read the tree"));
    let verdict = place.judged(Promise::Prefix);
    let found = whole(&verdict.states[0]);
    assert!(found.iter().all(|n| like.contains(n)), "{found:?}, but the tree was so after {like:?}");
    if like.is_empty() {
        assert!(!verdict.broken.is_empty(), "found in {:?}, done were {done:?}", verdict.states[0]);
    }
    like.is_empty()
}

/// Plants a fault with `plant` into the first object for which it can (and says so); the judge must name it.
fn planted(history: &History, what: &str, mut plant: impl FnMut(&Path, &fs::Metadata) -> bool) {
    let place = history.survivor(&first(RICH));
    let tree = snapshot::read(&place.tree()).expect("read the tree");
    let at = tree.keys().map(|path| place.tree().join(path)).find(|path| {
        let meta = fs::symlink_metadata(path).expect("look at an object");
        let planted = plant(path, &meta);
        if planted && path.exists() {
            // The fault is no other than the one that is meant.
            restore_mtime(path, &meta);
        }
        planted
    });
    let at = at.unwrap_or_else(|| panic!("{what}: nothing in the tree has it"));
    let broken = place.judged(Promise::Prefix).broken.join("\n");
    assert!(broken.contains("survived in no state") && broken.contains(what), "{}: {broken}", at.display());
}

fn restore_mtime(path: &Path, meta: &fs::Metadata) {
    set_mtime(path, (meta.mtime(), meta.mtime_nsec()));
}

fn set_mtime(path: &Path, (seconds, nanoseconds): (i64, i64)) {
    let access = (0, libc::UTIME_OMIT);
    crate::call::utimens(&c_path(path), [access, (seconds, nanoseconds)]).expect("set a time");
}

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("no NUL")
}

#[test]
fn one_byte_too_many_is_found() {
    planted(&History::of(0), "content: 1 bytes in", |path, meta| {
        if !meta.is_file() || meta.size() == 0 {
            return false;
        }
        let file = File::options().read(true).write(true).open(path).expect("open");
        let (at, mut byte) = (meta.size() / 2, [0]);
        file.read_exact_at(&mut byte, at).expect("read");
        file.write_all_at(&[byte[0] ^ 1], at).expect("write");
        true
    });
}

#[test]
fn a_time_that_was_set_is_found_to_the_nanosecond() {
    let history = History::of(0);
    let place = history.survivor(&first(RICH));
    let is_set = |meta: &fs::Metadata| meta.mtime() < SET_TIMES_END;
    let tree = snapshot::read(&place.tree()).expect("read the tree");
    let of = |path: &PathBuf| fs::symlink_metadata(path).expect("look at an object");
    let path = tree.keys().map(|path| place.tree().join(path)).find(|path| is_set(&of(path))).expect("one");
    let meta = of(&path);
    set_mtime(&path, (meta.mtime(), meta.mtime_nsec() ^ 1));
    let broken = place.judged(Promise::Prefix).broken.join("\n");
    assert!(broken.contains("mtime"), "{broken}");
}

#[test]
fn an_attribute_that_differs_is_found() {
    let history = History::of(0);
    let set = |path: &Path, name: &[u8], value: &[u8]| {
        let name = CString::new(name).expect("no NUL");
        crate::call::set_xattr(&c_path(path), &name, value, 0).expect("set an attribute");
    };
    let one = |path: &Path| {
        let all = inspect::xattrs(path).expect("read attributes");
        all.into_iter().find(|(name, value)| name.starts_with(b"user.") && !value.is_empty())
    };
    planted(&history, "xattrs", |path, _| {
        let Some((name, mut value)) = one(path) else { return false };
        value[0] ^= 1;
        set(path, &name, &value);
        true
    });
    planted(&history, "xattrs", |path, _| {
        let Some((name, _)) = one(path) else { return false };
        let name = CString::new(name).expect("no NUL");
        crate::call::remove_xattr(&c_path(path), &name).expect("remove an attribute");
        true
    });
    planted(&history, "mode", |path, meta| {
        let mode = fs::Permissions::from_mode(meta.mode() ^ 0o001);
        meta.is_file() && fs::set_permissions(path, mode).is_ok()
    });
}

#[test]
fn a_hole_that_was_filled_and_one_too_many_are_found() {
    let history = History::of(0);
    let block = |meta: &fs::Metadata| meta.blksize() as usize;
    planted(&history, "blocks at", |path, meta| {
        let holes = |file: &File| inspect::data_ranges(file).expect("ranges").first().map(|first| first.0);
        let file = File::options().read(true).write(true).open(path);
        let Some(file) = file.ok().filter(|_| meta.is_file() && meta.size() >= meta.blksize()) else {
            return false;
        };
        holes(&file) != Some(0) && file.write_all_at(&vec![0; block(meta)], 0).is_ok()
    });
    // And the other way round.
    let place = history.survivor(&first(RICH));
    let tree = snapshot::read(&place.tree()).expect("read the tree");
    let holes = snapshot::holes(&place.tree(), &tree).expect("read the holes");
    let mut other = holes.clone();
    let data = other.values_mut().find(|data| !data.is_empty()).expect("a file with data");
    data[0].0 += 4096;
    assert_eq!(snapshot::differing_holes(&other, &holes).len(), 1);
    assert_eq!(snapshot::differing_holes(&holes, &other).len(), 1);
}

#[test]
fn names_and_links_are_found() {
    let history = History::of(0);
    planted(&history, "is not there", |path, meta| meta.is_file() && fs::remove_file(path).is_ok());
    planted(&history, "is there and should not be", |path, meta| {
        meta.is_file() && fs::write(path.with_file_name("planted"), b"").is_ok()
    });
    // One of two names of a file becomes a file of its own that is equal in everything else.
    planted(&history, "group", |path, meta| {
        if !meta.is_file() || meta.nlink() < 2 {
            return false;
        }
        let copy = path.with_file_name("copy");
        fs::copy(path, &copy).expect("copy");
        fs::rename(&copy, path).expect("rename");
        true
    });
}

#[test]
fn a_state_from_before_a_sync_is_refused_where_that_is_promised() {
    let history = History::of(0);
    let synced = *history.synced().iter().filter(|n| **n > 60).min().expect("something is synced");
    let before =
        (1..synced).rev().find(|n| !history.states(&history.snapshots[*n as usize]).contains(&synced));
    let before = before.expect("an earlier state");
    // It ends there: later syncs would count, too.
    let short = History { ops: history.ops[..synced as usize].to_vec(), ..History::of(0) };
    let judged = |n: u64, promise| short.survivor(&first(n)).judged(promise).broken;
    assert_eq!(judged(before, Promise::Prefix), Vec::<String>::new());
    assert!(!judged(before, Promise::Synced).is_empty(), "state {before}, synced was {synced}");
    assert_eq!(judged(synced, Promise::Synced), Vec::<String>::new());
}

impl History {
    fn synced(&self) -> Vec<u64> {
        let syncs = |n: &u64| self.ops[*n as usize - 1].syncs() && self.returned[*n as usize - 1] >= 0;
        (1..=self.ops.len() as u64).filter(syncs).collect()
    }
}

#[test]
fn a_cut_through_two_processes_is_one() {
    let [one, other] = [History::of(0), History::of(1)];
    let judged = |mine: u64, others: u64| {
        let place = Place::new();
        // All of the other's operations begin after all of this one's were acknowledged.
        one.note(&place);
        other.note(&place);
        one.survives(&place, &first(mine));
        other.survives(&place, &first(others));
        place.judged(Promise::Prefix).broken.join("\n")
    };
    assert_eq!(judged(RICH, 0), "");
    assert_eq!(judged(LENGTH, RICH), "");
    assert!(judged(RICH, 2).contains("of process 1 survived"), "all of process 0 was acknowledged before");
}

#[test]
fn a_cut_through_three_processes_is_one() {
    // By process: what it knew of the first three when each of its operations began.
    let journals = |knew: [&[[u64; 3]]; 3]| {
        let mut all: Vec<Journal> = (0..PROCESSES).map(|_| Journal::default()).collect();
        for (journal, knew) in all.iter_mut().zip(knew) {
            let wide = |knew: &[u64; 3]| -> Acks { std::array::from_fn(|q| *knew.get(q).unwrap_or(&0)) };
            journal.knew = knew.iter().map(wide).collect();
        }
        all
    };
    let found = |journals: &[Journal], states: [&[u64]; 3]| {
        let mut all = vec![vec![State::after(0)]; PROCESSES];
        for (all, states) in all.iter_mut().zip(states) {
            *all = states.iter().map(|n| State::after(*n)).collect();
        }
        let mut broken = Vec::new();
        consistent(journals, &all, &mut broken);
        broken
    };
    // Operation 1 of process 2 knew of operation 2 of process 1, which knew of operation 1 of process 0.
    let chain = journals([&[[0, 0, 0]], &[[0, 0, 0], [1, 1, 0]], &[[0, 2, 0]]]);
    assert_eq!(found(&chain, [&[0, 1], &[1, 2], &[1]]), Vec::<String>::new());
    assert_eq!(found(&chain, [&[0], &[1], &[0]]), Vec::<String>::new());
    // Any two of them could be: not all three.
    assert_eq!(found(&chain, [&[0], &[1, 2], &[1]]).len(), 1);
    // A part of an operation needs what the whole does.
    let mut states = vec![vec![State::after(0)]; PROCESSES];
    states[1] = vec![State { done: 1, begun: 2 }];
    let mut broken = Vec::new();
    consistent(&chain, &states, &mut broken);
    assert_eq!(broken.len(), 1);
}
