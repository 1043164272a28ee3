//! The actions of the world, and which of them may happen next in a state.

use super::{BOTH, JITTER, Net, Node, SYNC_STEPS, Stream, Tree, World, ix};
use skc::base::{Epoch, NodeId};
use skc::engine::{Effect, StreamRole};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    Exec(NodeId),
    Feed(NodeId),
    Deliver(NodeId),
    LinkNotice(NodeId),
    Connect,
    Apply(NodeId),
    AckIn(NodeId),
    Fill(NodeId),
    SyncDone(NodeId),
    DrainDone(NodeId),
    ProbeSeen(NodeId),
    Advance(NodeId),
    Write(NodeId),
    Cut,
    Isolate(NodeId),
    OneWay(NodeId),
    Heal,
    /// The mask says which unsynced writes happened to reach the disk.
    Power(NodeId, Tree),
    PowerOn(NodeId),
    AgentDies(NodeId),
    AgentStarts(NodeId),
    Tombstone(NodeId),
    Swap,
    Stop(NodeId),
    Reboot(NodeId),
    Start(NodeId),
    /// The end of an orderly reboot: everything was flushed.
    CameBack(NodeId),
    ApplyError(NodeId),
    PersistError(NodeId),
    /// The disk does not answer any more; the agent has noticed.
    DiskSick(NodeId),
    DiskWell(NodeId),
}

// ---- what can happen ----

impl World {
    /// Everything that may happen next. Effects and local reports of a node go first: they commute
    /// with what the other node does, only faults of the same node make a difference in between.
    pub fn actions(&self, out: &mut Vec<Action>) {
        let busy: Vec<NodeId> = BOTH.into_iter().filter(|n| self.node(*n).busy()).collect();
        for n in &busy {
            let exec = !self.node(*n).queue.is_empty();
            out.push(if exec { Action::Exec(*n) } else { Action::Feed(*n) });
            if exec {
                self.faults_of(*n, out);
            }
        }
        if !busy.is_empty() {
            return;
        }
        // A handshake without data streams: what the two nodes read next commutes, whatever follows.
        if self.net == Net::Ok && !self.conn.broken && self.nodes.iter().all(Node::no_data) {
            let reads = |n: &NodeId| self.conn.up[ix(*n)] && !self.conn.to[ix(*n)].is_empty();
            if let Some(n) = BOTH.into_iter().find(reads) {
                out.push(Action::Deliver(n));
                self.local(n, out);
                self.faults_of(n, out);
                return;
            }
        }
        let before = out.len();
        self.network(out);
        let pressing = out.len() > before && self.net == Net::Ok;
        for n in BOTH {
            self.local(n, out);
            self.faults_of(n, out);
            self.commands(n, out);
        }
        if self.net == Net::Ok {
            if self.budget.cuts > 0 {
                out.push(Action::Cut);
            }
            for n in BOTH {
                if self.budget.isolations[ix(n)] > 0 {
                    out.push(Action::Isolate(n));
                }
                if self.budget.one_way[ix(n)] > 0 {
                    out.push(Action::OneWay(n));
                }
            }
        } else {
            out.push(Action::Heal);
        }
        if !pressing {
            self.time(out);
        }
    }

    /// Things that happen by themselves within moments while the network works.
    fn network(&self, out: &mut Vec<Action>) {
        for n in BOTH {
            if self.conn.up[ix(n)] && !self.conn.to[ix(n)].is_empty() {
                out.push(Action::Deliver(n));
            }
            if self.conn.up[ix(n)] && self.conn.broken {
                out.push(Action::LinkNotice(n));
            }
            if self.can_apply(n) {
                out.push(Action::Apply(n));
            }
            let node = self.node(n);
            let source = node.stream.as_ref().is_some_and(|s| s.role == StreamRole::Source);
            if source && !node.acks.is_empty() {
                out.push(Action::AckIn(n));
            }
            let feeds = node.stream.as_ref().is_some_and(|s| s.fill_due && self.reaches_target(n, s.epoch));
            if feeds {
                out.push(Action::Fill(n));
            }
        }
        let alive = self.nodes.iter().all(|n| n.core.is_some());
        if alive && self.linked() && self.conn.up != [true, true] {
            out.push(Action::Connect);
        }
    }

