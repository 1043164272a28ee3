//! What `skc status` shows of a cluster: the core's view beside what the parts report.

use super::cluster::ClusterUnit;
use super::down::Down;
use super::node::Node;
use super::specs;
use crate::api::ApiError;
use crate::api::types::{
    ClusterStatus, DirectoryStatus, ItemStatus, PathStatus, PeerStatus, Reason, VipStatus, WindowStatus,
    WouldFailOver,
};
use crate::base::{ClusterId, Mono, codes};
use crate::engine::{LiveRole, Readiness, Role};
use crate::failover::config::names;
use crate::link::LinkStatus;
use crate::replica::primary::Lag;
use crate::spec::ClusterSpec;
use crate::sys::clock::boottime;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::PoisonError;

/// The status of one cluster.
pub fn of(node: &Node, unit: &ClusterUnit) -> ClusterStatus {
    let snapshot = unit.core.snapshot();
    let view = &snapshot.view;
    let (spec, revision) = unit.spec.read().unwrap_or_else(PoisonError::into_inner).clone();
    let held = unit.vips.borrow().clone();
    let directories = unit.directories.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let quarantine = unit.quarantine.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let figures = unit.streams.figures();
    let refused = node.peer_refuses(&unit.id, revision);
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
        services: unit.services.lines(&spec).into_iter().map(item).collect(),
        checkers: unit.checkers.lines(&spec).into_iter().map(item).collect(),
        reasons: reasons(view, &directories, figures.failure)
            .chain(sick(unit))
            .chain(super::cluster::quarantine::reasons(&quarantine))
            .chain(removed(node, &unit.id))
            .chain(misfit(node, &spec))
            .chain(refused.clone())
            .chain(link_problems(&node.shared.link.status()))
            .collect(),
        quarantine,
        directories: directories.into_iter().map(|line| directory(&spec, line)).collect(),
        command: view.command.as_ref().map(|c| command_line(c, &unit.id.0, &names(&spec))),
        resync: figures.resync,
        peer: match &snapshot.peer {
            Some((said, at)) => PeerStatus {
                epoch: said.epoch.to_string(),
                ready: said.ready,
                age_ms: Some(boottime() - *at),
                ..peer(node, &spec, peer_role(said.role))
            },
            None => peer(node, &spec, node.peer_says(&unit.id).role()),
        },
        would_fail_over: WouldFailOver { now: view.failover.yes, why: view.failover.why.clone() },
        parked: figures.parked,
        unacknowledged: figures.lag.frames as u64,
        window: window(&spec, figures.lag),
        age_ms: boottime() - snapshot.at,
        extra: refused.iter().map(peer_refused).collect(),
    }
}

/// The status of an agent that cannot serve: an entry without a name, because it is about the node.
pub fn of_agent(node: &str, error: &ApiError, since_ms: u64, age_ms: u64) -> ClusterStatus {
    ClusterStatus {
        node: node.to_owned(),
        role: word(&Role::Stop),
        ready: word(&Readiness::NotReady),
        reasons: vec![Reason { code: error.code.clone(), text: error.message.clone() }],
        command: error.hint.clone(),
        age_ms,
        extra: since(since_ms),
        ..ClusterStatus::default()
    }
}

/// What of the link to the other node cannot be used on this node: its own addresses and ports.
pub fn link_problems(link: &LinkStatus) -> Vec<Reason> {
    let listen = link.listen_errors.iter().map(|(address, why)| format!("cannot listen on {address}: {why}"));
    let dead = link.paths.iter().filter(|path| !path.alive);
    let paths = dead.filter_map(|path| {
        let why = path.error.as_ref()?;
        Some(format!("heartbeats {} - {}: {why}", path.local.ip(), path.remote.ip()))
    });
    listen.chain(paths).map(|text| Reason { code: "SKC-E2027".to_owned(), text }).collect()
}

