//! `skc lab link`: delays, drops and limits what the nodes send, in a user-space forwarder.
//!
//! Why not the kernel's `netem`: many kernels of small machines and containers lack it.
//! While a shape is in force, a node's port is no member of its bridge; a second cable is in its place,
//! and one process a node carries the frames between the two:
//!
//! ```text
//! node-a eth0 ═══ node-a-1   →  shaped  →   y-node-a-1 ═══ x-node-a-1 ─ br1
//!                            ←  at once ←
//! ```
//!
//! Each node's sending is shaped (half of the round trip), so any two nodes see the whole round trip.
//! Frames are those of a veth: bulk TCP passes in pieces of up to 64 KiB, so `--loss` loses whole pieces.
//! Failure behaviour: the process dies → the node is cut off from the networks until `lab link` is said
//! again; a queue is full → frames are dropped. A power cut kills the process: what was under way is lost,
//! nothing of the node passes the switch any more.

pub mod shape;

use super::error::{Context, LabError, Result};
use super::process::{alive, ip, poll, stat};
use super::state::{Forwarder, State};
use super::topology::Node;
use super::{Lab, SWITCH, node};
use crate::sys::namespace::{self, Signal};
use crate::sys::tap::{FRAME_MAX, Tap};
use shape::{Shape, Shaper};
use std::collections::VecDeque;
use std::io;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Longest start of the process: one exec and two to four sockets.
const START_LIMIT: Duration = Duration::from_secs(10);
/// Longest death after SIGKILL.
const DEATH_LIMIT: Duration = Duration::from_secs(5);
/// Bytes under way in one direction: 10 Gbit/s for 25 ms. Beyond it frames are dropped.
const QUEUE_BYTES: usize = 32 << 20;
/// Frames taken before due ones are sent again.
const AT_ONCE: usize = 64;

/// The port at the bridge while a forwarder stands between it and the node's own port.
pub(super) fn bridge_port(port: &str) -> String {
    format!("x-{port}")
}

/// The other end of that cable.
fn inner_port(port: &str) -> String {
    format!("y-{port}")
}

impl Lab {
    /// Shapes what every node sends from now on; `None` heals. A shape replaces the one before.
    pub fn link(&self, shape: Option<Shape>) -> Result<()> {
        let _lock = self.lock()?;
        let mut state = self.state()?;
        for node in Node::ALL {
            self.detach_forwarder(&mut state, node)?;
        }
        state.link = shape;
        state.save(self.dir())?;
        for node in Node::ALL.into_iter().filter(|node| self.netns_path(node.name()).exists()) {
            self.attach_forwarder(&mut state, node)?;
        }
        Ok(())
    }

    /// Puts a forwarder between the ports of `node` and the bridges if a shape is in force.
    pub(super) fn attach_forwarder(&self, state: &mut State, node: Node) -> Result<()> {
        let Some(shape) = state.link else { return Ok(()) };
        let switch = self.netns(SWITCH);
        let mut lines = Vec::new();
        for port in node.nets().iter().map(|net| node.port(*net)) {
            let (outer, inner) = (bridge_port(&port), inner_port(&port));
            lines.push(format!("link add {outer} type veth peer name {inner}"));
            lines.push(format!("link set {outer} up"));
            lines.push(format!("link set {inner} up"));
        }
        ip(Some(&switch), &lines)?;
        let forwarder = self.start_forwarder(node, &shape)?;
        // Recorded before it matters: whatever happens next, `down` finds the process.
        state.forwarders.push(forwarder);
        state.save(self.dir())?;
        let mut lines = Vec::new();
        for (net, port) in node.nets().iter().map(|net| (net, node.port(*net))) {
            lines.push(format!("link set {port} nomaster"));
            lines.push(format!("link set {} master br{net}", bridge_port(&port)));
        }
        ip(Some(&switch), &lines)
    }

    fn start_forwarder(&self, node: Node, shape: &Shape) -> Result<Forwarder> {
        let dir = self.node_dir(node);
        std::fs::create_dir_all(&dir).context("create", &dir)?;
        let ready = dir.join("forwarder.ready");
        if ready.exists() {
            std::fs::remove_file(&ready).context("delete", &ready)?;
        }
        let log = dir.join("forwarder.log");
        let out = node::open_log(&log)?;
        let json = serde_json::to_string(shape)
            .map_err(|error| LabError::Refused(format!("the shape cannot be encoded: {error}")))?;
        let mut command = Command::new(self.program());
        command.args(["lab", "--name", self.name(), "__forward", node.name(), "--shape", &json]);
        command.env("SKC_LAB_DIR", self.dir()).stdin(Stdio::null());
        command.stdout(out.try_clone().context("duplicate", &log)?).stderr(out);
        namespace::session_on_exec(&mut command);
        let child = command.spawn().context("start a forwarder with", self.program())?;
        let pid = child.id();
        let started = stat(pid).map_or(0, |(_, started)| started);
        node::reap_later(child);
        // Ready, or dead before it was.
        let is_ready = poll(START_LIMIT, || {
            let lives = alive(pid, started);
            (!lives || ready.exists()).then_some(lives)
        });
        if is_ready != Some(true) {
            namespace::signal(pid, Signal::Kill).context("kill", "forwarder")?;
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            return Err(LabError::Timeout {
                what: format!("start of the forwarder of {node}"),
                after: START_LIMIT,
                detail: format!(": {}", said.lines().last().unwrap_or_default()),
            });
        }
        Ok(Forwarder { node, pid, started })
    }

