//! The state machine of one service, pure: inputs and the time in, actions out.
//!
//! ```text
//!            Start               settled / start ok            Stop
//!  Stopped ---------> Starting ---------------------> Running ------> Stopping ---> Stopped
//!  Failed  --------->    |                               |               ^   \
//!     ^                  | exit, timeout, command failed | exit, status  |    survives SIGKILL
//!     +------------------+-------------------------------+---------------+     -> Failed (retried)
//! ```
//!
//! Invariants: [`State::Stopped`] and a startable [`State::Failed`] are entered only after a look at the process
//! table found nothing left of the service. Every state but Stopped, Failed and Running has a deadline
//! ([`Machine::deadline`]). Being stopped twice, or being started while running, changes nothing.

use crate::base::{Millis, Mono};
use crate::sys::process::Exit;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A program in the foreground counts as started when it lives this long: enough for a wrong
/// argument or a missing library to show, short against any failover.
pub const SETTLE: Millis = 100;

/// What survives its program (other sessions, background jobs) gets this long after it, at most.
pub const LEFTOVER_GRACE: Millis = 1000;

/// Time between two looks at the process table while something has to disappear.
pub const SCAN_EVERY: Millis = 25;

/// After this much SIGKILL a process is stuck in the kernel; it is reported, and killing goes on slowly.
pub const KILL_PATIENCE: Millis = 5000;

/// Time between two attempts on a stuck process.
pub const STUCK_EVERY: Millis = 1000;

/// A status command that takes longer has failed.
pub const STATUS_TIMEOUT: Millis = 10_000;

/// How a service is, as others see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// Nothing of it runs.
    Stopped,
    /// On its way up.
    Starting,
    /// Up.
    Running,
    /// On its way down.
    Stopping,
    /// Down, not by our wish.
    Failed(Failure),
}

impl State {
    /// Is it neither on its way up nor down?
    pub fn is_settled(&self) -> bool {
        !matches!(self, Self::Starting | Self::Stopping)
    }
}

/// Why a service is down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Failure {
    /// It could not be executed.
    Exec(String),
    /// Its program ended by itself.
    Exited(Exit),
    /// Its start command said so.
    StartFailed(Exit),
    /// Its start command took too long.
    StartTimeout,
    /// Its status command said so.
    StatusFailed(Exit),
    /// Its status command took too long.
    StatusTimeout,
    /// Its stop command said so: something that is no child of ours may still run.
    StopFailed(Exit),
    /// Its stop command took too long.
    StopTimeout,
    /// Some of its processes survive SIGKILL.
    Unkillable,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exec(error) => write!(f, "could not be executed: {error}"),
            Self::Exited(exit) => write!(f, "ended by itself with {exit}"),
            Self::StartFailed(exit) => write!(f, "start command ended with {exit}"),
            Self::StartTimeout => f.write_str("start command took too long"),
            Self::StatusFailed(exit) => write!(f, "status command ended with {exit}"),
            Self::StatusTimeout => f.write_str("status command took too long"),
            Self::StopFailed(exit) => write!(f, "stop command ended with {exit}"),
            Self::StopTimeout => f.write_str("stop command took too long"),
            Self::Unkillable => f.write_str("processes survive SIGKILL (stuck in the kernel)"),
        }
    }
}

/// The commands of a service with commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Script {
    /// Brings it up.
    Start,
    /// Brings it down.
    Stop,
    /// Looks whether it is up.
    Status,
}

/// What kind of service it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One program in the foreground.
    Run,
    /// Start, stop and status commands.
    Commands,
}

/// The part of a plan that the machine needs.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Kind.
    pub kind: Kind,
    /// Longest run of the start command.
    pub start_timeout: Millis,
    /// Time between asking to stop and SIGKILL.
    pub stop_timeout: Millis,
    /// Time between two status commands.
    pub status_interval: Millis,
}

