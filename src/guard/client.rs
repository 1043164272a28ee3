//! The worker's side: a handle to the guard, shared by all of the worker.
//!
//! One thread (`guard-link`) reads the socket and hands replies to whoever waits. Every call has a deadline; a guard
//! that does not answer in time is an error for that call only. If the guard is gone the kernel kills the worker
//! anyway, so no call tries to go on without it.
//!
//! Blocking calls may be used on plain threads; from async code use the `*_async` ones, which move the call to the
//! blocking pool (cancel safety: the request may still take effect).

use super::message::{
    CommandResult, Datagram, FdKind, MountRef, Notice, Reply, Request, ToGuard, ToWorker, VERSION, VipRef,
    Welcome, decode, encode,
};
use crate::base::Millis;
use crate::service::{ServiceId, ServicePlan, ServiceStatus};
use crate::sys::fdpass;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;

/// The guard answers from memory; a second means that its machine is starved, five that it is gone.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// On top of the time that a command or service may take by its own plan.
const SLACK: Duration = Duration::from_secs(10);
/// Notices that wait to be read. Beyond it they are replaced by one [`GuardEvent::Missed`].
const EVENTS_MAX: usize = 256;

/// Errors of calls to the guard.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// The guard is gone; the kernel is about to end this process as well.
    #[error("the guard is gone")]
    Gone,
    /// No answer in time.
    #[error("the guard did not answer {request} within {after:?}")]
    Timeout {
        /// Which request.
        request: &'static str,
        /// How long was waited.
        after: Duration,
    },
    /// It said no.
    #[error("the guard refused {request}: {reason}")]
    Refused {
        /// Which request.
        request: &'static str,
        /// Why.
        reason: String,
    },
    /// An answer that does not fit the request.
    #[error("the guard answered {request} with something else")]
    Protocol {
        /// Which request.
        request: &'static str,
    },
    /// The request could not be sent.
    #[error("cannot send {request} to the guard")]
    Send {
        /// Which request.
        request: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What the guard says unasked.
#[derive(Debug, Clone, PartialEq)]
pub enum GuardEvent {
    /// A service went down by itself.
    ServiceExited(ServiceStatus),
    /// Stop orderly, call [`Guard::shutting_down`], exit; within 30 s.
    ShutdownRequested {
        /// The machine goes down, not only the agent.
        reboot: bool,
    },
    /// Events were lost because nobody read them: look at everything again.
    Missed,
}

type Waiting = HashMap<u64, SyncSender<(Reply, Vec<OwnedFd>)>>;

#[derive(Debug)]
struct Shared {
    socket: OwnedFd,
    next: AtomicU64,
    /// `None` when the guard is gone.
    waiting: Mutex<Option<Waiting>>,
    events: Mutex<Option<mpsc::Receiver<GuardEvent>>>,
    welcome: Welcome,
}

/// A handle to the guard. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Guard {
    shared: Arc<Shared>,
}

fn name(request: &Request) -> &'static str {
    match request {
        Request::Hello { .. } => "Hello",
        Request::Ready => "Ready",
        Request::Ping => "Ping",
        Request::SetBudget { .. } => "SetBudget",
        Request::Hold { .. } => "Hold",
        Request::Release { .. } => "Release",
        Request::ListHeld => "ListHeld",
        Request::Fetch { .. } => "Fetch",
        Request::SetMounts(_) => "SetMounts",
        Request::SetVips(_) => "SetVips",
        Request::SetTombstone(_) => "SetTombstone",
        Request::StartService(_) => "StartService",
        Request::StopService(_) => "StopService",
        Request::ServiceStatus(_) => "ServiceStatus",
        Request::ListServices => "ListServices",
        Request::RunCommand { .. } => "RunCommand",
        Request::ShuttingDown => "ShuttingDown",
    }
}

impl Guard {
    /// The guard that started this process; `Ok(None)` when there is none (tests, tools).
    ///
    /// Takes the inherited socket over: call it once, early, before other threads start processes.
    ///
    /// # Errors
    /// There is a guard but it cannot be talked to: do not go on.
    pub fn connect_from_env() -> Result<Option<Self>, GuardError> {
        let Some(value) = std::env::var_os(super::FD_VARIABLE) else { return Ok(None) };
        let request = "Hello";
        let number = value
            .to_str()
            .and_then(|text| text.parse().ok())
            .ok_or(GuardError::Send { request, source: io::ErrorKind::InvalidInput.into() })?;
        let socket = fdpass::adopt_socket(number).map_err(|source| GuardError::Send { request, source })?;
        Self::connect(socket).map(Some)
    }

