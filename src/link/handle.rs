//! [`Link::start`] and [`LinkHandle`].

use super::connection::Outbox;
use super::heartbeat::{self, Heartbeats, Settings, Shared};
use super::tls::ServerConfigs;
use super::types::{Faults, SessionStatus};
use super::{
    DataConn, Identity, Life, LinkConfig, LinkError, LinkEvent, LinkStatus, Tombstone, accept, control, data,
    dial, tombstone,
};
use arc_swap::{ArcSwap, ArcSwapOption};
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};

/// The same refusal of the same source is reported once in this time.
const REFUSAL_QUIET: Duration = Duration::from_secs(10);
/// Sources remembered for that; beyond it refusals are only counted.
const REFUSALS_MAX: usize = 64;
/// Connections on their way to their owner; more wait where they were greeted.
const ARRIVALS: usize = 4;
/// How long [`LinkHandle::shutdown`] waits for the last words.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(2);

/// Interval and timeout, changed at run time.
pub(super) struct Timers {
    interval: Arc<AtomicU64>,
    timeout: AtomicU64,
}

impl Timers {
    pub(super) fn interval(&self) -> Duration {
        Duration::from_millis(self.interval.load(Ordering::Relaxed))
    }

    pub(super) fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout.load(Ordering::Relaxed))
    }

    /// Below 10 ms a heartbeat is noise; a timeout below three intervals fires on one lost ping.
    fn set(&self, interval: Duration, timeout: Duration) {
        let interval = interval.max(Duration::from_millis(10));
        let timeout = timeout.max(interval * 3);
        self.interval.store(interval.as_millis() as u64, Ordering::Relaxed);
        self.timeout.store(timeout.as_millis() as u64, Ordering::Relaxed);
    }
}

/// The live control connection as everyone but its owner sees it.
#[derive(Clone)]
pub(super) struct Session {
    pub(super) status: SessionStatus,
    pub(super) outbox: Outbox,
}

/// What all tasks of a link share.
pub(super) struct Inner {
    pub(super) identity: ArcSwap<Identity>,
    pub(super) life: Life,
    pub(super) timers: Arc<Timers>,
    pub(super) events: mpsc::Sender<LinkEvent>,
    pub(super) configs: ServerConfigs,
    pub(super) heartbeats: ArcSwapOption<Shared>,
    pub(super) session: watch::Sender<Option<Session>>,
    pub(super) stop: watch::Sender<bool>,
    /// Number of a session to be closed.
    pub(super) hang_up: watch::Sender<u64>,
    /// Counts enrolments of a peer during this life.
    pub(super) enrolment: watch::Sender<u64>,
    pub(super) joining: tokio::sync::Mutex<()>,
    pub(super) listen_errors: Mutex<BTreeMap<IpAddr, String>>,
    threads: Mutex<Option<Heartbeats>>,
    body: Arc<ArcSwap<Vec<u8>>>,
    faults: Arc<Faults>,
    refused: AtomicU64,
    refusals: Mutex<HashMap<(IpAddr, &'static str), Instant>>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    /// Hands an event on; waits for room. `false` = the link stops or nobody listens any more.
    pub(super) async fn emit(&self, event: LinkEvent) -> bool {
        let mut stop = self.stop.subscribe();
        tokio::select! {
            // Deliver if there is room, also while stopping: the last Down must not be lost.
            biased;
            sent = self.events.send(event) => {
                if sent.is_err() { self.stop.send_replace(true); }
                sent.is_ok()
            }
            _ = stop.wait_for(|stop| *stop) => false,
        }
    }

    /// Counts and reports a refusal, without waiting and without repeating itself.
    pub(super) fn refuse(&self, error: &LinkError, from: SocketAddr) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        let code = error.code();
        let now = Instant::now();
        {
            let mut known = lock(&self.refusals);
            known.retain(|_, at| now.duration_since(*at) < REFUSAL_QUIET);
            if known.len() >= REFUSALS_MAX || known.contains_key(&(from.ip(), code)) {
                return;
            }
            known.insert((from.ip(), code), now);
        }
        tracing::warn!(error_code = code, peer = %from, why = %error, "connection refused");
        let _ = self.events.try_send(LinkEvent::Refused { why: error.to_string(), code, from });
    }

    /// Resolves when the link stops.
    pub(super) async fn stopped(&self) {
        let mut stop = self.stop.subscribe();
        let _ = stop.wait_for(|stop| *stop).await;
    }

    pub(super) fn stopping(&self) -> bool {
        *self.stop.borrow()
    }

    /// (Re)starts the heartbeats with the peer of the present identity. Blocks.
    pub(super) fn start_heartbeats(&self) -> Result<(), LinkError> {
        let identity = self.identity.load_full();
        let mut threads = lock(&self.threads);
        if let Some(former) = threads.take() {
            former.stop();
        }
        self.heartbeats.store(None);
        if let (Some(peer), false) = (identity.peer(), self.stopping()) {
            let settings = Settings {
                life: self.life,
                faults: self.faults.clone(),
                interval: self.timers.interval.clone(),
                body: self.body.clone(),
            };
            let running = Heartbeats::start(&identity, peer, settings)?;
            self.heartbeats.store(Some(running.shared.clone()));
            *threads = Some(running);
        }
        Ok(())
    }
}

/// Starts links.
pub struct Link;

