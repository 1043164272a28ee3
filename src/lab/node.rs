//! One node's life: boot (namespaces, PID 1, mounts), power cut, programs inside it.
//!
//! A boot starts a monitor (`skc lab __monitor`, in fresh namespaces) whose only child is the
//! node's PID 1 (`skc lab __init`). PID 1 prepares the mounts, says that it is ready and reaps.
//! When it is killed the kernel kills every process of the node, with no word on any wire: the
//! ports at the switch are down by then.

use super::error::{Context, LabError, Result};
use super::process::{self, alive, poll};
use super::state::Boot;
use super::topology::Node;
use super::{Lab, netns_dir};
use crate::sys::namespace::{self, Mount, Namespaces, Orphan, Signal};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// Longest boot: three execs and ten mounts, on a machine that builds something else meanwhile.
const BOOT_LIMIT: Duration = Duration::from_secs(20);
/// Longest death: SIGKILL plus the kernel's tear-down of a PID namespace.
const DEATH_LIMIT: Duration = Duration::from_secs(20);
/// Where an agent keeps its state, in every node.
pub const STATE_DIR: &str = "/var/lib/skc";

/// How a node goes down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kill {
    /// Links down, then processes, then the network: nothing answers any more.
    Power,
    /// Processes only: the kernel goes on answering ARP and sends RST.
    Processes,
}

impl Lab {
    /// Starts the node's namespaces and PID 1, without an agent.
    pub fn boot(&self, node: Node) -> Result<()> {
        let _lock = self.lock()?;
        let mut state = self.state()?;
        if let Some(boot) = state.boots.get(&node)
            && alive(boot.init, boot.started)
        {
            return Err(LabError::Refused(format!("{node} is up")));
        }
        // After a kill that left the kernel alive the old network goes only now.
        self.detach_forwarder(&mut state, node)?;
        self.unplug(node)?;
        self.plug(node)?;
        self.attach_forwarder(&mut state, node)?;
        let boot = self.start_init(node)?;
        state.boots.insert(node, boot);
        state.save(self.dir())
    }

