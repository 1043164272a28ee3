//! Two namespaces and a wire between them.

#[path = "../skip/mod.rs"]
mod skip;

use skc::net::Mac;
use skc::sys::arp::{Arp, Operation};
use skc::sys::packet::{ETHERTYPE_ARP, PacketSocket};
use std::io::{BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

pub const HERE: &str = "10.77.0.1";
pub const THERE: &str = "10.77.0.2";
pub const VIP: &str = "10.77.0.100";

const INSIDE: &str = "SKC_TEST_INSIDE";
const JOB: &str = "SKC_TEST_JOB";

/// Runs `body` in a fresh namespace joined to another one by v0 (here) and v1 (there).
pub fn isolated(name: &str, body: impl AsyncFnOnce(Wire)) {
    if std::env::var(INSIDE).as_deref() == Ok(name) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let wire = Wire::new();
        runtime.block_on(async {
            tokio::time::timeout(Duration::from_secs(30), body(wire)).await.expect("the test hangs");
        });
        return;
    }
    let probe = Command::new("unshare").args(["-n", "true"]).output();
    if !probe.is_ok_and(|o| o.status.success()) {
        skip::skipped(&skip::this_test(), "network namespaces need root and unshare(1)");
        return;
    }
    let status = Command::new("unshare")
        .arg("-n")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, name)
        .status()
        .unwrap();
    assert!(status.success(), "{name} failed inside its namespace");
}

/// The veth pair and the process that keeps the other namespace.
pub struct Wire {
    other: Child,
}

impl Wire {
    fn new() -> Self {
        let other = Command::new("unshare").args(["-n", "sleep", "60"]).spawn().unwrap();
        let wire = Self { other };
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        let pid = wire.other.id().to_string();
        until("the other namespace", || {
            std::fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|ns| ns != own)
        });
        run(&["ip", "link", "set", "lo", "up"]);
        run(&["ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1", "netns", &pid]);
        run(&["ip", "addr", "add", &format!("{HERE}/24"), "dev", "v0"]);
        run(&["ip", "addr", "add", "fd77::1/64", "dev", "v0", "nodad"]);
        run(&["ip", "link", "set", "v0", "up"]);
        wire.there(&["ip", "addr", "add", &format!("{THERE}/24"), "dev", "v1"]);
        wire.there(&["ip", "addr", "add", "fd77::2/64", "dev", "v1", "nodad"]);
        wire.there(&["ip", "link", "set", "v1", "up"]);
        until("the carrier", || run(&["ip", "link", "show", "v0"]).contains("LOWER_UP"));
        wire
    }

    /// Runs a command in the other namespace.
    pub fn there(&self, command: &[&str]) -> String {
        let pid = self.other.id().to_string();
        run(&[&["nsenter", "-t", &pid, "-n"], command].concat())
    }

    pub fn mac_here() -> Mac {
        link_mac(&run(&["ip", "-o", "link", "show", "v0"]))
    }

    pub fn mac_there(&self) -> Mac {
        link_mac(&self.there(&["ip", "-o", "link", "show", "v1"]))
    }

    /// Lines `OPERATION address=mac` of every ARP packet that reaches the other namespace.
    pub fn capture(&self) -> Capture {
        let mut child = self.job("capture");
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (tx, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if tx.send(line).is_err() {
                    return;
                }
            }
        });
        let capture = Capture { child, lines };
        while !capture.lines.recv_timeout(Duration::from_secs(10)).unwrap().contains("listening") {}
        capture
    }

    /// The other namespace claims `address` once.
    pub fn claim(&self, address: &str) {
        assert!(self.job(&format!("claim {address}")).wait().unwrap().success());
    }

    fn job(&self, job: &str) -> Child {
        let pid = self.other.id().to_string();
        Command::new("nsenter")
            .args(["-t", &pid, "-n"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "helper", "--nocapture"])
            .env_remove(INSIDE)
            .env(JOB, job)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        let _ = self.other.kill();
        let _ = self.other.wait();
    }
}

/// A running capture.
pub struct Capture {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Capture {
    /// The next line that fits.
    pub async fn wait(&mut self, limit: Duration, fits: impl Fn(&str) -> bool) -> String {
        let start = Instant::now();
        loop {
            match self.lines.try_recv() {
                Ok(line) if fits(&line) => return line,
                Ok(_) => {}
                Err(_) => {
                    assert!(start.elapsed() < limit, "no such packet within {limit:?}");
                    tokio::time::sleep(Duration::from_millis(5)).await; // the pace of polling
                }
            }
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The jobs of the other namespace.
pub fn helper() {
    let Ok(job) = std::env::var(JOB) else { return };
    let line = run(&["ip", "-o", "link", "show", "v1"]);
    let index = line.split(':').next().unwrap().trim().parse().unwrap();
    let socket = PacketSocket::open(index, ETHERTYPE_ARP).unwrap();
    if let Some(address) = job.strip_prefix("claim ") {
        let address: Ipv4Addr = address.parse().unwrap();
        let claim = Arp::gratuitous(Operation::Request, link_mac(&line), address);
        socket.send(Mac::BROADCAST, &claim.encode()).unwrap();
        return;
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "\nlistening").unwrap();
    loop {
        let mut buf = [0; 64];
        match socket.recv(&mut buf) {
            Ok(n) => {
                if let Some(arp) = Arp::decode(&buf[..n]) {
                    writeln!(out, "{:?} {}={}", arp.operation, arp.sender, arp.sender_mac).unwrap();
                }
            }
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                std::thread::park_timeout(Duration::from_millis(2));
            }
            Err(e) => panic!("capture: {e}"),
        }
    }
}

/// Reads a MAC.
pub fn mac(text: &str) -> Mac {
    let bytes: Vec<u8> = text.split(':').map(|b| u8::from_str_radix(b, 16).unwrap()).collect();
    Mac(bytes.try_into().unwrap())
}

fn link_mac(line: &str) -> Mac {
    mac(line.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap())
}

fn run(command: &[&str]) -> String {
    let output = Command::new(command[0]).args(&command[1..]).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(10), "{what} did not come");
        std::thread::park_timeout(Duration::from_millis(5)); // the pace of polling
    }
}
