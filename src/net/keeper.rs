//! Holds virtual IPs under one decision, by renewing their lease.
//!
//! **The late-loop rule.** A renewal that comes later than the lease proves that this node was not
//! watched over for that long: its peer may have taken the address. So the keeper then removes what it
//! has, reports [`VipEvent::Lost`] and ends; only a new decision (a new [`DecisionToken`], hence a new
//! keeper) brings the address back. Lateness is measured with CLOCK_BOOTTIME, so a suspended machine
//! knows as well. It is checked before *and after* each renewal: a process stopped in between would
//! else have re-added the address on waking; then it stands for microseconds, at most one lease.
//!
//! Failure behaviour: process dead or stopped: the kernel drops the address within lease + 0.2 s.
//! Interface gone or netlink failing: retried every third of the lease, lost when the lease is over.
//! Handle dropped: addresses are removed in the background; if even that fails, the lease ends them.

use super::announce::Announcer;
use super::iface::{Interface, Interfaces, Netlink};
use super::probe::{self, Presence};
use super::{Error, Lease, Mac, Vip};
use crate::base::{Epoch, Mono};
use crate::sys::clock::boottime;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// Probes for a stranger before an address is added, and the time between them. RFC 5227 takes
/// seconds; here the outage counts, the failover driver has probed before, and a host that lives
/// answers in less than a millisecond on a LAN.
const CONFLICT_PROBES: u32 = 2;
const CONFLICT_GAP: Duration = Duration::from_millis(50);
/// Longest wait for the keeper to give its addresses up.
const RELEASE_DEADLINE: Duration = Duration::from_secs(3);

/// The decision under which addresses are held. Two decisions never have equal tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DecisionToken {
    /// The epoch that allows it.
    pub epoch: Epoch,
    /// Number of the decision within the life of this agent.
    pub serial: u64,
}

impl fmt::Display for DecisionToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.epoch, self.serial)
    }
}

/// What happened to a virtual IP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VipEvent {
    /// Added and announced.
    Held {
        /// Which.
        vip: Vip,
        /// Where.
        interface: String,
    },
    /// Gone; must not come back without a new decision.
    Lost {
        /// Which.
        vip: Vip,
        /// Why.
        reason: String,
    },
    /// Given up on request.
    Released {
        /// Which.
        vip: Vip,
    },
    /// Somebody else claims it while we hold it.
    Conflict {
        /// Which.
        vip: Vip,
        /// Who.
        mac: Mac,
    },
}

/// Receives events; must not block.
pub type Observer = Arc<dyn Fn(VipEvent) + Send + Sync>;

/// State of one virtual IP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VipState {
    /// Which.
    pub vip: Vip,
    /// Where.
    pub interface: String,
    /// Index of that interface (what a guard needs to remove it).
    pub ifindex: u32,
    /// When the lease was last renewed.
    pub renewed: Mono,
    /// Held, or the reason why not any more.
    pub lost: Option<String>,
}

impl VipState {
    /// Milliseconds since the last renewal.
    pub fn age_ms(&self) -> u64 {
        boottime() - self.renewed
    }
}

/// Starts keepers.
pub struct VipKeeper;

