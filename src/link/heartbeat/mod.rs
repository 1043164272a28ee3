//! Heartbeats: one thread sends on every path each interval, one thread a path receives.
//!
//! Plain threads, so that a busy runtime delays neither. Received heartbeats are kept per path (the
//! newest only) and handed on by a task; states are read by anyone at any time.
//!
//! Failure: an address that cannot be bound (interface not up yet) is tried again twice a second
//! and shown in the status; a send that fails or would block is lost like any datagram.

pub(crate) mod datagram;
pub(crate) mod path;

use super::pki::{Identity, Node};
use super::{BODY_MAX, Faults, Life, LinkError, PathStatus};
use crate::base::{Millis, Mono};
use crate::sys::clock::boottime;
use arc_swap::ArcSwap;
use datagram::{DATAGRAM_MAX, Datagram, Echo, Keys, Kind};
use path::PathState;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// How long a receiver blocks before it looks whether it should stop: bounds [`Heartbeats::stop`].
const RECEIVE_SLICE: Duration = Duration::from_millis(250);
/// A datagram that cannot be queued at once is worth nothing later; other paths must not wait.
const SEND_LIMIT: Duration = Duration::from_millis(10);
/// Pause between attempts to bind an address.
const BIND_PAUSE: Duration = Duration::from_millis(500);

/// Zero of the clock in `sent` fields.
static CLOCK: LazyLock<Instant> = LazyLock::new(Instant::now);

fn clock() -> u64 {
    CLOCK.elapsed().as_nanos() as u64
}

/// Never poisoned for long: the guarded values are plain data, valid after every statement.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One address pair.
pub(crate) struct Path {
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    socket: Mutex<Option<Arc<UdpSocket>>>,
    pub(crate) state: Mutex<PathState>,
}

/// What threads and readers share.
pub(crate) struct Shared {
    pub(crate) paths: Vec<Path>,
    keys: Keys,
    life: Life,
    faults: Arc<Faults>,
    interval: Arc<AtomicU64>,
    body: Arc<ArcSwap<Vec<u8>>>,
    stop: AtomicBool,
    /// Something for the forwarding task: a heartbeat, a tombstone, a stall.
    pub(crate) news: Notify,
    /// Lateness of the newest heartbeat of ours, milliseconds.
    late: AtomicU64,
    /// Greatest lateness above an interval since it was last taken, milliseconds.
    stall: AtomicU64,
}

impl Shared {
    /// Milliseconds between heartbeats.
    pub(crate) fn interval(&self) -> Millis {
        self.interval.load(Ordering::Relaxed).max(1)
    }

