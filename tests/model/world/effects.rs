//! The step of a decision core: an input goes in, and each effect that comes out is executed on the world.

use super::{Frame, World, ix};
use skc::base::{NodeId, OpSeq};
use skc::engine::{Effect, Input, ServiceState, StreamFacts, StreamRole};

impl World {
    // ---- the core's side ----

    pub(super) fn input(&mut self, n: NodeId, input: Input) {
        let now = self.now;
        if let Some(core) = &mut self.node_mut(n).core {
            let effects = core.change(|core| core.step(now, input));
            self.node_mut(n).queue.extend(effects);
        }
        self.run_invisible(n);
        self.check_lone_claims();
    }

    /// Effects that no other part of the world can observe in between are executed at once.
    pub(super) fn run_invisible(&mut self, n: NodeId) {
        while let Some(effect) = self.node(n).queue.front() {
            match effect {
                Effect::Event(_)
                | Effect::OperatorDone { .. }
                | Effect::InvalidateCaches
                | Effect::AcceptTree
                | Effect::SetTombstone(_)
                | Effect::AddVips
                | Effect::DropVips
                | Effect::StartServices
                | Effect::StopServices => {
                    if let Some(effect) = self.node_mut(n).queue.pop_front() {
                        self.execute(n, effect);
                    }
                }
                _ => return,
            }
        }
    }

    pub(super) fn execute(&mut self, n: NodeId, effect: Effect) {
        let peer = n.peer();
        let linked = self.linked();
        match effect {
            Effect::Persist(record) => self.node_mut(n).disk = Some(*record),
            Effect::Send(message) => {
                if self.conn.up[ix(n)] && !self.conn.broken && linked {
                    self.conn.to[ix(peer)].push_back(*message);
                }
            }
            Effect::CloseLink(id) => {
                if self.conn.up[ix(n)] && self.conn.id == id.0 {
                    self.drop_link(n);
                }
            }
            Effect::Gate(gate) => self.set_gate(n, gate),
            Effect::OpenStream { role, epoch, plan } => self.open_stream(n, role, epoch, plan),
            Effect::CloseStream { token } => {
                let keep = self.sabotage.queue_survives_close;
                let node = self.node_mut(n);
                let facts = StreamFacts {
                    replay_from: Some(OpSeq(node.parked.first().map_or(node.seq + 1, |(seq, _)| *seq))),
                    applied: node.applied.map(OpSeq),
                };
                if !keep || node.stream.as_ref().is_some_and(|s| s.role == StreamRole::Source) {
                    node.stream = None;
                    node.frames.clear();
                }
                node.acks.clear();
                node.drain = None;
                node.inbox.push_back(Input::StreamClosed { token, facts });
            }
            Effect::MarkUpToDate { epoch } => {
                let tree = self.node(n).cache;
                self.send_frame(n, epoch, Frame::Marker { tree });
            }
            Effect::ReleaseMarker { epoch } => {
                let holder = ix(n);
                let tree = self.node(n).cache;
                for (w, promise) in self.promises.iter_mut().enumerate() {
                    if promise.acked && tree & (1 << w) != 0 {
                        promise.holders[holder] = true;
                    }
                }
                if let Some(stream) = &mut self.node_mut(n).stream
                    && stream.epoch == epoch
                {
                    stream.at_marker = false;
                }
            }
            Effect::Syncfs { token } => {
                let node = self.node_mut(n);
                let tree = node.cache;
                node.syncs.push((token, tree));
            }
            Effect::Drain { token } => self.node_mut(n).drain = Some(token),
            Effect::StartProbe { token, window } => {
                let end = self.now + window;
                let seen = self.answers(peer);
                self.node_mut(n).probe = Some((token, end, seen));
            }
            Effect::AddVips => self.node_mut(n).vips = true,
            Effect::DropVips => self.node_mut(n).vips = false,
            Effect::SetTombstone(tombstone) => self.node_mut(n).tombstone = tombstone,
            Effect::StartServices => self.node_mut(n).services = true,
            Effect::StopServices => {
                let node = self.node_mut(n);
                node.services = false;
                node.inbox.push_back(Input::Services(ServiceState::Stopped));
            }
            Effect::InvalidateCaches
            | Effect::Event(_)
            | Effect::OperatorDone { .. }
            | Effect::AcceptTree => {}
        }
    }
}