    fn reaches_target(&self, n: NodeId, epoch: Epoch) -> bool {
        let open = |s: &Stream| s.role == StreamRole::Target && s.epoch == epoch && !s.severed;
        self.linked() && self.node(n.peer()).stream.as_ref().is_some_and(open)
    }

    fn local(&self, n: NodeId, out: &mut Vec<Action>) {
        let node = self.node(n);
        if !node.powered {
            out.push(Action::PowerOn(n));
            return;
        }
        if node.core.is_none() {
            out.push(Action::AgentStarts(n));
            let claims = self.budget.tombstones > 0 && node.tombstone.is_some();
            if claims && self.linked() && self.node(n.peer()).core.is_some() {
                out.push(Action::Tombstone(n));
            }
            return;
        }
        if node.sick {
            out.push(Action::DiskWell(n));
        } else if !node.syncs.is_empty() {
            out.push(Action::SyncDone(n));
        }
        if node.drain.is_some() && node.parked.is_empty() {
            out.push(Action::DrainDone(n));
        }
        if node.probe.is_some_and(|(_, _, seen)| seen) {
            out.push(Action::ProbeSeen(n));
        }
        if node.writes_pass() && self.budget.writes > 0 {
            out.push(Action::Write(n));
        }
    }

    fn faults_of(&self, n: NodeId, out: &mut Vec<Action>) {
        let node = self.node(n);
        if node.powered && self.budget.power[ix(n)] > 0 {
            let open = node.cache ^ node.durable;
            let mut kept = open;
            loop {
                out.push(Action::Power(n, kept));
                if kept == 0 {
                    break;
                }
                kept = (kept - 1) & open;
            }
        }
        if node.core.is_some() && self.budget.agent[ix(n)] > 0 {
            out.push(Action::AgentDies(n));
        }
        if node.core.is_some() && self.budget.sick[ix(n)] > 0 && !node.sick {
            out.push(Action::DiskSick(n));
        }
        if self.budget.persist_errors > 0 && matches!(node.queue.front(), Some(Effect::Persist(_))) {
            out.push(Action::PersistError(n));
        }
        let target = node.stream.as_ref().is_some_and(|s| s.role == StreamRole::Target);
        if self.budget.apply_errors > 0 && target && node.queue.is_empty() && node.core.is_some() {
            out.push(Action::ApplyError(n));
        }
    }

    fn commands(&self, n: NodeId, out: &mut Vec<Action>) {
        let Some(core) = &self.node(n).core else { return };
        let view = core.view(self.now);
        if self.budget.swaps > 0 && view.standby_ready {
            out.push(Action::Swap);
        }
        let runs = view.role != skc::engine::Role::Stop;
        if runs && self.budget.stops[ix(n)] > 0 {
            out.push(Action::Stop(n));
        }
        if runs && self.budget.reboots[ix(n)] > 0 {
            out.push(Action::Reboot(n));
        }
        // While it still tells its peer, a start is refused: nothing new happens by asking.
        let leaving = view.reasons.iter().any(|reason| reason.code == "SKC-R0311");
        if !runs && !leaving {
            if core.record().stopped {
                out.push(Action::Start(n));
            } else if self.node(n).syncs.is_empty() {
                out.push(Action::CameBack(n));
            }
        }
    }

    fn time(&self, out: &mut Vec<Action>) {
        if self.nodes.iter().any(|n| n.sync_age >= SYNC_STEPS && !n.sick) {
            return;
        }
        let due = [self.deadline(NodeId::A), self.deadline(NodeId::B)];
        for n in BOTH {
            let Some(mine) = due[ix(n)] else { continue };
            let other = due[ix(n.peer())].map(|at| at.max(self.now) + JITTER);
            if other.is_none_or(|other| mine <= other) {
                out.push(Action::Advance(n));
            }
        }
    }
}
