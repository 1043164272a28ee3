//! The owner of the control connection: one task, so that `Up` and `Down` alternate by
//! construction, and the task that hands heartbeats on.

use super::connection::{Connection, Inbound};
use super::handle::{Inner, Session};
use super::heartbeat::{self, Shared, path::dead_after};
use super::types::SessionStatus;
use super::{DataConn, DownReason, Life, LinkEvent};
use crate::base::{Millis, Mono};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use tokio_rustls::TlsStream;

/// Paths are looked at this many times an interval: adds little to the time a move takes.
const LOOKS: u32 = 8;
/// And no more often than this.
const LOOK_MIN: Duration = Duration::from_millis(10);

/// What reaches the owner of the control connection from those who dial and listen.
pub(super) enum Arrival {
    /// A greeted control connection.
    Control(Established),
    /// An accepted data connection, delivered in order with `Up` and `Down`.
    Data(Vec<u8>, DataConn),
}

/// A greeted control connection on its way to its owner.
pub(super) struct Established {
    pub(super) stream: TlsStream<TcpStream>,
    pub(super) peer: Life,
    pub(super) path: usize,
    pub(super) version: u16,
    pub(super) from: SocketAddr,
    /// Enrolment under which the peer was recognised.
    pub(super) enrolment: u64,
    /// Dropped when the connection is gone.
    pub(super) gone: oneshot::Sender<()>,
}

struct Active {
    connection: Connection,
    session: u64,
    path: usize,
    since: Mono,
    _gone: oneshot::Sender<()>,
}

/// Owns the control connection until the link stops.
pub(super) async fn run(inner: Arc<Inner>, mut arrivals: mpsc::Receiver<Arrival>) {
    let mut enrolment = inner.enrolment.subscribe();
    let mut hang_up = inner.hang_up.subscribe();
    let mut active: Option<Active> = None;
    let mut sessions = 0;
    let mut watcher = Watcher::default();
    let mut next_look = Instant::now();
    loop {
        tokio::select! {
            // Stop and new facts about the peer before its messages: a flood must not delay them.
            biased;
            () = inner.stopped() => break,
            changed = enrolment.changed() => {
                if changed.is_err() { break; }
                watcher = Watcher::default();
                end(&inner, &mut active, DownReason::PeerChanged).await;
            }
            changed = hang_up.changed() => {
                if changed.is_err() { break; }
                let unwanted = *hang_up.borrow_and_update();
                if active.as_ref().is_some_and(|active| active.session == unwanted) {
                    end(&inner, &mut active, DownReason::Unwanted).await;
                }
            }
            Some(arrival) = arrivals.recv() => match arrival {
                Arrival::Control(new) if new.enrolment == *enrolment.borrow() => {
                    end(&inner, &mut active, DownReason::Replaced).await;
                    sessions += 1;
                    active = begin(&inner, new, sessions).await;
                }
                Arrival::Data(hello, conn) if active.as_ref().is_some_and(|a| a.session == conn.session) => {
                    inner.emit(LinkEvent::Data { session: conn.session, hello, conn }).await;
                }
                // Of a former peer or session: closed by being dropped.
                Arrival::Control(_) | Arrival::Data(..) => {}
            },
            () = sleep_until(next_look) => {
                let shared = inner.heartbeats.load_full();
                if let Some(shared) = shared {
                    let at = active.as_ref().map(|active| (active.path, active.since));
                    let found = watcher.look(&shared, heartbeat::now(), at);
                    for event in found.events {
                        inner.emit(event).await;
                    }
                    if found.move_away && let Some(path) = at.map(|(path, _)| path) {
                        end(&inner, &mut active, DownReason::PathLost { path }).await;
                    }
                }
                next_look = Instant::now() + (inner.timers.interval() / LOOKS).max(LOOK_MIN);
            }
            inbound = receive(&mut active) => match inbound {
                Inbound::Message(message) => { inner.emit(LinkEvent::Message(message)).await; }
                Inbound::Closed(reason) => end(&inner, &mut active, reason).await,
            },
        }
    }
    end(&inner, &mut active, DownReason::Shutdown).await;
}

async fn receive(active: &mut Option<Active>) -> Inbound {
    match active {
        Some(active) => active
            .connection
            .inbox
            .recv()
            .await
            .unwrap_or_else(|| Inbound::Closed(DownReason::Broken("its tasks ended".into()))),
        None => std::future::pending().await,
    }
}

