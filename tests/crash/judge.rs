//! Is what survived what was promised? For every process: the operations are done again, one by one, in a plain
//! directory, and the survivor's must be what it was after one of those that it may have ended with. Over all
//! processes: what an operation knew to be acknowledged is there if the operation is.
//!
//! After each of these operations the plain directory is looked at with a reader that keeps what it knows of files
//! that were not touched. Only what fits is read once more, in full and to the last hole: so keeping can make the judge
//! refuse too much, which a failing round would show, and never accept too much.

use crate::act::Actor;
use crate::journal::{Acks, Journal, PROCESSES};
use crate::op::Op;
use crate::snapshot::{self, Holes, Moment, Reader, Snapshot, Times, differences, differing_holes, distance};
use std::fs;
use std::io;
use std::ops::RangeInclusive;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What a mode of `replication.consistency` promises of the acknowledged operations. Beyond that the survivor must
/// always be what the primary was after some operation, of all processes together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promise {
    /// Every one survives.
    Every,
    /// Those survive that were acknowledged before something was synced.
    Synced,
    /// None.
    Prefix,
}

impl Promise {
    const ALL: [Self; 3] = [Self::Every, Self::Synced, Self::Prefix];

    /// The value in the spec.
    pub const fn consistency(self) -> &'static str {
        match self {
            Self::Every => "strict",
            Self::Synced => "commit",
            Self::Prefix => "async",
        }
    }

    /// By that value.
    pub fn of(consistency: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|promise| promise.consistency() == consistency)
    }

    /// By process: how many of its operations must be there.
    fn least(self, journals: &[Journal]) -> Acks {
        match self {
            Self::Every => std::array::from_fn(|p| journals[p].returned.len() as u64),
            Self::Synced => std::array::from_fn(|p| {
                let of = |q: usize| {
                    journals[q]
                        .synced
                        .iter()
                        .map(move |n| if q == p { *n } else { journals[q].knew[*n as usize - 1][p] })
                };
                (0..PROCESSES).flat_map(of).max().unwrap_or(0)
            }),
            Self::Prefix => [0; PROCESSES],
        }
    }
}

/// Where a process may have ended: after `done` operations, and with a part of operation `begun` if that is more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    pub done: u64,
    pub begun: u64,
}

impl State {
    pub const fn after(done: u64) -> Self {
        Self { done, begun: done }
    }
}

/// What was found.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Operations that were acknowledged.
    pub acknowledged: u64,
    /// Processes that had an operation in flight.
    pub in_flight: u64,
    /// Of these, for how many it is sure that the operation survived.
    pub survived: u64,
    /// Operations that were acknowledged and did not survive.
    pub lost: u64,
    /// By process: states in which the directory is what the survivor's is, in their order.
    pub states: Vec<Vec<State>>,
    /// By process: paths of what the operation in flight touches.
    pub in_reach: Vec<Vec<PathBuf>>,
    /// By process: paths of what nothing touched from the state that survived to the last that was reached.
    pub untouched: Vec<Vec<PathBuf>>,
    /// Times that were compared to the nanosecond.
    pub times: u64,
    /// What broke a promise.
    pub broken: Vec<String>,
}

/// Looks for the states in which a plain directory is what the survivor has.
struct Search<'a> {
    root: PathBuf,
    reader: Reader,
    survivor: &'a Snapshot,
    survivors_holes: Holes,
    fitting: Vec<State>,
    /// The first of them.
    earliest: Option<Moment>,
    nearest: Option<Near>,
}

/// The state in which the fewest paths differ, the last of them.
struct Near {
    distance: usize,
    state: State,
    op: Option<Op>,
    tree: Snapshot,
    /// What differs where no path does: holes.
    holes: Vec<String>,
}

impl<'a> Search<'a> {
    fn new(plain: &Path, have: &'a Snapshot, at: &Path) -> io::Result<Self> {
        Ok(Self {
            root: plain.to_owned(),
            reader: Reader::new(plain),
            survivor: have,
            survivors_holes: snapshot::holes(at, have)?,
            fitting: Vec::new(),
            earliest: None,
            nearest: None,
        })
    }

