//! The guard's loop.

use super::command::{Command, For};
use super::config::GuardConfig;
use super::fence::{Fence, HeldMount};
use super::log::LogQueue;
use super::message::{FdKind, Notice, Reply, Step, VipRef};
use super::notify::Notify;
use super::table::{MARK, Marks};
use super::tombstone::Tombstone;
use super::worker::Worker;
use super::{FD_VARIABLE, record};
use crate::base::{Millis, Mono};
use crate::service::supervisor::{Event, Supervisor};
use crate::sys::clock::boottime;
use crate::sys::fusectl::FuseCtl;
use crate::sys::process::{self, Exit};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{DirBuilder, File};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::process::ExitCode;
use std::time::Duration;
use tracing::{error, info, warn};

/// Pause before a restart after the 1st, 2nd, ... death in quick succession.
const BACK_OFF: [Millis; 4] = [0, 200, 1000, 5000];
/// A worker that lived this long died for a new reason: no pause.
const LIVED: Millis = 10_000;
/// The loop turns at least this often.
const TURN: Millis = 1000;
/// A turn that comes this much too late means that we were stopped ourselves (suspend, SIGSTOP, a starved machine):
/// what the worker did not say meanwhile is no evidence against it.
const LATE: Millis = 500;
/// After fencing for good the guard waits at most this long for everything to be down.
const LAST_WAIT: Millis = 12_000;
/// Longest look at whether the machine goes down.
const REBOOT_PROBE: Millis = 1000;
/// Time between two attempts to hand packets to a worker whose socket is full.
const FLUSH_EVERY: Millis = 20;

/// Everything the guard knows.
pub(super) struct Guard {
    config: GuardConfig,
    nonce: String,
    pub(super) env: Vec<(OsString, OsString)>,
    notify: Notify,
    notify_at: Mono,
    pub(super) fusectl: Option<FuseCtl>,
    pub(super) worker: Option<Worker>,
    pub(super) incarnation: u64,
    deaths: usize,
    restart_at: Option<Mono>,
    /// Since when there is no ready worker.
    pub(super) absent_since: Option<Mono>,
    pub(super) freeze: Millis,
    pub(super) watchdog: Millis,
    pub(super) held: BTreeMap<String, Vec<(FdKind, OwnedFd)>>,
    pub(super) mounts: Vec<HeldMount>,
    pub(super) vips: Vec<VipRef>,
    pub(super) tombstone: Tombstone,
    pub(super) supervisor: Supervisor,
    pub(super) commands: Vec<Command>,
    pub(super) fence: Option<Fence>,
    /// Deadline of an orderly shutdown.
    shutdown: Option<Mono>,
    /// Set when the last worker is gone: by what code and until when we exit.
    leaving: Option<(u8, Mono)>,
}

/// Runs the guard until it is told to stop or its worker leaves by intention.
///
/// Call it as the first thing of the process, before any other thread exists: signals are taken over by blocking
/// them, and the kernel kills the worker when *this thread* ends. Its logging is installed through [`GuardConfig::log`].
///
/// Exit codes: 0 after an orderly stop, 1 if something had to be forced, 2 if the guard could not start; a worker
/// that announced its exit decides with its own code.
pub fn run(config: GuardConfig) -> ExitCode {
    let wanted = [libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGHUP];
    let signals = process::signal_descriptor(&wanted);
    let log = LogQueue::install(config.log);
    let prepared =
        signals.map_err(|error| format!("cannot take over signals: {error}")).and_then(|signals| {
            log.as_ref().map_err(|error| format!("cannot start a thread: {error}"))?;
            let (guard, lock) = Guard::prepare(config)?;
            Ok((guard, lock, signals))
        });
    let code = match prepared {
        Ok((mut guard, _lock, signals)) => ExitCode::from(guard.turn_until_done(&signals)),
        Err(error) => {
            error!(error, "the guard cannot start");
            ExitCode::from(2)
        }
    };
    if let Ok(log) = log {
        log.flush();
    }
    code
}