async fn begin(inner: &Inner, new: Established, session: u64) -> Option<Active> {
    if let Some(shared) = inner.heartbeats.load().as_ref() {
        shared.adopt(new.peer);
    }
    let connection = Connection::start(new.stream, inner.timers.clone());
    let outbox = connection.outbox()?;
    tracing::info!(session, path = new.path, peer = %new.from, version = new.version, "link up");
    let status = SessionStatus {
        session,
        path: new.path,
        peer_incarnation: new.peer.incarnation,
        peer_boot: new.peer.boot,
        version: new.version,
    };
    let up = LinkEvent::Up {
        session,
        peer_boot: new.peer.boot,
        peer_incarnation: new.peer.incarnation,
        path: new.path,
        version: new.version,
    };
    // Usable when Up arrives. Nothing of it is delivered before: only this task delivers.
    inner.session.send_replace(Some(Session { status, outbox }));
    inner.emit(up).await;
    Some(Active { connection, session, path: new.path, since: heartbeat::now(), _gone: new.gone })
}

async fn end(inner: &Inner, active: &mut Option<Active>, reason: DownReason) {
    let Some(former) = active.take() else { return };
    inner.session.send_replace(None);
    let session = former.session;
    tracing::info!(session, path = former.path, %reason, "link down");
    // Closed before it is announced: whoever hears Down may rely on it.
    drop(former);
    inner.emit(LinkEvent::Down { session, reason }).await;
}

/// Follows the paths' states.
#[derive(Default)]
struct Watcher {
    alive: Vec<bool>,
    looked: Option<Mono>,
    /// After a stall of our own, silence proves nothing until this time.
    void_until: Mono,
}

#[derive(Default)]
struct Found {
    events: Vec<LinkEvent>,
    move_away: bool,
}

impl Watcher {
    /// `at`: path and begin of the control connection.
    fn look(&mut self, shared: &Shared, now: Mono, at: Option<(usize, Mono)>) -> Found {
        let interval = shared.interval();
        let stalled = self.looked.is_some_and(|before| now - before > interval)
            || shared.own_late() > Duration::from_millis(interval);
        self.looked = Some(now);
        if stalled {
            self.void_until = now + interval;
        }
        let mut found = Found::default();
        self.alive.resize(shared.paths.len(), false);
        let mut lively = None;
        for (path, known) in self.alive.iter_mut().enumerate() {
            let Some(state) = shared.path(path) else { continue };
            let alive = state.alive(interval, now);
            if state.lively(interval, now) && at.is_none_or(|(current, _)| current != path) {
                lively = Some(path);
            }
            if alive && !*known {
                *known = true;
                found.events.push(LinkEvent::PathUp { path });
            } else if !alive && *known && now >= self.void_until {
                *known = false;
                found.events.push(LinkEvent::PathDown { path });
            }
        }
        found.move_away = now >= self.void_until
            && lively.is_some()
            && at.is_some_and(|(path, since)| abandoned(shared, path, since, interval, now));
        found
    }
}

/// Did the heartbeats of the connection's path stop? A young connection may precede its path's
/// first heartbeat.
fn abandoned(shared: &Shared, path: usize, since: Mono, interval: Millis, now: Mono) -> bool {
    let Some(state) = shared.path(path) else { return false };
    !state.alive(interval, now) && now - since > dead_after(state.pace(interval))
}

/// Hands heartbeats, tombstones and stalls on; a slow receiver gets the newest of each path.
pub(super) async fn forward(inner: Arc<Inner>) {
    let mut enrolment = inner.enrolment.subscribe();
    loop {
        let shared = inner.heartbeats.load_full();
        let news = async {
            match &shared {
                Some(shared) => shared.news.notified().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = inner.stopped() => return,
            changed = enrolment.changed() => if changed.is_err() { return },
            () = news => if let Some(shared) = &shared { hand_on(&inner, shared).await },
        }
    }
}

async fn hand_on(inner: &Inner, shared: &Shared) {
    if let Some(late) = shared.take_stall() {
        inner.emit(LinkEvent::OwnStall { late }).await;
    }
    for path in 0..shared.paths.len() {
        let (newest, tombstone) = match shared.path(path) {
            Some(mut state) => (state.newest.take(), state.tombstone.take()),
            None => continue,
        };
        if let Some(newest) = newest {
            let event = LinkEvent::Heartbeat {
                path,
                body: newest.body,
                peer_boot: newest.life.boot,
                peer_incarnation: newest.life.incarnation,
                heard_me_ms_ago: newest.heard_me_ms_ago,
                rtt: newest.rtt,
                own_late: shared.own_late(),
            };
            inner.emit(event).await;
        }
        if let Some((peer_incarnation, body)) = tombstone {
            inner.emit(LinkEvent::Tombstone { path, peer_incarnation, body }).await;
        }
    }
}
