//! The task that owns one core.

use super::World;
use crate::base::Mono;
use crate::engine::{
    Cluster, Effect, Event, EventKind, HeartbeatBody, Input, OperatorCommand, OperatorResult, Ticket, View,
};
use std::collections::{HashMap, VecDeque};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// Inputs that may wait while an effect runs. Heartbeats come at some ten a second and path; a full
/// queue means the driver is stuck in an effect for minutes, and then late evidence is no evidence.
pub const INBOX: usize = 4096;

/// Longest sleep between two looks at the core, also when it names no deadline.
const IDLE: Duration = Duration::from_secs(1);

/// What the driver accepts.
#[derive(Debug)]
enum Message {
    Input(Input),
    Operator(OperatorCommand, oneshot::Sender<OperatorResult>),
    Shutdown(oneshot::Sender<OperatorResult>),
    Heard(oneshot::Sender<()>),
}

/// What the rest of the agent holds of a driver.
#[derive(Debug, Clone)]
pub struct Handle {
    inbox: mpsc::Sender<Message>,
    snapshot: watch::Receiver<Snapshot>,
}

/// The core's public state after its last step.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// For `status`.
    pub view: View,
    /// For the next heartbeats.
    pub heartbeat: HeartbeatBody,
    /// What the peer's core said last in a heartbeat, and when that arrived.
    pub peer: Option<(HeartbeatBody, Mono)>,
    /// When it was taken.
    pub at: Mono,
}

impl Handle {
    /// Gives the core an input. Dropped, with a warning, when the queue is full: every kind of input that
    /// gets here is repeated or followed by a deadline in the core.
    pub fn input(&self, input: Input) {
        if let Err(mpsc::error::TrySendError::Full(_)) = self.inbox.try_send(Message::Input(input)) {
            tracing::warn!("the driver's queue is full, an input was dropped");
        }
    }

    /// Runs an operator's command; the answer comes when it is done or refused.
    pub async fn operate(&self, command: OperatorCommand) -> Option<OperatorResult> {
        let (tx, rx) = oneshot::channel();
        self.inbox.send(Message::Operator(command, tx)).await.ok()?;
        rx.await.ok()
    }

    /// Orderly end of the agent: hands over if possible.
    pub async fn shutdown(&self) -> Option<OperatorResult> {
        let (tx, rx) = oneshot::channel();
        self.inbox.send(Message::Shutdown(tx)).await.ok()?;
        rx.await.ok()
    }

    /// Waits until every input given before has been judged and its effects are carried out. `None`: the
    /// driver has ended.
    pub async fn heard(&self) -> Option<()> {
        let (tx, rx) = oneshot::channel();
        self.inbox.send(Message::Heard(tx)).await.ok()?;
        rx.await.ok()
    }

    /// The newest snapshot.
    pub fn snapshot(&self) -> Snapshot {
        self.snapshot.borrow().clone()
    }

    /// To wait for changes.
    pub fn watch(&self) -> watch::Receiver<Snapshot> {
        self.snapshot.clone()
    }
}

/// Owns a core and its world.
pub struct Driver<W: World> {
    core: Cluster,
    world: W,
    now: fn() -> Mono,
    inbox: mpsc::Receiver<Message>,
    snapshot: watch::Sender<Snapshot>,
    peer: Option<(HeartbeatBody, Mono)>,
    tickets: HashMap<u64, oneshot::Sender<OperatorResult>>,
    next_ticket: u64,
}

impl<W: World> Driver<W> {
    /// A driver and the handle to it. `world` may hold a clone of the handle for its reports.
    pub fn new(core: Cluster, now: fn() -> Mono, world: impl FnOnce(Handle) -> W) -> (Self, Handle) {
        let (tx, inbox) = mpsc::channel(INBOX);
        let first =
            Snapshot { view: core.view(now()), heartbeat: core.heartbeat(now()), peer: None, at: now() };
        let (snapshot, rx) = watch::channel(first);
        let handle = Handle { inbox: tx, snapshot: rx };
        let world = world(handle.clone());
        let tickets = HashMap::new();
        (Self { core, world, now, inbox, snapshot, peer: None, tickets, next_ticket: 1 }, handle)
    }

