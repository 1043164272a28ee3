//! One service inside the guard: its machine, its processes, and who waits for it.

use super::plan::{Output, Program, ServicePlan};
use super::state::{Action, Input, Kind, Machine, Script, State, Timing};
use super::{ServiceStatus, logfile};
use crate::base::Mono;
use crate::guard::table::{MARK, Table};
use crate::sys::process::{self, Child, Exit, ProcessId, Spawn};
use std::collections::HashSet;
use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use tracing::{debug, info, warn};

/// What a unit needs from its surroundings to start processes.
pub(crate) struct Surroundings<'a> {
    /// Environment that every service gets.
    pub(crate) env: &'a [(OsString, OsString)],
    /// Directory of the log files.
    pub(crate) logs: &'a Path,
    /// Value of the owner mark.
    pub(crate) mark: String,
}

/// One service.
pub(crate) struct Unit {
    pub(crate) plan: ServicePlan,
    pub(crate) digest: [u8; 32],
    pub(crate) machine: Machine,
    /// Runs after this one is down.
    pub(crate) replacement: Option<ServicePlan>,
    /// Requests to answer when the state is settled.
    pub(crate) waiters: Vec<u64>,
    program: Option<Child>,
    scripts: Vec<(Script, Child)>,
    sessions: HashSet<i32>,
    seen: HashSet<ProcessId>,
    /// The next scan passes SIGTERM on to what it finds.
    terminate_found: bool,
}

/// Result of executing actions.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// The table of processes is wanted: call [`Unit::scan`].
    pub(crate) scan: bool,
    /// The service went down by itself.
    pub(crate) failed: bool,
    /// Processes were started: the last look at the table is out of date.
    pub(crate) spawned: bool,
    /// Among them some that may stay: the record on disk is out of date.
    pub(crate) record: bool,
}

impl Unit {
    pub(crate) fn new(plan: ServicePlan) -> Self {
        let kind = match plan.program {
            Program::Run { .. } => Kind::Run,
            Program::Commands { .. } => Kind::Commands,
        };
        let timing = Timing {
            kind,
            start_timeout: plan.start_timeout,
            stop_timeout: plan.stop_timeout,
            status_interval: plan.status_interval,
        };
        Self {
            digest: plan.digest(),
            machine: Machine::new(timing),
            plan,
            replacement: None,
            waiters: Vec::new(),
            program: None,
            scripts: Vec::new(),
            sessions: HashSet::new(),
            seen: HashSet::new(),
            terminate_found: false,
        }
    }

    pub(crate) fn owner(id: &super::ServiceId) -> String {
        format!("service:{id}")
    }

    pub(crate) fn status(&self) -> ServiceStatus {
        ServiceStatus {
            id: self.plan.id.clone(),
            state: self.machine.state(),
            digest: self.digest,
            pid: self.program.as_ref().map(|p| p.id.pid),
        }
    }

    /// Nothing more will happen by itself: waiters can be answered.
    pub(crate) fn is_settled(&self) -> bool {
        self.replacement.is_none() && self.machine.state().is_settled()
    }