/// The clusters that are in the specs and not up here.
pub fn of_downs(node: &Node) -> Vec<ClusterStatus> {
    // Never both locks at once: elsewhere they are taken the other way round.
    let downs: Vec<(ClusterId, Down)> = {
        let downs = node.down.lock().unwrap_or_else(PoisonError::into_inner);
        downs.iter().map(|(id, down)| (id.clone(), down.clone())).collect()
    };
    let specs = node.specs.lock().unwrap_or_else(PoisonError::into_inner);
    let all = downs.iter().filter(|(id, _)| node.unit(id).is_none());
    all.map(|(id, down)| {
        let entry = specs.get(id);
        let spec = entry.and_then(|e| e.spec.as_deref());
        ClusterStatus {
            peer: spec.map(|spec| peer(node, spec, node.peer_says(id).role())).unwrap_or_default(),
            revision: entry.map_or(0, |e| e.revision.number),
            level: spec.map(|spec| word(&spec.level())).unwrap_or_default(),
            ..of_down(&node.shared.name, &id.0, down, boottime())
        }
    })
    .collect()
}

/// A cluster that is not up: stopped here, not ready, and why.
fn of_down(node: &str, name: &str, down: &Down, now: Mono) -> ClusterStatus {
    let status = of_agent(node, &down.problem, now - down.since, now - down.at);
    let would_fail_over = WouldFailOver { now: false, why: "the cluster is not up here".to_owned() };
    ClusterStatus { name: name.to_owned(), would_fail_over, ..status }
}

/// For `extra`: `skc apply --wait` ends on it.
fn peer_refused(why: &Reason) -> (String, serde_json::Value) {
    ("peer_refused".to_owned(), format!("{}: {}", why.code, why.text).into())
}

/// How long a condition has lasted, for `extra`.
fn since(ms: u64) -> BTreeMap<String, serde_json::Value> {
    BTreeMap::from([("since_ms".to_owned(), ms.into())])
}

/// The core's command as one can type it: it knows neither the cluster's name nor the nodes'.
fn command_line(command: &str, cluster: &str, nodes: &[String]) -> String {
    let mut words = vec!["skc".to_owned()];
    let mut before = "";
    for (at, word) in command.split(' ').enumerate() {
        let named = matches!(before, "node" | "--source");
        // The end of a remark in parentheses stays.
        let bare = word.trim_end_matches([')', ',', '.']);
        let name = match bare {
            "A" if named => nodes.first(),
            "B" if named => nodes.get(1),
            _ => None,
        };
        words.push(name.map_or_else(|| word.to_owned(), |name| word.replacen(bare, name, 1)));
        if at == 0 {
            words.push(cluster.to_owned());
        }
        before = word;
    }
    words.join(" ")
}

/// The core's reasons, and the error of the data path behind them.
fn reasons(
    view: &crate::engine::View,
    directories: &[(String, String, String)],
    failure: Option<String>,
) -> impl Iterator<Item = Reason> {
    let core = view.reasons.iter().map(|r| Reason { code: r.code.clone(), text: r.text.clone() });
    let unusable = directories
        .iter()
        .filter(|(_, state, note)| state != "mounted" && !note.is_empty())
        .map(|(path, _, note)| Reason { code: "SKC-E3001".to_owned(), text: format!("{path}: {note}") });
    let failed = failure.map(|text| Reason { code: "SKC-E4001".to_owned(), text });
    core.chain(unusable).chain(failed)
}

/// The disk below the directories, and for how long it has been so.
fn sick(unit: &ClusterUnit) -> Option<Reason> {
    let trouble = unit.streams.health.trouble()?;
    let text =
        format!("the disk of this node has been sick for {} s: {}", trouble.age.as_secs(), trouble.why);
    Some(Reason { code: codes::FS_SICK.id.to_owned(), text })
}

/// The spec names other nodes or addresses than those that are enrolled: applied before the other node
/// joined, or by an earlier release.
fn misfit(node: &Node, spec: &ClusterSpec) -> Option<Reason> {
    let error = specs::fits(spec, &node.pair()).err()?;
    Some(Reason { code: error.code, text: error.message })
}

/// The peer removed the spec of what runs here.
fn removed(node: &Node, cluster: &ClusterId) -> Option<Reason> {
    let specs = node.specs.lock().unwrap_or_else(PoisonError::into_inner);
    let peer = specs.removed_by(cluster)?;
    let text = format!(
        "{peer} removed the spec while the cluster runs here; it is kept until the cluster is stopped here"
    );
    Some(Reason { code: "SKC-E7022".to_owned(), text })
}

