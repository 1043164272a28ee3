//! The view: what `skc status` shows of one node.

use crate::base::Mono;
use crate::engine::cluster::{Cluster, Phase, Why};
use crate::engine::config::{Level, Mode};
use crate::engine::io::{Gate, ServiceState, TreeState};
use crate::engine::peer::VerdictKind;
use crate::engine::session::Shake;
use crate::engine::view::{DataState, FailoverOutlook, Readiness, Reason, Role, View};

impl Cluster {
    /// Snapshot for status. Never changes anything.
    pub fn view(&self, now: Mono) -> View {
        let reasons = self.reasons(now);
        View {
            node: self.me,
            role: self.role(),
            readiness: self.readiness(),
            data: self.data_state(),
            epoch: self.d.epoch,
            level: self.config.level,
            counter_example: counter_example(self.config.level, self.config.has_witness).to_owned(),
            command: self.command(),
            failover: self.outlook(),
            serving: matches!(self.gate, Gate::Replicated { .. } | Gate::Alone { .. }),
            standby_ready: matches!(self.phase, Phase::Prim { standby: true, .. }),
            wants_vips: self.vips,
            wants_services: self.services_wanted,
            peer_silent_ms: self.raw.map(|at| now - at),
            paused: self.paused,
            reasons,
        }
    }

    fn role(&self) -> Role {
        match &self.phase {
            Phase::Stopped | Phase::Leaving { .. } => Role::Stop,
            Phase::Wait { .. } | Phase::Lost { .. } | Phase::Broken { .. } => Role::Wait,
            Phase::Alone { .. } => Role::Alone,
            Phase::Handover { standby: false, .. } if self.d.alone => Role::Alone,
            Phase::Prim { .. } | Phase::Frozen { .. } | Phase::Handover { .. } => Role::Prim,
            Phase::Second { .. } | Phase::Handed { .. } => Role::Second,
        }
    }

    fn readiness(&self) -> Readiness {
        match &self.phase {
            Phase::Stopped => Readiness::Ready,
            Phase::Wait { .. } | Phase::Broken { .. } => Readiness::NotReady,
            Phase::Lost { .. }
            | Phase::Frozen { .. }
            | Phase::Handover { .. }
            | Phase::Handed { .. }
            | Phase::Leaving { .. } => Readiness::Transient,
            Phase::Second { ready: false, .. } => Readiness::Transient,
            Phase::Second { ready: true, .. } => Readiness::Ready,
            Phase::Prim { .. } | Phase::Alone { .. } => self.serving_readiness(),
        }
    }

    fn serving_readiness(&self) -> Readiness {
        let vip_missing = self.config.has_vips && !self.vip_held;
        if !self.healthy
            || self.services == ServiceState::Failed
            || self.vip_conflict
            || self.held_by_checker
            || !self.tree_ok()
        {
            Readiness::NotReady
        } else if self.services != ServiceState::Running || vip_missing {
            Readiness::Transient
        } else {
            Readiness::Ready
        }
    }

    fn data_state(&self) -> DataState {
        let serves = matches!(
            self.phase,
            Phase::Prim { .. } | Phase::Alone { .. } | Phase::Handover { .. } | Phase::Frozen { .. }
        );
        let standby = matches!(self.phase, Phase::Second { ready: true, .. } | Phase::Handed { .. });
        if !self.d.initialised() {
            DataState::New
        } else if self.d.inconsistent.is_some() {
            DataState::Inconsistent
        } else if serves || standby {
            DataState::UpToDate
        } else if matches!(self.phase, Phase::Wait { why: Why::PeerAlone, .. }) {
            DataState::Outdated
        } else if self.d.behind {
            DataState::Behind
        } else if self.d.alone || self.intact() {
            DataState::Consistent
        } else {
            DataState::Crashed
        }
    }