    /// A path's state.
    pub(crate) fn path(&self, index: usize) -> Option<MutexGuard<'_, PathState>> {
        self.paths.get(index).map(|path| lock(&path.state))
    }

    /// How late our newest heartbeat left.
    pub(crate) fn own_late(&self) -> Duration {
        Duration::from_millis(self.late.load(Ordering::Relaxed))
    }

    /// Takes the stall to report.
    pub(crate) fn take_stall(&self) -> Option<Duration> {
        match self.stall.swap(0, Ordering::Relaxed) {
            0 => None,
            late => Some(Duration::from_millis(late)),
        }
    }

    /// TLS proved the peer's present life.
    pub(crate) fn adopt(&self, life: Life) {
        for path in &self.paths {
            lock(&path.state).adopt(life);
        }
    }

    /// Every path for the status.
    pub(crate) fn status(&self) -> Vec<PathStatus> {
        let (now, interval) = (boottime(), self.interval());
        self.paths
            .iter()
            .map(|path| {
                let state = lock(&path.state);
                let alive = state.alive(interval, now);
                PathStatus {
                    local: path.local,
                    remote: path.remote,
                    alive,
                    heard_ms_ago: state.heard_ago(now),
                    heard_me_ms_ago: state.heard_me_ago(now),
                    rtt: state.rtt(),
                    loss: if alive { state.loss() } else { 1.0 },
                    received: state.received,
                    dropped: state.dropped,
                    error: state.error.clone(),
                }
            })
            .collect()
    }

    fn stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    fn send_all(&self, sequence: u64, interval: Millis) {
        let body = self.body.load();
        for (index, path) in self.paths.iter().enumerate() {
            let Some(socket) = lock(&path.socket).clone() else { continue };
            let sent = clock();
            let echo = lock(&path.state).to_echo().map(|(incarnation, theirs, at)| Echo {
                incarnation,
                sent: theirs,
                held: sent.saturating_sub(at) / 1000,
            });
            let bytes = self.keys.seal(&Datagram {
                kind: Kind::Heartbeat,
                path: index as u8,
                life: self.life,
                sequence,
                interval: u32::try_from(interval).unwrap_or(u32::MAX),
                sent,
                echo,
                body: body.as_ref().clone(),
            });
            if self.faults.drops_sent(index) {
                continue;
            }
            let failure = socket.send_to(&bytes, path.remote).err().filter(|error| {
                // The peer's port is closed (its agent is down), or the queue is full: no news.
                !matches!(
                    error.kind(),
                    std::io::ErrorKind::ConnectionRefused | std::io::ErrorKind::WouldBlock
                )
            });
            lock(&path.state).error = failure.map(|error| format!("cannot send: {error}"));
        }
    }

    fn receive(&self, index: usize, bytes: &[u8]) {
        let Some(path) = self.paths.get(index) else { return };
        if self.faults.drops_received(index) {
            return;
        }
        let (now, clock) = (boottime(), clock());
        let opened = self.keys.open(bytes);
        let Ok(datagram) = opened else {
            lock(&path.state).dropped += 1;
            return;
        };
        let news = match datagram.kind {
            // Authentic, but recorded on another path.
            Kind::Heartbeat if usize::from(datagram.path) != index => {
                lock(&path.state).dropped += 1;
                false
            }
            Kind::Heartbeat => lock(&path.state).accept(datagram, &self.life, now, clock),
            Kind::Tombstone => self.bury(path, datagram),
        };
        if news {
            self.news.notify_one();
        }
    }

    /// A tombstone counts only for the life we know as the peer's present one: it was made before
    /// that life ended and must not bury a later one.
    fn bury(&self, path: &Path, datagram: Datagram) -> bool {
        let lives: Vec<Life> = self.paths.iter().filter_map(|path| lock(&path.state).peer()).collect();
        let present = lives.iter().max_by_key(|life| life.start);
        let current = present.is_some_and(|life| life.incarnation == datagram.life.incarnation);
        let mut state = lock(&path.state);
        if current {
            state.tombstone = Some((datagram.life.incarnation, datagram.body));
        } else {
            state.dropped += 1;
        }
        current
    }
}

/// The running threads. [`Self::stop`] must be called: a drop only asks them to stop.
pub(crate) struct Heartbeats {
    pub(crate) shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// What survives a new enrolment of the peer.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) life: Life,
    pub(crate) faults: Arc<Faults>,
    pub(crate) interval: Arc<AtomicU64>,
    pub(crate) body: Arc<ArcSwap<Vec<u8>>>,
}

