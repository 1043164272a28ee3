//! Carries out the core's effects with the node's parts.

use super::services::Services;
use super::streams::Streams;
use super::vips::{Trustee, Vips};
use super::volumes::Volumes;
use super::{ClusterTombstone, CurrentSpec, DataHello, Shared};
use crate::base::{ClusterId, Epoch, Millis};
use crate::bus::Fact;
use crate::engine::{
    Durable, Event, Gate, Input, LinkId, PeerMessage, Plan, ProbeResult, StreamFacts, StreamRole, Token,
    Tombstone, WitnessState,
};
use crate::failover::{Handle, World, config};
use crate::guard::message::Datagram;
use crate::net::{Witness, probe_round};
use crate::proto::envelope::Envelope;
use crate::reconcile::vip::Standing;
use crate::replica::sync_trees;
use crate::spec::ClusterSpec;
use crate::store::fence::FenceSlots;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// Longest wait for the source's data connection to be made.
const DIAL_DEADLINE: Duration = Duration::from_secs(5);

/// Longest wait for the kernel to forget what it caches (dirty mapped pages are written meanwhile).
const INVALIDATE_LIMIT: Duration = Duration::from_millis(200);

/// The world of one cluster's core.
pub struct NodeWorld {
    id: ClusterId,
    shared: Arc<Shared>,
    fence: Arc<Mutex<FenceSlots>>,
    core: Handle,
    streams: Arc<Streams>,
    volumes: Arc<Mutex<Volumes>>,
    vips: Vips<Trustee>,
    /// The services.
    pub services: Arc<Services>,
    peer: Vec<IpAddr>,
    epoch: Epoch,
    probe: Option<tokio::task::JoinHandle<()>>,
    relook: Arc<Notify>,
    current: CurrentSpec,
}

impl NodeWorld {
    /// A world at rest.
    #[allow(clippy::too_many_arguments)] // built in one place from parts that have nothing in common
    pub fn new(
        id: ClusterId,
        shared: Arc<Shared>,
        spec: &ClusterSpec,
        fence: FenceSlots,
        core: Handle,
        streams: Arc<Streams>,
        volumes: Arc<Mutex<Volumes>>,
        relook: Arc<Notify>,
        current: CurrentSpec,
    ) -> Self {
        let names = config::names(spec);
        let peer = spec
            .spec
            .nodes
            .iter()
            .filter(|n| n.name != shared.name && names.contains(&n.name))
            .flat_map(|n| n.addresses.iter().copied())
            .collect();
        let vips = Vips::new(spec, core.clone(), &shared.bus, Trustee(shared.clone()));
        let services = Services::new(id.clone(), shared.clone(), spec, core.clone());
        Self {
            id,
            shared,
            fence: Arc::new(Mutex::new(fence)),
            core,
            streams,
            volumes,
            vips,
            services,
            peer,
            epoch: Epoch::default(),
            probe: None,
            relook,
            current,
        }
    }

    /// Follows how the addresses stand.
    pub fn vips_watch(&self) -> watch::Receiver<Standing> {
        self.vips.watch()
    }

    /// Takes everything down that would outlive the core.
    pub async fn end(&mut self) {
        self.vips.drop_all().await;
        self.services.end().await;
        self.streams.close().await;
        if let Err(error) = self.set_tombstone(None).await {
            tracing::error!(error, "the guard does not take the tombstone");
        }
        if let Some(probe) = self.probe.take() {
            probe.abort();
        }
    }
}

/// The lists of all clusters travel together; the lock is held until the guard has the list, so that
/// two clusters cannot cross and bring back what one of them withdrew.
fn tell_tombstone(shared: &Shared, id: ClusterId, tombstone: Option<Tombstone>) -> Result<(), String> {
    let mut fencing = shared.fencing.lock().unwrap_or_else(PoisonError::into_inner);
    match tombstone {
        Some(tombstone) => {
            let stone = ClusterTombstone { cluster: id.clone(), tombstone };
            fencing.tombstones.insert(id, stone);
        }
        None => {
            fencing.tombstones.remove(&id);
        }
    }
    let all: Vec<_> = fencing.tombstones.values().collect();
    let mut datagrams = Vec::new();
    if !all.is_empty() {
        let body = rmp_serde::to_vec(&all).map_err(|e| e.to_string())?;
        match shared.link.tombstone(&body) {
            Ok(stone) => {
                let to = stone.routes.iter().map(|(_, peer)| *peer).collect();
                datagrams.push(Datagram { bytes: stone.datagram, to });
            }
            Err(error) => tracing::debug!(%error, "no tombstone: there is no peer yet"),
        }
    }
    // `true`: the guard sent one for an earlier life. The core of this life starts without any right
    // and takes none without a handshake, so nothing it may do contradicts what was said.
    if shared.guard.set_tombstone(datagrams).map_err(|e| e.to_string())? {
        tracing::info!("the tombstone of an earlier agent of this node was sent");
    }
    Ok(())
}

