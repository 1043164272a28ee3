//! The types of ClusterSpec `skc.dev/v1`.
//!
//! Purpose: what every other module reads. A value that came through [`super::load()`] holds every rule of
//! `super::check`; a value built by hand holds only what the types say. Each field states its
//! default; the defaults themselves are in [`super::defaults`], the bounds in [`super::limits`].
//! The JSON schema is derived from these types and is itself what the reader checks documents against.

use super::cidr::Cidr;
use super::{defaults, limits};
use crate::base::{Rate, Size, Timespan};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

pub use super::checker::{Checker, OnFailure, OnRole, Probe};
pub use super::service::{Exec, Service};

pub(super) const NAME_PATTERN: &str = "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$";
pub(super) const PATH_PATTERN: &str = "^/";

/// One highly available service: two nodes, the directories they mirror, what runs on top.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterSpec {
    /// The version of this format.
    pub api_version: ApiVersion,
    /// The kind of this document.
    pub kind: Kind,
    /// Who this cluster is.
    pub metadata: Metadata,
    /// What is wanted.
    pub spec: Spec,
}

/// Versions of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ApiVersion {
    /// The first one.
    #[serde(rename = "skc.dev/v1")]
    V1,
}

/// Kinds of documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Kind {
    /// A cluster.
    ClusterSpec,
}

/// Name and free text of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Metadata {
    /// Unique within the pair; lower-case letters, digits and hyphens.
    #[schemars(length(min = 1, max = limits::NAME_MAX), extend("pattern" = NAME_PATTERN, "format" = "skc-name"))]
    pub name: String,
    /// Free key/value pairs for selecting.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = limits::LABELS_MAX))]
    pub labels: BTreeMap<String, String>,
    /// Free key/value pairs for people and tools.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = limits::LABELS_MAX))]
    pub annotations: BTreeMap<String, String>,
}

/// The desired state of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// Default: mirror. `light` and `farm` are reserved: not yet.
    #[serde(default)]
    pub mode: Mode,
    /// The two machines.
    #[schemars(length(min = limits::NODES, max = limits::NODES))]
    pub nodes: Vec<Node>,
    /// What is mirrored, mounted in place.
    #[schemars(length(min = 1, max = limits::DIRECTORIES_MAX))]
    pub directories: Vec<Directory>,
    /// How it is mirrored.
    #[serde(default)]
    pub replication: Replication,
    /// What runs on the primary: started in this order, stopped in the reverse one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = limits::SERVICES_MAX))]
    pub services: Vec<Service>,
    /// Addresses that follow the primary.
    #[serde(default, rename = "virtualIPs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = limits::VIPS_MAX))]
    pub virtual_ips: Vec<VirtualIp>,
    /// What is watched, and what follows from a failure.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = limits::CHECKERS_MAX))]
    pub checkers: Vec<Checker>,
    /// How the nodes notice each other's death.
    #[serde(default)]
    pub heartbeat: Heartbeat,
    /// Who decides when the nodes cannot see each other. Without it the operator does (L0).
    #[serde(default, skip_serializing_if = "Arbitration::is_empty")]
    pub arbitration: Arbitration,
    /// When roles move.
    #[serde(default)]
    pub failover: Failover,
}

/// How many nodes serve.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Mode {
    /// Two nodes, one of them primary, synchronous copies.
    #[default]
    Mirror,
    /// One node (not yet).
    Light,
    /// Many nodes behind one address (not yet).
    Farm,
}

/// One machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Node {
    /// The node's name as given to `skc init` and `skc join`.
    #[schemars(length(min = 1, max = limits::NAME_MAX), extend("pattern" = NAME_PATTERN, "format" = "skc-name"))]
    pub name: String,
    /// Each is a heartbeat path; the first that lives carries replication.
    #[schemars(length(min = 1, max = limits::ADDRESSES_MAX))]
    pub addresses: Vec<IpAddr>,
}