/// What happened.
#[derive(Debug, Clone)]
pub enum Input {
    /// It is wanted up.
    Start,
    /// It is wanted down; the cap shortens the plan's stop timeout.
    Stop {
        /// Longest time before SIGKILL.
        cap: Option<Millis>,
    },
    /// No more patience: SIGKILL now, except to a running stop command.
    Kill,
    /// The program (`None`) or a command could not be started.
    SpawnFailed(Option<Script>, String),
    /// The program ended.
    ProgramExited(Exit),
    /// A command ended.
    ScriptExited(Script, Exit),
    /// A look at the process table: so many processes of it are alive.
    Alive(usize),
    /// Time passed.
    Tick,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Start the program.
    SpawnProgram,
    /// Start this command.
    SpawnScript(Script),
    /// SIGTERM to the process groups of the service.
    Terminate,
    /// SIGKILL to the group of this command.
    KillScript(Script),
    /// SIGKILL to every process of the service.
    KillAll,
    /// Count its processes and answer with [`Input::Alive`].
    Scan,
    /// It went down by itself: tell the worker.
    ReportFailure,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle,
    Starting { deadline: Mono },
    Running { status_due: Mono, status_deadline: Option<Mono> },
    Terminating { kill_at: Mono, script: bool, next_scan: Mono },
    Killing { since: Mono, next: Mono },
    Stuck { next: Mono },
}

/// One service.
#[derive(Debug)]
pub struct Machine {
    timing: Timing,
    phase: Phase,
    /// Where a way down ends: `None` = Stopped.
    failure: Option<Failure>,
}

/// "Never": later than any deadline.
const NEVER: Mono = Mono(u64::MAX);

impl Machine {
    /// A service that does not run.
    pub fn new(timing: Timing) -> Self {
        Self { timing, phase: Phase::Idle, failure: None }
    }

    /// How the service is.
    pub fn state(&self) -> State {
        match (self.phase, &self.failure) {
            (Phase::Idle, None) => State::Stopped,
            (Phase::Idle, Some(failure)) => State::Failed(failure.clone()),
            (Phase::Starting { .. }, _) => State::Starting,
            (Phase::Running { .. }, _) => State::Running,
            (Phase::Terminating { .. } | Phase::Killing { .. }, _) => State::Stopping,
            (Phase::Stuck { .. }, _) => State::Failed(Failure::Unkillable),
        }
    }

    /// Why it went or goes down, if not by our wish.
    pub fn failure(&self) -> Option<&Failure> {
        if matches!(self.phase, Phase::Stuck { .. }) {
            Some(&Failure::Unkillable)
        } else {
            self.failure.as_ref()
        }
    }

    /// Is it proven that nothing of it runs?
    pub fn is_clean(&self) -> bool {
        self.phase == Phase::Idle
    }

    /// When to call with [`Input::Tick`] at the latest.
    pub fn deadline(&self) -> Option<Mono> {
        let at = match self.phase {
            Phase::Idle => NEVER,
            Phase::Starting { deadline } => deadline,
            Phase::Running { status_due, status_deadline } => status_deadline.unwrap_or(status_due),
            Phase::Terminating { kill_at, script: true, .. } => kill_at,
            Phase::Terminating { kill_at, next_scan, .. } => kill_at.min(next_scan),
            Phase::Killing { next, .. } | Phase::Stuck { next } => next,
        };
        (at != NEVER).then_some(at)
    }

    /// Takes one input and says what to do, in this order.
    pub fn step(&mut self, now: Mono, input: Input) -> Vec<Action> {
        match input {
            Input::Start => self.start(now),
            Input::Stop { cap } => self.stop(now, cap),
            Input::Kill => self.kill(now),
            Input::SpawnFailed(script, error) => self.spawn_failed(now, script, error),
            Input::ProgramExited(exit) => self.program_exited(now, exit),
            Input::ScriptExited(script, exit) => self.script_exited(now, script, exit),
            Input::Alive(count) => self.alive(now, count),
            Input::Tick => self.tick(now),
        }
    }

