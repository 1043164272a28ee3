//! Every bound of a ClusterSpec, named, with its reason.
//!
//! The decision core takes its own bounds from here: what validates is what runs, and nothing is
//! clamped behind the operator's back.

use crate::base::{Size, Timespan};

/// Longest name of a cluster, node, service or checker: a DNS label (RFC 1123), so that a name may
/// become a host name, a unit name or a file name unchanged.
pub const NAME_MAX: usize = 63;
/// Nodes of a mirror.
pub const NODES: usize = 2;
/// Addresses of one node: each costs five heartbeats a second at the default interval.
pub const ADDRESSES_MAX: usize = 8;
/// Directories of a cluster: each is a mount with its own readers.
pub const DIRECTORIES_MAX: usize = 64;
/// Longest path: Linux PATH_MAX (4096) without its NUL.
pub const PATH_MAX: usize = 4095;
/// Longest path component: Linux NAME_MAX.
pub const PATH_COMPONENT_MAX: usize = 255;
/// Patterns of one list of a directory; their components together are bounded by `base::patterns`.
pub const PATTERNS_MAX: usize = 64;
/// Services of a cluster: they start one after the other.
pub const SERVICES_MAX: usize = 64;
/// Arguments of one command.
pub const ARGS_MAX: usize = 128;
/// Longest argument and longest environment value: a shell line, far below Linux MAX_ARG_STRLEN (128 KiB).
pub const ARG_LEN_MAX: usize = 4096;
/// Environment variables of one service.
pub const ENV_MAX: usize = 128;
/// Virtual addresses of a cluster: each is renewed three times a lease.
pub const VIPS_MAX: usize = 16;
/// Longest interface name: Linux IFNAMSIZ (16) without its NUL.
pub const INTERFACE_MAX: usize = 15;
/// Longest user name: `useradd` refuses more.
pub const USER_MAX: usize = 32;
/// Checkers of a cluster.
pub const CHECKERS_MAX: usize = 64;
/// Ping witnesses.
pub const WITNESSES_MAX: usize = 8;
/// Labels and annotations.
pub const LABELS_MAX: usize = 64;
/// Longest label or annotation value.
pub const LABEL_VALUE_MAX: usize = 1024;
/// Longest host of a checker: a DNS name (RFC 1035).
pub const HOST_MAX: usize = 253;
/// Successes or failures in a row that a checker may ask for.
pub const RISE_FALL_MAX: u16 = 100;
/// Shortest `heartbeat.timeout`: below, the scheduling noise of a busy two-core machine (measured: tens of
/// milliseconds) eats the difference between half of it and all of it.
pub const HEARTBEAT_TIMEOUT_MIN: Timespan = Timespan::from_millis(300);
/// Below this a busy machine may look like a dead one: a warning. Chosen, not measured: half of the default, and
/// what every scenario of the tests runs with on two busy cores. `tests/e2e/stress.rs` measures (design 0002).
pub const HEARTBEAT_TIMEOUT_BUSY: Timespan = Timespan::from_secs(1);
/// Longest: the freeze deadline is a multiple of it and a mount must not be frozen for minutes.
pub const HEARTBEAT_TIMEOUT_MAX: Timespan = Timespan::from_secs(30);
/// Heartbeats that must fit `heartbeat.timeout`: one-way loss is judged at half of it and must not fire
/// on one lost datagram, so two fit each half.
pub const BEATS_PER_TIMEOUT: u64 = 4;
/// Shortest `heartbeat.interval`: the tick of a busy machine is no finer, and each costs a datagram a path.
pub const HEARTBEAT_INTERVAL_MIN: Timespan = Timespan::from_millis(20);
/// Longest: what fits the longest timeout.
pub const HEARTBEAT_INTERVAL_MAX: Timespan =
    Timespan::from_millis(HEARTBEAT_TIMEOUT_MAX.as_millis() / BEATS_PER_TIMEOUT);
/// Shortest `replication.diskTimeout`: below, the write cache of a disk that is emptied looks like a fault.
pub const DISK_TIMEOUT_MIN: Timespan = Timespan::from_secs(2);
/// Longest: the kernel itself calls a task hung after two minutes (`hung_task_timeout_secs`); past twice of
/// that nobody waits for a disk.
pub const DISK_TIMEOUT_MAX: Timespan = Timespan::from_secs(240);
/// Shortest lease of a virtual IP: the kernel counts the lifetime of an address in whole seconds.
pub const VIP_LEASE_MIN: Timespan = Timespan::from_secs(1);
/// Restarts that may be allowed within the window: each is remembered, and a higher limit would let a
/// broken service loop for hours.
pub const RESTARTS_MAX: u16 = 100;
/// Smallest `replication.window.bytes`: less than one large write would make every second one wait.
pub const WINDOW_BYTES_MIN: Size = Size::from_bytes(64 << 10);
/// Largest: frames are kept in memory until acknowledged, on both nodes (`replica::primary::Config` has
/// twice as much for them).
pub const WINDOW_BYTES_MAX: Size = Size::from_bytes(32 << 20);
/// Shortest `replication.window.age`: a busy machine's scheduling is no finer.
pub const WINDOW_AGE_MIN: Timespan = Timespan::from_millis(50);
/// Longest: more is a backup, not a mirror.
pub const WINDOW_AGE_MAX: Timespan = Timespan::from_secs(60);
