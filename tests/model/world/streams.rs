//! The data path: a write from the gate of one machine through the stream into the tree of the other, and
//! its answer back.

use super::{Tree, World};
use skc::base::{Epoch, NodeId};
use skc::engine::{Gate, Input, Plan, StreamRole};

/// What goes through a data stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Frame {
    Write {
        seq: u64,
        write: u8,
    },
    /// The resync as one step: the source's tree at this position.
    Fill {
        seq: u64,
        tree: Tree,
    },
    Marker {
        tree: Tree,
    },
}

/// What comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ack {
    Write { seq: u64 },
    Filled,
}

/// One end of a data stream.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Stream {
    pub role: StreamRole,
    pub epoch: Epoch,
    /// Source: the resync's Fill is still to be sent.
    pub fill_due: bool,
    /// Target: stopped at the marker until released.
    pub at_marker: bool,
    /// The connection is gone: nothing more enters it; what was sent may still arrive.
    pub severed: bool,
}

impl World {
    // ---- the data path ----

    pub(super) fn set_gate(&mut self, n: NodeId, gate: Gate) {
        let node = self.node_mut(n);
        node.gate = gate;
        match gate {
            Gate::Alone { epoch } => {
                let parked = std::mem::take(&mut node.parked);
                for (_, write) in parked {
                    self.acknowledge(n, epoch, write, [n == NodeId::A, n == NodeId::B]);
                }
            }
            Gate::Shut | Gate::ReadOnly => node.parked.clear(),
            Gate::Frozen | Gate::Replicated { .. } => {}
        }
        self.check_writer(n);
    }

    pub(super) fn open_stream(&mut self, n: NodeId, role: StreamRole, epoch: Epoch, plan: Plan) {
        let node = self.node_mut(n);
        let full = matches!(plan, Plan::FullCompare { .. } | Plan::SeedEmpty | Plan::Ranges);
        node.stream = Some(Stream {
            role,
            epoch,
            fill_due: full && role == StreamRole::Source,
            at_marker: false,
            severed: false,
        });
        match role {
            StreamRole::Target => {
                if plan == Plan::Continue {
                    node.applied = Some(node.seq);
                } else if full {
                    node.applied = None;
                }
                node.frames.retain(|(of, _)| *of == epoch);
            }
            StreamRole::Source => {
                node.acks.clear();
                if plan == Plan::Continue {
                    node.seq = node.applied.unwrap_or(node.seq);
                }
                node.applied = None;
                if let Plan::Replay { applied } = plan {
                    for (seq, write) in node.parked.clone() {
                        if seq > applied.0 {
                            self.send_frame(n, epoch, Frame::Write { seq, write });
                        }
                    }
                    // The target had these; only the answers were missing.
                    let had: Vec<_> =
                        self.node(n).parked.iter().copied().filter(|(s, _)| *s <= applied.0).collect();
                    self.node_mut(n).parked.retain(|(s, _)| *s > applied.0);
                    for (_, write) in had {
                        self.acknowledge(n, epoch, write, [true, true]);
                    }
                }
            }
        }
    }

    pub(super) fn send_frame(&mut self, n: NodeId, epoch: Epoch, frame: Frame) {
        let peer = n.peer();
        let open = self.node(n).stream.as_ref().is_some_and(|s| !s.severed);
        if open && self.linked() && self.node(peer).core.is_some() {
            self.node_mut(peer).frames.push_back((epoch, frame));
        }
    }

    pub(super) fn apply(&mut self, n: NodeId) {
        let Some((epoch, frame)) = self.node_mut(n).frames.pop_front() else { return };
        let peer = n.peer();
        let early = self.sabotage.acks_before_release;
        let newest = self.node(n).core.as_ref().map(|c| c.record().epoch);
        if newest.is_some_and(|newest| epoch < newest) {
            self.fail("a standby applied a frame of an older epoch");
        }
        let mut answer = None;
        match frame {
            Frame::Write { seq, write } => {
                self.promises[write as usize].got(n);
                let node = self.node_mut(n);
                node.cache |= 1 << write;
                node.applied = Some(seq);
                answer = Some(Ack::Write { seq });
            }
            Frame::Fill { seq, tree } => {
                for (w, promise) in self.promises.iter_mut().enumerate() {
                    if tree & (1 << w) != 0 {
                        promise.got(n);
                    }
                }
                let node = self.node_mut(n);
                node.cache = tree;
                node.applied = Some(seq);
                answer = Some(Ack::Filled);
            }
            Frame::Marker { tree } => {
                let node = self.node_mut(n);
                let equal = node.cache == tree;
                if let Some(stream) = &mut node.stream {
                    stream.at_marker = !early;
                }
                node.inbox.push_back(Input::MarkerReached { s: epoch.s });
                if !equal {
                    self.fail("trees differ at the end of a resync");
                }
            }
        }
        let open = self.node(n).stream.as_ref().is_some_and(|s| !s.severed);
        if let (Some(ack), true) = (answer, open && self.linked()) {
            self.node_mut(peer).acks.push_back((epoch, ack));
        }
    }

    pub(super) fn can_apply(&self, n: NodeId) -> bool {
        let node = self.node(n);
        match (&node.stream, node.frames.front()) {
            (Some(s), Some((epoch, _))) => {
                let survives = self.sabotage.queue_survives_close;
                s.role == StreamRole::Target && !s.at_marker && (s.epoch == *epoch || survives)
            }
            _ => false,
        }
    }

    pub(super) fn ack_in(&mut self, n: NodeId) {
        let Some((epoch, ack)) = self.node_mut(n).acks.pop_front() else { return };
        match ack {
            Ack::Filled => self.node_mut(n).inbox.push_back(Input::ResyncDone { s: epoch.s }),
            Ack::Write { seq } => {
                let counts = match self.node(n).gate {
                    Gate::Replicated { epoch: gate } => gate == epoch,
                    Gate::Frozen => true,
                    _ => false,
                };
                if counts {
                    let done: Vec<_> =
                        self.node(n).parked.iter().copied().filter(|(s, _)| *s <= seq).collect();
                    self.node_mut(n).parked.retain(|(s, _)| *s > seq);
                    for (_, write) in done {
                        self.acknowledge(n, epoch, write, [true, true]);
                    }
                }
            }
        }
    }

    pub(super) fn write(&mut self, n: NodeId) {
        let write = self.next_write;
        self.next_write += 1;
        self.budget.writes -= 1;
        let node = self.node_mut(n);
        node.seq += 1;
        node.cache |= 1 << write;
        let seq = node.seq;
        let source = node.stream.as_ref().filter(|s| s.role == StreamRole::Source).map(|s| s.epoch);
        let gate = node.gate;
        if let Gate::Replicated { .. } = gate {
            node.parked.push((seq, write));
        }
        if let Some(epoch) = source {
            self.send_frame(n, epoch, Frame::Write { seq, write });
        }
        if let Gate::Alone { epoch } = gate {
            self.acknowledge(n, epoch, write, [n == NodeId::A, n == NodeId::B]);
        }
    }
}