    fn start(&mut self, now: Mono) -> Vec<Action> {
        if self.phase != Phase::Idle {
            return vec![];
        }
        self.failure = None;
        let (after, action) = match self.timing.kind {
            Kind::Run => (SETTLE, Action::SpawnProgram),
            Kind::Commands => (self.timing.start_timeout, Action::SpawnScript(Script::Start)),
        };
        self.phase = Phase::Starting { deadline: now + after };
        vec![action]
    }

    fn stop(&mut self, now: Mono, cap: Option<Millis>) -> Vec<Action> {
        match &mut self.phase {
            // A failed service with commands may still have something running that is no child of ours.
            Phase::Idle if self.timing.kind == Kind::Run || self.failure.is_none() => {
                self.failure = None;
                vec![]
            }
            Phase::Idle | Phase::Starting { .. } | Phase::Running { .. } => {
                self.failure = None;
                self.go_down(now, cap)
            }
            Phase::Terminating { kill_at, .. } => {
                if let Some(cap) = cap {
                    *kill_at = (*kill_at).min(now + cap);
                }
                self.failure = None;
                vec![]
            }
            Phase::Killing { .. } => {
                self.failure = None;
                vec![]
            }
            Phase::Stuck { .. } => self.begin_killing(now),
        }
    }

    fn kill(&mut self, now: Mono) -> Vec<Action> {
        match self.phase {
            Phase::Idle | Phase::Terminating { script: true, .. } | Phase::Killing { .. } => vec![],
            _ => self.begin_killing(now),
        }
    }

    fn go_down(&mut self, now: Mono, cap: Option<Millis>) -> Vec<Action> {
        let kill_at = now + self.timing.stop_timeout.min(cap.unwrap_or(Millis::MAX));
        match self.timing.kind {
            Kind::Run => {
                self.phase = Phase::Terminating { kill_at, script: false, next_scan: now + SCAN_EVERY };
                vec![Action::Terminate]
            }
            Kind::Commands => {
                self.phase = Phase::Terminating { kill_at, script: true, next_scan: kill_at };
                vec![
                    Action::KillScript(Script::Start),
                    Action::KillScript(Script::Status),
                    Action::SpawnScript(Script::Stop),
                ]
            }
        }
    }

    fn begin_killing(&mut self, now: Mono) -> Vec<Action> {
        self.phase = Phase::Killing { since: now, next: now + SCAN_EVERY };
        vec![Action::KillAll]
    }

    /// Down by itself: remember why, clean up, tell.
    fn fail(&mut self, now: Mono, failure: Failure) -> Vec<Action> {
        self.failure = Some(failure);
        let mut actions = match self.timing.kind {
            Kind::Run => self.begin_killing(now),
            Kind::Commands => self.go_down(now, None),
        };
        actions.push(Action::ReportFailure);
        actions
    }

    fn spawn_failed(&mut self, now: Mono, script: Option<Script>, error: String) -> Vec<Action> {
        let failure = Failure::Exec(error);
        match (self.phase, script) {
            (Phase::Starting { .. }, None | Some(Script::Start)) => {
                // Nothing was started, so nothing has to be stopped.
                self.failure = Some(failure);
                self.phase = Phase::Idle;
                vec![Action::ReportFailure]
            }
            (Phase::Running { .. }, None | Some(Script::Status)) => self.fail(now, failure),
            (Phase::Terminating { kill_at, script: true, .. }, Some(Script::Stop)) => {
                self.failure = Some(failure);
                self.after_stop_script(now, kill_at)
            }
            (Phase::Terminating { script: false, .. } | Phase::Killing { .. } | Phase::Stuck { .. }, _) => {
                vec![Action::Scan]
            }
            _ => vec![],
        }
    }

