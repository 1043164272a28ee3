//! Is what several clients were told about the names of one directory possible in some serial order?
//!
//! Each client has one operation at a time, so a state of the search is how far each of them is and what the directory
//! holds then. An operation may come next if no other that is still to come had ended before it began.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Names that are fought for.
pub const NAMES: usize = 4;
/// What a name stands for: the number of the creation, 0 = nothing.
pub type Names = [u32; NAMES];

/// One call; numbers are names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// open(O_CREAT|O_EXCL)
    Create(usize),
    Unlink(usize),
    Link(usize, usize),
    Rename(usize, usize),
    RenameNoReplace(usize, usize),
    Exchange(usize, usize),
}

impl Call {
    /// The names after it and what it returns: 0 or an errno. `fresh` is what a creation makes.
    pub fn applied(self, names: Names, fresh: u32) -> (Names, i32) {
        let mut after = names;
        let result = match self {
            Self::Create(a) if names[a] != 0 => libc::EEXIST,
            Self::Create(a) => {
                after[a] = fresh;
                0
            }
            Self::Unlink(a) if names[a] == 0 => libc::ENOENT,
            Self::Unlink(a) => {
                after[a] = 0;
                0
            }
            Self::Rename(a, _) | Self::RenameNoReplace(a, _) | Self::Exchange(a, _) if names[a] == 0 => {
                libc::ENOENT
            }
            Self::RenameNoReplace(_, b) if names[b] != 0 => libc::EEXIST,
            // In two steps, see `step`.
            Self::Link(..) => libc::EIO,
            Self::Exchange(_, b) if names[b] == 0 => libc::ENOENT,
            Self::Exchange(a, b) => {
                after.swap(a, b);
                0
            }
            // Two names of one file: rename(2) leaves both.
            Self::Rename(a, b) if names[a] == names[b] => 0,
            Self::Rename(a, b) | Self::RenameNoReplace(a, b) => {
                after[b] = names[a];
                after[a] = 0;
                0
            }
        };
        (after, result)
    }
}

/// A call that was answered.
#[derive(Debug, Clone, Copy)]
pub struct Event {
    pub call: Call,
    /// Between these moments, of one clock for all clients.
    pub began: u64,
    pub ended: u64,
    /// 0 or an errno.
    pub result: i32,
    /// How often it had been refused before.
    #[expect(dead_code, reason = "for whoever looks into a history that is impossible")]
    pub refused: u32,
}

/// What no serial order explains: the calls among which it happened.
pub struct Impossible {
    states: BTreeSet<State>,
    /// By client.
    before: Vec<(usize, Event)>,
    next: Vec<Event>,
}

/// How many calls before it are told.
const TOLD: usize = 400;

impl fmt::Debug for Impossible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "no serial order allows this; by client, there was")?;
        self.before.iter().try_for_each(|(client, event)| writeln!(f, "  {client} {event:?}"))?;
        writeln!(f, "the names could be")?;
        for (_, names) in &self.states {
            writeln!(f, "  {names:?}")?;
        }
        writeln!(f, "and next came")?;
        self.next.iter().try_for_each(|event| writeln!(f, "  {event:?}"))
    }
}

/// How far every client is, what it holds for the second half of a call, and the names.
type State = (Vec<(usize, u32)>, Names);

/// What may come of a call, in one atomic step: the call is done, or half of it (a link holds its file then).
enum Step {
    Done(Names),
    Half(u32),
}

/// The step of `event` from `names`, if it is possible with the result that the event has.
fn step(event: &Event, names: Names, held: u32, fresh: u32) -> Option<Step> {
    // link(2) looks up the old name and makes the new one later: the file may have other names by then, or none.
    let (after, result) = match (event.call, held) {
        (Call::Link(a, _), 0) if names[a] != 0 => return Some(Step::Half(names[a])),
        (Call::Link(..), 0) => (names, libc::ENOENT),
        (Call::Link(_, b), _) if names[b] != 0 => (names, libc::EEXIST),
        (Call::Link(..), file) if !names.contains(&file) => (names, libc::ENOENT),
        (Call::Link(_, b), file) => {
            let mut after = names;
            after[b] = file;
            (after, 0)
        }
        (call, _) => call.applied(names, fresh),
    };
    (result == event.result).then_some(Step::Done(after))
}