    /// Looks at the directory in `state`, which `op` led to by a change of the `touched` inodes.
    fn look(&mut self, state: State, op: Option<&Op>, touched: &[u64]) -> io::Result<()> {
        let mut tree = self.reader.read(touched)?;
        let mut holes = Vec::new();
        if distance(self.survivor, &tree, Times::Set) == 0 {
            tree = snapshot::read(&self.root)?;
            holes = differing_holes(&self.survivors_holes, &snapshot::holes(&self.root, &tree)?);
        }
        let distance = distance(self.survivor, &tree, Times::Set);
        if distance == 0 && holes.is_empty() {
            self.earliest.get_or_insert_with(|| self.reader.moment(&tree));
            self.fitting.push(state);
        } else if self.nearest.as_ref().is_none_or(|nearest| distance <= nearest.distance) {
            self.nearest = Some(Near { distance, state, op: op.cloned(), tree, holes });
        }
        Ok(())
    }

    /// Paths of what has the time that it had in the earliest state that fits.
    fn untouched(&mut self) -> io::Result<Vec<PathBuf>> {
        let Some(earliest) = &self.earliest else { return Ok(Vec::new()) };
        let now = self.reader.read(&[])?;
        Ok(self.reader.untouched_since(earliest, &now))
    }

    /// What differs where the least does.
    fn complaint(&self) -> String {
        let Some(near) = &self.nearest else { return String::new() };
        let mut found = differences(self.survivor, &near.tree, Times::Set);
        found.extend(near.holes.iter().cloned());
        let lines: Vec<String> = found.into_iter().take(10).map(|line| format!("  {line}")).collect();
        format!("{:?}, {:?}:\n{}", near.state, near.op, lines.join("\n"))
    }
}

/// One process: does what it did again in `plain`, and looks for the state that the survivor `have` is in. The
/// operations are listed in a file beside its plain directory (`SKC_KEEP=1` keeps it if the round fails).
fn states(
    actor: &mut Actor,
    journal: &Journal,
    may: RangeInclusive<u64>,
    mut search: Search<'_>,
    verdict: &mut Verdict,
) -> io::Result<Vec<State>> {
    let root = actor.root().display().to_string();
    let mut in_reach = Vec::new();
    let mut done = Vec::new();
    if *may.start() == 0 {
        search.look(State::after(0), None, &[])?;
    }
    for n in 1..=*may.end() {
        let op = actor.next();
        // Between the two requests of a write: the state before it, and a part of it.
        if n > *may.start() && actor.begin(&op) {
            search.look(State { done: n - 1, begun: n }, Some(&op), &actor.touched(&op))?;
        }
        let outcome = actor.perform(&op);
        done.push(format!("{n} {op:?}: {outcome}"));
        let returned = journal.returned.get(n as usize - 1);
        if let Some(returned) = returned.filter(|returned| **returned != outcome) {
            verdict.broken.push(format!(
                "{root}: operation {n} returned {returned} on the mirror and {outcome} on a plain directory: {op:?}"
            ));
            break;
        }
        if may.contains(&n) {
            let touched = actor.touched(&op);
            search.look(State::after(n), Some(&op), &touched)?;
            if n as usize > journal.returned.len() {
                in_reach = snapshot::paths_of(actor.root(), &touched)?;
            }
        }
    }
    fs::write(actor.root().with_extension("operations"), done.join("\n"))?;
    verdict.in_reach.push(in_reach);
    verdict.untouched.push(search.untouched()?);
    if search.fitting.is_empty() && verdict.broken.is_empty() {
        verdict
            .broken
            .push(format!("{root} survived in no state of {may:?}; nearest is {}", search.complaint()));
    }
    Ok(search.fitting)
}