    fn program_exited(&mut self, now: Mono, exit: Exit) -> Vec<Action> {
        match &mut self.phase {
            Phase::Starting { .. } | Phase::Running { .. } => self.fail(now, Failure::Exited(exit)),
            Phase::Terminating { kill_at, .. } => {
                *kill_at = (*kill_at).min(now + LEFTOVER_GRACE);
                vec![Action::Terminate, Action::Scan]
            }
            Phase::Killing { .. } | Phase::Stuck { .. } => vec![Action::Scan],
            Phase::Idle => vec![],
        }
    }

    fn script_exited(&mut self, now: Mono, script: Script, exit: Exit) -> Vec<Action> {
        let ok = exit == Exit::Code(0);
        match (script, &mut self.phase) {
            (Script::Start, Phase::Starting { .. }) => {
                if ok {
                    self.run(now);
                    return vec![];
                }
                self.fail(now, Failure::StartFailed(exit))
            }
            (Script::Status, Phase::Running { status_due, status_deadline }) => {
                if ok {
                    (*status_due, *status_deadline) = (now + self.timing.status_interval, None);
                    return vec![];
                }
                self.fail(now, Failure::StatusFailed(exit))
            }
            (Script::Stop, Phase::Terminating { kill_at, script: true, .. }) => {
                let kill_at = *kill_at;
                if !ok {
                    self.failure = Some(Failure::StopFailed(exit));
                }
                self.after_stop_script(now, kill_at)
            }
            (_, Phase::Killing { .. } | Phase::Stuck { .. }) => vec![Action::Scan],
            _ => vec![],
        }
    }

    fn after_stop_script(&mut self, now: Mono, kill_at: Mono) -> Vec<Action> {
        self.phase = Phase::Terminating { kill_at, script: false, next_scan: now + SCAN_EVERY };
        vec![Action::Terminate, Action::Scan]
    }

    fn run(&mut self, now: Mono) {
        let status_due = match self.timing.kind {
            Kind::Run => NEVER,
            Kind::Commands => now + self.timing.status_interval,
        };
        self.phase = Phase::Running { status_due, status_deadline: None };
    }

    fn alive(&mut self, now: Mono, count: usize) -> Vec<Action> {
        match &mut self.phase {
            Phase::Terminating { script: false, .. } | Phase::Killing { .. } | Phase::Stuck { .. }
                if count == 0 =>
            {
                self.phase = Phase::Idle;
            }
            Phase::Terminating { script: false, next_scan, .. } => *next_scan = now + SCAN_EVERY,
            _ => {}
        }
        vec![]
    }

    fn tick(&mut self, now: Mono) -> Vec<Action> {
        match &mut self.phase {
            Phase::Starting { deadline } if now >= *deadline => match self.timing.kind {
                Kind::Run => {
                    self.run(now);
                    vec![]
                }
                Kind::Commands => self.fail(now, Failure::StartTimeout),
            },
            Phase::Running { status_deadline: Some(deadline), .. } if now >= *deadline => {
                self.fail(now, Failure::StatusTimeout)
            }
            Phase::Running { status_due, status_deadline: status_deadline @ None } if now >= *status_due => {
                *status_deadline = Some(now + STATUS_TIMEOUT);
                vec![Action::SpawnScript(Script::Status)]
            }
            Phase::Terminating { kill_at, script, .. } if now >= *kill_at => {
                if *script {
                    self.failure = Some(Failure::StopTimeout);
                }
                self.begin_killing(now)
            }
            Phase::Terminating { script: false, next_scan, .. } if now >= *next_scan => {
                *next_scan = now + SCAN_EVERY;
                vec![Action::Scan]
            }
            Phase::Killing { since, next } if now >= *next => {
                if now - *since >= KILL_PATIENCE {
                    self.phase = Phase::Stuck { next: now + STUCK_EVERY };
                    return vec![Action::KillAll, Action::Scan, Action::ReportFailure];
                }
                *next = now + SCAN_EVERY;
                vec![Action::KillAll, Action::Scan]
            }
            Phase::Stuck { next } if now >= *next => {
                *next = now + STUCK_EVERY;
                vec![Action::KillAll, Action::Scan]
            }
            _ => vec![],
        }
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
