//! What the scenarios share: a ledger cluster in a lab, its load, and the invariants.

use crate::harness::{Arena, until};
use serde_json::Value;
use skc::lab::ledger::check;
use skc::lab::ledger::client::{Load, Options};
use skc::lab::process::poll;
use skc::lab::wait::Condition;
use skc::lab::{Node, compare};
use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Longest time for any change of state: far above every sum of timers, below the hard deadline.
pub const SETTLE: Duration = Duration::from_secs(60);
/// Name of the cluster.
pub const CLUSTER: &str = "ledger";
/// Where clients connect.
pub const VIP: &str = "10.77.1.100";
const PORT: u16 = 7700;
/// `heartbeat.timeout` of all scenarios.
pub const TIMEOUT: Duration = Duration::from_secs(1);
/// Longest time that both nodes may hold the virtual address: one lease of 1 s and its check.
const VIP_OVERLAP: Duration = Duration::from_millis(1500);

/// A spec with its adjustable parts.
pub struct Spec {
    /// The mirrored directory.
    pub directory: &'static str,
    /// Lines below `checkers:`; empty = none.
    pub checkers: &'static str,
}

impl Default for Spec {
    fn default() -> Self {
        Self { directory: "/srv/ledger", checkers: "" }
    }
}

impl Spec {
    fn text(&self) -> String {
        let Self { directory, checkers } = self;
        let checkers = if checkers.is_empty() { String::new() } else { format!("  checkers:\n{checkers}\n") };
        format!(
            r#"apiVersion: skc.dev/v1
kind: ClusterSpec
metadata: {{name: {CLUSTER}}}
spec:
  nodes:
    - {{name: node-a, addresses: [10.77.1.1, 10.77.2.1]}}
    - {{name: node-b, addresses: [10.77.1.2, 10.77.2.2]}}
  directories:
    - {{path: {directory}}}
  services:
    - name: ledger
      exec:
        run: [skc, ledger, serve, --data, {directory}, --listen, "0.0.0.0:{PORT}"]
  virtualIPs:
    - {{address: {VIP}/24}}
{checkers}  heartbeat: {{timeout: {}ms}}
  arbitration: {{ping: [10.77.1.254]}}
"#,
            TIMEOUT.as_millis()
        )
    }
}

/// A running cluster.
pub struct Cluster<'a> {
    /// The lab below it.
    pub lab: &'a Arena,
    directory: &'static str,
    watch: Watch,
}

impl<'a> Cluster<'a> {
    /// Creates the directories, starts both agents and applies the spec; does not wait for roles.
    pub fn apply(lab: &'a Arena, spec: &Spec) -> Self {
        for node in Node::PAIR {
            fs::create_dir_all(lab.backing(node, spec.directory)).expect("create the directory");
        }
        lab.start_pair().expect("the pair starts");
        let cluster = Self { lab, directory: spec.directory, watch: Watch::start(lab) };
        let answer = lab.apply(Node::NodeA, &cluster.write_spec("ledger.yaml", &spec.text()));
        answer.expect("the spec is applied");
        cluster
    }

    /// The same, and waits for PRIM and SECOND.
    pub fn start(lab: &'a Arena, spec: &Spec) -> (Self, Node, Node) {
        let cluster = Self::apply(lab, spec);
        let primary = cluster.settled();
        (cluster, primary, primary.peer().expect("a pair"))
    }

    /// Writes a file for `skc apply` into the lab's directory.
    pub fn write_spec(&self, name: &str, text: &str) -> PathBuf {
        let path = self.lab.dir().join(name);
        fs::write(&path, text).expect("write a spec");
        path
    }

    /// The mirrored directory as the host reads it.
    pub fn backing(&self, node: Node) -> PathBuf {
        self.lab.backing(node, self.directory)
    }

    /// The node's status object; `Null` while it does not answer.
    pub fn status(&self, node: Node) -> Value {
        self.lab.cluster(node, CLUSTER).unwrap_or(Value::Null)
    }

    /// Does the node show all of these?
    pub fn is(&self, node: Node, conditions: &[&str]) -> bool {
        let status = self.status(node);
        conditions.iter().all(|text| text.parse::<Condition>().expect("a condition").holds(&status))
    }

    /// Waits until the node shows all of these at once.
    #[track_caller]
    pub fn wait(&self, node: Node, conditions: &[&str]) {
        let parsed: Vec<Condition> =
            conditions.iter().map(|text| text.parse().expect("a condition")).collect();
        if let Err(error) = self.lab.wait(node, Some(CLUSTER), &parsed, SETTLE) {
            panic!("{error}");
        }
    }