impl Guard {
    fn prepare(config: GuardConfig) -> Result<(Self, File), String> {
        let logs = config.run_dir.join("services");
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&logs)
            .map_err(|error| format!("cannot make {}: {error}", logs.display()))?;
        let lock_path = config.run_dir.join("guard.lock");
        let lock = File::create(&lock_path)
            .map_err(|error| format!("cannot create {}: {error}", lock_path.display()))?;
        match process::try_lock(&lock) {
            Ok(true) => {}
            Ok(false) => return Err(format!("another agent runs with {}", config.run_dir.display())),
            Err(error) => return Err(format!("cannot lock {}: {error}", lock_path.display())),
        }
        process::become_subreaper().map_err(|error| format!("cannot become subreaper: {error}"))?;
        let leftovers = record::kill_leftovers(&config.run_dir);
        if leftovers > 0 {
            warn!(leftovers, "killed what an earlier guard left");
        }
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(|error| format!("no random numbers: {error}"))?;
        let nonce = format!("{:032x}", u128::from_ne_bytes(random));
        let marks = Marks::start(&nonce).map_err(|error| format!("cannot start a thread: {error}"))?;
        let notify = Notify::from_env();
        let hidden = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", FD_VARIABLE, MARK];
        let env: Vec<(OsString, OsString)> =
            std::env::vars_os().filter(|(key, _)| !hidden.iter().any(|name| key == name)).collect();
        let fusectl = FuseCtl::open()
            .inspect_err(|error| warn!(%error, "no fusectl: mounts end by closing their devices only"))
            .ok();
        let millis = |span: Duration| span.as_millis() as Millis;
        let guard = Self {
            freeze: millis(config.freeze_budget),
            watchdog: millis(config.watchdog),
            supervisor: Supervisor::new(logs, env.clone(), marks),
            config,
            nonce,
            env,
            notify,
            notify_at: Mono(0),
            fusectl,
            worker: None,
            incarnation: 0,
            deaths: 0,
            restart_at: Some(Mono(0)),
            absent_since: None,
            held: BTreeMap::new(),
            mounts: Vec::new(),
            vips: Vec::new(),
            tombstone: Tombstone::default(),
            commands: Vec::new(),
            fence: None,
            shutdown: None,
            leaving: None,
        };
        Ok((guard, lock))
    }

    fn turn_until_done(&mut self, signals: &OwnedFd) -> u8 {
        let mut planned = boottime();
        loop {
            let now = boottime();
            if now - planned > LATE {
                warn!(
                    late_ms = now - planned,
                    "the guard itself was stopped: the worker gets its time again"
                );
                if let Some(worker) = &mut self.worker {
                    worker.last_ping = now;
                    worker.started = worker.started + (now - planned);
                }
            }
            self.tick(now);
            if let Some(code) = self.exit_code(now) {
                self.write_record();
                return code;
            }
            let wait = self.deadline(now).map_or(TURN, |at| at - now).min(TURN);
            planned = now + wait;
            let (worker_readable, commands_readable) = self.wait(signals.as_fd(), wait);
            let now = boottime();
            while let Some(signal) = process::next_signal(signals.as_fd()) {
                match signal {
                    libc::SIGTERM | libc::SIGINT => self.request_shutdown(now),
                    _ => {} // SIGCHLD: reaped below; SIGHUP: nothing to reload
                }
            }
            if worker_readable {
                self.read_worker(now, false);
            }
            if commands_readable {
                self.commands.iter_mut().for_each(Command::drain);
            }
            while let Some((pid, exit)) = process::reap() {
                self.child_exited(now, pid, exit);
            }
            self.pass_events_on();
        }
    }

    /// Waits; says whether the worker, and whether a command has something to read.
    fn wait(&self, signals: BorrowedFd<'_>, wait: Millis) -> (bool, bool) {
        let mut fds = vec![signals];
        let worker = self.worker.as_ref().and_then(Worker::socket);
        fds.extend(worker);
        fds.extend(self.commands.iter().flat_map(Command::pipes));
        let ready = process::poll_readable(&fds, wait);
        let first_command = 1 + usize::from(worker.is_some());
        let worker_readable = worker.is_some() && ready.get(1).copied().unwrap_or(false);
        (worker_readable, ready.iter().skip(first_command).any(|r| *r))
    }

    fn deadline(&self, now: Mono) -> Option<Mono> {
        let worker = self.worker.as_ref().filter(|w| !w.lost);
        // An orderly shutdown replaces the watchdog by its own deadline.
        let silence = worker.map(|w| self.shutdown.unwrap_or_else(|| self.silence_deadline(w)));
        let flush = worker.filter(|w| w.has_backlog()).map(|_| now + FLUSH_EVERY);
        let tombstone_due =
            self.tombstone.is_due().then(|| self.absent_since.map(|at| at + self.freeze)).flatten();
        let restart = if self.may_start() { self.restart_at } else { None };
        let watchdog = self.notify.watchdog_ms.map(|_| self.notify_at);
        [
            silence,
            flush,
            // Overdue means that it waits for something else, which has its own deadline.
            tombstone_due.filter(|at| *at > now),
            self.tombstone.deadline(),
            restart,
            watchdog,
            self.supervisor.deadline(),
            self.fence.as_ref().and_then(Fence::deadline),
            self.leaving.map(|(_, at)| at),
        ]
        .into_iter()
        .flatten()
        .chain(self.commands.iter().map(Command::deadline))
        .min()
    }

    fn silence_deadline(&self, worker: &Worker) -> Mono {
        if worker.ready {
            worker.last_ping + self.watchdog
        } else {
            worker.started + self.config.ready_timeout.as_millis() as Millis
        }
    }

    fn tick(&mut self, now: Mono) {
        if let Some(every) = self.notify.watchdog_ms
            && now >= self.notify_at
        {
            self.notify_at = now + every;
            self.notify.send("WATCHDOG=1");
        }
        if self.worker.as_ref().is_some_and(|w| !w.lost && now >= self.silence_deadline(w)) {
            // Our own delay since the last look at the socket is not the worker's silence.
            self.read_worker(now, false);
        }
        if let Some(worker) = self.worker.as_ref().filter(|w| !w.lost) {
            if self.shutdown.is_none() && now >= self.silence_deadline(worker) {
                let cause =
                    if worker.ready { "the worker hangs: no ping" } else { "the worker did not get ready" };
                self.lose_worker(now, cause);
            } else if self.shutdown.is_some_and(|at| now >= at) {
                self.lose_worker(now, "the worker did not stop in time");
            }
        }
        self.supervisor.tick(now);
        self.tick_commands(now);
        self.tick_fence(now);
        self.tick_tombstone(now);
        self.pass_events_on();
        self.start_worker(now);
        if self.worker.as_mut().is_some_and(|w| !w.flush()) {
            self.lose_worker(now, "the worker does not read its socket");
        }
        if std::mem::take(&mut self.supervisor.dirty) {
            self.write_record();
        }
    }

    fn tick_commands(&mut self, now: Mono) {
        let mut unanswered = Vec::new();
        for command in &mut self.commands {
            command.tick(now);
            if command.timed_out() && command.wanted != For::Nobody {
                unanswered.push((command.wanted, command.finish(None)));
                command.wanted = For::Nobody;
            }
        }
        for (wanted, result) in unanswered {
            self.command_done(wanted, result);
        }
    }

    fn tick_tombstone(&mut self, now: Mono) {
        // An orderly shutdown said goodbye to the peer itself; after a forced one nobody comes back.
        let hopeless = self.leaving.is_some_and(|(code, _)| code != 0);
        let waited = self.absent_since.is_some_and(|since| now - since >= self.freeze);
        let fenced = self.fence.as_ref().is_some_and(Fence::is_quiet);
        if fenced && (waited || hopeless) && self.tombstone.is_due() {
            warn!("no worker came back in time: telling the peer that nobody serves here");
            self.tombstone.shoot(now);
            if let Some(fence) = &mut self.fence {
                fence.step(Step::TombstoneSent, now);
            }
        }
        self.tombstone.tick(now);
    }

    fn may_start(&self) -> bool {
        self.worker.is_none()
            && self.leaving.is_none()
            && self.shutdown.is_none()
            && self.fence.as_ref().is_none_or(Fence::is_executed)
    }

    fn start_worker(&mut self, now: Mono) {
        if !self.may_start() || self.restart_at.is_none_or(|at| now < at) {
            return;
        }
        self.restart_at = None;
        self.incarnation += 1;
        let mark = self.supervisor.marks.value(&worker_owner(self.incarnation));
        match Worker::start(&self.config.worker_argv, &self.env, mark, now) {
            Ok(worker) => {
                info!(pid = worker.id().pid, incarnation = self.incarnation, "worker started");
                self.supervisor.others.insert(worker.id().pid);
                self.supervisor.dirty = true;
                self.worker = Some(worker);
            }
            Err(error) => {
                error!(%error, "cannot start the worker");
                self.plan_restart(now, now);
            }
        }
    }

    fn plan_restart(&mut self, now: Mono, started: Mono) {
        self.deaths = if now - started >= LIVED { 0 } else { self.deaths };
        let pause = BACK_OFF.get(self.deaths).or(BACK_OFF.last()).copied().unwrap_or(0);
        self.deaths = self.deaths.saturating_add(1);
        self.restart_at = Some(now + pause);
    }

    /// Kills a worker that cannot be trusted to serve, and fences. It is reaped later.
    pub(super) fn lose_worker(&mut self, now: Mono, cause: &str) {
        let Some(worker) = &mut self.worker else { return };
        if worker.lost {
            return;
        }
        let leaving = worker.leaving;
        worker.kill();
        // One that announced its exit and closes its socket is on its way: its exit code counts.
        if !leaving || self.shutdown.is_some_and(|at| now >= at) {
            self.leave_if_shutting_down(now, 1);
        }
        self.begin_fence(now, cause);
    }

    fn child_exited(&mut self, now: Mono, pid: i32, exit: Exit) {
        self.supervisor.others.remove(&pid);
        if self.worker.as_ref().is_some_and(|w| w.id().pid == pid) {
            self.worker_exited(now, exit);
        } else if let Some(index) = self.commands.iter().position(|c| c.pid() == pid) {
            let mut command = self.commands.swap_remove(index);
            let result = command.finish(Some(exit));
            self.command_done(command.wanted, result);
        } else {
            // Else an orphan that we inherited.
            self.supervisor.child_exited(now, pid, exit);
        }
    }

    fn worker_exited(&mut self, now: Mono, exit: Exit) {
        self.read_worker(now, true);
        let Some(mut worker) = self.worker.take() else { return };
        let exec_error = worker.child.exec_error();
        let leaving = worker.leaving;
        let code = match exit {
            Exit::Code(code) if leaving => u8::try_from(code).unwrap_or(1),
            _ => 1,
        };
        if !worker.lost {
            let mut cause = format!("the worker ended with {exit}");
            if let Some(error) = exec_error {
                cause = format!("the worker cannot be executed: {error}");
            }
            // Still in its place, so that the fence knows whose children to look for.
            worker.lost = true;
            self.worker = Some(worker);
            if leaving {
                info!(%exit, "the worker left");
            }
            self.begin_fence(now, &cause);
            let Some(taken) = self.worker.take() else { return };
            worker = taken;
        }
        if leaving || self.shutdown.is_some() {
            self.leave_if_shutting_down(now, code);
        } else {
            self.plan_restart(now, worker.started);
        }
    }

    fn leave_if_shutting_down(&mut self, now: Mono, code: u8) {
        if self.shutdown.is_some() && self.leaving.is_none() {
            self.leaving = Some((code, now + LAST_WAIT));
        }
    }

    /// The code to exit with, when everything is down or the last wait is over.
    fn exit_code(&self, now: Mono) -> Option<u8> {
        let (code, until) = self.leaving?;
        let down = self.worker.is_none() && self.fence.as_ref().is_none_or(Fence::is_complete);
        if down && !self.tombstone.is_shooting() {
            info!(code, "the guard leaves");
            return Some(code);
        }
        (now >= until).then(|| {
            error!(report = ?self.fence.as_ref().map(|f| &f.report), "the guard leaves although not everything is down");
            code.max(1)
        })
    }

    fn request_shutdown(&mut self, now: Mono) {
        if self.shutdown.is_some() {
            return;
        }
        info!("shutdown requested");
        self.notify.send("STOPPING=1");
        self.expect_shutdown(now);
        if self.worker.is_none() {
            self.leave_if_shutting_down(now, 0);
            if self.fence.is_none() || !self.supervisor.is_clean() {
                self.begin_fence(now, "shutdown without a worker");
            }
            return;
        }
        // Whether the machine goes down is worth knowing (the peer need not wait for us), not worth waiting for.
        let systemd = std::path::Path::new("/run/systemd/system").exists();
        let probe: Vec<OsString> = vec!["systemctl".into(), "is-system-running".into()];
        if !systemd || self.run_command(now, For::Shutdown, &probe, REBOOT_PROBE).is_err() {
            self.announce_shutdown(false);
        }
    }

    fn announce_shutdown(&mut self, reboot: bool) {
        if let Some(worker) = &mut self.worker {
            worker.notice(Notice::ShutdownRequested { reboot });
        }
    }

    /// From now on the worker's end is no accident; it has a deadline.
    pub(super) fn expect_shutdown(&mut self, now: Mono) {
        let timeout = self.config.shutdown_timeout.as_millis() as Millis;
        self.shutdown.get_or_insert(now + timeout);
    }

    pub(super) fn ready(&mut self, now: Mono) {
        if let Some(worker) = &mut self.worker {
            worker.ready = true;
            worker.last_ping = now;
        }
        let absent_ms = self.absent_since.take().map(|since| now - since);
        info!(absent_ms, incarnation = self.incarnation, "the worker serves");
        self.notify.send("READY=1");
    }

    fn pass_events_on(&mut self) {
        for event in self.supervisor.take_events() {
            let Some(worker) = self.worker.as_mut().filter(|w| !w.lost) else { continue };
            match event {
                Event::Answer { request, status } => {
                    worker.reply(request, Reply::Service(Some(status)), Vec::new());
                }
                Event::Exited(status) => worker.notice(Notice::ServiceExited(status)),
            }
        }
    }

    fn command_done(&mut self, wanted: For, result: Result<super::message::CommandResult, String>) {
        match wanted {
            For::Nobody => {}
            For::Shutdown => {
                let text = result.map(|r| r.stdout).unwrap_or_default();
                self.announce_shutdown(text.starts_with(b"stopping"));
            }
            For::Request(id) => {
                let reply = result.map_or_else(Reply::Refused, Reply::Command);
                if let Some(worker) = self.worker.as_mut().filter(|w| !w.lost) {
                    worker.reply(id, reply, Vec::new());
                }
            }
        }
    }

    fn write_record(&self) {
        let mut processes = self.supervisor.processes();
        processes.extend(self.worker.as_ref().map(Worker::id));
        processes.extend(self.commands.iter().map(Command::id));
        if let Err(error) = record::write(&self.config.run_dir, &self.nonce, processes) {
            warn!(%error, "cannot record processes: should the guard die, some may be left over");
        }
    }
}

/// The owner mark of the n-th worker: its successor's children are not its own.
pub(super) fn worker_owner(incarnation: u64) -> String {
    format!("worker:{incarnation}")
}
