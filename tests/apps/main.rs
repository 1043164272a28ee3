//! Real applications lose their machine: what they told their clients is on the survivor, and their own tools find
//! their files sound.
//!
//! `cargo test --test apps` cuts once under four SQLite databases, one a journal mode. Many cuts, and PostgreSQL:
//! `SKC_APP_CUTS=40 cargo test --release --test apps -- --ignored` (`SKC_APP_SEED` for other moments,
//! `SKC_KEEP=1` leaves the lab of a failure as it is).

mod postgres;
#[path = "../skip/mod.rs"]
mod skip;
mod sqlite;
#[path = "../world/mod.rs"]
mod world;

use skc::lab::process::{poll, wait_child};
use skc::lab::{Lab, Node};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};
use world::{Rng, SETTLE, Want, World};

/// Cuts of the long form, unless `SKC_APP_CUTS` says otherwise.
const CUTS: u64 = 40;
/// The cut falls into this time after the clients have got on.
const WINDOW: Duration = Duration::from_millis(300);
/// Longest time of one cut with everything around it.
const CUT_LIMIT: Duration = Duration::from_secs(300);

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// An application in the mirrored directory of a pair.
pub trait App {
    /// Prepares it on the first primary.
    fn install(&mut self, world: &World, node: Node);
    /// Starts it and its clients on `node`; they note outside of the mirror what they were told.
    fn start(&mut self, world: &World, node: Node) -> Vec<Child>;
    /// Have the clients got on since the start?
    fn busy(&self, world: &World) -> bool;
    /// Looks on the survivor for everything that clients were told; returns how much that was.
    fn check(&mut self, world: &World, node: Node) -> u64;
}

/// A name that both nodes give to a directory outside of the mirror.
pub fn notes(world: &World) -> PathBuf {
    let dir = world.lab.dir().join("notes");
    fs::create_dir_all(&dir).expect("create the notes");
    dir
}

/// The last whole line of a file of numbers; 0 if there is none.
pub fn last_number(path: &Path) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().last().map_or(0, |line| line.trim().parse().expect("notes are numbers"))
}

/// Cuts the power of whoever is primary, `cuts` times.
fn cut_power(app: &mut dyn App, name: &str, seed: u64, cuts: u64) {
    let deadline = CUT_LIMIT * u32::try_from(cuts + 1).expect("some cuts");
    let want = Want { name: name.to_owned(), consistency: "strict", timeout_ms: 1500, deadline };
    let (world, mut primary) = World::start(&want);
    app.install(&world, primary);
    let mut rng = Rng::of(seed, 0);
    for cut in 1..=cuts {
        let began = Instant::now();
        let mut children = app.start(&world, primary);
        let busy = poll(SETTLE, || app.busy(&world).then_some(()));
        assert!(busy.is_some(), "seed {seed}, cut {cut}: the clients get on");
        let moment = Instant::now() + Duration::from_micros(rng.below(WINDOW.as_micros() as u64));
        poll(WINDOW, || (Instant::now() >= moment).then_some(()));
        world.power_cut(primary);
        for child in &mut children {
            wait_child(child, "a client", SETTLE).expect("it ends").expect("it is dead");
        }
        let survivor = primary.peer().expect("a pair");
        world.wait(survivor, &["ALONE", "Ready"]);
        let told = app.check(&world, survivor);
        world.power_on(primary);
        assert_eq!(world.settled(), survivor, "the survivor stays primary");
        world.trees_equal();
        eprintln!("{name} cut {cut}: {told} acknowledged, none lost, {:.1} s", began.elapsed().as_secs_f64());
        primary = survivor;
    }
}

fn can_run(app: &str, missing: Option<String>) -> bool {
    let missing = Lab::preflight().err().map(|error| error.to_string()).or(missing);
    if let Some(missing) = &missing {
        skip::skipped(&format!("{} ({app})", skip::this_test()), missing);
    }
    missing.is_none()
}

#[test]
fn sqlite_keeps_every_commit_in_every_journal_mode() {
    if can_run("SQLite", sqlite::missing()) {
        cut_power(&mut sqlite::Sqlite::default(), "sqlite", 1, 1);
    }
}

#[test]
#[ignore = "many power cuts; run it on purpose"]
fn sqlite_keeps_every_commit_in_many_power_cuts() {
    if can_run("SQLite", sqlite::missing()) {
        let (seed, cuts) = (number("SKC_APP_SEED").unwrap_or(1), number("SKC_APP_CUTS").unwrap_or(CUTS));
        cut_power(&mut sqlite::Sqlite::default(), "sqlite", seed, cuts);
    }
}

#[test]
#[ignore = "many power cuts; run it on purpose"]
fn postgres_keeps_every_commit_in_many_power_cuts() {
    let found = postgres::Postgres::find();
    if can_run("PostgreSQL", found.as_ref().err().cloned())
        && let Ok(mut postgres) = found
    {
        let (seed, cuts) = (number("SKC_APP_SEED").unwrap_or(1), number("SKC_APP_CUTS").unwrap_or(CUTS));
        cut_power(&mut postgres, "postgres", seed, cuts);
    }
}
