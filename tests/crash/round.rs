//! One power cut: processes work on the primary, its power goes at a moment of the seed's choice, the survivor is
//! judged, the dead node comes back.

use crate::journal::{Board, PROCESSES};
use crate::judge::{self, Promise, Verdict};
use crate::world::{Rng, SETTLE, Want, World};
use skc::lab::process::{poll, wait_child};
use skc::lab::wait::Part as Process;
use skc::lab::{Link, Node, Orphan};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// Acknowledged operations before the cut may fall, and how many more the seed may wait for.
const LEAST: u64 = 1000;
const MORE: u64 = 4000;
/// The moment of the cut after that.
const WINDOW: Duration = Duration::from_millis(30);
/// Longest life of a round.
const DEADLINE: Duration = Duration::from_secs(240);
/// What happens on the wire in the last moment before the power goes, so that of the operations in flight none, some
/// or all survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Last {
    /// Nothing else.
    Plain,
    /// What the primary sends is lost.
    Unsent,
    /// The wire is cut in both directions at once.
    Severed,
    /// The standby's agent does not run: what was sent waits for it.
    Unread,
}

impl Last {
    const fn of(seed: u64) -> Self {
        match seed % 4 {
            0 => Self::Plain,
            1 => Self::Severed,
            2 => Self::Unread,
            _ => Self::Unsent,
        }
    }
}

/// Cuts the power of the primary.
fn cut(world: &World, primary: Node, survivor: Node, last: Last) {
    let lab = &world.lab;
    match last {
        Last::Plain => {}
        Last::Unsent => lab.cut(Link::All, Some(primary), Some(survivor)).expect("cut one direction"),
        Last::Severed => lab.cut(Link::All, None, None).expect("cut the wire"),
        Last::Unread => lab.stall(survivor, Process::Agent).expect("stop the standby's agent"),
    }
    world.power_cut(primary);
    match last {
        Last::Plain => {}
        Last::Unsent | Last::Severed => lab.heal(None, None, None).expect("heal the wire"),
        Last::Unread => lab.go(survivor, Process::Agent).expect("let the standby's agent go on"),
    }
}

/// Environment of a process: its number, the seed, where its notes go.
pub const ENVIRONMENT: [&str; 3] = ["SKC_CRASH_PROCESS", "SKC_CRASH_PROCESS_SEED", "SKC_CRASH_NOTES"];

/// The part that this process plays, if a test started it for that.
pub struct Part {
    pub process: usize,
    pub seed: u64,
    pub notes: PathBuf,
}

impl Part {
    /// Reads it from the environment variables of that kind of part.
    pub fn from_environment(names: [&str; 3]) -> Option<Self> {
        let [process, seed, notes] = names.map(|name| std::env::var(name).ok());
        Some(Self { process: process?.parse().ok()?, seed: seed?.parse().ok()?, notes: notes?.into() })
    }
}

/// The command that repeats a seed.
pub fn again(seed: u64, promise: Promise) -> String {
    let consistency = promise.consistency();
    format!(
        "SKC_CRASH_CONSISTENCY={consistency} SKC_CRASH_FIRST={seed} SKC_CRASH_SEEDS=1 \
         cargo test --release --test crash survives_many -- --ignored"
    )
}

fn start(world: &World, node: Node, seed: u64, notes: &Path) -> Vec<Child> {
    let program = std::env::current_exe().expect("own path");
    let program = program.to_str().expect("a path of text");
    let child = |process: usize| {
        // The entry of this test binary: see `process_of_a_round`.
        let argv = [program, "--exact", "process_of_a_round", "--nocapture"];
        let mut command = world.lab.command(node, &argv);
        let values = [process.to_string(), seed.to_string(), notes.display().to_string()];
        command.envs(ENVIRONMENT.into_iter().zip(values)).stdin(Stdio::null()).stdout(Stdio::null());
        world.lab.spawn(node, &mut command, Orphan::LivesOn).expect("a process starts")
    };
    (0..PROCESSES).map(child).collect()
}

/// Plays the round of `seed`; panics with the command that repeats it.
pub fn run(seed: u64, promise: Promise) {
    let began = Instant::now();
    let want = Want {
        name: format!("crash-{seed}"),
        consistency: promise.consistency(),
        timeout_ms: 1500,
        deadline: DEADLINE,
    };
    let (world, primary) = World::start(&want);
    let survivor = primary.peer().expect("a pair");
    let notes = world.lab.dir().join("notes");
    fs::create_dir_all(&notes).expect("create the notes");
    let board = Board::open(&notes).expect("a board");
    let mut rng = Rng::of(seed, u64::MAX);
    let goal = LEAST + rng.below(MORE);
    let mut children = start(&world, primary, seed, &notes);
    let total = || board.read().expect("read the board").iter().sum::<u64>();
    let reached = poll(SETTLE, || (total() >= goal).then_some(()));
    let mut complaint = || children.iter_mut().map(|c| format!("{:?}", c.try_wait())).collect::<Vec<_>>();
    assert!(reached.is_some(), "seed {seed}: {} of {goal} acknowledged; {:?}", total(), complaint());
    let moment = Instant::now() + Duration::from_micros(rng.below(WINDOW.as_micros() as u64));
    poll(WINDOW, || (Instant::now() >= moment).then_some(()));
    cut(&world, primary, survivor, Last::of(seed));
    for child in &mut children {
        wait_child(child, "a process of the round", SETTLE).expect("it ends").expect("it is dead");
    }
    // It has applied all that it received when it is the only one.
    world.wait(survivor, &["ALONE", "Ready"]);
    let verdict = verdict(&world, promise, seed, (primary, survivor), &notes);
    world.power_on(primary);
    assert_eq!(world.settled(), survivor, "seed {seed}: the survivor stays primary");
    world.trees_equal();
    let Verdict { acknowledged, in_flight, survived, lost, times, .. } = verdict;
    eprintln!(
        "{} {seed}: {acknowledged} acknowledged, {lost} of them lost, {in_flight} in flight of which {survived} \
         survived ({:?}), {times} times compared, {:.1} s",
        promise.consistency(),
        Last::of(seed),
        began.elapsed().as_secs_f64()
    );
}

/// Judges the survivor; panics if anything is not as promised.
fn verdict(
    world: &World,
    promise: Promise,
    seed: u64,
    (dead, survivor): (Node, Node),
    notes: &Path,
) -> Verdict {
    let plain = world.lab.dir().join("plain");
    fs::create_dir_all(&plain).expect("create a plain directory");
    let [dead, survivor] = [dead, survivor].map(|node| world.backing(node));
    let mut verdict = judge::judge(promise, seed, &survivor, notes, &plain).expect("judge");
    judge::same_times(&mut verdict, &dead, &survivor).expect("read the times");
    verdict.times = judge::same_old_times(&mut verdict, &dead, &survivor);
    let repeat = again(seed, promise);
    assert!(verdict.broken.is_empty(), "seed {seed}:\n{}\nrepeat: {repeat}", verdict.broken.join("\n"));
    assert!(verdict.acknowledged >= LEAST, "seed {seed}: {} acknowledged", verdict.acknowledged);
    verdict
}
