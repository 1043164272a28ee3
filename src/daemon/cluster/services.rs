//! Brings a cluster's services up in order and down in reverse order, through the guard.
//!
//! One task works towards the latest wish; a new wish ends the work on the old one between two
//! services. Every step is bounded by the service's own deadlines (the guard holds them). Reports to
//! the core: Starting, Running, Stopping, Stopped, Failed.

use super::{Items, Shared};
use crate::base::ClusterId;
use crate::bus::Fact;
use crate::engine::{Input, ServiceState};
use crate::failover::Handle;
use crate::service::{Manager, ServiceId, ServicePlan, ServiceStatus, State};
use crate::spec::{ClusterSpec, Service};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{mpsc, watch};

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wish {
    up: bool,
    services: Vec<Service>,
    /// Counts restarts of single services.
    restart: Option<(u64, String)>,
}

/// The services of one cluster.
pub struct Services {
    wish: watch::Sender<Wish>,
    state: watch::Receiver<ServiceState>,
    exits: mpsc::Sender<ServiceStatus>,
    task: Mutex<Option<tokio::task::JoinHandle<()>>>,
}

impl Services {
    /// Nothing is started yet.
    pub fn new(
        id: ClusterId,
        shared: Arc<Shared>,
        spec: &ClusterSpec,
        core: Handle,
        items: Arc<Mutex<Items>>,
    ) -> Arc<Self> {
        let wish = Wish { up: false, services: spec.spec.services.clone(), restart: None };
        let (wish, wishes) = watch::channel(wish);
        let (told, state) = watch::channel(ServiceState::Stopped);
        let (exits, exited) = mpsc::channel(64);
        let manager = Manager::new(shared.guard.clone());
        let worker = Worker { id, shared, manager, core, items, told };
        let task = tokio::spawn(worker.run(wishes, exited));
        Arc::new(Self { wish, state, exits, task: Mutex::new(Some(task)) })
    }

    /// Up or down from now on.
    pub fn want(&self, up: bool) {
        self.wish.send_modify(|wish| wish.up = up);
    }

    /// A new spec: changed services restart, removed ones stop.
    pub fn configure(&self, spec: &ClusterSpec) {
        self.wish.send_if_modified(|wish| {
            let changed = wish.services != spec.spec.services;
            wish.services.clone_from(&spec.spec.services);
            changed
        });
    }

    /// Restarts one service (a checker's `restartService`).
    pub fn restart(&self, service: &str) {
        self.wish.send_modify(|wish| {
            let count = wish.restart.as_ref().map_or(0, |(n, _)| *n) + 1;
            wish.restart = Some((count, service.to_owned()));
        });
    }

    /// The guard says that a service ended by itself.
    pub fn exited(&self, status: &ServiceStatus) {
        let _ = self.exits.try_send(status.clone());
    }

    /// The services as one.
    pub fn state(&self) -> ServiceState {
        *self.state.borrow()
    }

    /// Stops them and waits for it.
    pub async fn end(&self) {
        self.want(false);
        let mut state = self.state.clone();
        let limit: u64 = self.wish.borrow().services.iter().map(|s| s.stop_timeout.as_millis() + 6_000).sum();
        let stopped = state.wait_for(|s| matches!(s, ServiceState::Stopped | ServiceState::Failed));
        let _ = tokio::time::timeout(std::time::Duration::from_millis(limit + 1_000), stopped).await;
        if let Some(task) = self.task.lock().unwrap_or_else(PoisonError::into_inner).take() {
            task.abort();
        }
    }
}

struct Worker {
    id: ClusterId,
    shared: Arc<Shared>,
    manager: Manager,
    core: Handle,
    items: Arc<Mutex<Items>>,
    told: watch::Sender<ServiceState>,
}

impl Worker {
    async fn run(self, mut wishes: watch::Receiver<Wish>, mut exited: mpsc::Receiver<ServiceStatus>) {
        let mut running: Vec<Service> = Vec::new();
        let mut restarted = 0;
        loop {
            let wish = wishes.borrow_and_update().clone();
            self.show(&wish.services, &running);
            self.work(&wish, &mut running, &mut restarted, &wishes).await;
            // The core decides (restart, failover); work goes on with its next wish, and only then.
            loop {
                tokio::select! {
                    biased; // a new wish makes what happened before uninteresting
                    changed = wishes.changed() => if changed.is_err() { return } else { break },
                    Some(status) = exited.recv() => self.fell(&status, &mut running).await,
                }
            }
        }
    }

