//! Runs the command of an exec checker: own process group, bounded output, nothing left behind.

use super::{Finding, OUTPUT_MAX, tail};
use crate::sys::signal::kill_group;
use std::io;
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

/// How long output may still come after the command itself has ended (something in the background
/// holds the pipe); then what is there counts.
const DRAIN: Duration = Duration::from_millis(50);

/// Runs one command, one run at a time.
pub(super) struct Runner {
    argv: Vec<String>,
    /// A start that has not come back: the program lies on a file system that does not answer.
    starting: Option<JoinHandle<io::Result<Started>>>,
}

impl Runner {
    pub(super) fn new(argv: Vec<String>) -> Self {
        Self { argv, starting: None }
    }

    /// Runs it to its end. Exit code 0 is good.
    ///
    /// # Cancel safety
    /// Dropped half-way, the process group is killed.
    pub(super) async fn run(&mut self) -> Finding {
        // Starting a process waits until the program is loaded. On a frozen mount that takes as long as the
        // freeze, and must not hold a thread that others need; so it runs apart, at most one for each checker.
        let starting = self.starting.get_or_insert_with(|| {
            let argv = self.argv.clone();
            tokio::task::spawn_blocking(move || start(&argv))
        });
        let started = starting.await;
        self.starting = None;
        let (mut child, group) = match started.map_err(io::Error::other).flatten() {
            // Declared in this order, so that the group is dropped first: while the leader is not reaped the
            // id is ours.
            Ok(Started { group, child }) => (child, group),
            Err(error) => return Finding::bad(format!("cannot be started: {error}")),
        };
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let mut output = Vec::new();
        let status = {
            let mut read = std::pin::pin!(read_both(stdout, stderr, &mut output));
            tokio::select! {
                biased; // a command that has ended counts, whatever still comes from its pipe
                status = child.wait() => {
                    group.disarm();
                    let _ = tokio::time::timeout(DRAIN, &mut read).await;
                    status
                }
                () = &mut read => {
                    let status = child.wait().await;
                    group.disarm();
                    status
                }
            }
        };
        let text = tail(&output);
        match status {
            Ok(status) if status.success() => Finding::good(text),
            Ok(status) if text.is_empty() => Finding::bad(status.to_string()),
            Ok(status) => Finding::bad(format!("{status}: {text}")),
            Err(error) => Finding::bad(format!("cannot be waited for: {error}")),
        }
    }
}

/// A running command. Dropped also by nobody's hand, when its start took longer than anyone waited: then the whole
/// group ends, too. The order of the fields is that of their ends.
struct Started {
    group: Group,
    child: Child,
}

fn start(argv: &[String]) -> io::Result<Started> {
    let (program, arguments) = argv.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let child = Command::new(program)
        .args(arguments)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    Ok(Started { group: Group(AtomicU32::new(child.id().unwrap_or(0))), child })
}

/// Kills the process group unless disarmed.
struct Group(AtomicU32);

impl Group {
    /// The leader was reaped; its number may soon belong to somebody else.
    fn disarm(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let pgid = self.0.load(Ordering::Relaxed);
        if pgid != 0
            && let Err(error) = kill_group(pgid, libc::SIGKILL)
        {
            tracing::warn!(pgid, %error, "a checker's command could not be killed");
        }
    }
}

async fn read_both(
    stdout: Option<impl AsyncRead + Unpin>,
    stderr: Option<impl AsyncRead + Unpin>,
    output: &mut Vec<u8>,
) {
    let output = Mutex::new(output);
    let append = |bytes: &[u8]| {
        let Ok(mut output) = output.lock() else { return };
        output.extend_from_slice(bytes);
        // The end matters; what came before is dropped as it comes, the pipe never fills.
        let surplus = output.len().saturating_sub(OUTPUT_MAX);
        output.drain(..surplus);
    };
    futures::join!(read_all(stdout, &append), read_all(stderr, &append));
}

async fn read_all(pipe: Option<impl AsyncRead + Unpin>, append: impl Fn(&[u8])) {
    let Some(mut pipe) = pipe else { return };
    let mut buf = [0; 1024];
    while let Ok(n @ 1..) = pipe.read(&mut buf).await {
        append(buf.get(..n).unwrap_or_default());
    }
}
