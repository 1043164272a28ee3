//! The data path of one cluster: gate, sending side, applying side; the replica layer as effects see it.
//!
//! Both sides are made when the directories are known (`attach`); a gate set before is remembered.
//! Everything that blocks runs on blocking threads. Replication events become inputs of the core.

use super::Shared;
use super::disk::Health;
use super::resync::Run;
use crate::api::types::ResyncStatus;
use crate::base::{ClusterId, Epoch, Generation, OpSeq, Rate, codes};
use crate::bus::Fact;
use crate::engine::{self, Gate, Input, Plan, StreamFacts, StreamLoss};
use crate::failover::Handle;
use crate::failover::config::names;
use crate::link::DataConn;
use crate::ports::{self, Replicator};
use crate::proto::stream;
use crate::replica::primary::{EarlyWindow, Lag, SyncError, Synced};
use crate::replica::{self, Event, EventSink, Primary, Standby, StreamEnd, primary, standby};
use crate::spec::{self, ClusterSpec, Consistency};
use crate::tree::Tree;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::Notify;

/// An admitted operation ends within this, or the disk hangs and the gate change is retried.
const GATE_DEADLINE: Duration = Duration::from_secs(5);
/// Threads of a stream end within this.
const CLOSE_DEADLINE: Duration = Duration::from_secs(5);
/// Longest drain of a hand-over; the core's own deadline is shorter.
const DRAIN_DEADLINE: Duration = Duration::from_secs(30);

/// A disk that has not answered for this long hangs as far as the end of a stream is concerned: whoever
/// closes it goes on without what runs.
const HANGS: Duration = Duration::from_secs(3);
/// Between two attempts to get back what was taken by force from an operation that hangs.
const GET_BACK: Duration = Duration::from_millis(200);

/// How long a standby waits for what its source said before it closed the stream. A standby's
/// stream loss alone decides nothing (heartbeats do), so the delay costs no failover time.
const LAST_WORDS: Duration = Duration::from_millis(150);

/// What is known of the two sides.
#[derive(Default)]
struct State {
    gate: Option<Gate>,
    /// The target's session that is being waited for, with what arrived early.
    expected: Option<(Epoch, Plan)>,
    early: Option<(Epoch, DataConn)>,
    /// The stream of this session is open or being opened, as source or target.
    session: Option<Epoch>,
    /// This node was the standby up to here (known applied position).
    applied: Option<u64>,
    /// This node has been the writer since.
    writer: bool,
    resync: Run,
    /// Why a stream had to be ended last, until a resync succeeds.
    failure: Option<String>,
}

/// Both sides; absent until the directories are known.
struct Sides {
    primary: Arc<Primary>,
    standby: Arc<Standby>,
    trees: Vec<Arc<Tree>>,
}

/// The data path of one cluster.
pub struct Streams {
    id: ClusterId,
    /// The spec in force, as far as it concerns a stream that runs.
    settings: Mutex<Settings>,
    shared: Arc<Shared>,
    core: OnceLock<Handle>,
    sides: OnceLock<Sides>,
    state: Mutex<State>,
    runtime: OnceLock<tokio::runtime::Handle>,
    /// The other node's name.
    peer: String,
    /// Something new is in quarantine.
    pub resurvey: Notify,
    /// How the disk is.
    pub health: Arc<Health>,
    /// Held while the gate is being changed.
    gate_turn: Mutex<()>,
    me: Weak<Self>,
}

/// What of a spec can change while a stream runs.
struct Settings {
    /// Resync bytes a second.
    bandwidth: Option<u64>,
    /// By volume.
    consistency: Vec<Consistency>,
    window: EarlyWindow,
}

impl Settings {
    fn of(spec: &ClusterSpec) -> Self {
        let spec::Replication { resync_bandwidth, window, .. } = &spec.spec.replication;
        Self {
            bandwidth: match resync_bandwidth {
                Rate::Adaptive => None,
                Rate::PerSecond(size) => Some(size.as_bytes()),
            },
            // A change of the directories' order needs a stop, so the places are those of the trees.
            consistency: spec.spec.directories.iter().map(|d| spec.consistency(d)).collect(),
            window: EarlyWindow {
                bytes: usize::try_from(window.bytes.as_bytes()).unwrap_or(usize::MAX),
                age: window.age.as_std(),
            },
        }
    }
}

