//! Rules between documents that are validated together.
//!
//! A name belongs to one cluster. Clusters of one pair (they share a node address) also share the
//! machines' directories and addresses; clusters of different pairs do not meet.

use super::Cidr;
use super::finding::{Path, Problem};
use super::load::FINDINGS_MAX;
use super::rules::overlap;
use super::view::View;
use crate::base::codes;
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// What one document claims.
struct Claims<'a> {
    name: View<'a>,
    place: &'a str, // "file:line"
    /// Address to the name of its node.
    nodes: BTreeMap<IpAddr, (&'a str, Path)>,
    directories: Vec<View<'a>>,
    vips: Vec<(IpAddr, Path)>,
}

impl<'a> Claims<'a> {
    fn of(place: &'a str, value: &'a Value) -> Self {
        let root = View::root(value);
        let spec = root.get("spec");
        let mut nodes = BTreeMap::new();
        for node in spec.get("nodes").items() {
            for address in node.get("addresses").items() {
                if let Some(ip) = address.ip() {
                    nodes.insert(ip, (node.get("name").text(), address.path));
                }
            }
        }
        let vips = spec.get("virtualIPs").items().map(|v| v.get("address"));
        Self {
            name: root.get("metadata").get("name"),
            place,
            nodes,
            directories: spec.get("directories").items().map(|d| d.get("path")).collect(),
            vips: vips.filter_map(|v| Some((v.text().parse::<Cidr>().ok()?.ip(), v.path))).collect(),
        }
    }

    fn is_of_pair(&self, other: &Self) -> bool {
        self.nodes.keys().any(|ip| other.nodes.contains_key(ip))
    }

    /// "cluster "a" (file.yaml)".
    fn title(&self) -> String {
        format!("cluster {:?} ({})", self.name.text(), self.place)
    }
}

/// Compares each document with those before it; `documents` are (place for messages, value). The result is
/// (index of the document, problem), in order.
pub(super) fn check(documents: &[(&str, &Value)]) -> Vec<(usize, Problem)> {
    let claims: Vec<Claims<'_>> = documents.iter().map(|(place, value)| Claims::of(place, value)).collect();
    let mut out = Vec::new();
    for (i, this) in claims.iter().enumerate() {
        for other in &claims[..i] {
            let mut problems = Vec::new();
            if !this.name.text().is_empty() && this.name.text() == other.name.text() {
                let message = format!("cluster {:?} is also in {}", this.name.text(), other.place);
                problems.push(Problem::new(&this.name.path, codes::SPEC_DUPLICATE_NAME, message));
            }
            if this.is_of_pair(other) {
                same_pair(this, other, &mut problems);
            }
            if out.len() >= FINDINGS_MAX {
                return out;
            }
            out.extend(problems.into_iter().map(|problem| (i, problem)));
        }
    }
    out
}

fn same_pair(this: &Claims<'_>, other: &Claims<'_>, out: &mut Vec<Problem>) {
    for (ip, (node, path)) in &this.nodes {
        match other.nodes.get(ip) {
            Some((theirs, _)) if theirs != node => {
                let message = format!("{ip} is node {node:?} here and node {theirs:?} in {}", other.title());
                out.push(Problem::new(path, codes::SPEC_DUPLICATE_ADDRESS, message));
            }
            _ => {}
        }
    }
    for view in &this.directories {
        for theirs in other.directories.iter().map(View::text) {
            let path = view.text();
            let message = match overlap(path, theirs) {
                Some(message) => message,
                None if path == theirs && !path.is_empty() => format!("{path} is mirrored twice"),
                None => continue,
            };
            let message = format!("{message}, of {}", other.title());
            out.push(Problem::new(&view.path, codes::SPEC_OVERLAP, message));
        }
    }
    for (ip, path) in &this.vips {
        if other.vips.iter().any(|(theirs, _)| theirs == ip) {
            let message = format!("{ip} is also a virtual IP of {}", other.title());
            out.push(Problem::new(path, codes::SPEC_DUPLICATE_ADDRESS, message));
        }
        if other.nodes.contains_key(ip) {
            let message = format!("{ip} is a node's address in {}", other.title());
            out.push(Problem::new(path, codes::SPEC_ADDRESS_ROLE, message));
        }
    }
}