    fn start_init(&self, node: Node) -> Result<Boot> {
        let dir = self.node_dir(node);
        for part in ["disk/srv", "state"] {
            let path = dir.join(part);
            fs::create_dir_all(&path).context("create", path)?;
        }
        for stale in ["init.pid", "ready"] {
            let path = dir.join(stale);
            if path.exists() {
                fs::remove_file(&path).context("delete", path)?;
            }
        }
        let boot_id = random_uuid()?;
        let log = open_log(&dir.join("init.log"))?;
        let netns = self.netns_path(node.name());
        let net = File::open(&netns).context("open", netns)?;
        let mut command = Command::new(self.program());
        command
            .args(["lab", "__monitor", node.name(), "--boot-id", &boot_id])
            .env("SKC_LAB_DIR", self.dir())
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("duplicate", &dir)?)
            .stderr(log);
        namespace::isolate_on_exec(&mut command, net);
        let monitor = command.spawn().context("start a node with", self.program())?;
        reap_later(monitor);
        let ready = poll(BOOT_LIMIT, || {
            let said = fs::read_to_string(dir.join("ready")).ok()?;
            let pid: u32 = fs::read_to_string(dir.join("init.pid")).ok()?.trim().parse().ok()?;
            (said == boot_id).then_some(pid)
        });
        let started = ready.and_then(|pid| Some((pid, process::stat(pid)?.1)));
        let Some((init, started)) = started else {
            let log = fs::read_to_string(dir.join("init.log")).unwrap_or_default();
            return Err(LabError::Timeout {
                what: format!("boot of {node}"),
                after: BOOT_LIMIT,
                detail: format!(": {}", log.trim()),
            });
        };
        Ok(Boot { init, started, boot_id })
    }

    /// Takes a node down. No error if it is down already.
    pub fn kill(&self, node: Node, how: Kill) -> Result<()> {
        let _lock = self.lock()?;
        let mut state = self.state()?;
        if how == Kill::Power && self.netns_path(node.name()).exists() {
            self.silence(node)?;
        }
        if let Some(boot) = state.boots.remove(&node) {
            end(&boot, node)?;
        }
        if how == Kill::Power {
            self.detach_forwarder(&mut state, node)?;
            self.unplug(node)?;
        }
        state.save(self.dir())
    }

    /// PID 1 of a running node.
    pub fn booted(&self, node: Node) -> Result<Boot> {
        let state = self.state()?;
        match state.boots.get(&node) {
            Some(boot) if alive(boot.init, boot.started) => Ok(boot.clone()),
            _ => Err(LabError::Refused(format!("{node} is down: `skc lab start {node}` boots it"))),
        }
    }

    /// A command as it will run inside `node`: `skc` is in its PATH, `SKC_BOOT_ID` tells the boot.
    pub fn command(&self, node: Node, argv: &[&str]) -> Command {
        let mut command = Command::new(argv.first().copied().unwrap_or("true"));
        command.args(argv.get(1..).unwrap_or_default());
        command.envs(environment(self.dir(), node));
        command
    }

    /// Starts `command` inside `node` as a child of this process.
    pub fn spawn(&self, node: Node, command: &mut Command, orphan: Orphan) -> Result<Child> {
        let boot = self.booted(node)?;
        command.env("SKC_BOOT_ID", &boot.boot_id);
        let namespaces = Namespaces::of(boot.init).context("open the namespaces of", node.name())?;
        namespace::spawn_in(&namespaces, command, orphan)
            .context("run inside the node", PathBuf::from(command.get_program()))
    }

    /// Runs a program inside `node` to its end, at most `limit`.
    pub fn exec(&self, node: Node, argv: &[&str], limit: Duration) -> Result<process::Output> {
        let mut command = self.command(node, argv);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = self.spawn(node, &mut command, Orphan::LivesOn)?;
        process::finish(child, &argv.join(" "), limit)
    }

    /// Like [`Lab::exec`], but a failing program is an error; returns what it printed.
    pub fn run(&self, node: Node, argv: &[&str], limit: Duration) -> Result<String> {
        let output = self.exec(node, argv, limit)?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        let said = if output.stderr.trim().is_empty() { &output.stdout } else { &output.stderr };
        let command = format!("{node}: {}", argv.join(" "));
        Err(LabError::Command { command, stderr: format!("{} ({})", said.trim(), output.status) })
    }

    /// Runs a program on this terminal; it is killed when the calling thread dies.
    pub fn exec_here(&self, node: Node, argv: &[&str]) -> Result<ExitStatus> {
        let mut command = self.command(node, argv);
        let mut child = self.spawn(node, &mut command, Orphan::Dies)?;
        child.wait().context("wait for", PathBuf::from(command.get_program()))
    }

    /// Starts a program in the background: a child of the node's PID 1, output appended to `log`.
    pub fn detach(&self, node: Node, argv: &[&str], log: &Path) -> Result<()> {
        let log = log.to_string_lossy();
        let program = self.program().to_string_lossy();
        let mut all: Vec<&str> = vec![&program, "lab", "__detach", "--log", &log, "--"];
        all.extend(argv);
        self.run(node, &all, BOOT_LIMIT).map(drop)
    }

    /// Starts `skc agent` in a node of the pair; its output goes to `agent.log` of the node's directory.
    pub fn start_agent(&self, node: Node) -> Result<()> {
        let program = self.program().to_string_lossy();
        self.detach(node, &[&program, "agent", "--state", STATE_DIR], &self.agent_log(node))
    }

    /// The agent's log.
    pub fn agent_log(&self, node: Node) -> PathBuf {
        self.node_dir(node).join("agent.log")
    }
}

/// Kills what the node runs and waits until nothing of it runs any more.
pub(super) fn end(boot: &Boot, node: Node) -> Result<()> {
    if !alive(boot.init, boot.started) {
        return Ok(());
    }
    let space = process::namespace(boot.init, "pid");
    namespace::signal(boot.init, Signal::Kill).context("kill PID 1 of", node.name())?;
    // PID 1 stays until everybody is reaped, also by parents outside (us, a test that holds a
    // child). What counts is that nobody runs.
    let dead = poll(DEATH_LIMIT, || {
        (!alive(boot.init, boot.started) || running(space.as_deref(), boot.init).is_empty()).then_some(())
    });
    dead.ok_or_else(|| LabError::Timeout {
        what: format!("death of {node}"),
        after: DEATH_LIMIT,
        detail: format!("; still running: {:?}", running(space.as_deref(), boot.init)),
    })
}

/// Processes other than `init` that run in PID namespace `space`.
pub(super) fn running(space: Option<&str>, init: u32) -> Vec<u32> {
    let Some(space) = space else { return Vec::new() };
    let runs = |pid: &u32| process::stat(*pid).is_some_and(|(state, _)| !matches!(state, 'Z' | 'X'));
    let inside = |pid: &u32| *pid != init && process::namespace(*pid, "pid").as_deref() == Some(space);
    process::pids().into_iter().filter(inside).filter(runs).collect()
}

fn environment(lab: &Path, node: Node) -> Vec<(String, String)> {
    let system = std::env::var("PATH").unwrap_or_else(|_| "/usr/sbin:/usr/bin:/sbin:/bin".into());
    vec![
        ("PATH".into(), format!("{}:{system}", lab.join("bin").display())),
        ("SKC_NODE".into(), node.name().into()),
        ("SKC_LAB_DIR".into(), lab.display().to_string()),
    ]
}

