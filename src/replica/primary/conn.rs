//! Life of one connection: hello, replay, the ack reader, the end.

use super::core::{Conn, Outcome};
use super::{Inner, lock};
use crate::base::Epoch;
use crate::proto::frame::{self, FrameBuf, Kind};
use crate::proto::stream::{Plan, Reply, StreamHello, Welcome};
use crate::replica::event::{Event, StreamEnd};
use crate::replica::pump::{Inbox, Pump};
use crate::replica::wire::{DataConn, WireError, WireReader, WireWriter, join_within};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Why a stream could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The connection failed.
    #[error("opening the stream")]
    Wire(#[from] WireError),
    /// The target refuses.
    #[error("the target refuses the stream: {0}")]
    Refused(String),
    /// The target broke the protocol.
    #[error("bad welcome: {0}")]
    Protocol(String),
    /// Frames the target lacks are no longer kept.
    #[error("replay is impossible: the kept frames start at {from:?}, the target is at {applied:?}")]
    NoReplay {
        /// First kept frame.
        from: Option<u64>,
        /// What the target has.
        applied: Option<u64>,
    },
    /// A thread could not be started.
    #[error("starting a stream thread")]
    Thread(#[source] std::io::Error),
}

/// Threads of the current connection.
#[derive(Default)]
pub(super) struct Threads {
    reader: Option<JoinHandle<()>>,
    pump: Option<(JoinHandle<()>, Arc<Inbox>)>,
}

/// A random stream identity. Without randomness the clock: it only has to differ from the last one.
pub(super) fn random_id() -> u128 {
    let mut bytes = [0; 16];
    match getrandom::fill(&mut bytes) {
        Ok(()) => u128::from_ne_bytes(bytes),
        Err(_) => {
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |d| d.as_nanos())
        }
    }
}

struct ReadLoop {
    inner: Arc<Inner>,
    wire: WireReader,
    buf: FrameBuf,
    // Keeps the writer's threads until this thread ends, so that nobody joins them under a lock.
    _writer: Arc<WireWriter>,
    number: u64,
    epoch: Epoch,
    inbox: Option<Arc<Inbox>>,
    replay_end: Option<u64>,
}

impl Inner {
    pub(super) fn connect(
        self: &Arc<Self>,
        turn: u64,
        conn: DataConn,
        epoch: Epoch,
        plan: Plan,
    ) -> Result<(), ConnectError> {
        self.disconnect(Duration::from_secs(5));
        let (mut wire, writer) = conn.split(&format!("src-{}", self.cfg.cluster))?;
        let writer = Arc::new(writer);
        let hello = {
            let mut core = lock(&self.core);
            let from = match plan {
                Plan::Resync { .. } => {
                    core.begin_resync(random_id());
                    core.next
                }
                Plan::Replay => {
                    let lone = self.lone.load(Ordering::Acquire);
                    let from = core.replay_from().filter(|_| !lone);
                    from.ok_or(ConnectError::NoReplay { from: None, applied: None })?
                }
            };
            StreamHello {
                cluster: self.cfg.cluster.clone(),
                stream: core.stream,
                plan,
                from,
                volumes: self.trees.len() as u16,
            }
        };
        let mut bytes = Vec::new();
        frame::encode_into(&mut bytes, Kind::Hello, 0, epoch, &hello, &[]).map_err(WireError::from)?;
        writer.send(&bytes)?;
        let mut buf = FrameBuf::new();
        let applied = self.welcome(&mut wire, &mut buf, epoch)?;

        let replay = matches!(plan, Plan::Replay);
        let mut out = Outcome::default();
        let (number, replay_end) = {
            let mut core = lock(&self.core);
            // The peer's number may be any.
            let fits = applied.checked_add(1).is_some_and(|after| match plan {
                Plan::Replay => after >= hello.from && applied < core.next,
                Plan::Resync { .. } => after == hello.from && core.next == hello.from,
            });
            if !fits {
                return Err(ConnectError::NoReplay { from: Some(hello.from), applied: Some(applied) });
            }
            if self.turn.load(Ordering::Acquire) != turn {
                return Err(ConnectError::Refused("closed meanwhile".into()));
            }
            core.conns += 1;
            let number = core.conns;
            core.conn = Some(Conn { writer: Arc::clone(&writer), epoch, eligible: replay, number });
            core.progress = Instant::now();
            self.streaming.store(true, Ordering::Release);
            if replay && let Err(error) = core.replay(applied, &mut out) {
                self.broken(&mut core, &error, &mut out);
            }
            (number, replay.then(|| core.next - 1))
        };
        out.send(&self.events);
        wire.set_timeout(None)?;
        let spawned = self.spawn(ReadLoop {
            inner: Arc::clone(self),
            wire,
            buf,
            _writer: writer,
            number,
            epoch,
            inbox: (!replay).then(Arc::default),
            replay_end,
        });
        if spawned.is_err() {
            self.drop_conn(number);
        }
        spawned
    }

