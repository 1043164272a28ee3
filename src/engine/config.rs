//! What the operator decided, as plain values. Built from the ClusterSpec by the driver.

use crate::base::{Millis, NodeId};
use serde::{Deserialize, Serialize};

/// Where the right to go on without the peer comes from (DESIGN 3, "guarantee level").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Level {
    /// The operator decides: `promote --force`. Safe, not automatic.
    L0,
    /// A node that reaches the ping witness goes on, one that does not stops.
    L1,
    /// L1 + VIP and peer are probed before promotion, Behind, the held first lone acknowledgement.
    L2,
}

/// `failover.mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Mode {
    /// A standby promotes itself when its level allows it.
    Automatic,
    /// A standby never promotes itself after a failure; a clean hand-over still works.
    Manual,
}

/// `failover.failback`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Failback {
    /// The service stays where it is.
    Manual,
    /// Once the preferred node has been a ready standby for `stable_for`, swap to it, once.
    Automatic,
}

/// `failover.boot`: what a starting agent does with the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum BootPolicy {
    /// Start by itself, unless the operator had stopped it.
    Auto,
    /// Start by itself, unless the operator stopped it in this very boot: a boot starts it, an agent
    /// that is restarted does not overrule its operator.
    Always,
    /// Stay in STOP until `skc start`.
    Manual,
}

impl BootPolicy {
    /// Whether a core that has just been made starts by itself. `stopped`: the operator's last word
    /// on record; `same_boot`: the record was written in the boot that runs.
    pub(crate) fn starts(self, stopped: bool, same_boot: bool) -> bool {
        match self {
            Self::Auto => !stopped,
            Self::Always => !(stopped && same_boot),
            Self::Manual => false,
        }
    }
}

/// Parameters of one cluster. All spans in milliseconds. What comes of a spec that validates is
/// possible as it is (`engine::timers::Timers::derive`: one set of bounds, in `spec::limits`); for
/// anything else the core falls back to the nearest possible set.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Config {
    /// Guarantee level.
    pub level: Level,
    /// `failover.mode`.
    pub mode: Mode,
    /// `failover.boot`.
    pub boot: BootPolicy,
    /// `heartbeat.timeout`: every other timer derives from it.
    pub heartbeat_timeout: Millis,
    /// `heartbeat.interval`: the longest normal distance between two heartbeats of the peer.
    pub heartbeat_interval: Millis,
    /// `failover.preferredPrimary`.
    pub preferred: Option<NodeId>,
    /// `failover.failback`.
    pub failback: Failback,
    /// `failover.stableFor`.
    pub stable_for: Millis,
    /// Longest time the services may take to stop (their own deadlines summed) before a hand-over
    /// is given up.
    pub service_stop_timeout: Millis,
    /// Is a ping witness configured? Without one at L1/L2 a cut of everything between the two
    /// nodes lets both go on; `status` says so.
    pub has_witness: bool,
    /// Are there virtual addresses? Without, nobody waits for a lease.
    pub has_vips: bool,
    /// Are calls of any directory answered before the standby has them (`commit`, `async`)? Then there is
    /// more to drain before the role may go, and what is not drained was answered.
    pub answers_early: bool,
    /// `failover.maxRestarts` within `restart_window`; then STOP.
    pub max_restarts: u32,
    /// `failover.window`.
    pub restart_window: Millis,
    /// Test switches; production code uses the default.
    #[doc(hidden)]
    pub rules: Rules,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            level: Level::L2,
            mode: Mode::Automatic,
            boot: BootPolicy::Auto,
            heartbeat_timeout: 2_000,
            heartbeat_interval: 200,
            preferred: None,
            failback: Failback::Manual,
            stable_for: 300_000,
            service_stop_timeout: 60_000,
            has_witness: true,
            has_vips: true,
            answers_early: false,
            max_restarts: 3,
            restart_window: 24 * 3_600_000,
            rules: Rules::default(),
        }
    }
}