    fn reasons(&self, now: Mono) -> Vec<Reason> {
        let mut all = Vec::new();
        let mut say = |code: &str, text: String| all.push(Reason { code: code.to_owned(), text });
        match self.tree {
            TreeState::Ok { .. } => {}
            TreeState::Unknown => say("SKC-R0101", "the directory has not been looked at yet".into()),
            TreeState::Missing => say("SKC-R0102", "the directory is missing".into()),
            TreeState::Replaced => {
                say("SKC-R0103", "another directory or file system is at the path than before".into());
            }
            TreeState::EmptyWhereNotEmpty => {
                say("SKC-R0104", "the directory is empty although it was not: is its volume mounted?".into());
            }
            TreeState::DiskError => say("SKC-R0105", "the disk returns errors".into()),
            TreeState::DiskHangs => say("SKC-R0105", "the disk does not answer".into()),
            TreeState::Unmounted => {
                say("SKC-R0106", "somebody took the mirror's mount away; it is mounted again".into());
            }
        }
        if self.decided.is_some() {
            say("SKC-R0307", "going on alone as soon as what only memory held is durable".into());
        }
        match &self.phase {
            Phase::Broken { .. } => {
                say("SKC-R0201", "the fencing record cannot be written; tried again every 5 s".into());
            }
            Phase::Wait { why, .. } => say(why_code(*why), why_text(*why).to_owned()),
            Phase::Lost { lost: None, .. } => say(
                "SKC-R0301",
                "the session to the primary is lost, its heartbeats are not: reconnecting".into(),
            ),
            Phase::Lost { lost: Some(_), .. } if !self.decides() => {
                say("SKC-R0302", "the primary is silent; failover is manual or paused, or the level leaves it to the operator".into());
            }
            Phase::Lost { lost: Some(_), .. } => {
                say("SKC-R0303", "the primary is silent; probing before promotion".into());
            }
            Phase::Frozen { lost: None, .. } => {
                say(
                    "SKC-R0304",
                    "the session to the standby is lost: writes wait while it reconnects".into(),
                );
            }
            Phase::Frozen { lost: Some(_), .. } => {
                say("SKC-R0305", "the standby is silent: writes wait until this node may go on alone".into());
            }
            Phase::Second { ready: false, .. } => say("SKC-R0306", "being resynced".into()),
            Phase::Alone { .. } if self.session().is_some() => {
                say("SKC-R0308", "the standby is being resynced".into());
            }
            Phase::Alone { .. } => say("SKC-R0309", "no standby".into()),
            Phase::Handover { .. } | Phase::Handed { .. } => say("SKC-R0310", "handing over".into()),
            Phase::Leaving { .. } => say("SKC-R0311", "stopping; telling the peer".into()),
            Phase::Prim { standby: false, .. } => say("SKC-R0312", "the standby is settling".into()),
            Phase::Stopped | Phase::Prim { .. } | Phase::Second { .. } => {}
        }
        if let Some(Shake::Idle(kind)) = self.link.as_ref().map(|l| &l.shake)
            && let Some((code, text)) = idle_reason(kind)
        {
            say(code, text.to_owned());
        }
        if let Some(Shake::Disagree { .. }) = self.link.as_ref().map(|l| &l.shake) {
            say(
                "SKC-R0407",
                "the two agents judge the same facts differently: are their versions equal?".into(),
            );
        }
        if self.probing.no_witness {
            say("SKC-R0501", "the ping witness cannot be reached from here".into());
        }
        if self.replaced {
            say("SKC-R0502", "this node stalled or was cut off long enough to have been replaced: it waits for a handshake".into());
        }
        if self.restart_limit_hit {
            say("SKC-R0503", "the restart limit was reached".into());
        }
        if self.vip_conflict {
            say("SKC-R0504", "another machine answers for a virtual address".into());
        }
        if self.services == ServiceState::Failed {
            say("SKC-R0505", "a service failed".into());
        }
        if !self.healthy {
            say("SKC-R0506", "a checker is down".into());
        }
        if self.d.stopped && self.phase == Phase::Stopped && !self.restart_limit_hit {
            say("SKC-R0507", "stopped by the operator".into());
        }
        if self.link.is_none() && self.started() && !self.in_touch(now) {
            say("SKC-R0508", "nothing is heard of the peer".into());
        }
        all
    }