    fn spawn(self: &Arc<Self>, mut reading: ReadLoop) -> Result<(), ConnectError> {
        let mut threads = lock(&self.threads);
        let (epoch, inbox, number) = (reading.epoch, reading.inbox.clone(), reading.number);
        let name = |what: &str| std::thread::Builder::new().name(format!("{what}-{}", self.cfg.cluster));
        let reader = name("ack").spawn(move || reading.run()).map_err(ConnectError::Thread)?;
        threads.reader = Some(reader);
        if let Some(inbox) = inbox {
            let pump = Pump::new(Arc::clone(self), Arc::clone(&inbox), epoch, number);
            let thread = name("resync").spawn(move || pump.run()).map_err(ConnectError::Thread)?;
            threads.pump = Some((thread, inbox));
        }
        Ok(())
    }

    fn welcome(&self, wire: &mut WireReader, buf: &mut FrameBuf, epoch: Epoch) -> Result<u64, ConnectError> {
        let end = Instant::now() + self.cfg.hello_timeout;
        loop {
            if let Some(frame) = buf.next_frame().map_err(WireError::from)? {
                if frame.prefix.kind != Kind::Welcome || frame.prefix.epoch != epoch {
                    let (kind, got) = (frame.prefix.kind, frame.prefix.epoch);
                    return Err(ConnectError::Protocol(format!("{kind:?} of epoch {got}")));
                }
                return match frame.message::<Welcome>().map_err(WireError::from)? {
                    Welcome::Accepted { applied } => Ok(applied),
                    Welcome::Refused { reason } => Err(ConnectError::Refused(reason)),
                };
            }
            let left = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            wire.set_timeout(Some(left))?;
            wire.fill(buf)?;
        }
    }

    /// Takes connection `number` out of use; false if it is not the current one.
    pub(crate) fn drop_conn(&self, number: u64) -> bool {
        let mut core = lock(&self.core);
        let Some(conn) = core.conn.as_ref().filter(|c| c.number == number) else { return false };
        let writer = Arc::clone(&conn.writer);
        core.disconnect();
        self.streaming.store(false, Ordering::Release);
        drop(core);
        writer.close();
        self.parked_wake.notify_all();
        true
    }

    pub(super) fn disconnect(&self, within: Duration) -> bool {
        let end = Instant::now() + within;
        let current = lock(&self.core).conn.as_ref().map(|c| c.number);
        if let Some(number) = current {
            self.drop_conn(number);
        }
        let threads = std::mem::take(&mut *lock(&self.threads));
        let mut all = true;
        if let Some((thread, inbox)) = threads.pump {
            inbox.close();
            all &= join_within(thread, end.saturating_duration_since(Instant::now()));
        }
        if let Some(thread) = threads.reader {
            all &= join_within(thread, end.saturating_duration_since(Instant::now()));
        }
        all
    }
}

impl ReadLoop {
    fn run(&mut self) {
        // Nothing to replay: no acknowledgement will come to say so.
        if self.replay_end.take_if(|end| lock(&self.inner.core).acked >= *end).is_some() {
            (self.inner.events)(Event::ReplayDone { epoch: self.epoch });
        }
        let why = loop {
            match self.messages() {
                Ok(()) => {}
                Err(why) => break why,
            }
            match self.wire.fill(&mut self.buf) {
                Ok(_) => {}
                Err(WireError::Frame(e)) => break StreamEnd::Protocol(e.to_string()),
                Err(e) => break StreamEnd::Closed(describe(&e)),
            }
        };
        if let Some(inbox) = &self.inbox {
            inbox.close();
        }
        if self.inner.drop_conn(self.number) {
            tracing::info!(epoch = %self.epoch, why = ?why, "stream ended");
            (self.inner.events)(Event::StreamDown { epoch: self.epoch, why });
        }
        self.wire.close();
    }