impl VipKeeper {
    /// Probes for strangers, adds all `vips` with `lease`, announces them, and renews until the handle
    /// is released or dropped. All or nothing: on an error none of them is left behind.
    ///
    /// # Errors
    /// [`Error::Conflict`] when a stranger answers, before anything was added.
    ///
    /// # Cancel safety
    /// Dropped half-way, what was added runs out with its lease.
    pub async fn start(
        vips: Vec<Vip>,
        lease: Lease,
        token: DecisionToken,
        observer: Observer,
    ) -> Result<VipHandle, Error> {
        let netlink = Netlink::open()?;
        let interfaces = netlink.interfaces().await?;
        let places: Vec<&Interface> = vips.iter().map(|v| interfaces.of_vip(v)).collect::<Result<_, _>>()?;
        if let Some(down) = places.iter().find(|i| !i.running) {
            return Err(Error::InterfaceDown { name: down.name.clone() });
        }
        for vip in &vips {
            let permanent = |(_, a): &(_, &super::iface::Assigned)| a.valid_seconds.is_none();
            if let Some((interface, _)) = interfaces.holders(vip.address).find(permanent) {
                return Err(Error::Permanent { address: vip.address, interface: interface.name.clone() });
            }
        }
        refuse_strangers(&vips, &places, &interfaces).await?;

        let mut held = Vec::new();
        for (vip, interface) in vips.iter().zip(&places) {
            match hold(&netlink, vip, interface, lease, &interfaces, &observer).await {
                Ok(one) => held.push(one),
                Err(error) => {
                    for vip in &vips {
                        if let Err(error) = netlink.remove_vip(vip.address).await {
                            tracing::warn!(%vip, %error, "cannot take back a virtual IP; its lease will end it");
                        }
                    }
                    return Err(error);
                }
            }
        }
        for one in &held {
            tracing::info!(vip = %one.vip, interface = one.interface, %token, "virtual IP held");
            observer(VipEvent::Held { vip: one.vip.clone(), interface: one.interface.clone() });
        }
        let (states, watch) = watch::channel(held.iter().map(Held::state).collect());
        let (commands, inbox) = mpsc::channel(4);
        tokio::spawn(Task { netlink, lease, token, held, states, observer }.run(inbox));
        Ok(VipHandle { token, states: watch, commands })
    }
}

enum Command {
    Announce,
    Release(oneshot::Sender<Result<(), Error>>),
}

/// A running keeper. Dropping it gives the addresses up in the background.
#[derive(Debug)]
pub struct VipHandle {
    token: DecisionToken,
    states: watch::Receiver<Vec<VipState>>,
    commands: mpsc::Sender<Command>,
}

impl VipHandle {
    /// The decision it works under.
    pub const fn token(&self) -> DecisionToken {
        self.token
    }

    /// The state of each address.
    pub fn states(&self) -> Vec<VipState> {
        self.states.borrow().clone()
    }

    /// Follows the states.
    pub fn watch(&self) -> watch::Receiver<Vec<VipState>> {
        self.states.clone()
    }

    /// Announces again, from the burst on.
    pub fn announce(&self) {
        // Full: announcements are queued already.
        let _ = self.commands.try_send(Command::Announce);
    }

    /// Stops renewing and removes the addresses; `Ok` means that they are gone.
    pub async fn release(self) -> Result<(), Error> {
        let late = || Error::Deadline { action: "release virtual IPs".into(), limit: RELEASE_DEADLINE };
        let (done, answer) = oneshot::channel();
        let ask = async {
            // A keeper that has ended (all lost) has removed its addresses.
            if self.commands.send(Command::Release(done)).await.is_err() {
                return Ok(());
            }
            answer.await.unwrap_or(Ok(()))
        };
        tokio::time::timeout(RELEASE_DEADLINE, ask).await.unwrap_or_else(|_| Err(late()))
    }
}

struct Held {
    vip: Vip,
    interface: String,
    ifindex: u32,
    renewed: Mono,
    lost: Option<String>,
    announcer: Option<Announcer>,
}

impl Held {
    fn state(&self) -> VipState {
        VipState {
            vip: self.vip.clone(),
            interface: self.interface.clone(),
            ifindex: self.ifindex,
            renewed: self.renewed,
            lost: self.lost.clone(),
        }
    }
}

async fn refuse_strangers(vips: &[Vip], places: &[&Interface], all: &Interfaces) -> Result<(), Error> {
    let own = all.macs();
    let asked = vips
        .iter()
        .zip(places)
        .map(|(vip, interface)| probe::ask(vip.address, interface, &own, CONFLICT_PROBES, CONFLICT_GAP));
    for (vip, answer) in vips.iter().zip(futures::future::join_all(asked).await) {
        match answer {
            Presence::Answered { mac } => {
                return Err(Error::Conflict { address: vip.address, mac: mac.unwrap_or(Mac::ZERO) });
            }
            Presence::Silent => {}
            Presence::Unknown { reason } => {
                tracing::warn!(%vip, reason, "nobody could be asked whether the virtual IP is free");
            }
        }
    }
    Ok(())
}