/// Deliberately breakable rules: the model proves that it would notice. `true` = rule kept.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rules {
    /// L2: an answered probe makes the standby Behind (hole 32).
    pub behind: bool,
    /// L2: the primary holds its first lone acknowledgement (hole 32).
    pub hold: bool,
    /// `alone` is cleared durably before the UpToDate marker is sent (hole 11).
    pub clear_alone_before_marker: bool,
    /// A rebooted node is not intact (hole 2).
    pub boot_voids_intact: bool,
    /// syncfs before the first lone acknowledgement (hole 13 i).
    pub syncfs_before_alone: bool,
    /// The source syncs before an intact target is overwritten (hole 13 ii).
    pub syncfs_before_overwrite: bool,
    /// The target syncs before it says UpToDate (hole 13 iii).
    pub syncfs_before_uptodate: bool,
    /// An intact node beats a crashed primary (hole 3).
    pub intact_beats_primary: bool,
    /// The old stream and its apply queue end before a node serves (hole 19, 39).
    pub close_before_serve: bool,
    /// A cold node starts alone only by its own durable `alone` (hole 1).
    pub cold_start_needs_alone: bool,
    /// Replay only when the source never left PRIM or frozen (hole 20).
    pub replay_needs_unbroken_source: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            behind: true,
            hold: true,
            clear_alone_before_marker: true,
            boot_voids_intact: true,
            syncfs_before_alone: true,
            syncfs_before_overwrite: true,
            syncfs_before_uptodate: true,
            intact_beats_primary: true,
            close_before_serve: true,
            cold_start_needs_alone: true,
            replay_needs_unbroken_source: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Mono;
    use crate::engine::{Cluster, Durable, Effect, Input, OperatorCommand, Role, Ticket, TreeState};

    const TREE: Input = Input::LocalTree(TreeState::Ok { empty: false, stamp_ok: true });

    fn command(command: OperatorCommand) -> Input {
        Input::Operator { ticket: Ticket(1), command }
    }

    /// One life of an agent in boot `boot`: what it persists is what the next one reads.
    fn life(disk: &mut Option<Durable>, boot: u128, policy: BootPolicy, inputs: &[Input]) -> Role {
        let config = Config { boot: policy, ..Config::default() };
        let mut core = Cluster::new(NodeId::A, boot, 1, config, disk.clone(), Mono(0));
        for input in inputs {
            for effect in core.step(Mono(0), input.clone()) {
                if let Effect::Persist(record) = effect {
                    *disk = Some(*record);
                }
            }
        }
        core.view(Mono(0)).role
    }

    #[test]
    fn a_stop_outlives_the_agent_always_and_a_boot_unless_the_policy_is_always() {
        for (policy, after_boot) in [
            (BootPolicy::Auto, Role::Stop),
            (BootPolicy::Always, Role::Wait),
            (BootPolicy::Manual, Role::Stop),
        ] {
            let mut disk = None;
            let stop = command(OperatorCommand::Stop);
            life(&mut disk, 1, policy, &[TREE, command(OperatorCommand::Start), stop]);
            assert_eq!(life(&mut disk, 1, policy, &[TREE]), Role::Stop, "{policy:?}: same boot");
            assert_eq!(life(&mut disk, 2, policy, &[TREE]), after_boot, "{policy:?}: next boot");
            assert_eq!(life(&mut disk, 2, policy, &[TREE]), after_boot, "{policy:?}: restarted in it");
        }
    }

    #[test]
    fn a_stop_before_the_first_look_at_the_directory_holds_until_the_next_boot() {
        let mut disk = Some(Durable { stopped: true, boot: Some(1), ..Durable::default() });
        let stop = command(OperatorCommand::Stop);
        assert_eq!(life(&mut disk, 2, BootPolicy::Always, &[stop]), Role::Stop);
        assert_eq!(life(&mut disk, 2, BootPolicy::Always, &[TREE]), Role::Stop);
        assert_eq!(life(&mut disk, 3, BootPolicy::Always, &[TREE]), Role::Wait);
    }

    #[test]
    fn a_record_without_a_boot_is_older_than_any_boot() {
        let mut disk = Some(Durable { stopped: true, ..Durable::default() });
        assert_eq!(life(&mut disk.clone(), 1, BootPolicy::Auto, &[TREE]), Role::Stop);
        assert_eq!(life(&mut disk, 1, BootPolicy::Always, &[TREE]), Role::Wait);
    }
}