fn peer(node: &Node, spec: &ClusterSpec, role: &str) -> PeerStatus {
    let link = node.shared.link.status();
    let name = spec.spec.nodes.iter().map(|n| n.name.as_str()).find(|n| *n != node.shared.name);
    PeerStatus {
        name: name.unwrap_or_default().to_owned(),
        connected: link.session.is_some(),
        role: role.to_owned(),
        epoch: String::new(),
        ready: false,
        age_ms: None,
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

/// A live role in the words of status; a frozen primary is a primary that is not ready.
const fn peer_role(role: LiveRole) -> &'static str {
    match role {
        LiveRole::Stop => "STOP",
        LiveRole::Wait => "WAIT",
        LiveRole::Alone => "ALONE",
        LiveRole::Prim | LiveRole::Frozen => "PRIM",
        LiveRole::Second => "SECOND",
    }
}

fn item((name, state, note): (String, String, String)) -> ItemStatus {
    ItemStatus { name, state, note }
}

fn directory(spec: &ClusterSpec, (name, state, note): (String, String, String)) -> DirectoryStatus {
    let known = spec.spec.directories.iter().find(|d| d.path.to_str() == Some(&name));
    let consistency = known.map_or("", |d| spec.consistency(d).word()).to_owned();
    DirectoryStatus { name, state, note, consistency }
}

fn window(spec: &ClusterSpec, lag: Lag) -> WindowStatus {
    let limit = spec.spec.replication.window;
    WindowStatus {
        bytes: lag.bytes as u64,
        answered_bytes: lag.answered as u64,
        oldest_ms: lag.oldest.map(|age| age.as_millis() as u64),
        limit_bytes: limit.bytes.as_bytes(),
        limit_ms: limit.age.as_millis(),
    }
}

/// A unit variant as the contract spells it.
fn word(value: &impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::{Down, command_line, link_problems, of_down};
    use crate::api::ApiError;
    use crate::base::Mono;

    #[test]
    fn an_address_that_cannot_be_listened_on_is_shown() {
        let address = "10.0.1.1".parse().expect("an address");
        let mut link = crate::link::LinkStatus {
            session: None,
            paths: Vec::new(),
            own_late: std::time::Duration::ZERO,
            refused: 0,
            listen_errors: vec![(address, "address in use".to_owned())],
        };
        let shown = link_problems(&link);
        assert!(shown[0].code == "SKC-E2027" && shown[0].text.contains("10.0.1.1: address in use"));
        link.listen_errors.clear();
        assert!(link_problems(&link).is_empty());
    }

    #[test]
    fn a_cluster_that_is_not_up_is_shown_as_stopped_with_its_reason_and_age() {
        let problem = ApiError::new("SKC-E7020", "both slots are damaged", "skc explain SKC-E7020");
        let down = Down { problem, since: Mono(1_000), at: Mono(11_000) };
        let shown = of_down("node-a", "shop", &down, Mono(12_500));
        assert_eq!(
            (shown.name.as_str(), shown.role.as_str(), shown.ready.as_str()),
            ("shop", "STOP", "NotReady")
        );
        assert_eq!(shown.reasons[0].code, "SKC-E7020");
        assert_eq!(shown.command.as_deref(), Some("skc explain SKC-E7020"));
        assert_eq!((shown.age_ms, shown.extra["since_ms"].as_u64()), (1_500, Some(11_500)));
        assert!(!shown.would_fail_over.now);
    }

    #[test]
    fn the_command_can_be_typed_as_shown() {
        let nodes = ["alpha".to_owned(), "beta".to_owned()];
        assert_eq!(
            command_line("promote --force (if node B never comes back)", "shop", &nodes),
            "skc promote shop --force (if node beta never comes back)"
        );
        assert_eq!(command_line("start (on node B)", "shop", &nodes), "skc start shop (on node beta)");
        assert_eq!(command_line("adopt --source A", "shop", &nodes), "skc adopt shop --source alpha");
    }
}