    /// Processes that the guard started and has not reaped.
    pub(crate) fn children(&self) -> impl Iterator<Item = ProcessId> + '_ {
        self.program.iter().chain(self.scripts.iter().map(|(_, child)| child)).map(|child| child.id)
    }

    /// Everything known to belong to it, for the record on disk.
    pub(crate) fn known(&self) -> impl Iterator<Item = ProcessId> + '_ {
        self.children().chain(self.seen.iter().copied())
    }

    /// Feeds one input and executes what the machine says.
    pub(crate) fn step(&mut self, now: Mono, input: Input, around: &Surroundings<'_>) -> Outcome {
        let before = self.machine.state();
        let mut outcome = Outcome::default();
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            for action in self.machine.step(now, input) {
                debug!(service = %self.plan.id, ?action, "service action");
                if let Err(error) = self.execute(action, around, &mut outcome) {
                    let script = match action {
                        Action::SpawnScript(script) => Some(script),
                        _ => None,
                    };
                    inputs.push(Input::SpawnFailed(script, error.to_string()));
                }
            }
        }
        let after = self.machine.state();
        if before != after {
            match &after {
                State::Failed(failure) => warn!(service = %self.plan.id, %failure, "service failed"),
                state => info!(service = %self.plan.id, ?state, "service state"),
            }
        }
        outcome
    }

    fn execute(
        &mut self,
        action: Action,
        around: &Surroundings<'_>,
        outcome: &mut Outcome,
    ) -> io::Result<()> {
        match action {
            Action::SpawnProgram => {
                let Program::Run { argv } = &self.plan.program else { return Ok(()) };
                let child = self.spawn(&argv.clone(), around)?;
                self.program = Some(child);
                (outcome.spawned, outcome.record) = (true, true);
            }
            Action::SpawnScript(script) => {
                let Program::Commands { start, stop, status } = &self.plan.program else { return Ok(()) };
                let argv = match script {
                    Script::Start => start,
                    Script::Stop => stop,
                    Script::Status => status,
                };
                let child = self.spawn(&argv.clone(), around)?;
                self.scripts.push((script, child));
                outcome.spawned = true;
                outcome.record |= script != Script::Status;
            }
            Action::Terminate => {
                self.signal_children(libc::SIGTERM);
                // Daemons whose starter is gone have no group that is surely theirs: one by one, once found.
                if self.program.is_none() {
                    self.terminate_found = true;
                    outcome.scan = true;
                }
            }
            Action::KillScript(wanted) => {
                for (_, child) in self.scripts.iter().filter(|(script, _)| *script == wanted) {
                    signal_group(child.id, libc::SIGKILL);
                }
            }
            Action::KillAll => {
                self.signal_children(libc::SIGKILL);
                self.signal_seen(libc::SIGKILL);
                outcome.scan = true;
            }
            Action::Scan => outcome.scan = true,
            Action::ReportFailure => outcome.failed = true,
        }
        Ok(())
    }

    fn spawn(&mut self, argv: &[String], around: &Surroundings<'_>) -> io::Result<Child> {
        let argv: Vec<OsString> = argv.iter().map(OsString::from).collect();
        let mut env: Vec<(OsString, OsString)> = around.env.to_vec();
        env.retain(|(key, _)| key.to_str().is_none_or(|key| !self.plan.env.contains_key(key)));
        env.extend(self.plan.env.iter().map(|(key, value)| (key.into(), value.into())));
        env.push((MARK.into(), around.mark.clone().into()));
        let log = match self.plan.output {
            Output::Inherit => None,
            Output::File => match logfile::open(around.logs, &self.plan.id.0) {
                Ok(file) => Some(file),
                Err(error) => {
                    warn!(service = %self.plan.id, %error, "no log file; its output goes to ours");
                    None
                }
            },
        };
        let child = process::spawn(&Spawn {
            argv: &argv,
            env: &env,
            directory: self.plan.directory.as_deref(),
            credentials: self.plan.credentials.as_ref(),
            stdout: log.as_ref().map(AsFd::as_fd),
            stderr: log.as_ref().map(AsFd::as_fd),
            inherit: None,
        })?;
        self.sessions.insert(child.id.pid);
        Ok(child)
    }

    /// Signals the groups of our own unreaped children.
    fn signal_children(&self, signal: i32) {
        for id in self.children() {
            signal_group(id, signal);
        }
    }

    fn signal_seen(&self, signal: i32) {
        for id in &self.seen {
            if let Err(error) = process::signal(*id, signal) {
                warn!(service = %self.plan.id, pid = id.pid, %error, "cannot signal a process of the service");
            }
        }
    }

    /// Takes the exit of a child; `None` if it is not one of ours.
    pub(crate) fn child_exited(&mut self, pid: i32, exit: Exit) -> Option<Input> {
        if self.program.as_ref().is_some_and(|child| child.id.pid == pid) {
            let error = self.program.take().and_then(|mut child| child.exec_error());
            return Some(
                error.map_or(Input::ProgramExited(exit), |e| Input::SpawnFailed(None, e.to_string())),
            );
        }
        let index = self.scripts.iter().position(|(_, child)| child.id.pid == pid)?;
        let (script, mut child) = self.scripts.swap_remove(index);
        let error = child.exec_error();
        Some(
            error.map_or(Input::ScriptExited(script, exit), |e| {
                Input::SpawnFailed(Some(script), e.to_string())
            }),
        )
    }

    /// Looks which processes are its own; returns how many live.
    pub(crate) fn scan(&mut self, table: &Table) -> usize {
        let children: HashSet<i32> = self.children().map(|id| id.pid).collect();
        self.sessions.retain(|session| children.contains(session) || table.has_session(*session));
        self.seen = table.of(&Self::owner(&self.plan.id), &self.sessions, &self.seen);
        if std::mem::take(&mut self.terminate_found) {
            self.signal_seen(libc::SIGTERM);
        }
        // An unreaped child counts: the table may be a little older than it.
        let young = self.children().filter(|id| !self.seen.contains(id)).count();
        self.seen.len() + young + table.undecided
    }

    /// Shortens the log if it is too long.
    pub(crate) fn rotate_log(&self, logs: &Path) {
        if let Err(error) = logfile::rotate(logs, &self.plan.id.0) {
            warn!(service = %self.plan.id, %error, "cannot rotate its log");
        }
    }
}

/// Signals the process group of an unreaped child (its number is its group's and cannot be reused yet).
fn signal_group(id: ProcessId, signal: i32) {
    if let Err(error) = crate::sys::signal::kill_group(id.pid.unsigned_abs(), signal) {
        warn!(pid = id.pid, %error, "cannot signal a process group");
    }
}
