//! The async interface of services for the worker's reconciler.
//!
//! Idempotent: starting what runs by the same plan and stopping what is stopped change nothing. Every call ends within
//! the plan's timeouts plus a few seconds. Cancel safety: dropping a call does not undo it.

use super::ServiceStatus;
use super::plan::{ServiceId, ServicePlan};
use super::state::{Failure, State};
use crate::guard::client::{Guard, GuardError};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Stop timeout for services whose plan this worker never saw (started by its predecessor).
const UNKNOWN_STOP_TIMEOUT: u64 = 60_000;

/// Errors of the manager.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The service is down although it is wanted up.
    #[error("service {id} did not start: {failure}")]
    NotStarted {
        /// Which.
        id: ServiceId,
        /// Why.
        failure: Failure,
    },
    /// It was stopped (or is being stopped) while it started.
    #[error("service {id} was stopped while it was starting")]
    Overtaken {
        /// Which.
        id: ServiceId,
    },
    /// Its stop failed: something of it may still run.
    #[error("service {id} did not stop: {failure}")]
    NotStopped {
        /// Which.
        id: ServiceId,
        /// Why.
        failure: Failure,
    },
    /// The guard could not be asked.
    #[error("service {id}")]
    Guard {
        /// Which.
        id: ServiceId,
        /// Why.
        #[source]
        source: GuardError,
    },
}

/// Starts and stops services. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Manager {
    guard: Guard,
    stop_timeouts: Arc<Mutex<HashMap<ServiceId, u64>>>,
}

impl Manager {
    /// A manager on this guard.
    pub fn new(guard: Guard) -> Self {
        Self { guard, stop_timeouts: Arc::default() }
    }

    /// Brings a service up by this plan; returns when it runs.
    pub async fn start(&self, plan: ServicePlan) -> Result<ServiceStatus, ServiceError> {
        let id = plan.id.clone();
        self.timeouts().insert(id.clone(), plan.stop_timeout);
        let status = self.ask(&id, move |guard| guard.start_service(plan)).await?;
        match status.state {
            State::Failed(failure) => Err(ServiceError::NotStarted { id, failure }),
            State::Running => Ok(status),
            State::Stopped | State::Starting | State::Stopping => Err(ServiceError::Overtaken { id }),
        }
    }

    /// Brings a service down; returns when nothing of it is left.
    pub async fn stop(&self, id: &ServiceId) -> Result<(), ServiceError> {
        let timeout = self.timeouts().get(id).copied().unwrap_or(UNKNOWN_STOP_TIMEOUT);
        let wanted = id.clone();
        let status = self.ask(id, move |guard| guard.stop_service(&wanted, timeout)).await?;
        match status.state {
            State::Failed(failure) => Err(ServiceError::NotStopped { id: id.clone(), failure }),
            State::Running | State::Starting | State::Stopping => {
                Err(ServiceError::Overtaken { id: id.clone() })
            }
            State::Stopped => {
                self.timeouts().remove(id);
                Ok(())
            }
        }
    }

    /// How a service is; `None` if it was never started.
    pub async fn status(&self, id: &ServiceId) -> Result<Option<ServiceStatus>, ServiceError> {
        let wanted = id.clone();
        self.ask(id, move |guard| guard.service_status(&wanted)).await
    }

    /// How all services are.
    pub async fn list(&self) -> Result<Vec<ServiceStatus>, GuardError> {
        self.guard.run(Guard::services).await
    }

    async fn ask<T, F>(&self, id: &ServiceId, call: F) -> Result<T, ServiceError>
    where
        T: Send + 'static,
        F: FnOnce(&Guard) -> Result<T, GuardError> + Send + 'static,
    {
        self.guard.run(call).await.map_err(|source| ServiceError::Guard { id: id.clone(), source })
    }

    fn timeouts(&self) -> std::sync::MutexGuard<'_, HashMap<ServiceId, u64>> {
        self.stop_timeouts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
