//! A busy machine is not a dead one: full load on cores, disk and memory, and lost heartbeats.
//!
//! Lab and load share the machine, so this is harder than the same load on two machines: both nodes, the
//! clients and the witness wait for the same cores and the same disk.

use crate::harness::arena_for;
use crate::scenario::{Cluster, Spec, events};
use skc::lab::Node;
use skc::lab::forward::shape::Shape;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Heartbeats and everything else that gets lost, in percent.
const LOSS: f64 = 5.0;

/// `SKC_STRESS_MINUTES`, or one.
fn time() -> Duration {
    let minutes = std::env::var("SKC_STRESS_MINUTES").ok().and_then(|text| text.parse::<f64>().ok());
    Duration::from_secs_f64(minutes.unwrap_or(1.0) * 60.0)
}

/// stress-ng, ended with its children.
struct Stress(Child);

impl Stress {
    /// `None`, said aloud, where it is not installed.
    fn start(scratch: &Path) -> Option<Self> {
        let cores = std::thread::available_parallelism().map_or(2, usize::from).to_string();
        let scratch = scratch.display().to_string();
        let arguments = [
            ["--cpu", &cores].as_slice(),
            &["--hdd", "2", "--hdd-bytes", "128M", "--hdd-opts", "fsync"],
            &["--vm", "1", "--vm-bytes", "512M"],
            &["--temp-path", &scratch],
        ]
        .concat();
        let started =
            Command::new("stress-ng").args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        match started {
            Ok(child) => Some(Self(child)),
            Err(error) => {
                crate::skip::skipped(&crate::skip::this_test(), format!("stress-ng: {error}"));
                None
            }
        }
    }
}

impl Drop for Stress {
    fn drop(&mut self) {
        // SIGTERM: it ends its own children.
        let _ = skc::sys::namespace::signal(self.0.id(), skc::sys::namespace::Signal::Term);
        let _ = self.0.wait();
    }
}

/// What happened to the roles: code, and how many times on both nodes together.
fn changes(lab: &crate::harness::Arena, codes: &[&str]) -> usize {
    let all = Node::PAIR.into_iter().flat_map(|node| events(lab, node));
    all.filter(|(code, _)| codes.contains(&code.as_str())).count()
}

/// Runs the load and returns lost sessions and changes of role per hour, as far as they were met.
fn under_load(name: &str, timeout: Duration) -> Option<(f64, f64)> {
    let lab = arena_for(name, time())?;
    let _stress = Stress::start(lab.dir())?;
    let spec = Spec { timeout, ..Spec::LEDGER };
    let (cluster, primary, _) = Cluster::start(&lab, &spec);
    let load = cluster.load();
    cluster.progress(&load, 100);
    lab.link(Some(Shape::new(0.0, LOSS, None, 1).expect("a shape"))).expect("frames get lost");
    let before = changes(&lab, &["SKC-V0006"]);
    let (began, from) = (Instant::now(), load.now());
    while began.elapsed() < time() {
        // The watcher looks for two writers all the time; here only the time has to pass.
        let left = time().saturating_sub(began.elapsed()).min(Duration::from_secs(5));
        crate::harness::always("a moment passes", left, || true);
    }
    let hours = began.elapsed().as_secs_f64() / 3600.0;
    let lost = changes(&lab, &["SKC-V0006"]) - before;
    let moved = changes(&lab, &["SKC-V0009", "SKC-V0011", "SKC-V0013"])
        + usize::from(!cluster.is(primary, &["PRIM"]) && !cluster.is(primary, &["ALONE"]));
    let (gap, _) = load.longest_gap(from, load.now());
    let acknowledged = load.acknowledged();
    eprintln!(
        "timeout {timeout:?}, {LOSS} % loss, {:.1} min: {acknowledged} acknowledged, longest gap {gap:?}, sessions lost {lost} ({:.1} an hour), roles changed {moved} ({:.1} an hour)",
        hours * 60.0,
        lost as f64 / hours,
        moved as f64 / hours
    );
    lab.link(None).expect("nothing gets lost any more");
    cluster.settled();
    cluster.progress(&load, 50);
    cluster.finish(load);
    Some((lost as f64 / hours, moved as f64 / hours))
}

#[test]
#[ignore = "full load for a minute: SKC_STRESS_MINUTES=60 cargo test --test e2e stress -- --ignored --nocapture"]
fn nobody_fails_over_at_the_default_timeout() {
    let default = skc::spec::defaults::heartbeat_timeout().as_millis();
    if let Some((_, moved)) = under_load("busy-default", Duration::from_millis(default)) {
        assert!(moved == 0.0, "a busy machine is not a dead one: {moved} changes of role an hour");
    }
}

/// Measured and printed, not judged: `skc validate` warns of such timeouts (SKC-E1101).
#[test]
#[ignore = "full load for a minute each: SKC_STRESS_MINUTES=60 cargo test --test e2e stress -- --ignored --nocapture"]
fn short_timeouts_under_load() {
    for (name, millis) in [("busy-500", 500), ("busy-300", 300)] {
        under_load(name, Duration::from_millis(millis));
    }
}
