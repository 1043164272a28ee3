//! The two-node lab on one machine, made of namespaces: verbs of `skc lab`, and the library that
//! `skc demo`, the e2e tests and the benchmarks drive in-process.
//!
//! ```text
//!            net1 10.77.1.0/24 (bridge br1)        net2 10.77.2.0/24 (bridge br2)
//! node-a     eth0 10.77.1.1                        eth1 10.77.2.1
//! node-b     eth0 10.77.1.2                        eth1 10.77.2.2
//! client     eth0 10.77.1.9
//! witness    eth0 10.77.1.254  (answers ping; default route of the pair)
//! ```
//!
//! Both bridges are in a switch namespace `skc-NAME-switch` without an uplink: no frame can leave
//! the machine, and labs of different names never see each other. Every node has its own network,
//! mount, PID, UTS and IPC namespace, a PID 1 that reaps, a private `/run`, its state directory at
//! `/var/lib/skc` and its disk at `/srv`. A FUSE mount over `/srv/x` exists inside the node only;
//! from outside, `NODE/disk/srv/x` in the lab's directory is the backing directory.
//!
//! **A power cut** ([`Kill::Power`]): the node's ports at the switch go down, then every process of
//! it dies, then its network is deleted. What differs from a real machine: the kernel and its page
//! cache live on, so data that was never fsynced survives here. Each boot has its own
//! `SKC_BOOT_ID`, by which the agent can tell a reboot from a restart.
//!
//! Failure behaviour: every wait has a deadline; an unclean end leaves a state file by which the
//! next `up` or `down` cleans up. Nothing outside the lab's directory and names is touched, except
//! that the empty mount points `/var/lib/skc` and `/srv` are created where missing. No cgroups.

pub mod bench;
pub mod compare;
pub mod cut;
pub mod demo;
pub mod diagnose;
pub mod enrol;
pub mod error;
pub mod forward;
pub mod ledger;
pub mod nft;
pub mod node;
pub mod process;
pub mod remove;
pub mod state;
pub mod switch;
pub mod topology;
pub mod volume;
pub mod wait;

pub use crate::sys::namespace::Orphan;
pub use error::{LabError, Result};
pub use node::Kill;
pub use topology::{Link, Node};

use crate::sys::namespace::{self, Signal};
use error::Context;
use state::{Lock, State};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use switch::netns_dir;

/// Role name of the namespace with the bridges.
const SWITCH: &str = "switch";
/// Parent of all labs.
pub const LABS: &str = "/var/tmp/skc-lab";
/// Longest lab name: host-wide names are `skc-NAME-witness`.
const NAME_MAX: usize = 32;

/// A lab by name; it need not be up.
#[derive(Debug, Clone)]
pub struct Lab {
    name: String,
    dir: PathBuf,
    program: PathBuf,
}

impl Lab {
    /// The lab `name` with everything in `dir` (default: a directory of that name below [`LABS`]).
    ///
    /// `program` is the `skc` binary that runs inside the nodes.
    pub fn new(name: &str, dir: Option<PathBuf>, program: PathBuf) -> Result<Self> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.is_empty() || name.len() > NAME_MAX || !name.chars().all(plain) {
            return Err(LabError::Refused(format!(
                "a lab's name has 1 to {NAME_MAX} lower-case letters, digits and dashes, not {name:?}"
            )));
        }
        let dir = dir.unwrap_or_else(|| Path::new(LABS).join(name));
        let dir = std::path::absolute(&dir).context("resolve", dir)?;
        Ok(Self { name: name.to_owned(), dir, program })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The `skc` binary of its nodes.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Directory of a node: `disk/`, `state/`, `agent.log`, `init.log`.
    pub fn node_dir(&self, node: Node) -> PathBuf {
        self.dir.join(node.name())
    }

    /// The backing directory, as the host sees it, of `path` inside `node` (below `/srv`).
    pub fn backing(&self, node: Node, path: &str) -> PathBuf {
        self.node_dir(node).join("disk").join(path.trim_start_matches('/'))
    }

    /// The path by which the host looks at `path` inside `node`, through its mounts.
    pub fn mounted(&self, node: Node, path: &str) -> Result<PathBuf> {
        let boot = self.booted(node)?;
        Ok(PathBuf::from(format!("/proc/{}/root", boot.init)).join(path.trim_start_matches('/')))
    }

    pub(crate) fn netns(&self, role: &str) -> String {
        format!("skc-{}-{role}", self.name)
    }

    /// Path of the network namespace of a node (`node-a`…) or of the `switch`.
    pub fn netns_path(&self, role: &str) -> PathBuf {
        netns_dir().join(self.netns(role))
    }

    fn lock(&self) -> Result<Lock> {
        if !self.dir.is_dir() {
            return Err(self.not_up());
        }
        Lock::take(&self.dir)
    }

