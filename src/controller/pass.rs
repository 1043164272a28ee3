//! One run of one object.

use super::{OBSERVE_DEADLINE, Reconciler, Report, RunError, render};
use tokio::sync::Notify;
use tokio::time::timeout;

/// How a run ended, if without error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is as desired, after so many steps.
    Converged {
        /// Steps carried out.
        steps: usize,
    },
    /// The desire changed meanwhile: run again at once.
    Superseded,
    /// Nothing is desired of it.
    Unmanaged,
}

/// Observe, plan, execute, verify. `changed` is notified when the desire may have changed.
pub async fn pass<R: Reconciler>(
    reconciler: &R,
    key: &R::Key,
    changed: &Notify,
) -> Result<Outcome, RunError<R::Error>> {
    let Some(desired) = reconciler.desired(key) else { return Ok(Outcome::Unmanaged) };
    let observed = observe(reconciler, key, &desired).await?;
    let steps = R::plan(&desired, &observed);
    if steps.is_empty() {
        return Ok(Outcome::Converged { steps: 0 });
    }
    for step in &steps {
        if reconciler.desired(key).as_ref() != Some(&desired) {
            return Ok(Outcome::Superseded);
        }
        tracing::debug!(object = %key, %step, "step");
        let limit = reconciler.deadline(step);
        let work = timeout(limit, reconciler.execute(key, &desired, step));
        let result = tokio::select! {
            biased; // a step that is done counts, also when the desire changed at the same moment
            result = work => result,
            () = superseded(reconciler, key, &desired, changed), if R::interruptible(step) => {
                return Ok(Outcome::Superseded);
            }
        };
        match result {
            Ok(Ok(())) => reconciler.report(key, Report::Done(step)),
            Ok(Err(source)) => return Err(RunError::Step { step: step.to_string(), source }),
            Err(_) => return Err(RunError::StepDeadline { step: step.to_string(), limit }),
        }
    }
    if reconciler.desired(key).as_ref() != Some(&desired) {
        return Ok(Outcome::Superseded);
    }
    let observed = observe(reconciler, key, &desired).await?;
    let left = R::plan(&desired, &observed);
    if left.is_empty() {
        return Ok(Outcome::Converged { steps: steps.len() });
    }
    Err(RunError::NotConverged { left: render(&left).trim_end().replace('\n', ", ") })
}

async fn observe<R: Reconciler>(
    reconciler: &R,
    key: &R::Key,
    desired: &R::Desired,
) -> Result<R::Observed, RunError<R::Error>> {
    match timeout(OBSERVE_DEADLINE, reconciler.observe(key, desired)).await {
        Ok(result) => result.map_err(RunError::Observe),
        Err(_) => Err(RunError::ObserveDeadline(OBSERVE_DEADLINE)),
    }
}

/// Returns when the desire is another one.
async fn superseded<R: Reconciler>(reconciler: &R, key: &R::Key, desired: &R::Desired, changed: &Notify) {
    loop {
        changed.notified().await;
        if reconciler.desired(key).as_ref() != Some(desired) {
            return;
        }
    }
}
