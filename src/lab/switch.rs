//! The switch: a network namespace with one bridge a network, and the cables to the nodes.

use super::error::Result;
use super::process::ip;
use super::topology::Node;
use super::{Lab, SWITCH};
use std::path::Path;

impl Lab {
    /// Makes the switch namespace with its bridges.
    pub(super) fn make_switch(&self) -> Result<()> {
        let name = self.netns(SWITCH);
        ip(None, &[format!("netns add {name}")])?;
        let mut lines = vec!["link set lo up".to_owned()];
        for net in [1, 2] {
            lines.push(format!("link add br{net} type bridge stp_state 0 forward_delay 0 mcast_snooping 0"));
            lines.push(format!("link set br{net} up"));
        }
        ip(Some(&name), &lines)
    }

    /// Makes a node's network namespace and plugs it into the switch.
    pub(super) fn plug(&self, node: Node) -> Result<()> {
        let (switch, own) = (self.netns(SWITCH), self.netns(node.name()));
        let mut outside = vec![format!("netns add {own}")];
        let mut at_switch = Vec::new();
        let mut inside = vec!["link set lo up".to_owned()];
        for net in node.nets().iter().copied() {
            let (port, eth) = (node.port(net), net - 1);
            outside.push(format!("link add {port} netns {switch} type veth peer name eth{eth} netns {own}"));
            at_switch.push(format!("link set {port} master br{net} up"));
            inside.push(format!("link set eth{eth} address {} up", node.mac(net)));
            inside.push(format!("addr add {}/24 dev eth{eth}", node.address(net)));
        }
        if let (Node::NodeA | Node::NodeB, router) = (node, Node::Witness.address(1)) {
            inside.push(format!("route add default via {router}"));
        }
        ip(None, &outside)?;
        ip(Some(&switch), &at_switch)?;
        ip(Some(&own), &inside)
    }

    /// Takes a node's ports down: from the return on no frame of it passes the switch.
    pub(super) fn silence(&self, node: Node) -> Result<()> {
        let lines: Vec<_> =
            node.nets().iter().map(|net| format!("link set {} down", node.port(*net))).collect();
        ip(Some(&self.netns(SWITCH)), &lines)
    }

    /// Removes the cables and the network namespace of a node, as far as they exist.
    pub(super) fn unplug(&self, node: Node) -> Result<()> {
        let switch = self.netns(SWITCH);
        if self.netns_path(SWITCH).exists() {
            for port in node.nets().iter().map(|net| node.port(*net)) {
                // The port is gone already if the namespace at its other end was.
                if let Err(error) = ip(Some(&switch), &[format!("link del {port}")]) {
                    tracing::debug!(port, %error, "no port to remove");
                }
            }
        }
        self.delete_netns(node.name())
    }

    /// Removes a named network namespace if it exists.
    pub(super) fn delete_netns(&self, role: &str) -> Result<()> {
        if !self.netns_path(role).exists() {
            return Ok(());
        }
        ip(None, &[format!("netns del {}", self.netns(role))])
    }

    /// Bytes that passed the port of `node` on `net`, from and to the node, since it booted.
    pub fn port_bytes(&self, node: Node, net: u8) -> Option<(u64, u64)> {
        let output = std::process::Command::new("ip")
            .args(["-n", &self.netns(SWITCH), "-s", "-j", "link", "show", "dev", &node.port(net)])
            .output()
            .ok()?;
        let value: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
        let stats = value.get(0)?.get("stats64")?;
        let bytes = |way: &str| stats.get(way)?.get("bytes")?.as_u64();
        Some((bytes("rx")?, bytes("tx")?))
    }
}

/// Where `ip netns` keeps its names.
pub(super) fn netns_dir() -> &'static Path {
    Path::new("/run/netns")
}
