//! The fixed shape of a lab: four nodes, two networks, their names and addresses.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// A machine of the lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Node {
    /// First machine of the pair.
    NodeA,
    /// Second machine of the pair.
    NodeB,
    /// Where the application's clients run.
    Client,
    /// The router: answers ping, owns no data.
    Witness,
}

impl Node {
    /// Every node, in boot order.
    pub const ALL: [Self; 4] = [Self::Witness, Self::Client, Self::NodeA, Self::NodeB];
    /// The pair.
    pub const PAIR: [Self; 2] = [Self::NodeA, Self::NodeB];

    /// The name used on the command line and as host name.
    pub fn name(self) -> &'static str {
        match self {
            Self::NodeA => "node-a",
            Self::NodeB => "node-b",
            Self::Client => "client",
            Self::Witness => "witness",
        }
    }

    /// Last octet of its addresses.
    pub fn host(self) -> u8 {
        match self {
            Self::NodeA => 1,
            Self::NodeB => 2,
            Self::Client => 9,
            Self::Witness => 254,
        }
    }

    /// Networks it is connected to.
    pub fn nets(self) -> &'static [u8] {
        match self {
            Self::NodeA | Self::NodeB => &[1, 2],
            Self::Client | Self::Witness => &[1],
        }
    }

    /// Does an agent run here?
    pub fn is_pair(self) -> bool {
        Self::PAIR.contains(&self)
    }

    /// The other machine of the pair.
    pub fn peer(self) -> Option<Self> {
        match self {
            Self::NodeA => Some(Self::NodeB),
            Self::NodeB => Some(Self::NodeA),
            Self::Client | Self::Witness => None,
        }
    }

    /// Its address on network `net`. Every lab uses the same ones: labs never see each other.
    pub fn address(self, net: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, net, self.host())
    }

    /// Its port at the switch.
    pub fn port(self, net: u8) -> String {
        format!("{}-{net}", self.name())
    }

    /// Its hardware address: the same after a reboot, as on a real machine.
    pub fn mac(self, net: u8) -> String {
        format!("02:77:00:00:{net:02x}:{:02x}", self.host())
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Node {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|node| node.name() == text)
            .ok_or_else(|| format!("no node {text:?}: there are node-a, node-b, client and witness"))
    }
}

/// What `cut` and `heal` act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// First network between the pair.
    Net1,
    /// Second network between the pair.
    Net2,
    /// Both networks between the pair.
    All,
    /// The way between the pair and the witness.
    Witness,
}

impl Link {
    /// Networks that it means.
    pub fn nets(self) -> &'static [u8] {
        match self {
            Self::Net1 | Self::Witness => &[1],
            Self::Net2 => &[2],
            Self::All => &[1, 2],
        }
    }
}

impl FromStr for Link {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "net1" => Ok(Self::Net1),
            "net2" => Ok(Self::Net2),
            "all" => Ok(Self::All),
            "witness" => Ok(Self::Witness),
            other => Err(format!("no link {other:?}: there are net1, net2, all and witness")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_fit_an_interface_name() {
        for node in Node::ALL {
            assert_eq!(node.name().parse::<Node>(), Ok(node));
            assert!(node.port(2).len() <= 15, "IFNAMSIZ is 16 with the final NUL");
        }
        assert!("node-c".parse::<Node>().is_err());
        assert!("net3".parse::<Link>().is_err());
    }
}
