//! From the spec to the core's plain configuration.

use crate::base::NodeId;
use crate::engine::{BootPolicy, Config, Failback, Level, Mode};
use crate::spec::{self, ClusterSpec};

/// The nodes' names in the order of their ids: the one that sorts first is A.
pub fn names(spec: &ClusterSpec) -> Vec<String> {
    let mut names: Vec<String> = spec.spec.nodes.iter().map(|n| n.name.clone()).collect();
    names.sort();
    names
}

/// The id of the node called `name`; `None` if the spec does not name it.
pub fn node_id(spec: &ClusterSpec, name: &str) -> Option<NodeId> {
    match names(spec).iter().position(|n| n == name)? {
        0 => Some(NodeId::A),
        1 => Some(NodeId::B),
        _ => None,
    }
}

/// The core's parameters for this spec.
pub fn core_config(spec: &ClusterSpec) -> Config {
    let s = &spec.spec;
    Config {
        level: match spec.level() {
            spec::Level::L0 => Level::L0,
            spec::Level::L1 => Level::L1,
            spec::Level::L2 => Level::L2,
        },
        mode: match s.failover.mode {
            spec::FailoverMode::Automatic => Mode::Automatic,
            spec::FailoverMode::Manual => Mode::Manual,
        },
        boot: match s.failover.boot {
            spec::Boot::Off => BootPolicy::Manual,
            spec::Boot::Auto | spec::Boot::On => BootPolicy::Auto,
        },
        heartbeat_timeout: s.heartbeat.timeout.as_millis(),
        heartbeat_interval: s.heartbeat.interval.as_millis(),
        preferred: s.failover.preferred_primary.as_deref().and_then(|name| node_id(spec, name)),
        failback: match s.failover.failback {
            spec::Failback::Manual => Failback::Manual,
            spec::Failback::Automatic => Failback::Automatic,
        },
        stable_for: s.failover.stable_for.as_millis(),
        service_stop_timeout: s.services.iter().map(|x| x.stop_timeout.as_millis()).sum::<u64>() + 1000,
        has_witness: !s.arbitration.ping.is_empty(),
        has_vips: !s.virtual_ips.is_empty(),
        max_restarts: u32::from(s.failover.max_restarts),
        restart_window: s.failover.window.as_millis(),
        ..Config::default()
    }
}
