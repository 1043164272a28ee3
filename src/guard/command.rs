//! Commands that the worker wants run: bounded in number, time and output, never restarted.

use super::message::{CommandResult, OUTPUT_MAX};
use crate::base::{Millis, Mono};
use crate::guard::table::MARK;
use crate::sys::process::{self, Child, Exit, Spawn};
use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};

/// Longest timeout of a command.
pub(super) const TIMEOUT_MAX: Millis = 3_600_000;

/// Who wants the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum For {
    /// The worker's request.
    Request(u64),
    /// The guard: is the machine going down?
    Shutdown,
    /// Nobody any more.
    Nobody,
}

/// One running command.
pub(super) struct Command {
    pub(super) wanted: For,
    child: Child,
    deadline: Mono,
    timed_out: bool,
    stdout: Tail,
    stderr: Tail,
}

/// The end of a stream.
struct Tail {
    pipe: Option<File>,
    kept: VecDeque<u8>,
}

impl Tail {
    fn drain(&mut self) {
        let mut chunk = [0; 4096];
        // A bound, so that a fast writer cannot keep the loop here.
        for _ in 0..16 {
            let Some(pipe) = &mut self.pipe else { return };
            match pipe.read(&mut chunk) {
                Ok(0) => self.pipe = None,
                Ok(n) => {
                    self.kept.extend(chunk.get(..n).unwrap_or_default());
                    let surplus = self.kept.len().saturating_sub(OUTPUT_MAX);
                    self.kept.drain(..surplus);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.pipe = None,
            }
        }
    }
}

impl Command {
    pub(super) fn start(
        wanted: For,
        argv: &[OsString],
        timeout: Millis,
        now: Mono,
        env: &[(OsString, OsString)],
        mark: String,
    ) -> io::Result<Self> {
        let (out_reader, out_writer) = process::pipe()?;
        let (err_reader, err_writer) = process::pipe()?;
        let mut env = env.to_vec();
        env.push((MARK.into(), mark.into()));
        let child = process::spawn(&Spawn {
            argv,
            env: &env,
            directory: None,
            credentials: None,
            stdout: Some(out_writer.as_fd()),
            stderr: Some(err_writer.as_fd()),
            inherit: None,
        })?;
        let tail = |fd| Tail { pipe: Some(File::from(fd)), kept: VecDeque::new() };
        Ok(Self {
            wanted,
            child,
            deadline: now + timeout.min(TIMEOUT_MAX),
            timed_out: false,
            stdout: tail(out_reader),
            stderr: tail(err_reader),
        })
    }

    pub(super) fn pid(&self) -> i32 {
        self.child.id.pid
    }

    pub(super) fn id(&self) -> process::ProcessId {
        self.child.id
    }

    pub(super) fn deadline(&self) -> Mono {
        self.deadline
    }

    /// Reading ends that are still open.
    pub(super) fn pipes(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        [&self.stdout, &self.stderr].into_iter().filter_map(|tail| tail.pipe.as_ref().map(AsFd::as_fd))
    }

    pub(super) fn drain(&mut self) {
        self.stdout.drain();
        self.stderr.drain();
    }

    pub(super) fn kill(&self) {
        if let Err(error) = crate::sys::signal::kill_group(self.child.id.pid.unsigned_abs(), libc::SIGKILL) {
            tracing::warn!(pid = self.child.id.pid, %error, "cannot kill a command");
        }
    }

    /// Kills it if its time is over.
    pub(super) fn tick(&mut self, now: Mono) {
        if now >= self.deadline {
            self.timed_out = true;
            self.kill();
            // Again later, should it be stuck in the kernel.
            self.deadline = now + 1000;
        }
    }

    /// Answers early when a killed command does not even die.
    pub(super) fn timed_out(&self) -> bool {
        self.timed_out
    }

    /// The result after its exit (or after its timeout: `exit` is ignored then).
    pub(super) fn finish(&mut self, exit: Option<Exit>) -> Result<CommandResult, String> {
        self.drain();
        if exit.is_some()
            && let Some(error) = self.child.exec_error()
        {
            return Err(format!("cannot be executed: {error}"));
        }
        let bytes = |tail: &mut Tail| std::mem::take(&mut tail.kept).into();
        Ok(CommandResult {
            exit: if self.timed_out { None } else { exit },
            stdout: bytes(&mut self.stdout),
            stderr: bytes(&mut self.stderr),
        })
    }
}
