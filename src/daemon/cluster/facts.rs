//! Turns changes of the core's view into facts on the bus, and events into words.

use super::{ClusterUnit, ended};
use crate::bus::Fact;
use crate::engine::{EventKind, View};
use std::sync::Arc;
use tokio::sync::watch;

/// Publishes every change of role, readiness, data state and epoch.
pub async fn follow(unit: Arc<ClusterUnit>, mut stop: watch::Receiver<bool>) {
    let mut snapshots = unit.core.watch();
    let mut last: View = snapshots.borrow_and_update().view.clone();
    loop {
        tokio::select! {
            biased; // the end first
            () = ended(&mut stop) => return,
            changed = snapshots.changed() => if changed.is_err() { return },
        }
        let view = snapshots.borrow_and_update().view.clone();
        publish(&unit, &last, &view);
        last = view;
    }
}

fn publish(unit: &ClusterUnit, old: &View, new: &View) {
    let bus = &unit.shared().bus;
    let cluster = Some(unit.id.0.as_str());
    let reason = new.reasons.first().map(|r| r.text.clone()).unwrap_or_default();
    if old.role != new.role {
        let (from, to) = (word(&old.role), word(&new.role));
        bus.publish(cluster, Fact::RoleChanged { from, to, reason: reason.clone() });
    }
    if old.data != new.data {
        let (from, to) = (word(&old.data), word(&new.data));
        bus.publish(cluster, Fact::DataStateChanged { from, to, reason: reason.clone() });
    }
    if old.readiness != new.readiness {
        bus.publish(cluster, Fact::ReadyChanged { ready: word(&new.readiness), reason });
    }
    if old.epoch != new.epoch {
        bus.publish(cluster, Fact::EpochChanged { epoch: new.epoch });
    }
}

/// A role or state as the contract spells it.
pub fn word(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}

/// An event of the core for people.
pub fn words(kind: &EventKind) -> String {
    match kind {
        EventKind::Started => "cluster started here".into(),
        EventKind::Stopped => "cluster stopped here".into(),
        EventKind::LinkUp => "link to the peer is up".into(),
        EventKind::Agreed { row, source_here, plan } => {
            let side = if *source_here { "this node is the source" } else { "this node is the target" };
            let plan = plan.as_ref().map_or("nothing to do".to_owned(), |p| format!("{p:?}"));
            format!("both nodes agree (row {row}): {side}, {plan}")
        }
        EventKind::HandshakeRetry => "handshake repeated: the facts changed meanwhile".into(),
        EventKind::SessionLost { silent_ms } => {
            format!("session lost, the peer has been silent for {silent_ms} ms")
        }
        EventKind::Thawed => "session back before anyone went on alone".into(),
        EventKind::WentAlone { confirmed: true } => "goes on alone, by the peer's own word".into(),
        EventKind::WentAlone { confirmed: false } => {
            "goes on alone, by the rule of the guarantee level".into()
        }
        EventKind::Promoted => "standby took over".into(),
        EventKind::Forced => "promoted by force of the operator".into(),
        EventKind::Demoted => "writer gave up: EIO for what was not acknowledged".into(),
        EventKind::Behind => "recorded: the peer may have gone on without this node".into(),
        EventKind::TombstoneSeen => "the peer's guard says that its agent is dead".into(),
        EventKind::ResyncStarted => "resync started".into(),
        EventKind::UpToDate => "standby is UpToDate".into(),
        EventKind::Inconsistent { damage } => format!("data needs a full compare: {damage:?}"),
        EventKind::HandedOver => "role handed to the peer".into(),
        EventKind::TookOver => "role taken from the peer".into(),
        EventKind::HandoverAborted => "hand-over given up, the role stayed".into(),
        EventKind::Stalled { late_ms } => {
            format!("this node stalled for {late_ms} ms and assumes that it was replaced")
        }
        EventKind::RestartLimit => "restart limit reached: stopped".into(),
        EventKind::Checker(action) => format!("a checker asks for {action:?}"),
        EventKind::PersistFailed => "the fencing record cannot be written: serves no more".into(),
        EventKind::SplitBrain => "split brain found: both nodes hold data the other has not".into(),
        #[allow(unreachable_patterns)] // new kinds of the core show at least their name
        other => format!("{other:?}"),
    }
}