    /// The one command, where nothing moves without the operator.
    fn command(&self) -> Option<String> {
        let peer_name = format!("{:?}", self.me.peer());
        let me_name = format!("{:?}", self.me);
        if self.phase == Phase::Stopped {
            return Some("start".into());
        }
        if let Some(Shake::Idle(kind)) = self.link.as_ref().map(|l| &l.shake) {
            match kind {
                VerdictKind::AskSource | VerdictKind::SplitBrain { .. } => {
                    return Some("adopt --source NODE".into());
                }
                VerdictKind::BothInconsistent | VerdictKind::Unrelated => {
                    return Some("adopt --source NODE --force".into());
                }
                VerdictKind::NotStarted if !self.serves_now() => {
                    return Some(format!("start (on node {peer_name})"));
                }
                _ => {}
            }
        }
        match (&self.phase, self.tree) {
            (_, TreeState::Replaced | TreeState::EmptyWhereNotEmpty) => {
                Some("adopt --source NODE --force (or mount the volume)".into())
            }
            (Phase::Wait { .. }, _) if !self.d.initialised() || self.d.inconsistent.is_some() => {
                Some(format!("adopt --source {me_name} --force (if node {peer_name} never comes back)"))
            }
            (Phase::Wait { .. }, _) => {
                Some(format!("promote --force (if node {peer_name} never comes back)"))
            }
            (Phase::Lost { .. }, _) if !self.decides() => Some("promote".into()),
            _ => None,
        }
    }

    fn serves_now(&self) -> bool {
        matches!(self.phase, Phase::Alone { .. } | Phase::Prim { .. })
    }

    fn outlook(&self) -> FailoverOutlook {
        let no = |why: &str| FailoverOutlook { yes: false, why: why.to_owned() };
        let ready =
            matches!(self.phase, Phase::Prim { standby: true, .. } | Phase::Second { ready: true, .. });
        if self.config.level == Level::L0 {
            no("level L0: the operator decides")
        } else if self.config.mode == Mode::Manual {
            no("failover.mode is manual")
        } else if self.paused {
            no("failover is paused")
        } else if !ready {
            no("there is no UpToDate standby")
        } else {
            FailoverOutlook { yes: true, why: "the standby is UpToDate and intact".into() }
        }
    }
}

fn why_code(why: Why) -> &'static str {
    match why {
        Why::Peer => "SKC-R0202",
        Why::Frozen => "SKC-R0203",
        Why::PeerAlone => "SKC-R0204",
        Why::Behind => "SKC-R0205",
        Why::Resync => "SKC-R0206",
        Why::Ejected => "SKC-R0207",
        Why::DiskSync => "SKC-R0208",
        Why::Tree => "SKC-R0209",
        Why::SplitBrain => "SKC-R0210",
    }
}

fn why_text(why: Why) -> &'static str {
    match why {
        Why::Peer => "waiting for the peer",
        Why::Frozen => {
            "the session was lost, and this node was not allowed to go on alone within the freeze deadline"
        }
        Why::PeerAlone => "the peer goes on; waiting to be resynced from it",
        Why::Behind => "the peer may have acknowledged alone since the cut: not promoted without it",
        Why::Resync => "a resync broke off; it starts again when the source is back",
        Why::Ejected => "this node could not follow the primary; it asks again by itself",
        Why::DiskSync => {
            "a sync of the local disk failed: this copy is compared in full before it counts again"
        }
        Why::Tree => "the local directory is not usable",
        Why::SplitBrain => {
            "both nodes acknowledged alone; the other one keeps serving until the operator names the source"
        }
    }
}

fn idle_reason(kind: &VerdictKind) -> Option<(&'static str, &'static str)> {
    Some(match kind {
        VerdictKind::AskSource => {
            ("SKC-R0401", "both directories are new to each other and not both empty: name the source")
        }
        VerdictKind::SplitBrain { .. } => {
            ("SKC-R0402", "both nodes hold acknowledged data the other has not: name the source")
        }
        VerdictKind::BothInconsistent => ("SKC-R0403", "neither copy is complete: name the source"),
        VerdictKind::Unrelated => {
            ("SKC-R0404", "the two copies have no known common ancestor: name the source")
        }
        VerdictKind::NotStarted => ("SKC-R0405", "the cluster is not started on both nodes"),
        VerdictKind::NoTree => ("SKC-R0406", "a directory is not usable on one of the nodes"),
        VerdictKind::Sync { .. } => return None,
    })
}

fn counter_example(level: Level, witness: bool) -> &'static str {
    match (level, witness) {
        (Level::L0, _) => "none: a failure of the primary waits for the operator",
        (Level::L1, true) => {
            "the links between the nodes are cut while both reach the witness: both go on; one side's writes end in quarantine"
        }
        (Level::L2, true) => {
            "all networks between the nodes are cut while both reach the witness, or one cut and a paused machine: both go on; one side's writes end in quarantine"
        }
        (Level::L1 | Level::L2, false) => {
            "no ping witness: a cut of everything between the nodes lets both go on; one side's writes end in quarantine"
        }
    }
}
