//! Process start of `skc agent`: the guard first, the worker as its child.

use super::cluster::{Fencing, Shared};
use super::node::Node;
use super::operate::Api;
use super::start::{self, Door};
use crate::api::server::BindError;
use crate::api::{self, Document};
use crate::bus::{Bus, Fact, Item};
use crate::guard::client::{Guard, GuardEvent};
use crate::store::StateLock;
use crate::store::events::EventLog;
use futures::{Stream, StreamExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::mpsc;

/// How the worker is started.
#[derive(Debug, Clone)]
pub struct Options {
    /// State directory.
    pub state: PathBuf,
    /// Socket of the local API.
    pub socket: PathBuf,
    /// Directory of specs to follow.
    pub specs: Option<PathBuf>,
}

/// Pause between two attempts to bind the socket; without it nobody can ask why.
const BIND_PAUSE: Duration = Duration::from_secs(1);
/// An owner of the socket that is still there after this long lives: one that was killed needs a moment to go.
const OWNER_LIMIT: Duration = Duration::from_secs(3);

/// Time without a sign of life of the runtime after which the guard kills this worker: three times
/// the default heartbeat timeout (guard::GuardConfig has the same default).
pub(super) const WATCHDOG_MS: u64 = 6_000;

/// The worker: runs until the guard asks for the end. Errors are for the person who started it; whatever
/// can pass by itself is none: it is shown in status and tried again.
pub fn worker(options: Options) -> Result<(), String> {
    crate::sys::resources::prepare(); // before there are threads
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("skc-async")
        .enable_all()
        .build()
        .map_err(|e| format!("no runtime: {e}"))?;
    let result = runtime.block_on(run(options));
    runtime.shutdown_timeout(Duration::from_secs(2));
    result
}

async fn run(options: Options) -> Result<(), String> {
    let guard = Guard::connect_from_env()
        .map_err(|e| e.to_string())?
        .ok_or("the worker is started by `skc agent`, not by hand")?;
    let mut guard_events = guard.events().ok_or("the guard's events are taken")?;
    // Whatever an earlier worker prepared is void: this life says for itself what is true of it.
    if guard.run(|g| g.set_tombstone(Vec::new())).await.map_err(|e| e.to_string())? {
        tracing::info!("the tombstone of an earlier agent of this node was sent");
    }
    // For the guard a worker is ready when it answers: what it waits for may take its time.
    guard.run(Guard::ready).await.map_err(|e| e.to_string())?;
    tokio::spawn(guard.clone().keep_alive(WATCHDOG_MS));
    let up = tokio::select! {
        biased; // the order to end first
        () = end_requested(&mut guard_events, |_| {}) => Ok(None),
        up = bring_up(&options, &guard) => up.map(Some),
    };
    let (node, lock) = match up {
        Ok(Some(up)) => up,
        nothing => {
            // Announced, so that the guard leaves with this process instead of starting it again.
            let _ = guard.run(Guard::shutting_down).await;
            return nothing.map(|_| ()).map_err(|e| e.to_string());
        }
    };
    tokio::spawn(node.clone().keep_up());
    if let Some(dir) = options.specs {
        tokio::spawn(follow_specs(node.clone(), dir));
    }
    tracing::info!("agent is up");
    end_requested(&mut guard_events, |event| node_event(&node, event)).await;
    tracing::info!("orderly end");
    node.shutdown().await;
    node.shared.link.shutdown().await;
    let _ = guard.run(Guard::shutting_down).await;
    drop(lock);
    Ok(())
}

/// Reads the guard's events until one asks for the end (or the guard is gone).
async fn end_requested(events: &mut mpsc::Receiver<GuardEvent>, mut other: impl FnMut(GuardEvent)) {
    loop {
        match events.recv().await {
            Some(GuardEvent::ShutdownRequested { .. }) | None => return,
            Some(event) => other(event),
        }
    }
}

/// First the API, then everything else, as often as it takes.
///
/// # Errors
/// A socket that this agent must not take.
async fn bring_up(options: &Options, guard: &Guard) -> Result<(Arc<Node>, StateLock), BindError> {
    let listener = listen(&options.socket).await?;
    let door = Arc::new(Door::default());
    tokio::spawn(api::server::serve(listener, door.clone()));
    let root = options.state.clone();
    let start::Opened { state, lock, identity, log, book, boot, link, link_events } =
        start::until_up(&door, move || start::open(&root)).await;
    let name = identity.me().name.clone();
    let bus = Bus::new(name.clone());
    // Subscribed here: the first fact is published before the task runs.
    tokio::spawn(keep_log(bus.subscribe(), log));
    bus.publish(None, Fact::AgentStarted { version: env!("CARGO_PKG_VERSION").to_owned() });
    let shared = Arc::new(Shared {
        name,
        state,
        bus,
        link,
        guard: guard.clone(),
        identity,
        boot,
        fencing: Mutex::new(Fencing::default()),
    });
    let node = Node::new(shared, book);
    door.open(Arc::new(Api(node.clone())));
    tokio::spawn(node.clone().route(link_events));
    tokio::spawn(node.clone().beat());
    Ok((node, lock))
}

/// Binds the socket, again and again if need be: a run directory may be mounted late.
async fn listen(path: &Path) -> Result<tokio::net::UnixListener, BindError> {
    let mut told = String::new();
    let begin = tokio::time::Instant::now();
    loop {
        let error = match api::server::bind(path).await {
            Ok(listener) => return Ok(listener),
            Err(error @ BindError::NoSocket(_)) => return Err(error),
            Err(error @ BindError::Owned(_)) if begin.elapsed() >= OWNER_LIMIT => return Err(error),
            Err(error) => error.to_string(),
        };
        if error != told {
            tracing::error!(error_code = "SKC-E7025", "cannot listen on {}: {error}", path.display());
            told = error;
        }
        tokio::time::sleep(BIND_PAUSE).await;
    }
}

fn node_event(node: &Node, event: GuardEvent) {
    if let GuardEvent::ServiceExited(status) = event {
        for unit in node.units() {
            unit.service_exited(&status);
        }
    }
}

async fn keep_log(mut events: impl Stream<Item = Item> + Unpin, mut log: EventLog) {
    while let Some(item) = events.next().await {
        let Item::Event(event) = item else { continue };
        if event.fact.is_progress() {
            continue;
        }
        let write = move || {
            if let Err(error) = log.append(&*event) {
                tracing::warn!(%error, "event log");
            }
            log
        };
        // A disk that hangs holds this task only; the bus counts what it misses meanwhile.
        log = match tokio::task::spawn_blocking(write).await {
            Ok(log) => log,
            Err(error) => {
                tracing::error!(%error, "the event log ends");
                return;
            }
        };
    }
}

/// Applies a directory of specs at the start and after every change in it.
async fn follow_specs(node: Arc<Node>, dir: PathBuf) {
    let (tx, mut rx) = mpsc::channel(1);
    let watch = tokio::spawn(crate::watch::run(dir, tx));
    while let Some(content) = rx.recv().await {
        let outcome = match content {
            Ok(files) if files.is_empty() => continue,
            Ok(files) => {
                let documents: Vec<_> = files
                    .into_iter()
                    .map(|(file, text)| Document { file: file.display().to_string(), text })
                    .collect();
                super::operate::apply(node.clone(), documents, false, None).await.map(drop)
            }
            Err(error) => {
                tracing::error!(%error, "the watched spec directory");
                continue;
            }
        };
        if let Err(error) = outcome {
            tracing::error!(%error, "specs of the watched directory are refused; the ones before stay in force");
            node.bus().publish(None, Fact::SpecRefused { code: error.code, reason: error.message });
        }
    }
    watch.abort();
}