    fn not_up(&self) -> LabError {
        LabError::Refused(format!("no lab named {:?}: `skc lab up --name {}` makes it", self.name, self.name))
    }

    /// What the lab remembers.
    pub fn state(&self) -> Result<State> {
        State::load(&self.dir)?.ok_or_else(|| self.not_up())
    }

    /// Root, `ip`, namespaces, `/dev/fuse`: the first thing that is missing, with what to do about it.
    pub fn preflight() -> Result<()> {
        if !namespace::is_root() {
            return Err(LabError::NeedsRoot);
        }
        let missing = |what: &str, hint| Err(LabError::Missing { what: what.into(), hint });
        if !process::ip_exists() {
            return missing("the `ip` command", "install iproute2 (Fedora, RHEL: iproute)");
        }
        for kind in ["net", "mnt", "pid", "uts", "ipc"] {
            if !Path::new("/proc/self/ns").join(kind).exists() {
                return missing(&format!("{kind} namespaces"), "use a kernel built with CONFIG_NAMESPACES");
            }
        }
        if !Path::new("/dev/fuse").exists() {
            return missing(
                "/dev/fuse",
                "load the module (`modprobe fuse`), or pass --device /dev/fuse to the container",
            );
        }
        Ok(())
    }

    /// Makes the lab and boots all nodes, without agents. What an unclean end left is removed first.
    pub fn up(&self) -> Result<()> {
        Self::preflight()?;
        if self.is_up() {
            return Err(LabError::Refused(format!(
                "lab {:?} is up: `skc lab down --name {}` ends it",
                self.name, self.name
            )));
        }
        self.down()?;
        let result = self.make().and_then(|()| Node::ALL.into_iter().try_for_each(|node| self.boot(node)));
        if let Err(error) = result {
            if let Err(second) = self.down() {
                tracing::warn!(%second, "cleaning up after a failed start");
            }
            return Err(error);
        }
        Ok(())
    }

    /// Is any node of it running?
    pub fn is_up(&self) -> bool {
        let Ok(Some(state)) = State::load(&self.dir) else { return false };
        state.boots.values().any(|boot| process::alive(boot.init, boot.started))
    }

    fn make(&self) -> Result<()> {
        let bin = self.dir.join("bin");
        fs::create_dir_all(&bin).context("create", &bin)?;
        State::fresh().save(&self.dir)?;
        let link = bin.join("skc");
        std::os::unix::fs::symlink(&self.program, &link).context("link", link)?;
        let mut hosts = "127.0.0.1 localhost\n".to_owned();
        for node in Node::ALL {
            // Writing to a String cannot fail.
            let _ = writeln!(hosts, "{} {node}", node.address(1));
        }
        let path = self.dir.join("hosts");
        fs::write(&path, hosts).context("write", path)?;
        self.make_switch()
    }

    /// Ends everything of the lab and removes its directory. No error if there is nothing.
    pub fn down(&self) -> Result<()> {
        if !namespace::is_root() {
            return Err(LabError::NeedsRoot);
        }
        let marker = State::path(&self.dir).exists();
        let state = State::load(&self.dir).ok().flatten().unwrap_or_default();
        for (node, boot) in &state.boots {
            node::end(boot, *node)?;
        }
        for forwarder in &state.forwarders {
            forward::end(forwarder)?;
        }
        for role in Node::ALL.map(Node::name).into_iter().chain([SWITCH]) {
            self.end_strays(role)?;
            self.delete_netns(role)?;
        }
        if marker {
            remove::unmount_below(&self.dir)?;
            remove::tree(&self.dir)?;
        } else if self.dir.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(LabError::Refused(format!(
                "{} is not a lab's directory: not deleting it",
                self.dir.display()
            )));
        }
        Ok(())
    }

    /// Kills what still runs in one of the lab's network namespaces (by pid, never this process).
    fn end_strays(&self, role: &str) -> Result<()> {
        let path = self.netns_path(role);
        let Ok(meta) = fs::metadata(&path) else { return Ok(()) };
        let inode = format!("net:[{}]", std::os::unix::fs::MetadataExt::ino(&meta));
        let me = std::process::id();
        let inside = || -> Vec<u32> {
            process::pids()
                .into_iter()
                .filter(|pid| *pid != me && process::namespace(*pid, "net").as_deref() == Some(&inode))
                .filter(|pid| process::stat(*pid).is_some_and(|(state, _)| !matches!(state, 'Z' | 'X')))
                .collect()
        };
        for pid in inside() {
            namespace::signal(pid, Signal::Kill).context("kill a process in", &path)?;
        }
        let limit = Duration::from_secs(10);
        process::poll(limit, || inside().is_empty().then_some(())).ok_or_else(|| LabError::Timeout {
            what: format!("end of the processes in {}", path.display()),
            after: limit,
            detail: format!(": {:?}", inside()),
        })
    }
}