    /// Ends the forwarder of `node` and plugs its ports into the bridges again, as far as they exist.
    pub(super) fn detach_forwarder(&self, state: &mut State, node: Node) -> Result<()> {
        let (ours, others) = std::mem::take(&mut state.forwarders).into_iter().partition(|f| f.node == node);
        state.forwarders = others;
        let ours: Vec<Forwarder> = ours;
        for forwarder in &ours {
            end(forwarder)?;
        }
        if ours.is_empty() || !self.netns_path(SWITCH).exists() {
            return Ok(());
        }
        for (net, port) in node.nets().iter().map(|net| (net, node.port(*net))) {
            let lines =
                [format!("link del {}", bridge_port(&port)), format!("link set {port} master br{net}")];
            for line in lines {
                // The port is gone already if the node is; the cable if the switch was made anew.
                if let Err(error) = ip(Some(&self.netns(SWITCH)), &[line]) {
                    tracing::debug!(port, %error, "no port to heal");
                }
            }
        }
        Ok(())
    }
}

/// Kills a forwarder and waits until it is dead: it must not send any more.
pub(super) fn end(forwarder: &Forwarder) -> Result<()> {
    let Forwarder { pid, started, node } = *forwarder;
    if !alive(pid, started) {
        return Ok(());
    }
    namespace::signal(pid, Signal::Kill).context("kill", "forwarder")?;
    poll(DEATH_LIMIT, || (!alive(pid, started)).then_some(())).ok_or_else(|| LabError::Timeout {
        what: format!("death of the forwarder of {node}"),
        after: DEATH_LIMIT,
        detail: String::new(),
    })
}

/// Body of `skc lab __forward`: carries the frames of one node until it is killed.
pub fn run(lab: &Lab, node: Node, shape: &Shape) -> Result<()> {
    let netns = lab.netns_path(SWITCH);
    // Before the threads are made: they inherit it, and `lab down` finds the process in it.
    namespace::join_net(&netns).context("join", netns)?;
    let mut carriers = Vec::new();
    for port in node.nets().iter().map(|net| node.port(*net)) {
        let open = |name: &str| Tap::open(name).context("open the port", name);
        let inner = inner_port(&port);
        let stream = u64::from(node.host()) << 8 | carriers.len() as u64;
        let (out, at_once) = (Shaper::new(shape, stream), Shaper::new(&Shape::default(), stream));
        carriers.push((open(&port)?, open(&inner)?, out));
        carriers.push((open(&inner)?, open(&port)?, at_once));
    }
    // The first direction that cannot go on ends the process and with it the others.
    let (ended, first) = std::sync::mpsc::sync_channel(carriers.len());
    for (from, to, shaper) in carriers {
        let ended = ended.clone();
        std::thread::spawn(move || {
            let error = carry(&from, &to, shaper);
            let _ = ended.send(error);
        });
    }
    let ready = lab.node_dir(node).join("forwarder.ready");
    std::fs::write(&ready, b"").context("write", ready)?;
    let source = first.recv().unwrap_or_else(|_| io::Error::other("every thread panicked"));
    Err(LabError::Io { op: "forward the frames of", path: node.name().into(), source })
}

/// One direction. Returns only when the sockets fail, with the reason.
fn carry(from: &Tap, to: &Tap, mut shaper: Shaper) -> io::Error {
    let begin = Instant::now();
    let mut queue: VecDeque<(Duration, Box<[u8]>)> = VecDeque::new();
    let mut queued = 0_usize;
    let mut buffer = vec![0; FRAME_MAX];
    loop {
        let now = begin.elapsed();
        while let Some((due, frame)) = queue.front()
            && *due <= now
        {
            // A frame that the port does not take (it is down, its queue is full) is lost, as on any wire.
            let _ = to.send(frame);
            queued -= frame.len();
            queue.pop_front();
        }
        let until_due = queue.front().map(|(due, _)| due.saturating_sub(begin.elapsed()));
        if let Err(error) = from.wait(until_due) {
            return error;
        }
        for _ in 0..AT_ONCE {
            let length = match from.recv(&mut buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // The port went down (a power cut; it may come up again), or an offload that has no header.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENETDOWN | libc::EINVAL)) => break,
                Err(error) => return error,
            };
            let frame = buffer.get(..length).unwrap_or_default();
            if let Some(due) = shaper.admit(begin.elapsed(), length)
                && queued + length <= QUEUE_BYTES
            {
                queued += length;
                queue.push_back((due, frame.into()));
            }
        }
    }
}
