//! Is what survived what was promised? For every process: the operations are done again, one by one, in a plain
//! directory, and the survivor's must be what it was after one of those that it may have ended with. Over all
//! processes: what an operation knew to be acknowledged is there if the operation is.

use crate::act::Actor;
use crate::journal::{Acks, Journal, PROCESSES};
use crate::snapshot::{self, Snapshot, Times, differences};
use std::fs;
use std::io;
use std::ops::RangeInclusive;
use std::path::Path;

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

/// What was found.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Operations that were acknowledged.
    pub acknowledged: u64,
    /// Processes that had an operation in flight.
    pub in_flight: u64,
    /// Of these, for how many it is sure that the operation survived.
    pub survived: u64,
    /// By process: numbers of the operations after which the survivor's directory is what it is.
    pub states: Vec<Vec<u64>>,
    /// What broke a promise.
    pub broken: Vec<String>,
}

/// One process: does what it did again in `plain`, and looks for the state `survivor`. The operations are
/// listed in a file beside its plain directory (`SKC_KEEP=1` keeps it if the round fails).
fn states(
    actor: &mut Actor,
    journal: &Journal,
    may: RangeInclusive<u64>,
    survivor: &Snapshot,
    broken: &mut Vec<String>,
) -> io::Result<Vec<u64>> {
    let mut fitting = Vec::new();
    let mut nearest = Vec::new();
    let mut done = Vec::new();
    for n in 0..=*may.end() {
        if n > 0 {
            let op = actor.next();
            // Between the two requests of a write: the state before it, and a part of it.
            let within = n > *may.start() && actor.begin(&op);
            if within && differences(survivor, &snapshot::read(actor.root())?, Times::Set).is_empty() {
                fitting.push(n - 1);
            }
            let outcome = actor.perform(&op);
            done.push(format!("{n} {op:?}: {outcome}"));
            let returned = journal.returned.get(n as usize - 1);
            if let Some(returned) = returned.filter(|returned| **returned != outcome) {
                let root = actor.root().display();
                broken.push(format!(
                    "{root}: operation {n} returned {returned} on the mirror and {outcome} on a plain directory: {op:?}"
                ));
                break;
            }
            if n >= *may.start() {
                nearest.push(format!("after operation {n}, {op:?}:"));
            }
        }
        if may.contains(&n) {
            let found = differences(survivor, &snapshot::read(actor.root())?, Times::Set);
            if found.is_empty() {
                fitting.push(n);
            }
            nearest.extend(found.into_iter().take(5).map(|line| format!("  {line}")));
        }
    }
    fitting.dedup();
    fs::write(actor.root().with_extension("operations"), done.join("\n"))?;
    if fitting.is_empty() && broken.is_empty() {
        let last = nearest.len().saturating_sub(14);
        let root = actor.root().display();
        broken.push(format!("{root} survived in no state of {may:?}:\n{}", nearest[last..].join("\n")));
    }
    Ok(fitting)
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
        let mut actor = Actor::new(plain, seed, p as u64);
        let have = snapshot::read(&survivor.join(format!("p{p}")))?;
        let fitting = states(&mut actor, journal, least[p]..=started, &have, &mut verdict.broken)?;
        if started > acknowledged {
            verdict.in_flight += 1;
            verdict.survived += u64::from(fitting == [started]);
        }
        verdict.states.push(fitting);
    }
    consistent(&journals, &verdict.states, &mut verdict.broken);
    Ok(verdict)
}

/// No operation is there without those that its process knew to be acknowledged before.
fn consistent(journals: &[Journal], states: &[Vec<u64>], broken: &mut Vec<String>) {
    for (p, journal) in journals.iter().enumerate() {
        let Some(there) = states[p].first().filter(|n| **n > 0) else { continue };
        let knew = journal.knew[*there as usize - 1];
        for (q, known) in knew.iter().enumerate() {
            if states[q].last().is_some_and(|most| most < known) {
                broken.push(format!(
                    "operation {there} of process {p} survived, which began after {known} of process {q} were \
                     acknowledged, but of those only {:?} did",
                    states[q].last()
                ));
            }
        }
    }
}

/// Where the dead node's directory is in the same state as the survivor's, and in no other, the times that both
/// took are the same, too.
pub fn same_times(verdict: &mut Verdict, dead: &Path, survivor: &Path) -> io::Result<u64> {
    let mut compared = 0;
    for (p, states) in verdict.states.iter().enumerate() {
        if states.len() != 1 {
            // What was in flight changed nothing but, perhaps, a time.
            continue;
        }
        let [ours, theirs] = [dead, survivor].map(|dir| snapshot::read(&dir.join(format!("p{p}"))));
        let (ours, theirs) = (ours?, theirs?);
        if !differences(&theirs, &ours, Times::Set).is_empty() {
            continue;
        }
        compared += 1;
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
