//! `skc demo`: a real application survives a power cut with nothing lost, and its machine comes back.
//!
//! The judge is independent: acknowledged records are remembered by the clients outside of the
//! mirror, looked for in both backing directories by the application's own means ([`app`]), and the trees are
//! compared by a walker that shares nothing with replication ([`compare`]).

pub mod app;
pub mod setup;
pub mod show;

use super::ledger::Random;
use super::ledger::client::{Ack, Load, Options as LoadOptions};
use super::process::poll;
use super::wait::Condition;
use super::{Kill, Lab, LabError, Node, Result, compare};
use app::{App, Application};
use serde::Serialize;
use serde_json::Value;
use setup::Setup;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Connections of the load: enough to keep both cores of a small machine busy.
const CLIENTS: u32 = 8;
/// Acknowledged records before the power cut.
const BEFORE_CUT: u64 = 1000;
/// The cut falls uniformly into this time after that.
const CUT_WINDOW: Duration = Duration::from_millis(1500);
/// Acknowledgements that prove that the service is back.
const BACK: u64 = 50;
/// How long the survivor writes alone, and the swapped pair afterwards.
const ALONE: Duration = Duration::from_millis(1500);
const AFTER_SWAP: Duration = Duration::from_millis(700);
/// Deadline of each step; passing one is a failed demo with diagnostics, never a hang.
const STEP: Duration = Duration::from_secs(90);
/// Time for the last operations of stopped clients to reach both trees.
const SETTLE: Duration = Duration::from_secs(5);

/// What the caller wants.
#[derive(Debug, Clone)]
pub struct Options {
    /// What writes.
    pub app: App,
    /// Name of the lab.
    pub name: String,
    /// Leave it running.
    pub keep: bool,
    /// Decides the moment of the power cut and the records' bytes.
    pub seed: u64,
    /// Another spec than the application's model.
    pub spec: Option<PathBuf>,
    /// Another `heartbeat.timeout`.
    pub timeout: Option<String>,
    /// The `skc` binary.
    pub program: PathBuf,
}

/// One line of the timeline.
#[derive(Debug, Clone, Serialize)]
pub struct Step {
    /// Seconds since the demo began.
    pub at_s: f64,
    /// Kind, for scripts and for the icon.
    pub kind: Kind,
    /// What happened.
    pub text: String,
}

/// Kinds of timeline lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Preparation.
    Setup,
    /// All is well.
    Ready,
    /// Clients write.
    Write,
    /// Power cut.
    Cut,
    /// The survivor serves.
    Takeover,
    /// A machine comes back.
    Return,
    /// Roles exchanged.
    Swap,
    /// The judge speaks.
    Check,
}

/// The figures.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// What wrote.
    pub app: App,
    /// Records acknowledged to clients.
    pub acknowledged: u64,
    /// Of these, missing or different on either node, and what an application's own tools complained about there
    /// (the worse of both).
    pub lost: u64,
    /// Are both trees equal?
    pub trees_equal: bool,
    /// Longest time without any acknowledgement around the power cut.
    pub outage_ms: u64,
    /// Bytes that travelled because they differed.
    pub resync_bytes: u64,
    /// What the resync took.
    pub resync_seconds: f64,
    /// Longest time without any acknowledgement during the swap.
    pub swap_ms: u64,
    /// Boot of the returning node to SECOND, Ready, UpToDate.
    pub return_seconds: f64,
    /// Requests in flight at the cut.
    pub in_flight_at_cut: u64,
    /// Median and 99th percentile of an acknowledged append, mirrored, before the cut.
    pub append_p50_us: u64,
    /// See above.
    pub append_p99_us: u64,
    /// Objects compared.
    pub objects: u64,
    /// Differences of the trees, losses of the ledger: the first few.
    pub findings: Vec<String>,
    /// `heartbeat.timeout`.
    pub heartbeat_timeout: String,
    /// Seed of this run.
    pub seed: u64,
    /// Whole run in seconds.
    pub seconds: f64,
    /// What one append is, for the figures.
    #[serde(skip)]
    pub unit: String,
    /// What happened.
    pub timeline: Vec<Step>,
}

impl Report {
    /// Nothing lost, both trees equal.
    pub fn good(&self) -> bool {
        self.lost == 0 && self.trees_equal
    }
}

struct Demo<'a> {
    lab: Lab,
    setup: Setup,
    app: Box<dyn Application>,
    options: &'a Options,
    begin: Instant,
    report: Report,
    tell: &'a mut dyn FnMut(&Step),
}

