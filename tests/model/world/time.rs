//! Time: the clock moves from deadline to deadline, heartbeats pass as it moves, and states that differ only
//! in the time of day are made equal.

use super::{BOTH, Net, World};
use skc::base::{Mono, NodeId};
use skc::engine::{Input, LinkId, ProbeResult, WitnessState};

/// How late a deadline may fire (the core's own slack at T = 2 s is 125 ms).
pub const JITTER: u64 = 50;
/// A sync ends before this many deadlines have passed: long enough to be overtaken by every other wait.
pub const SYNC_STEPS: u8 = 2;
/// Where every state's clock is put, so that only differences count.
pub const NOW: Mono = Mono(1_000_000);

impl World {
    // ---- time ----

    /// When this node has something to do without anyone else.
    pub fn deadline(&self, n: NodeId) -> Option<Mono> {
        let node = self.node(n);
        let core = node.core.as_ref()?.next_deadline();
        let probe = node.probe.map(|(_, end, _)| end);
        match (core, probe) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    pub(super) fn advance(&mut self, n: NodeId) {
        let Some(at) = self.deadline(n) else { return };
        self.now = self.now.max(at);
        for node in &mut self.nodes {
            node.sync_age = node.sync_age.saturating_add(u8::from(!node.syncs.is_empty()));
        }
        let now = self.now;
        self.exchange_heartbeats();
        if self.node(n).busy() {
            // The heartbeat's step did everything that was due; its effects come first.
            return;
        }
        if let Some((token, end, seen)) = self.node(n).probe
            && now >= end
        {
            let result = self.probe_result(n, seen);
            self.node_mut(n).probe = None;
            self.input(n, Input::Probe { token, result });
            return;
        }
        self.input(n, Input::Tick);
    }

    pub(super) fn probe_result(&self, n: NodeId, seen: bool) -> ProbeResult {
        let answered = seen || self.answers(n.peer());
        let witness =
            if self.net == Net::Isolated(n) { WitnessState::Unreachable } else { WitnessState::Reachable };
        ProbeResult { vip_answered: answered && self.node(n.peer()).vips, peer_answered: answered, witness }
    }

    /// Heartbeats are frequent against every deadline: both ends are as fresh as the network allows.
    fn exchange_heartbeats(&mut self) {
        let now = self.now;
        for to in BOTH {
            let from = to.peer();
            let passes = match self.net {
                Net::Ok => true,
                Net::OneWay(mute) => from != mute,
                _ => false,
            };
            // Sent a moment ago: what the sender knew before this moment's words arrived.
            let body = self.node(from).core.as_ref().map(|c| c.heartbeat(now));
            if let (true, Some(mut body), true) = (passes, body, self.node(to).core.is_some()) {
                if self.net == Net::Ok {
                    // The stream of heartbeats between two deadlines, summed up in its last.
                    (body.heard_ms, body.sure_ms) = (Some(0), Some(0));
                }
                self.input(to, Input::Heartbeat(body));
            }
        }
    }

    /// Makes states equal that differ in nothing but the time of day.
    pub fn normalise(&mut self) {
        let (now, budget) = (self.now, self.budget);
        for node in &mut self.nodes {
            if let Some(core) = &mut node.core {
                let quiet = node.syncs.is_empty()
                    && node.drain.is_none()
                    && node.probe.is_none()
                    && node.queue.is_empty()
                    && node.inbox.is_empty()
                    && core.tokens_used();
                if now != NOW || quiet || core.can_forget() {
                    core.change(|core| {
                        core.rebase(now, NOW, budget.persist_errors == 0);
                        if quiet {
                            core.restart_tokens();
                        }
                    });
                }
            }
            if let Some((_, end, _)) = &mut node.probe {
                *end = Mono((end.0 + NOW.0).saturating_sub(now.0));
            }
        }
        self.now = NOW;
        let idle = self.nodes.iter().all(|n| !n.busy());
        if idle && self.conn.up == [true, true] && self.conn.id != 1 {
            self.conn.id = 1;
            for node in &mut self.nodes {
                if let Some(core) = &mut node.core {
                    core.change(|core| core.relabel_link(LinkId(1)));
                }
            }
        }
    }
}
