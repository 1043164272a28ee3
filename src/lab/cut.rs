//! Cuts: which frames the switch drops, and how they are put in force and healed.

use super::error::{Context, LabError, Result};
use super::forward::bridge_port;
use super::nft;
use super::state::{Cut, State};
use super::topology::{Link, Node};
use super::{Lab, SWITCH};

/// Expands what a person asks for into directions.
///
/// Without `from` and `to` a network is cut between the two nodes of the pair, both ways (client
/// and witness stay reachable); `Link::Witness` is cut between the pair and the witness. With one
/// or both given: exactly the frames from `from` to `to`, one direction, `None` = everyone.
/// For `Link::Witness`, `from` names the node whose way to the witness is cut, both ways.
pub fn directions(link: Link, from: Option<Node>, to: Option<Node>) -> Vec<Cut> {
    let mut cuts = Vec::new();
    for net in link.nets().iter().copied() {
        let mut add = |from, to| cuts.push(Cut { net, from, to });
        match (link, from, to) {
            (Link::Witness, Some(node), None) | (Link::Witness, None, Some(node)) => {
                add(Some(node), Some(Node::Witness));
                add(Some(Node::Witness), Some(node));
            }
            (Link::Witness, None, None) => {
                for node in Node::PAIR {
                    add(Some(node), Some(Node::Witness));
                    add(Some(Node::Witness), Some(node));
                }
            }
            (_, None, None) => {
                add(Some(Node::NodeA), Some(Node::NodeB));
                add(Some(Node::NodeB), Some(Node::NodeA));
            }
            (_, from, to) => add(from, to),
        }
    }
    cuts
}

impl Lab {
    /// Drops frames from now on (adds to what is cut already).
    pub fn cut(&self, link: Link, from: Option<Node>, to: Option<Node>) -> Result<()> {
        self.change_cuts(|cuts| {
            cuts.extend(directions(link, from, to));
            cuts.sort_unstable();
            cuts.dedup();
        })
    }

    /// Takes cuts back: those that `cut` with the same arguments made, or all.
    pub fn heal(&self, link: Option<Link>, from: Option<Node>, to: Option<Node>) -> Result<()> {
        self.change_cuts(|cuts| match link {
            None => cuts.clear(),
            Some(link) => {
                let healed = directions(link, from, to);
                let all_of_net = from.is_none() && to.is_none() && link != Link::Witness;
                cuts.retain(|cut| {
                    let of_net = all_of_net && link.nets().contains(&cut.net) && !touches_witness(cut);
                    !of_net && !healed.contains(cut)
                });
            }
        })
    }

    fn change_cuts(&self, change: impl FnOnce(&mut Vec<Cut>)) -> Result<()> {
        let _lock = self.lock()?;
        let mut state = self.state()?;
        change(&mut state.cuts);
        self.apply_cuts(&state)?;
        state.save(self.dir())
    }

    fn apply_cuts(&self, state: &State) -> Result<()> {
        // A shaped link puts another port in the place of the node's own (see `forward`): both names count.
        let ports = |node: Option<Node>, net| match node.map(|node| node.port(net)) {
            None => vec![None],
            Some(port) => vec![Some(bridge_port(&port)), Some(port)],
        };
        let mut drops = Vec::new();
        for cut in &state.cuts {
            let on_net = |node: Option<Node>| node.is_none_or(|node| node.nets().contains(&cut.net));
            if !on_net(cut.from) || !on_net(cut.to) {
                continue;
            }
            if cut.from.is_none() && cut.to.is_none() {
                return Err(LabError::Refused("a cut needs a sender or a receiver".into()));
            }
            for from in ports(cut.from, cut.net) {
                for to in ports(cut.to, cut.net) {
                    drops.push(nft::Drop { from: from.clone(), to });
                }
            }
        }
        let netns = self.netns_path(SWITCH);
        match nft::replace(&netns, &drops) {
            Err(error) if drops.is_empty() && unsupported(&error) => Ok(()),
            Err(error) if unsupported(&error) => Err(LabError::Missing {
                what: format!("nf_tables for bridges ({error})"),
                hint: "load it (`modprobe nft_meta_bridge nf_tables`) or use a kernel with CONFIG_NF_TABLES_BRIDGE",
            }),
            other => other.context("install drop rules in", netns),
        }
    }
}

fn touches_witness(cut: &Cut) -> bool {
    cut.from == Some(Node::Witness) || cut.to == Some(Node::Witness)
}

fn unsupported(error: &std::io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EPROTONOSUPPORT | libc::EOPNOTSUPP | libc::EAFNOSUPPORT | libc::ENOENT)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_cut_separates_the_pair_only() {
        let cuts = directions(Link::All, None, None);
        assert_eq!(cuts.len(), 4);
        assert!(cuts.iter().all(|c| c.from.unwrap().peer() == c.to));
    }

    #[test]
    fn a_direction_is_one_direction() {
        let cuts = directions(Link::Net1, Some(Node::NodeA), Some(Node::NodeB));
        assert_eq!(cuts, [Cut { net: 1, from: Some(Node::NodeA), to: Some(Node::NodeB) }]);
    }

    #[test]
    fn the_way_to_the_witness_is_cut_both_ways_for_one_node() {
        let cuts = directions(Link::Witness, Some(Node::NodeA), None);
        assert_eq!(cuts.len(), 2);
        assert!(cuts.iter().all(touches_witness));
    }
}
