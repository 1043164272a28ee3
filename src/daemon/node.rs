//! One node: what all its clusters share, and the routes between link, clusters and API.

use super::beat;
use super::cluster::{ClusterUnit, Shared};
use super::down::Downs;
use super::specs::SpecBook;
use crate::api::ApiError;
use crate::base::ClusterId;
use crate::bus::{Bus, Fact};
use crate::engine::{Input, LinkId, PeerMessage};
use crate::link::{LinkEvent, LinkHandle};
use crate::proto::envelope::Envelope;
use crate::spec::{self, ClusterSpec};
use crate::sys::clock::boottime;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;

/// Longest wait for one cluster's orderly end.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(25);

/// Time between two passes over all clusters: what cannot be brought up is tried again this often.
const TRY_AGAIN: Duration = Duration::from_secs(10);

/// Early messages kept: a few of each of some hundred clusters.
const EARLY_MAX: usize = 1024;

/// The node.
pub struct Node {
    /// What clusters need of it.
    pub shared: Arc<Shared>,
    /// Specs in force.
    pub specs: Mutex<SpecBook>,
    /// Running clusters.
    pub clusters: Mutex<BTreeMap<ClusterId, Arc<ClusterUnit>>>,
    /// Clusters that should be up and are not.
    pub down: Mutex<Downs>,
    /// What was already said about a cluster, so that a repeated pass does not repeat it.
    said: Mutex<BTreeMap<ClusterId, &'static str>>,
    /// Messages of the peer's cores for clusters that are not up here yet, of this link session: the
    /// peer greets as soon as the link is up, and says it only once.
    early: Mutex<Vec<(u64, ClusterId, PeerMessage)>>,
    /// Serialises bringing clusters up and down.
    pub changes: tokio::sync::Mutex<()>,
}

/// Does the change touch what a running cluster is built on?
fn needs_stop(old: &ClusterSpec, new: &ClusterSpec) -> bool {
    spec::diff(Some(old), new).iter().any(|change| change.effect == spec::Effect::NeedsStop)
}

/// A part of a cluster could not be set up.
fn not_up(why: &str) -> ApiError {
    ApiError::new(
        "SKC-E7020",
        format!("it cannot be brought up: {why}"),
        format!("skc explain SKC-E7020 (it is tried again every {} s)", TRY_AGAIN.as_secs()),
    )
}

impl Node {
    /// A node without clusters yet.
    pub fn new(shared: Arc<Shared>, specs: SpecBook) -> Arc<Self> {
        Arc::new(Self {
            shared,
            specs: Mutex::new(specs),
            clusters: Mutex::default(),
            down: Mutex::default(),
            said: Mutex::default(),
            early: Mutex::default(),
            changes: tokio::sync::Mutex::new(()),
        })
    }

    /// The bus.
    pub fn bus(&self) -> &Bus {
        &self.shared.bus
    }

    fn link(&self) -> &LinkHandle {
        &self.shared.link
    }