async fn hold(
    netlink: &Netlink,
    vip: &Vip,
    interface: &Interface,
    lease: Lease,
    all: &Interfaces,
    observer: &Observer,
) -> Result<Held, Error> {
    let renewed = boottime();
    netlink.set_vip(vip, interface.index, lease).await?;
    let report = observer.clone();
    let claimed = vip.clone();
    let on_conflict = Arc::new(move |mac| report(VipEvent::Conflict { vip: claimed.clone(), mac }));
    let announcer = Announcer::start(vip.address, interface, all.macs(), on_conflict)?;
    Ok(Held {
        vip: vip.clone(),
        interface: interface.name.clone(),
        ifindex: interface.index,
        renewed,
        lost: None,
        announcer: Some(announcer),
    })
}

struct Task {
    netlink: Netlink,
    lease: Lease,
    token: DecisionToken,
    held: Vec<Held>,
    states: watch::Sender<Vec<VipState>>,
    observer: Observer,
}

impl Task {
    async fn run(mut self, mut inbox: mpsc::Receiver<Command>) {
        let mut tick = tokio::time::interval(self.lease.renewal());
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased; // a release must not wait behind renewals
                command = inbox.recv() => match command {
                    Some(Command::Announce) => {
                        self.held.iter().filter_map(|h| h.announcer.as_ref()).for_each(Announcer::again);
                    }
                    Some(Command::Release(done)) => {
                        // The caller may have given up waiting; then the lease is what it relies on.
                        let _ = done.send(self.release().await);
                        return;
                    }
                    None => {
                        if let Err(error) = self.release().await {
                            tracing::warn!(token = %self.token, %error, "cannot remove a virtual IP; its lease will end it");
                        }
                        return;
                    }
                },
                _ = tick.tick() => {
                    self.renew().await;
                    if self.held.iter().all(|h| h.lost.is_some()) {
                        return;
                    }
                }
            }
        }
    }

    async fn renew(&mut self) {
        let lease = self.lease.millis();
        let mut late = None;
        for one in self.held.iter_mut().filter(|h| h.lost.is_none()) {
            let before = boottime();
            let silent = before - one.renewed;
            if silent >= lease {
                late = Some(silent);
                break;
            }
            let result = self.netlink.set_vip(&one.vip, one.ifindex, self.lease).await;
            let silent = boottime() - one.renewed;
            if silent >= lease {
                late = Some(silent);
                break;
            }
            match result {
                Ok(()) => one.renewed = before,
                Err(error) => {
                    tracing::warn!(vip = %one.vip, %error, since_ms = silent, "virtual IP not renewed");
                }
            }
        }
        if let Some(silent) = late {
            self.lose(&format!("renewed {silent} ms after the last time, the lease is {lease} ms")).await;
        }
        self.publish();
    }

    /// All of them: one decision, one fate. The states say it before the events do, so that who looks
    /// because of an event sees it.
    async fn lose(&mut self, reason: &str) {
        let mut lost = Vec::new();
        for one in self.held.iter_mut().filter(|h| h.lost.is_none()) {
            one.announcer = None;
            one.lost = Some(reason.to_owned());
            if let Err(error) = self.netlink.remove_vip(one.vip.address).await {
                tracing::warn!(vip = %one.vip, %error, "cannot remove a lost virtual IP; its lease will end it");
            }
            tracing::error!(vip = %one.vip, token = %self.token, reason, "virtual IP lost");
            lost.push(one.vip.clone());
        }
        self.publish();
        for vip in lost {
            (self.observer)(VipEvent::Lost { vip, reason: reason.to_owned() });
        }
    }

    fn publish(&self) {
        self.states.send_replace(self.held.iter().map(Held::state).collect());
    }

    async fn release(&mut self) -> Result<(), Error> {
        let mut result = Ok(());
        for one in &mut self.held {
            one.announcer = None;
            match self.netlink.remove_vip(one.vip.address).await {
                Ok(_) if one.lost.is_none() => {
                    tracing::info!(vip = %one.vip, token = %self.token, "virtual IP released");
                    (self.observer)(VipEvent::Released { vip: one.vip.clone() });
                }
                Ok(_) => {}
                Err(error) => result = Err(error),
            }
        }
        result
    }
}
