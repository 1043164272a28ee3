//! One cluster on this node: everything around its decision core.
//!
//! Owner tasks: the driver (core and effects), the keeper of the directories (looks again until they
//! are right), a controller each for virtual IPs, services and checkers ([`crate::reconcile`]). All of
//! them report to the core's queue and to the bus. The controllers belong to the cluster, not to the
//! node: a service of another cluster that takes an hour to stop holds nothing up here, and they end with it.

mod checkers;
mod disk;
mod facts;
pub mod quarantine;
mod resync;
mod services;
mod streams;
mod vips;
mod volumes;
mod world;

use super::beat::Key;
use crate::api::types::QuarantineStatus;
use crate::base::codes;
use crate::base::{ClusterId, Epoch, NodeId};
use crate::bus::Bus;
use crate::engine::{Cluster, Durable, HeartbeatBody, Input, LinkId, Role, TreeState};
use crate::failover::{Driver, Handle, config};
use crate::guard::client::Guard;
use crate::guard::message::{FdKind, MountRef, VipRef};
use crate::link::{DataConn, LinkHandle};
use crate::reconcile::vip::Standing;
use crate::spec::ClusterSpec;
use crate::store::StateDir;
use crate::store::fence::FenceSlots;
use crate::sys::backing::Backing;
use crate::sys::clock::boottime;
use checkers::Checkers;
use serde::{Deserialize, Serialize};
use services::Services;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;
use streams::Streams;
use tokio::sync::{Notify, watch};
use volumes::Volumes;

/// How often a directory that cannot be used is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// What all clusters of the node use.
pub struct Shared {
    /// This node's name.
    pub name: String,
    /// The state directory.
    pub state: StateDir,
    /// The bus.
    pub bus: Bus,
    /// The pair's link.
    pub link: LinkHandle,
    /// The guard process.
    pub guard: Guard,
    /// Signs tombstones.
    pub identity: crate::link::Identity,
    /// Boot id of this kernel.
    pub boot: u128,
    /// What the guard would say for each cluster, and the addresses it would drop.
    pub fencing: Mutex<Fencing>,
}

/// What the guard is told about all clusters together.
#[derive(Debug, Default)]
pub struct Fencing {
    tombstones: BTreeMap<ClusterId, ClusterTombstone>,
    vips: BTreeMap<ClusterId, Vec<VipRef>>,
    mounts: BTreeMap<ClusterId, Vec<MountRef>>,
}

/// First words of a data connection.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DataHello {
    /// Whose stream it is.
    pub cluster: ClusterId,
    /// Which session.
    pub epoch: Epoch,
}

/// A core's tombstone with its cluster.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ClusterTombstone {
    /// Whose.
    pub cluster: ClusterId,
    /// What.
    pub tombstone: crate::engine::Tombstone,
}

/// A service, checker or directory for status: name, state, note.
pub type Line = (String, String, String);

/// Spec in force and its revision.
pub type CurrentSpec = Arc<RwLock<(Arc<ClusterSpec>, u64)>>;

/// A driver that has not looked up from an effect for this long hangs (a disk that does not answer);
/// the guard then fences this worker. Longer than every bounded effect (gate and stream: 5 s).
const DRIVER_STUCK: u64 = 12_000;

/// A running cluster.
pub struct ClusterUnit {
    /// Its name.
    pub id: ClusterId,
    /// Its name in heartbeats.
    pub key: Key,
    /// Which of the two nodes this is.
    pub me: NodeId,
    /// The core.
    pub core: Handle,
    /// Spec in force and its revision.
    pub spec: CurrentSpec,
    /// Data streams.
    pub streams: Arc<Streams>,
    /// The virtual addresses.
    pub vips: watch::Receiver<Standing>,
    /// The services.
    pub services: Arc<Services>,
    /// The checkers.
    pub checkers: Checkers,
    /// The directories as last seen.
    pub directories: Mutex<Vec<Line>>,
    /// What resyncs replaced here and keep, as last surveyed.
    pub quarantine: Mutex<Vec<QuarantineStatus>>,
    volumes: Arc<Mutex<Volumes>>,
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    tasks: Mutex<Vec<tokio::task::JoinHandle<()>>>,
    relook: Arc<Notify>,
    link: AtomicU64,
    driver: tokio::sync::Mutex<Option<tokio::task::JoinHandle<world::NodeWorld>>>,
}