impl World for NodeWorld {
    async fn persist(&mut self, record: Box<Durable>) -> Result<(), String> {
        self.epoch = record.epoch;
        let fence = self.fence.clone();
        let write = move || {
            fence.lock().unwrap_or_else(PoisonError::into_inner).write(&*record).map_err(|e| e.to_string())
        };
        tokio::task::spawn_blocking(write).await.map_err(|e| e.to_string())?
    }

    fn send(&mut self, message: &PeerMessage) {
        let body = match rmp_serde::to_vec(message) {
            Ok(body) => body,
            Err(error) => {
                tracing::error!(%error, "a core message cannot be encoded");
                return;
            }
        };
        let envelope = Envelope::Core { cluster: self.id.clone(), body };
        if let Err(error) = self.shared.link.send(envelope.encode()) {
            tracing::debug!(%error, "not sent, the link is down");
        }
    }

    fn close_link(&mut self, link: LinkId) {
        self.shared.link.hang_up(link.0);
    }

    async fn gate(&mut self, gate: Gate) {
        self.shared.bus.publish(Some(&self.id.0), Fact::GateChanged { gate: gate_word(gate).to_owned() });
        if !self.streams.set_gate(gate).await && gate != Gate::Frozen {
            // Whoever waits for the disk here would wait as long as it does, and could not even be killed.
            let volumes = self.volumes.clone();
            tokio::task::spawn_blocking(move || {
                volumes.lock().unwrap_or_else(PoisonError::into_inner).give_up();
            });
        }
    }

    fn open_stream(&mut self, role: StreamRole, epoch: Epoch, plan: Plan) {
        self.epoch = epoch;
        match role {
            StreamRole::Target => self.streams.expect(epoch, plan),
            StreamRole::Source => {
                let (shared, streams, core) = (self.shared.clone(), self.streams.clone(), self.core.clone());
                let hello = DataHello { cluster: self.id.clone(), epoch };
                streams.begin(epoch);
                tokio::spawn(async move {
                    let bytes = rmp_serde::to_vec(&hello).unwrap_or_default();
                    let dialled = tokio::time::timeout(DIAL_DEADLINE, shared.link.dial_data(bytes)).await;
                    match dialled {
                        Ok(Ok(conn)) => streams.connect(epoch, plan, conn),
                        Ok(Err(error)) => {
                            tracing::warn!(%error, "data connection");
                            core.input(Input::StreamDown {
                                s: epoch.s,
                                why: crate::engine::StreamLoss::Closed,
                            });
                        }
                        Err(_) => {
                            tracing::warn!("data connection: no answer in time");
                            core.input(Input::StreamDown {
                                s: epoch.s,
                                why: crate::engine::StreamLoss::Closed,
                            });
                        }
                    }
                });
            }
        }
    }

    async fn close_stream(&mut self) -> StreamFacts {
        self.streams.close().await
    }

    fn mark_up_to_date(&mut self, epoch: Epoch) {
        self.streams.mark_up_to_date(epoch);
    }

    fn release_marker(&mut self, epoch: Epoch) {
        self.streams.release_marker(epoch);
        // Equal to the source now: a directory that was restored from a copy is a good one again.
        let (volumes, relook) = (self.volumes.clone(), self.relook.clone());
        tokio::task::spawn_blocking(move || {
            match volumes.lock().unwrap_or_else(PoisonError::into_inner).bless() {
                Ok(()) => relook.notify_one(),
                Err(error) => tracing::error!(error, "the directory's stamp"),
            }
        });
    }

