//! What can happen. Names and fields are a contract: scripts read them as JSON.

use crate::base::{Epoch, Millis};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The thing a fact is about: one latest value is kept for each (within its cluster).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Object {
    /// Class, for example `vip`.
    pub class: String,
    /// Name within the class; empty where there is only one.
    pub name: String,
}

impl Object {
    /// Object `name` of `class`.
    pub fn new(class: &str, name: impl Into<String>) -> Self {
        Self { class: class.to_owned(), name: name.into() }
    }
}

/// One thing that happened. Roles, gates and states are the words that `skc status` prints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind")]
pub enum Fact {
    /// The agent came up.
    AgentStarted {
        /// Its version.
        version: String,
    },
    /// The role changed.
    RoleChanged {
        /// Before.
        from: String,
        /// Now.
        to: String,
        /// Why.
        reason: String,
    },
    /// The readiness within the role changed.
    ReadyChanged {
        /// `NotReady`, Transient or Ready.
        ready: String,
        /// Why.
        reason: String,
    },
    /// The state of this node's data changed.
    DataStateChanged {
        /// Before.
        from: String,
        /// Now.
        to: String,
        /// Why.
        reason: String,
    },
    /// The decision core says what it did.
    Decision {
        /// `SKC-V####`.
        code: String,
        /// In words.
        what: String,
        /// In which epoch.
        epoch: Epoch,
    },
    /// The epoch moved.
    EpochChanged {
        /// Now.
        epoch: Epoch,
    },
    /// What the mount allows changed.
    GateChanged {
        /// Now.
        gate: String,
    },
    /// The control or data link to the peer is up.
    LinkUp {
        /// The path (addresses) it took.
        path: String,
    },
    /// The link is down.
    LinkDown {
        /// The path it had.
        path: String,
        /// Why.
        reason: String,
    },
    /// Replication moved to another path.
    PathChanged {
        /// Before.
        from: String,
        /// Now.
        to: String,
    },
    /// No heartbeat on a path for too long.
    HeartbeatLost {
        /// The path.
        path: String,
        /// How long it has been silent.
        silent_ms: Millis,
    },
    /// Heartbeats on a path are back.
    HeartbeatRegained {
        /// The path.
        path: String,
        /// How long it had been silent.
        silent_ms: Millis,
    },
    /// The peer counts as lost: no path has heartbeats.
    PeerLost {
        /// Why.
        reason: String,
    },
    /// The network was asked who lives (level L2).
    Probed {
        /// Did anybody answer for a virtual IP?
        vip_answered: bool,
        /// Did the peer's kernel answer?
        peer_answered: bool,
        /// Reachable, Unreachable or `NotConfigured`.
        witness: String,
        /// How long it took.
        elapsed_ms: Millis,
    },
    /// A resync began.
    ResyncStarted {
        /// Source or target.
        side: String,
        /// Why.
        reason: String,
    },
    /// How far the resync is. Not kept in the history.
    ResyncProgress {
        /// Bytes compared or sent.
        done_bytes: u64,
        /// Bytes known so far.
        total_bytes: u64,
        /// Rate.
        bytes_per_second: u64,
    },
    /// The trees are equal.
    ResyncFinished {
        /// Bytes that had to travel.
        sent_bytes: u64,
        /// How long it took.
        elapsed_ms: Millis,
    },
    /// The resync stopped before its end.
    ResyncFailed {
        /// Why.
        reason: String,
    },
    /// What a resync replaced on its target is kept there.
    QuarantineKept {
        /// `SKC-V0101`.
        code: String,
        /// On which node.
        on: String,
        /// Objects moved.
        objects: u64,
        /// Bytes of overwritten blocks.
        bytes: u64,
    },
    /// What a resync replaces on its target is not kept there any more: it is lost.
    QuarantineIncomplete {
        /// `SKC-V0102`.
        code: String,
        /// On which node.
        on: String,
        /// Objects moved before.
        objects: u64,
        /// Bytes of overwritten blocks before.
        bytes: u64,
        /// Why; empty on the other node.
        reason: String,
    },
    /// This node holds the virtual IP.
    VipHeld {
        /// Address with prefix length.
        vip: String,
        /// Where.
        interface: String,
    },
    /// This node gave the virtual IP up.
    VipReleased {
        /// Address with prefix length.
        vip: String,
    },
    /// The virtual IP is gone and must not come back without a new decision.
    VipLost {
        /// Address with prefix length.
        vip: String,
        /// Why.
        reason: String,
    },
    /// Somebody else uses the virtual IP.
    VipConflict {
        /// Address with prefix length.
        vip: String,
        /// Who.
        mac: String,
    },
    /// A service changed.
    ServiceChanged {
        /// Its name.
        service: String,
        /// Starting, running, stopping, stopped, failed.
        state: String,
        /// Why, or the end of its output.
        note: String,
    },
    /// A service ended by itself; what becomes of it is another fact.
    ServiceExited {
        /// Its name.
        service: String,
        /// How.
        how: String,
    },
    /// A checker changed its mind (after rise or fall).
    CheckerChanged {
        /// Its name.
        checker: String,
        /// Up or down.
        up: bool,
        /// What the last check said.
        output: String,
    },
    /// A directory was mounted or unmounted, or its mount died.
    MountChanged {
        /// The directory.
        path: String,
        /// Mounted, unmounted, dead.
        state: String,
        /// Why.
        note: String,
    },
    /// A spec is in force.
    SpecApplied {
        /// Its revision.
        revision: u64,
    },
    /// A spec was refused; the one before stays in force.
    SpecRefused {
        /// `SKC-E####`.
        code: String,
        /// Why.
        reason: String,
    },
    /// An operator asked for something.
    OperatorAction {
        /// What.
        action: String,
        /// Done, or why not.
        outcome: String,
    },
    /// A step of a reconciler was carried out.
    StepDone {
        /// The reconciled object.
        object: String,
        /// What was done.
        step: String,
    },
    /// Something failed.
    Error {
        /// `SKC-E####`; `skc explain` has the page.
        code: String,
        /// The object it is about.
        object: String,
        /// What.
        message: String,
    },
}

