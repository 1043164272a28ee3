//! The decision core in long random schedules: many rounds of faults, each followed by recovery.
//!
//! The same world as the exhaustive model, at far greater depth and with every kind of fault. Fixed seeds, and one
//! fresh seed a run; a failure prints its seed and the schedule that led to it.

#[path = "../model/world/mod.rs"]
#[allow(dead_code)] // the model uses more of it
mod world;

use skc::base::NodeId;
use skc::engine::{Config, Level};
use world::{Action, Budget, World};

/// Timeout and interval of the heartbeats, in ms.
const TIMERS: [(u64, u64); 3] = [(2_000, 200), (500, 100), (4_000, 1_000)];

/// xorshift64*: small, fixed, good enough to pick actions.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % sides.max(1)
    }
}

/// Faults of one round. At L1 a cut between nodes that both reach the witness lets both go on (its
/// counter-example), so there one node is isolated instead.
fn faults(level: Level, dice: &mut Dice) -> Budget {
    let mut budget = Budget { writes: 4, ..Budget::default() };
    match dice.roll(5) {
        0 | 1 if level != Level::L1 => budget.cuts = 1,
        2 => budget.isolations[dice.roll(2) as usize] = 1,
        3 if level != Level::L1 => budget.one_way[dice.roll(2) as usize] = 1,
        _ => {}
    }
    for n in 0..2 {
        budget.power[n] = u8::from(dice.roll(3) == 0);
        budget.agent[n] = u8::from(dice.roll(5) == 0);
        budget.stops[n] = u8::from(dice.roll(6) == 0);
        budget.reboots[n] = u8::from(dice.roll(8) == 0);
    }
    budget.tombstones = u8::from(dice.roll(2) == 0);
    budget.swaps = u8::from(dice.roll(3) == 0);
    budget.apply_errors = u8::from(dice.roll(6) == 0);
    budget.persist_errors = u8::from(dice.roll(8) == 0);
    budget.sick = [0, 1].map(|_| u8::from(dice.roll(6) == 0));
    budget
}

fn is_fault(action: Action) -> bool {
    matches!(
        action,
        Action::Cut
            | Action::Isolate(_)
            | Action::OneWay(_)
            | Action::Heal
            | Action::Power(..)
            | Action::AgentDies(_)
            | Action::Swap
            | Action::Stop(_)
            | Action::Reboot(_)
            | Action::ApplyError(_)
            | Action::PersistError(_)
            | Action::PowerOn(_)
            | Action::AgentStarts(_)
            | Action::Start(_)
            | Action::CameBack(_)
            | Action::Tombstone(_)
            | Action::DiskSick(_)
            | Action::DiskWell(_)
    )
}

/// Runs `rounds` rounds; panics with the schedule of the failing round.
fn run(seed: u64, level: Level, rounds: usize) -> usize {
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut world = World::ready(Config { level, ..Config::default() });
    let mut steps = 0;
    for round in 0..rounds {
        world.budget = faults(level, &mut dice);
        if dice.roll(4) == 0 {
            // Taken over by this node's next agent, whatever the other one counts with.
            let config = &mut world.config[dice.roll(2) as usize];
            (config.heartbeat_timeout, config.heartbeat_interval) = TIMERS[dice.roll(3) as usize];
        }
        let start = world.clone();
        let mut schedule = Vec::new();
        let mut actions = Vec::new();
        let length = 30 + dice.roll(250);
        for _ in 0..length {
            actions.clear();
            world.actions(&mut actions);
            // Faults are rare against ordinary steps, and time is rarer than messages.
            let (rare, common): (Vec<Action>, Vec<Action>) = actions.iter().partition(|a| is_fault(**a));
            let pool =
                if common.is_empty() || (!rare.is_empty() && dice.roll(12) == 0) { &rare } else { &common };
            let Some(action) = pool.get(dice.roll(pool.len() as u64) as usize).copied() else { break };
            schedule.push(action);
            world.act(action);
            steps += 1;
            if world.violation.is_some() {
                report(&start, &schedule, seed, level, round);
            }
        }
        let before = world.clone();
        if !world.settle_down(6_000) {
            println!("stuck after: {}", before.brief());
            report(&start, &schedule, seed, level, round);
        }
        if !world.is_ready() {
            println!("waits for an operator: {}", before.brief());
            report(&start, &schedule, seed, level, round);
        }
        world.forget_writes();
        world.normalise();
    }
    steps
}

fn report(start: &World, schedule: &[Action], seed: u64, level: Level, round: usize) -> ! {
    let mut world = start.clone();
    let mut last = String::new();
    for action in schedule {
        let next: Vec<String> =
            world.nodes.iter().map(|n| format!("{:?}", n.queue.front()).chars().take(90).collect()).collect();
        world.act(*action);
        let brief = world.brief();
        if brief != last {
            println!("{action:?}   ({next:?})\n      {brief}");
        }
        last = brief;
    }
    let settled = world.settle_down(6_000);
    println!("settled: {settled}\n      {}", world.brief());
    for n in [NodeId::A, NodeId::B] {
        println!("{:?}", world.node(n).core.as_ref().map(|c| c.view(world.now)));
    }
    panic!("seed {seed}, {level:?}, round {round}: {:?}", world.violation);
}

#[test]
fn fixed_seeds_keep_every_promise() {
    let seeds: u64 = std::env::var("SKC_SIM_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(40);
    let mut steps = 0;
    for seed in 1..=seeds {
        for level in [Level::L2, Level::L0, Level::L1] {
            steps += run(seed, level, 20);
        }
    }
    println!("{seeds} seeds, {steps} steps");
}

#[test]
fn a_fresh_seed_keeps_every_promise() {
    // `SKC_SIM_SEED=N cargo test --test sim fresh` repeats the run that printed N.
    let given = std::env::var("SKC_SIM_SEED").ok().and_then(|s| s.parse().ok());
    let nanos =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |d| d.as_nanos() as u64);
    let seed = given.unwrap_or(nanos);
    println!("fresh seed: {seed}");
    run(seed, Level::L2, 50);
}
