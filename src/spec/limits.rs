//! Every bound of a ClusterSpec, named, with its reason.

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
/// Patterns of one directory (parsed, not honoured in this version).
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
/// Restarts that may be allowed within the window.
pub const RESTARTS_MAX: u16 = 1000;
