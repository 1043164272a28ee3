//! The network between the two machines: its faults, and the control link that runs over it.

use super::{BOTH, World, ix};
use skc::base::NodeId;
use skc::engine::{Input, LinkId, PeerMessage};
use std::collections::VecDeque;

/// The control link.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Conn {
    pub id: u64,
    pub up: [bool; 2],
    pub broken: bool,
    pub to: [VecDeque<PeerMessage>; 2],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Net {
    Ok,
    /// Links and heartbeats between the nodes are cut; probes and witness still pass.
    Cut,
    /// One node reaches nothing.
    Isolated(NodeId),
    /// Heartbeats from this node are lost; the rest passes.
    OneWay(NodeId),
}

impl World {
    pub(super) fn linked(&self) -> bool {
        matches!(self.net, Net::Ok | Net::OneWay(_))
    }

    /// Does the kernel of `n` answer the other node's probes?
    pub(super) fn answers(&self, n: NodeId) -> bool {
        self.node(n).powered && !matches!(self.net, Net::Isolated(_))
    }

    pub(super) fn connect(&mut self) {
        let id = self.conn.id + 1;
        self.conn = Conn { id, up: [true, true], broken: false, to: Default::default() };
        for n in BOTH {
            self.node_mut(n).inbox.push_back(Input::LinkUp { link: LinkId(id) });
        }
    }

    pub(super) fn drop_link(&mut self, n: NodeId) {
        self.conn.up[ix(n)] = false;
        self.conn.broken = true;
        self.conn.to[ix(n)].clear();
        if self.conn.up == [false, false] {
            self.conn = Conn::default();
        }
    }

    pub(super) fn sever_streams(&mut self) {
        for node in &mut self.nodes {
            if let Some(stream) = &mut node.stream {
                stream.severed = true;
            }
        }
    }

    pub(super) fn sever(&mut self, net: Net) {
        self.net = net;
        self.conn.broken = self.conn.up != [false, false];
        self.sever_streams();
    }
}
