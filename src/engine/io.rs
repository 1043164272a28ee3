//! Inputs and effects of the core: the whole contract with its driver.
//!
//! # What the driver must do
//! - One task owns the core. It calls `step(now, input)` with a fresh `now` for every input, and
//!   `step(now, Input::Tick)` no later than `next_deadline()`. Being late is noticed and voids
//!   evidence instead of accusing the peer.
//! - It executes the returned effects **in order, one at a time**, each complete before the next
//!   begins, unless the effect's doc says "reports back", and before it feeds the next input. If `Persist`
//!   fails it drops the rest of the list (refusing operators found in it) and feeds [`Input::PersistFailed`] next.
//! - Inputs that belong to a stream or link carry its number; the core ignores those of old ones.
//! - When several inputs are queued, heartbeats and peer messages come before `Tick`.

use crate::base::{Epoch, Millis, NodeId, OpSeq};
use crate::engine::config::Config;
use crate::engine::durable::{Damage, Durable};
use crate::engine::peer::{HeartbeatBody, PeerMessage};
use serde::{Deserialize, Serialize};

/// Names one run of a long effect; a later run has a higher number, reports of others are ignored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(pub u64);

/// Names one established control connection; the driver counts them up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkId(pub u64);

/// Names one operator request; comes back in [`Effect::OperatorDone`] exactly once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ticket(pub u64);

/// What the local directory looks like. Observed by the driver before the start and on change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum TreeState {
    /// Not looked at yet.
    #[default]
    Unknown,
    /// The directory is the one we know (or the first one).
    Ok {
        /// Holds no entry but ours.
        empty: bool,
        /// Its stamp matches the state directory (true on a first start).
        stamp_ok: bool,
    },
    /// The path is not there or not a directory.
    Missing,
    /// Another file system or root than before.
    Replaced,
    /// Empty although it was not: a volume that is not mounted.
    EmptyWhereNotEmpty,
    /// Reads or writes fail: what is on the disk is not known.
    DiskError,
    /// Somebody took our mount away: what was written at the path since is in no stream.
    Unmounted,
    /// The disk does not answer. What was acknowledged is here all the same, in memory at least.
    DiskHangs,
}

/// Can the ping witness be reached?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WitnessState {
    /// At least one witness address answered.
    Reachable,
    /// None answered.
    Unreachable,
    /// No witness configured.
    None,
}

/// Result of one probe window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ProbeResult {
    /// A virtual address answered ARP/ND from a MAC that is not ours.
    pub vip_answered: bool,
    /// An address of the peer answered (ARP/ND or ICMP): its kernel lives.
    pub peer_answered: bool,
    /// Ping witness.
    pub witness: WitnessState,
}

/// The services of the cluster as one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ServiceState {
    /// All down.
    #[default]
    Stopped,
    /// On the way up.
    Starting,
    /// All up.
    Running,
    /// On the way down.
    Stopping,
    /// Did not start, or did not stop within their deadlines (the service manager has killed them).
    Failed,
}

/// `checkers[].onFailure` as far as the core carries it out (`restartService` and `event` are
/// the reconciler's own).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum OnFailure {
    /// Stop and start everything here.
    Restart,
    /// Hand over to the standby; without one: restart.
    Failover,
    /// Release the services and wait for the checker (or the operator).
    Wait,
    /// Stop the cluster on this node.
    Stop,
}

/// Operator commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OperatorCommand {
    /// Take part.
    Start,
    /// Leave in an orderly way (hand over first if there is an eligible standby); stay stopped.
    Stop,
    /// Exchange roles. On the standby it asks the primary.
    Swap,
    /// Serve here. Without `force` only if that is safe by record; with `force` a new lone grant.
    Promote {
        /// Accept that what only the peer holds is lost (it goes to quarantine there).
        force: bool,
    },
    /// Name the source where the core will not guess.
    Adopt {
        /// The node whose data wins.
        source: NodeId,
        /// Also against the table's verdict; also accepts a replaced, emptied or damaged local tree.
        force: bool,
    },
    /// No automatic failover and no failback until `Resume` (volatile).
    Pause,
    /// End of `Pause`.
    Resume,
}

