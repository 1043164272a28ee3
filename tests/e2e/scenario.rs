//! What the scenarios share: a ledger cluster in a lab, its load, and the invariants.

use crate::harness::Arena;
use crate::records::Records;
use crate::watch::Watch;
use serde_json::Value;
use skc::lab::ledger::check;
use skc::lab::ledger::client::{Ack, Load, Options};
use skc::lab::process::poll;
use skc::lab::wait::Condition;
use skc::lab::{Node, compare};
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Longest time for any change of state: far above every sum of timers, below the hard deadline.
pub const SETTLE: Duration = Duration::from_secs(60);
/// Name of the cluster, where there is one.
pub const CLUSTER: &str = "ledger";
/// Where clients connect.
const VIP: &str = "10.77.1.100";
const PORT: u16 = 7700;
/// `heartbeat.timeout` of all scenarios that do not say otherwise.
pub const TIMEOUT: Duration = Duration::from_secs(1);

/// A spec with its adjustable parts.
#[derive(Clone, Copy)]
pub struct Spec {
    /// `metadata.name`.
    pub cluster: &'static str,
    /// The mirrored directory.
    pub directory: &'static str,
    /// Where the service listens.
    pub port: u16,
    /// What runs instead of the ledger's server: an argument vector of YAML; empty = the server.
    pub run: &'static str,
    /// The virtual address, if any.
    pub vip: Option<&'static str>,
    /// Lines below `checkers:`; empty = none.
    pub checkers: &'static str,
    /// Is the witness asked?
    pub witness: bool,
    /// `failover:`, in braces.
    pub failover: &'static str,
    /// Fields of `replication:`; empty = none.
    pub replication: &'static str,
    /// A second directory: its path, and its other fields in YAML.
    pub second: Option<(&'static str, &'static str)>,
    /// `heartbeat.timeout`.
    pub timeout: Duration,
}

impl Spec {
    /// The ledger at level L2.
    pub const LEDGER: Self = Self {
        cluster: CLUSTER,
        directory: "/srv/ledger",
        port: PORT,
        run: "",
        vip: Some(VIP),
        checkers: "",
        witness: true,
        failover: "{}",
        replication: "",
        second: None,
        timeout: TIMEOUT,
    };

    /// The document.
    pub fn text(&self) -> String {
        let Self { cluster, directory, port, run, vip, checkers, witness, failover, timeout, .. } = self;
        let second =
            self.second.map_or(String::new(), |(path, fields)| format!("    - {{path: {path}, {fields}}}\n"));
        let replication = match self.replication {
            "" => String::new(),
            fields => format!("  replication: {{{fields}}}\n"),
        };
        let checkers = if checkers.is_empty() { String::new() } else { format!("  checkers:\n{checkers}\n") };
        let server = format!(r#"[skc, ledger, serve, --data, {directory}, --listen, "0.0.0.0:{port}"]"#);
        let run = if run.is_empty() { &server } else { *run };
        let vip = vip.map_or(String::new(), |vip| format!("  virtualIPs:\n    - {{address: {vip}/24}}\n"));
        let witness = if *witness { "  arbitration: {ping: [10.77.1.254]}\n" } else { "" };
        let timeout = timeout.as_millis();
        format!(
            "apiVersion: skc.dev/v1
kind: ClusterSpec
metadata: {{name: {cluster}}}
spec:
  nodes:
    - {{name: node-a, addresses: [10.77.1.1, 10.77.2.1]}}
    - {{name: node-b, addresses: [10.77.1.2, 10.77.2.2]}}
  directories:
    - {{path: {directory}}}
{second}{replication}  services:
    - name: ledger
      exec:
        run: {run}
{vip}{checkers}  heartbeat: {{timeout: {timeout}ms}}
{witness}  failover: {failover}
"
        )
    }
}

/// A running cluster.
pub struct Cluster<'a> {
    /// The lab below it.
    pub lab: &'a Arena,
    /// Its name.
    pub name: &'static str,
    /// Its virtual address.
    pub vip: Option<&'static str>,
    directory: &'static str,
    port: u16,
    watch: Watch,
}

impl<'a> Cluster<'a> {
    /// Starts both agents and applies the spec on `node`; does not wait for roles.
    pub fn apply_on(node: Node, lab: &'a Arena, spec: &Spec) -> Self {
        lab.start_pair().expect("the pair starts");
        Self::add_on(node, lab, spec)
    }

    /// The same on node-a.
    pub fn apply(lab: &'a Arena, spec: &Spec) -> Self {
        Self::apply_on(Node::NodeA, lab, spec)
    }

    /// Creates the directories and applies a spec on `node` of a pair that runs.
    pub fn add_on(node: Node, lab: &'a Arena, spec: &Spec) -> Self {
        for node in Node::PAIR {
            fs::create_dir_all(lab.backing(node, spec.directory)).expect("create the directory");
        }
        let watch = Watch::start(lab, spec.cluster, spec.vip);
        let Spec { cluster: name, vip, directory, port, .. } = *spec;
        let cluster = Self { lab, name, vip, directory, port, watch };
        cluster.change_on(node, &spec.text());
        cluster
    }

    /// Applies a document on `node`.
    #[track_caller]
    pub fn change_on(&self, node: Node, text: &str) -> String {
        let path = self.write_spec(&format!("{}.yaml", self.name), text);
        self.lab.apply(node, &path).expect("the spec is applied")
    }

    /// As [`Self::apply`], and waits for PRIM and SECOND.
    pub fn start(lab: &'a Arena, spec: &Spec) -> (Self, Node, Node) {
        let cluster = Self::apply(lab, spec);
        let primary = cluster.settled();
        (cluster, primary, primary.peer().expect("a pair"))
    }

