//! What guard and worker say to each other: MessagePack packets over the socket pair.
//!
//! Requests carry a number, each gets exactly one [`Reply`]; notices come unasked. Both ends are the same binary,
//! still [`VERSION`] is checked, because the binary on disk may have been replaced since the guard started.
//! Every packet fits `sys::fdpass::MAX_PACKET`; lists have the bounds below.

use crate::base::Millis;
use crate::service::{ServiceId, ServicePlan, ServiceStatus};
use crate::sys::process::Exit;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};

/// Version of this protocol.
pub const VERSION: u16 = 1;

/// Names held, at most.
pub const HOLDS_MAX: usize = 256;
/// Virtual addresses, at most.
pub const VIPS_MAX: usize = 256;
/// Mounts, at most.
pub const MOUNTS_MAX: usize = 256;
/// Tombstone datagrams, at most.
pub const DATAGRAMS_MAX: usize = 64;
/// Destinations of one datagram, at most.
pub const DESTINATIONS_MAX: usize = 16;
/// Longest datagram: one unfragmented UDP packet on an ordinary link.
pub const DATAGRAM_MAX: usize = 1400;
/// Commands running at the same time, at most.
pub const COMMANDS_MAX: usize = 64;
/// Kept of each output stream of a command: its end.
pub const OUTPUT_MAX: usize = 8 * 1024;

/// What a held descriptor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FdKind {
    /// `/dev/fuse` of a mount: closed when fencing, because closing ends the connection.
    Device,
    /// A directory below a mount.
    Directory,
    /// Memory (memfd) that outlives the worker.
    Memory,
}

/// A mount to abort when fencing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountRef {
    /// Where, for logs.
    pub path: String,
    /// Number of its FUSE connection: the minor device number of the mount (`st_dev`).
    pub connection: u32,
}

/// A virtual address to drop when fencing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VipRef {
    /// Address.
    pub address: IpAddr,
    /// Prefix length it was added with.
    pub prefix: u8,
    /// Interface it was added to.
    pub ifindex: u32,
}

/// One signed datagram and where it goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Datagram {
    /// Ready to be sent.
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
    /// Every address of the peer.
    pub to: Vec<SocketAddr>,
}

/// What the worker asks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// First message of a worker.
    Hello {
        /// Must be [`VERSION`].
        version: u16,
    },
    /// The worker serves: from now on its death fences, and the time without worker ends.
    Ready,
    /// The clock of the worker's main loop ticks. Also the answer to "does it hang?".
    Ping,
    /// Deadlines that the worker agrees to.
    SetBudget {
        /// Time without a ready worker before the tombstone is sent.
        freeze: Millis,
        /// Time without [`Request::Ping`] before the worker counts as hung.
        watchdog: Millis,
    },
    /// Keep the descriptors of this packet under a name (replaces earlier ones).
    Hold {
        /// Name.
        name: String,
        /// What they are, one each.
        kinds: Vec<FdKind>,
    },
    /// Forget a name.
    Release {
        /// Name.
        name: String,
    },
    /// Which names are held?
    ListHeld,
    /// Copies of the descriptors under a name.
    Fetch {
        /// Name.
        name: String,
    },
    /// The complete list of mounts to abort when fencing.
    SetMounts(Vec<MountRef>),
    /// The complete list of addresses to drop when fencing.
    SetVips(Vec<VipRef>),
    /// What to send when no worker comes back; empty = nothing.
    SetTombstone(Vec<Datagram>),
    /// Bring a service up.
    StartService(ServicePlan),
    /// Bring a service down.
    StopService(ServiceId),
    /// How is it?
    ServiceStatus(ServiceId),
    /// How are all?
    ListServices,
    /// Run a command to its end.
    RunCommand {
        /// Program and arguments, no shell.
        argv: Vec<String>,
        /// SIGKILL after this.
        timeout: Millis,
    },
    /// The worker is about to exit by intention: fence, do not restart, exit.
    ShuttingDown,
}

/// The guard's answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    /// Done.
    Done,
    /// To `Hello`.
    Welcome(Welcome),
    /// To `ListHeld`.
    Held(Vec<String>),
    /// To `Fetch`: what the descriptors of this packet are.
    Fds(Vec<FdKind>),
    /// To requests about one service; `None` = never heard of.
    Service(Option<ServiceStatus>),
    /// To `ListServices`.
    Services(Vec<ServiceStatus>),
    /// To `RunCommand`.
    Command(CommandResult),
    /// To `SetTombstone`.
    Tombstone {
        /// The tombstone set before was already sent: the peer may act on it. A worker that learns this
        /// must not go on alone before it has met the peer or holds a grant.
        sent: bool,
    },
    /// The request was refused; why.
    Refused(String),
}

/// What a fresh worker must know about its predecessors.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// How many workers this guard started, this one included.
    pub incarnation: u64,
    /// Names held, so that they can be fetched.
    pub held: Vec<String>,
    /// What was done when the last worker died.
    pub fence: Option<FenceReport>,
    /// A tombstone was sent and not replaced since (see [`Reply::Tombstone`]).
    pub tombstone_sent: bool,
}