impl Heartbeats {
    /// Starts the threads of a pair.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub(crate) fn start(identity: &Identity, peer: &Node, settings: Settings) -> Result<Self, LinkError> {
        let me = identity.me();
        let paths = me
            .addresses
            .iter()
            .zip(&peer.addresses)
            .map(|(ours, theirs)| Path {
                local: SocketAddr::new(*ours, me.port),
                remote: SocketAddr::new(*theirs, peer.port),
                socket: Mutex::default(),
                state: Mutex::default(),
            })
            .collect();
        let shared = Arc::new(Shared {
            paths,
            keys: Keys::new(identity, peer),
            life: settings.life,
            faults: settings.faults,
            interval: settings.interval,
            body: settings.body,
            stop: AtomicBool::new(false),
            news: Notify::new(),
            late: AtomicU64::new(0),
            stall: AtomicU64::new(0),
        });
        let mut running = Self { shared: shared.clone(), threads: Vec::new() };
        for index in 0..shared.paths.len() {
            let shared = shared.clone();
            running.spawn(format!("skc-hb-rx{index}"), move || receiver(&shared, index))?;
        }
        running.spawn("skc-hb-tx".to_owned(), move || sender(&shared))?;
        Ok(running)
    }

    fn spawn(&mut self, name: String, run: impl FnOnce() + Send + 'static) -> Result<(), LinkError> {
        let spawned = thread::Builder::new().name(name).spawn(run);
        self.threads.push(spawned.map_err(|source| LinkError::Start { what: "heartbeat thread", source })?);
        Ok(())
    }

    /// Wakes the sender after the interval changed.
    pub(crate) fn wake(&self) {
        for thread in &self.threads {
            thread.thread().unpark();
        }
    }

    /// Stops and waits: at most [`RECEIVE_SLICE`], afterwards the ports are free. Blocks.
    pub(crate) fn stop(mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.wake();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Heartbeats {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.wake();
    }
}

/// Sends each interval; measures its own lateness on CLOCK_BOOTTIME, so that a suspended machine
/// sees that it slept.
fn sender(shared: &Shared) {
    let mut sequence = 0;
    let mut due = boottime();
    while !shared.stopping() {
        let now = boottime();
        let interval = shared.interval();
        if now < due {
            // An unpark (new interval, stop) only ends the wait early.
            thread::park_timeout(Duration::from_millis((due - now).min(interval)));
            if due - boottime() > interval {
                due = boottime() + interval;
            }
            continue;
        }
        let late = now - due;
        shared.late.store(late, Ordering::Relaxed);
        if late > interval {
            shared.stall.fetch_max(late, Ordering::Relaxed);
            shared.news.notify_one();
        }
        sequence += 1;
        shared.send_all(sequence, interval);
        // Keep the beat; after a stall start anew instead of sending a burst.
        due = if late > interval { now + interval } else { due + interval };
    }
}

fn receiver(shared: &Shared, index: usize) {
    let Some(path) = shared.paths.get(index) else { return };
    let mut buffer = [0; DATAGRAM_MAX + 1];
    while !shared.stopping() {
        let bound = lock(&path.socket).clone();
        let Some(socket) = bound else {
            match bind(path.local) {
                Ok(socket) => {
                    lock(&path.state).error = None;
                    *lock(&path.socket) = Some(Arc::new(socket));
                }
                Err(error) => {
                    lock(&path.state).error = Some(format!("cannot bind {}: {error}", path.local));
                    thread::park_timeout(BIND_PAUSE);
                }
            }
            continue;
        };
        match socket.recv_from(&mut buffer) {
            Ok((length, _)) => shared.receive(index, buffer.get(..length).unwrap_or_default()),
            Err(error)
                if matches!(
                    error.kind(),
                    // The slice is over; a signal; the peer's port is closed.
                    std::io::ErrorKind::WouldBlock
                        | std::io::ErrorKind::TimedOut
                        | std::io::ErrorKind::Interrupted
                        | std::io::ErrorKind::ConnectionRefused
                ) => {}
            Err(error) => {
                lock(&path.state).error = Some(format!("cannot receive on {}: {error}", path.local));
                *lock(&path.socket) = None;
                thread::park_timeout(BIND_PAUSE);
            }
        }
    }
}

fn bind(local: SocketAddr) -> std::io::Result<UdpSocket> {
    let socket = UdpSocket::bind(local)?;
    socket.set_read_timeout(Some(RECEIVE_SLICE))?;
    socket.set_write_timeout(Some(SEND_LIMIT))?;
    Ok(socket)
}

/// May this be a heartbeat's or tombstone's body?
pub(crate) fn check_body(body: &[u8]) -> Result<(), LinkError> {
    if body.len() > BODY_MAX {
        return Err(crate::proto::control::FrameError::TooLong { length: body.len(), limit: BODY_MAX }.into());
    }
    Ok(())
}

/// Now, for those who read path states.
pub(crate) fn now() -> Mono {
    boottime()
}
