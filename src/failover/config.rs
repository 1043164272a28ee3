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
            spec::Boot::Auto => BootPolicy::Auto,
            spec::Boot::On => BootPolicy::Always,
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
        answers_early: spec.answers_early(),
        max_restarts: u32::from(s.failover.max_restarts),
        restart_window: s.failover.window.as_millis(),
        ..Config::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Timespan;
    use crate::engine::timers::Timers;
    use crate::net::Lease;
    use crate::spec::limits;
    use proptest::prelude::*;

    fn text(interval: u64, timeout: u64) -> String {
        format!(
            "apiVersion: skc.dev/v1\nkind: ClusterSpec\nmetadata: {{name: a}}\nspec:\n  nodes:\n  - {{name: n1, addresses: [10.0.0.1]}}\n  - {{name: n2, addresses: [10.0.0.2]}}\n  directories: [{{path: /srv/a}}]\n  heartbeat: {{interval: {interval}ms, timeout: {timeout}ms}}\n"
        )
    }

    /// Spans of any size, most of them at a bound or one beside it.
    fn beats() -> impl Strategy<Value = (u64, u64)> {
        let bounds = [limits::HEARTBEAT_TIMEOUT_MIN, limits::HEARTBEAT_TIMEOUT_MAX].map(Timespan::as_millis);
        let timeout = prop_oneof![
            0..35_000_u64,
            prop::sample::select(bounds.to_vec()).prop_flat_map(|t| t - 1..=t + 1)
        ];
        timeout.prop_flat_map(|timeout| {
            let least = limits::HEARTBEAT_INTERVAL_MIN.as_millis();
            let most = timeout / limits::BEATS_PER_TIMEOUT;
            let interval = prop_oneof![0..=timeout, least - 1..=least, most.saturating_sub(1)..=most + 1];
            (interval, Just(timeout))
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1024, ..ProptestConfig::default() })]

        #[test]
        fn a_spec_validates_exactly_if_the_core_runs_its_timers_unchanged((interval, timeout) in beats()) {
            let unchecked = Config {
                heartbeat_interval: interval,
                heartbeat_timeout: timeout,
                ..Config::default()
            };
            match spec::load_one("x", &text(interval, timeout)) {
                Err(_) => prop_assert!(Timers::derive(&unchecked).is_err()),
                Ok(spec) => {
                    let config = core_config(&spec);
                    let timers = Timers::nearest(&config);
                    prop_assert_eq!(Timers::derive(&config), Ok(timers));
                    prop_assert_eq!((timers.interval, timers.timeout), (interval, timeout));
                    // What validate prints, what the kernel is given and what the peer counts.
                    prop_assert_eq!(spec.vip_lease().as_millis(), timers.lease);
                    prop_assert_eq!(Lease::from_timeout(timeout).millis(), timers.lease);
                }
            }
        }

        #[test]
        fn a_timeout_alone_is_enough(timeout in 300_u64..=30_000) {
            let text = text(0, timeout).replace("interval: 0ms, ", "");
            let config = core_config(&spec::load_one("x", &text).unwrap());
            prop_assert_eq!(Timers::derive(&config), Ok(Timers::nearest(&config)));
        }
    }
}
