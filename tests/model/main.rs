//! The decision core, explored exhaustively: two nodes running `engine::Cluster::step`, every order of
//! effects, messages, timeouts and faults within a budget.
//!
//! Prints for each run: states, depth, and whether the space was exhausted. Trap: stateright's `timeout`
//! closes the job queue, and `is_done` is true after a timeout as well; no timeout is used here, a run ends
//! because nothing is left to explore or because a property failed.

#[allow(dead_code)] // the simulator uses more of it
mod world;

use skc::base::NodeId;
use skc::engine::{Config, Level};
use stateright::{Checker, Model, Property};
use std::hash::{DefaultHasher, Hash, Hasher};
use world::{Action, Budget, World};

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
