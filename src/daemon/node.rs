//! One node: what all its clusters share, and the routes between link, clusters and API.

use super::beat::{self, Key};
use super::cluster::{ClusterUnit, Shared};
use super::down::Downs;
use super::specs::{self, SpecBook};
use crate::api::ApiError;
use crate::api::types::Reason;
use crate::base::{ClusterId, Mono};
use crate::bus::{Bus, Fact};
use crate::engine::{Input, LinkId, LiveRole, PeerMessage};
use crate::link::{LinkEvent, LinkHandle, pki};
use crate::proto::envelope::Envelope;
use crate::spec::{self, ClusterSpec};
use crate::sys::clock::boottime;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Longest wait for one cluster's orderly end.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(24);
/// Then, for what is left of it. With the link's two seconds: within the guard's 30.
const LAST_LIMIT: Duration = Duration::from_secs(3);
/// Longest wait for a removed cluster's end, or for its fencing record to be read; longer than what its
/// parts take by their own limits. It is waited for again in the next pass.
const CHANGE_LIMIT: Duration = Duration::from_secs(15);

/// Time between two passes over all clusters: what cannot be brought up is tried again this often.
const TRY_AGAIN: Duration = Duration::from_secs(10);

/// A core that has just been brought up says Stop until its directories were looked at, also if it is
/// about to start; after this long it means it.
const SETTLED: u64 = 10_000;

/// A heartbeat's word about a cluster holds this long: with the longest interval (10 s) each of many
/// clusters is in every second or third heartbeat.
const WORD_HOLDS: u64 = 30_000;

/// Clusters of the peer whose word is kept; far more than a pair carries.
const WORDS_MAX: usize = 1024;

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
    /// What the peer's heartbeats last said of each of its clusters, and when.
    peer_roles: Mutex<BTreeMap<Key, (LiveRole, Mono)>>,
    /// What the peer does not take of this node's specs, and why: by revision, so that a later one voids it.
    pub(super) refusals: Mutex<BTreeMap<ClusterId, (u64, Reason)>>,
    /// A spec of the peer could not be stored: it is asked for again.
    pub(super) not_stored: AtomicBool,
    /// When each cluster was brought up.
    born: Mutex<BTreeMap<ClusterId, Mono>>,
    /// Messages of the peer's cores for clusters that are not up here yet, of this link session: the
    /// peer greets as soon as the link is up, and says it only once.
    early: Mutex<Vec<(u64, ClusterId, PeerMessage)>>,
    /// Serialises bringing clusters up and down.
    changes: tokio::sync::Mutex<Unfinished>,
    /// Serialises changes of the specs.
    writing: tokio::sync::Mutex<()>,
}

/// What did not end within [`CHANGE_LIMIT`].
#[derive(Default)]
struct Unfinished {
    starting: BTreeMap<ClusterId, JoinHandle<Result<Arc<ClusterUnit>, String>>>,
    ending: BTreeMap<ClusterId, Arc<ClusterUnit>>,
}

/// Does the change touch what a running cluster is built on?
fn needs_stop(old: &ClusterSpec, new: &ClusterSpec) -> bool {
    spec::diff(Some(old), new).iter().any(|change| change.effect == spec::Effect::NeedsStop)
}

/// What the other node does with a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerSays {
    /// There is no other node yet.
    NoPeer,
    /// It is out of reach, or has said nothing of this cluster.
    Nothing {
        /// Its name.
        peer: String,
    },
    /// Its heartbeat's word.
    Role {
        /// Its name.
        peer: String,
        /// The word.
        role: LiveRole,
    },
}

impl PeerSays {
    /// As status shows it; empty if nothing is known.
    pub fn role(&self) -> &'static str {
        match self {
            Self::Role { role: LiveRole::Stop, .. } => "STOP",
            Self::Role { role: LiveRole::Wait, .. } => "WAIT",
            Self::Role { role: LiveRole::Alone, .. } => "ALONE",
            Self::Role { role: LiveRole::Prim | LiveRole::Frozen, .. } => "PRIM",
            Self::Role { role: LiveRole::Second, .. } => "SECOND",
            Self::NoPeer | Self::Nothing { .. } => "",
        }
    }
}

