//! The demo, many times: nothing is ever lost, and the times hold.
//!
//! `SKC_DEMO_RUNS=20 SKC_DEMO_TIMEOUT=500ms cargo test --release --test demo_trials -- --ignored --nocapture`
//! (root; the times are those of a release build on an otherwise quiet machine). Real applications, once each:
//! `cargo test --test demo_trials sqlite`, `cargo test --test demo_trials postgres -- --ignored`.

#[path = "skip/mod.rs"]
mod skip;

use skc::lab::Lab;
use skc::lab::demo::app::App;
use skc::lab::demo::{Options, Report, run};
use std::path::PathBuf;

/// Runs, unless `SKC_DEMO_RUNS` says otherwise: a loss in one of ten runs shows with 88 %.
const RUNS: u64 = 20;
/// Median outage in milliseconds at most, by `heartbeat.timeout`: the timeout, and what detection, probing,
/// promotion and the service's start take.
const OUTAGE_MS: [(&str, u64); 2] = [("2s", 3_000), ("500ms", 1_500)];
/// Median pause of a swap in milliseconds at most.
const SWAP_MS: u64 = 500;
/// Records that each run has acknowledged at least.
const ACKNOWLEDGED: u64 = 1_000;

fn trial(app: App, seed: u64, timeout: &str) -> Report {
    let options = Options {
        app,
        // The process id keeps test runs of several checkouts on one machine apart, the seed tests of one.
        name: format!("trials-{}-{seed}", std::process::id()),
        keep: false,
        seed,
        spec: None,
        timeout: Some(timeout.to_owned()),
        program: PathBuf::from(env!("CARGO_BIN_EXE_skc")),
    };
    run(&options, &mut |_| {}).unwrap_or_else(|error| {
        let lab = Lab::new(&options.name, None, options.program.clone()).expect("its name is good");
        panic!("seed {seed}: {error}\n{}", lab.diagnosis())
    })
}

/// (least, median, most)
fn spread(reports: &[Report], figure: impl Fn(&Report) -> u64) -> (u64, u64, u64) {
    let mut all: Vec<u64> = reports.iter().map(figure).collect();
    all.sort_unstable();
    (all[0], all[all.len() / 2], all[all.len() - 1])
}

fn loses_nothing_once(app: App, seed: u64) {
    if let Some(missing) = Lab::preflight().err().or_else(|| app.find().err()) {
        return skip::skipped(&skip::this_test(), missing);
    }
    let report = trial(app, seed, "2s");
    assert!(report.good(), "the lab is kept: {report:#?}");
    assert!(report.acknowledged >= ACKNOWLEDGED, "{report:#?}");
    let last = report.timeline.iter().map(|step| step.text.as_str());
    let looked = last.filter(|text| text.starts_with("copies of both disks opened and looked at: ")).count();
    assert_eq!(looked, 1, "{report:#?}");
}

#[test]
fn sqlite_loses_nothing_in_a_power_cut() {
    loses_nothing_once(App::Sqlite, 1001);
}

#[test]
#[ignore = "takes a minute on a busy machine; run it on purpose"]
fn postgres_loses_nothing_in_a_power_cut() {
    loses_nothing_once(App::Postgres, 1002);
}

#[test]
#[ignore = "takes some 20 s a run and a quiet machine; run it on purpose"]
fn nothing_is_lost_in_many_power_cuts() {
    if let Err(error) = Lab::preflight() {
        eprintln!("SKIPPED: {error}");
        return;
    }
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse().expect(name));
    let (runs, first) = (number("SKC_DEMO_RUNS").unwrap_or(RUNS), number("SKC_DEMO_SEED").unwrap_or(1));
    let timeout = std::env::var("SKC_DEMO_TIMEOUT").unwrap_or_else(|_| "2s".to_owned());
    let mut reports = Vec::new();
    for seed in first..first + runs.max(1) {
        let report = trial(App::Ledger, seed, &timeout);
        println!(
            "seed {seed}: {} acknowledged, {} lost, trees equal: {}, outage {} ms, swap {} ms, return {:.1} s",
            report.acknowledged,
            report.lost,
            report.trees_equal,
            report.outage_ms,
            report.swap_ms,
            report.return_seconds
        );
        assert_eq!(report.lost, 0, "seed {seed}: {:?}; the lab is kept", report.findings);
        assert!(report.trees_equal, "seed {seed}: {:?}; the lab is kept", report.findings);
        assert!(report.acknowledged >= ACKNOWLEDGED, "seed {seed}: {}", report.acknowledged);
        reports.push(report);
    }
    let (outage, swap) = (spread(&reports, |r| r.outage_ms), spread(&reports, |r| r.swap_ms));
    println!("heartbeat.timeout {timeout}, {} runs: least / median / most", reports.len());
    println!("  outage {} / {} / {} ms", outage.0, outage.1, outage.2);
    println!("  swap   {} / {} / {} ms", swap.0, swap.1, swap.2);
    if let Some((_, limit)) = OUTAGE_MS.iter().find(|(name, _)| *name == timeout) {
        assert!(outage.1 <= *limit, "median outage {} ms, aim {limit} ms", outage.1);
    }
    assert!(swap.1 <= SWAP_MS, "median swap {} ms, aim {SWAP_MS} ms", swap.1);
}
