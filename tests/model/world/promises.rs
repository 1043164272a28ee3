//! What the two machines have promised by acknowledging a write, and the checks that no promise is broken.

use super::{Node, World, ix};
use skc::base::{Epoch, NodeId};
use skc::engine::Gate;

/// An acknowledged write and who is answerable for it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Promise {
    pub acked: bool,
    /// Nodes that held it when it was acknowledged (or became UpToDate with it).
    pub holders: [bool; 2],
    /// Nodes that lost power since they got it ...
    pub cut: [bool; 2],
    /// ... while it was not durable there (some bytes may have reached the disk by luck).
    pub lost: [bool; 2],
}

impl Promise {
    /// Node `n` holds it (again).
    pub(super) fn got(&mut self, n: NodeId) {
        self.cut[ix(n)] = false;
        self.lost[ix(n)] = false;
    }
}

impl World {
    pub(super) fn acknowledge(&mut self, n: NodeId, epoch: Epoch, write: u8, holders: [bool; 2]) {
        let promise = &mut self.promises[write as usize];
        if promise.acked {
            return;
        }
        promise.acked = true;
        promise.holders = holders;
        let grant = self.node(n).core.as_ref().map_or(0, |c| c.record().grant);
        if let Some((last, last_grant, who)) = self.last_ack
            && who != n
            && (epoch < last || (epoch == last && grant == last_grant))
        {
            self.fail("two nodes acknowledged in one epoch, or an older one after a newer");
        }
        if self.last_ack.is_none_or(|(last, _, _)| epoch >= last) {
            self.last_ack = Some((epoch, grant, n));
        }
        self.check_writer(n);
    }

    /// Every promise that still binds must be in the tree of whoever may write.
    pub(super) fn check_writer(&mut self, n: NodeId) {
        if !self.node(n).writes_pass() {
            return;
        }
        if self.node(n).core.as_ref().is_some_and(|core| core.record().clean || core.record().stopped) {
            self.fail("a writer's record says that it is stopped");
        }
        let tree = self.node(n).cache;
        let broken = self.promises.iter().enumerate().any(|(w, p)| {
            // Every holder lost power, and one of them before it was durable: what a single machine
            // would have lost as well.
            let all_cut = p.holders.iter().zip(p.cut).all(|(held, cut)| !held || cut);
            let excused = all_cut && p.holders.iter().zip(p.lost).any(|(held, lost)| *held && lost);
            p.acked && !excused && tree & (1 << w) == 0
        });
        if broken {
            self.fail("an acknowledged write is not in the writer's tree");
        }
    }

    /// Stronger than "never two acknowledge in one epoch": never two lone claims at once.
    pub(super) fn check_lone_claims(&mut self) {
        let claim = |n: &Node| {
            n.core.as_ref().is_some_and(|c| {
                let open = matches!(n.gate, Gate::Alone { .. });
                c.record().alone && !c.record().behind && c.record().inconsistent.is_none() && open
            })
        };
        if claim(&self.nodes[0]) && claim(&self.nodes[1]) {
            self.fail("both nodes went on alone");
        }
    }

    /// A ready pair with equal trees may forget old writes: room for new ones.
    pub fn forget_writes(&mut self) {
        if self.nodes[0].cache != self.nodes[1].cache {
            self.fail("ready, but the trees differ");
        }
        for node in &mut self.nodes {
            (node.cache, node.durable) = (0, 0);
        }
        self.promises = [Promise::default(); 4];
        self.next_write = 0;
        self.last_ack = None;
    }
}