    fn syncfs(&mut self, token: Token) {
        let (volumes, core) = (self.volumes.clone(), self.core.clone());
        tokio::task::spawn_blocking(move || {
            let trees = volumes.lock().unwrap_or_else(PoisonError::into_inner).trees();
            let ok = trees.is_some_and(|trees| match sync_trees(&trees) {
                Ok(()) => true,
                Err(errno) => {
                    tracing::error!(errno = errno.0, error_code = "SKC-E3008", "syncfs failed");
                    false
                }
            });
            core.input(Input::Synced { token, ok });
        });
    }

    fn drain(&mut self, token: Token) {
        let (streams, core) = (self.streams.clone(), self.core.clone());
        tokio::task::spawn_blocking(move || {
            // Not drained within the deadline: the core's own deadline ends the hand-over.
            if streams.drain() {
                core.input(Input::Drained { token });
            }
        });
    }

    fn start_probe(&mut self, token: Token, window: Millis) {
        if let Some(old) = self.probe.take() {
            old.abort();
        }
        let (vips, peer) = (self.vips.all.clone(), self.peer.clone());
        let spec = self.current.read().unwrap_or_else(PoisonError::into_inner).0.clone();
        let witnesses = spec.spec.arbitration.ping.clone();
        let (core, bus, id) = (self.core.clone(), self.shared.bus.clone(), self.id.0.clone());
        self.probe = Some(tokio::spawn(async move {
            let found = probe_round(&vips, &peer, &witnesses, Duration::from_millis(window)).await;
            let witness = match found.witness {
                Witness::Reachable => WitnessState::Reachable,
                Witness::Unreachable => WitnessState::Unreachable,
                Witness::NotConfigured => WitnessState::None,
            };
            let result: ProbeResult = found.to_core();
            bus.publish(
                Some(&id),
                Fact::Probed {
                    vip_answered: result.vip_answered,
                    peer_answered: result.peer_answered,
                    witness: format!("{witness:?}"),
                    elapsed_ms: found.elapsed.as_millis() as u64,
                },
            );
            core.input(Input::Probe { token, result });
        }));
    }

    async fn add_vips(&mut self) {
        self.vips.add(self.epoch);
    }

    async fn drop_vips(&mut self) {
        self.vips.drop_all().await;
    }

    fn start_services(&mut self) {
        self.services.want(true);
    }

    fn stop_services(&mut self) {
        self.services.want(false);
    }

    fn accept_tree(&mut self) {
        let (volumes, relook) = (self.volumes.clone(), self.relook.clone());
        tokio::task::spawn_blocking(move || {
            let mut volumes = volumes.lock().unwrap_or_else(PoisonError::into_inner);
            let accepted = if volumes.trees().is_none() { volumes.adopt() } else { volumes.bless() };
            if let Err(error) = accepted {
                tracing::error!(error, error_code = "SKC-E3010", "the directories cannot be taken over");
            }
            relook.notify_one();
        });
    }

    async fn invalidate_caches(&mut self) {
        let volumes = self.volumes.clone();
        let done = tokio::task::spawn_blocking(move || {
            let volumes = volumes.lock().unwrap_or_else(PoisonError::into_inner);
            for mount in volumes.units.iter().filter_map(|u| u.mount.as_ref()) {
                if !mount.invalidate_all(INVALIDATE_LIMIT) {
                    tracing::warn!("invalidating a mount's caches goes on in the background");
                }
            }
        });
        let _ = done.await;
    }

    async fn set_tombstone(&mut self, tombstone: Option<Tombstone>) -> Result<(), String> {
        let (id, shared) = (self.id.clone(), self.shared.clone());
        tokio::task::spawn_blocking(move || tell_tombstone(&shared, id, tombstone))
            .await
            .map_err(|e| e.to_string())?
    }

    fn event(&mut self, event: &Event) {
        let failover_id = (event.failover_id != 0).then(|| format!("f{}", event.failover_id));
        self.shared.bus.correlate(&self.id.0, failover_id);
        self.shared.bus.publish(
            Some(&self.id.0),
            Fact::Decision {
                code: event.kind.code().to_owned(),
                what: super::facts::words(&event.kind),
                epoch: event.epoch,
            },
        );
    }
}

fn gate_word(gate: Gate) -> &'static str {
    match gate {
        Gate::ReadOnly => "read-only",
        Gate::Replicated { .. } => "writable, replicated",
        Gate::Alone { .. } => "writable, alone",
        Gate::Frozen => "frozen",
        Gate::Shut => "shut",
    }
}