/// May the spec of a cluster be removed from both nodes? `force`: the operator vouches for a node that
/// cannot be asked, never for one that says that it runs.
pub fn may_remove(
    cluster: &ClusterId,
    runs_here: bool,
    peer: &PeerSays,
    force: bool,
) -> Result<(), ApiError> {
    let refused = |why: String, hint: String| {
        Err(ApiError::new("SKC-E7022", format!("{why}; nothing was removed"), hint))
    };
    let stop = || format!("skc stop {cluster} (on both nodes), then skc delete {cluster}");
    match peer {
        _ if runs_here => refused(format!("{cluster} runs on this node"), stop()),
        PeerSays::Role { role: LiveRole::Stop, .. } | PeerSays::NoPeer => Ok(()),
        says @ PeerSays::Role { peer, .. } => {
            refused(format!("{cluster} runs on {peer} ({})", says.role()), stop())
        }
        PeerSays::Nothing { .. } if force => Ok(()),
        PeerSays::Nothing { peer } => refused(
            format!("{peer} cannot be asked whether {cluster} runs there"),
            format!(
                "when {peer} is back: {}; if it never comes back or does not know {cluster}: skc delete {cluster} --force",
                stop()
            ),
        ),
    }
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
            peer_roles: Mutex::default(),
            refusals: Mutex::default(),
            not_stored: AtomicBool::default(),
            born: Mutex::default(),
            early: Mutex::default(),
            changes: tokio::sync::Mutex::default(),
            writing: tokio::sync::Mutex::default(),
        })
    }

    /// The bus.
    pub fn bus(&self) -> &Bus {
        &self.shared.bus
    }

    pub(super) fn link(&self) -> &LinkHandle {
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

    /// The enrolled nodes, this one first; the other one is there once it has joined.
    pub fn pair(&self) -> Vec<pki::Node> {
        let identity = self.link().identity();
        std::iter::once(identity.me()).chain(identity.peer()).cloned().collect()
    }

    /// Is it certain that nothing of the cluster runs here or is about to?
    pub fn is_stopped(&self, cluster: &ClusterId) -> bool {
        match self.unit(cluster) {
            Some(unit) => {
                let born = self.born.lock().unwrap_or_else(PoisonError::into_inner).get(cluster).copied();
                !unit.runs() && born.is_none_or(|at| boottime() - at >= SETTLED)
            }
            None => self.down.lock().unwrap_or_else(PoisonError::into_inner).get(cluster).is_some(),
        }
    }

    /// The operator has just stopped it here: no need to wait whether it is about to start.
    pub fn was_stopped(&self, cluster: &ClusterId) {
        self.born.lock().unwrap_or_else(PoisonError::into_inner).remove(cluster);
    }

    /// What the other node does with a cluster, as far as this one knows.
    pub fn peer_says(&self, cluster: &ClusterId) -> PeerSays {
        let link = self.link();
        let Some(peer) = link.identity().peer().map(|peer| peer.name.clone()) else {
            return PeerSays::NoPeer;
        };
        let status = link.status();
        if status.session.is_none() && !status.paths.iter().any(|path| path.alive) {
            return PeerSays::Nothing { peer };
        }
        let roles = self.peer_roles.lock().unwrap_or_else(PoisonError::into_inner);
        match roles.get(&Key::of(cluster)) {
            Some((role, at)) if boottime() - *at <= WORD_HOLDS => PeerSays::Role { peer, role: *role },
            _ => PeerSays::Nothing { peer },
        }
    }

    fn hear(&self, key: Key, role: LiveRole) {
        let now = boottime();
        let mut roles = self.peer_roles.lock().unwrap_or_else(PoisonError::into_inner);
        if roles.len() >= WORDS_MAX {
            roles.retain(|_, (_, at)| now - *at <= WORD_HOLDS);
        }
        if roles.len() < WORDS_MAX || roles.contains_key(&key) {
            roles.insert(key, (role, now));
        }
    }

    /// Reconciles now and every ten seconds; changes of specs do it in between.
    pub async fn keep_up(self: Arc<Self>) {
        loop {
            self.reconcile().await;
            tokio::time::sleep(TRY_AGAIN).await;
            if self.not_stored.swap(false, Ordering::Relaxed) {
                self.send_list(); // the peer sends again what the disk did not take
            }
        }
    }

    /// Is it the first time that this is said about the cluster (since something else was)?
    fn is_news(&self, cluster: &ClusterId, what: &'static str) -> bool {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.insert(cluster.clone(), what) != Some(what)
    }

    /// Makes the running clusters match the specs in force.
    pub async fn reconcile(self: &Arc<Self>) {
        let mut changes = self.changes.lock().await;
        let mut down: Vec<(ClusterId, ApiError)> = Vec::new();
        let wanted: Vec<_> = {
            let specs = self.specs.lock().unwrap_or_else(PoisonError::into_inner);
            down.extend(specs.unusable().map(|(c, problem)| (c.clone(), problem.clone())));
            specs.live().filter_map(|(c, e)| Some((c.clone(), e.revision.number, e.spec.clone()?))).collect()
        };
        self.finish(&mut changes, &wanted.iter().map(|(c, _, _)| c).collect::<Vec<_>>()).await;
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
            self.end(&mut changes, &id).await;
        }
        let pair = self.pair();
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
                self.end(&mut changes, &id).await;
            }
            if changes.ending.contains_key(&id) {
                down.push((id, not_up("its former life has not ended: its disk does not answer")));
                continue;
            }
            if let Err(why) = specs::names_fit(&spec, &pair) {
                let names: Vec<&str> = pair.iter().map(|node| node.name.as_str()).collect();
                down.push((id, specs::misfit(&spec, &why, &names.join(", "))));
                continue;
            }
            if let Some(other) = self.units().iter().find(|unit| unit.key == Key::of(&id)) {
                let problem = specs::same_key(&id, &other.id);
                down.push((id, problem));
                continue;
            }
            let start = || tokio::spawn(ClusterUnit::start(self.shared.clone(), spec, revision));
            let mut starting = changes.starting.remove(&id).unwrap_or_else(start);
            match tokio::time::timeout(CHANGE_LIMIT, &mut starting).await {
                Ok(Ok(Ok(unit))) => self.introduce(id, &unit),
                Ok(Ok(Err(error))) => down.push((id, not_up(&error))),
                Ok(Err(error)) => down.push((id, not_up(&error.to_string()))),
                Err(_) => {
                    changes.starting.insert(id.clone(), starting);
                    down.push((id, not_up("the disk of the state directory does not answer")));
                }
            }
        }
        if self.withheld_may_go() {
            self.send_list(); // the peer says again what it removed
        }
        let news = self.down.lock().unwrap_or_else(PoisonError::into_inner).settle(down, boottime());
        for (cluster, ApiError { code, message, .. }) in news {
            tracing::error!(%cluster, error = message, error_code = code, "cluster cannot be brought up");
            let object = "cluster".to_owned();
            self.bus().publish(Some(&cluster.0), Fact::Error { code, object, message });
        }
    }

    /// Takes a cluster down; what hangs is kept in `changes`.
    async fn end(&self, changes: &mut Unfinished, id: &ClusterId) {
        let unit = self.clusters.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        if let Some(unit) = unit
            && !unit.remove(CHANGE_LIMIT).await
        {
            tracing::error!(cluster = %id, error_code = "SKC-E7020", "it does not end: its disk does not answer");
            changes.ending.insert(id.clone(), unit);
        }
    }

    /// Goes on with what earlier passes left; without waiting, because each of them may hang for ever.
    async fn finish(&self, changes: &mut Unfinished, wanted: &[&ClusterId]) {
        let stale = |(id, task): &(&ClusterId, &JoinHandle<_>)| task.is_finished() && !wanted.contains(id);
        let stale: Vec<ClusterId> = changes.starting.iter().filter(stale).map(|(id, _)| id.clone()).collect();
        for id in stale {
            // Up at last, and nobody wants it any more.
            if let Some(task) = changes.starting.remove(&id)
                && let Ok(Ok(unit)) = task.await
            {
                changes.ending.insert(id, unit);
            }
        }
        let mut left = BTreeMap::new();
        for (id, unit) in std::mem::take(&mut changes.ending) {
            if !unit.remove(Duration::ZERO).await {
                left.insert(id, unit);
            }
        }
        changes.ending = left;
    }

    /// Changes the specs on a blocking thread: they are validated and made durable there, and readers see
    /// the former ones meanwhile.
    ///
    /// # Cancel safety
    /// None: cancelled, the disk may hold what memory does not. For tasks that nobody cancels.
    pub async fn change_specs<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut SpecBook) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let Ok(_one) = tokio::time::timeout(CHANGE_LIMIT, self.writing.lock()).await else {
            let why =
                "an earlier change of the specs has not ended: the state directory's disk does not answer";
            return Err(ApiError::new("SKC-E7014", why, "see to that disk; nothing was changed"));
        };
        let mut book = self.specs.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let work = move || {
            let result = change(&mut book);
            (book, result)
        };
        let done = tokio::task::spawn_blocking(work).await;
        let (book, result) = done.map_err(|error| {
            let hint = "look at the agent's log";
            ApiError::new("SKC-E7014", format!("the change of the specs broke off: {error}"), hint)
        })?;
        // Also after an error: what was stored before it is in force.
        *self.specs.lock().unwrap_or_else(PoisonError::into_inner) = book;
        result
    }

    fn withheld_may_go(&self) -> bool {
        let specs = self.specs.lock().unwrap_or_else(PoisonError::into_inner);
        specs.withheld().any(|cluster| self.is_stopped(cluster))
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
        self.born.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), boottime());
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
                    // What the peer's former life said holds no longer; the living one repeats itself at once.
                    self.peer_roles.lock().unwrap_or_else(PoisonError::into_inner).clear();
                    for unit in self.units() {
                        unit.core.input(Input::LinkDown { link: LinkId(s) });
                    }
                }
                LinkEvent::Message(bytes) => self.message(session, &bytes),
                LinkEvent::Heartbeat { body, .. } => {
                    let units = self.units();
                    for (key, body) in beat::decode(&body) {
                        self.hear(key, body.role);
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
                Err(error) => {
                    // A message of an ordered conversation is missing now: start it over.
                    tracing::error!(%cluster, %error, "a core message is not understood; the link is closed");
                    self.link().hang_up(session);
                }
            },
            Ok(Envelope::SpecList(theirs)) => self.compare_lists(&theirs),
            Ok(Envelope::SpecWant(cluster)) => self.send_spec(&cluster),
            // Not in line with the messages that follow: a newer stamp wins in any order, and the peer's
            // core messages of a cluster that is not up yet are kept.
            Ok(Envelope::SpecPut { stamp, text, lacks }) => {
                drop(tokio::spawn(self.clone().take_spec(stamp, text, lacks)));
            }
            Ok(Envelope::SpecRefused { stamp, code, reason }) => self.spec_refused(&stamp, code, &reason),
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

    pub(super) fn send(&self, envelope: &Envelope) {
        if let Err(error) = self.link().send(envelope.encode()) {
            tracing::debug!(%error, "not sent: the lists are compared again at the next connect");
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
            if !unit.remove(LAST_LIMIT).await {
                tracing::error!(cluster = %unit.id, "it does not end; the guard fences what is left");
            }
        });
        futures::future::join_all(ends).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_is_removed_only_when_it_is_stopped_on_both_nodes() {
        let shop = ClusterId("shop".into());
        let says = |role| PeerSays::Role { peer: "node-b".into(), role };
        let silent = PeerSays::Nothing { peer: "node-b".into() };
        let may = |here, peer: &PeerSays, force| may_remove(&shop, here, peer, force);
        assert!(may(false, &says(LiveRole::Stop), false).is_ok());
        assert!(may(false, &PeerSays::NoPeer, false).is_ok());
        assert!(may(true, &says(LiveRole::Stop), true).is_err(), "it runs here");
        for role in [LiveRole::Prim, LiveRole::Alone, LiveRole::Frozen, LiveRole::Second, LiveRole::Wait] {
            let error = may(false, &says(role), true).expect_err("force does not remove what serves");
            assert!(error.code == "SKC-E7022" && error.message.contains("node-b"), "{error}");
        }
        let error = may(false, &silent, false).expect_err("nobody knows");
        assert!(error.hint.is_some_and(|hint| hint.contains("--force")));
        assert!(may(false, &silent, true).is_ok());
    }
}