/// Figures for status.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    /// Resync of the standby.
    pub resync: ResyncStatus,
    /// Requests put aside: while frozen, or while the window is full.
    pub parked: u64,
    /// What is sent and not acknowledged.
    pub lag: Lag,
    /// Why a stream had to be ended last, until a resync succeeds.
    pub failure: Option<String>,
}

impl Streams {
    /// At rest.
    pub fn new(id: ClusterId, spec: &ClusterSpec, shared: Arc<Shared>) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            id,
            settings: Mutex::new(Settings::of(spec)),
            peer: names(spec).into_iter().find(|name| *name != shared.name).unwrap_or_default(),
            resurvey: Notify::new(),
            shared,
            core: OnceLock::new(),
            sides: OnceLock::new(),
            state: Mutex::default(),
            runtime: OnceLock::new(),
            health: Health::new(spec.spec.replication.disk_timeout),
            gate_turn: Mutex::default(),
            me: me.clone(),
        })
    }

    /// Where inputs go.
    pub fn bind(&self, core: Handle) {
        let _ = self.core.set(core);
        let _ = self.runtime.set(tokio::runtime::Handle::current());
    }

    fn input(&self, input: Input) {
        if let Some(core) = self.core.get() {
            core.input(input);
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The directories are known. Blocking.
    pub fn attach(&self, trees: Vec<Arc<Tree>>) -> Result<(), String> {
        if let Some(sides) = self.sides.get() {
            // Ids of one inode table mean nothing in another.
            let same = sides.trees.len() == trees.len()
                && sides.trees.iter().zip(&trees).all(|(a, b)| Arc::ptr_eq(a, b));
            return if same { Ok(()) } else { Err("the directories were opened anew".to_owned()) };
        }
        let sink = self.sink();
        let config = primary::Config::new(self.id.clone());
        let primary = Primary::new(config, trees.clone(), sink.clone()).map_err(|e| e.to_string())?;
        let standby = Standby::new(standby::Config::new(self.id.clone()), trees.clone(), sink)
            .map_err(|e| e.to_string())?;
        self.health.start(&self.id.0, trees.clone(), self.me.clone()).map_err(|e| e.to_string())?;
        let sides = Sides { primary: Arc::new(primary), standby: Arc::new(standby), trees };
        if self.sides.set(sides).is_ok() {
            self.settle();
            let gate = self.state().gate;
            if let Some(gate) = gate {
                self.apply_gate(gate);
            }
        }
        Ok(())
    }

    /// A new spec: what can change while a stream runs.
    pub fn configure(&self, spec: &ClusterSpec) {
        *self.settings.lock().unwrap_or_else(PoisonError::into_inner) = Settings::of(spec);
        self.settle();
        self.health.set_limit(spec.spec.replication.disk_timeout);
    }

    fn settle(&self) {
        if let Some(sides) = self.sides.get() {
            // Held until it is in force: of two specs the last one counts.
            let settings = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
            sides.primary.set_bandwidth(settings.bandwidth);
            sides.primary.set_consistency(settings.consistency.clone(), settings.window);
        }
    }

    /// What the mounts ask; present after `attach`.
    pub fn replicator(&self) -> Option<Arc<dyn Replicator>> {
        self.sides.get().map(|sides| sides.primary.clone() as Arc<dyn Replicator>)
    }

    /// Sets the gate; complete when nothing relies on the former one. False: an operation hangs in the disk
    /// and was given up; it will answer EIO, whatever comes of it.
    pub async fn set_gate(&self, gate: Gate) -> bool {
        self.state().gate = Some(gate);
        let Some(me) = self.me.upgrade() else { return true };
        tokio::task::spawn_blocking(move || me.apply_gate(gate)).await.unwrap_or(true)
    }

    fn apply_gate(&self, gate: Gate) -> bool {
        let Some(sides) = self.sides.get() else { return true };
        let _turn = self.gate_turn.lock().unwrap_or_else(PoisonError::into_inner);
        let writes = matches!(gate, Gate::Replicated { .. } | Gate::Alone { .. });
        if writes {
            // What the apply thread hangs in would change the tree under the writer.
            while !sides.standby.close(CLOSE_DEADLINE) {
                self.hangs("an operation of the standby's time hangs on the disk: not writable yet");
            }
            self.become_writer(&mut self.state());
        }
        let port = gate_of(gate);
        let patience = if self.health.silence() >= HANGS { GET_BACK } else { GATE_DEADLINE };
        let mut waited = Duration::ZERO;
        while let Err(error) = sides.primary.set_gate(port, GET_BACK) {
            waited += GET_BACK;
            if !writes && (waited >= patience || sides.primary.is_forced()) {
                self.hangs("an operation hangs on the disk: it is given up, and is answered with an error");
                sides.primary.force_gate(port);
                self.get_back(gate);
                return false;
            }
            if waited >= GATE_DEADLINE {
                waited = Duration::ZERO;
                tracing::error!(cluster = %self.id, %error, ?gate, error_code = "SKC-E4005", "gate not set yet");
            }
        }
        true
    }

    fn hangs(&self, what: &str) {
        let silent = self.health.silence();
        tracing::error!(cluster = %self.id, silent_ms = silent.as_millis() as u64, error_code = "SKC-E4005", "{what}");
    }

    /// Sets the gate properly once the operation that hangs has ended, unless it was changed again.
    fn get_back(&self, gate: Gate) {
        let me = self.me.clone();
        let spawned = std::thread::Builder::new().name(format!("gate-{}", self.id)).spawn(move || {
            while let Some(me) = me.upgrade() {
                {
                    let _turn = me.gate_turn.lock().unwrap_or_else(PoisonError::into_inner);
                    let Some(sides) = me.sides.get().filter(|_| me.state().gate == Some(gate)) else {
                        return;
                    };
                    if !sides.primary.is_forced() || sides.primary.set_gate(gate_of(gate), GET_BACK).is_ok() {
                        return;
                    }
                }
                std::thread::park_timeout(GET_BACK);
            }
        });
        if let Err(error) = spawned {
            // The next change of the gate tries again.
            tracing::error!(cluster = %self.id, %error, "no thread to wait for an operation that hangs");
        }
    }

    /// Source: a session begins; its connection is being dialled.
    pub fn begin(&self, epoch: Epoch) {
        let mut state = self.state();
        state.session = Some(epoch);
        state.resync.end();
        self.become_writer(&mut state);
    }

    /// A standby that takes over goes on numbering where it stands, so that a former primary that is
    /// whole can be replayed.
    fn become_writer(&self, state: &mut State) {
        if !std::mem::replace(&mut state.writer, true)
            && let Some(applied) = state.applied.take()
            && let Some(sides) = self.sides.get()
        {
            sides.primary.adopt_position(applied);
        }
    }

    /// Source: the connection is there.
    pub fn connect(&self, epoch: Epoch, plan: Plan, conn: DataConn) {
        let Some(me) = self.me.upgrade() else { return };
        tokio::task::spawn_blocking(move || {
            let plan = stream_plan(plan);
            // Read before the check: a close in between makes it stale and the stream is not opened.
            let turn = me.sides.get().map_or(0, |sides| sides.primary.turn());
            if me.state().session != Some(epoch) {
                return; // closed meanwhile
            }
            if plan != stream::Plan::Replay {
                me.state().resync.begin(true);
            }
            let opened = match me.sides.get() {
                Some(sides) => {
                    sides.primary.connect_in(turn, wire(conn), epoch, plan).map_err(|e| describe(&e))
                }
                None => Err("the directories are not open".to_owned()),
            };
            match opened {
                Ok(()) => me.input(Input::StreamUp { s: epoch.s }),
                Err(error) => {
                    tracing::warn!(cluster = %me.id, error, "stream not opened");
                    me.input(Input::StreamDown { s: epoch.s, why: StreamLoss::Closed });
                }
            }
        });
    }

    /// Target: the source of this session will connect.
    pub fn expect(&self, epoch: Epoch, plan: Plan) {
        let early = {
            let mut state = self.state();
            state.session = Some(epoch);
            if state.writer {
                // The writer became a standby: where its stream stood counts on, if that is known.
                state.writer = false;
                if let Some(sides) = self.sides.get() {
                    sides.standby.adopt_position(sides.primary.position());
                }
            }
            state.expected = Some((epoch, plan));
            state.early.take().filter(|(e, _)| *e == epoch)
        };
        if let Some((epoch, conn)) = early {
            self.accept(epoch, conn);
        }
    }

    /// A data connection of the source arrived.
    pub fn accept(&self, epoch: Epoch, conn: DataConn) {
        let plan = {
            let mut state = self.state();
            match state.expected {
                Some((expected, plan)) if expected == epoch => {
                    state.expected = None;
                    plan
                }
                _ => {
                    // The source may be quicker than our own verdict: keep the newest one.
                    state.early = Some((epoch, conn));
                    return;
                }
            }
        };
        let Some(me) = self.me.upgrade() else { return };
        tokio::task::spawn_blocking(move || {
            let turn = me.sides.get().map_or(0, |sides| sides.standby.turn());
            if me.state().session != Some(epoch) {
                return; // closed meanwhile
            }
            let plan = stream_plan(plan);
            if plan != stream::Plan::Replay {
                me.state().resync.begin(false);
            }
            let opened = match me.sides.get() {
                Some(sides) => {
                    sides.standby.accept_in(turn, wire(conn), epoch, plan).map_err(|e| describe(&e))
                }
                None => Err("the directories are not open".to_owned()),
            };
            match opened {
                Ok(()) => me.input(Input::StreamUp { s: epoch.s }),
                Err(error) => {
                    tracing::warn!(cluster = %me.id, error, "stream not accepted");
                    me.input(Input::StreamDown { s: epoch.s, why: StreamLoss::Closed });
                }
            }
        });
    }

    /// Ends whatever stream there is; afterwards no frame of it is applied or acknowledged.
    pub async fn close(&self) -> StreamFacts {
        {
            let mut state = self.state();
            state.session = None;
            state.expected = None;
            state.early = None;
            state.resync.end();
        }
        let Some(me) = self.me.upgrade() else { return StreamFacts::default() };
        tokio::task::spawn_blocking(move || me.close_now()).await.unwrap_or_default()
    }

    fn close_now(&self) -> StreamFacts {
        let Some(sides) = self.sides.get() else { return StreamFacts::default() };
        if !sides.primary.disconnect(CLOSE_DEADLINE) {
            tracing::error!(cluster = %self.id, "a sending thread did not end in time; it can send no more");
        }
        let mut waited = Duration::ZERO;
        while !sides.standby.close(GET_BACK) {
            waited += GET_BACK;
            if waited >= CLOSE_DEADLINE || self.health.silence() >= HANGS {
                // It is the last one of its stream, and no other begins before it has ended.
                self.hangs("an operation hangs on the disk: the stream ends without it");
                sides.standby.give_up();
                self.state().applied = None;
                return StreamFacts::default();
            }
        }
        let mut state = self.state();
        if state.writer {
            let replay_from = sides.primary.replay_from().map(OpSeq);
            return StreamFacts { replay_from, applied: sides.primary.position().map(OpSeq) };
        }
        let applied = sides.standby.applied();
        state.applied = applied;
        StreamFacts { replay_from: applied.map(|a| OpSeq(a + 1)), applied: applied.map(OpSeq) }
    }

    /// Source: the marker behind which the standby is UpToDate.
    pub fn mark_up_to_date(&self, epoch: Epoch) {
        if let Some(sides) = self.sides.get()
            && let Err(error) = sides.primary.mark_up_to_date(epoch, epoch.g, Generation::default())
        {
            tracing::warn!(cluster = %self.id, %error, "marker not sent");
        }
    }

    /// Target: go on behind the marker.
    pub fn release_marker(&self, epoch: Epoch) {
        if let Some(sides) = self.sides.get() {
            sides.standby.release_marker(epoch);
        }
    }

    /// Waits until everything submitted is acknowledged. Blocking.
    pub fn drain(&self) -> bool {
        self.sides.get().is_none_or(|sides| sides.primary.drain(DRAIN_DEADLINE))
    }

    /// Everything answered so far durable, on both nodes if there is a standby. Blocking.
    pub fn sync_all(&self, within: Duration) -> Result<Synced, SyncError> {
        let sides = self.sides.get().ok_or(SyncError::Failed(ports::Errno(libc::ENODEV)))?;
        sides.primary.sync_all(within)
    }

    /// Figures for status.
    pub fn figures(&self) -> Figures {
        let state = self.state();
        let sides = self.sides.get();
        Figures {
            resync: state.resync.status(sides.map_or(0, |s| s.standby.filled())),
            parked: sides.map_or(0, |s| s.primary.parked() as u64),
            lag: sides.map(|s| s.primary.lag()).unwrap_or_default(),
            failure: state.failure.clone(),
        }
    }

    /// An error that ends the stream: on the bus, and in status until a resync succeeds.
    fn failed(&self, code: &str, object: &str, message: String) {
        self.state().failure = Some(message.clone());
        let fact = Fact::Error { code: code.to_owned(), object: object.to_owned(), message };
        self.shared.bus.publish(Some(&self.id.0), fact);
    }

    /// What the target of a resync keeps of its own.
    fn kept(&self, on: String, bytes: u64, objects: u64, truncated: Option<String>) {
        let fact = match truncated {
            Some(reason) => {
                let code = codes::EVENT_0102.id;
                tracing::warn!(
                    cluster = %self.id, on, objects, bytes, reason, error_code = code,
                    "quarantine is incomplete: what the resync replaced after that is lost"
                );
                Fact::QuarantineIncomplete { code: code.to_owned(), on, objects, bytes, reason }
            }
            None if objects == 0 && bytes == 0 => return,
            None => Fact::QuarantineKept { code: codes::EVENT_0101.id.to_owned(), on, objects, bytes },
        };
        self.shared.bus.publish(Some(&self.id.0), fact);
    }

    /// A standby whose source closed the stream waits a moment: what the source said before on the
    /// control connection (a hand-over's token) must be heard first, and the two connections have no
    /// common order.
    fn stream_down(&self, epoch: Epoch, why: StreamLoss) {
        let input = Input::StreamDown { s: epoch.s, why };
        let (writer, me) = (self.state().writer, self.me.upgrade());
        match (self.runtime.get(), me) {
            (Some(runtime), Some(me)) if !writer && why == StreamLoss::Closed => {
                runtime.spawn(async move {
                    tokio::time::sleep(LAST_WORDS).await;
                    me.input(input);
                });
            }
            _ => self.input(input),
        }
    }

    fn sink(&self) -> EventSink {
        let me = self.me.clone();
        // Called from replication threads, sometimes under their locks: only queues.
        Arc::new(move |event| {
            if let Some(me) = me.upgrade() {
                me.event(event);
            }
        })
    }

    fn event(&self, event: Event) {
        let cluster = Some(self.id.0.as_str());
        let bus = &self.shared.bus;
        match event {
            Event::StreamDown { epoch, why } => {
                let loss = match why {
                    StreamEnd::Protocol(_) => StreamLoss::Protocol,
                    StreamEnd::Closed(_) | StreamEnd::Stalled | StreamEnd::Unnamed(_) => StreamLoss::Closed,
                };
                self.stream_down(epoch, loss);
            }
            Event::PeerFailed { epoch, errno, what } => {
                let why = std::io::Error::from_raw_os_error(errno);
                self.failed(
                    "SKC-E4001",
                    "standby",
                    format!("the standby cannot apply {what}: {why}; it is ejected"),
                );
                self.input(Input::StreamDown { s: epoch.s, why: StreamLoss::Closed });
            }
            Event::ReplayDone { .. } | Event::UpToDateAcked { .. } => {
                let mut state = self.state();
                state.resync.end();
                state.failure = None;
            }
            Event::ResyncProgress { progress, .. } => {
                self.state().resync.note(progress);
                bus.publish(
                    cluster,
                    Fact::ResyncProgress {
                        done_bytes: progress.bytes_compared,
                        total_bytes: progress.bytes_total,
                        bytes_per_second: progress.rate,
                    },
                );
            }
            Event::ResyncDone { epoch, progress } => {
                // The target says it on its own node; an operator may be looking at this one.
                let truncated = progress.kept_truncated.then(String::new);
                self.kept(self.peer.clone(), progress.kept_bytes, progress.kept_objects, truncated);
                self.state().resync.note(progress);
                bus.publish(
                    cluster,
                    Fact::ResyncFinished { sent_bytes: progress.bytes_sent, elapsed_ms: progress.elapsed_ms },
                );
                self.input(Input::ResyncDone { s: epoch.s });
            }
            Event::MarkerReached { epoch, g, cur } => {
                tracing::debug!(g, ?cur, "marker reached");
                {
                    let mut state = self.state();
                    state.resync.end();
                    state.failure = None;
                }
                self.input(Input::MarkerReached { s: epoch.s });
            }
            Event::ApplyFailed { epoch, errno, what } => {
                let why = std::io::Error::from_raw_os_error(errno);
                self.failed("SKC-E4001", "standby", format!("this node cannot apply {what}: {why}"));
                self.input(Input::StreamDown { s: epoch.s, why: StreamLoss::Apply { errno } });
            }
            Event::SyncFailed { epoch, errno } => {
                let why = std::io::Error::from_raw_os_error(errno);
                self.failed("SKC-E3008", "standby", format!("fsync failed: {why}"));
                if errno == libc::EIO {
                    self.health.failed_sync(errno);
                }
                self.input(Input::StreamDown { s: epoch.s, why: StreamLoss::Sync });
            }
            Event::Kept { bytes, objects, truncated, .. } => {
                let on = self.shared.name.clone();
                self.kept(on, bytes, objects, truncated);
                self.resurvey.notify_one();
            }
            Event::LocalDiskError { errno } => {
                let why = std::io::Error::from_raw_os_error(errno);
                self.failed("SKC-E3008", "primary", format!("fsync failed: {why}"));
                if errno == libc::EIO {
                    self.health.failed_sync(errno);
                    self.input(Input::LocalTree(engine::TreeState::DiskError));
                }
            }
            Event::LocalFailed { errno } => self.health.failed(errno),
        }
    }
}

fn gate_of(gate: Gate) -> ports::Gate {
    match gate {
        Gate::ReadOnly => ports::Gate::ReadOnly,
        Gate::Replicated { epoch } => ports::Gate::Replicated(epoch),
        Gate::Alone { epoch } => ports::Gate::Alone(epoch),
        Gate::Frozen => ports::Gate::Frozen,
        Gate::Shut => ports::Gate::Shut,
    }
}

fn stream_plan(plan: Plan) -> stream::Plan {
    match plan {
        // After a drain nothing is missing: the replay of nothing, under fresh names.
        Plan::Replay { .. } | Plan::Continue => stream::Plan::Replay,
        Plan::FullCompare { quarantine } => stream::Plan::Resync { quarantine },
        Plan::Ranges | Plan::SeedEmpty => stream::Plan::Resync { quarantine: false },
    }
}

fn wire(conn: DataConn) -> replica::DataConn {
    replica::DataConn::tls(conn.tcp, conn.tls, conn.early)
}

/// An error with its causes in one line.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
