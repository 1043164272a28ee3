//! Process start of `skc agent`: the guard first, the worker as its child.

use super::cluster::{Fencing, Shared};
use super::node::Node;
use super::operate::Api;
use super::specs::SpecBook;
use crate::api::{self, Document};
use crate::bus::{Bus, Fact};
use crate::guard::client::{Guard, GuardEvent};
use crate::link::{Identity, Link, LinkConfig};
use crate::store::StateDir;
use crate::store::events::EventLog;
use crate::store::specs::SpecStore;
use futures::StreamExt;
use std::path::PathBuf;
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

/// Link events that may wait.
const LINK_QUEUE: usize = 4096;

/// Time without a sign of life of the runtime after which the guard kills this worker: three times
/// the default heartbeat timeout (guard::GuardConfig has the same default).
pub(super) const WATCHDOG_MS: u64 = 6_000;

/// The worker: runs until the guard asks for the end. Errors are for the person who started it.
pub fn worker(options: Options) -> Result<(), String> {
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
    let state = StateDir::open(&options.state).map_err(|e| e.to_string())?;
    let _lock = state.lock().map_err(|e| e.to_string())?;
    let identity = Identity::load(&state).map_err(|e| e.to_string())?;
    let name = identity.me().name.clone();
    let bus = Bus::new(name.clone());
    let log = EventLog::open(&state).map_err(|e| e.to_string())?;
    tokio::spawn(keep_log(bus.clone(), log));
    bus.publish(None, Fact::AgentStarted { version: env!("CARGO_PKG_VERSION").to_owned() });

    let (tx, link_events) = mpsc::channel(LINK_QUEUE);
    let config = LinkConfig::new(identity.clone()).map_err(|e| e.to_string())?;
    let boot = config.boot;
    let link = Link::start(config, tx).map_err(|e| e.to_string())?;
    let store = SpecStore::open(&state).map_err(|e| e.to_string())?;
    let (book, problems) = SpecBook::open(store, name.clone()).map_err(|e| e.to_string())?;
    for problem in problems {
        tracing::error!(error_code = "SKC-E7012", "{problem}");
    }
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
    let listener = api::server::bind(&options.socket)
        .map_err(|e| format!("cannot listen on {}: {e}", options.socket.display()))?;
    tokio::spawn(api::server::serve(listener, Arc::new(Api(node.clone()))));
    tokio::spawn(node.clone().route(link_events));
    tokio::spawn(node.clone().beat());
    node.reconcile().await;
    if let Some(dir) = options.specs {
        tokio::spawn(follow_specs(node.clone(), dir));
    }
    guard.run(Guard::ready).await.map_err(|e| e.to_string())?;
    tokio::spawn(guard.clone().keep_alive(WATCHDOG_MS));
    tracing::info!("agent is up");

    loop {
        match guard_events.recv().await {
            Some(GuardEvent::ShutdownRequested { .. }) | None => break,
            Some(event) => node_event(&node, event),
        }
    }
    tracing::info!("orderly end");
    node.shutdown().await;
    node.shared.link.shutdown().await;
    let _ = guard.run(Guard::shutting_down).await;
    Ok(())
}

fn node_event(node: &Node, event: GuardEvent) {
    if let GuardEvent::ServiceExited(status) = event {
        for unit in node.units() {
            unit.service_exited(&status);
        }
    }
}

async fn keep_log(bus: Bus, mut log: EventLog) {
    let mut events = bus.subscribe();
    while let Some(item) = events.next().await {
        if let crate::bus::Item::Event(event) = item
            && !event.fact.is_progress()
            && let Err(error) = log.append(&*event)
        {
            tracing::warn!(%error, "event log");
        }
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
                super::operate::apply(&node, &documents, false, None).await.map(drop)
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
