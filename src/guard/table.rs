//! Who belongs to whom: a look at the process table, seen from the guard.
//!
//! A process belongs to an owner (the worker, a service) if it descends from the guard and is in a session the owner
//! began, was seen as the owner's before, is a child of such a process, or, being an orphan that daemonised itself
//! away from all of that, carries the owner's mark in its first environment. Environments are read by a thread of
//! their own: the read blocks while that process is stuck in a page fault on a dead mount, and the guard must not.

use crate::sys::process::{self, ProcessId, Stat};
use std::collections::{HashMap, HashSet};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// The variable that marks what the guard started: `<nonce of the guard's run>:<owner>`.
pub(crate) const MARK: &str = "SKC_OWNER";

/// An orphan whose environment could not be read for this long is nobody's: its memory is stuck, it runs no code.
const MARK_PATIENCE: Duration = Duration::from_millis(250);

/// Orphans asked about at the same time, at most.
const MARK_QUEUE: usize = 1024;

/// Reads marks aside and remembers them.
pub(crate) struct Marks {
    prefix: String,
    ask: SyncSender<i32>,
    answers: Receiver<(i32, Option<String>)>,
    known: HashMap<ProcessId, Option<String>>,
    asked: HashMap<ProcessId, Instant>,
}

impl Marks {
    /// Starts the reading thread for the guard's run `nonce`.
    pub(crate) fn start(nonce: &str) -> std::io::Result<Self> {
        let (ask, questions) = sync_channel::<i32>(MARK_QUEUE);
        let (reply, answers) = sync_channel(MARK_QUEUE);
        let prefix = format!("{MARK}={nonce}:");
        let wanted = prefix.clone();
        std::thread::Builder::new().name("guard-marks".into()).spawn(move || {
            while let Ok(pid) = questions.recv() {
                let mark = process::environment(pid)
                    .iter()
                    .find_map(|item| item.to_str()?.strip_prefix(&wanted).map(str::to_owned));
                if reply.send((pid, mark)).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { prefix, ask, answers, known: HashMap::new(), asked: HashMap::new() })
    }

    /// The value of [`MARK`] for processes of `owner`.
    pub(crate) fn value(&self, owner: &str) -> String {
        let nonce = self.prefix.trim_start_matches(MARK).trim_start_matches('=');
        format!("{nonce}{owner}")
    }
}

/// One look at the processes below the guard.
pub(crate) struct Table {
    below: Vec<Stat>,
    marks: HashMap<ProcessId, String>,
    /// Orphans whose mark is still being read.
    pub(crate) undecided: usize,
}

impl Table {
    /// Looks. `children` are the guard's own children by birth: no orphans.
    pub(crate) fn take(marks: &mut Marks, children: &HashSet<i32>) -> Self {
        let guard = std::process::id() as i32;
        let all = process::all();
        let parents: HashMap<i32, i32> = all.iter().map(|s| (s.id.pid, s.parent)).collect();
        let descends = |mut pid: i32| {
            // The table is not a snapshot: a bound instead of trust that it has no circle.
            for _ in 0..parents.len() {
                match parents.get(&pid) {
                    Some(parent) if *parent == guard => return true,
                    Some(parent) if *parent > 1 => pid = *parent,
                    _ => return false,
                }
            }
            false
        };
        let below: Vec<Stat> = all.iter().filter(|s| !s.is_dead() && descends(s.id.pid)).copied().collect();
        let orphans: Vec<ProcessId> = below
            .iter()
            .filter(|s| s.parent == guard && !children.contains(&s.id.pid))
            .map(|s| s.id)
            .collect();
        for (pid, mark) in marks.answers.try_iter() {
            if let Some(id) = marks.asked.keys().find(|id| id.pid == pid).copied() {
                marks.asked.remove(&id);
                marks.known.insert(id, mark);
            }
        }
        let there: HashSet<ProcessId> = orphans.iter().copied().collect();
        marks.known.retain(|id, _| there.contains(id));
        marks.asked.retain(|id, _| there.contains(id));
        let mut undecided = 0;
        for id in orphans {
            if marks.known.contains_key(&id) {
                continue;
            }
            match marks.asked.get(&id) {
                Some(since) if since.elapsed() > MARK_PATIENCE => {}
                Some(_) => undecided += 1,
                None => {
                    if marks.ask.try_send(id.pid).is_ok() {
                        marks.asked.insert(id, Instant::now());
                    }
                    undecided += 1;
                }
            }
        }
        let known = marks.known.iter().filter_map(|(id, mark)| Some((*id, mark.clone()?))).collect();
        Self { below, marks: known, undecided }
    }

    /// The living processes of `owner`, given its sessions and what was seen as its own before.
    pub(crate) fn of(
        &self,
        owner: &str,
        sessions: &HashSet<i32>,
        seen: &HashSet<ProcessId>,
    ) -> HashSet<ProcessId> {
        let mut members: HashMap<i32, ProcessId> = HashMap::new();
        loop {
            let before = members.len();
            for stat in &self.below {
                if members.contains_key(&stat.id.pid) {
                    continue;
                }
                let marked = self.marks.get(&stat.id).is_some_and(|mark| mark == owner);
                if marked
                    || sessions.contains(&stat.session)
                    || seen.contains(&stat.id)
                    || members.contains_key(&stat.parent)
                {
                    members.insert(stat.id.pid, stat.id);
                }
            }
            if members.len() == before {
                return members.into_values().collect();
            }
        }
    }

    /// Does any process of session `session` live?
    pub(crate) fn has_session(&self, session: i32) -> bool {
        self.below.iter().any(|stat| stat.session == session)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(pid: i32, parent: i32, session: i32) -> Stat {
        Stat { id: ProcessId { pid, start: pid as u64 }, state: b'S', parent, session }
    }

    #[test]
    fn sessions_children_marks_and_memory_make_a_member() {
        let daemon = stat(40, 1, 40);
        let table = Table {
            below: vec![
                stat(13, 12, 13),
                stat(10, 1, 10),
                stat(12, 10, 12),
                stat(20, 1, 20),
                stat(30, 1, 30),
                daemon,
            ],
            marks: [(daemon.id, "service:a".to_owned())].into(),
            undecided: 0,
        };
        let seen = [ProcessId { pid: 30, start: 30 }, ProcessId { pid: 20, start: 999 }].into();
        let members = table.of("service:a", &[10].into(), &seen);
        let mut pids: Vec<i32> = members.iter().map(|id| id.pid).collect();
        pids.sort_unstable();
        assert_eq!(pids, [10, 12, 13, 30, 40], "20 is a recycled pid");
        assert!(table.of("service:b", &HashSet::new(), &HashSet::new()).is_empty());
    }
}
