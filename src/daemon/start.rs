//! The agent's start: the API answers first; everything else is tried until it is there.
//!
//! Purpose: a node whose agent cannot serve (no pair yet, keys or disk unreadable) says so through the
//! same `skc status` as ever, and serves as soon as the cause is gone, without anybody's restart.
//! [`Door`] is the API until then. One attempt at a time, on a blocking thread: a disk that hangs holds
//! that thread only, and status says that it hangs. Absent: giving up.

use super::specs::SpecBook;
use super::status;
use crate::api::{Agent, ApiError, Request};
use crate::base::Mono;
use crate::link::{Identity, Link, LinkConfig, LinkError, LinkEvent, LinkHandle};
use crate::store::events::EventLog;
use crate::store::specs::SpecStore;
use crate::store::{StateDir, StateLock, StoreError};
use crate::sys::clock::boottime;
use futures::future::BoxFuture;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Pauses between two attempts: the first, doubled up to the longest. An attempt costs a few reads.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// An attempt takes milliseconds; one that takes this long waits for a disk, and status says so.
const SLOW: Duration = Duration::from_secs(2);

/// How long a request waits for the end of the first attempt, so that nobody sees a start that goes
/// well as a failure. Longer than [`SLOW`], after which there is something to say.
const FIRST_LIMIT: Duration = Duration::from_secs(3);

/// Link events that may wait.
const LINK_QUEUE: usize = 4096;

/// Why the agent does not serve.
#[derive(Debug, Clone)]
struct Condition {
    error: ApiError,
    /// First seen.
    since: Mono,
    /// Last seen.
    at: Mono,
}

#[derive(Clone)]
enum Phase {
    First,
    Waiting(Condition),
    Up(Arc<dyn Agent>),
}

/// The API of an agent from its first moment on: before everything is up it answers for it.
pub struct Door {
    phase: watch::Sender<Phase>,
}

impl Default for Door {
    fn default() -> Self {
        Self { phase: watch::Sender::new(Phase::First) }
    }
}

impl Door {
    /// From now on `agent` answers.
    pub fn open(&self, agent: Arc<dyn Agent>) {
        self.phase.send_replace(Phase::Up(agent));
    }

    /// The agent cannot serve, for this reason; true = another one than before.
    fn report(&self, error: ApiError) -> bool {
        let now = boottime();
        let mut fresh = true;
        self.phase.send_modify(|phase| {
            let mut since = now;
            if let Phase::Waiting(known) = phase
                && (&known.error.code, &known.error.message) == (&error.code, &error.message)
            {
                (since, fresh) = (known.since, false);
            }
            *phase = Phase::Waiting(Condition { error, since, at: now });
        });
        fresh
    }
}

impl Agent for Door {
    fn call(&self, request: Request, more: mpsc::Sender<Value>) -> BoxFuture<'_, Result<Value, ApiError>> {
        let mut phase = self.phase.subscribe();
        Box::pin(async move {
            let settled = phase.wait_for(|phase| !matches!(phase, Phase::First));
            // Too late or the sender gone: what is there is the answer.
            let _ = tokio::time::timeout(FIRST_LIMIT, settled).await;
            let phase = phase.borrow().clone();
            match phase {
                Phase::Up(agent) => agent.call(request, more).await,
                Phase::Waiting(condition) => condition.answer(&request),
                Phase::First => {
                    let now = boottime();
                    Condition { error: slow(), since: now, at: now }.answer(&request)
                }
            }
        })
    }
}

impl Condition {
    fn answer(&self, request: &Request) -> Result<Value, ApiError> {
        let Self { error, since, at } = self;
        match request {
            Request::Ping => Ok(json!({"version": env!("CARGO_PKG_VERSION")})),
            Request::Status { .. } => {
                let now = boottime();
                let all = [status::of_agent("", error, now - *since, now - *at)];
                Ok(serde_json::to_value(all).unwrap_or_default())
            }
            _ => Err(ApiError {
                code: "SKC-E7025".to_owned(),
                message: format!(
                    "the agent cannot serve yet, nothing was done: {} ({})",
                    error.message, error.code
                ),
                hint: error.hint.clone(),
            }),
        }
    }
}

fn slow() -> ApiError {
    ApiError::new(
        "SKC-E7025",
        "the start has not ended yet: the disk of the state directory does not answer",
        "see to that disk; the agent goes on by itself when it answers",
    )
}