impl ClusterUnit {
    /// Looks at the directory `path` below its mount; `None` if it is not open. Blocks as long as its disk does.
    pub fn below<T>(&self, path: &Path, look: impl FnOnce(&Backing) -> T) -> Option<T> {
        let tree = {
            let volumes = self.volumes.lock().unwrap_or_else(PoisonError::into_inner);
            volumes.units.iter().find(|unit| unit.path == path)?.tree.clone()?
        };
        Some(look(&tree.backing))
    }

    /// Brings a cluster up: reads its fencing record, opens its directories, starts its core.
    pub async fn start(
        shared: Arc<Shared>,
        spec: Arc<ClusterSpec>,
        revision: u64,
    ) -> Result<Arc<Self>, String> {
        let id = ClusterId(spec.metadata.name.clone());
        let me = config::node_id(&spec, &shared.name)
            .ok_or_else(|| format!("the spec does not name this node ({})", shared.name))?;
        let path = shared.state.fence_path(&id).map_err(|e| e.to_string())?;
        let (fence, durable) =
            tokio::task::spawn_blocking(move || read_fence(&path)).await.map_err(|e| e.to_string())??;
        let mut volumes = Volumes::new(id.clone(), shared.state.clone(), &spec.spec.directories);
        // The record does not say whether a sync failed before the resync that it names.
        volumes.suspect = durable.as_ref().is_some_and(|d| d.inconsistent.is_some());
        let volumes = Arc::new(Mutex::new(volumes));
        let mut seed = [0u8; 16];
        getrandom::fill(&mut seed).map_err(|e| format!("no random bytes: {e}"))?;
        let core = Cluster::new(
            me,
            shared.boot,
            u128::from_le_bytes(seed),
            config::core_config(&spec),
            durable,
            boottime(),
        );
        let current: CurrentSpec = Arc::new(RwLock::new((spec.clone(), revision)));
        let streams = Streams::new(id.clone(), &spec, shared.clone());
        let relook = Arc::new(Notify::new());
        let mut parts = None;
        let (driver, core) = Driver::new(core, boottime, |handle| {
            let world = world::NodeWorld::new(
                id.clone(),
                shared.clone(),
                &spec,
                fence,
                handle,
                streams.clone(),
                volumes.clone(),
                relook.clone(),
                current.clone(),
            );
            parts = Some((world.vips_watch(), world.services.clone()));
            world
        });
        let (vips, services) = parts.ok_or("no world")?;
        streams.bind(core.clone());
        let (stop, stopped) = watch::channel(false);
        let unit = Arc::new(Self {
            key: Key::of(&id),
            me,
            checkers: Checkers::new(id.clone(), &shared.bus, &core, services.clone()),
            core,
            spec: current,
            streams,
            vips,
            services,
            directories: Mutex::default(),
            quarantine: Mutex::default(),
            volumes,
            shared,
            stop,
            tasks: Mutex::default(),
            relook,
            link: AtomicU64::new(0),
            driver: tokio::sync::Mutex::new(Some(tokio::spawn(driver.run(stopped.clone())))),
            id,
        });
        let tasks = vec![
            tokio::spawn(unit.clone().keep_volumes(stopped.clone())),
            tokio::spawn(facts::follow(unit.clone(), stopped.clone())),
            tokio::spawn(quarantine::follow(unit.clone(), stopped.clone())),
            tokio::spawn(disk::follow(unit.clone(), stopped.clone())),
            tokio::spawn(checkers::follow(unit.clone(), stopped)),
        ];
        *unit.tasks.lock().unwrap_or_else(PoisonError::into_inner) = tasks;
        Ok(unit)
    }