/// Appends to a log of the lab.
pub fn open_log(path: &Path) -> Result<File> {
    File::options().create(true).append(true).open(path).context("open", path)
}

/// Collects a child's status when it ends, so that it does not stay a zombie of a long-lived caller.
pub(super) fn reap_later(mut child: Child) {
    std::thread::spawn(move || {
        if let Err(error) = child.wait() {
            tracing::debug!(%error, "a node's monitor could not be reaped");
        }
    });
}

fn random_uuid() -> Result<String> {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes)
        .map_err(|error| LabError::Refused(format!("no random numbers for a boot id: {error}")))?;
    let id = u128::from_be_bytes(bytes) & !(0xf << 76 | 0x3 << 62) | (4 << 76 | 2 << 62);
    let hex = format!("{id:032x}");
    let parts =
        [0..8, 8..12, 12..16, 16..20, 20..32].map(|range| hex.get(range).unwrap_or_default().to_owned());
    Ok(parts.join("-"))
}

/// Body of `skc lab __monitor`: starts PID 1 and lives exactly as long.
pub fn monitor(lab: &Lab, node: Node, boot_id: &str) -> Result<()> {
    let dir = lab.node_dir(node);
    let mut command = Command::new(lab.program());
    command.args(["lab", "__init", node.name(), "--boot-id", boot_id]).envs(environment(lab.dir(), node));
    command.env("SKC_BOOT_ID", boot_id);
    let mut init = command.spawn().context("start", lab.program())?;
    let path = dir.join("init.pid");
    fs::write(&path, init.id().to_string()).context("write", path)?;
    init.wait().context("wait for PID 1 of", dir).map(drop)
}

/// Body of `skc lab __init`: PID 1 of a node.
pub fn init(lab: &Lab, node: Node, boot_id: &str) -> Result<()> {
    let dir = lab.node_dir(node);
    let to = |target: &'static str| Path::new(target);
    let mount = |what: Mount<'_>, target: &Path| namespace::mount(what, target).context("mount", target);
    mount(Mount::Private, to("/"))?;
    // Copies of other namespaces' names would keep those alive.
    for name in process::mounts_below(netns_dir()).iter().rev() {
        match namespace::unmount(name, true) {
            // Another lab that ended meanwhile took its own name away: no mount here any more, or no file.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => {}
            other => other.context("unmount", name)?,
        }
    }
    namespace::set_hostname(node.name()).context("set host name", node.name())?;
    for target in [STATE_DIR, "/srv"] {
        fs::create_dir_all(target).context("create", target)?;
    }
    mount(Mount::New("proc", ""), to("/proc"))?;
    mount(Mount::New("tmpfs", "mode=755"), to("/run"))?;
    mount(Mount::New("tmpfs", "mode=1777"), to("/dev/shm"))?;
    fs::create_dir_all("/run/lock").context("create", "/run/lock")?;
    if Path::new("/sys/fs/fuse/connections").exists() && !has_fusectl() {
        mount(Mount::New("fusectl", ""), to("/sys/fs/fuse/connections"))?;
    }
    mount(Mount::Bind(&dir.join("state")), to(STATE_DIR))?;
    mount(Mount::Bind(&dir.join("disk/srv")), to("/srv"))?;
    if Path::new("/etc/hosts").exists() {
        mount(Mount::Bind(&lab.dir().join("hosts")), to("/etc/hosts"))?;
    }
    let ready = dir.join("ready.new");
    fs::write(&ready, boot_id).context("write", &ready)?;
    fs::rename(&ready, dir.join("ready")).context("rename", &ready)?;
    let error = namespace::reap_forever();
    Err(LabError::Io { op: "reap in", path: dir, source: error })
}

fn has_fusectl() -> bool {
    fs::read_dir("/sys/fs/fuse/connections").is_ok_and(|mut entries| entries.next().is_some())
        || !process::mounts_below(Path::new("/sys/fs/fuse/connections")).is_empty()
}

/// Body of `skc lab __detach`: starts `argv` in a session of its own and leaves it to PID 1.
pub fn detach_here(argv: &[String], log: &Path) -> Result<()> {
    let (program, rest) = argv.split_first().ok_or_else(|| LabError::Refused("no command given".into()))?;
    let log = open_log(log)?;
    let mut command = Command::new(program);
    command.args(rest).stdin(Stdio::null());
    command.stdout(log.try_clone().context("duplicate the log of", program)?).stderr(log);
    namespace::session_on_exec(&mut command);
    command.spawn().context("start", program).map(drop)
}
