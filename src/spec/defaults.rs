//! Every default of a ClusterSpec that is not its type's first variant or an empty list, in one place.

use super::limits;
use super::types::{Boot, Consistency, Failback};
use super::types::{Failover, FailoverMode, Heartbeat, Replication, Window};
use crate::base::{Rate, Size, Timespan};

/// 64 KiB: small enough that a hot database page does not drag megabytes, large enough that the
/// dirty map of a terabyte stays at 16 million entries. The peers' wire knows no other (`proto::stream::BLOCK`).
pub fn range() -> Size {
    Size::from_bytes(64 << 10)
}

/// A fifth of the timeout, at most 200 ms: four heartbeats may be lost, and one operator value is enough.
pub fn heartbeat_interval(timeout: Timespan) -> Timespan {
    Timespan::from_millis((timeout.as_millis() / 5).min(200))
}

/// Silence that counts as death: rides out a stalled hypervisor second, keeps an outage near three seconds.
pub fn heartbeat_timeout() -> Timespan {
    Timespan::from_secs(2)
}

/// Long enough to see that a returned machine stays.
pub fn stable_for() -> Timespan {
    Timespan::from_secs(300)
}

/// Three attempts, then a person looks.
pub fn max_restarts() -> u16 {
    3
}

/// A day: a fault that comes back every few hours still meets its limit.
pub fn window() -> Timespan {
    Timespan::from_secs(24 * 3600)
}

/// Time to recover a database log; at the end the start counts as failed.
pub fn start_timeout() -> Timespan {
    Timespan::from_secs(30)
}

/// Time for an orderly stop; at the end the service's processes are killed.
pub fn stop_timeout() -> Timespan {
    Timespan::from_secs(10)
}

/// How often a service is asked for its state.
pub fn status_interval() -> Timespan {
    Timespan::from_secs(2)
}

/// How often a checker looks.
pub fn check_interval() -> Timespan {
    Timespan::from_secs(2)
}

/// How long one look may take; at the end it counts as failed.
pub fn check_timeout() -> Timespan {
    Timespan::from_secs(1)
}

/// One success heals.
pub fn rise() -> u16 {
    1
}

/// Three failures in a row are a failure: one lost packet is not.
pub fn fall() -> u16 {
    3
}

/// Half of what the kernel gives a SCSI command before it resets the device (30 s), and beyond what a disk
/// under the load of a whole machine was seen to need for one small fdatasync (design 0002).
pub fn disk_timeout() -> Timespan {
    Timespan::from_secs(15)
}

/// See [`super::ClusterSpec::vip_lease`]. The one formula: the decision core counts with it, too.
pub fn vip_lease(heartbeat_timeout: Timespan) -> Timespan {
    Timespan::from_secs(heartbeat_timeout.as_millis().div_ceil(1_000)).max(limits::VIP_LEASE_MIN)
}

impl Default for Replication {
    fn default() -> Self {
        Self {
            consistency: Consistency::Strict,
            window: Window::default(),
            range: range(),
            resync_bandwidth: Rate::Adaptive,
            disk_timeout: disk_timeout(),
        }
    }
}

/// 16 MiB: the bandwidth-delay product of a gigabit over 100 ms, and some. 5 s: half of what a silent
/// standby gets before its stream is given up, so that calls wait before writes freeze.
impl Default for Window {
    fn default() -> Self {
        Self { bytes: Size::from_bytes(16 << 20), age: Timespan::from_secs(5) }
    }
}

impl Default for Heartbeat {
    fn default() -> Self {
        let timeout = heartbeat_timeout();
        Self { interval: heartbeat_interval(timeout), timeout }
    }
}

impl Default for Failover {
    fn default() -> Self {
        Self {
            mode: FailoverMode::Automatic,
            preferred_primary: None,
            failback: Failback::Manual,
            stable_for: stable_for(),
            max_restarts: max_restarts(),
            window: window(),
            boot: Boot::Auto,
        }
    }
}