/// Runs the demo; `tell` is called with each line of the timeline as it happens.
///
/// After an error or a loss the lab is left as it is, for diagnosis; the next run removes it.
pub fn run(options: &Options, tell: &mut dyn FnMut(&Step)) -> Result<Report> {
    let app = options.app.find()?;
    Lab::preflight()?;
    let lab = Lab::new(&options.name, None, options.program.clone())?;
    let _only_one = single(&lab)?;
    let kept = lab.dir().join("kept");
    if kept.exists() && lab.is_up() {
        return Err(LabError::Refused(format!(
            "a demo was kept running: `skc lab down --name {}` ends it",
            lab.name()
        )));
    }
    lab.down()?;
    let setup = Setup::read(options.app, options.spec.as_deref(), options.timeout.as_deref())?;
    let report = Report { app: options.app, unit: app.unit().into(), ..Report::default() };
    let mut demo = Demo { lab, setup, app, options, begin: Instant::now(), report, tell };
    demo.play()?;
    let Demo { lab, mut report, begin, .. } = demo;
    if options.keep {
        fs::write(&kept, b"").map_err(|source| LabError::Io { op: "write", path: kept, source })?;
    } else if report.good() {
        lab.down()?;
    }
    report.seconds = begin.elapsed().as_secs_f64();
    Ok(report)
}

/// Two demos of one name would pull the floor from under each other.
fn single(lab: &Lab) -> Result<File> {
    let parent = lab.dir().parent().unwrap_or_else(|| Path::new("/")).to_owned();
    fs::create_dir_all(&parent).map_err(|source| LabError::Io {
        op: "create",
        path: parent.clone(),
        source,
    })?;
    let path = parent.join(format!(".{}.lock", lab.name()));
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|source| LabError::Io { op: "open", path, source })?;
    file.try_lock()
        .map_err(|_| LabError::Refused(format!("another demo named {:?} is running", lab.name())))?;
    Ok(file)
}

