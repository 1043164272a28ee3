//! Carries out AddVips and DropVips of one cluster.
//!
//! A task holds the addresses while they are wanted; it ends them in order when they are not. A
//! conflict with a stranger is reported and tried again; addresses lost by a late renewal come back
//! only while the core still wants them and is serving (its own late-tick rule has run by then).

use crate::base::Epoch;
use crate::bus::{Bus, Fact};
use crate::engine::Input;
use crate::failover::Handle;
use crate::net::{DecisionToken, Error, Lease, Vip, VipEvent, VipHandle, VipKeeper};
use crate::spec::ClusterSpec;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Pause between two tries after a conflict or a netlink failure.
const RETRY: Duration = Duration::from_millis(500);
/// Longest wait for the addresses to go; afterwards their lease ends them (at most 1 s to `timeout`).
const DROP_DEADLINE: Duration = Duration::from_secs(4);

static SERIAL: AtomicU64 = AtomicU64::new(1);

/// State of one address for status.
#[derive(Debug, Clone, Default)]
pub struct Held {
    /// Addresses that are here now.
    pub held: Vec<Vip>,
    /// With interface index, for the guard.
    pub places: Vec<(Vip, u32)>,
    /// What is wrong.
    pub note: String,
}

/// The addresses of one cluster.
pub struct Vips {
    /// All of the spec.
    pub all: Vec<Vip>,
    lease: Lease,
    /// What is held.
    pub held: watch::Sender<Held>,
    stop: Option<(mpsc::Sender<()>, tokio::task::JoinHandle<()>)>,
    core: Handle,
    bus: Bus,
    cluster: String,
}

impl Vips {
    /// Nothing is added yet.
    pub fn new(spec: &ClusterSpec, core: Handle, bus: Bus) -> Self {
        let all = spec
            .spec
            .virtual_ips
            .iter()
            .map(|v| Vip {
                address: v.address.ip(),
                prefix: v.address.prefix(),
                interface: v.interface.clone(),
            })
            .collect();
        let lease = Lease::from_timeout(spec.spec.heartbeat.timeout.as_millis());
        let cluster = spec.metadata.name.clone();
        Self { all, lease, held: watch::channel(Held::default()).0, stop: None, core, bus, cluster }
    }

    /// Holds all addresses from now on, by the decision of `epoch`.
    pub fn add(&mut self, epoch: Epoch) {
        if self.all.is_empty() {
            self.core.input(Input::VipHeld(true));
            return;
        }
        if self.stop.as_ref().is_some_and(|(_, task)| !task.is_finished()) {
            return;
        }
        let (tx, rx) = mpsc::channel(1);
        let keeper = Keeper {
            vips: self.all.clone(),
            lease: self.lease,
            epoch,
            held: self.held.clone(),
            core: self.core.clone(),
            bus: self.bus.clone(),
            cluster: self.cluster.clone(),
        };
        self.stop = Some((tx, tokio::spawn(keeper.run(rx))));
    }

    /// Drops all addresses; complete when they are gone (or their lease has to end them).
    pub async fn drop_all(&mut self) {
        if let Some((tx, mut task)) = self.stop.take() {
            let _ = tx.try_send(());
            if tokio::time::timeout(DROP_DEADLINE, &mut task).await.is_err() {
                tracing::error!(
                    cluster = self.cluster,
                    "virtual IPs did not go in time; their lease ends them"
                );
                task.abort();
            }
        }
        self.held.send_replace(Held::default());
        self.core.input(Input::VipHeld(false));
    }
}

struct Keeper {
    vips: Vec<Vip>,
    lease: Lease,
    epoch: Epoch,
    held: watch::Sender<Held>,
    core: Handle,
    bus: Bus,
    cluster: String,
}

impl Keeper {
    async fn run(self, mut stop: mpsc::Receiver<()>) {
        let mut conflict = false;
        loop {
            let (lost_tx, mut lost) = mpsc::channel::<()>(8);
            let token = DecisionToken { epoch: self.epoch, serial: SERIAL.fetch_add(1, Ordering::Relaxed) };
            let observer = self.observer(lost_tx);
            let result = tokio::select! {
                biased; // a revoked decision wins over a half-done start (its lease ends what it added)
                _ = stop.recv() => { self.remove_leftovers().await; return }
                result = VipKeeper::start(self.vips.clone(), self.lease, token, observer) => result,
            };
            match result {
                Ok(handle) => {
                    if conflict {
                        conflict = false;
                        self.core.input(Input::VipConflict(false));
                    }
                    self.report(&handle);
                    tokio::select! {
                        biased; // the order to drop first
                        _ = stop.recv() => {
                            if let Err(error) = handle.release().await {
                                tracing::warn!(%error, "releasing virtual IPs");
                            }
                            return;
                        }
                        _ = lost.recv() => {
                            self.held.send_replace(Held { note: "lost".into(), ..Held::default() });
                            self.core.input(Input::VipHeld(false));
                            drop(handle);
                        }
                    }
                }
                Err(error) => {
                    if matches!(error, Error::Conflict { .. }) && !conflict {
                        conflict = true;
                        self.core.input(Input::VipConflict(true));
                    }
                    self.trouble(&error);
                }
            }
            tokio::select! {
                biased; // the order to drop first
                _ = stop.recv() => return,
                () = tokio::time::sleep(RETRY) => {}
            }
            // A lost lease needs a decision that still stands.
            let snapshot = self.core.snapshot();
            if !snapshot.view.wants_vips {
                return;
            }
        }
    }

    async fn remove_leftovers(&self) {
        if let Ok(netlink) = crate::net::iface::Netlink::open() {
            for vip in &self.vips {
                let _ = netlink.remove_vip(vip.address).await;
            }
        }
    }

    fn report(&self, handle: &VipHandle) {
        let places = handle.states().into_iter().map(|s| (s.vip, s.ifindex)).collect();
        self.held.send_replace(Held { held: self.vips.clone(), places, note: String::new() });
        self.core.input(Input::VipHeld(true));
    }

    fn trouble(&self, error: &Error) {
        let note = error.to_string();
        if self.held.borrow().note == note {
            return; // said already
        }
        tracing::error!(cluster = self.cluster, %error, error_code = error.code(), "virtual IP");
        let object = "virtual IPs".to_owned();
        self.bus.publish(
            Some(&self.cluster),
            Fact::Error { code: error.code().to_owned(), object, message: note.clone() },
        );
        self.held.send_replace(Held { note, ..Held::default() });
    }

    fn observer(&self, lost: mpsc::Sender<()>) -> Arc<dyn Fn(VipEvent) + Send + Sync> {
        let (bus, cluster) = (self.bus.clone(), self.cluster.clone());
        Arc::new(move |event| {
            let fact = match event {
                VipEvent::Held { vip, interface } => Fact::VipHeld { vip: vip.to_string(), interface },
                VipEvent::Lost { vip, reason } => {
                    let _ = lost.try_send(());
                    Fact::VipLost { vip: vip.to_string(), reason }
                }
                VipEvent::Released { vip } => Fact::VipReleased { vip: vip.to_string() },
                VipEvent::Conflict { vip, mac } => {
                    Fact::VipConflict { vip: vip.to_string(), mac: mac.to_string() }
                }
            };
            bus.publish(Some(&cluster), fact);
        })
    }
}
