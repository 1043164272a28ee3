//! What the guard does for the worker, request by request.

use super::command::{Command, For};
use super::fence::HeldMount;
use super::message::{
    COMMANDS_MAX, FdKind, HOLDS_MAX, MountRef, Reply, Request, ToGuard, VERSION, Welcome, decode,
};
use super::run::Guard;
use crate::base::Mono;
use crate::sys::fdpass;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use tracing::{info, warn};

/// Packets taken from the worker in one round of the loop, so that signals and deadlines get their turn.
const ROUND: usize = 64;

/// Shortest budgets a worker may ask for: below, ordinary scheduling on a busy machine would count as death.
const FREEZE_MIN: u64 = 100;
const WATCHDOG_MIN: u64 = 500;

impl Guard {
    /// Reads what the worker sent. `drain` takes all there is: the worker is dead and says no more.
    pub(super) fn read_worker(&mut self, now: Mono, drain: bool) {
        let mut buffer = vec![0; fdpass::MAX_PACKET];
        let limit = if drain { ROUND * 16 } else { ROUND };
        for _ in 0..limit {
            let Some(socket) = self.worker.as_ref().and_then(super::worker::Worker::socket) else { return };
            match fdpass::recv(socket, &mut buffer) {
                Ok((0, _)) => {
                    if let Some(worker) = self.worker.as_mut().filter(|w| w.leaving) {
                        worker.hang_up();
                    } else if !drain {
                        self.lose_worker(now, "the worker closed its socket");
                    }
                    return;
                }
                Ok((len, fds)) => match decode::<ToGuard>(buffer.get(..len).unwrap_or_default()) {
                    Ok(packet) => self.serve(now, packet, fds),
                    Err(error) => {
                        warn!(error, "the worker sent an unintelligible packet");
                        self.lose_worker(now, "the worker sent an unintelligible packet");
                        return;
                    }
                },
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    warn!(%error, "cannot read from the worker");
                    self.lose_worker(now, "the socket to the worker failed");
                    return;
                }
            }
        }
    }

    fn serve(&mut self, now: Mono, packet: ToGuard, fds: Vec<OwnedFd>) {
        let ToGuard { id, request } = packet;
        let mut sent = Vec::new();
        let greeted = self.worker.as_ref().is_some_and(|w| w.greeted);
        let reply = match request.check() {
            _ if !greeted && !matches!(request, Request::Hello { .. }) => {
                Some(Reply::Refused("the first message must be Hello".to_owned()))
            }
            Err(error) => Some(Reply::Refused(error)),
            Ok(()) => self.answer(now, id, request, fds, &mut sent),
        };
        if let (Some(reply), Some(worker)) = (reply, &mut self.worker) {
            worker.reply(id, reply, sent);
        }
    }

    /// The answer, or `None` if it comes later.
    fn answer(
        &mut self,
        now: Mono,
        id: u64,
        request: Request,
        fds: Vec<OwnedFd>,
        sent: &mut Vec<OwnedFd>,
    ) -> Option<Reply> {
        let refusal = |result: Result<(), String>| result.err().map(Reply::Refused);
        match request {
            Request::Hello { version } => Some(self.hello(version)),
            Request::Ready => {
                self.ready(now);
                Some(Reply::Done)
            }
            Request::Ping => {
                if let Some(worker) = &mut self.worker {
                    worker.last_ping = now;
                }
                Some(Reply::Done)
            }
            Request::SetBudget { freeze, watchdog } => {
                self.freeze = freeze.max(FREEZE_MIN);
                self.watchdog = watchdog.max(WATCHDOG_MIN);
                Some(Reply::Done)
            }
            Request::Hold { name, kinds } => Some(self.hold(name, &kinds, fds)),
            Request::Release { name } => {
                self.held.remove(&name);
                Some(Reply::Done)
            }
            Request::ListHeld => Some(Reply::Held(self.held.keys().cloned().collect())),
            Request::Fetch { name } => Some(self.fetch(&name, sent)),
            Request::SetMounts(mounts) => {
                self.set_mounts(mounts);
                Some(Reply::Done)
            }
            Request::SetVips(vips) => {
                if let Some(fence) = &mut self.fence {
                    fence.spare(&vips);
                }
                self.vips = vips;
                Some(Reply::Done)
            }
            Request::SetTombstone(datagrams) => {
                Some(Reply::Tombstone { sent: self.tombstone.set(datagrams) })
            }
            Request::StartService(plan) => refusal(self.supervisor.start(now, id, plan)),
            Request::StopService(service) => refusal(self.supervisor.stop(now, id, &service)),
            Request::ServiceStatus(service) => Some(Reply::Service(self.supervisor.status(&service))),
            Request::ListServices => Some(Reply::Services(self.supervisor.list())),
            Request::RunCommand { argv, timeout } => {
                let argv: Vec<OsString> = argv.into_iter().map(Into::into).collect();
                refusal(self.run_command(now, For::Request(id), &argv, timeout))
            }
            Request::ShuttingDown => {
                info!("the worker announces its exit");
                if let Some(worker) = &mut self.worker {
                    worker.leaving = true;
                }
                self.expect_shutdown(now);
                Some(Reply::Done)
            }
        }
    }

    fn hello(&mut self, version: u16) -> Reply {
        if version != VERSION {
            return Reply::Refused(format!(
                "worker speaks version {version} of the guard protocol, this guard {VERSION}: restart the agent"
            ));
        }
        if let Some(worker) = &mut self.worker {
            worker.greeted = true;
        }
        Reply::Welcome(Welcome {
            incarnation: self.incarnation,
            held: self.held.keys().cloned().collect(),
            fence: self.fence.as_ref().map(|fence| fence.report.clone()),
            tombstone_sent: self.tombstone.sent,
        })
    }

    fn hold(&mut self, name: String, kinds: &[FdKind], fds: Vec<OwnedFd>) -> Reply {
        if fds.len() != kinds.len() || fds.is_empty() {
            return Reply::Refused(format!("{} descriptors for {} kinds", fds.len(), kinds.len()));
        }
        if self.held.len() >= HOLDS_MAX && !self.held.contains_key(&name) {
            return Reply::Refused(format!("more than {HOLDS_MAX} names"));
        }
        self.held.insert(name, kinds.iter().copied().zip(fds).collect());
        Reply::Done
    }

    fn fetch(&mut self, name: &str, sent: &mut Vec<OwnedFd>) -> Reply {
        let Some(held) = self.held.get(name) else {
            return Reply::Refused(format!("nothing is held as {name:?}"));
        };
        let mut kinds = Vec::new();
        for (kind, fd) in held {
            match fd.try_clone() {
                Ok(copy) => {
                    kinds.push(*kind);
                    sent.push(copy);
                }
                Err(error) => {
                    sent.clear();
                    return Reply::Refused(format!("cannot copy a descriptor: {error}"));
                }
            }
        }
        Reply::Fds(kinds)
    }

    fn set_mounts(&mut self, mounts: Vec<MountRef>) {
        let mut old = std::mem::take(&mut self.mounts);
        for mount in mounts {
            // A handle opened before stands for that very connection: keep it.
            if let Some(index) = old.iter().position(|held| held.mount == mount && held.abort.is_some()) {
                self.mounts.push(old.swap_remove(index));
                continue;
            }
            let abort = self.fusectl.as_ref().and_then(|ctl| match ctl.abort_handle(mount.connection) {
                Ok(abort) => Some(abort),
                Err(error) => {
                    warn!(path = mount.path, connection = mount.connection, %error, "no abort handle; closing its device must do");
                    None
                }
            });
            self.mounts.push(HeldMount { mount, abort });
        }
    }

    /// Closes the devices of mounts: the last way to end their connections.
    pub(super) fn close_devices(&mut self) {
        for fds in self.held.values_mut() {
            fds.retain(|(kind, _)| *kind != FdKind::Device);
        }
        self.held.retain(|_, fds| !fds.is_empty());
    }

    pub(super) fn run_command(
        &mut self,
        now: Mono,
        wanted: For,
        argv: &[OsString],
        timeout: u64,
    ) -> Result<(), String> {
        if self.commands.len() >= COMMANDS_MAX {
            return Err(format!("more than {COMMANDS_MAX} commands run"));
        }
        let mark = self.supervisor.marks.value("command");
        let command = Command::start(wanted, argv, timeout, now, &self.env, mark)
            .map_err(|error| format!("cannot start the command: {error}"))?;
        self.supervisor.others.insert(command.pid());
        self.supervisor.dirty = true;
        self.commands.push(command);
        Ok(())
    }
}