/// Attempts until one succeeds; `door` says meanwhile why not.
///
/// # Cancel safety
/// Cancelled, an attempt under way runs to its end and its result is dropped.
pub async fn until_up<T: Send + 'static>(
    door: &Door,
    attempt: impl Fn() -> Result<T, ApiError> + Clone + Send + 'static,
) -> T {
    let mut pause = PAUSE_MIN;
    loop {
        let mut running = tokio::task::spawn_blocking(attempt.clone());
        let result = loop {
            tokio::select! {
                biased; // the outcome before its delay
                result = &mut running => break result,
                () = tokio::time::sleep(SLOW) => {
                    if door.report(slow()) {
                        tracing::error!(error_code = "SKC-E7025", "the state directory's disk does not answer");
                    }
                }
            }
        };
        let error = match result {
            Ok(Ok(up)) => return up,
            Ok(Err(error)) => error,
            Err(error) => {
                ApiError::new("SKC-E7025", format!("the start broke off: {error}"), "look at the agent's log")
            }
        };
        let (code, message) = (error.code.clone(), error.message.clone());
        if door.report(error) {
            tracing::error!(error_code = code, "the agent cannot serve yet: {message}");
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// What the state directory and the link give.
pub struct Opened {
    /// The state directory.
    pub state: StateDir,
    /// It is ours as long as this lives.
    pub lock: StateLock,
    /// Who this node is.
    pub identity: Identity,
    /// The event log.
    pub log: EventLog,
    /// Specs in force.
    pub book: SpecBook,
    /// Boot id of this kernel.
    pub boot: u128,
    /// The running link.
    pub link: LinkHandle,
    /// Its events.
    pub link_events: mpsc::Receiver<LinkEvent>,
}

/// One attempt. Blocks; within a runtime, because the link's tasks are started in it.
///
/// # Errors
/// The first part that is not there; nothing stays locked or bound.
pub fn open(root: &Path) -> Result<Opened, ApiError> {
    let state = StateDir::open(root).map_err(|e| of_store(&e))?;
    // Before the lock: `skc init` and `skc join` need it, and a node without a pair waits for them.
    let identity = Identity::load(&state).map_err(|e| of_link(&e))?;
    let lock = state.lock().map_err(|e| of_store(&e))?;
    let log = EventLog::open(&state).map_err(|e| of_store(&e))?;
    let store = SpecStore::open(&state).map_err(|e| of_store(&e))?;
    let book = SpecBook::open(store, identity.me().name.clone()).map_err(|e| of_store(&e))?;
    let (tx, link_events) = mpsc::channel(LINK_QUEUE);
    let config = LinkConfig::new(identity.clone()).map_err(|e| of_link(&e))?;
    let boot = config.boot;
    let link = Link::start(config, tx).map_err(|e| of_link(&e))?;
    Ok(Opened { state, lock, identity, log, book, boot, link, link_events })
}

fn of_link(error: &LinkError) -> ApiError {
    ApiError::new(error.code(), error.to_string(), error.hint())
}

fn of_store(error: &StoreError) -> ApiError {
    let hint = match error {
        StoreError::Locked(_) => "end the other process that uses it; the agent goes on by itself",
        StoreError::TooNew { .. } => "install the release that wrote it",
        _ => "see to the state directory, its owner and its disk; the agent goes on by itself",
    };
    ApiError::new(error.code(), error.to_string(), hint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    struct Serves;

    impl Agent for Serves {
        fn call(&self, _: Request, _: mpsc::Sender<Value>) -> BoxFuture<'_, Result<Value, ApiError>> {
            Box::pin(async { Ok(json!("served")) })
        }
    }

    fn status() -> Request {
        Request::Status { cluster: None }
    }

    async fn ask(door: &Door, request: Request) -> Result<Value, ApiError> {
        door.call(request, mpsc::channel(1).0).await
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_cannot_serve_says_why_and_heals() {
        let door = Arc::new(Door::default());
        let attempts = Arc::new(AtomicUsize::new(0));
        let starting = {
            let (door, attempts) = (door.clone(), attempts.clone());
            tokio::spawn(async move {
                let up = until_up(&door, move || match attempts.fetch_add(1, Ordering::SeqCst) {
                    0..4 => Err(ApiError::new("SKC-E2001", "no pair", "skc init")),
                    _ => Ok(()),
                });
                up.await;
                door.open(Arc::new(Serves));
            })
        };
        let shown = ask(&door, status()).await.expect("status answers");
        assert_eq!(shown[0]["reasons"][0]["code"], "SKC-E2001");
        assert_eq!(shown[0]["reasons"][0]["text"], "no pair");
        assert_eq!((&shown[0]["command"], &shown[0]["ready"]), (&json!("skc init"), &json!("NotReady")));
        assert!(shown[0]["extra"]["since_ms"].is_u64() && shown[0]["age_ms"].is_u64());
        let error = ask(&door, Request::Get { cluster: None }).await.expect_err("nothing else does");
        assert!(error.code == "SKC-E7025" && error.message.contains("no pair"), "{error}");
        starting.await.expect("it heals");
        assert_eq!(ask(&door, status()).await.expect("served"), "served");
    }

    #[tokio::test]
    async fn without_a_pair_the_state_directory_stays_free_for_init() {
        let dir = tempfile::tempdir().unwrap();
        let error = open(dir.path()).err().expect("no pair yet");
        assert_eq!(error.code, "SKC-E2001");
        StateDir::open(dir.path()).unwrap().lock().expect("not held while it waits");
        std::fs::write(dir.path().join("version"), "99\n").unwrap();
        assert_eq!(open(dir.path()).err().map(|e| e.code).as_deref(), Some("SKC-E2103"));
    }
}
