//! Power cuts under eight processes that do everything a file system can: what was acknowledged is on the survivor,
//! nothing else is, and the dead machine comes back to an equal tree.
//!
//! `cargo test --test crash` does a few seeds. `SKC_CRASH_SEEDS=200 cargo test --release --test crash -- --ignored`
//! does many: `SKC_CRASH_FIRST` is the first of them, `SKC_CRASH_JOBS` how many labs run side by side,
//! `SKC_CRASH_DONE` a file with the seeds that passed, which are left out the next time, `SKC_CRASH_CONSISTENCY` another
//! mode of replication than strict.
//! `SKC_KEEP=1` leaves the lab of a failure as it is.

mod act;
mod call;
mod fuzz;
mod journal;
mod judge;
mod linear;
#[path = "../posix/mapping.rs"]
#[allow(dead_code, reason = "the file system's own suite uses all of it")]
mod mapping;
mod op;
mod planted;
mod round;
#[path = "../skip/mod.rs"]
mod skip;
mod snapshot;
#[path = "../world/mod.rs"]
mod world;

use judge::Promise;
use skc::lab::Lab;
use std::collections::BTreeSet;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Seeds of `cargo test`.
const SHORT: std::ops::RangeInclusive<u64> = 1..=2;
/// Seeds of the long form, unless `SKC_CRASH_SEEDS` says otherwise.
const LONG: u64 = 200;
/// Time of the fuzzer's two forms, unless `SKC_FUZZ_SECONDS` says otherwise.
const FUZZ_SECONDS: u64 = 20;
const FUZZ_LONG_SECONDS: u64 = 3600;

fn can_run() -> bool {
    Lab::preflight().map_err(|error| skip::skipped(&skip::this_test(), error)).is_ok()
}

/// The body of a process inside a node: does nothing unless a round started it.
#[test]
fn process_of_a_round() {
    if let Some(part) = round::Part::from_environment(round::ENVIRONMENT) {
        journal::live(Path::new(world::DIRECTORY), &part.notes, part.seed, part.process).expect("notes");
    }
    if let Some(part) = round::Part::from_environment(fuzz::ENVIRONMENT) {
        fuzz::live(part.process, part.seed, &part.notes).expect("it goes on");
    }
}

#[test]
fn every_acknowledged_operation_survives_a_power_cut() {
    if !can_run() {
        return;
    }
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for seed in SHORT {
        round::run(seed, Promise::Every);
    }
}

#[test]
fn a_survivor_is_one_earlier_state_where_answers_are_early() {
    if !can_run() {
        return;
    }
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for promise in [Promise::Synced, Promise::Prefix] {
        round::run(1, promise);
    }
}

#[test]
#[ignore = "some five seconds a seed; run it on purpose"]
fn every_acknowledged_operation_survives_many_power_cuts() {
    if !can_run() {
        return;
    }
    let consistency = std::env::var("SKC_CRASH_CONSISTENCY");
    many(consistency.map_or(Promise::Every, |name| Promise::of(&name).expect("strict, commit or async")));
}

/// One fuzz or cut at a time: the machines of a lab must not look dead to each other because this one is busy.
static ALONE: Mutex<()> = Mutex::new(());

fn fuzz_for(seconds: u64) {
    if can_run() {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let seconds = number("SKC_FUZZ_SECONDS").unwrap_or(seconds);
        fuzz::run(number("SKC_FUZZ_SEED").unwrap_or(1), Duration::from_secs(seconds));
    }
}

#[test]
fn clients_see_one_file_system_through_faults_and_swaps() {
    fuzz_for(FUZZ_SECONDS);
}

#[test]
#[ignore = "an hour; run it on purpose"]
fn clients_see_one_file_system_for_an_hour() {
    fuzz_for(FUZZ_LONG_SECONDS);
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// The seeds that a file says are done.
fn done(file: Option<&PathBuf>, promise: Promise) -> BTreeSet<u64> {
    let text = file.and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
    let seed = |line: &str| line.strip_prefix(promise.consistency())?.trim().parse().ok();
    text.lines().filter_map(seed).collect()
}

fn note_done(file: Option<&PathBuf>, promise: Promise, seed: u64) {
    let Some(path) = file else { return };
    let open = std::fs::File::options().create(true).append(true).open(path);
    let line = format!("{} {seed}\n", promise.consistency());
    open.and_then(|mut file| file.write_all(line.as_bytes())).expect("note a seed as done");
}

fn many(promise: Promise) {
    let first = number("SKC_CRASH_FIRST").unwrap_or(1);
    let file = std::env::var_os("SKC_CRASH_DONE").map(PathBuf::from);
    let already = done(file.as_ref(), promise);
    let all = first..first + number("SKC_CRASH_SEEDS").unwrap_or(LONG);
    let seeds = Mutex::new(all.filter(|seed| !already.contains(seed)));
    let failed = Mutex::new(Vec::new());
    let work = || {
        loop {
            let Some(seed) = seeds.lock().expect("seeds").next() else { break };
            if catch_unwind(AssertUnwindSafe(|| round::run(seed, promise))).is_ok() {
                note_done(file.as_ref(), promise, seed);
            } else {
                failed.lock().expect("failed").push(seed);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..number("SKC_CRASH_JOBS").unwrap_or(1) {
            scope.spawn(work);
        }
    });
    let failed = failed.into_inner().expect("failed");
    assert!(
        failed.is_empty(),
        "failed: {}",
        failed.iter().map(|s| round::again(*s, promise)).collect::<Vec<_>>().join("; ")
    );
}