    /// Waits for one node PRIM Ready with the VIP, the other SECOND Ready UpToDate; returns the primary.
    #[track_caller]
    pub fn settled(&self) -> Node {
        let found = poll(SETTLE, || {
            Node::PAIR.into_iter().find(|node| {
                self.is(*node, &["PRIM", "Ready", "vip"])
                    && node.peer().is_some_and(|peer| self.is(peer, &["SECOND", "Ready", "UpToDate"]))
            })
        });
        found.unwrap_or_else(|| panic!("one node PRIM, the other SECOND within {SETTLE:?}"))
    }

    /// Clients under full load; every append with an fdatasync.
    pub fn load(&self) -> Load {
        let connect = format!("{VIP}:{PORT}").parse().expect("an address");
        let netns = Some(self.lab.netns_path(Node::Client.name()));
        let options =
            Options { connect, clients: 4, sync_every: 1, seed: 7, netns, journal: None, count: None };
        Load::start(options).expect("clients start")
    }

    /// Waits for `more` further acknowledgements.
    #[track_caller]
    #[expect(clippy::unused_self, reason = "reads as what the cluster does under this load")]
    pub fn progress(&self, load: &Load, more: u64) {
        let goal = load.acknowledged() + more;
        let met = poll(SETTLE, || (load.acknowledged() >= goal).then_some(()));
        assert!(met.is_some(), "{more} acknowledgements within {SETTLE:?}; complaint: {}", load.complaint());
    }

    /// Boots a node again and starts its agent.
    pub fn power_on(&self, node: Node) {
        self.lab.boot(node).expect("it boots");
        self.lab.start_agent(node).expect("its agent starts");
    }

    /// The end of most scenarios: roles settled, nothing lost on either node, trees equal,
    /// one writer an epoch, bounded overlap of the VIP.
    #[track_caller]
    pub fn finish(self, load: Load) -> Node {
        let primary = self.settled();
        let acks = load.stop();
        assert!(!acks.is_empty(), "something was acknowledged");
        self.trees_equal();
        for node in Node::PAIR {
            let found = check::check(&self.backing(node), &acks).expect("read the ledger");
            assert!(found.good(), "{node}: {found:?}");
        }
        self.watch.verdict();
        primary
    }

    /// After a split brain: the pair settles by itself, or one node serves, the other waits, and
    /// `status` names the command that decides. Then the operator decides for the one that serves.
    #[track_caller]
    pub fn settled_or_asked(&self) {
        let pair = ["PRIM", "SECOND"];
        let settled =
            || pair.iter().all(|role| Node::PAIR.into_iter().any(|node| self.is(node, &[role, "Ready"])));
        let asked = || {
            let asks =
                |node| self.status(node)["command"].as_str().is_some_and(|text| text.contains("adopt"));
            let serving: Vec<_> =
                Node::PAIR.into_iter().filter(|node| self.is(*node, &["ALONE", "vip"])).collect();
            if let [one] = serving[..] { Node::PAIR.into_iter().all(asks).then_some(one) } else { None }
        };
        let outcome = poll(SETTLE, || if settled() { Some(None) } else { asked().map(Some) });
        match outcome {
            Some(None) => {}
            Some(Some(source)) => {
                // It keeps serving until somebody decides; nothing is discarded meanwhile.
                let adopt = ["adopt", CLUSTER, "--source", source.name(), "--force", "--yes"];
                self.lab.skc(source, &adopt, SETTLE).expect("the operator names the source");
            }
            None => panic!("settled, or one node serves and both name the command, within {SETTLE:?}"),
        }
    }

    /// As [`Self::finish`] where both sides may have acknowledged: what the winner lacks is in quarantine.
    #[track_caller]
    pub fn finish_divided(self, load: Load) {
        self.settled();
        let acks = load.stop();
        self.trees_equal();
        for node in Node::PAIR {
            let found = check::check(&self.backing(node), &acks).expect("read the ledger");
            assert_eq!(found.damaged, 0, "{node}: {found:?}");
            let kept = Node::PAIR.into_iter().any(|node| self.quarantine(node) > 0);
            assert!(found.lost == 0 || kept, "{node}: dropped writes are in quarantine: {found:?}");
        }
        // Both may have served under the same number (an epoch is the pair of number and owner at L2).
    }

    /// Files in the node's quarantine.
    pub fn quarantine(&self, node: Node) -> usize {
        let dir = self.backing(node).join(".skc/quarantine");
        fs::read_dir(dir).map_or(0, |entries| entries.flatten().count())
    }

    /// Compares the trees; the last operations of stopped clients may still be on their way.
    #[track_caller]
    pub fn trees_equal(&self) {
        let mut last = None;
        let [a, b] = Node::PAIR.map(|node| self.backing(node));
        let equal = poll(Duration::from_secs(10), || {
            let found = compare::trees(&a, &b);
            let equal = found.as_ref().is_ok_and(compare::Comparison::equal);
            last = Some(found);
            equal.then_some(())
        });
        assert!(equal.is_some(), "trees are equal: {last:#?}");
    }

