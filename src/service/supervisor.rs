//! All services of the guard: feeds their machines with requests, exits and time.
//!
//! Owner: the guard's only thread; nothing here blocks. Requests that wait for an outcome are answered through
//! [`Event::Answer`] when the service is settled, which the machine's deadlines bound.

use super::plan::{ServiceId, ServicePlan};
use super::state::{Input, State};
use super::unit::{Surroundings, Unit};
use super::{ServiceStatus, state};
use crate::base::{Millis, Mono};
use crate::guard::table::{Marks, Table};
use crate::sys::process::{Exit, ProcessId};
use std::collections::{BTreeMap, HashSet};
use std::ffi::OsString;
use std::path::PathBuf;
use tracing::warn;

/// Services of one guard, at most: 50 clusters with five each.
pub(crate) const SERVICES_MAX: usize = 256;

/// Waiting requests of one service, at most.
const WAITERS_MAX: usize = 64;

/// Time between two looks at log sizes and new members while services exist.
const HOUSEKEEPING: Millis = 5000;

/// A look at the process table serves everybody for this long: it costs milliseconds on a busy machine.
const LOOK_VALID: Millis = 10;

/// What the guard has to pass on to the worker.
#[derive(Debug)]
pub(crate) enum Event {
    /// A request is answered.
    Answer { request: u64, status: ServiceStatus },
    /// A service went down by itself.
    Exited(ServiceStatus),
}

/// All services.
pub(crate) struct Supervisor {
    units: BTreeMap<ServiceId, Unit>,
    env: Vec<(OsString, OsString)>,
    logs: PathBuf,
    pub(crate) marks: Marks,
    events: Vec<Event>,
    /// The record on disk is out of date.
    pub(crate) dirty: bool,
    housekeeping: Mono,
    /// The last look, shared by services that go down together; dropped when something is spawned.
    looked: Option<(Mono, Table)>,
    /// Children of the guard that are no services (worker, commands): never taken for orphans.
    pub(crate) others: HashSet<i32>,
}

impl Supervisor {
    pub(crate) fn new(logs: PathBuf, env: Vec<(OsString, OsString)>, marks: Marks) -> Self {
        Self {
            units: BTreeMap::new(),
            env,
            logs,
            marks,
            events: Vec::new(),
            dirty: false,
            housekeeping: Mono(0),
            looked: None,
            others: HashSet::new(),
        }
    }

    /// What happened since the last call.
    pub(crate) fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// Starts a service, or restarts it if its plan changed; answered when it is up or has failed.
    pub(crate) fn start(&mut self, now: Mono, request: u64, plan: ServicePlan) -> Result<(), String> {
        if !plan.id.is_valid() {
            return Err(format!("invalid service id {:?}", plan.id.0));
        }
        let id = plan.id.clone();
        if !self.units.contains_key(&id) && self.units.len() >= SERVICES_MAX {
            self.units.retain(|_, unit| !(unit.machine.is_clean() && unit.waiters.is_empty()));
            if self.units.len() >= SERVICES_MAX {
                return Err(format!("more than {SERVICES_MAX} services"));
            }
        }
        let digest = plan.digest();
        let unit = self.units.entry(id.clone()).or_insert_with(|| Unit::new(plan.clone()));
        if unit.waiters.len() >= WAITERS_MAX {
            return Err(format!("more than {WAITERS_MAX} requests wait for {id}"));
        }
        unit.waiters.push(request);
        let input = match unit.machine.state() {
            _ if unit.machine.is_clean() => {
                if unit.digest != digest {
                    let waiters = std::mem::take(&mut unit.waiters);
                    *unit = Unit::new(plan);
                    unit.waiters = waiters;
                }
                Input::Start
            }
            State::Starting | State::Running if unit.digest == digest => Input::Tick,
            State::Starting | State::Running => {
                unit.replacement = Some(plan);
                Input::Stop { cap: None }
            }
            State::Stopping => {
                unit.replacement = Some(plan);
                Input::Tick
            }
            // Stuck: answered as it is.
            State::Failed(_) | State::Stopped => Input::Tick,
        };
        self.feed(now, &id, input);
        Ok(())
    }