    /// A service ended by itself. One that did not start is none of the running: its start said so.
    async fn fell(&self, status: &ServiceStatus, running: &mut Vec<Service>) {
        let at = running.iter().position(|s| ServiceId::new(&self.id, &s.name) == status.id);
        let Some(at) = at else { return };
        // The word may be of an earlier life, whose failed start was answered before it.
        if let Ok(Some(now)) = self.manager.status(&status.id).await
            && now.state == State::Running
        {
            return;
        }
        let name = running.remove(at).name;
        let note = match &status.state {
            State::Failed(failure) => failure.to_string(),
            other => format!("{other:?}"),
        };
        self.line(&name, "failed", &note);
        self.tell(ServiceState::Failed);
    }

    /// Works towards `wish` until it is reached, fails, or changes.
    async fn work(
        &self,
        wish: &Wish,
        running: &mut Vec<Service>,
        restarted: &mut u64,
        wishes: &watch::Receiver<Wish>,
    ) {
        let stale = |s: &Service| !wish.up || !wish.services.contains(s);
        let again = wish.restart.as_ref().filter(|(n, _)| *n > *restarted).map(|(_, name)| name.clone());
        if let Some((n, _)) = &wish.restart {
            *restarted = *n;
        }
        let mut failed = false;
        while let Some(at) = running.iter().rposition(|s| stale(s) || again.as_ref() == Some(&s.name)) {
            self.tell(ServiceState::Stopping);
            let service = running.remove(at);
            self.line(&service.name, "stopping", "");
            match self.manager.stop(&ServiceId::new(&self.id, &service.name)).await {
                Ok(()) => self.line(&service.name, "stopped", ""),
                Err(error) => {
                    failed = true;
                    self.line(&service.name, "failed", &error.to_string());
                }
            }
        }
        if !wish.up {
            self.tell(if failed { ServiceState::Failed } else { ServiceState::Stopped });
            return;
        }
        for service in &wish.services {
            if running.contains(service) {
                continue;
            }
            if wishes.has_changed().unwrap_or(true) && !wishes.borrow().up {
                return;
            }
            self.tell(ServiceState::Starting);
            self.line(&service.name, "starting", "");
            match self.start(service).await {
                Ok(()) => {
                    running.push(service.clone());
                    self.line(&service.name, "running", "");
                }
                Err(error) => {
                    self.line(&service.name, "failed", &error);
                    self.tell(ServiceState::Failed);
                    return;
                }
            }
        }
        self.tell(ServiceState::Running);
    }

    async fn start(&self, service: &Service) -> Result<(), String> {
        let (id, wanted) = (self.id.clone(), service.clone());
        let plan = tokio::task::spawn_blocking(move || ServicePlan::from_spec(&id, &wanted))
            .await
            .map_err(|e| e.to_string())?
            .map_err(|e| e.to_string())?;
        let status = self.manager.start(plan).await.map_err(|e| e.to_string())?;
        match status.state {
            State::Running => Ok(()),
            State::Failed(failure) => Err(failure.to_string()),
            other => Err(format!("{other:?}")),
        }
    }

    fn tell(&self, state: ServiceState) {
        let before = self.told.send_replace(state);
        if before != state {
            tracing::debug!(cluster = %self.id, ?state, "services");
        }
        // Told again even if equal: the core may have asked again.
        self.core.input(Input::Services(state));
    }

    fn show(&self, wanted: &[Service], running: &[Service]) {
        let mut items = self.items.lock().unwrap_or_else(PoisonError::into_inner);
        let lines = wanted
            .iter()
            .map(|s| {
                items.services.iter().find(|(name, _, _)| name == &s.name).cloned().unwrap_or_else(|| {
                    let state = if running.contains(s) { "running" } else { "stopped" };
                    (s.name.clone(), state.to_owned(), String::new())
                })
            })
            .collect();
        items.services = lines;
    }

    fn line(&self, name: &str, state: &str, note: &str) {
        {
            let mut items = self.items.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(line) = items.services.iter_mut().find(|(n, _, _)| n == name) {
                (line.1, line.2) = (state.to_owned(), note.to_owned());
            }
        }
        if state == "failed" {
            tracing::error!(cluster = %self.id, service = name, note, error_code = "SKC-E6001", "service failed");
        }
        self.shared.bus.publish(
            Some(&self.id.0),
            Fact::ServiceChanged { service: name.to_owned(), state: state.to_owned(), note: note.to_owned() },
        );
    }
}