/// Answer to an operator.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum OperatorResult {
    /// Done, and true now.
    Done,
    /// Refused or failed; nothing is half done. `code` is a page of `skc explain`.
    Refused {
        /// Stable code.
        code: &'static str,
        /// What to do instead.
        hint: String,
    },
}

/// Why the data stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StreamLoss {
    /// Connection closed, reset or timed out.
    Closed,
    /// The other side broke the protocol.
    Protocol,
    /// Standby side: an operation could not be applied.
    Apply {
        /// Positive errno.
        errno: i32,
    },
    /// fsync, syncfs or close failed on this side.
    Sync,
}

/// What the replica layer knows after a stream was closed. All volatile.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct StreamFacts {
    /// Writer: the list of unacknowledged frames is whole and this is the first position in it
    /// (the next position if the list is empty).
    pub replay_from: Option<OpSeq>,
    /// Standby: last applied position (system call returned).
    pub applied: Option<OpSeq>,
}

/// Observations and commands.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Input {
    /// Time passed.
    Tick,
    /// The specification changed.
    Configure(Box<Config>),
    /// An operator asks.
    Operator {
        /// Comes back in `OperatorDone`.
        ticket: Ticket,
        /// What.
        command: OperatorCommand,
    },
    /// The machine or the agent goes down in an orderly way: like `Stop`, but not remembered.
    Shutdown {
        /// Comes back in `OperatorDone`; the driver then exits.
        ticket: Ticket,
    },
    /// The ordered control connection is up (mutually authenticated, FIFO).
    LinkUp {
        /// Its number, higher than any before.
        link: LinkId,
    },
    /// It ended.
    LinkDown {
        /// Which.
        link: LinkId,
    },
    /// A message of the peer's core.
    Peer {
        /// On which connection.
        link: LinkId,
        /// What.
        message: PeerMessage,
    },
    /// A heartbeat arrived, on any path.
    Heartbeat(HeartbeatBody),
    /// The peer's guard: "worker dead, services stopped, VIP dropped, mount dead; it never acknowledged alone in this epoch".
    Tombstone(Tombstone),
    /// Both ends of the data stream of session `s` are connected.
    StreamUp {
        /// Session.
        s: u64,
    },
    /// The data stream of session `s` ended by itself (not by `CloseStream`).
    StreamDown {
        /// Session.
        s: u64,
        /// Why.
        why: StreamLoss,
    },
    /// `CloseStream` finished; facts for the next handshake.
    StreamClosed {
        /// Which run.
        token: Token,
        /// What the replica layer knows.
        facts: StreamFacts,
    },
    /// Source: everything is equal but for live operations. The target has made its tree durable
    /// once before it said so (keeps the final sync short; not needed for safety).
    ResyncDone {
        /// Session.
        s: u64,
    },
    /// Target: the UpToDate marker was reached, everything before it is applied; nothing behind it
    /// is applied or acknowledged until [`Effect::ReleaseMarker`].
    MarkerReached {
        /// Session.
        s: u64,
    },
    /// End of `Syncfs`.
    Synced {
        /// Which run.
        token: Token,
        /// False: the tree's durability is unknown from now on.
        ok: bool,
    },
    /// End of `Drain`.
    Drained {
        /// Which run.
        token: Token,
    },
    /// End of `StartProbe`.
    Probe {
        /// Which run.
        token: Token,
        /// What was seen.
        result: ProbeResult,
    },
    /// The local directory's state. Must be sent before anything can start.
    LocalTree(TreeState),
    /// Services changed.
    Services(ServiceState),
    /// Every checker content?
    Checkers {
        /// All up.
        healthy: bool,
    },
    /// A checker's action fired.
    CheckerFired(OnFailure),
    /// The virtual addresses are on this node (all of them).
    VipHeld(bool),
    /// A stranger answers for a virtual address that should be ours.
    VipConflict(bool),
    /// A `Persist` failed: nothing after it in its list was done. The core stops serving for good
    /// (until the agent restarts and reads what is on disk).
    PersistFailed,
}