    /// `skc status` says why: in its reasons or in the note of a directory, service or address.
    #[track_caller]
    pub fn says(&self, node: Node, what: &str, words: &[&str]) {
        let mut seen = String::new();
        let met = poll(SETTLE, || {
            let status = self.status(node);
            let parts = ["reasons", "directories", "services", "vips"].map(|part| status[part].to_string());
            seen = parts.join(" ").to_lowercase();
            words.iter().any(|word| seen.contains(&word.to_lowercase())).then_some(())
        });
        assert!(met.is_some(), "{node} says {what} (one of {words:?}); it says {seen}");
    }

    /// Stops both agents' clusters in an orderly way? No: the lab's end is a power cut; this only
    /// ends the watching for scenarios that leave the cluster in pieces on purpose.
    pub fn verdict(self) {
        self.watch.verdict();
    }
}

/// Watches both nodes all the time: who writes in which epoch, who holds the address.
struct Watch {
    /// Dropping them ends the threads.
    running: Vec<SyncSender<()>>,
    seen: Arc<Mutex<Seen>>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Seen {
    writers: HashMap<String, Node>,
    wrong: Vec<String>,
    overlap: Duration,
    longest: Duration,
}

impl Watch {
    fn start(lab: &Arena) -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (mut running, mut threads) = (Vec::new(), Vec::new());
        for work in [watch_writers, watch_address] {
            let (sender, stopped) = sync_channel(0);
            let (lab, seen) = (skc::lab::Lab::clone(lab), seen.clone());
            running.push(sender);
            threads.push(std::thread::spawn(move || work(&lab, &stopped, &seen)));
        }
        Self { running, seen, threads }
    }

    #[track_caller]
    fn verdict(mut self) {
        self.running.clear();
        for thread in self.threads.drain(..) {
            thread.join().expect("the watcher ends");
        }
        let seen = self.seen.lock().unwrap();
        assert!(seen.wrong.is_empty(), "one writer an epoch: {:?}", seen.wrong);
        assert!(seen.longest <= VIP_OVERLAP, "the address was on both nodes for {:?}", seen.longest);
    }
}

/// Waits for the next look; false when the watching is over.
fn again(stopped: &Receiver<()>, pause: Duration) -> bool {
    stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout)
}

fn watch_writers(lab: &skc::lab::Lab, stopped: &Receiver<()>, seen: &Mutex<Seen>) {
    while again(stopped, Duration::from_millis(150)) {
        for node in Node::PAIR {
            let Ok(status) = lab.cluster(node, CLUSTER) else { continue };
            let (role, epoch) =
                (status["role"].as_str().unwrap_or(""), status["epoch"].as_str().unwrap_or(""));
            if !matches!(role, "PRIM" | "ALONE") || status["ready"] != "Ready" {
                continue;
            }
            let mut seen = seen.lock().unwrap();
            let writer = *seen.writers.entry(epoch.to_owned()).or_insert(node);
            if writer != node {
                seen.wrong.push(format!("epoch {epoch}: {writer} and {node}"));
            }
        }
    }
}

/// Does the kernel of `node` own the address? Read from its own routing table, by its PID 1.
pub fn holds_vip(lab: &skc::lab::Lab, node: Node) -> bool {
    let Ok(boot) = lab.booted(node) else { return false };
    let table = fs::read_to_string(format!("/proc/{}/net/fib_trie", boot.init)).unwrap_or_default();
    let lines: Vec<&str> = table.lines().map(str::trim).collect();
    lines.windows(2).any(|pair| pair[0] == format!("|-- {VIP}") && pair[1].contains("host LOCAL"))
}

fn watch_address(lab: &skc::lab::Lab, stopped: &Receiver<()>, seen: &Mutex<Seen>) {
    let mut since: Option<Instant> = None;
    while again(stopped, Duration::from_millis(20)) {
        let both = Node::PAIR.into_iter().all(|node| holds_vip(lab, node));
        match (both, since) {
            (true, None) => since = Some(Instant::now()),
            (true, Some(begin)) => {
                let mut seen = seen.lock().unwrap();
                seen.overlap = begin.elapsed();
                seen.longest = seen.longest.max(seen.overlap);
            }
            (false, _) => since = None,
        }
    }
}

/// Waits until exactly `node` holds the address.
#[track_caller]
pub fn vip_is_at(lab: &Arena, node: Node) {
    let peer = node.peer().expect("a pair");
    until("the address is at its place", SETTLE, || holds_vip(lab, node) && !holds_vip(lab, peer));
}
