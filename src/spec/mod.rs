//! ClusterSpec `skc.dev/v1`: types, reading with source positions, checking, comparing.
//!
//! Inputs: text. Outputs: a [`ClusterSpec`] that holds every rule, or findings. Pure: no file, no clock.

pub mod checker;
pub mod cidr;
pub mod defaults;
pub mod limits;
pub mod service;
pub mod types;

pub use cidr::{Cidr, CidrError};
pub use types::{
    ApiVersion, Arbitration, Boot, Checker, ClusterSpec, Consistency, Directory, Exec, Failback, Failover,
    FailoverMode, Heartbeat, Kind, Level, Metadata, Mode, Node, OnFailure, OnRole, Probe, Replication,
    Service, Spec, VirtualIp,
};

/// The JSON schema (draft 2020-12) of a ClusterSpec document.
pub fn schema() -> serde_json::Value {
    schemars::schema_for!(ClusterSpec).to_value()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALLEST: &str = "apiVersion: skc.dev/v1\nkind: ClusterSpec\nmetadata: {name: a}\nspec:\n  nodes:\n  - {name: n1, addresses: [10.0.0.1]}\n  - {name: n2, addresses: [10.0.0.2]}\n  directories: [{path: /srv/a}]\n  services: [{name: s, exec: {run: [/bin/true]}}]\n  checkers: [{name: c, tcp: {port: 80}}]\n";

    #[test]
    fn absent_fields_take_their_documented_defaults() {
        let spec: ClusterSpec = serde_yaml::from_str(SMALLEST).unwrap();
        assert_eq!(spec.spec.heartbeat, Heartbeat::default());
        assert_eq!(spec.spec.failover, Failover::default());
        assert_eq!(spec.level(), Level::L0);
        assert_eq!(spec.vip_lease().to_string(), "2s");
        assert_eq!(spec.spec.services[0].exec, Exec::Run { argv: vec!["/bin/true".into()] });
        assert_eq!(spec.spec.checkers[0].probe, Probe::Tcp { host: "127.0.0.1".into(), port: 80 });
        assert_eq!(spec.spec.checkers[0].on_failure, OnFailure::Restart);
        assert!(spec.spec.checkers[0].on.runs(true) && !spec.spec.checkers[0].on.runs(false));
    }

    #[test]
    fn the_effective_spec_reads_back_equal() {
        let spec: ClusterSpec = serde_yaml::from_str(SMALLEST).unwrap();
        let text = serde_yaml::to_string(&spec).unwrap();
        assert_eq!(serde_yaml::from_str::<ClusterSpec>(&text).unwrap(), spec);
    }
}