    /// Runs until `stop` fires. The world is given back so that it can be taken down in order.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) -> W {
        loop {
            let sleep = self
                .core
                .next_deadline()
                .map_or(IDLE, |at| Duration::from_millis(at - (self.now)()).min(IDLE));
            tokio::select! {
                biased; // evidence (heartbeats, messages) before the passing of time, see engine::io
                () = stopped(&mut stop) => return self.world,
                message = self.inbox.recv() => match message {
                    Some(message) => self.accept(message).await,
                    None => return self.world,
                },
                () = tokio::time::sleep(sleep) => self.step(Input::Tick).await,
            }
        }
    }

    async fn accept(&mut self, message: Message) {
        match message {
            Message::Input(input) => {
                if let Input::Heartbeat(body) = &input {
                    self.peer = Some((*body, (self.now)()));
                }
                self.step(input).await;
            }
            Message::Operator(command, reply) => {
                let ticket = self.ticket(reply);
                self.step(Input::Operator { ticket, command }).await;
            }
            Message::Shutdown(reply) => {
                let ticket = self.ticket(reply);
                self.step(Input::Shutdown { ticket }).await;
            }
            Message::Heard(reply) => {
                let _ = reply.send(());
            }
        }
    }

    fn ticket(&mut self, reply: oneshot::Sender<OperatorResult>) -> Ticket {
        // Clients that gave up need no answer.
        self.tickets.retain(|_, reply| !reply.is_closed());
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.tickets.insert(ticket, reply);
        Ticket(ticket)
    }

    /// One input and everything that follows from it without further waiting.
    async fn step(&mut self, input: Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            tracing::trace!(?input, "core input");
            let effects = self.core.step((self.now)(), input);
            // Published before the effects run: status shows what is being carried out.
            self.publish();
            let mut effects = effects.into_iter();
            while let Some(effect) = effects.next() {
                if !self.execute(effect, &mut inputs).await {
                    self.abandon(effects);
                    break;
                }
            }
        }
    }

    /// The rest of a list whose persistence failed: nothing of it happens, but nobody is left waiting.
    fn abandon(&mut self, rest: impl Iterator<Item = Effect>) {
        for effect in rest {
            match effect {
                Effect::OperatorDone { ticket, .. } => {
                    if let Some(reply) = self.tickets.remove(&ticket.0) {
                        let hint = "the fencing record could not be written; see the state directory's disk";
                        let _ =
                            reply.send(OperatorResult::Refused { code: "SKC-E0401", hint: hint.to_owned() });
                    }
                }
                Effect::CloseLink(link) => self.world.close_link(link),
                _ => {}
            }
        }
    }

    fn publish(&self) {
        let now = (self.now)();
        let (view, heartbeat) = (self.core.view(now), self.core.heartbeat(now));
        let fresh = Snapshot { view, heartbeat, peer: self.peer, at: now };
        self.snapshot.send_replace(fresh);
    }

    /// Executes one effect; false = drop the rest of the list.
    async fn execute(&mut self, effect: Effect, inputs: &mut VecDeque<Input>) -> bool {
        tracing::debug!(?effect, "core effect");
        match effect {
            Effect::Persist(record) => {
                if let Err(error) = self.world.persist(record).await {
                    tracing::error!(%error, error_code = "SKC-E0401", "the fencing record cannot be written");
                    inputs.push_front(Input::PersistFailed);
                    return false;
                }
            }
            Effect::Send(message) => self.world.send(&message),
            Effect::CloseLink(link) => self.world.close_link(link),
            Effect::Gate(gate) => self.world.gate(gate).await,
            Effect::OpenStream { role, epoch, plan } => self.world.open_stream(role, epoch, plan),
            Effect::CloseStream { token } => {
                let facts = self.world.close_stream().await;
                inputs.push_back(Input::StreamClosed { token, facts });
            }
            Effect::MarkUpToDate { epoch } => self.world.mark_up_to_date(epoch),
            Effect::ReleaseMarker { epoch } => self.world.release_marker(epoch),
            Effect::Syncfs { token } => self.world.syncfs(token),
            Effect::Drain { token } => self.world.drain(token),
            Effect::StartProbe { token, window } => self.world.start_probe(token, window),
            Effect::AddVips => self.world.add_vips().await,
            Effect::DropVips => self.world.drop_vips().await,
            Effect::StartServices => self.world.start_services(),
            Effect::StopServices => self.world.stop_services(),
            Effect::AcceptTree => self.world.accept_tree(),
            Effect::InvalidateCaches => self.world.invalidate_caches().await,
            Effect::SetTombstone(tombstone) => {
                if let Err(error) = self.world.set_tombstone(tombstone).await {
                    tracing::error!(%error, error_code = "SKC-E7027", "the guard does not take the tombstone");
                    inputs.push_front(Input::PersistFailed);
                    return false;
                }
            }
            Effect::Event(event) => self.event(&event),
            Effect::OperatorDone { ticket, result } => {
                if let Some(reply) = self.tickets.remove(&ticket.0) {
                    let _ = reply.send(result);
                }
            }
        }
        true
    }

    fn event(&mut self, event: &Event) {
        match event.kind {
            EventKind::PersistFailed | EventKind::SplitBrain | EventKind::RestartLimit => {
                tracing::error!(code = event.kind.code(), kind = ?event.kind, epoch = %event.epoch, "cluster event");
            }
            _ => {
                tracing::info!(code = event.kind.code(), kind = ?event.kind, epoch = %event.epoch, "cluster event");
            }
        }
        self.world.event(event);
    }
}

/// Waits for the order to end (or for nobody being left to give it).
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}
