//! The network side of a cluster: virtual IPs with a lease, their announcement, probes that ask "does a
//! kernel still answer there?", and checkers.
//!
//! Tasks run on tokio; every wait has a deadline. The module reports through callbacks and results; it
//! decides nothing. All sockets belong to the network namespace of the thread that opens them, so an
//! agent inside a namespace needs no other setting.
//!
//! | module | does |
//! |---|---|
//! | [`iface`] | interfaces and addresses as the kernel lists them; one netlink connection |
//! | [`vip`] | a virtual IP: add with lease, remove, find its interface |
//! | [`keeper`] | renews the lease under one decision; loses it rather than re-adding late |
//! | [`announce`] | gratuitous ARP and unsolicited advertisements, defence |
//! | [`probe`] | who answers for an address; one bounded round for the failover driver |
//! | [`ping`] | ICMP echo |
//! | [`check`] | tcp, exec and ping checkers |

pub mod announce;
pub mod check;
pub mod iface;
pub mod keeper;
pub mod ping;
pub mod probe;
mod socket;
pub mod vip;

pub use crate::sys::packet::Mac;
pub use keeper::{DecisionToken, Observer, VipEvent, VipHandle, VipKeeper};
pub use probe::{Presence, ProbeResult, Witness, probe_round};
pub use vip::{Lease, Vip};

use crate::base::codes;
use std::net::IpAddr;
use std::time::Duration;

/// Why a network operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused a netlink request.
    #[error("netlink: cannot {action}: {message}")]
    Netlink {
        /// What was asked.
        action: String,
        /// The kernel's answer.
        message: String,
        /// Its error number (positive), 0 if it gave none.
        errno: i32,
    },
    /// The kernel or the network did not answer in time.
    #[error("{action} took longer than {} ms", limit.as_millis())]
    Deadline {
        /// What was asked.
        action: String,
        /// How long it was waited for.
        limit: Duration,
    },
    /// No interface has an address whose subnet contains the virtual IP.
    #[error(
        "no interface of this node is in the subnet of {address}; give it an address there, or name the interface"
    )]
    NoInterface {
        /// The address.
        address: IpAddr,
    },
    /// The named interface does not exist.
    #[error("interface {name} does not exist")]
    NoSuchInterface {
        /// Its name.
        name: String,
    },
    /// The interface exists but is down or has no carrier.
    #[error("interface {name} is down or has no carrier")]
    InterfaceDown {
        /// Its name.
        name: String,
    },
    /// Somebody else answers for the virtual IP.
    #[error("{address} is already used by {mac}")]
    Conflict {
        /// The address.
        address: IpAddr,
        /// Who answered.
        mac: Mac,
    },
    /// The address is configured here for good, by somebody else: a lease would take it away from them.
    #[error(
        "{address} is configured permanently on {interface} of this node; remove it there, or from the spec"
    )]
    Permanent {
        /// The address.
        address: IpAddr,
        /// Where it is.
        interface: String,
    },
    /// A socket could not be opened or used.
    #[error("{action}: {source}")]
    Socket {
        /// What was tried.
        action: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A virtual IP is not written as address/prefix.
    #[error("{text:?} is not a virtual IP: write address/prefix, for example 10.0.1.100/24")]
    Syntax {
        /// What was given.
        text: String,
    },
}

impl Error {
    /// The page of `skc explain`.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Netlink { .. } => codes::NET_NETLINK.id,
            Self::Deadline { .. } => codes::NET_DEADLINE.id,
            Self::NoInterface { .. } => codes::NET_NO_INTERFACE.id,
            Self::NoSuchInterface { .. } => codes::NET_NO_SUCH_INTERFACE.id,
            Self::InterfaceDown { .. } => codes::NET_INTERFACE_DOWN.id,
            Self::Conflict { .. } => codes::NET_VIP_TAKEN.id,
            Self::Socket { .. } => codes::NET_SOCKET.id,
            Self::Syntax { .. } => codes::NET_SYNTAX.id,
            Self::Permanent { .. } => codes::NET_PERMANENT.id,
        }
    }

    pub(crate) fn socket(action: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let action = action.into();
        move |source| Self::Socket { action, source }
    }
}
