//! Watches both nodes all the time: who writes in which epoch, who holds the address.

use crate::scenario::Cluster;
use skc::lab::{Lab, Node};
use std::collections::HashMap;
use std::fs;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Longest time that both nodes may hold the virtual address: one lease of 1 s and its check.
const VIP_OVERLAP: Duration = Duration::from_millis(1500);
/// After a split is healed, one side has given the address up within this: connect, shake hands,
/// judge, demote, and a look of the watcher, on a busy machine.
const REUNION: Duration = Duration::from_secs(5);

/// The watching threads.
pub struct Watch {
    /// Dropping them ends the threads.
    running: Vec<SyncSender<()>>,
    seen: Arc<Mutex<Seen>>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Seen {
    /// The first writer of each epoch, and whether it was ALONE.
    writers: HashMap<String, (Node, bool)>,
    /// Two writers in one epoch; and whether both had gone on alone: the counter-example that `status` prints
    /// at L1 and L2.
    wrong: Vec<(String, bool)>,
    /// Both nodes were seen ALONE at once.
    split: bool,
    /// When both nodes held the address.
    overlaps: Vec<(Instant, Instant)>,
}

impl Watch {
    /// Starts to watch the cluster `name`, and `vip` if it has one.
    pub fn start(lab: &Lab, name: &'static str, vip: Option<&'static str>) -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let mut watch = Self { running: Vec::new(), seen, threads: Vec::new() };
        watch.add(lab, move |lab, stopped, seen| watch_writers(lab, name, stopped, seen));
        if let Some(vip) = vip {
            watch.add(lab, move |lab, stopped, seen| watch_address(lab, vip, stopped, seen));
        }
        watch
    }

    fn add(&mut self, lab: &Lab, work: impl FnOnce(&Lab, &Receiver<()>, &Mutex<Seen>) + Send + 'static) {
        let (sender, stopped) = sync_channel(0);
        let (lab, seen) = (lab.clone(), self.seen.clone());
        self.running.push(sender);
        self.threads.push(std::thread::spawn(move || work(&lab, &stopped, &seen)));
    }

    /// One writer an epoch, one holder of the address but for the overlap.
    ///
    /// `healed`: the scenario cut the nodes apart while both reached the witness, and healed that at this
    /// moment. If both then went on alone, which is what L2 does not exclude, both hold the address until the
    /// cut is healed, under the same number of an epoch (which at L2 is the pair of number and owner); nothing
    /// else is excused.
    #[track_caller]
    pub fn verdict(mut self, healed: Option<Instant>) {
        self.running.clear();
        for thread in self.threads.drain(..) {
            thread.join().expect("the watcher ends");
        }
        let seen = self.seen.lock().unwrap();
        // Their time together may be shorter than the distance of two looks.
        let both_alone = seen.split || seen.wrong.iter().any(|(_, alone)| *alone);
        let split = both_alone && healed.is_some();
        let wrong: Vec<_> = seen.wrong.iter().filter(|(_, alone)| !(split && *alone)).collect();
        assert!(wrong.is_empty(), "one writer an epoch: {wrong:?}");
        for (begin, end) in &seen.overlaps {
            let excused = healed.filter(|healed| split && begin < healed);
            let (from, limit) = excused.map_or((*begin, VIP_OVERLAP), |healed| (healed, REUNION));
            let time = end.saturating_duration_since(from);
            assert!(time <= limit, "the address was on both nodes for {time:?}, split: {split}");
        }
    }
}

/// Waits for the next look; false when the watching is over.
fn again(stopped: &Receiver<()>, pause: Duration) -> bool {
    stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout)
}

fn watch_writers(lab: &Lab, name: &str, stopped: &Receiver<()>, seen: &Mutex<Seen>) {
    while again(stopped, Duration::from_millis(150)) {
        let roles = Node::PAIR.map(|node| {
            let status = lab.cluster(node, name).unwrap_or_default();
            let word = |key: &str| status[key].as_str().unwrap_or_default().to_owned();
            (node, word("role"), word("ready"), word("epoch"))
        });
        let mut seen = seen.lock().unwrap();
        let alone = roles.iter().all(|(_, role, ..)| role == "ALONE");
        seen.split |= alone;
        for (node, role, ready, epoch) in roles {
            if !matches!(&*role, "PRIM" | "ALONE") || ready != "Ready" {
                continue;
            }
            let alone = role == "ALONE";
            let (writer, was_alone) = *seen.writers.entry(epoch.clone()).or_insert((node, alone));
            if writer != node {
                let both = format!("epoch {epoch}: {writer} and {node} ({role})");
                seen.wrong.push((both, alone && was_alone));
            }
        }
    }
}

/// Does the kernel of `node` own `vip`? Read from its own routing table, by its PID 1.
pub fn holds(lab: &Lab, node: Node, vip: &str) -> bool {
    let Ok(boot) = lab.booted(node) else { return false };
    let table = fs::read_to_string(format!("/proc/{}/net/fib_trie", boot.init)).unwrap_or_default();
    let lines: Vec<&str> = table.lines().map(str::trim).collect();
    lines.windows(2).any(|pair| pair[0] == format!("|-- {vip}") && pair[1].contains("host LOCAL"))
}

fn watch_address(lab: &Lab, vip: &str, stopped: &Receiver<()>, seen: &Mutex<Seen>) {
    let mut since: Option<Instant> = None;
    while again(stopped, Duration::from_millis(20)) {
        let both = Node::PAIR.into_iter().all(|node| holds(lab, node, vip));
        match (both, since) {
            (true, None) => {
                since = Some(Instant::now());
                seen.lock().unwrap().overlaps.push((Instant::now(), Instant::now()));
            }
            (true, Some(_)) => {
                if let Some((_, end)) = seen.lock().unwrap().overlaps.last_mut() {
                    *end = Instant::now();
                }
            }
            (false, _) => since = None,
        }
    }
}

impl Cluster<'_> {
    /// Does the kernel of `node` own the address?
    pub fn holds_vip(&self, node: Node) -> bool {
        self.vip.is_some_and(|vip| holds(self.lab, node, vip))
    }

    /// Waits until exactly `node` holds the address.
    #[track_caller]
    pub fn vip_is_at(&self, node: Node) {
        let peer = node.peer().expect("a pair");
        crate::harness::until("the address is at its place", crate::scenario::SETTLE, || {
            self.holds_vip(node) && !self.holds_vip(peer)
        });
    }
}