/// What was done after a worker's death.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FenceReport {
    /// Why.
    pub cause: String,
    /// Steps with milliseconds since the death was noticed.
    pub steps: Vec<(Step, Millis)>,
    /// Everything is down for certain.
    pub complete: bool,
    /// What is not.
    pub remaining: Vec<String>,
}

/// Steps of fencing, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Services were asked to stop.
    ServicesAsked,
    /// Services were killed (or all gone before).
    ServicesKilled,
    /// Virtual addresses were dropped.
    VipsDropped,
    /// Mounts were aborted and their devices closed.
    MountsAborted,
    /// All of this is known to have taken effect.
    Complete,
    /// The tombstone was sent for the first time.
    TombstoneSent,
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandResult {
    /// Its exit; `None`: it ran into its timeout and was killed.
    pub exit: Option<Exit>,
    /// End of its standard output.
    #[serde(with = "serde_bytes")]
    pub stdout: Vec<u8>,
    /// End of its standard error.
    #[serde(with = "serde_bytes")]
    pub stderr: Vec<u8>,
}

/// What the guard says unasked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Notice {
    /// A service went down by itself.
    ServiceExited(ServiceStatus),
    /// Stop orderly and exit, within 30 s.
    ShutdownRequested {
        /// The machine goes down, not only the agent.
        reboot: bool,
    },
}

/// A packet from worker to guard.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ToGuard {
    /// Number; the reply carries it.
    pub id: u64,
    /// What.
    pub request: Request,
}

/// A packet from guard to worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ToWorker {
    /// Answer to request `id`.
    Reply {
        /// Number of the request.
        id: u64,
        /// Answer.
        reply: Reply,
    },
    /// Unasked.
    Notice(Notice),
}

/// Encodes a packet.
pub(crate) fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, String> {
    let bytes = rmp_serde::to_vec(message).map_err(|error| error.to_string())?;
    if bytes.len() > crate::sys::fdpass::MAX_PACKET {
        return Err(format!("message of {} bytes is too long", bytes.len()));
    }
    Ok(bytes)
}

/// Decodes a packet.
pub(crate) fn decode<T: for<'a> Deserialize<'a>>(bytes: &[u8]) -> Result<T, String> {
    rmp_serde::from_slice(bytes).map_err(|error| error.to_string())
}

impl Request {
    /// The bounds of lists; a refusal says which.
    pub(crate) fn check(&self) -> Result<(), String> {
        let bound = |what: &str, len: usize, max: usize| {
            if len > max { Err(format!("{len} {what}, at most {max} are allowed")) } else { Ok(()) }
        };
        match self {
            Self::SetMounts(mounts) => bound("mounts", mounts.len(), MOUNTS_MAX),
            Self::SetVips(vips) => bound("addresses", vips.len(), VIPS_MAX),
            Self::SetTombstone(datagrams) => {
                bound("datagrams", datagrams.len(), DATAGRAMS_MAX)?;
                for datagram in datagrams {
                    bound("destinations", datagram.to.len(), DESTINATIONS_MAX)?;
                    bound("bytes in a datagram", datagram.bytes.len(), DATAGRAM_MAX)?;
                }
                Ok(())
            }
            Self::Hold { name, .. } => bound("bytes in a name", name.len(), 256),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_wire() {
        let message = ToGuard {
            id: 7,
            request: Request::SetTombstone(vec![Datagram {
                bytes: vec![1, 2, 3],
                to: vec!["10.0.0.1:7690".parse().unwrap(), "[fd00::1]:7690".parse().unwrap()],
            }]),
        };
        assert_eq!(decode::<ToGuard>(&encode(&message).unwrap()).unwrap(), message);
        let vips =
            Request::SetVips(vec![VipRef { address: "fd00::9".parse().unwrap(), prefix: 64, ifindex: 3 }]);
        assert_eq!(decode::<Request>(&encode(&vips).unwrap()).unwrap(), vips);
        assert!(decode::<ToGuard>(b"garbage").is_err());
    }

    #[test]
    fn lists_are_bounded_at_the_limit_and_one_over() {
        let datagram = |bytes: usize| Datagram { bytes: vec![0; bytes], to: vec![] };
        assert!(Request::SetTombstone(vec![datagram(DATAGRAM_MAX); DATAGRAMS_MAX]).check().is_ok());
        assert!(Request::SetTombstone(vec![datagram(DATAGRAM_MAX + 1)]).check().is_err());
        assert!(Request::SetTombstone(vec![datagram(1); DATAGRAMS_MAX + 1]).check().is_err());
        let vip = VipRef { address: "10.0.0.1".parse().unwrap(), prefix: 24, ifindex: 1 };
        assert!(Request::SetVips(vec![vip; VIPS_MAX]).check().is_ok());
        assert!(Request::SetVips(vec![vip; VIPS_MAX + 1]).check().is_err());
    }
}
