//! Bounded commands, and what `/proc` tells about the lab's processes.

use super::error::{LabError, Result};
use std::fs;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often a condition is looked at again. Small against every time the lab measures.
pub const POLL: Duration = Duration::from_millis(5);

/// Asks `check` until it answers `Some` or `limit` is over.
pub fn poll<T>(limit: Duration, mut check: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(value) = check() {
            return Some(value);
        }
        if Instant::now() >= end {
            return None;
        }
        std::thread::sleep(POLL);
    }
}

/// What a finished command left.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

fn drain(pipe: Option<impl Read + Send + 'static>) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What arrived before an error is still worth showing.
            let _ = pipe.read_to_end(&mut bytes);
        }
        bytes
    })
}

/// Waits for `child` (standard output and error piped) at most `limit`, then kills it.
///
/// Its pipes are read to the end only if it ended by itself: a grandchild may keep them open.
pub fn finish(mut child: Child, what: &str, limit: Duration) -> Result<Output> {
    let out = drain(child.stdout.take());
    let err = drain(child.stderr.take());
    let Some(status) = wait_child(&mut child, what, limit)? else {
        return Err(LabError::Timeout {
            what: format!("end of `{what}`"),
            after: limit,
            detail: String::new(),
        });
    };
    let text = |thread: JoinHandle<Vec<u8>>| {
        poll(Duration::from_secs(1), || thread.is_finished().then_some(()))
            .and_then(|()| thread.join().ok())
            .map_or_else(String::new, |bytes| String::from_utf8_lossy(&bytes).into_owned())
    };
    Ok(Output { status, stdout: text(out), stderr: text(err) })
}

/// Waits at most `limit`; kills and reaps the child when that is over (`None`).
pub fn wait_child(child: &mut Child, what: &str, limit: Duration) -> Result<Option<ExitStatus>> {
    let failed = |error: io::Error| LabError::Command { command: what.to_owned(), stderr: error.to_string() };
    let mut problem = None;
    let status = poll(limit, || match child.try_wait() {
        Ok(status) => status.map(Some),
        Err(error) => {
            problem = Some(error);
            Some(None)
        }
    });
    match (problem, status.flatten()) {
        (Some(error), _) => Err(failed(error)),
        (None, Some(status)) => Ok(Some(status)),
        (None, None) => {
            child.kill().map_err(failed)?;
            // A killed process may sit in an uninterruptible call for a while: reap it in the background.
            if poll(Duration::from_secs(2), || child.try_wait().ok().flatten()).is_none() {
                tracing::warn!(command = what, "a killed command does not end");
            }
            Ok(None)
        }
    }
}

/// Longest time that `ip` may take: it only talks to the kernel.
const IP_LIMIT: Duration = Duration::from_secs(10);

/// Runs `ip -batch` with these lines in the network namespace `netns` (the host's own if `None`).
pub fn ip(netns: Option<&str>, lines: &[String]) -> Result<()> {
    let mut command = Command::new("ip");
    if let Some(netns) = netns {
        command.args(["-n", netns]);
    }
    command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let shown = format!("ip {}{}", netns.map(|n| format!("-n {n} ")).unwrap_or_default(), lines.join("; "));
    let mut child = command.spawn().map_err(|error| spawn_error(&error, &shown))?;
    if let Some(mut stdin) = child.stdin.take() {
        let text = lines.join("\n") + "\n";
        // An early end of `ip` shows in its status.
        let _ = stdin.write_all(text.as_bytes());
    }
    let output = finish(child, &shown, IP_LIMIT)?;
    if output.status.success() {
        return Ok(());
    }
    Err(LabError::Command { command: shown, stderr: output.stderr.trim().to_owned() })
}

fn spawn_error(error: &io::Error, command: &str) -> LabError {
    if error.kind() == io::ErrorKind::NotFound {
        return LabError::Missing {
            what: "the `ip` command".into(),
            hint: "install iproute2 (Debian, Ubuntu, SUSE) or iproute (Fedora, RHEL)",
        };
    }
    LabError::Command { command: command.to_owned(), stderr: error.to_string() }
}

/// Is the `ip` command there?
pub fn ip_exists() -> bool {
    Command::new("ip")
        .arg("-V")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
}

/// State letter and start time (clock ticks) of a process; `None` if there is no such process.
pub fn stat(pid: u32) -> Option<(char, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command name may contain anything; the last parenthesis ends it.
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let started = fields.nth(18)?.parse().ok()?;
    Some((state, started))
}

/// Is the process `pid` that started at `started` still running (not a zombie)?
pub fn alive(pid: u32, started: u64) -> bool {
    stat(pid).is_some_and(|(state, since)| since == started && !matches!(state, 'Z' | 'X'))
}

/// All process ids of the host.
pub fn pids() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Identity of the namespace `kind` (`net`, `pid`) of a process, like `pid:[4026531836]`.
pub fn namespace(pid: u32, kind: &str) -> Option<String> {
    let link = fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok()?;
    Some(link.to_str()?.to_owned())
}

/// Command line of a process.
pub fn arguments(pid: u32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    bytes
        .split(|b| *b == 0)
        .filter(|arg| !arg.is_empty())
        .map(|a| String::from_utf8_lossy(a).into_owned())
        .collect()
}

/// Mount points at or below `dir` in this process' mount namespace, outermost first.
pub fn mounts_below(dir: &Path) -> Vec<std::path::PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    text.lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(unescape)
        .filter(|path| path.starts_with(dir))
        .collect()
}

/// mountinfo writes space, tab, newline and backslash as octal escapes.
fn unescape(field: &str) -> std::path::PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let mut out = Vec::with_capacity(field.len());
    let bytes = field.as_bytes();
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let code = bytes.get(at + 1..at + 4).and_then(|d| std::str::from_utf8(d).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(value) if *byte == b'\\' => {
                out.push(value);
                at += 4;
            }
            _ => {
                out.push(*byte);
                at += 1;
            }
        }
    }
    std::ffi::OsString::from_vec(out).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_of_mountinfo_are_undone() {
        assert_eq!(unescape("/a\\040b\\134c"), Path::new("/a b\\c"));
        assert_eq!(unescape("/plain\\"), Path::new("/plain\\"));
    }

    #[test]
    fn a_command_past_its_limit_is_killed() {
        let child =
            Command::new("sleep").arg("60").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let pid = child.id();
        let started = stat(pid).unwrap().1;
        assert!(matches!(finish(child, "sleep", Duration::from_millis(30)), Err(LabError::Timeout { .. })));
        assert!(!alive(pid, started));
    }

    #[test]
    fn our_own_process_is_alive() {
        let me = std::process::id();
        let (_, started) = stat(me).unwrap();
        assert!(alive(me, started));
        assert!(!alive(me, started + 1));
        assert!(pids().contains(&me));
    }
}
