//! `skc lab bench`: the bare directory, FUSE without a peer, and the mirror in each of its modes,
//! alternating in one run.
//!
//! All are on the same disk of the same node and are reached the same way, through the
//! node's root as this process sees it. The reference is a TCP ping-pong of 4 KiB between the two
//! nodes, without TLS: what the network alone costs here.

pub mod aims;
pub mod work;

use super::process::poll;
use super::wait::Condition;
use super::{Lab, LabError, Node, Result};
use crate::sys::namespace::join_net;
use serde::Serialize;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use work::Work;

/// What a workload runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// The directory itself.
    Bare,
    /// The mirror file system without a peer.
    Fuse,
    /// A mirrored directory, strict.
    Mirror,
    /// Another one of the same cluster: its calls do not wait for the standby, its fdatasyncs do.
    Commit,
    /// A third one: nothing waits for the standby.
    Async,
}

impl Target {
    /// In the order of the table.
    pub const ALL: [Self; 5] = [Self::Bare, Self::Fuse, Self::Mirror, Self::Commit, Self::Async];

    fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::Fuse => "fuse",
            Self::Mirror => "mirror",
            Self::Commit => "commit",
            Self::Async => "async",
        }
    }
}

/// Figures of one workload on one target.
#[derive(Debug, Clone, Serialize)]
pub struct Figure {
    /// What ran.
    pub work: Work,
    /// On what.
    pub target: Target,
    /// Median of one operation in microseconds.
    pub p50_us: f64,
    /// 99th percentile.
    pub p99_us: f64,
    /// MB/s (10^6 bytes) over all rounds, where it says something.
    pub megabytes_per_second: Option<f64>,
    /// Operations measured.
    pub operations: usize,
}

/// The whole result.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// TCP ping-pong of 4 KiB between the nodes: median and 99th percentile in microseconds.
    pub ping_pong_us: (f64, f64),
    /// Every workload on every target.
    pub figures: Vec<Figure>,
    /// What was to be reached, and was or was not.
    pub aims: Vec<aims::Aim>,
}

/// What to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// On what.
    pub targets: Vec<Target>,
    /// Rounds; targets alternate within each.
    pub rounds: usize,
    /// Percent of the full number of operations.
    pub scale: usize,
}

/// Longest time until the mirror is Ready.
const READY: Duration = Duration::from_secs(60);
const CLUSTER: &str = "bench";
const SPEC: &str = "apiVersion: skc.dev/v1
kind: ClusterSpec
metadata: {name: bench}
spec:
  nodes:
    - {name: node-a, addresses: [10.77.1.1, 10.77.2.1]}
    - {name: node-b, addresses: [10.77.1.2, 10.77.2.2]}
  directories:
    - {path: /srv/mirror}
    - {path: /srv/commit, consistency: commit}
    - {path: /srv/async, consistency: async}
  arbitration: {ping: [10.77.1.254]}
";

/// Makes `lab`, measures, removes it. `tell` gets one line a round.
pub fn run(lab: &Lab, options: &Options, tell: &mut dyn FnMut(&str)) -> Result<Report> {
    lab.up()?;
    let result = measure(lab, options, tell);
    let down = if result.is_ok() { lab.down() } else { Ok(()) };
    let report = result?;
    down.map(|()| report)
}

fn measure(lab: &Lab, options: &Options, tell: &mut dyn FnMut(&str)) -> Result<Report> {
    for target in Target::ALL {
        for node in Node::PAIR {
            let path = lab.backing(node, &inside(target));
            fs::create_dir_all(&path).map_err(|source| LabError::Io { op: "create", path, source })?;
        }
    }
    let mut node = Node::NodeA;
    if options.targets.iter().any(|target| !matches!(target, Target::Bare | Target::Fuse)) {
        node = start_mirror(lab)?;
    }
    if options.targets.contains(&Target::Fuse) {
        start_fuse(lab, node)?;
    }
    let ping_pong_us = ping_pong(lab)?;
    tell(&format!("TCP ping-pong 4 KiB: p50 {:.1} us, p99 {:.1} us", ping_pong_us.0, ping_pong_us.1));
    let mut all: Vec<(Work, Target, Vec<Duration>)> = Vec::new();
    for round in 1..=options.rounds {
        for work in Work::ALL {
            for target in &options.targets {
                let dir = lab.mounted(node, &inside(*target))?;
                let times = work::round(work, &dir, options.scale).map_err(|source| LabError::Io {
                    op: work.title(),
                    path: dir,
                    source,
                })?;
                match all.iter_mut().find(|(w, t, _)| (*w, *t) == (work, *target)) {
                    Some((_, _, sum)) => sum.extend(times),
                    None => all.push((work, *target, times)),
                }
            }
        }
        tell(&format!("round {round} of {} done", options.rounds));
    }
    let figures = all.into_iter().map(|(w, t, times)| figure(w, t, times)).collect();
    let mut report = Report { ping_pong_us, figures, aims: Vec::new() };
    report.aims = aims::of(&report);
    Ok(report)
}

fn inside(target: Target) -> String {
    format!("/srv/{}", target.name())
}

