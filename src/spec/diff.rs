//! What a new spec changes, and what each change costs.

use super::ClusterSpec;
use super::finding::{Path, Step};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::{self, Write};

/// What it takes to put a change in force; the last one is the hardest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Effect {
    /// Taken over while everything runs.
    InPlace,
    /// The services concerned are stopped and started.
    RestartsServices,
    /// Refused while the cluster runs: stop, apply, start.
    NeedsStop,
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::InPlace => "in place",
            Self::RestartsServices => "restarts services",
            Self::NeedsStop => "refused while running: stop first",
        })
    }
}

/// One difference. `None` on one side: the field or entry is not there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// `spec.services[postgres].exec.run`; entries of named lists go by their name.
    pub path: String,
    /// Before.
    pub old: Option<Value>,
    /// After.
    pub new: Option<Value>,
    /// What it takes.
    pub effect: Effect,
}

/// Lists whose entries have a name: (field, field of the entry).
const NAMED: &[(&str, &str)] = &[
    ("nodes", "name"),
    ("directories", "path"),
    ("services", "name"),
    ("checkers", "name"),
    ("virtualIPs", "address"),
];

/// All differences between two effective specs, in the order of paths; empty if they are equal.
///
/// `old` = `None`: the cluster is new, and that is the one change.
pub fn diff(old: Option<&ClusterSpec>, new: &ClusterSpec) -> Vec<Change> {
    // Plain data: turning it into a value cannot fail.
    let value = |spec: &ClusterSpec| serde_json::to_value(spec).unwrap_or(Value::Null);
    let new = value(new);
    let Some(old) = old.map(value) else {
        let name = new.pointer("/metadata/name").cloned();
        return vec![Change {
            path: "metadata.name".to_owned(),
            old: None,
            new: name,
            effect: Effect::InPlace,
        }];
    };
    let mut out = Vec::new();
    compare(&Path::default(), Some(&old), Some(&new), &mut out);
    out
}

fn compare(path: &Path, old: Option<&Value>, new: Option<&Value>, out: &mut Vec<Change>) {
    if old == new {
        return;
    }
    match (old, new) {
        (Some(Value::Object(a)), Some(Value::Object(b))) => {
            let mut keys: Vec<&String> = a.keys().chain(b.keys()).collect();
            keys.sort();
            keys.dedup();
            for key in keys {
                compare(&path.key(key), a.get(key), b.get(key), out);
            }
        }
        (a, b) if named(path).is_some() => {
            let empty = Vec::new();
            let list = |v: Option<&Value>| v.and_then(Value::as_array).unwrap_or(&empty).clone();
            entries(path, named(path).unwrap_or_default(), &list(a), &list(b), out);
        }
        (a, b) => {
            out.push(Change { path: shown(path), old: a.cloned(), new: b.cloned(), effect: effect(path) });
        }
    }
}

fn named(path: &Path) -> Option<&'static str> {
    let [Step::Key(spec), Step::Key(list)] = path.0.as_slice() else { return None };
    let found = NAMED.iter().find(|(field, _)| spec == "spec" && field == list);
    found.map(|(_, key)| *key)
}

/// Entries are matched by name; a mere change of order is a change of the list itself.
fn entries(path: &Path, key: &str, old: &[Value], new: &[Value], out: &mut Vec<Change>) {
    let name = |v: &Value| v.get(key).and_then(Value::as_str).unwrap_or("").to_owned();
    let by_name =
        |list: &'_ [Value]| list.iter().map(|v| (name(v), v.clone())).collect::<BTreeMap<String, Value>>();
    let (a, b) = (by_name(old), by_name(new));
    let mut names: Vec<&String> = a.keys().chain(b.keys()).collect();
    names.sort();
    names.dedup();
    for name in names {
        compare(&path.key(name), a.get(name), b.get(name), out);
    }
    let order = |list: &[Value], other: &BTreeMap<String, Value>| {
        list.iter().map(name).filter(|n| other.contains_key(n)).collect::<Vec<_>>()
    };
    let (before, after) = (order(old, &b), order(new, &a));
    if before != after {
        out.push(Change {
            path: format!("{} (order)", shown(path)),
            old: Some(before.into()),
            new: Some(after.into()),
            effect: effect(path),
        });
    }
}

/// Like [`Path`], with the names of list entries in brackets.
fn shown(path: &Path) -> String {
    let mut text = String::new();
    for (i, step) in path.0.iter().enumerate() {
        let parent = Path(path.0[..i].to_vec());
        let _ = match step {
            Step::Key(key) if named(&parent).is_some() => write!(text, "[{key}]"),
            Step::Key(key) if i == 0 => write!(text, "{key}"),
            Step::Key(key) => write!(text, ".{key}"),
            Step::Index(index) => write!(text, "[{index}]"),
        };
    }
    text
}

/// What a change at this place takes.
fn effect(path: &Path) -> Effect {
    let keys: Vec<&str> = path
        .0
        .iter()
        .map(|step| match step {
            Step::Key(key) => key.as_str(),
            Step::Index(_) => "",
        })
        .collect();
    match keys.as_slice() {
        // Waiting times and limits are read anew each time they are used; each call follows the consistency in
        // force when it enters the stream.
        ["spec", "replication", "resyncBandwidth" | "diskTimeout" | "consistency" | "window", ..]
        | ["spec", "directories", _, "consistency"]
        | ["spec", "services", _, "startTimeout" | "stopTimeout" | "statusInterval"] => Effect::InPlace,
        // Who and what is mirrored, the unit in which dirty maps are counted, and addresses, which move
        // only with the role.
        ["metadata", "name"]
        | ["apiVersion" | "kind"]
        | ["spec", "mode" | "nodes" | "directories" | "replication" | "virtualIPs", ..] => Effect::NeedsStop,
        // Each node counts with the other's timers: a standby waits for the lease that the primary
        // renews, and a primary holds its first lone write until the standby has surely decided. The
        // first asks for the longer timers on the standby, the second on the primary, and a spec that
        // reaches one node may reach the other after the failure: only equal timers are safe.
        ["spec", "heartbeat", ..] => Effect::NeedsStop,
        ["spec", "services", ..] => Effect::RestartsServices,
        _ => Effect::InPlace,
    }
}

/// The changes for people: a line each, hardest effects named.
pub fn render(changes: &[Change]) -> String {
    let mut text = String::new();
    for change in changes {
        let sign = match (&change.old, &change.new) {
            (None, _) => '+',
            (_, None) => '-',
            _ => '~',
        };
        let _ = match (&change.old, &change.new) {
            (Some(old), Some(new)) => {
                writeln!(
                    text,
                    "{sign} {}: {} -> {}  ({})",
                    change.path,
                    plain(old),
                    plain(new),
                    change.effect
                )
            }
            (Some(one), None) | (None, Some(one)) => {
                writeln!(text, "{sign} {}: {}  ({})", change.path, plain(one), change.effect)
            }
            (None, None) => Ok(()),
        };
    }
    text
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