    /// Handles every whole frame in the buffer; acknowledgements are folded into one.
    fn messages(&mut self) -> Result<(), StreamEnd> {
        let mut acked = None;
        loop {
            let reply = match self.buf.next_frame() {
                Ok(None) => break,
                Ok(Some(frame)) if frame.prefix.kind != Kind::Reply || frame.prefix.epoch != self.epoch => {
                    return Err(StreamEnd::Protocol(format!(
                        "{:?} of epoch {} in a stream of {}",
                        frame.prefix.kind, frame.prefix.epoch, self.epoch
                    )));
                }
                Ok(Some(frame)) => {
                    frame.message::<Reply>().map_err(|e| StreamEnd::Protocol(e.to_string()))?
                }
                Err(e) => return Err(StreamEnd::Protocol(e.to_string())),
            };
            match reply {
                Reply::Ack { applied } => acked = Some(applied),
                other => {
                    if let Some(applied) = acked.take() {
                        self.ack(applied)?;
                    }
                    self.alive();
                    self.reply(other)?;
                }
            }
        }
        acked.map_or(Ok(()), |applied| self.ack(applied))
    }

    fn ack(&mut self, applied: u64) -> Result<(), StreamEnd> {
        let mut out = Outcome::default();
        {
            let mut core = lock(&self.inner.core);
            if core.conn.as_ref().is_none_or(|c| c.number != self.number) {
                return Ok(());
            }
            core.on_ack(applied, &mut out).map_err(StreamEnd::Protocol)?;
        }
        out.send(&self.inner.events);
        self.inner.acked.notify_all();
        if self.inner.parked_len.load(Ordering::Acquire) > 0 && self.inner.has_room() {
            self.inner.parked_wake.notify_all();
        }
        if let Some(inbox) = &self.inbox {
            inbox.acked(applied);
        }
        if self.replay_end.is_some_and(|end| applied >= end) {
            self.replay_end = None;
            (self.inner.events)(Event::ReplayDone { epoch: self.epoch });
        }
        Ok(())
    }

    /// One step of a resync may take a target long: whatever it says meanwhile shows that it does not
    /// hang. A complete standby has no such steps and must acknowledge.
    fn alive(&self) {
        if self.inbox.is_some() {
            let mut core = lock(&self.inner.core);
            if core.conn.as_ref().is_some_and(|c| c.number == self.number) {
                core.progress = Instant::now();
            }
        }
    }

    fn reply(&mut self, reply: Reply) -> Result<(), StreamEnd> {
        let epoch = self.epoch;
        match reply {
            Reply::Ack { applied } => self.ack(applied)?,
            Reply::SyncAck { seq, errno: 0 } => {
                let mut out = Outcome::default();
                lock(&self.inner.core).sync_remote(seq, &mut out);
                out.send(&self.inner.events);
                self.inner.acked.notify_all();
                if let Some(inbox) = &self.inbox {
                    inbox.synced(seq);
                }
            }
            Reply::SyncAck { errno, .. } => {
                (self.inner.events)(Event::PeerFailed { epoch, errno, what: "fsync".into() });
            }
            Reply::Failed { seq, errno, what } => {
                tracing::warn!(%epoch, seq, errno, what, "the standby cannot apply");
                (self.inner.events)(Event::PeerFailed { epoch, errno, what });
            }
            Reply::UpToDate { seq } => {
                let mut core = lock(&self.inner.core);
                if core.marker.take_if(|m| *m == seq).is_some() {
                    drop(core);
                    if let Some(inbox) = &self.inbox {
                        inbox.finish();
                    }
                    (self.inner.events)(Event::UpToDateAcked { epoch });
                }
            }
            Reply::Redo { seq, volume, ids, lost } => {
                let inbox = self.inbox.as_ref().ok_or_else(|| unexpected("Redo"))?;
                inbox.redo(seq, volume, ids, lost).map_err(StreamEnd::Protocol)?;
            }
            Reply::Want { volume, id, ranges } => {
                let inbox = self.inbox.as_ref().ok_or_else(|| unexpected("Want"))?;
                inbox.want(volume, id, ranges).map_err(StreamEnd::Protocol)?;
            }
            Reply::Progress { kept_bytes, kept_objects, truncated } => {
                if let Some(inbox) = &self.inbox {
                    inbox.kept(kept_bytes, kept_objects, truncated);
                }
            }
        }
        Ok(())
    }
}

fn unexpected(what: &str) -> StreamEnd {
    StreamEnd::Protocol(format!("{what} outside a resync"))
}

/// An error with its causes in one line.
pub(crate) fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        text += ": ";
        text += &e.to_string();
        cause = e.source();
    }
    text
}
