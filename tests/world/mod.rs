//! A mirrored directory on the two nodes of a lab, for tests that bring work of their own: the lab, its spec
//! without any service, waits with deadlines, the judge of the trees.
//!
//! Every world has a lab of its own, so several can run side by side.
#![allow(dead_code, reason = "each test target uses its part of it")]

use serde_json::Value;
use skc::lab::process::poll;
use skc::lab::wait::Condition;
use skc::lab::{Kill, Lab, Node, compare};
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Longest time for any change of state: far above every sum of timers.
pub const SETTLE: Duration = Duration::from_secs(60);
/// Longest time for the last operations of clients that stopped to reach both trees.
const AT_REST: Duration = Duration::from_secs(10);
const CLUSTER: &str = "world";

/// splitmix64: the same seed is the same sequence.
#[derive(Debug, Clone)]
pub struct Rng(pub u64);

impl Rng {
    /// The generator number `stream` of a seed.
    pub fn of(seed: u64, stream: u64) -> Self {
        let mut rng = Self(seed ^ stream.wrapping_mul(0xd134_2543_de82_ef95));
        rng.next();
        rng
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`, which is not 0.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// Does one of `n` cases apply?
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// What differs between worlds.
#[derive(Debug, Clone)]
pub struct Want {
    /// Part of the lab's name.
    pub name: String,
    /// `replication.consistency`.
    pub consistency: &'static str,
    /// `heartbeat.timeout` in milliseconds.
    pub timeout_ms: u64,
    /// Longest life; passing it ends the whole test process: something hangs.
    pub deadline: Duration,
}

/// The mirrored directory, inside the nodes.
pub const DIRECTORY: &str = "/srv/world";

/// Two nodes that mirror [`DIRECTORY`].
pub struct World {
    pub lab: Lab,
    done: Arc<AtomicBool>,
}

impl World {
    /// Boots a lab, starts both agents, applies the spec and waits for PRIM and SECOND.
    pub fn start(want: &Want) -> (Self, Node) {
        let program = PathBuf::from(env!("CARGO_BIN_EXE_skc"));
        // The process id keeps test runs of several checkouts on one machine apart.
        let name = format!("{}-{}", want.name, std::process::id());
        let lab = Lab::new(&name, None, program).expect("a valid lab name");
        let done = Arc::new(AtomicBool::new(false));
        watch(lab.clone(), want.deadline, Arc::clone(&done));
        let world = Self { lab, done };
        world.lab.up().expect("the lab comes up");
        for node in Node::PAIR {
            fs::create_dir_all(world.backing(node)).expect("create the directory");
        }
        world.lab.start_pair().expect("the pair starts");
        let path = world.lab.dir().join("world.yaml");
        fs::write(&path, spec(want)).expect("write the spec");
        world.lab.apply(Node::NodeA, &path).expect("the spec is applied");
        let primary = world.settled();
        (world, primary)
    }

    /// The mirrored directory as the host reads it, below the mount.
    pub fn backing(&self, node: Node) -> PathBuf {
        self.lab.backing(node, DIRECTORY)
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
        let met = wait_for(SETTLE, || self.is(node, conditions).then_some(()));
        assert!(met.is_some(), "{conditions:?} at {node} within {SETTLE:?}: {}", self.status(node));
    }

    /// Waits for one node PRIM Ready, the other SECOND Ready UpToDate; returns the primary.
    #[track_caller]
    pub fn settled(&self) -> Node {
        let found = wait_for(SETTLE, || {
            Node::PAIR.into_iter().find(|node| {
                self.is(*node, &["PRIM", "Ready", "vip"])
                    && node.peer().is_some_and(|peer| self.is(peer, &["SECOND", "Ready", "UpToDate"]))
            })
        });
        found.unwrap_or_else(|| panic!("one node PRIM, the other SECOND within {SETTLE:?}"))
    }

    /// Runs `skc VERB` on the cluster inside `node`.
    pub fn verb(&self, node: Node, verb: &str) -> skc::lab::Result<String> {
        self.lab.skc(node, &[verb, CLUSTER, "--yes"], SETTLE)
    }

    /// Cuts the power of a node.
    #[track_caller]
    pub fn power_cut(&self, node: Node) {
        self.lab.kill(node, Kill::Power).expect("the power cut");
    }

    /// Boots a node again and starts its agent.
    #[track_caller]
    pub fn power_on(&self, node: Node) {
        self.lab.boot(node).expect("it boots");
        self.lab.start_agent(node).expect("its agent starts");
    }

    /// Compares the trees; the last operations of stopped clients may still be on their way.
    #[track_caller]
    pub fn trees_equal(&self) {
        let mut last = None;
        let [a, b] = Node::PAIR.map(|node| self.backing(node));
        let equal = poll(AT_REST, || {
            let found = compare::trees(&a, &b);
            let equal = found.as_ref().is_ok_and(compare::Comparison::equal);
            last = Some(found);
            equal.then_some(())
        });
        assert!(equal.is_some(), "trees are equal: {last:#?}");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.lab.diagnosis());
        }
        if std::thread::panicking() && std::env::var_os("SKC_KEEP").is_some() {
            eprintln!("kept: skc lab down --name {} removes it", self.lab.name());
        } else if let Err(error) = self.lab.down() {
            eprintln!("cleaning up {}: {error}", self.lab.name());
        }
        self.done.store(true, Ordering::Release);
    }
}

/// Asks `check` at a pace that leaves the machine to the nodes: every question is a process.
fn wait_for<T>(limit: Duration, mut check: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + limit;
    loop {
        let found = check();
        if found.is_some() || Instant::now() >= end {
            return found;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Ends the process when the world outlives its deadline.
fn watch(lab: Lab, deadline: Duration, done: Arc<AtomicBool>) {
    let end = Instant::now() + deadline;
    std::thread::spawn(move || {
        while !done.load(Ordering::Acquire) {
            if Instant::now() >= end {
                eprintln!("HANGS: {} is not done after {deadline:?}\n{}", lab.name(), lab.diagnosis());
                if let Err(error) = lab.down() {
                    eprintln!("cleaning up: {error}");
                }
                std::process::exit(101);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    });
}

fn spec(want: &Want) -> String {
    let Want { consistency, timeout_ms, .. } = want;
    format!(
        "apiVersion: skc.dev/v1
kind: ClusterSpec
metadata: {{name: {CLUSTER}}}
spec:
  nodes:
    - {{name: node-a, addresses: [10.77.1.1, 10.77.2.1]}}
    - {{name: node-b, addresses: [10.77.1.2, 10.77.2.2]}}
  directories:
    - {{path: {DIRECTORY}}}
  replication: {{consistency: {consistency}}}
  virtualIPs:
    - {{address: 10.77.1.100/24}}
  heartbeat: {{timeout: {timeout_ms}ms}}
  arbitration: {{ping: [10.77.1.254]}}
"
    )
}