impl Link {
    /// Listens on this node's addresses, starts heartbeats, finds the peer. Must be called inside a
    /// tokio runtime; writes the start counter (one small durable write).
    ///
    /// An address that cannot be used yet is no error: it is tried again and shown in the status.
    ///
    /// # Errors
    /// Unusable keys, no threads, the state directory.
    pub fn start(config: LinkConfig, events: mpsc::Sender<LinkEvent>) -> Result<LinkHandle, LinkError> {
        let incarnation = u128::from_le_bytes(super::pki::random()?);
        let start = config.identity.state().next_start()?;
        let timers = Arc::new(Timers { interval: Arc::default(), timeout: AtomicU64::new(0) });
        timers.set(config.interval, config.timeout);
        let inner = Arc::new(Inner {
            configs: ServerConfigs::new(&config.identity)?,
            identity: ArcSwap::from_pointee(config.identity),
            life: Life { boot: config.boot, incarnation, start },
            timers,
            events,
            heartbeats: ArcSwapOption::empty(),
            session: watch::channel(None).0,
            hang_up: watch::channel(0).0,
            stop: watch::channel(false).0,
            enrolment: watch::channel(0).0,
            joining: tokio::sync::Mutex::default(),
            listen_errors: Mutex::default(),
            threads: Mutex::default(),
            body: Arc::default(),
            faults: config.faults,
            refused: AtomicU64::new(0),
            refusals: Mutex::default(),
        });
        inner.start_heartbeats()?;
        let (sender, arrivals) = mpsc::channel(ARRIVALS);
        let me = inner.identity.load().me().clone();
        for address in me.addresses {
            let address = SocketAddr::new(address, me.port);
            tokio::spawn(accept::listen(inner.clone(), address, sender.clone()));
        }
        tokio::spawn(dial::run(inner.clone(), sender));
        tokio::spawn(control::forward(inner.clone()));
        let manager = tokio::spawn(control::run(inner.clone(), arrivals));
        let guard = Guard { inner: inner.clone(), manager: Mutex::new(Some(manager)) };
        Ok(LinkHandle { inner, guard: Arc::new(guard) })
    }
}

/// Stops the link when the last handle is gone.
struct Guard {
    inner: Arc<Inner>,
    manager: Mutex<Option<tokio::task::JoinHandle<()>>>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.inner.stop.send_replace(true);
        drop(lock(&self.inner.threads).take());
    }
}

/// A running link. Clones share it; the last one dropped stops it.
#[derive(Clone)]
pub struct LinkHandle {
    inner: Arc<Inner>,
    guard: Arc<Guard>,
}

impl LinkHandle {
    /// Queues a message for the peer; delivered in order, at most once, in this session only.
    ///
    /// # Errors
    /// Not connected, queue full (1024 messages, 32 MiB), message above 16 MiB less a header.
    pub fn send(&self, message: impl AsRef<[u8]>) -> Result<(), LinkError> {
        let outbox = self.inner.session.borrow().as_ref().map(|session| session.outbox.clone());
        outbox.ok_or(LinkError::NotConnected)?.send(message.as_ref())
    }

    /// What heartbeats carry from the next one on.
    ///
    /// # Errors
    /// Above [`super::BODY_MAX`].
    pub fn set_heartbeat(&self, body: Vec<u8>) -> Result<(), LinkError> {
        heartbeat::check_body(&body)?;
        self.inner.body.store(Arc::new(body));
        Ok(())
    }

    /// Opens a data connection on the control connection's path; `hello` reaches the other side
    /// with it. Either node may dial.
    ///
    /// # Errors
    /// Not connected, refused, or not done within the timeout.
    ///
    /// # Cancel safety
    /// Cancelled, the connection is closed; the other side may see it come and go.
    pub async fn dial_data(&self, hello: Vec<u8>) -> Result<DataConn, LinkError> {
        data::dial(&self.inner, &hello).await
    }

    /// The link as it is now.
    pub fn status(&self) -> LinkStatus {
        let heartbeats = self.inner.heartbeats.load();
        let listen = lock(&self.inner.listen_errors);
        LinkStatus {
            session: self.inner.session.borrow().as_ref().map(|session| session.status.clone()),
            paths: heartbeats.as_ref().map(|shared| shared.status()).unwrap_or_default(),
            own_late: heartbeats.as_ref().map(|shared| shared.own_late()).unwrap_or_default(),
            refused: self.inner.refused.load(Ordering::Relaxed),
            listen_errors: listen.iter().map(|(address, why)| (*address, why.clone())).collect(),
        }
    }

    /// Changes the timers at once (at least 10 ms, timeout at least three intervals).
    pub fn reconfigure(&self, interval: Duration, timeout: Duration) {
        self.inner.timers.set(interval, timeout);
        if let Some(threads) = lock(&self.inner.threads).as_ref() {
            threads.wake();
        }
    }

    /// Closes control connection `session` if it is the present one; it is dialled anew.
    pub fn hang_up(&self, session: u64) {
        self.inner.hang_up.send_replace(session);
    }

    /// This life of the agent.
    pub fn life(&self) -> Life {
        self.inner.life
    }

    /// Who this node is; its peer appears after a join.
    pub fn identity(&self) -> Identity {
        self.inner.identity.load().as_ref().clone()
    }

    /// The tombstone for the guard to send if this life ends and none follows.
    ///
    /// # Errors
    /// No peer yet; a body above [`super::BODY_MAX`].
    pub fn tombstone(&self, body: &[u8]) -> Result<Tombstone, LinkError> {
        tombstone::seal(&self.inner.identity.load(), &self.inner.life, body)
    }

    /// Says good-bye, stops every task and thread, frees the ports. Bounded: about two seconds.
    pub async fn shutdown(&self) {
        self.inner.stop.send_replace(true);
        let manager = lock(&self.guard.manager).take();
        if let Some(manager) = manager {
            let _ = tokio::time::timeout(SHUTDOWN_LIMIT, manager).await;
        }
        let threads = lock(&self.inner.threads).take();
        if let Some(threads) = threads {
            let _ = tokio::task::spawn_blocking(move || threads.stop()).await;
        }
    }
}