impl Fact {
    /// What it is about.
    pub fn object(&self) -> Object {
        match self {
            Self::AgentStarted { .. } => Object::new("agent", ""),
            Self::RoleChanged { .. } => Object::new("role", ""),
            Self::ReadyChanged { .. } => Object::new("ready", ""),
            Self::DataStateChanged { .. } => Object::new("data", ""),
            Self::EpochChanged { .. } => Object::new("epoch", ""),
            Self::Decision { .. } => Object::new("decision", ""),
            Self::GateChanged { .. } => Object::new("gate", ""),
            Self::LinkUp { .. } | Self::LinkDown { .. } => Object::new("link", ""),
            Self::PathChanged { .. } => Object::new("path", ""),
            Self::HeartbeatLost { path, .. } | Self::HeartbeatRegained { path, .. } => {
                Object::new("heartbeat", path)
            }
            Self::PeerLost { .. } => Object::new("peer", ""),
            Self::Probed { .. } => Object::new("probe", ""),
            Self::ResyncStarted { .. }
            | Self::ResyncProgress { .. }
            | Self::ResyncFinished { .. }
            | Self::ResyncFailed { .. } => Object::new("resync", ""),
            Self::QuarantineKept { on, .. } | Self::QuarantineIncomplete { on, .. } => {
                Object::new("quarantine", on)
            }
            Self::VipHeld { vip, .. }
            | Self::VipReleased { vip }
            | Self::VipLost { vip, .. }
            | Self::VipConflict { vip, .. } => Object::new("vip", vip),
            Self::ServiceChanged { service, .. } => Object::new("service", service),
            Self::ServiceExited { service, .. } => Object::new("service-exit", service),
            Self::CheckerChanged { checker, .. } => Object::new("checker", checker),
            Self::MountChanged { path, .. } => Object::new("mount", path),
            Self::SpecApplied { .. } | Self::SpecRefused { .. } => Object::new("spec", ""),
            Self::OperatorAction { .. } => Object::new("operator", ""),
            Self::StepDone { object, .. } => Object::new("step", object),
            Self::Error { object, .. } => Object::new("error", object),
        }
    }

    /// Progress replaces itself and would drive real events out of the history.
    pub const fn is_progress(&self) -> bool {
        matches!(self, Self::ResyncProgress { .. })
    }
}

