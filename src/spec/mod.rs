//! ClusterSpec `skc.dev/v1`: types, reading with source positions, checking, comparing.
//!
//! Inputs: text. Outputs: a [`ClusterSpec`] that holds every rule, or findings. Pure: no file, no clock.

mod across;
pub mod canonical;
pub mod checker;
pub mod cidr;
pub mod defaults;
pub mod diff;
pub mod finding;
mod formats;
pub mod limits;
mod load;
mod locate;
mod nearest;
mod rules;
pub mod service;
mod shape;
pub mod timers;
pub mod types;
mod view;
pub mod yaml;

pub use canonical::{canonical, digest};
pub use cidr::{Cidr, CidrError};
pub use diff::{Change, Effect, diff};
pub use finding::{Finding, Findings, Problem};
pub use load::{Loaded, Source, check, load, load_one, warnings};
pub use nearest::nearest;
pub use types::{
    ApiVersion, Arbitration, Boot, Checker, ClusterSpec, Consistency, Directory, Exec, Failback, Failover,
    FailoverMode, Heartbeat, Kind, Level, Metadata, Mode, Node, OnFailure, OnRole, Probe, Replication,
    Service, Spec, VirtualIp, Window,
};

/// The JSON schema (draft 2020-12) of a ClusterSpec document.
pub fn schema() -> serde_json::Value {
    let mut schema = schemars::schema_for!(ClusterSpec).to_value();
    without_null(&mut schema);
    schema
}

/// A field that is absent takes its default; one that is there but empty is refused. So the
/// alternative "null", which derived schemas offer for every optional field, goes.
fn without_null(schema: &mut serde_json::Value) {
    use serde_json::Value;
    match schema {
        Value::Array(items) => items.iter_mut().for_each(without_null),
        Value::Object(object) => {
            if let Some(Value::Array(types)) = object.get_mut("type") {
                types.retain(|t| t != "null");
                if let [one] = types.as_slice() {
                    let one = one.clone();
                    object.insert("type".to_owned(), one);
                }
            }
            if let Some(Value::Array(choices)) = object.get_mut("anyOf") {
                choices.retain(|c| c.get("type").is_none_or(|t| t != "null"));
                if let [Value::Object(one)] = choices.as_slice() {
                    let one = one.clone();
                    object.remove("anyOf");
                    for (key, value) in one {
                        object.entry(key).or_insert(value);
                    }
                }
            }
            if object.get("default").is_some_and(Value::is_null) {
                object.remove("default");
            }
            object.values_mut().for_each(without_null);
        }
        _ => {}
    }
}

/// [`schema`] as the text of `schemas/clusterspec.v1.json`.
pub fn schema_text() -> String {
    // Serialising a `Value` cannot fail; `{:#}` prints it indented.
    format!("{:#}\n", schema())
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