    /// Stops a service; answered when nothing of it is left, or when that failed.
    pub(crate) fn stop(&mut self, now: Mono, request: u64, id: &ServiceId) -> Result<(), String> {
        let Some(unit) = self.units.get_mut(id) else {
            // Never heard of: stopped by definition.
            let status = ServiceStatus { id: id.clone(), state: State::Stopped, digest: [0; 32], pid: None };
            self.events.push(Event::Answer { request, status });
            return Ok(());
        };
        if unit.waiters.len() >= WAITERS_MAX {
            return Err(format!("more than {WAITERS_MAX} requests wait for {id}"));
        }
        unit.waiters.push(request);
        unit.replacement = None;
        self.feed(now, id, Input::Stop { cap: None });
        Ok(())
    }

    /// How a service is, if it is known.
    pub(crate) fn status(&self, id: &ServiceId) -> Option<ServiceStatus> {
        self.units.get(id).map(Unit::status)
    }

    /// How all services are. One that went down by itself has failed from that moment on, also while what
    /// is left of it is being removed: nobody should take that for a stop on request.
    pub(crate) fn list(&self) -> Vec<ServiceStatus> {
        self.units.keys().map(|id| self.failure_status(id)).collect()
    }

    /// Takes the exit of a child; false if it belongs to no service.
    pub(crate) fn child_exited(&mut self, now: Mono, pid: i32, exit: Exit) -> bool {
        let found =
            self.units.iter_mut().find_map(|(id, unit)| Some((id.clone(), unit.child_exited(pid, exit)?)));
        let Some((id, input)) = found else { return false };
        self.feed(now, &id, input);
        true
    }

    /// Stops everything: SIGTERM now, SIGKILL after `grace` at the latest; stop commands get `script_cap`.
    /// Whoever waits is gone with the worker.
    pub(crate) fn fence(&mut self, now: Mono, grace: Millis, script_cap: Millis) {
        for id in self.ids() {
            if let Some(unit) = self.units.get_mut(&id) {
                unit.replacement = None;
                unit.waiters.clear();
                let cap = match unit.plan.program {
                    super::Program::Run { .. } => grace,
                    super::Program::Commands { .. } => script_cap,
                };
                self.feed(now, &id, Input::Stop { cap: Some(cap) });
            }
        }
        self.events.clear();
    }

    /// SIGKILL to everything but running stop commands.
    pub(crate) fn kill(&mut self, now: Mono) {
        for id in self.ids() {
            self.feed(now, &id, Input::Kill);
        }
    }

    /// Is it proven that no service runs?
    pub(crate) fn is_clean(&self) -> bool {
        self.units.values().all(|unit| unit.machine.is_clean())
    }

    /// Does no service execute anything any more? (What survives SIGKILL is stuck in the kernel and runs no code.)
    pub(crate) fn is_quiet(&self) -> bool {
        self.units.values().all(|unit| matches!(unit.machine.state(), State::Stopped | State::Failed(_)))
    }

    /// Services of which something may run.
    pub(crate) fn unclean(&self) -> Vec<String> {
        self.units.values().filter(|u| !u.machine.is_clean()).map(|u| u.plan.id.0.clone()).collect()
    }

    /// Do only stop commands keep it from being clean (their services' processes are dealt with)?
    pub(crate) fn only_stop_commands_left(&self) -> bool {
        self.units.values().all(|unit| {
            unit.machine.is_clean() || matches!(unit.plan.program, super::Program::Commands { .. })
        })
    }

    /// When to call [`Supervisor::tick`] at the latest.
    pub(crate) fn deadline(&self) -> Option<Mono> {
        let housekeeping = self.units.values().any(|u| !u.machine.is_clean()).then_some(self.housekeeping);
        self.units.values().filter_map(|unit| unit.machine.deadline()).chain(housekeeping).min()
    }

