//! `skc apply --wait`: until what was applied serves on both nodes.

use super::common::{Connection, fail, misunderstood};
use super::output::errln;
use crate::api::types::{PeerStatus, Reason};
use crate::api::{ApiError, ClusterStatus, Request, client};
use crate::base::codes;
use std::fmt::Write;
use std::ops::ControlFlow;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Between two looks.
const PACE: Duration = Duration::from_millis(200);
/// Longest wait for one answer; the agent may be busy with what was applied.
const ANSWER: Duration = Duration::from_secs(10);
/// Code of the reason that a cluster is stopped because somebody said so.
const STOPPED: &str = codes::REASON_0507.id;

/// Codes of the reasons by which a primary says that its standby is not Ready.
const STANDBY_NOT_READY: [&str; 3] = [codes::REASON_0308.id, codes::REASON_0309.id, codes::REASON_0312.id];

/// How far a cluster is.
#[derive(Debug, PartialEq, Eq)]
enum Standing {
    /// As it should be, on both nodes.
    Ready,
    /// Stopped by the operator: it will not come up by itself.
    Stopped,
    /// On its way, or waiting for something.
    NotYet(String),
    /// The peer said that it does not take the spec over.
    Refused(String),
}

/// Waits until each of `applied` (name, revision) is Ready here and at the peer. Says on standard error
/// what it waits for; the exit code is not 0 when it was for nothing.
pub fn until_ready(connection: &Connection, applied: &[(String, u64)], limit: Duration) -> ExitCode {
    let end = Instant::now() + limit;
    let mut said = String::new();
    let mut stopped = Vec::new();
    loop {
        let mut waiting = Vec::new();
        match statuses(connection) {
            Err(error) => waiting.push(error.message),
            Ok(clusters) => {
                for (name, revision) in applied {
                    match standing(clusters.iter().find(|c| c.name == *name), *revision) {
                        Standing::Ready => {}
                        Standing::Stopped if stopped.contains(name) => {}
                        Standing::Stopped => {
                            errln!("{name} is stopped by the operator: not waiting for it");
                            stopped.push(name.clone());
                        }
                        Standing::NotYet(why) => waiting.push(format!("{name}: {why}")),
                        Standing::Refused(why) => {
                            let message = format!("the peer refused {name}: {why}; this node keeps it");
                            let hint = "skc events there has the findings; apply a spec that both accept";
                            return fail(&ApiError::new(codes::APPLY_FINDINGS.id, message, hint));
                        }
                    }
                }
            }
        }
        if waiting.is_empty() {
            return ExitCode::SUCCESS;
        }
        let now = waiting.join("; ");
        if Instant::now() >= end {
            let message = format!("applied, but not Ready within {} s: {now}", limit.as_secs_f64());
            let hint = "it goes on: skc status, skc events (also on the other node)";
            return fail(&ApiError::new(codes::CLI_TIMEOUT.id, message, hint));
        }
        if now != said {
            errln!("waiting: {now}");
            said = now;
        }
        std::thread::sleep(PACE);
    }
}

fn statuses(connection: &Connection) -> Result<Vec<ClusterStatus>, ApiError> {
    let request = Request::Status { cluster: None };
    let value = client::call(&connection.socket, &request, ANSWER, |_| ControlFlow::Continue(()))?;
    serde_json::from_value(value).map_err(|error| misunderstood(&error))
}

fn standing(cluster: Option<&ClusterStatus>, revision: u64) -> Standing {
    let Some(c) = cluster else { return Standing::NotYet("not known yet".to_owned()) };
    if let Some(why) = c.extra.get("peer_refused").and_then(serde_json::Value::as_str) {
        return Standing::Refused(why.to_owned());
    }
    if c.role == "STOP" && c.reasons.iter().any(|r| r.code == STOPPED) {
        return Standing::Stopped;
    }
    // A primary is PRIM only with a standby in its session, and says so while that one is not Ready yet. The
    // peer's own word counts where the agent has it.
    let unfinished = |r: &Reason| STANDBY_NOT_READY.contains(&r.code.as_str());
    let both = match (c.role.as_str(), c.peer.role.as_str()) {
        ("PRIM", "SECOND" | "") => !c.reasons.iter().any(unfinished),
        ("SECOND", "PRIM" | "") => true,
        _ => false,
    };
    if c.revision >= revision && c.ready == "Ready" && c.peer.connected && both {
        return Standing::Ready;
    }
    let PeerStatus { name, connected, role, .. } = &c.peer;
    let mut why = format!("{} is {} {}", c.node, c.role, c.ready);
    let _ = match (connected, role.as_str()) {
        (false, _) => write!(why, ", {name} is not connected"),
        (true, "") if c.role == "ALONE" => {
            write!(why, ", {name} does not run it (yet, or it refused the spec)")
        }
        (true, "") => Ok(()),
        (true, role) => write!(why, ", {name} is {role}"),
    };
    if let Some(reason) = c.reasons.first() {
        let _ = write!(why, " [{}] {}", reason.code, reason.text);
    }
    Standing::NotYet(why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(role: &str, ready: &str, peer: &str) -> ClusterStatus {
        ClusterStatus {
            name: "shop".into(),
            node: "node-a".into(),
            role: role.into(),
            ready: ready.into(),
            revision: 3,
            peer: PeerStatus {
                name: "node-b".into(),
                connected: true,
                role: peer.into(),
                ..PeerStatus::default()
            },
            ..ClusterStatus::default()
        }
    }

    #[test]
    fn ready_means_both_nodes_and_the_revision() {
        for (role, peer) in [("PRIM", "SECOND"), ("SECOND", "PRIM")] {
            assert_eq!(standing(Some(&cluster(role, "Ready", peer)), 3), Standing::Ready);
        }
        for (role, ready, peer, revision) in [
            ("PRIM", "Transient", "SECOND", 3),
            ("ALONE", "Ready", "", 3),
            ("PRIM", "Ready", "WAIT", 3),
            ("STOP", "Ready", "STOP", 3),
            ("PRIM", "Ready", "SECOND", 4),
        ] {
            let is = standing(Some(&cluster(role, ready, peer)), revision);
            assert!(matches!(is, Standing::NotYet(_)), "{role} {ready} {peer} {revision}: {is:?}");
        }
        assert!(matches!(standing(None, 1), Standing::NotYet(_)));
        assert_eq!(standing(Some(&cluster("PRIM", "Ready", "")), 3), Standing::Ready);
        let mut resyncing = cluster("PRIM", "Ready", "");
        resyncing.reasons = vec![Reason { code: "SKC-R0308".into(), text: String::new() }];
        assert!(matches!(standing(Some(&resyncing), 3), Standing::NotYet(_)));
    }

    #[test]
    fn what_will_not_come_is_not_waited_for() {
        let mut stopped = cluster("STOP", "Ready", "STOP");
        stopped.reasons = vec![Reason { code: "SKC-R0507".into(), text: String::new() }];
        assert_eq!(standing(Some(&stopped), 3), Standing::Stopped);
        let mut refused = cluster("ALONE", "Ready", "");
        refused.extra.insert("peer_refused".into(), "SKC-E7013: no".into());
        assert_eq!(standing(Some(&refused), 3), Standing::Refused("SKC-E7013: no".into()));
    }
}