/// A mirrored directory tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Directory {
    /// Absolute path, the same on both nodes.
    #[schemars(with = "String", length(min = 1, max = limits::PATH_MAX), extend("pattern" = PATH_PATTERN, "format" = "skc-path"))]
    pub path: PathBuf,
    /// Overrides `replication.consistency` for this directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consistency: Option<Consistency>,
    /// What stays on each node, with everything below it: `*.tmp` anywhere, `/cache` right below the directory,
    /// `*`, `?`, `[...]`, `{a,b}` within a name, `**` for any number of directories.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = limits::PATTERNS_MAX), inner(length(max = limits::PATH_MAX)))]
    pub exclude: Vec<String>,
    /// If there are any: only what matches is mirrored, with everything below it and the directories that lead
    /// to it. `exclude` goes first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = limits::PATTERNS_MAX), inner(length(max = limits::PATH_MAX)))]
    pub include: Vec<String>,
}

/// When a mutating call returns to the application, and what a failover may lose.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Consistency {
    /// After the standby has applied it; fsync: when both disks have it. A failover loses nothing.
    #[default]
    Strict,
    /// At once; fsync and O_SYNC writes: when both disks have it and the standby everything before it. A
    /// failover loses at most the window of what was not fsynced.
    Commit,
    /// At once, fsync too. A failover loses at most the window.
    Async,
}

impl Consistency {
    /// As it is written in a spec.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Commit => "commit",
            Self::Async => "async",
        }
    }
}

/// How far answers in `commit` and `async` directories may be ahead of the standby; past it calls wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Window {
    /// Bytes that were answered and not acknowledged by the standby. Default: 16MiB.
    #[schemars(extend("x-skc-min" = limits::WINDOW_BYTES_MIN.to_string(), "x-skc-max" = limits::WINDOW_BYTES_MAX.to_string()))]
    pub bytes: Size,
    /// Age of the oldest operation that the standby has not acknowledged. Default: 5s.
    #[schemars(extend("x-skc-min" = limits::WINDOW_AGE_MIN.to_string(), "x-skc-max" = limits::WINDOW_AGE_MAX.to_string()))]
    pub age: Timespan,
}

/// How directories are mirrored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Replication {
    /// Default: strict.
    #[serde(default)]
    pub consistency: Consistency,
    /// Bounds what a failover may lose in `commit` and `async` directories. Default: 16MiB and 5s.
    #[serde(default)]
    pub window: Window,
    /// Granularity of the resync's comparison. Default: 64KiB (others: not yet).
    #[serde(default = "defaults::range")]
    pub range: Size,
    /// Limit of a resync. Default: adaptive.
    #[serde(default)]
    #[schemars(extend("x-skc-min" = "1MiB/s"))]
    pub resync_bandwidth: Rate,
    /// A disk that does not answer for this long is sick: the primary hands over, the standby is ejected.
    /// Default: 15s.
    #[serde(default = "defaults::disk_timeout")]
    #[schemars(extend(
        "x-skc-min" = limits::DISK_TIMEOUT_MIN.to_string(),
        "x-skc-max" = limits::DISK_TIMEOUT_MAX.to_string(),
    ))]
    pub disk_timeout: Timespan,
}

/// An address that follows the primary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VirtualIp {
    /// Address and prefix length: 10.0.1.100/24.
    pub address: Cidr,
    /// The interface that carries it. Default: the one that holds a node address of this network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = limits::INTERFACE_MAX), extend("format" = "skc-interface"))]
    pub interface: Option<String>,
}

/// Heartbeat timers; every other failover timer derives from `timeout`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(from = "HeartbeatFields", into = "HeartbeatFields")]
pub struct Heartbeat {
    /// Time between two heartbeats on each address.
    pub interval: Timespan,
    /// Silence on every address after which the peer counts as lost.
    pub timeout: Timespan,
}

/// Heartbeat timers as they are written: `timeout` alone is enough, `interval` follows from it.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "Heartbeat")]
struct HeartbeatFields {
    /// Time between two heartbeats on each address, at most a quarter of `timeout`. Default: a fifth of
    /// it, at most 200ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend(
        "x-skc-min" = limits::HEARTBEAT_INTERVAL_MIN.to_string(),
        "x-skc-max" = limits::HEARTBEAT_INTERVAL_MAX.to_string(),
    ))]
    interval: Option<Timespan>,
    /// Silence on every address after which the peer counts as lost. Default: 2s.
    #[serde(default = "defaults::heartbeat_timeout")]
    #[schemars(extend(
        "x-skc-min" = limits::HEARTBEAT_TIMEOUT_MIN.to_string(),
        "x-skc-max" = limits::HEARTBEAT_TIMEOUT_MAX.to_string(),
    ))]
    timeout: Timespan,
}