impl fmt::Display for Fact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let note = |f: &mut fmt::Formatter<'_>, note: &str| {
            if note.is_empty() { Ok(()) } else { write!(f, ": {note}") }
        };
        match self {
            Self::AgentStarted { version } => write!(f, "agent {version} started"),
            Self::RoleChanged { from, to, reason } => {
                write!(f, "role {from} -> {to}").and_then(|()| note(f, reason))
            }
            Self::ReadyChanged { ready, reason } => write!(f, "{ready}").and_then(|()| note(f, reason)),
            Self::DataStateChanged { from, to, reason } => {
                write!(f, "data {from} -> {to}").and_then(|()| note(f, reason))
            }
            Self::Decision { what, .. } => write!(f, "{what}"),
            Self::EpochChanged { epoch } => write!(f, "epoch {epoch}"),
            Self::GateChanged { gate } => write!(f, "mount is {gate}"),
            Self::LinkUp { path } => write!(f, "link up on {path}"),
            Self::LinkDown { path, reason } => {
                write!(f, "link down on {path}").and_then(|()| note(f, reason))
            }
            Self::PathChanged { from, to } => write!(f, "replication moved from {from} to {to}"),
            Self::HeartbeatLost { path, silent_ms } => {
                write!(f, "no heartbeat on {path} for {silent_ms} ms")
            }
            Self::HeartbeatRegained { path, silent_ms } => {
                write!(f, "heartbeats on {path} are back after {silent_ms} ms")
            }
            Self::PeerLost { reason } => write!(f, "peer lost").and_then(|()| note(f, reason)),
            Self::Probed { vip_answered, peer_answered, witness, elapsed_ms } => {
                let said = |answered: &bool| if *answered { "answered" } else { "silent" };
                write!(
                    f,
                    "probe: virtual IP {}, peer {}, witness {witness} ({elapsed_ms} ms)",
                    said(vip_answered),
                    said(peer_answered)
                )
            }
            Self::ResyncStarted { side, reason } => {
                write!(f, "resync started as {side}").and_then(|()| note(f, reason))
            }
            Self::ResyncProgress { done_bytes, total_bytes, bytes_per_second } => {
                write!(f, "resync {done_bytes} of {total_bytes} bytes, {bytes_per_second} bytes/s")
            }
            Self::ResyncFinished { sent_bytes, elapsed_ms } => {
                write!(f, "resync finished: {sent_bytes} bytes sent in {elapsed_ms} ms")
            }
            Self::ResyncFailed { reason } => write!(f, "resync stopped").and_then(|()| note(f, reason)),
            Self::QuarantineKept { on, objects, bytes, .. } => write!(
                f,
                "quarantine on {on} keeps {objects} objects and {bytes} bytes that the resync replaced there"
            ),
            Self::QuarantineIncomplete { on, objects, bytes, reason, .. } => write!(
                f,
                "quarantine on {on} is INCOMPLETE: after {objects} objects and {bytes} bytes nothing more was kept, what the resync replaced then is lost"
            )
            .and_then(|()| note(f, reason)),
            Self::VipHeld { vip, interface } => write!(f, "virtual IP {vip} held on {interface}"),
            Self::VipReleased { vip } => write!(f, "virtual IP {vip} released"),
            Self::VipLost { vip, reason } => {
                write!(f, "virtual IP {vip} lost").and_then(|()| note(f, reason))
            }
            Self::VipConflict { vip, mac } => write!(f, "virtual IP {vip} is also used by {mac}"),
            Self::ServiceChanged { service, state, note: n } => {
                write!(f, "service {service} {state}").and_then(|()| note(f, n))
            }
            Self::ServiceExited { service, how } => {
                write!(f, "service {service} ended by itself").and_then(|()| note(f, how))
            }
            Self::CheckerChanged { checker, up, output } => {
                write!(f, "checker {checker} is {}", if *up { "up" } else { "down" })
                    .and_then(|()| note(f, output))
            }
            Self::MountChanged { path, state, note: n } => {
                write!(f, "directory {path} {state}").and_then(|()| note(f, n))
            }
            Self::SpecApplied { revision } => write!(f, "spec revision {revision} in force"),
            Self::SpecRefused { code, reason } => write!(f, "spec refused, {code}: {reason}"),
            Self::OperatorAction { action, outcome } => write!(f, "operator: {action}: {outcome}"),
            Self::StepDone { object, step } => write!(f, "{object}: {step}"),
            Self::Error { code, object, message } => write!(f, "{code} {object}: {message}"),
        }
    }
}
