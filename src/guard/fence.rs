//! Undoing what a dead worker left running: services, addresses, mounts, in this order.
//!
//! A fence begins with a worker's death and is *executed* when each step was done once, *complete* when each is
//! known to have taken effect. The next worker may start when it is executed; the tombstone waits until it is complete.

use super::message::{FenceReport, MountRef, Step, VipRef};
use super::run::Guard;
use crate::base::{Millis, Mono};
use crate::sys::fusectl::Abort;
use crate::sys::{netlink_raw, process};
use tracing::{error, info, warn};

/// A service gets at most this long between SIGTERM and SIGKILL when fencing: its files do not answer any more, so
/// it can only say goodbye to its clients.
const GRACE_MAX: Millis = 2000;

/// Stop commands may deal with things that are no children of ours; they go on while the rest is fenced.
const STOP_COMMAND_MAX: Millis = 10_000;

/// Time between two attempts at what has not taken effect: quick at first, then as slow as a leak is lasting.
const RETRY_EVERY: Millis = 50;
const RETRY_SLOWLY: Millis = 1000;
/// When quick becomes slow: nothing but a process stuck in the kernel takes longer.
const RETRY_QUICKLY_FOR: Millis = 15_000;

/// A mount with the right to end it; without one its end is the closing of its device.
#[derive(Debug)]
pub(super) struct HeldMount {
    pub(super) mount: MountRef,
    pub(super) abort: Option<Abort>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Grace { until: Mono },
    Settling { retry_at: Mono },
    Complete,
}

#[derive(Debug)]
pub(super) struct Fence {
    began: Mono,
    phase: Phase,
    vips: Vec<VipRef>,
    mounts: Vec<HeldMount>,
    worker: Option<process::ProcessId>,
    owner: String,
    /// A mount had no abort handle: it is dead only when the worker is reaped.
    unaborted: bool,
    /// Nobody can acknowledge anything here any more.
    quiet: bool,
    pub(super) report: FenceReport,
}

impl Fence {
    /// Each step was done at least once.
    pub(super) fn is_executed(&self) -> bool {
        !matches!(self.phase, Phase::Grace { .. })
    }

    pub(super) fn is_complete(&self) -> bool {
        self.phase == Phase::Complete
    }

    /// May the peer be told that nobody serves here? Weaker than complete: a process that got SIGKILL but hangs in
    /// the kernel executes no code, and with its mount aborted it cannot answer an application.
    pub(super) fn is_quiet(&self) -> bool {
        self.quiet
    }

    pub(super) fn deadline(&self) -> Option<Mono> {
        match self.phase {
            Phase::Grace { until } => Some(until),
            Phase::Settling { retry_at } => Some(retry_at),
            Phase::Complete => None,
        }
    }

    /// The next worker has these addresses by right: do not drop them under it.
    pub(super) fn spare(&mut self, vips: &[VipRef]) {
        self.vips.retain(|vip| !vips.contains(vip));
    }

    pub(super) fn step(&mut self, step: Step, now: Mono) {
        let elapsed_ms = now - self.began;
        info!(?step, elapsed_ms, "fence");
        // A fence has six steps; a report cannot grow beyond them.
        if !self.report.steps.iter().any(|(known, _)| *known == step) {
            self.report.steps.push((step, elapsed_ms));
        }
    }

    fn drop_vips(&mut self) {
        let mut blocked = false;
        self.vips.retain(|vip| {
            if blocked {
                return true;
            }
            match netlink_raw::delete_address(vip.address, vip.prefix, vip.ifindex) {
                Ok(()) => false,
                Err(error) => {
                    warn!(address = %vip.address, prefix = vip.prefix, %error, "cannot drop the address; its lease will end");
                    // The kernel does not answer: one wait a round, not one for each address.
                    blocked = error.kind() == std::io::ErrorKind::WouldBlock;
                    true
                }
            }
        });
    }

    fn abort_mounts(&mut self) {
        self.mounts.retain(|held| {
            let Some(abort) = &held.abort else {
                self.unaborted = true;
                return false;
            };
            match abort.fire() {
                Ok(()) => false,
                Err(error) => {
                    warn!(path = held.mount.path, connection = held.mount.connection, %error, "cannot abort the mount");
                    true
                }
            }
        });
    }
}