impl From<HeartbeatFields> for Heartbeat {
    fn from(f: HeartbeatFields) -> Self {
        let interval = f.interval.unwrap_or_else(|| defaults::heartbeat_interval(f.timeout));
        Self { interval, timeout: f.timeout }
    }
}

impl From<Heartbeat> for HeartbeatFields {
    fn from(h: Heartbeat) -> Self {
        Self { interval: Some(h.interval), timeout: h.timeout }
    }
}

/// Who may go on alone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Arbitration {
    /// Witnesses, usually the router: a node that reaches none of them stops.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = limits::WITNESSES_MAX))]
    pub ping: Vec<IpAddr>,
}

impl Arbitration {
    /// Whether nobody but the operator decides.
    pub fn is_empty(&self) -> bool {
        self.ping.is_empty()
    }
}

/// When roles move.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Failover {
    /// Default: automatic (as far as `arbitration` allows).
    #[serde(default)]
    pub mode: FailoverMode,
    /// The node that serves when both could. Default: none, whoever has the better data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = limits::NAME_MAX), extend("format" = "skc-name"))]
    pub preferred_primary: Option<String>,
    /// Default: manual.
    #[serde(default)]
    pub failback: Failback,
    /// How long the pair must be Ready before an automatic failback. Default: 5m.
    #[serde(default = "defaults::stable_for")]
    #[schemars(extend("x-skc-min" = "1s", "x-skc-max" = "24h"))]
    pub stable_for: Timespan,
    /// Restarts and failovers for a failed service or checker within `window`, then STOP. Default: 3.
    #[serde(default = "defaults::max_restarts")]
    #[schemars(range(min = 0, max = limits::RESTARTS_MAX))]
    pub max_restarts: u16,
    /// Default: 24h.
    #[serde(default = "defaults::window")]
    #[schemars(extend("x-skc-min" = "1m", "x-skc-max" = "720h"))]
    pub window: Timespan,
    /// Default: auto.
    #[serde(default)]
    pub boot: Boot,
}

/// Whether roles move by themselves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum FailoverMode {
    /// Yes, as far as the guarantee level allows.
    #[default]
    Automatic,
    /// Only by command.
    Manual,
}

/// Whether the preferred primary takes its role back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Failback {
    /// Only by command.
    #[default]
    Manual,
    /// Once, after `stableFor` Ready.
    Automatic,
}

/// What the agent does with this cluster when it starts after a boot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Boot {
    /// What it did before: started if it was started, stopped if it was stopped.
    #[default]
    Auto,
    /// Starts it after every boot, also if it was stopped before; an agent that is restarted without a
    /// boot leaves it stopped.
    On,
    /// Never starts it.
    Off,
}

/// Where a grant comes from and what holds because of it (`skc status` prints it).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum Level {
    /// The operator decides: safe, not automatic.
    L0,
    /// A ping witness decides: available; both may go on if only the link between them is cut.
    L1,
    /// L1 and a virtual IP that is probed before promotion: narrowed to double faults.
    L2,
}

impl ClusterSpec {
    /// The guarantee level: no witness L0; a witness L1; a witness and a virtual IP L2.
    pub fn level(&self) -> Level {
        match (self.spec.arbitration.ping.is_empty(), self.spec.virtual_ips.is_empty()) {
            (true, _) => Level::L0,
            (false, true) => Level::L1,
            (false, false) => Level::L2,
        }
    }

    /// The lifetime given to a virtual IP at each renewal: `max(1 s, timeout rounded up to seconds)`,
    /// because the kernel counts `valid_lft` in whole seconds.
    pub fn vip_lease(&self) -> Timespan {
        defaults::vip_lease(self.spec.heartbeat.timeout)
    }

    /// The consistency of one of `spec.directories`.
    pub fn consistency(&self, directory: &Directory) -> Consistency {
        directory.consistency.unwrap_or(self.spec.replication.consistency)
    }

    /// Is there a directory whose calls are answered before the standby has them?
    pub fn answers_early(&self) -> bool {
        self.spec.directories.iter().any(|d| self.consistency(d) != Consistency::Strict)
    }

    /// The node of that name and its index.
    pub fn node(&self, name: &str) -> Option<(usize, &Node)> {
        self.spec.nodes.iter().enumerate().find(|(_, n)| n.name == name)
    }
}