fn figure(work: Work, target: Target, mut times: Vec<Duration>) -> Figure {
    let total: Duration = times.iter().sum();
    let rate = |bytes: u64| (bytes * times.len() as u64) as f64 / 1e6 / total.as_secs_f64().max(1e-9);
    let megabytes_per_second = work.bytes().map(rate);
    let (p50_us, p99_us) = percentiles(&mut times);
    Figure { work, target, p50_us, p99_us, megabytes_per_second, operations: times.len() }
}

fn percentiles(times: &mut [Duration]) -> (f64, f64) {
    times.sort_unstable();
    let pick = |percent: usize| times.get(times.len() * percent / 100).map_or(0.0, |t| t.as_secs_f64() * 1e6);
    (pick(50), pick(99))
}

fn start_mirror(lab: &Lab) -> Result<Node> {
    lab.start_pair()?;
    let path = lab.dir().join("bench.yaml");
    fs::write(&path, SPEC).map_err(|source| LabError::Io { op: "write", path: path.clone(), source })?;
    lab.apply(Node::NodeA, &path)?;
    let second = [
        Condition::Role("SECOND".into()),
        Condition::Ready("Ready".into()),
        Condition::Data("UpToDate".into()),
    ];
    let holds = |node: Node| lab.cluster(node, CLUSTER).is_ok_and(|c| second.iter().all(|s| s.holds(&c)));
    let standby = poll(READY, || Node::PAIR.into_iter().find(|node| holds(*node)));
    standby.and_then(Node::peer).ok_or_else(|| LabError::Timeout {
        what: "a standby that is Ready and UpToDate".into(),
        after: READY,
        detail: format!("\n{}", lab.diagnosis()),
    })
}

fn start_fuse(lab: &Lab, node: Node) -> Result<()> {
    let program = lab.program().to_string_lossy();
    let log = lab.dir().join("passthrough.log");
    lab.detach(node, &[&program, "passthrough", &inside(Target::Fuse)], &log)?;
    let mounts = PathBuf::from(format!("/proc/{}/mounts", lab.booted(node)?.init));
    let limit = Duration::from_secs(10);
    let line = format!(" {} fuse", inside(Target::Fuse));
    let mounted = || fs::read_to_string(&mounts).unwrap_or_default().contains(&line).then_some(());
    poll(limit, mounted).ok_or_else(|| LabError::Timeout {
        what: "mount of `skc passthrough`".into(),
        after: limit,
        detail: format!(": {}", fs::read_to_string(&log).unwrap_or_default().trim()),
    })
}

/// A ping-pong of 4 KiB each way, between the two nodes.
fn ping_pong(lab: &Lab) -> Result<(f64, f64)> {
    let failed = |source| LabError::Io { op: "ping-pong between", path: "the nodes".into(), source };
    let [a, b] = Node::PAIR.map(|node| lab.netns_path(node.name()));
    let listener = on_thread(move || {
        join_net(&b)?;
        TcpListener::bind((Node::NodeB.address(1), 0))
    })
    .map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let server = std::thread::spawn(move || serve(&listener));
    let mut times = on_thread(move || {
        join_net(&a)?;
        client(address)
    })
    .map_err(failed)?;
    // Its client is gone: it ends.
    let _ = server.join();
    Ok(percentiles(&mut times))
}

fn on_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        scope.spawn(work).join().unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
    })
}

const PING: usize = 4096;
const PINGS: usize = 3000;
const PATIENCE: Duration = Duration::from_secs(5);

fn serve(listener: &TcpListener) -> io::Result<()> {
    let (mut stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut buffer = [0; PING];
    loop {
        stream.read_exact(&mut buffer)?;
        stream.write_all(&buffer)?;
    }
}

fn client(address: SocketAddr) -> io::Result<Vec<Duration>> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut buffer = [1; PING];
    let mut times = Vec::with_capacity(PINGS);
    for _ in 0..PINGS {
        let begin = Instant::now();
        stream.write_all(&buffer)?;
        stream.read_exact(&mut buffer)?;
        times.push(begin.elapsed());
    }
    Ok(times)
}

/// The table for people.
pub fn table(report: &Report) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{:<24} {:>8} {:>12} {:>12} {:>10} {:>8}",
        "", "on", "p50 us", "p99 us", "MB/s", "p50/bare"
    );
    for work in Work::ALL {
        let of = |target: Target| report.figures.iter().find(|f| f.work == work && f.target == target);
        let bare = of(Target::Bare).map(|figure| figure.p50_us);
        for figure in Target::ALL.into_iter().filter_map(of) {
            let rate = figure.megabytes_per_second.map_or(String::new(), |rate| format!("{rate:.0}"));
            let ratio = bare.map_or(String::new(), |bare| format!("{:.2}", figure.p50_us / bare.max(1e-9)));
            let _ = writeln!(
                out,
                "{:<24} {:>8} {:>12.1} {:>12.1} {rate:>10} {ratio:>8}",
                work.title(),
                figure.target.name(),
                figure.p50_us,
                figure.p99_us
            );
        }
    }
    let (p50, p99) = report.ping_pong_us;
    let _ = writeln!(out, "{:<24} {:>8} {p50:>12.1} {p99:>12.1}\n", "TCP ping-pong 4 KiB", "net1");
    out + &aims::lines(&report.aims)
}
