//! What `skc status` shows: roles, data state, reasons with codes, and the one command to run.

use crate::base::{Epoch, Millis, NodeId};
use crate::engine::config::Level;
use serde::{Deserialize, Serialize};

/// Role words of mirror clusters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Role {
    /// Stopped here.
    Stop,
    /// Started, may not serve.
    Wait,
    /// Serves without a standby.
    Alone,
    /// Serves with a standby.
    Prim,
    /// Standby.
    Second,
}

/// How far a role is carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Readiness {
    /// Something is wrong; see the reasons.
    NotReady,
    /// On the way.
    Transient,
    /// As it should be.
    Ready,
}

/// State of the local data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DataState {
    /// Holds everything acknowledged.
    UpToDate,
    /// A prefix of the writer's history, possibly not the newest.
    Consistent,
    /// The peer went on without this node, by record.
    Outdated,
    /// Being resynced or damaged: never promoted.
    Inconsistent,
    /// Lost power: what a single machine would show; never promoted while the peer may be intact.
    Crashed,
    /// The peer may have acknowledged alone since the cut.
    Behind,
    /// Never initialised.
    New,
}

/// One reason for what status shows.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Reason {
    /// Stable code (`skc explain CODE`).
    pub code: String,
    /// One sentence.
    pub text: String,
}

/// "Would fail over now?"
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FailoverOutlook {
    /// If the serving node lost power now, would the other one take over by itself?
    pub yes: bool,
    /// Why, in one sentence.
    pub why: String,
}

/// Snapshot for status. Ages are computed by the reader from `at`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct View {
    /// This node.
    pub node: NodeId,
    /// Role.
    pub role: Role,
    /// How far.
    pub readiness: Readiness,
    /// Data state.
    pub data: DataState,
    /// Durable epoch.
    pub epoch: Epoch,
    /// Guarantee level in force.
    pub level: Level,
    /// What the level does not cover (printed by status).
    pub counter_example: String,
    /// Why it is as it is; first = most important.
    pub reasons: Vec<Reason>,
    /// The single command to run if nothing moves without the operator (arguments after `skc`).
    pub command: Option<String>,
    /// Failover outlook.
    pub failover: FailoverOutlook,
    /// Writes are answered now.
    pub serving: bool,
    /// The peer is an eligible standby.
    pub standby_ready: bool,
    /// The virtual addresses should be on this node.
    pub wants_vips: bool,
    /// The services should run on this node.
    pub wants_services: bool,
    /// Since when nothing was heard of the peer, in milliseconds; `None`: never since the start.
    pub peer_silent_ms: Option<Millis>,
    /// Automatic failover is paused by the operator.
    pub paused: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::codes;

    #[test]
    fn every_word_that_status_shows_has_a_page() {
        let roles = [Role::Stop, Role::Wait, Role::Alone, Role::Prim, Role::Second];
        let ready = [Readiness::NotReady, Readiness::Transient, Readiness::Ready];
        let data = [
            DataState::UpToDate,
            DataState::Consistent,
            DataState::Outdated,
            DataState::Inconsistent,
            DataState::Crashed,
            DataState::Behind,
            DataState::New,
        ];
        let levels = [Level::L0, Level::L1, Level::L2];
        let words = roles
            .iter()
            .map(|w| format!("{w:?}").to_uppercase())
            .chain(ready.iter().map(|w| format!("{w:?}")))
            .chain(data.iter().map(|w| format!("{w:?}")))
            .chain(levels.iter().map(|w| format!("{w:?}")));
        for word in words {
            assert_eq!(codes::condition(&word).map(|c| c.name), Some(word.as_str()));
        }
    }
}