/// What the mount allows. The driver maps it to the data path's gate. Takes effect completely
/// before the next effect: once `Frozen`, `Shut` or `ReadOnly` is set, no reply is on its way that
/// relied on the alone right. The standby's acknowledgements still complete replies under `Frozen` while the stream is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Gate {
    /// Mutations get EROFS; reads uncached.
    ReadOnly,
    /// Replies wait for the standby's acknowledgement in this epoch.
    Replicated {
        /// Epoch of frames and acknowledgements.
        epoch: Epoch,
    },
    /// Replies do not wait; while a target is connected operations are streamed as well.
    Alone {
        /// Epoch of frames.
        epoch: Epoch,
    },
    /// New mutations park unapplied, applied ones wait.
    Frozen,
    /// Parked and new mutations get EIO; what was applied and not acknowledged stays in the tree.
    Shut,
}

/// Which end of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum StreamRole {
    /// Sends operations.
    Source,
    /// Applies them.
    Target,
}

/// How the target becomes equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Plan {
    /// From memory: the source sends its unacknowledged frames from the target's applied position
    /// (or none are missing). The target is an eligible standby all along.
    Replay {
        /// The target's last applied position.
        applied: OpSeq,
    },
    /// Ranges of both intent logs and maps. Reserved: this version always compares in full.
    Ranges,
    /// Compare everything, send what differs.
    FullCompare {
        /// Keep what the target had and the source has not (I5).
        quarantine: bool,
    },
    /// The target holds nothing.
    SeedEmpty,
    /// Hand-over after a drain: both trees are equal now, the new stream starts empty. The target
    /// is an eligible standby all along.
    Continue,
}

/// What the guard says for a dead worker, prepared by the worker while it lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Tombstone {
    /// Durable epoch of the dead worker's session.
    pub epoch: Epoch,
    /// Which end it was. A restarted worker of either end does nothing without a new handshake,
    /// so the other end may go on at once.
    pub role: StreamRole,
}

/// Commands to the driver.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Write the fencing record, durable when it returns.
    Persist(Box<Durable>),
    /// Send over the current control link; dropped if it is down (never queued for the next one).
    Send(Box<PeerMessage>),
    /// Close this control connection; the driver dials again (with back-off).
    CloseLink(LinkId),
    /// Set the mount's gate.
    Gate(Gate),
    /// Open the data stream of a session. Returns at once; `StreamUp`, `StreamDown` report back.
    OpenStream {
        /// Our end.
        role: StreamRole,
        /// Session.
        epoch: Epoch,
        /// How.
        plan: Plan,
    },
    /// End the data stream: when this is done no frame of it will ever be applied or
    /// acknowledged (the apply queue is dropped, at most the running operation finishes). Idempotent.
    /// Then reports back with `StreamClosed`, always.
    CloseStream {
        /// Run.
        token: Token,
    },
    /// Source: put the UpToDate marker into the stream.
    MarkUpToDate {
        /// Session.
        epoch: Epoch,
    },
    /// Target: go on applying and acknowledging behind the marker.
    ReleaseMarker {
        /// Session.
        epoch: Epoch,
    },
    /// syncfs of every volume. Reports back with `Synced`.
    Syncfs {
        /// Run.
        token: Token,
    },
    /// Wait until every submitted operation is acknowledged. Reports back with `Drained`.
    Drain {
        /// Run.
        token: Token,
    },
    /// Probe VIPs, peer addresses and witness; a new run replaces an older one. Reports back with
    /// `Probe` at the end of the window, or at once when VIP or peer answered.
    StartProbe {
        /// Run.
        token: Token,
        /// How long to listen. Addresses are asked several times within it.
        window: Millis,
    },
    /// Hold the virtual addresses (finite lifetime, renewed) and announce them. Idempotent.
    AddVips,
    /// Drop them now. Idempotent.
    DropVips,
    /// Start the services; `Services` reports. Idempotent. After a `StopServices` that still runs: when it is done.
    StartServices,
    /// Stop the services, within their own deadlines, then kill. `Services(Stopped)` (or `Failed`)
    /// is always reported, also when there are none. Idempotent.
    StopServices,
    /// The operator accepts the directory as it is now: record its identity, then send `LocalTree`.
    AcceptTree,
    /// Invalidate everything the kernel caches of the mount.
    InvalidateCaches,
    /// What the guard would say for us if we died now.
    SetTombstone(Option<Tombstone>),
    /// A fact for the event log and the bus.
    Event(Box<Event>),
    /// Answer to an operator or to a `Shutdown`.
    OperatorDone {
        /// Which.
        ticket: Ticket,
        /// How it ended.
        result: OperatorResult,
    },
}