    fn connect(socket: OwnedFd) -> Result<Self, GuardError> {
        let failed = |source| GuardError::Send { request: "Hello", source };
        fdpass::set_send_timeout(socket.as_fd(), CALL_TIMEOUT).map_err(failed)?;
        let reader = socket.try_clone().map_err(failed)?;
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let mut shared = Shared {
            socket,
            next: AtomicU64::new(1),
            waiting: Mutex::new(Some(HashMap::new())),
            events: Mutex::new(Some(events)),
            welcome: Welcome::default(),
        };
        // Before the reading thread exists, the answer to Hello is read here.
        shared.send("Hello", 0, Request::Hello { version: VERSION }, &[])?;
        shared.welcome = first_answer(&reader)?;
        let shared = Arc::new(shared);
        let for_reader = Arc::downgrade(&shared);
        std::thread::Builder::new()
            .name("guard-link".into())
            .spawn(move || read(&reader, &for_reader, &sender))
            .map_err(failed)?;
        Ok(Self { shared })
    }

    /// What the guard told at the start: earlier deaths, held descriptors, whether a tombstone is out.
    pub fn welcome(&self) -> &Welcome {
        &self.shared.welcome
    }

    /// The stream of events; `None` after the first call.
    pub fn events(&self) -> Option<mpsc::Receiver<GuardEvent>> {
        self.shared.events.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn call_with(
        &self,
        request: Request,
        fds: &[BorrowedFd<'_>],
        timeout: Duration,
    ) -> Result<(Reply, Vec<OwnedFd>), GuardError> {
        let name = name(&request);
        let id = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = sync_channel(1);
        {
            let mut waiting = self.shared.waiting();
            waiting.as_mut().ok_or(GuardError::Gone)?.insert(id, sender);
        }
        let result = self.shared.send(name, id, request, fds).and_then(|()| {
            answer.recv_timeout(timeout).map_err(|error| match error {
                RecvTimeoutError::Timeout => GuardError::Timeout { request: name, after: timeout },
                RecvTimeoutError::Disconnected => GuardError::Gone,
            })
        });
        if let Some(waiting) = self.shared.waiting().as_mut() {
            waiting.remove(&id);
        }
        match result? {
            (Reply::Refused(reason), _) => Err(GuardError::Refused { request: name, reason }),
            answer => Ok(answer),
        }
    }

    fn call(&self, request: Request) -> Result<Reply, GuardError> {
        self.call_with(request, &[], CALL_TIMEOUT).map(|(reply, _)| reply)
    }

    fn done(&self, request: Request) -> Result<(), GuardError> {
        let name = name(&request);
        match self.call(request)? {
            Reply::Done => Ok(()),
            _ => Err(GuardError::Protocol { request: name }),
        }
    }

    /// The worker serves.
    pub fn ready(&self) -> Result<(), GuardError> {
        self.done(Request::Ready)
    }

    /// The main loop lives. To be called from that loop, at least three times per watchdog period; see
    /// [`Guard::keep_alive`].
    pub fn ping(&self) -> Result<(), GuardError> {
        self.done(Request::Ping)
    }

    /// Sets the time without a ready worker before the tombstone (`freeze`, the heartbeat timeout) and the time
    /// without ping before this worker is killed (`watchdog`, three heartbeat timeouts, at least 5 s).
    pub fn set_budget(&self, freeze: Millis, watchdog: Millis) -> Result<(), GuardError> {
        self.done(Request::SetBudget { freeze, watchdog })
    }

    /// Keeps copies of descriptors under `name` beyond this process's death (devices excepted: closed when fencing).
    pub fn hold(&self, name: &str, fds: &[(FdKind, BorrowedFd<'_>)]) -> Result<(), GuardError> {
        let (kinds, fds): (Vec<_>, Vec<_>) = fds.iter().copied().unzip();
        let request = Request::Hold { name: name.to_owned(), kinds };
        match self.call_with(request, &fds, CALL_TIMEOUT)?.0 {
            Reply::Done => Ok(()),
            _ => Err(GuardError::Protocol { request: "Hold" }),
        }
    }

    /// Forgets a name; an unknown one is fine.
    pub fn release(&self, name: &str) -> Result<(), GuardError> {
        self.done(Request::Release { name: name.to_owned() })
    }

    /// The names held.
    pub fn held(&self) -> Result<Vec<String>, GuardError> {
        match self.call(Request::ListHeld)? {
            Reply::Held(names) => Ok(names),
            _ => Err(GuardError::Protocol { request: "ListHeld" }),
        }
    }

    /// Copies of what is held under `name`.
    pub fn fetch(&self, name: &str) -> Result<Vec<(FdKind, OwnedFd)>, GuardError> {
        match self.call_with(Request::Fetch { name: name.to_owned() }, &[], CALL_TIMEOUT)? {
            (Reply::Fds(kinds), fds) if kinds.len() == fds.len() => Ok(kinds.into_iter().zip(fds).collect()),
            _ => Err(GuardError::Protocol { request: "Fetch" }),
        }
    }

    /// The complete list of mounts to abort when fencing. Call after mounting, before serving.
    pub fn set_mounts(&self, mounts: Vec<MountRef>) -> Result<(), GuardError> {
        self.done(Request::SetMounts(mounts))
    }

    /// The complete list of addresses to drop when fencing. Call **before** adding an address.
    pub fn set_vips(&self, vips: Vec<VipRef>) -> Result<(), GuardError> {
        self.done(Request::SetVips(vips))
    }

    /// What to send when no worker comes back (empty: nothing). Returns whether the tombstone set before was already
    /// sent. Clear it, and read `false`, **before** persisting the right to go on alone; on `true` that right must
    /// not be taken before the peer was met or a grant is held.
    pub fn set_tombstone(&self, datagrams: Vec<Datagram>) -> Result<bool, GuardError> {
        match self.call(Request::SetTombstone(datagrams))? {
            Reply::Tombstone { sent } => Ok(sent),
            _ => Err(GuardError::Protocol { request: "SetTombstone" }),
        }
    }

    /// Starts a service (or restarts it if its plan changed) and waits until it is up or has failed.
    pub fn start_service(&self, plan: ServicePlan) -> Result<ServiceStatus, GuardError> {
        // A restart first stops the old one; after a stop that failed comes up to 5 s of killing.
        let span = plan.start_timeout.saturating_add(plan.stop_timeout);
        self.service("StartService", Request::StartService(plan), Duration::from_millis(span) + SLACK)
    }

    /// Stops a service and waits until nothing of it is left; `stop_timeout` is its plan's.
    pub fn stop_service(&self, id: &ServiceId, stop_timeout: Millis) -> Result<ServiceStatus, GuardError> {
        let timeout = Duration::from_millis(stop_timeout) + SLACK;
        self.service("StopService", Request::StopService(id.clone()), timeout)
    }

    fn service(
        &self,
        name: &'static str,
        request: Request,
        timeout: Duration,
    ) -> Result<ServiceStatus, GuardError> {
        match self.call_with(request, &[], timeout)?.0 {
            Reply::Service(Some(status)) => Ok(status),
            _ => Err(GuardError::Protocol { request: name }),
        }
    }

    /// How a service is; `None` if the guard never heard of it.
    pub fn service_status(&self, id: &ServiceId) -> Result<Option<ServiceStatus>, GuardError> {
        match self.call(Request::ServiceStatus(id.clone()))? {
            Reply::Service(status) => Ok(status),
            _ => Err(GuardError::Protocol { request: "ServiceStatus" }),
        }
    }

    /// How all services are.
    pub fn services(&self) -> Result<Vec<ServiceStatus>, GuardError> {
        match self.call(Request::ListServices)? {
            Reply::Services(list) => Ok(list),
            _ => Err(GuardError::Protocol { request: "ListServices" }),
        }
    }

    /// Runs a command as a child of the guard, at most `timeout` milliseconds.
    pub fn run_command(&self, argv: Vec<String>, timeout: Millis) -> Result<CommandResult, GuardError> {
        let limit = Duration::from_millis(timeout) + SLACK;
        match self.call_with(Request::RunCommand { argv, timeout }, &[], limit)?.0 {
            Reply::Command(result) => Ok(result),
            _ => Err(GuardError::Protocol { request: "RunCommand" }),
        }
    }

    /// Announces that this process exits by intention: the guard fences, does not restart, and exits with its code.
    pub fn shutting_down(&self) -> Result<(), GuardError> {
        self.done(Request::ShuttingDown)
    }

    /// Any of the calls above from async code: `guard.run(move |g| g.set_vips(vips)).await`.
    pub async fn run<T, F>(&self, call: F) -> Result<T, GuardError>
    where
        T: Send + 'static,
        F: FnOnce(&Self) -> Result<T, GuardError> + Send + 'static,
    {
        let guard = self.clone();
        // A panic or a cancelled pool only happens while this process goes down.
        tokio::task::spawn_blocking(move || call(&guard)).await.unwrap_or(Err(GuardError::Gone))
    }

    /// Pings while the async runtime lives, three times per `watchdog` milliseconds; ends when the guard is gone. Run
    /// it as a task of the runtime that must not hang: a stalled runtime is what the guard looks for. The runtime
    /// itself is never blocked by it, nor does it need a thread of the (possibly exhausted) blocking pool.
    pub async fn keep_alive(self, watchdog: Millis) {
        let (tick, ticked) = sync_channel::<()>(1);
        let started = std::thread::Builder::new().name("guard-ping".into()).spawn(move || {
            while ticked.recv().is_ok() {
                match self.ping() {
                    Err(GuardError::Gone) => return,
                    Err(error) => tracing::warn!(%error, "ping"),
                    Ok(()) => {}
                }
            }
        });
        if let Err(error) = started {
            tracing::error!(%error, "cannot start the thread that pings the guard");
            return;
        }
        let mut ticks = tokio::time::interval(Duration::from_millis((watchdog / 3).max(1)));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Err(std::sync::mpsc::TrySendError::Disconnected(())) = tick.try_send(()) {
                return;
            }
        }
    }
}

impl Shared {
    fn waiting(&self) -> std::sync::MutexGuard<'_, Option<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(
        &self,
        name: &'static str,
        id: u64,
        request: Request,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), GuardError> {
        let bytes = encode(&ToGuard { id, request })
            .map_err(|reason| GuardError::Refused { request: name, reason })?;
        fdpass::send(self.socket.as_fd(), &bytes, fds).map_err(|source| match source.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => GuardError::Gone,
            _ => GuardError::Send { request: name, source },
        })
    }
}

fn first_answer(socket: &OwnedFd) -> Result<Welcome, GuardError> {
    let request = "Hello";
    let ready = crate::sys::process::poll_readable(&[socket.as_fd()], CALL_TIMEOUT.as_millis() as u64);
    if ready != [true] {
        return Err(GuardError::Timeout { request, after: CALL_TIMEOUT });
    }
    let mut buffer = vec![0; fdpass::MAX_PACKET];
    let (len, _) =
        fdpass::recv(socket.as_fd(), &mut buffer).map_err(|source| GuardError::Send { request, source })?;
    match decode(buffer.get(..len).unwrap_or_default()) {
        Ok(ToWorker::Reply { reply: Reply::Welcome(welcome), .. }) => Ok(welcome),
        Ok(ToWorker::Reply { reply: Reply::Refused(reason), .. }) => {
            Err(GuardError::Refused { request, reason })
        }
        _ => Err(GuardError::Protocol { request }),
    }
}

/// The reading thread: ends with the guard or with the last handle.
fn read(socket: &OwnedFd, shared: &std::sync::Weak<Shared>, events: &mpsc::Sender<GuardEvent>) {
    let mut buffer = vec![0; fdpass::MAX_PACKET];
    let mut missed = false;
    loop {
        // A bounded wait, so that the thread notices when nobody holds a handle any more.
        let readable = crate::sys::process::poll_readable(&[socket.as_fd()], 500) == [true];
        let Some(shared) = shared.upgrade() else { return };
        if missed && events.try_send(GuardEvent::Missed).is_ok() {
            missed = false;
        }
        if !readable {
            continue;
        }
        match fdpass::recv(socket.as_fd(), &mut buffer) {
            Ok((0, _)) => break,
            Ok((len, fds)) => match decode(buffer.get(..len).unwrap_or_default()) {
                Ok(ToWorker::Reply { id, reply }) => {
                    if let Some(caller) = shared.waiting().as_mut().and_then(|waiting| waiting.remove(&id)) {
                        let _ = caller.try_send((reply, fds)); // the caller may have lost patience
                    }
                }
                Ok(ToWorker::Notice(notice)) => {
                    let event = match notice {
                        Notice::ServiceExited(status) => GuardEvent::ServiceExited(status),
                        Notice::ShutdownRequested { reboot } => GuardEvent::ShutdownRequested { reboot },
                    };
                    missed |= matches!(events.try_send(event), Err(mpsc::error::TrySendError::Full(_)));
                }
                Err(error) => tracing::error!(error, "the guard sent an unintelligible packet"),
            },
            Err(error) => {
                tracing::error!(%error, "cannot read from the guard");
                break;
            }
        }
    }
    if let Some(shared) = shared.upgrade() {
        // Dropping the senders wakes every caller with `Gone`.
        *shared.waiting() = None;
    }
}