    /// The spec in force.
    pub fn spec(&self) -> Arc<ClusterSpec> {
        self.spec.read().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    /// What the node's shared parts are.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// A new revision of the spec, of which no change needs a stop: timers and leases stay as they are.
    pub fn configure(&self, spec: Arc<ClusterSpec>, revision: u64) {
        {
            let mut current = self.spec.write().unwrap_or_else(PoisonError::into_inner);
            if current.1 == revision {
                return;
            }
            *current = (spec.clone(), revision);
        }
        self.core.input(Input::Configure(Box::new(config::core_config(&spec))));
        self.streams.configure(&spec);
        self.services.configure(&spec);
        self.checkers.configure();
    }

    /// The guard says that a service ended by itself.
    pub fn service_exited(&self, status: &crate::service::ServiceStatus) {
        self.services.exited(status);
    }

    /// Control connection `session` is up; told once each, from whichever side notices first.
    pub fn link_up(&self, session: u64) {
        if self.link.fetch_max(session, Ordering::AcqRel) < session {
            self.core.input(Input::LinkUp { link: LinkId(session) });
        }
    }

    /// Is it started on this node?
    pub fn runs(&self) -> bool {
        self.core.snapshot().view.role != Role::Stop
    }

    /// Ends this process when the driver hangs: the guard fences, restarts or speaks for it. A core that
    /// cannot act must not keep the pair waiting.
    pub fn watch_driver(&self) {
        let silent = boottime() - self.core.snapshot().at;
        if silent > DRIVER_STUCK && !*self.stop.borrow() {
            tracing::error!(cluster = %self.id, silent, error_code = "SKC-E4005", "the driver hangs; this agent ends");
            std::process::abort();
        }
    }

    /// What the next heartbeat says, aged to now.
    pub fn heartbeat(&self) -> HeartbeatBody {
        let snapshot = self.core.snapshot();
        let mut body = snapshot.heartbeat;
        let age = boottime() - snapshot.at;
        body.heard_ms = body.heard_ms.map(|ms| ms + age);
        body.sure_ms = body.sure_ms.map(|ms| ms + age);
        body
    }

    /// Time between heartbeats.
    pub fn heartbeat_interval(&self) -> Duration {
        Duration::from_millis(self.spec().spec.heartbeat.interval.as_millis())
    }

    /// The source's data connection arrived.
    pub fn accept(&self, epoch: Epoch, conn: DataConn) {
        self.streams.accept(epoch, conn);
    }

    /// Looks at the directories until they are right, then mounts them.
    async fn keep_volumes(self: Arc<Self>, stop: watch::Receiver<bool>) {
        let mut stop = stop;
        let mut told = TreeState::Unknown;
        loop {
            let unit = self.clone();
            let looked = tokio::task::spawn_blocking(move || unit.look()).await;
            let state = looked.unwrap_or(TreeState::DiskError);
            if state != told {
                told = state;
                tracing::info!(cluster = %self.id, ?state, "directories");
                self.core.input(Input::LocalTree(state));
            }
            tokio::select! {
                biased; // the end first
                () = ended(&mut stop) => return,
                () = self.relook.notified() => told = TreeState::Unknown,
                () = tokio::time::sleep(LOOK_AGAIN) => {}
            }
        }
    }

    /// Blocking: opens, mounts, tells the guard.
    fn look(&self) -> TreeState {
        let mut volumes = self.volumes.lock().unwrap_or_else(PoisonError::into_inner);
        let opening = volumes.trees().is_none().then(|| self.streams.health.opening());
        let mut state = volumes.look();
        drop(opening);
        if state == TreeState::Unmounted {
            self.tell_guard(&volumes);
        }
        if let Some(trouble) = self.streams.health.trouble() {
            state = trouble.tree();
        }
        if !volumes.ejected
            && matches!(state, TreeState::Ok { .. })
            && let Some(trees) = volumes.trees()
        {
            let failed = |why| (codes::FS_MOUNT, why);
            let mounted = self.streams.attach(trees).map_err(failed).and_then(|()| {
                let replicator =
                    self.streams.replicator().ok_or_else(|| failed("no data path".to_owned()))?;
                volumes.mount(&replicator)
            });
            if let Err((code, error)) = mounted {
                tracing::error!(cluster = %self.id, error, error_code = code.id, "cannot mount");
                state = TreeState::Missing;
            }
            self.tell_guard(&volumes);
        }
        let directories = volumes
            .units
            .iter()
            .map(|u| {
                let word = if u.mount.is_some() { "mounted" } else { "not mounted" };
                (u.path.display().to_string(), word.to_owned(), u.notes())
            })
            .collect();
        *self.directories.lock().unwrap_or_else(PoisonError::into_inner) = directories;
        state
    }

    fn tell_guard(&self, volumes: &Volumes) {
        let mounts: Vec<_> = volumes
            .units
            .iter()
            .filter_map(|u| {
                let connection = u.mount.as_ref()?.connection();
                Some(MountRef { path: u.path.display().to_string(), connection })
            })
            .collect();
        let mut fencing = self.shared.fencing.lock().unwrap_or_else(PoisonError::into_inner);
        if fencing.mounts.get(&self.id) != Some(&mounts) {
            fencing.mounts.insert(self.id.clone(), mounts);
            let all = fencing.mounts.values().flatten().cloned().collect();
            if let Err(error) = self.shared.guard.set_mounts(all) {
                tracing::error!(%error, "the guard does not take the mounts");
            }
            for unit in &volumes.units {
                if let (Some(mount), Some(tree)) = (&unit.mount, &unit.tree) {
                    let name = self.hold_name(&unit.path);
                    let fds = [(FdKind::Device, mount.device_fd()), (FdKind::Directory, tree.backing.root())];
                    if let Err(error) = self.shared.guard.hold(&name, &fds) {
                        tracing::error!(%error, name, "the guard does not hold the descriptors");
                    }
                }
            }
        }
    }

    /// Unmounts, leaving plain directories until the next start.
    pub async fn eject(self: &Arc<Self>) {
        let unit = self.clone();
        let done = tokio::task::spawn_blocking(move || {
            let mut volumes = unit.volumes.lock().unwrap_or_else(PoisonError::into_inner);
            volumes.ejected = true;
            volumes.unmount();
            for volume in &volumes.units {
                if let Err(error) = unit.shared.guard.release(&unit.hold_name(&volume.path)) {
                    tracing::warn!(%error, "the guard keeps descriptors");
                }
            }
            unit.tell_guard(&volumes);
        });
        let _ = done.await;
    }

    /// Mounts again what `eject` unmounted; complete when it is.
    pub async fn uneject(self: &Arc<Self>) {
        let unit = self.clone();
        let done = tokio::task::spawn_blocking(move || {
            let was = {
                let mut volumes = unit.volumes.lock().unwrap_or_else(PoisonError::into_inner);
                std::mem::replace(&mut volumes.ejected, false)
            };
            if was {
                unit.look();
                unit.relook.notify_one();
            }
        });
        let _ = done.await;
    }

    fn hold_name(&self, path: &std::path::Path) -> String {
        format!("{}:{}", self.id, path.display())
    }

    /// Ends all tasks and unmounts; true when that is done. After `limit` (an effect that hangs, usually in
    /// a disk) it goes on in the background and the answer is false: nothing of this cluster may be brought
    /// up here before a later call says true.
    pub async fn remove(self: &Arc<Self>, limit: Duration) -> bool {
        let first = !self.stop.send_replace(true);
        let tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        for task in tasks {
            task.abort();
        }
        let mut ending = self.driver.lock().await;
        if let Some(driver) = ending.take_if(|_| first) {
            let unit = self.clone();
            *ending = Some(tokio::spawn(async move {
                let mut world = driver.await;
                if let Ok(world) = &mut world {
                    world.end().await;
                }
                unit.eject().await;
                world.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
            }));
        }
        if let Some(task) = &mut *ending {
            if tokio::time::timeout(limit, task).await.is_err() {
                return false;
            }
            *ending = None;
        }
        true
    }
}

fn read_fence(path: &std::path::Path) -> Result<(FenceSlots, Option<Durable>), String> {
    let mut fence = FenceSlots::open(path).map_err(|e| e.to_string())?;
    let reading = fence.read::<Durable>().map_err(|e| e.to_string())?;
    if reading.as_ref().is_some_and(|r| r.sibling_damaged) {
        // A write that a power cut tore was never acted upon (store::fence): the older record stands.
        tracing::warn!(path = %path.display(), "one fencing slot is damaged, the other one is used");
    }
    Ok((fence, reading.map(|r| r.value)))
}

/// Waits for the order to end (or for nobody being left to give it).
async fn ended(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}
