//! Checkers: one task looks at one thing periodically and reports when its verdict changes.
//!
//! What follows from a failure is decided elsewhere. Two kinds of looks are void, because they accuse
//! the wrong one: those during which the mount was frozen ([`Checker::freeze`]), and failures by
//! timeout that this process noticed much too late (it did not run itself).
//!
//! Bounds: one look at a time, each ends at its timeout; output is cut to [`OUTPUT_MAX`].

mod exec;
mod looks;

use crate::base::Mono;
use crate::engine::health::{Health, Look, RiseFall};
use crate::spec::checker::{Checker as Spec, Probe};
use crate::sys::clock::boottime;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

/// What a command or an error may say, in bytes; its end is kept.
pub const OUTPUT_MAX: usize = 1024;
/// A timeout noticed this much later than it was due says more about us than about the checked thing.
const LATE_MS: u64 = 250;

/// What a look found, with a line for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) look: Look,
    pub(crate) output: String,
}

impl Finding {
    fn good(output: impl Into<String>) -> Self {
        Self { look: Look::Good, output: output.into() }
    }

    fn bad(output: impl Into<String>) -> Self {
        Self { look: Look::Bad, output: output.into() }
    }
}

/// How a checker stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// The verdict.
    pub health: Health,
    /// What the last look said.
    pub output: String,
    /// When that was.
    pub at: Mono,
}

/// Called when the verdict changed (never with `Unknown`); must not block.
pub type OnChange = Arc<dyn Fn(&Spec, &Standing) + Send + Sync>;

/// A running checker; dropping it ends it, with its command if one runs.
#[derive(Debug)]
pub struct Checker {
    standing: watch::Receiver<Standing>,
    frozen: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl Checker {
    /// Starts looking, the first time at once.
    pub fn start(spec: Spec, on_change: OnChange) -> Self {
        let (publish, standing) = watch::channel(Standing::default());
        let (frozen, freeze) = watch::channel(false);
        let task = tokio::spawn(run(spec, on_change, publish, freeze));
        Self { standing, frozen, task }
    }

    /// How it stands now.
    pub fn standing(&self) -> Standing {
        self.standing.borrow().clone()
    }

    /// Follows it.
    pub fn watch(&self) -> watch::Receiver<Standing> {
        self.standing.clone()
    }

    /// While `true`, looks do not count: the mount makes the checked thing wait.
    pub fn freeze(&self, frozen: bool) {
        self.frozen.send_if_modified(|now| std::mem::replace(now, frozen) != frozen);
    }
}

impl Drop for Checker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The sum of several checkers, for the core: are all of them content?
///
/// `Unknown` counts as content: a service must not be blamed before it was looked at.
pub fn all_healthy<'a>(checkers: impl IntoIterator<Item = &'a Checker>) -> bool {
    checkers.into_iter().all(|c| c.standing.borrow().health != Health::Down)
}

async fn run(
    spec: Spec,
    on_change: OnChange,
    publish: watch::Sender<Standing>,
    mut freeze: watch::Receiver<bool>,
) {
    let mut machine = RiseFall::new(spec.rise, spec.fall);
    let mut looker = looks::Looker::new(&spec.probe);
    let mut tick = tokio::time::interval(spec.interval.as_std().max(Duration::from_millis(10)));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let timeout = spec.timeout.as_std();
    loop {
        tick.tick().await;
        if freeze.wait_for(|frozen| !frozen).await.is_err() {
            return;
        }
        freeze.mark_unchanged();
        let start = boottime();
        let (finding, timed_out) = match tokio::time::timeout(timeout, looker.look(timeout)).await {
            Ok(finding) => (finding, false),
            Err(_) => (Finding::bad(format!("no result within {} ms", timeout.as_millis())), true),
        };
        let took = boottime() - start;
        if freeze.has_changed().unwrap_or(true) {
            tracing::debug!(checker = spec.name, "look does not count: the mount was frozen meanwhile");
            continue;
        }
        if timed_out && took > spec.timeout.as_millis() + LATE_MS {
            tracing::debug!(checker = spec.name, took, "look does not count: this process was stalled");
            continue;
        }
        let changed = machine.look(finding.look);
        let standing = Standing { health: machine.health(), output: finding.output, at: boottime() };
        publish.send_replace(standing.clone());
        if changed.is_some() {
            tracing::info!(checker = spec.name, health = ?standing.health, output = standing.output, "checker changed");
            on_change(&spec, &standing);
        }
    }
}

/// The last [`OUTPUT_MAX`] bytes as text.
fn tail(bytes: &[u8]) -> String {
    let from = bytes.len().saturating_sub(OUTPUT_MAX);
    String::from_utf8_lossy(bytes.get(from..).unwrap_or_default()).trim().to_owned()
}

#[cfg(test)]
mod tests;