    /// All running clusters.
    pub fn units(&self) -> Vec<Arc<ClusterUnit>> {
        self.clusters.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// One of them.
    pub fn unit(&self, cluster: &ClusterId) -> Option<Arc<ClusterUnit>> {
        self.clusters.lock().unwrap_or_else(PoisonError::into_inner).get(cluster).cloned()
    }

    /// Reconciles now and every [`TRY_AGAIN`]; changes of specs do it in between.
    pub async fn keep_up(self: Arc<Self>) {
        loop {
            self.reconcile().await;
            tokio::time::sleep(TRY_AGAIN).await;
        }
    }

    /// Is it the first time that this is said about the cluster (since something else was)?
    fn is_news(&self, cluster: &ClusterId, what: &'static str) -> bool {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.insert(cluster.clone(), what) != Some(what)
    }

    /// Makes the running clusters match the specs in force.
    pub async fn reconcile(self: &Arc<Self>) {
        let _one = self.changes.lock().await;
        let mut down: Vec<(ClusterId, ApiError)> = Vec::new();
        let wanted: Vec<_> = {
            let specs = self.specs.lock().unwrap_or_else(PoisonError::into_inner);
            down.extend(specs.unusable().map(|(c, problem)| (c.clone(), problem.clone())));
            specs.live().filter_map(|(c, e)| Some((c.clone(), e.revision.number, e.spec.clone()?))).collect()
        };
        let gone: Vec<ClusterId> = self
            .units()
            .iter()
            .map(|u| u.id.clone())
            .filter(|id| !wanted.iter().any(|(c, _, _)| c == id))
            .collect();
        for id in gone {
            if self.unit(&id).is_some_and(|unit| unit.runs()) {
                if self.is_news(&id, "removed") {
                    tracing::error!(cluster = %id, "its spec was removed while it runs here: it goes on until it is stopped");
                }
                continue;
            }
            let unit = self.clusters.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
            if let Some(unit) = unit {
                unit.remove().await;
            }
        }
        for (id, revision, spec) in wanted {
            if let Some(unit) = self.unit(&id) {
                if !needs_stop(&unit.spec(), &spec) {
                    unit.configure(spec, revision);
                    self.said.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
                    continue;
                }
                if unit.runs() {
                    if self.is_news(&id, "waits") {
                        tracing::warn!(cluster = %id, revision, "the new spec is taken over when the cluster is stopped here");
                    }
                    continue;
                }
                self.clusters.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
                unit.remove().await;
            }
            match ClusterUnit::start(self.shared.clone(), spec, revision).await {
                Ok(unit) => {
                    self.introduce(id, &unit);
                }
                Err(error) => down.push((id, not_up(&error))),
            }
        }
        let news = self.down.lock().unwrap_or_else(PoisonError::into_inner).settle(down, boottime());
        for (cluster, ApiError { code, message, .. }) in news {
            tracing::error!(%cluster, error = message, error_code = code, "cluster cannot be brought up");
            let object = "cluster".to_owned();
            self.bus().publish(Some(&cluster.0), Fact::Error { code, object, message });
        }
    }

    /// From here on the link's events reach the unit; it is told what it missed.
    fn introduce(&self, id: ClusterId, unit: &Arc<ClusterUnit>) {
        let mut clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        let mut early = self.early.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(session) = self.link().status().session.map(|s| s.session) {
            unit.link_up(session);
            for (of, cluster, message) in early.iter() {
                if *of == session && *cluster == id {
                    unit.core.input(Input::Peer { link: LinkId(session), message: message.clone() });
                }
            }
        }
        early.retain(|(_, cluster, _)| *cluster != id);
        clusters.insert(id, unit.clone());
    }

    fn core_message(&self, session: u64, cluster: ClusterId, message: PeerMessage) {
        let clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(unit) = clusters.get(&cluster) {
            unit.core.input(Input::Peer { link: LinkId(session), message });
            return;
        }
        let mut early = self.early.lock().unwrap_or_else(PoisonError::into_inner);
        early.retain(|(of, _, _)| *of == session);
        if early.len() < EARLY_MAX {
            early.push((session, cluster, message));
        }
    }

    /// Handles link events until the link ends.
    pub async fn route(self: Arc<Self>, mut events: mpsc::Receiver<LinkEvent>) {
        let mut session = 0;
        while let Some(event) = events.recv().await {
            match event {
                LinkEvent::Up { session: s, path, .. } => {
                    session = s;
                    self.bus().publish(None, Fact::LinkUp { path: self.path_name(path) });
                    self.send_list();
                    for unit in self.units() {
                        unit.link_up(s);
                    }
                }
                LinkEvent::Down { session: s, reason } => {
                    let path = String::new();
                    self.bus().publish(None, Fact::LinkDown { path, reason: reason.to_string() });
                    for unit in self.units() {
                        unit.core.input(Input::LinkDown { link: LinkId(s) });
                    }
                }
                LinkEvent::Message(bytes) => self.message(session, &bytes),
                LinkEvent::Heartbeat { body, .. } => {
                    let units = self.units();
                    for (key, body) in beat::decode(&body) {
                        if let Some(unit) = units.iter().find(|u| u.key == key) {
                            unit.core.input(Input::Heartbeat(body));
                        }
                    }
                }
                LinkEvent::PathUp { path } => {
                    let path = self.path_name(path);
                    self.bus().publish(None, Fact::HeartbeatRegained { path, silent_ms: 0 });
                }
                LinkEvent::PathDown { path } => {
                    let silent_ms =
                        self.link().status().paths.get(path).and_then(|p| p.heard_ms_ago).unwrap_or(0);
                    let path = self.path_name(path);
                    self.bus().publish(None, Fact::HeartbeatLost { path, silent_ms });
                }
                LinkEvent::OwnStall { late } => {
                    tracing::warn!(late_ms = late.as_millis() as u64, "this agent's heartbeats were late");
                }
                LinkEvent::Data { hello, conn, .. } => self.data(&hello, conn),
                LinkEvent::Refused { why, code, from } => {
                    tracing::warn!(%from, error_code = code, "connection refused: {why}");
                    let object = from.to_string();
                    self.bus().publish(None, Fact::Error { code: code.to_owned(), object, message: why });
                }
                LinkEvent::Tombstone { body, .. } => self.tombstone(&body),
                LinkEvent::Joined { node } => {
                    tracing::info!(node = node.name, "a node joined the pair");
                }
            }
        }
    }

    fn message(self: &Arc<Self>, session: u64, bytes: &[u8]) {
        match Envelope::decode(bytes) {
            Ok(Envelope::Core { cluster, body }) => match rmp_serde::from_slice::<PeerMessage>(&body) {
                Ok(message) => self.core_message(session, cluster, message),
                Err(error) => tracing::error!(%cluster, %error, "a core message is not understood"),
            },
            Ok(Envelope::SpecList(theirs)) => {
                let (want, send) = self.specs.lock().unwrap_or_else(PoisonError::into_inner).compare(&theirs);
                for cluster in want {
                    self.send(&Envelope::SpecWant(cluster));
                }
                for cluster in &send {
                    self.send_spec(cluster);
                }
            }
            Ok(Envelope::SpecWant(cluster)) => self.send_spec(&cluster),
            Ok(Envelope::SpecPut { stamp, text }) => {
                let result = self.specs.lock().unwrap_or_else(PoisonError::into_inner).accept(&stamp, text);
                match result {
                    Ok(true) => {
                        let node = self.clone();
                        self.bus()
                            .publish(Some(&stamp.cluster.0), Fact::SpecApplied { revision: stamp.number });
                        tokio::spawn(async move { node.reconcile().await });
                    }
                    Ok(false) => {}
                    Err(error) => {
                        tracing::error!(cluster = %stamp.cluster, %error, "the peer's spec is refused here");
                        self.bus().publish(
                            Some(&stamp.cluster.0),
                            Fact::SpecRefused { code: error.code, reason: error.message },
                        );
                    }
                }
            }
            Err(error) => tracing::error!(%error, "a message of the peer is not understood"),
        }
    }

    fn data(&self, hello: &[u8], conn: crate::link::DataConn) {
        match rmp_serde::from_slice::<super::cluster::DataHello>(hello) {
            Ok(hello) => {
                if let Some(unit) = self.unit(&hello.cluster) {
                    unit.accept(hello.epoch, conn);
                } else {
                    tracing::warn!(cluster = %hello.cluster, "a data connection for an unknown cluster");
                }
            }
            Err(error) => tracing::warn!(%error, "the greeting of a data connection is not understood"),
        }
    }

    fn tombstone(&self, body: &[u8]) {
        let Ok(stones) = rmp_serde::from_slice::<Vec<super::cluster::ClusterTombstone>>(body) else {
            tracing::warn!("a tombstone is not understood");
            return;
        };
        for stone in stones {
            if let Some(unit) = self.unit(&stone.cluster) {
                unit.core.input(Input::Tombstone(stone.tombstone));
            }
        }
    }

    fn send(&self, envelope: &Envelope) {
        if let Err(error) = self.link().send(envelope.encode()) {
            tracing::debug!(%error, "not sent: the lists are compared again at the next connect");
        }
    }

    fn send_list(&self) {
        let stamps = self.specs.lock().unwrap_or_else(PoisonError::into_inner).stamps();
        self.send(&Envelope::SpecList(stamps));
    }

    /// Sends one spec, for example after it was applied here.
    pub fn send_spec(&self, cluster: &ClusterId) {
        let put = self.specs.lock().unwrap_or_else(PoisonError::into_inner).put(cluster);
        if let Some(put) = put {
            self.send(&put);
        }
    }

    fn path_name(&self, path: usize) -> String {
        let status = self.link().status();
        status
            .paths
            .get(path)
            .map_or_else(|| path.to_string(), |p| format!("{} - {}", p.local.ip(), p.remote.ip()))
    }

    /// Keeps the heartbeat's body fresh: the age in it must grow while nothing happens.
    pub async fn beat(self: Arc<Self>) {
        let mut start = 0;
        let mut timers = None;
        loop {
            let mut interval = Duration::from_millis(200);
            self.follow_timers(&mut timers).await;
            let mut bodies = Vec::new();
            for unit in self.units() {
                unit.watch_driver();
                interval = interval.min(unit.heartbeat_interval());
                bodies.push((unit.key, unit.heartbeat()));
            }
            let (body, next) = beat::encode(&bodies, start);
            start = next;
            if let Err(error) = self.link().set_heartbeat(body) {
                tracing::error!(%error, "heartbeat body");
            }
            tokio::time::sleep(interval / 2).await;
        }
    }

    /// The pair's link serves the most impatient cluster; the guard learns the same budget.
    async fn follow_timers(&self, last: &mut Option<(u64, u64)>) {
        let heartbeats: Vec<_> = self.units().iter().map(|u| u.spec().spec.heartbeat.clone()).collect();
        let interval = heartbeats.iter().map(|h| h.interval.as_millis()).min();
        let timeout = heartbeats.iter().map(|h| h.timeout.as_millis()).min();
        let (Some(interval), Some(timeout)) = (interval, timeout) else { return };
        if *last == Some((interval, timeout)) {
            return;
        }
        *last = Some((interval, timeout));
        self.link().reconfigure(Duration::from_millis(interval), Duration::from_millis(timeout));
        let watchdog = (3 * timeout).max(super::agent::WATCHDOG_MS);
        if let Err(error) = self.shared.guard.run(move |guard| guard.set_budget(timeout, watchdog)).await {
            tracing::error!(%error, "the guard does not take the budget");
        }
    }

    /// Orderly end: every cluster hands over if it can, all at once.
    pub async fn shutdown(&self) {
        let ends = self.units().into_iter().map(|unit| async move {
            if tokio::time::timeout(SHUTDOWN_DEADLINE, unit.core.shutdown()).await.is_err() {
                tracing::error!(cluster = %unit.id, "no orderly end in time; the guard stops the services");
            }
            unit.remove().await;
        });
        futures::future::join_all(ends).await;
    }
}