/// Judges the survivor's directory; `notes` has the journals, `plain` is a directory to work in.
pub fn judge(
    promise: Promise,
    seed: u64,
    survivor: &Path,
    notes: &Path,
    plain: &Path,
) -> io::Result<Verdict> {
    let journals = (0..PROCESSES).map(|p| Journal::read(notes, p)).collect::<io::Result<Vec<_>>>()?;
    let least = promise.least(&journals);
    let mut verdict = Verdict::default();
    for (p, journal) in journals.iter().enumerate() {
        let (started, acknowledged) = (journal.knew.len() as u64, journal.returned.len() as u64);
        verdict.acknowledged += acknowledged;
        let mut actor = Actor::unmapped(plain, seed, p as u64);
        let at = survivor.join(format!("p{p}"));
        let have = snapshot::read(&at)?;
        let search = Search::new(actor.root(), &have, &at)?;
        let fitting = states(&mut actor, journal, least[p]..=started, search, &mut verdict)?;
        if started > acknowledged {
            verdict.in_flight += 1;
            verdict.survived += u64::from(fitting == [State::after(started)]);
        }
        let latest = fitting.last().map_or(0, |state| state.done);
        verdict.lost += acknowledged.saturating_sub(latest);
        verdict.states.push(fitting);
    }
    consistent(&journals, &verdict.states, &mut verdict.broken);
    Ok(verdict)
}

/// One state of every process, so that no operation is there without those that its process knew to be acknowledged
/// when it began. Later states of a process need no less of the others: so the earliest of all that fit, raised as
/// long as another needs more, are such states if there are any.
pub fn consistent(journals: &[Journal], states: &[Vec<State>], broken: &mut Vec<String>) {
    if states.iter().any(Vec::is_empty) {
        // That was said.
        return;
    }
    let mut cut = vec![0; states.len()];
    let mut p = 0;
    while p < states.len() {
        let there = states[p][cut[p]];
        let knew = there.begun.checked_sub(1).map_or([0; PROCESSES], |n| journals[p].knew[n as usize]);
        let lacks = |q: &usize| states[*q][cut[*q]].done < knew[*q];
        let Some(q) = (0..states.len()).find(lacks) else {
            p += 1;
            continue;
        };
        let Some(enough) = states[q].iter().position(|state| state.done >= knew[q]) else {
            broken.push(format!(
                "{there:?} of process {p} survived, which began after {} of process {q} were acknowledged, but that \
                 process survived in one of {:?}",
                knew[q], states[q]
            ));
            return;
        };
        cut[q] = enough;
        // What is raised may need more itself.
        p = 0;
    }
}

/// The dead node's directory may be ahead of the survivor's: what nothing touched from there on has the same time on both.
pub fn same_old_times(verdict: &mut Verdict, dead: &Path, survivor: &Path) -> u64 {
    let mut compared = 0;
    for (p, paths) in verdict.untouched.iter().enumerate() {
        for path in paths {
            let of = |root: &Path| fs::symlink_metadata(root.join(format!("p{p}")).join(path));
            // Its name may be away for just the operation in flight.
            let (Ok(ours), Ok(theirs)) = (of(dead), of(survivor)) else { continue };
            compared += 1;
            let [ours, theirs] = [ours, theirs].map(|meta| (meta.mtime(), meta.mtime_nsec()));
            if ours != theirs {
                let path = path.display();
                verdict.broken.push(format!("p{p}/{path}: mtime is {theirs:?}, {ours:?} on the dead node"));
            }
        }
    }
    compared
}

/// Where the dead node's directory is in the same state as the survivor's, and in no other, the times that both
/// took are the same, too. Inside of the operation in flight the power may have gone after it took the time and before
/// it moved a byte (copy_file_range does).
pub fn same_times(verdict: &mut Verdict, dead: &Path, survivor: &Path) -> io::Result<u64> {
    let mut compared = 0;
    for (p, states) in verdict.states.iter().enumerate() {
        if states.len() != 1 {
            // What was in flight changed nothing but, perhaps, a time.
            continue;
        }
        let [at, other] = [dead, survivor].map(|dir| dir.join(format!("p{p}")));
        let (mut ours, theirs) = (snapshot::read(&at)?, snapshot::read(&other)?);
        let same = distance(&theirs, &ours, Times::Set) == 0
            && differing_holes(&snapshot::holes(&other, &theirs)?, &snapshot::holes(&at, &ours)?).is_empty();
        if !same {
            continue;
        }
        compared += 1;
        verdict.in_reach[p].iter().for_each(|path| snapshot::take_back(&mut ours, path, &theirs));
        let found = differences(&theirs, &ours, Times::All);
        if !found.is_empty() {
            let found = found.join("\n  ");
            verdict
                .broken
                .push(format!("p{p}: times differ from the dead node's in state {states:?}:\n  {found}"));
        }
    }
    Ok(compared)
}