/// Everything that the directory may hold after all clients' calls.
pub fn outcomes(clients: &[Vec<Event>]) -> Result<BTreeSet<Names>, Impossible> {
    // Two halves a call: level by level, so that every state is looked at once.
    let total: usize = clients.iter().map(|events| 2 * events.len()).sum();
    let mut levels = BTreeMap::from([(0, BTreeSet::from([(vec![(0, 0); clients.len()], [0; NAMES])]))]);
    let mut furthest = BTreeSet::new();
    while let Some((level, states)) = levels.pop_first() {
        if level == total {
            return Ok(states.into_iter().map(|(_, names)| names).collect());
        }
        for (done, names) in &states {
            let next = |c: usize| clients[c].get(done[c].0);
            let first_end = (0..clients.len()).filter_map(next).map(|event| event.ended).min();
            for c in 0..clients.len() {
                let Some(event) = next(c).filter(|event| first_end.is_none_or(|end| event.began <= end))
                else {
                    continue;
                };
                // Every creation makes something of its own.
                let fresh = (c as u32 + 1) << 24 | (done[c].0 as u32 + 1);
                let (mut done, held) = (done.clone(), done[c].1);
                let (to, names) = match step(event, *names, held, fresh) {
                    None => continue,
                    Some(Step::Half(file)) => {
                        done[c].1 = file;
                        (level + 1, *names)
                    }
                    Some(Step::Done(after)) => {
                        done[c] = (done[c].0 + 1, 0);
                        (level + if held == 0 { 2 } else { 1 }, after)
                    }
                };
                levels.entry(to).or_default().insert((done, names));
            }
        }
        furthest = states;
    }
    Err(impossible(clients, furthest))
}

fn impossible(clients: &[Vec<Event>], states: BTreeSet<State>) -> Impossible {
    let mut next: Vec<Event> = Vec::new();
    for (done, _) in &states {
        next.extend((0..clients.len()).filter_map(|c| clients[c].get(done[c].0)));
    }
    next.sort_by_key(|event| (event.began, event.ended));
    next.dedup_by_key(|event| (event.began, event.ended));
    let furthest = states.first().map(|(done, _)| done.as_slice()).unwrap_or_default();
    let mut before: Vec<(usize, Event)> = Vec::new();
    for (c, (done, _)) in furthest.iter().enumerate() {
        before.extend(clients[c][done.saturating_sub(TOLD)..*done].iter().map(|event| (c, *event)));
    }
    before.sort_by_key(|(_, event)| event.ended);
    before.drain(..before.len().saturating_sub(TOLD));
    Impossible { states, before, next }
}

#[test]
fn a_history_is_possible_or_not() {
    let event = |call, began, ended, result| Event { call, began, ended, result, refused: 0 };
    let (create, unlink) = (Call::Create(0), Call::Unlink(0));
    // Both at once: one of them is told that it was too late.
    let both = [vec![event(create, 0, 10, 0)], vec![event(create, 5, 6, libc::EEXIST)]];
    assert_eq!(outcomes(&both).unwrap().len(), 1);
    let late = [vec![event(create, 0, 10, 0)], vec![event(unlink, 11, 12, libc::ENOENT)]];
    assert!(outcomes(&late).is_err(), "it had been created before");
    let twice = [vec![event(create, 0, 10, 0)], vec![event(create, 0, 10, 0)]];
    assert!(outcomes(&twice).is_err(), "exclusively");
    let moved = [
        vec![event(create, 0, 1, 0), event(Call::Rename(0, 1), 2, 9, 0)],
        vec![event(Call::Link(0, 2), 3, 4, 0), event(unlink, 5, 6, libc::ENOENT)],
    ];
    // Its old name was looked up before it went, the new one was taken meanwhile.
    let link = event(Call::Link(0, 1), 2, 9, libc::EEXIST);
    let taken =
        [vec![event(create, 0, 1, 0), link], vec![event(unlink, 3, 4, 0), event(Call::Create(1), 5, 6, 0)]];
    assert!(outcomes(&taken).is_ok());
    let ends = outcomes(&moved).unwrap();
    assert!(ends.iter().all(|names| names[0] == 0 && names[1] != 0 && names[1] == names[2]), "{ends:?}");
}
