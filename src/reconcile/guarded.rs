//! The guard's services behind [`ServiceManager`].

use crate::base::{ClusterId, codes};
use crate::controller::chain;
use crate::ports::{Answer, PortError, ServiceManager, ServicePhase, ServiceSeen};
use crate::service::{Manager, ServiceError, ServiceId, ServicePlan, State};
use crate::spec::types::Service;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A service of a cluster and the plan made for it.
type Plans = BTreeMap<(ClusterId, String), (Service, ServicePlan)>;

/// Services that are children of the guard.
pub struct GuardedServices {
    manager: Manager,
    /// Making a plan looks a user up, which may block: once for each definition is enough. One entry a
    /// service, replaced when its definition changes.
    plans: Mutex<Plans>,
}

impl GuardedServices {
    /// Through this manager.
    pub fn new(manager: Manager) -> Self {
        Self { manager, plans: Mutex::default() }
    }

    fn plans(&self) -> MutexGuard<'_, Plans> {
        self.plans.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn plan(&self, cluster: &ClusterId, service: &Service) -> Result<ServicePlan, PortError> {
        let key = (cluster.clone(), service.name.clone());
        if let Some((known, plan)) = self.plans().get(&key)
            && known == service
        {
            return Ok(plan.clone());
        }
        let (id, wanted) = (cluster.clone(), service.clone());
        let made = tokio::task::spawn_blocking(move || ServicePlan::from_spec(&id, &wanted)).await;
        let plan = made.map_err(std::io::Error::other).flatten().map_err(|error| PortError {
            code: codes::SVC_COMMAND.id,
            message: format!("service {}: {error}", service.name),
        })?;
        self.plans().insert(key, (service.clone(), plan.clone()));
        Ok(plan)
    }
}

impl ServiceManager for GuardedServices {
    fn list<'a>(&'a self, cluster: &'a ClusterId, wanted: &'a [Service]) -> Answer<'a, Vec<ServiceSeen>> {
        Box::pin(async move {
            let prefix = ServiceId::new(cluster, "").0;
            let all = self
                .manager
                .list()
                .await
                .map_err(|e| PortError { code: codes::SVC_START.id, message: chain(&e) })?;
            let mut seen = Vec::new();
            for status in all {
                let Some(name) = status.id.0.strip_prefix(&prefix) else { continue };
                let current = match wanted.iter().find(|s| s.name == name) {
                    // A plan that cannot be made now (name service down) is no reason to stop what runs.
                    Some(service) => {
                        self.plan(cluster, service).await.map_or(true, |plan| plan.digest() == status.digest)
                    }
                    None => false,
                };
                seen.push(ServiceSeen { name: name.to_owned(), phase: phase(&status.state), current });
            }
            Ok(seen)
        })
    }

    fn start<'a>(&'a self, cluster: &'a ClusterId, service: &'a Service) -> Answer<'a, ()> {
        Box::pin(async move {
            let plan = self.plan(cluster, service).await?;
            self.manager.start(plan).await.map(|_| ()).map_err(|error| refused(&error))
        })
    }

    fn stop<'a>(&'a self, cluster: &'a ClusterId, name: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            let id = ServiceId::new(cluster, name);
            self.manager.stop(&id).await.map_err(|error| refused(&error))?;
            self.plans().remove(&(cluster.clone(), name.to_owned()));
            Ok(())
        })
    }
}

fn refused(error: &ServiceError) -> PortError {
    let code = match error {
        ServiceError::NotStopped { .. } => codes::SVC_STOP,
        _ => codes::SVC_START,
    };
    PortError { code: code.id, message: chain(error) }
}

fn phase(state: &State) -> ServicePhase {
    match state {
        State::Stopped => ServicePhase::Stopped,
        State::Starting => ServicePhase::Starting,
        State::Running => ServicePhase::Running,
        State::Stopping => ServicePhase::Stopping,
        State::Failed(failure) => ServicePhase::Failed(failure.to_string()),
    }
}
