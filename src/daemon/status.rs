//! What `skc status` shows of a cluster: the core's view beside what the parts report.

use super::cluster::ClusterUnit;
use super::node::Node;
use crate::api::types::{
    ClusterStatus, ItemStatus, PathStatus, PeerStatus, Reason, VipStatus, WouldFailOver,
};
use crate::sys::clock::boottime;
use serde::Serialize;

/// The status of one cluster.
pub fn of(node: &Node, unit: &ClusterUnit) -> ClusterStatus {
    let snapshot = unit.core.snapshot();
    let view = &snapshot.view;
    let (spec, revision) = unit.spec.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
    let held = unit.vips.borrow().clone();
    let items = unit.items.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
    let figures = unit.streams.figures();
    ClusterStatus {
        name: unit.id.0.clone(),
        node: node.shared.name.clone(),
        role: word(&view.role),
        ready: word(&view.readiness),
        data_state: word(&view.data),
        epoch: view.epoch.to_string(),
        level: word(&view.level),
        level_note: view.counter_example.clone(),
        revision,
        vips: spec
            .spec
            .virtual_ips
            .iter()
            .map(|v| VipStatus {
                address: v.address.to_string(),
                held: held.held.iter().any(|h| h.address == v.address.ip()),
                note: held.note.clone(),
            })
            .collect(),
        services: items.services.into_iter().map(item).collect(),
        checkers: items.checkers.into_iter().map(item).collect(),
        directories: items.directories.into_iter().map(item).collect(),
        reasons: view.reasons.iter().map(|r| Reason { code: r.code.clone(), text: r.text.clone() }).collect(),
        command: view.command.as_ref().map(|c| format!("skc {c}")),
        resync: figures.resync,
        peer: peer(node, &spec, figures.peer_role),
        would_fail_over: WouldFailOver { now: view.failover.yes, why: view.failover.why.clone() },
        parked: figures.parked,
        unacknowledged: figures.unacknowledged,
        age_ms: boottime() - snapshot.at,
        ..ClusterStatus::default()
    }
}

fn peer(node: &Node, spec: &crate::spec::ClusterSpec, role: String) -> PeerStatus {
    let link = node.shared.link.status();
    let name = spec.spec.nodes.iter().map(|n| n.name.as_str()).find(|n| *n != node.shared.name);
    PeerStatus {
        name: name.unwrap_or_default().to_owned(),
        connected: link.session.is_some(),
        role,
        paths: link
            .paths
            .iter()
            .map(|p| PathStatus {
                address: p.remote.ip().to_string(),
                alive: p.alive,
                age_ms: p.heard_ms_ago,
                rtt_us: p.rtt.map(|d| d.as_micros() as u64),
            })
            .collect(),
    }
}

fn item((name, state, note): (String, String, String)) -> ItemStatus {
    ItemStatus { name, state, note }
}

/// A unit variant as the contract spells it.
fn word(value: &impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}
