//! The decision core, explored exhaustively: two nodes running `engine::Cluster::step`, every order of
//! effects, messages, timeouts and faults within a budget.
//!
//! Prints for each run: states, depth, and whether the space was exhausted. Trap: stateright's `timeout`
//! closes the job queue, and `is_done` is true after a timeout as well; no timeout is used here, a run ends
//! because nothing is left to explore or because a property failed.

#[allow(dead_code)] // the simulator uses more of it
mod world;

use skc::base::NodeId;
use skc::engine::{Config, Level, Rules};
use stateright::{Checker, Model, Property};
use std::hash::{DefaultHasher, Hash, Hasher};
use world::{Action, Budget, Sabotage, World};

/// One exploration.
struct Exploration {
    init: Vec<World>,
    /// Every n-th state is run on without faults: it must become ready. 0 = none.
    dead_end_every: u64,
}

impl Model for Exploration {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        self.init.clone()
    }

    fn actions(&self, state: &World, actions: &mut Vec<Action>) {
        if state.violation.is_none() {
            state.actions(actions);
        }
    }

    fn next_state(&self, last: &World, action: Action) -> Option<World> {
        let mut next = last.clone();
        next.act(action);
        next.normalise();
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("safe", |_, state: &World| state.violation.is_none()),
            Property::always("no dead end", |model: &Self, state: &World| {
                if model.dead_end_every == 0 {
                    return true;
                }
                let mut hasher = DefaultHasher::new();
                state.hash(&mut hasher);
                !hasher.finish().is_multiple_of(model.dead_end_every) || state.clone().settle_down(4_000)
            }),
            Property::sometimes("the other node serves", |_, state: &World| {
                state.node(NodeId::B).writes_pass()
            }),
        ]
    }
}

fn config(level: Level) -> Config {
    Config { level, ..Config::default() }
}

/// Explores everything within `budget`, starting from a ready pair, and fails on any violation.
fn explore(name: &str, level: Level, budget: Budget, dead_end_every: u64) {
    let mut init = World::ready(config(level));
    init.budget = budget;
    let checker = Exploration { init: vec![init], dead_end_every }.checker().spawn_bfs().join();
    println!(
        "{name}: {} unique states, {} transitions, depth {}, exhausted: {}",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        checker.is_done()
    );
    for property in ["safe", "no dead end"] {
        if let Some(path) = checker.discovery(property) {
            explain(&path.into_actions(), budget, level);
            panic!("{name}: property \"{property}\" fails");
        }
    }
}

/// Prints a counter-example step by step.
fn explain(actions: &[Action], budget: Budget, level: Level) {
    let mut world = World::ready(config(level));
    world.budget = budget;
    for action in actions {
        let before =
            format!("{:?}", world.nodes.iter().map(|n| n.queue.front().cloned()).collect::<Vec<_>>());
        world.act(*action);
        world.normalise();
        println!("{action:?}");
        if let Action::Exec(n) = action {
            println!("      {n:?} of {before}");
        }
        println!("      {}", world.brief());
    }
    println!("violation: {:?}", world.violation);
    let mut after = world.clone();
    let ok = after.settle_down(4_000);
    println!("settles: {ok}\n      {}", after.brief());
    for node in &after.nodes {
        println!("{:?}", node.core.as_ref().map(|c| c.view(after.now)));
    }
}

#[test]
#[ignore = "minutes"]
fn l2_one_cut_one_power_loss_each() {
    explore(
        "L2, 1 write, power 1/1, 1 cut",
        Level::L2,
        Budget { writes: 1, power: [1, 1], cuts: 1, ..Budget::default() },
        5_000,
    );
}

#[test]
fn l2_small() {
    explore(
        "L2, 1 write, power 1/0, 1 cut",
        Level::L2,
        Budget { writes: 1, power: [1, 0], cuts: 1, ..Budget::default() },
        500,
    );
}

/// With one rule broken on purpose the model must find a violation within `budget`.
fn is_caught(name: &str, level: Level, rules: Rules, sabotage: Sabotage, budget: Budget) {
    let mut init = World::ready(Config { rules, ..config(level) });
    (init.budget, init.sabotage) = (budget, sabotage);
    let checker = Exploration { init: vec![init], dead_end_every: 0 }.checker().spawn_bfs().join();
    let steps = checker.discovery("safe").map(|path| path.into_actions().len());
    println!(
        "broken rule \"{name}\": {} unique states, caught in {steps:?} steps",
        checker.unique_state_count()
    );
    assert!(steps.is_some(), "{name}: the model does not notice");
}

fn breaks(name: &str, budget: Budget, rule: impl FnOnce(&mut Rules)) {
    let mut rules = Rules::default();
    rule(&mut rules);
    is_caught(name, Level::L2, rules, Sabotage::default(), budget);
}

const CUT_AND_POWER: Budget = Budget { writes: 1, power: [1, 0], cuts: 1, ..Budget::NONE };
const POWER: Budget = Budget { writes: 1, power: [1, 0], ..Budget::NONE };

#[test]
#[ignore = "minutes"]
fn an_answered_probe_must_make_the_standby_behind() {
    breaks("answered probe makes Behind", CUT_AND_POWER, |rules| rules.behind = false);
}

#[test]
fn the_first_lone_acknowledgement_must_be_held() {
    breaks("hold", CUT_AND_POWER, |rules| rules.hold = false);
}

#[test]
fn a_reboot_must_void_the_claim_to_be_intact() {
    breaks("boot voids intact", POWER, |rules| rules.boot_voids_intact = false);
}

#[test]
fn the_intact_node_must_beat_a_crashed_primary() {
    breaks("intact beats a crashed primary", POWER, |rules| rules.intact_beats_primary = false);
}

#[test]
#[ignore = "minutes"]
fn a_cold_start_must_need_its_own_record() {
    let rules = Rules { cold_start_needs_alone: false, ..Rules::default() };
    is_caught("cold start needs alone", Level::L1, rules, Sabotage::default(), CUT_AND_POWER);
}

#[test]
#[ignore = "minutes"]
fn a_closed_streams_queue_must_not_be_applied() {
    let sabotage = Sabotage { queue_survives_close: true, ..Sabotage::default() };
    is_caught("queue survives its stream", Level::L2, Rules::default(), sabotage, CUT_AND_POWER);
}