    /// Runs `skc VERB CLUSTER ARGS --yes` inside `node`.
    pub fn verb(&self, node: Node, verb: &str, args: &[&str]) -> skc::lab::Result<String> {
        let all: Vec<&str> = [&[verb, self.name], args, &["--yes"]].concat();
        self.lab.skc(node, &all, SETTLE)
    }

    /// The same, where it must work.
    #[track_caller]
    pub fn does(&self, node: Node, verb: &str, args: &[&str]) {
        self.verb(node, verb, args).unwrap_or_else(|error| panic!("{verb} on {node}: {error}"));
    }

    /// The same, where it must be refused with this code.
    #[track_caller]
    pub fn refuses(&self, node: Node, verb: &str, args: &[&str], code: &str) {
        let error = self.verb(node, verb, args).expect_err(verb).to_string();
        assert!(error.contains(code), "{verb} on {node} is refused with {code}: {error}");
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
        self.lab.cluster(node, self.name).unwrap_or(Value::Null)
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
        if let Err(error) = self.lab.wait(node, Some(self.name), &parsed, SETTLE) {
            panic!("{error}");
        }
    }

    /// Waits for one node PRIM Ready with the VIP, the other SECOND Ready UpToDate; returns the primary.
    #[track_caller]
    pub fn settled(&self) -> Node {
        let found = poll(SETTLE, || {
            Node::PAIR.into_iter().find(|node| {
                self.is(*node, &["PRIM", "Ready"])
                    && (self.vip.is_none() || self.is(*node, &["vip"]))
                    && node.peer().is_some_and(|peer| self.is(peer, &["SECOND", "Ready", "UpToDate"]))
            })
        });
        found.unwrap_or_else(|| panic!("one node PRIM, the other SECOND within {SETTLE:?}"))
    }

    /// Clients under full load at the virtual address; every append with an fdatasync.
    pub fn load(&self) -> Load {
        self.load_at(self.vip.expect("a virtual address"), 7)
    }

    /// The same at another address; `seed` tells several loads apart.
    pub fn load_at(&self, address: &str, seed: u64) -> Load {
        let connect = format!("{address}:{}", self.port).parse().expect("an address");
        let netns = Some(self.lab.netns_path(Node::Client.name()));
        let options = Options { connect, clients: 4, sync_every: 1, seed, netns, journal: None, count: None };
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
        self.finish_all(Vec::new(), load)
    }

    /// The same where clients that are gone got acknowledgements, too.
    #[track_caller]
    pub fn finish_all(self, mut acks: Vec<Ack>, load: Load) -> Node {
        let primary = self.settled();
        acks.extend(load.stop());
        self.nothing_lost(&acks);
        self.watch.verdict(None);
        primary
    }

    /// Both trees are equal and hold every record.
    #[track_caller]
    pub fn nothing_lost(&self, acks: &[Ack]) {
        assert!(!acks.is_empty(), "something was acknowledged");
        self.trees_equal();
        for node in Node::PAIR {
            let found = check::check(&self.backing(node), acks).expect("read the ledger");
            assert!(found.good(), "{node}: {found:?}");
        }
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
                self.does(source, "adopt", &["--source", source.name(), "--force"]);
            }
            None => panic!("settled, or one node serves and both name the command, within {SETTLE:?}"),
        }
    }

    /// As [`Self::finish`] where both sides may have acknowledged until the cut was `healed`: every
    /// acknowledged record that the winner lacks is in quarantine. Returns how many are.
    #[track_caller]
    pub fn finish_divided(self, loads: Vec<Load>, healed: Instant) -> usize {
        self.settled();
        let acks: Vec<Ack> = loads.into_iter().flat_map(Load::stop).collect();
        assert!(!acks.is_empty(), "something was acknowledged");
        self.trees_equal();
        let mut kept = Records::default();
        for node in Node::PAIR {
            let found = check::check(&self.backing(node), &[]).expect("read the ledger");
            assert_eq!(found.damaged, 0, "{node}: {found:?}");
            kept.add_all(&self.backing(node).join(".skc/quarantine"));
        }
        let mut ledger = Records::default();
        ledger.add_all(&self.backing(Node::NodeA).join("ledger.log"));
        let dropped = ledger.lacks(&acks);
        let count = dropped.len();
        let lost = kept.lacks(dropped);
        let some: Vec<_> = lost.iter().take(5).collect();
        assert!(lost.is_empty(), "{} of {count} dropped records are not in quarantine: {some:?}", lost.len());
        self.watch.verdict(Some(healed));
        count
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

    /// `skc get`: the specs in force on a node; `Null` while it does not answer.
    pub fn get(&self, node: Node) -> Value {
        let text = self.lab.skc(node, &["get", "-o", "json"], SETTLE).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    }

    /// What a node noted down, over all lives of its agent: code and text of every event that has a code.
    pub fn events(&self, node: Node) -> Vec<(String, String)> {
        events(self.lab, node)
    }

    /// Ends the watching of scenarios that leave the cluster in pieces on purpose.
    pub fn verdict(self) {
        self.watch.verdict(None);
    }
}

/// Code and text of every event that has a code, as the node noted them down.
pub fn events(lab: &Arena, node: Node) -> Vec<(String, String)> {
    let path = lab.node_dir(node).join("state/events.jsonl");
    let text = fs::read_to_string(path).unwrap_or_default();
    let of = |line: &str| {
        // The last line may be half written.
        let event: Value = serde_json::from_str(line).ok()?;
        Some((event["code"].as_str()?.to_owned(), event["text"].as_str().unwrap_or("").to_owned()))
    };
    text.lines().filter_map(of).collect()
}
