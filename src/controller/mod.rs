//! A kube-style runtime: drives each object from what is observed to what is desired.
//!
//! One run of an object is `observe` (I/O) -> `plan` (pure) -> `execute` each step (I/O) -> `verify`
//! (observe again; the plan must now be empty).
//!
//! # Guarantees
//! - **One run per object at a time**; different objects run concurrently, at most [`RUNS_MAX`].
//! - **Deduplication.** Any number of triggers for an object between two runs cause one run. A trigger
//!   during a run causes another run after it: no change is missed.
//! - **Fresh desire.** Before each step the desired state is read again; if it changed, the rest of the
//!   plan is dropped and the object is planned anew. A running step is dropped for it only if
//!   [`Reconciler::interruptible`] says so.
//! - **Every wait ends**: `observe` and each step have deadlines; passing one is an error of the object.
//! - **Back-off.** Errors of an object delay its next run by [`Backoff`], doubling up to a cap, without
//!   jitter (one agent, no herd). A trigger or [`Handle::converge`] runs it at once. Success resets it.
//!   The same error again is marked as repeated and not logged as a warning again.
//! - **Cancellation.** Dropping the future of [`run`] drops runs between two polls; steps must be
//!   idempotent, which is what makes this sound.
//! - [`Handle::converge`] answers with the outcome of a run that *began after* the call.
//!
//! Not guaranteed: order between objects, and that a step runs once.

mod inbox;
mod pass;
mod runtime;
#[cfg(test)]
mod tests;

pub use inbox::{Handle, handle};
pub use pass::{Outcome, pass};
pub use runtime::{RUNS_MAX, run};

use std::fmt::{Debug, Display};
use std::future::Future;
use std::time::Duration;

/// Longest `observe`, unless the reconciler says otherwise: it only looks.
pub const OBSERVE_DEADLINE: Duration = Duration::from_secs(5);

/// What to do after the object is as desired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Look again after this time, for what changes without telling.
    Requeue(Duration),
    /// Wait for a trigger.
    AwaitChange,
}

/// Knows one kind of object.
pub trait Reconciler: Send + Sync + 'static {
    /// Names an object.
    type Key: Clone + Ord + Display + Debug + Send + Sync + 'static;
    /// What it should be.
    type Desired: PartialEq + Send + Sync;
    /// What it is.
    type Observed: Send + Sync;
    /// One change. Idempotent. `Display` is what `skc diff` prints.
    type Step: Display + Send + Sync;
    /// Why something failed.
    type Error: std::error::Error + Send + Sync + 'static;

    /// What the object should be now; `None`: nothing is known of it, leave it alone. Must not block.
    fn desired(&self, key: &Self::Key) -> Option<Self::Desired>;

    /// What it is.
    fn observe(
        &self,
        key: &Self::Key,
        desired: &Self::Desired,
    ) -> impl Future<Output = Result<Self::Observed, Self::Error>> + Send;

    /// The steps from one to the other, in order. Pure. Empty when nothing is to be done.
    fn plan(desired: &Self::Desired, observed: &Self::Observed) -> Vec<Self::Step>;

    /// Carries one step out.
    fn execute(
        &self,
        key: &Self::Key,
        desired: &Self::Desired,
        step: &Self::Step,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// How long a step may take.
    fn deadline(&self, step: &Self::Step) -> Duration;

    /// May this step be dropped half-way when the desire changes?
    fn interruptible(_step: &Self::Step) -> bool {
        false
    }

    /// When to look again after the object is as desired.
    fn settled(&self, _key: &Self::Key) -> Action {
        Action::AwaitChange
    }

    /// Told of every step carried out and of every error; for the bus. Must not block.
    fn report(&self, _key: &Self::Key, _report: Report<'_, Self::Step, Self::Error>) {}
}

/// What a run did.
#[derive(Debug)]
pub enum Report<'a, S, E: std::error::Error + 'static> {
    /// A step is done.
    Done(&'a S),
    /// The run ended with an error.
    Failed {
        /// Which.
        error: &'a RunError<E>,
        /// The run before ended with the same one.
        repeated: bool,
    },
}

/// Why a run failed.
#[derive(Debug, thiserror::Error)]
pub enum RunError<E: std::error::Error + 'static> {
    /// The state could not be observed.
    #[error("cannot be observed")]
    Observe(#[source] E),
    /// Observing took too long.
    #[error("not observed within {} ms", .0.as_millis())]
    ObserveDeadline(Duration),
    /// A step failed.
    #[error("{step}: failed")]
    Step {
        /// Which.
        step: String,
        /// Why.
        source: E,
    },
    /// A step took too long. It may still take effect.
    #[error("{step}: not done within {} ms", limit.as_millis())]
    StepDeadline {
        /// Which.
        step: String,
        /// How long it was given.
        limit: Duration,
    },
    /// Every step succeeded and the state is still not the desired one.
    #[error("not as desired after all steps were done; left: {left}")]
    NotConverged {
        /// The steps that a new plan has.
        left: String,
    },
}

/// Delay after errors in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// After the first error.
    pub first: Duration,
    /// Never more than this.
    pub max: Duration,
}

impl Default for Backoff {
    /// 100 ms is short against any failover; 10 s keeps a permanent error from filling the log.
    fn default() -> Self {
        Self { first: Duration::from_millis(100), max: Duration::from_secs(10) }
    }
}

impl Backoff {
    /// The delay after `errors` in a row (from 1).
    pub fn delay(&self, errors: u32) -> Duration {
        let factor = 1_u32.checked_shl(errors.saturating_sub(1)).unwrap_or(u32::MAX);
        self.first.checked_mul(factor).unwrap_or(self.max).min(self.max)
    }
}

/// The steps as `skc diff` prints them: one a line.
pub fn render<S: Display>(steps: &[S]) -> String {
    let mut lines = Vec::new();
    lines.extend(steps.iter().map(S::to_string));
    lines.push(String::new());
    lines.join("\n")
}

/// An error with its causes, on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