/// A fact with the epoch it happened in.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Event {
    /// Groups everything of one failover, hand-over or rejoin; 0 = none.
    pub failover_id: u64,
    /// Durable epoch when it happened.
    pub epoch: Epoch,
    /// What happened.
    pub kind: EventKind,
}

/// Facts. [`EventKind::code`] is stable.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum EventKind {
    /// The cluster was started here.
    Started,
    /// The cluster is stopped here.
    Stopped,
    /// The link to the peer is up.
    LinkUp,
    /// Both decided the same.
    Agreed {
        /// Row of the decision table.
        row: u8,
        /// This node is the source.
        source_here: bool,
        /// How.
        plan: Option<Plan>,
    },
    /// The two sides decided differently or the facts changed; asked again.
    HandshakeRetry,
    /// The session is lost; the writer froze or the standby began to probe.
    SessionLost {
        /// Silence of the peer so far.
        silent_ms: u64,
    },
    /// The session came back before anyone went on alone.
    Thawed,
    /// Going on alone.
    WentAlone {
        /// By the peer's own word (else by the level's rule).
        confirmed: bool,
    },
    /// The standby took over.
    Promoted,
    /// Forced by the operator.
    Forced,
    /// The writer gave up: EIO from here on.
    Demoted,
    /// Recorded: the peer may have gone on without us.
    Behind,
    /// Behind was lifted by the guard's tombstone.
    TombstoneSeen,
    /// A resync began.
    ResyncStarted,
    /// The standby is UpToDate.
    UpToDate,
    /// This tree needs a full compare before it counts again.
    Inconsistent {
        /// Why.
        damage: Damage,
    },
    /// This standby cannot follow the primary and said so.
    Ejected {
        /// Why.
        damage: Damage,
    },
    /// Role given to the peer.
    HandedOver,
    /// Role taken from the peer.
    TookOver,
    /// A hand-over was given up; the role stayed.
    HandoverAborted,
    /// This node stalled longer than its lease and assumes that it was replaced.
    Stalled {
        /// How late.
        late_ms: u64,
    },
    /// Restart limit reached.
    RestartLimit,
    /// A checker asked for something.
    Checker(OnFailure),
    /// The fencing record cannot be written.
    PersistFailed,
    /// Split brain found.
    SplitBrain,
}

impl EventKind {
    /// Stable code for the event log and `skc explain`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Started => "SKC-V0001",
            Self::Stopped => "SKC-V0002",
            Self::LinkUp => "SKC-V0003",
            Self::Agreed { .. } => "SKC-V0004",
            Self::HandshakeRetry => "SKC-V0005",
            Self::SessionLost { .. } => "SKC-V0006",
            Self::Thawed => "SKC-V0007",
            Self::WentAlone { .. } => "SKC-V0008",
            Self::Promoted => "SKC-V0009",
            Self::Forced => "SKC-V0010",
            Self::Demoted => "SKC-V0011",
            Self::Behind => "SKC-V0012",
            Self::TombstoneSeen => "SKC-V0013",
            Self::ResyncStarted => "SKC-V0014",
            Self::UpToDate => "SKC-V0015",
            Self::Inconsistent { .. } => "SKC-V0016",
            Self::HandedOver => "SKC-V0017",
            Self::TookOver => "SKC-V0018",
            Self::HandoverAborted => "SKC-V0019",
            Self::Stalled { .. } => "SKC-V0020",
            Self::RestartLimit => "SKC-V0021",
            Self::Checker(_) => "SKC-V0022",
            Self::PersistFailed => "SKC-V0023",
            Self::SplitBrain => "SKC-V0024",
            Self::Ejected { .. } => "SKC-V0025",
        }
    }
}