    /// Passes time.
    pub(crate) fn tick(&mut self, now: Mono) {
        for id in self.ids() {
            if self.units.get(&id).and_then(|u| u.machine.deadline()).is_some_and(|at| now >= at) {
                self.feed(now, &id, Input::Tick);
            }
        }
        if now >= self.housekeeping {
            self.housekeeping = now + HOUSEKEEPING;
            if !self.is_clean() {
                self.look(now);
                let Some((_, table)) = &self.looked else { return };
                for unit in self.units.values_mut().filter(|unit| !unit.machine.is_clean()) {
                    unit.scan(table);
                    unit.rotate_log(&self.logs);
                }
                self.dirty = true;
            }
        }
    }

    /// Everything that belongs to services, for the record on disk.
    pub(crate) fn processes(&self) -> Vec<ProcessId> {
        let all: HashSet<ProcessId> = self.units.values().flat_map(Unit::known).collect();
        all.into_iter().collect()
    }

    /// The living processes that the worker started and left behind.
    pub(crate) fn left_by_worker(&mut self, now: Mono, owner: &str, worker: ProcessId) -> HashSet<ProcessId> {
        self.looked = None;
        self.look(now);
        let Some((_, table)) = &self.looked else { return HashSet::new() };
        table.of(owner, &[worker.pid].into(), &HashSet::new())
    }

    fn ids(&self) -> Vec<ServiceId> {
        self.units.keys().cloned().collect()
    }

    fn look(&mut self, now: Mono) {
        if self.looked.as_ref().is_some_and(|(at, _)| now - *at < LOOK_VALID && now >= *at) {
            return;
        }
        let mut children = self.others.clone();
        children.extend(self.units.values().flat_map(Unit::children).map(|id| id.pid));
        self.looked = Some((now, Table::take(&mut self.marks, &children)));
    }

    fn feed(&mut self, now: Mono, id: &ServiceId, input: Input) {
        let mut inputs = vec![input];
        // A scan answers with one more input, a finished replacement with a start: a handful at most.
        for _ in 0..8 {
            let Some(input) = inputs.pop() else { break };
            let Some(unit) = self.units.get_mut(id) else { return };
            let mark = self.marks.value(&Unit::owner(id));
            let outcome = unit.step(now, input, &Surroundings { env: &self.env, logs: &self.logs, mark });
            self.dirty |= outcome.record;
            if outcome.spawned {
                self.looked = None;
            }
            if outcome.failed {
                self.events.push(Event::Exited(self.failure_status(id)));
            }
            if outcome.scan {
                self.look(now);
                if let (Some(unit), Some((_, table))) = (self.units.get_mut(id), &self.looked) {
                    inputs.push(Input::Alive(unit.scan(table)));
                }
            }
            let Some(unit) = self.units.get_mut(id) else { return };
            if inputs.is_empty()
                && unit.machine.is_clean()
                && let Some(plan) = unit.replacement.take()
            {
                let waiters = std::mem::take(&mut unit.waiters);
                *unit = Unit::new(plan);
                unit.waiters = waiters;
                inputs.push(Input::Start);
            }
        }
        let Some(unit) = self.units.get_mut(id) else { return };
        if let State::Failed(state::Failure::Unkillable) = unit.machine.state()
            && unit.replacement.take().is_some()
        {
            warn!(service = %id, "cannot be replaced: the old one survives SIGKILL");
        }
        if unit.is_settled() {
            let status = unit.status();
            let waiters = std::mem::take(&mut unit.waiters);
            self.events
                .extend(waiters.into_iter().map(|request| Event::Answer { request, status: status.clone() }));
        }
    }

    /// The status of a service; if it failed, the reason counts, not that it is still being cleaned up.
    fn failure_status(&self, id: &ServiceId) -> ServiceStatus {
        let mut status = self.units.get(id).map_or_else(
            || ServiceStatus { id: id.clone(), state: State::Stopped, digest: [0; 32], pid: None },
            Unit::status,
        );
        if let Some(failure) = self.units.get(id).and_then(|unit| unit.machine.failure()) {
            status.state = State::Failed(failure.clone());
        }
        status
    }
}
