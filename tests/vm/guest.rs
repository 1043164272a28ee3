//! One guest under QEMU's software CPU: slow, but a whole machine with its own kernel, disks and systemd.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Until a guest's shell answers; about 25 s on an idle machine.
pub const BOOT: Duration = Duration::from_secs(600);

/// What a command printed, and its exit status.
#[derive(Debug)]
pub struct Output {
    pub status: i32,
    pub text: String,
}

/// Disks and sockets of a guest; they outlive its power.
pub struct Machine {
    pub name: &'static str,
    dir: PathBuf,
    image: PathBuf,
    /// The directory of the other guest, to which the network cards lead.
    peer: PathBuf,
    number: u8,
}

/// A machine under power.
pub struct Guest {
    pub machine: Machine,
    qemu: Child,
    port: BufReader<UnixStream>,
    asked: u64,
}

fn tool(program: &str, args: &[&str]) {
    let done = Command::new(program).args(args).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(done.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&done.stderr));
}

impl Machine {
    /// Makes the disks: the system from `image`, an empty one for data (with quotas), `payload` as a tar file.
    pub fn new(world: &Path, image: &Path, number: u8, payload: &Path) -> Self {
        let name = ["node-a", "node-b"][usize::from(number)];
        let peer = world.join(["node-b", "node-a"][usize::from(number)]);
        let dir = world.join(name);
        fs::create_dir_all(&dir).expect("a directory for the guest");
        let path = |file: &str| dir.join(file).to_string_lossy().into_owned();
        tool("cp", &["--sparse=always", &image.join("root.img").to_string_lossy(), &path("root.img")]);
        tool("truncate", &["-s", "512M", &path("data.img")]);
        tool("mkfs.ext4", &["-q", "-O", "quota", &path("data.img")]);
        tool("cp", &[&payload.to_string_lossy(), &path("payload.tar")]);
        Self { name, dir, image: image.to_path_buf(), peer, number }
    }

    /// Switches it on and waits for its shell.
    pub fn boot(self) -> Guest {
        let path = |file: &str| self.dir.join(file);
        for net in ["net1", "net2", "ctl"] {
            let _ = fs::remove_file(path(net));
        }
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-accel", "tcg", "-machine", "q35", "-cpu", "max", "-smp", "1", "-m", "640"])
            .args(["-nodefaults", "-display", "none", "-append", "root=/dev/vda rw console=ttyS0 quiet"])
            .arg("-kernel")
            .arg(self.image.join("vmlinuz"))
            .arg("-initrd")
            .arg(self.image.join("initrd.img"))
            .args(["-serial", &format!("file:{}", path("console.log").display())])
            .args(["-device", "virtio-serial", "-device", "virtserialport,chardev=ctl,name=skc.ctl"])
            .args(["-chardev", &format!("socket,id=ctl,path={},server=on,wait=off", path("ctl").display())])
            .args(["-device", "virtio-rng-pci"]);
        for disk in ["root.img", "data.img", "payload.tar"] {
            let drive = format!("file={},format=raw,if=virtio,cache=writeback", path(disk).display());
            qemu.args(["-drive", &drive]);
        }
        for (net, k) in [("net1", 1), ("net2", 2)] {
            let (here, there) = (path(net), self.peer.join(net));
            let netdev = format!(
                "dgram,id={net},local.type=unix,local.path={},remote.type=unix,remote.path={}",
                here.display(),
                there.display()
            );
            let mac = format!("52:54:00:77:0{k}:0{}", self.number + 1);
            qemu.args(["-netdev", &netdev, "-device", &format!("virtio-net-pci,netdev={net},mac={mac}")]);
        }
        let log = fs::File::create(path("qemu.log")).expect("a log");
        let mut qemu =
            qemu.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().expect("QEMU starts");
        let (end, ctl) = (Instant::now() + BOOT, path("ctl"));
        let stream = loop {
            match UnixStream::connect(&ctl) {
                Ok(stream) => break stream,
                Err(error) => {
                    let ended = qemu.try_wait().expect("QEMU's state");
                    assert!(
                        ended.is_none() && Instant::now() < end,
                        "QEMU: {error}, {ended:?}: {}",
                        self.said()
                    );
                    std::thread::sleep(Duration::from_millis(100)); // pace
                }
            }
        };
        let mut guest = Guest { machine: self, qemu, port: BufReader::new(stream), asked: 0 };
        guest.ready(BOOT);
        guest
    }

    fn said(&self) -> String {
        fs::read_to_string(self.dir.join("qemu.log")).unwrap_or_default()
    }
}

impl Guest {
    /// Waits for the shell of a boot.
    pub fn ready(&mut self, limit: Duration) {
        let line = self.line(limit);
        assert!(line.starts_with("ready "), "{}: {line}", self.machine.name);
    }

    fn line(&mut self, limit: Duration) -> String {
        self.port.get_ref().set_read_timeout(Some(limit)).expect("a deadline");
        let mut line = String::new();
        match self.port.read_line(&mut line) {
            Ok(length) if length > 0 => line,
            other => panic!("{} says nothing: {other:?} {}", self.machine.name, self.machine.said()),
        }
    }

    /// Runs a shell command; its output and status.
    pub fn ask(&mut self, command: &str, limit: Duration) -> Output {
        self.asked += 1;
        let id = self.asked.to_string();
        let line = format!("{id} {}\n", base64(command.as_bytes()));
        self.port.get_mut().write_all(line.as_bytes()).expect("the guest's port takes it");
        let answer = loop {
            let line = self.line(limit);
            if line.split(' ').next() == Some(&id) {
                break line;
            }
        };
        let mut words = answer.trim_end().split(' ').skip(1);
        let status = words.next().and_then(|word| word.parse().ok()).expect("a status");
        Output { status, text: unbase64(words.next().unwrap_or_default()) }
    }

    /// Runs a shell command that has to succeed.
    #[track_caller]
    pub fn sh(&mut self, command: &str) -> String {
        let output = self.ask(command, Duration::from_secs(180));
        assert_eq!(output.status, 0, "{}: {command}: {}", self.machine.name, output.text);
        output.text
    }

    /// Waits until a shell command succeeds.
    #[track_caller]
    pub fn until(&mut self, what: &str, command: &str, limit: Duration) {
        let end = Instant::now() + limit;
        loop {
            let output = self.ask(command, Duration::from_secs(60));
            if output.status == 0 {
                return;
            }
            if Instant::now() >= end {
                let state = self.ask("skc status; skc events | tail -n 20", Duration::from_secs(60)).text;
                panic!("{}: {what}: not within {limit:?}: {}\n{state}", self.machine.name, output.text);
            }
            std::thread::sleep(Duration::from_millis(300));
        }
    }

    /// The plug is pulled: what its kernel had not written is gone.
    pub fn power_cut(mut self) -> Machine {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
        let Machine { name, dir, image, peer, number } = &self.machine;
        Machine { name, dir: dir.clone(), image: image.clone(), peer: peer.clone(), number: *number }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn base64(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let word =
            chunk.iter().fold(0u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let digit = DIGITS[(word >> (18 - 6 * place) & 63) as usize];
            text.push(if place <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

fn unbase64(text: &str) -> String {
    let mut bytes = Vec::new();
    let (mut word, mut bits) = (0u32, 0);
    for digit in text.bytes().filter_map(|byte| DIGITS.iter().position(|digit| *digit == byte)) {
        word = word << 6 | digit as u32;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push((word >> bits & 255) as u8);
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
