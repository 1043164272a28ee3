//! Services: programs that run on the primary, as children of the guard.
//!
//! * [`ServicePlan`]: everything needed to run one service, self-contained and without choices left open.
//! * [`state`]: the pure state machine of one service.
//! * `supervisor`: executes the machines inside the guard; a service therefore survives its worker only until the
//!   guard has fenced, and never the guard.
//! * [`Manager`]: what the worker's reconciler calls.
//!
//! A service that dies is reported, never restarted here: restarting is the failover core's decision.

mod logfile;
mod manager;
pub mod plan;
pub mod state;
pub(crate) mod supervisor;
pub(crate) mod unit;

pub use manager::{Manager, ServiceError};
pub use plan::{Program, ServiceId, ServicePlan};
pub use state::{Failure, State};

use serde::{Deserialize, Serialize};

/// What the guard says about one service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Which.
    pub id: ServiceId,
    /// How it is.
    pub state: State,
    /// Digest of the plan it runs by ([`ServicePlan::digest`]).
    pub digest: [u8; 32],
    /// Process of its program in the foreground, while there is one.
    pub pid: Option<i32>,
}