impl Demo<'_> {
    fn say(&mut self, kind: Kind, text: String) {
        let step = Step { at_s: self.begin.elapsed().as_secs_f64(), kind, text };
        (self.tell)(&step);
        self.report.timeline.push(step);
    }

    fn play(&mut self) -> Result<()> {
        let mut random = Random(self.options.seed);
        self.report.seed = self.options.seed;
        self.report.heartbeat_timeout.clone_from(&self.setup.timeout);
        let primary = self.assemble()?;
        let standby = primary.peer().unwrap_or(Node::NodeB);
        let load = self.start_load()?;
        self.cut_power(&load, primary, standby, &mut random)?;
        self.bring_back(&load, primary, standby)?;
        self.swap(&load, standby, primary)?;
        let acks = load.stop();
        if self.app.stops_first() {
            self.rest()?;
        }
        self.judge(&acks)?;
        if self.app.stops_first() && self.options.keep {
            self.apply("demo.yaml", &self.setup.text)?;
            self.settled(STEP)?;
        }
        Ok(())
    }

    /// Machines, agents, spec; returns the primary.
    fn assemble(&mut self) -> Result<Node> {
        self.lab.up()?;
        self.say(
            Kind::Setup,
            "node-a, node-b, client and witness are up: four machines, two networks".into(),
        );
        for node in Node::PAIR {
            let path = self.lab.backing(node, &self.setup.directory);
            fs::create_dir_all(&path).map_err(|source| LabError::Io { op: "create", path, source })?;
        }
        let judged = self.lab.dir().join("judge");
        fs::create_dir_all(&judged).map_err(|source| LabError::Io { op: "create", path: judged, source })?;
        self.app.install(&self.lab, &self.lab.backing(Node::NodeA, &self.setup.directory))?;
        self.lab.start_pair()?;
        self.apply("demo.yaml", &self.setup.text)?;
        self.say(
            Kind::Setup,
            format!("certificates made, agents talk, spec {:?} applied", self.setup.cluster),
        );
        if self.app.brings_data() {
            self.name_source()?;
        }
        let primary = self.settled(STEP)?;
        let standby = primary.peer().map_or("", Node::name);
        let text =
            format!("{primary} is primary, {standby} mirrors, {} is at {primary}", self.setup.connect.ip());
        self.say(Kind::Ready, text);
        Ok(primary)
    }

    /// What an operator does who brings a directory with data: skc asks which side is the source.
    fn name_source(&mut self) -> Result<()> {
        let (source, cluster) = (Node::NodeA, self.setup.cluster.clone());
        let asked = Condition::Reason("SKC-R0401".into());
        self.lab.wait(source, Some(&cluster), &[asked], STEP)?;
        self.lab.skc(source, &["adopt", &cluster, "--source", source.name(), "--yes"], STEP)?;
        self.say(Kind::Setup, format!("{source} holds the application's data: named as the source"));
        Ok(())
    }

    fn apply(&self, name: &str, text: &str) -> Result<()> {
        let path = self.lab.dir().join(name);
        fs::write(&path, text).map_err(|source| LabError::Io { op: "write", path: path.clone(), source })?;
        self.lab.apply(Node::NodeA, &path).map(drop)
    }

    /// Ends the application in order while the mirror goes on: a spec without services. What it writes as its last is
    /// mirrored, too.
    fn rest(&mut self) -> Result<()> {
        self.apply("at-rest.yaml", &self.setup.at_rest)?;
        let dirs = Node::PAIR.map(|node| self.lab.backing(node, &self.setup.directory));
        let ended = poll(STEP, || dirs.iter().all(|dir| self.app.has_ended(dir)).then_some(()));
        ended.ok_or_else(|| LabError::Timeout {
            what: "the orderly end of the application on both disks".into(),
            after: STEP,
            detail: String::new(),
        })?;
        self.settled(STEP).map(drop)
    }

    /// Waits for one PRIM Ready with the VIP and one SECOND Ready UpToDate; returns the primary.
    fn settled(&self, limit: Duration) -> Result<Node> {
        let second = ["SECOND", "Ready", "UpToDate"].map(condition);
        let first = ["PRIM", "Ready", "vip"].map(condition);
        let holds = |node: Node, all: &[Condition]| {
            let cluster = self.lab.cluster(node, &self.setup.cluster);
            cluster.is_ok_and(|cluster| all.iter().all(|condition| condition.holds(&cluster)))
        };
        let found = poll(limit, || {
            Node::PAIR
                .into_iter()
                .find(|node| holds(*node, &first) && node.peer().is_some_and(|peer| holds(peer, &second)))
        });
        found.ok_or_else(|| LabError::Timeout {
            what: "one node PRIM and the other SECOND, both Ready".into(),
            after: limit,
            detail: String::new(),
        })
    }

    fn start_load(&mut self) -> Result<Load> {
        let options = LoadOptions {
            connect: self.setup.connect,
            clients: CLIENTS,
            sync_every: 1,
            seed: self.options.seed,
            netns: Some(self.lab.netns_path(Node::Client.name())),
            journal: Some(self.lab.dir().join("acknowledged.journal")),
            count: None,
        };
        let load = Load::start(options).map_err(|source| LabError::Io {
            op: "start clients of",
            path: self.setup.cluster.clone().into(),
            source,
        })?;
        self.say(Kind::Write, format!("{CLIENTS} clients {}", self.app.writes()));
        Ok(load)
    }

    fn reach(load: &Load, count: u64, what: &str) -> Result<()> {
        poll(STEP, || (load.acknowledged() >= count).then_some(())).ok_or_else(|| LabError::Timeout {
            what: what.to_owned(),
            after: STEP,
            detail: format!("; {} acknowledged; last complaint: {}", load.acknowledged(), load.complaint()),
        })
    }

    fn cut_power(&mut self, load: &Load, primary: Node, standby: Node, random: &mut Random) -> Result<()> {
        Self::reach(load, BEFORE_CUT, "acknowledgements before the power cut")?;
        std::thread::sleep(Duration::from_micros(random.below(CUT_WINDOW.as_micros() as u64)));
        // Full load means that calls are in flight practically always.
        poll(Duration::from_secs(1), || (load.in_flight() > 0).then_some(()));
        let before = load.now();
        let (acknowledged, in_flight) = (load.acknowledged(), load.in_flight());
        self.lab.kill(primary, Kill::Power)?;
        self.report.in_flight_at_cut = in_flight;
        let (p50, p99) = load.latency(Duration::ZERO, before);
        self.report.append_p50_us = p50.as_micros() as u64;
        self.report.append_p99_us = p99.as_micros() as u64;
        let text = format!(
            "{primary} loses power: {} records acknowledged, {in_flight} calls in flight",
            show::thousands(acknowledged)
        );
        self.say(Kind::Cut, text);
        let dead = load.acknowledged();
        Self::reach(load, dead + BACK, "service after the power cut")?;
        let (gap, _) = load.longest_gap(before, load.now());
        self.report.outage_ms = gap.as_millis() as u64;
        self.say(
            Kind::Takeover,
            format!("{standby} serves: nobody was answered for {:.2} s", gap.as_secs_f64()),
        );
        std::thread::sleep(ALONE);
        Ok(())
    }

    fn bring_back(&mut self, load: &Load, dead: Node, source: Node) -> Result<()> {
        let text =
            format!("{dead} gets power again; {} records acknowledged", show::thousands(load.acknowledged()));
        self.say(Kind::Return, text);
        let begin = Instant::now();
        let before = load.now();
        self.lab.boot(dead)?;
        self.lab.start_agent(dead)?;
        let second = ["SECOND", "Ready", "UpToDate"].map(condition);
        self.lab.wait(dead, Some(&self.setup.cluster), &second, STEP)?;
        self.report.return_seconds = begin.elapsed().as_secs_f64();
        let (pause, _) = load.longest_gap(before, load.now());
        let resync = self.last_resync(source).or_else(|| self.last_resync(dead));
        let number = |key: &str| resync.as_ref().and_then(|value| value[key].as_f64()).unwrap_or(0.0);
        self.report.resync_bytes = number("bytes") as u64;
        self.report.resync_seconds = number("seconds");
        let text = format!(
            "{dead} mirrors again: {} sent in {:.2} s, {:.1} s since power; writers waited at most {} ms",
            show::bytes(self.report.resync_bytes),
            self.report.resync_seconds,
            self.report.return_seconds,
            pause.as_millis()
        );
        self.say(Kind::Ready, text);
        Ok(())
    }

    fn last_resync(&self, node: Node) -> Option<Value> {
        let cluster = self.lab.cluster(node, &self.setup.cluster).ok()?;
        let resync = cluster.get("resync")?.clone();
        (resync["seconds"].as_f64()? > 0.0).then_some(resync)
    }

    fn swap(&mut self, load: &Load, from: Node, to: Node) -> Result<()> {
        self.settled(STEP)?;
        let before = load.now();
        self.lab.skc(from, &["swap", &self.setup.cluster, "--yes"], STEP)?;
        let count = load.acknowledged();
        Self::reach(load, count + BACK, "service after the swap")?;
        self.settled(STEP)?;
        std::thread::sleep(AFTER_SWAP);
        let (gap, _) = load.longest_gap(before, load.now());
        self.report.swap_ms = gap.as_millis() as u64;
        self.say(
            Kind::Swap,
            format!("swapped: {to} is primary again, writers waited {} ms", gap.as_millis()),
        );
        Ok(())
    }

    fn judge(&mut self, acks: &[Ack]) -> Result<()> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| LabError::Io { op: "read back", path, source }
        };
        let [a, b] = Node::PAIR.map(|node| self.lab.backing(node, &self.setup.directory));
        let mut trees = compare::trees(&a, &b);
        poll(SETTLE, || {
            if !trees.as_ref().is_ok_and(compare::Comparison::equal) {
                trees = compare::trees(&a, &b);
            }
            trees.as_ref().is_ok_and(compare::Comparison::equal).then_some(())
        });
        let trees = trees.map_err(failed(&a))?;
        self.report.acknowledged = acks.len() as u64;
        let mut tools = String::new();
        for (dir, node) in [(&a, Node::NodeA), (&b, Node::NodeB)] {
            let scratch = self.lab.dir().join("judge").join(node.name());
            let found = self.app.judge(&self.lab, dir, &scratch, acks)?;
            self.report.lost = self.report.lost.max(found.lost + found.damaged);
            self.report.findings.extend(found.findings);
            tools = found.tools;
        }
        self.report.trees_equal = trees.equal();
        self.report.objects = trees.objects;
        self.report.findings.extend(trees.examples);
        let text = format!(
            "every acknowledged record looked for on both disks: {} lost of {}",
            self.report.lost,
            show::thousands(self.report.acknowledged)
        );
        self.say(Kind::Check, text);
        if !tools.is_empty() {
            self.say(Kind::Check, format!("copies of both disks opened and looked at: {tools}"));
        }
        let text = if trees.differences == 0 {
            format!(
                "both trees are equal: {} objects, {}",
                show::thousands(trees.objects),
                show::bytes(trees.bytes)
            )
        } else {
            format!("the trees differ in {} places", trees.differences)
        };
        self.say(Kind::Check, text);
        Ok(())
    }
}

fn condition(text: &str) -> Condition {
    match text {
        "vip" => Condition::Vip,
        "Ready" => Condition::Ready("Ready".into()),
        "UpToDate" => Condition::Data("UpToDate".into()),
        role => Condition::Role(role.into()),
    }
}
