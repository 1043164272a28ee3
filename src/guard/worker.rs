//! The worker as the guard sees it: a child, a socket, and a clock that must tick.

use super::FD_VARIABLE;
use super::message::{self, Notice, Reply, ToWorker};
use crate::base::Mono;
use crate::guard::table::MARK;
use crate::sys::fdpass;
use crate::sys::process::{self, Child, ProcessId, Spawn};
use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use tracing::{error, warn};

/// Packets that wait for the worker to read. It answers requests in milliseconds; a worker that lets so many
/// pile up does not read at all.
const BACKLOG_MAX: usize = 1024;

/// One worker process.
pub(super) struct Worker {
    pub(super) child: Child,
    socket: Option<OwnedFd>,
    backlog: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
    pub(super) started: Mono,
    pub(super) last_ping: Mono,
    /// Said Hello with the right version.
    pub(super) greeted: bool,
    /// Serves.
    pub(super) ready: bool,
    /// Announced its exit.
    pub(super) leaving: bool,
    /// Was killed or is gone; only to be reaped.
    pub(super) lost: bool,
}

impl Worker {
    pub(super) fn start(
        argv: &[OsString],
        env: &[(OsString, OsString)],
        mark: String,
        now: Mono,
    ) -> io::Result<Self> {
        let (ours, theirs) = fdpass::pair()?;
        fdpass::set_nonblocking(ours.as_fd())?;
        let mut env = env.to_vec();
        env.push((FD_VARIABLE.into(), theirs.as_raw_fd().to_string().into()));
        env.push((MARK.into(), mark.into()));
        let child = process::spawn(&Spawn {
            argv,
            env: &env,
            directory: None,
            credentials: None,
            stdout: None,
            stderr: None,
            inherit: Some(theirs.as_fd()),
        })?;
        Ok(Self {
            child,
            socket: Some(ours),
            backlog: VecDeque::new(),
            started: now,
            last_ping: now,
            greeted: false,
            ready: false,
            leaving: false,
            lost: false,
        })
    }

    pub(super) fn id(&self) -> ProcessId {
        self.child.id
    }

    pub(super) fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd)
    }

    /// It says no more; its exit follows.
    pub(super) fn hang_up(&mut self) {
        self.socket = None;
        self.backlog.clear();
    }

    /// SIGKILL, and not a word more to or from it.
    pub(super) fn kill(&mut self) {
        self.lost = true;
        self.hang_up();
        if let Err(error) = process::signal(self.child.id, libc::SIGKILL) {
            error!(pid = self.child.id.pid, %error, "cannot kill the worker");
        }
    }

    pub(super) fn reply(&mut self, id: u64, reply: Reply, fds: Vec<OwnedFd>) {
        self.push(&ToWorker::Reply { id, reply }, fds);
    }

    pub(super) fn notice(&mut self, notice: Notice) {
        // Before Hello there is nobody who understands it.
        if self.greeted {
            self.push(&ToWorker::Notice(notice), Vec::new());
        }
    }

    fn push(&mut self, packet: &ToWorker, fds: Vec<OwnedFd>) {
        match message::encode(packet) {
            Ok(bytes) => self.backlog.push_back((bytes, fds)),
            Err(error) => {
                error!(error, "cannot encode a packet for the worker");
                if let ToWorker::Reply { id, .. } = packet
                    && let Ok(bytes) =
                        message::encode(&ToWorker::Reply { id: *id, reply: Reply::Refused(error) })
                {
                    self.backlog.push_back((bytes, Vec::new()));
                }
            }
        }
    }

    pub(super) fn has_backlog(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// Sends what the socket takes. False: the worker does not read any more.
    pub(super) fn flush(&mut self) -> bool {
        let Some(socket) = &self.socket else {
            self.backlog.clear();
            return true;
        };
        while let Some((bytes, fds)) = self.backlog.front() {
            let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
            match fdpass::send(socket.as_fd(), bytes, &borrowed) {
                Ok(()) => {
                    self.backlog.pop_front();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    // Its death shows as end of file and as SIGCHLD; nothing to decide here.
                    warn!(%error, "cannot send to the worker");
                    self.backlog.clear();
                    break;
                }
            }
        }
        self.backlog.len() <= BACKLOG_MAX
    }
}
