//! What happens to a machine from outside: its power and its agent go away and come back.

use super::{Core, Tree, World, ix};
use skc::base::NodeId;
use skc::engine::{Cluster, Input, TreeState};

impl World {
    // ---- faults and returns ----

    pub(super) fn start_worker(&mut self, n: NodeId) {
        let (now, config) = (self.now, self.config[ix(n)].clone());
        let node = self.node_mut(n);
        node.lives += 1;
        let boot = u128::from(node.boots) * 2 + ix(n) as u128 + 10;
        let seed = (u128::from(node.lives) << 8) | ix(n) as u128;
        let core = Cluster::new(n, boot, seed, config, node.disk.clone(), now);
        node.core = Some(Core::new(core));
        node.tombstone = None;
        let empty = node.cache == 0 && node.disk.is_none();
        self.input(n, Input::LocalTree(TreeState::Ok { empty, stamp_ok: true }));
    }

    pub(super) fn agent_dies(&mut self, n: NodeId) {
        if self.conn.up[ix(n)] {
            self.drop_link(n);
        }
        self.node_mut(n).forget_worker();
        self.sever_streams();
    }

    pub(super) fn power(&mut self, n: NodeId, kept: Tree) {
        self.agent_dies(n);
        let holder = ix(n);
        let node = self.node_mut(n);
        let (cache, durable) = (node.cache, node.durable);
        let after = (durable & !(cache ^ durable)) | ((cache ^ durable) & kept);
        node.cache = after;
        node.durable = after;
        node.powered = false;
        node.tombstone = None;
        for (w, promise) in self.promises.iter_mut().enumerate() {
            if cache & (1 << w) != 0 {
                promise.cut[holder] = true;
                promise.lost[holder] |= durable & (1 << w) == 0;
            }
        }
    }
}