impl Guard {
    /// The worker is gone (or is being killed): begin to undo.
    pub(super) fn begin_fence(&mut self, now: Mono, cause: &str) {
        if self.worker.as_ref().is_some_and(|worker| worker.leaving) {
            info!(cause, "the worker left: making sure that nothing is left of it");
        } else {
            error!(cause, "the worker is gone: fencing");
        }
        // A quarter of the budget, so that everything is down before anybody waits for it.
        let grace = (self.freeze / 4).min(GRACE_MAX);
        let old = self.fence.take();
        let (mut vips, mut mounts) = old.map_or_else(Default::default, |fence| (fence.vips, fence.mounts));
        vips.append(&mut self.vips);
        mounts.append(&mut self.mounts);
        let mut fence = Fence {
            began: now,
            phase: Phase::Grace { until: now + grace },
            vips,
            mounts,
            worker: self.worker.as_ref().map(super::worker::Worker::id),
            owner: super::run::worker_owner(self.incarnation),
            unaborted: false,
            quiet: false,
            report: FenceReport { cause: cause.to_owned(), ..FenceReport::default() },
        };
        self.absent_since.get_or_insert(now);
        for command in &mut self.commands {
            command.kill();
            command.wanted = super::command::For::Nobody;
        }
        self.supervisor.fence(now, grace, STOP_COMMAND_MAX);
        fence.step(Step::ServicesAsked, now);
        self.fence = Some(fence);
        self.tick_fence(now);
    }

    /// Goes on with a fence.
    pub(super) fn tick_fence(&mut self, now: Mono) {
        let Some(mut fence) = self.fence.take() else { return };
        match fence.phase {
            Phase::Complete => {}
            Phase::Grace { until } => {
                if now >= until || self.supervisor.only_stop_commands_left() {
                    self.supervisor.kill(now);
                    fence.step(Step::ServicesKilled, now);
                    fence.drop_vips();
                    fence.step(Step::VipsDropped, crate::sys::clock::boottime());
                    fence.abort_mounts();
                    self.close_devices();
                    fence.step(Step::MountsAborted, crate::sys::clock::boottime());
                    fence.phase = Phase::Settling { retry_at: now };
                    self.settle(&mut fence, now);
                }
            }
            Phase::Settling { retry_at } => {
                if now >= retry_at {
                    self.settle(&mut fence, now);
                }
            }
        }
        self.fence = Some(fence);
    }

    fn settle(&mut self, fence: &mut Fence, now: Mono) {
        let pause = if now - fence.began < RETRY_QUICKLY_FOR { RETRY_EVERY } else { RETRY_SLOWLY };
        fence.phase = Phase::Settling { retry_at: now + pause };
        fence.drop_vips();
        fence.abort_mounts();
        let reaped = self.worker.as_ref().is_none_or(|worker| Some(worker.id()) != fence.worker);
        let mut strays = 0;
        if let Some(worker) = fence.worker
            && reaped
        {
            // What the worker itself had started: checkers, address probes.
            for id in self.supervisor.left_by_worker(now, &fence.owner, worker) {
                strays += 1;
                if let Err(error) = process::signal(id, libc::SIGKILL) {
                    warn!(pid = id.pid, %error, "cannot kill what the worker left");
                }
            }
        }
        fence.quiet = self.supervisor.is_quiet()
            && fence.vips.is_empty()
            && fence.mounts.is_empty()
            && (reaped || !fence.unaborted);
        let mut remaining = self.supervisor.unclean();
        remaining.extend(fence.vips.iter().map(|vip| vip.address.to_string()));
        remaining.extend(fence.mounts.iter().map(|held| held.mount.path.clone()));
        if !reaped {
            remaining.push("worker".to_owned());
        }
        if strays > 0 {
            remaining.push(format!("{strays} processes of the worker"));
        }
        fence.report.complete = remaining.is_empty();
        remaining.truncate(64);
        fence.report.remaining = remaining;
        if fence.report.complete {
            fence.phase = Phase::Complete;
            fence.step(Step::Complete, now);
        }
    }
}
