//! Clients that go on while the standby dies, hangs, is cut off and comes back, and while roles change: half of them in
//! directories of their own, where every call must do what it does on a plain directory; half of them in one
//! directory, fighting for a few names, where what they are told must be possible in some serial order.

use crate::act::Actor;
use crate::call;
use crate::journal::{Journal, Notes, PROCESSES};
use crate::linear::{Call, Event, NAMES, outcomes};
use crate::snapshot::{self, Times, differences};
use crate::world::{DIRECTORY, Rng, SETTLE, Want, World};
use skc::lab::process::{poll, wait_child};
use skc::lab::wait::Part;
use skc::lab::{Link, Node};
use skc::sys::file;
use skc::sys::namespace::{self, Signal};
use std::ffi::CString;
use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What a node answers that is not the writer, or not any more: nothing was done.
const REFUSED: [i32; 4] = [libc::EROFS, libc::ESTALE, libc::ENOTCONN, libc::ECONNABORTED];
/// Longest time that a client is refused: a role change with everything around it.
const PATIENCE: Duration = Duration::from_secs(60);
/// FUSE_SUPER_MAGIC.
const FUSE: i64 = 0x6573_5546;
/// How often one that is refused asks again.
const PACE: Duration = Duration::from_millis(2);
/// The directory that is fought for.
const SHARED: &str = "shared";
/// Environment of a client: its number, the seed, where its notes go.
pub const ENVIRONMENT: [&str; 3] = ["SKC_FUZZ_CLIENT", "SKC_FUZZ_CLIENT_SEED", "SKC_FUZZ_NOTES"];
/// Time of one fault.
const FAULT: Duration = Duration::from_secs(3);

/// Where the mirror is writable at present, as clients reach it: a file with a number that grows and a path.
struct Where(PathBuf);

impl Where {
    fn tell(&self, number: u64, path: Option<&Path>) {
        let new = self.0.with_extension("new");
        let path = path.map_or_else(String::new, |path| path.display().to_string());
        fs::write(&new, format!("{number} {path}")).expect("write where the mirror is");
        fs::rename(new, &self.0).expect("tell where the mirror is");
    }

    /// `None`: it is over.
    fn read(&self) -> Option<(u64, PathBuf)> {
        let text = fs::read_to_string(&self.0).ok()?;
        let (number, path) = text.split_once(' ')?;
        (!path.is_empty()).then(|| (number.parse().expect("a number"), PathBuf::from(path)))
    }
}

fn where_of(notes: &Path) -> Where {
    Where(notes.join("where"))
}

/// The life of a client.
pub fn live(client: usize, seed: u64, notes: &Path) -> io::Result<()> {
    if client.is_multiple_of(2) { alone(client, seed, notes) } else { fight(client, seed, notes) }
}

/// In a directory of its own.
fn alone(client: usize, seed: u64, notes: &Path) -> io::Result<()> {
    let whereabouts = where_of(notes);
    let Some((mut number, path)) = whereabouts.read() else { return Ok(()) };
    let mut journal = Notes::open(notes, client)?;
    let mut actor = Actor::single(&path, seed, client as u64);
    for n in 1.. {
        let mut op = actor.next();
        journal.starts(n)?;
        let end = Instant::now() + PATIENCE;
        let outcome = loop {
            let Some((now, path)) = whereabouts.read() else { return Ok(()) };
            if now != number {
                number = now;
                actor.moves(&path);
                journal.moved(n)?;
                op = actor.next();
            }
            match actor.attempt(&op, &REFUSED) {
                Ok(outcome) => break outcome,
                Err(errno) if Instant::now() >= end => {
                    return Err(io::Error::other(format!("refused for {PATIENCE:?}, errno {errno}: {op:?}")));
                }
                Err(_) => std::thread::sleep(PACE), // pace
            }
        };
        journal.acknowledged(n, outcome, op.syncs())?;
    }
    Ok(())
}

fn some_call(rng: &mut Rng) -> Call {
    let a = rng.below(NAMES as u64) as usize;
    let b = (a + 1 + rng.below(NAMES as u64 - 1) as usize) % NAMES;
    match rng.below(12) {
        0..=3 => Call::Create(a),
        4..=6 => Call::Unlink(a),
        7 => Call::Link(a, b),
        8 | 9 => Call::Rename(a, b),
        10 => Call::RenameNoReplace(a, b),
        _ => Call::Exchange(a, b),
    }
}

fn make(call: Call, dir: &Path) -> i32 {
    let path =
        |name: usize| CString::new(dir.join(format!("n{name}")).as_os_str().as_bytes()).expect("no NUL");
    let result = match call {
        Call::Create(a) => {
            call::open(&path(a), libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY, 0o644).map(drop)
        }
        Call::Unlink(a) => call::unlink(&path(a)),
        Call::Link(a, b) => call::link(&path(a), &path(b)),
        Call::Rename(a, b) => call::rename(&path(a), &path(b), 0),
        Call::RenameNoReplace(a, b) => call::rename(&path(a), &path(b), libc::RENAME_NOREPLACE),
        Call::Exchange(a, b) => call::rename(&path(a), &path(b), libc::RENAME_EXCHANGE),
    };
    result.err().unwrap_or(0)
}

/// The directory of all, held, and a path to what is held; none where no mirror is mounted. Whoever was slow may be
/// at a node that has lost its power or its agent since: there is nothing at the path then, or the plain directory.
fn on_the_mirror(path: &Path) -> Option<(fs::File, PathBuf)> {
    let dir = fs::File::options().read(true).custom_flags(libc::O_DIRECTORY).open(path.join(SHARED)).ok()?;
    let held = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
    (file::stat_fs(dir.as_fd()).ok()?.kind == FUSE).then_some((dir, held))
}

/// In the directory of all; every call is noted after its answer.
fn fight(client: usize, seed: u64, notes: &Path) -> io::Result<()> {
    let whereabouts = where_of(notes);
    let mut rng = Rng::of(seed, client as u64);
    let mut journal = fs::File::options().create_new(true).append(true).open(fought(notes, client))?;
    loop {
        let call = some_call(&mut rng);
        let end = Instant::now() + PATIENCE;
        let mut refused = 0;
        let (began, result) = loop {
            let Some((_, path)) = whereabouts.read() else { return Ok(()) };
            // What was refused did nothing: it counts from here on.
            let began = call::clock();
            let result = on_the_mirror(&path).map_or(libc::ENOTCONN, |dir| make(call, &dir.1));
            if !REFUSED.contains(&result) {
                break (began, result);
            }
            if Instant::now() >= end {
                return Err(io::Error::other(format!("refused for {PATIENCE:?}, errno {result}: {call:?}")));
            }
            refused += 1;
            std::thread::sleep(PACE); // pace
        };
        let (kind, a, b) = match call {
            Call::Create(a) => (0, a, 0),
            Call::Unlink(a) => (1, a, 0),
            Call::Link(a, b) => (2, a, b),
            Call::Rename(a, b) => (3, a, b),
            Call::RenameNoReplace(a, b) => (4, a, b),
            Call::Exchange(a, b) => (5, a, b),
        };
        let line = format!("{kind} {a} {b} {began} {} {result} {refused}\n", call::clock());
        journal.write_all(line.as_bytes())?;
    }
}

fn fought(notes: &Path, client: usize) -> PathBuf {
    notes.join(format!("c{client}.calls"))
}

fn events(notes: &Path, client: usize) -> Vec<Event> {
    let text = fs::read_to_string(fought(notes, client)).expect("read the calls");
    let event = |line: &str| {
        let numbers: Vec<u64> = line.split(' ').map(|word| word.parse().expect("a number")).collect();
        let [kind, a, b, began, ended, result, refused] = numbers[..] else { panic!("{line:?}") };
        let (a, b) = (a as usize, b as usize);
        let call = match kind {
            0 => Call::Create(a),
            1 => Call::Unlink(a),
            2 => Call::Link(a, b),
            3 => Call::Rename(a, b),
            4 => Call::RenameNoReplace(a, b),
            _ => Call::Exchange(a, b),
        };
        Event { call, began, ended, result: result as i32, refused: refused as u32 }
    };
    text.lines().map(event).collect()
}

/// What is done to the pair.
#[derive(Debug, Clone, Copy)]
enum Fault {
    StandbyLosesPower,
    StandbyHangs,
    StandbysAgentDies,
    PrimaryHangs,
    StandbyIsCutOff,
    OneNetworkIsCut,
    Swap,
}

const FAULTS: [Fault; 7] = [
    Fault::Swap,
    Fault::StandbyLosesPower,
    Fault::StandbyIsCutOff,
    Fault::StandbyHangs,
    Fault::PrimaryHangs,
    Fault::StandbysAgentDies,
    Fault::OneNetworkIsCut,
];

struct Fuzz<'a> {
    world: &'a World,
    whereabouts: Where,
    number: u64,
    rng: Rng,
}

impl Fuzz<'_> {
    /// Tells the clients where to go.
    fn at(&mut self, primary: Node) {
        self.number += 1;
        let path = self.world.lab.mounted(primary, DIRECTORY).expect("the primary is up");
        self.whereabouts.tell(self.number, Some(&path));
    }

    fn pause(&mut self, longest: Duration) {
        let end = Instant::now() + Duration::from_millis(self.rng.below(longest.as_millis() as u64));
        poll(longest, || (Instant::now() >= end).then_some(()));
    }

    /// One fault, and everything well again; returns the primary.
    fn fault(&mut self, fault: Fault, primary: Node) -> Node {
        let (world, standby) = (self.world, primary.peer().expect("a pair"));
        match fault {
            Fault::Swap => match world.verb(primary, "swap") {
                Ok(_) => self.at(standby),
                // A session that is lost just then refuses it, and may have given the role away all the same.
                Err(error) => {
                    eprintln!("{} not swapped: {error}", call::clock());
                    let settled = world.settled();
                    self.at(settled);
                    return settled;
                }
            },
            Fault::StandbyLosesPower => {
                world.power_cut(standby);
                self.pause(FAULT);
                world.power_on(standby);
            }
            Fault::StandbyHangs => {
                world.lab.stall(standby, Part::Agent).expect("stop it");
                self.pause(FAULT);
                world.lab.go(standby, Part::Agent).expect("let it go on");
            }
            Fault::PrimaryHangs => {
                world.lab.stall(primary, Part::Agent).expect("stop it");
                // Shorter than the silence that counts as death.
                self.pause(Duration::from_millis(400));
                world.lab.go(primary, Part::Agent).expect("let it go on");
            }
            Fault::StandbysAgentDies => world.lab.kill_part(standby, Part::Agent).expect("kill -9"),
            Fault::StandbyIsCutOff => {
                // From everybody: were only the nodes cut from each other, both would go on at level L2.
                world.lab.cut(Link::All, Some(standby), None).expect("cut");
                world.lab.cut(Link::All, None, Some(standby)).expect("cut");
                self.pause(FAULT);
                world.lab.heal(None, None, None).expect("heal");
            }
            Fault::OneNetworkIsCut => {
                let net = if self.rng.one_in(2) { Link::Net1 } else { Link::Net2 };
                world.lab.cut(net, None, None).expect("cut");
                self.pause(FAULT);
                world.lab.heal(None, None, None).expect("heal");
            }
        }
        let settled = world.settled();
        let expected = if matches!(fault, Fault::Swap) { standby } else { primary };
        assert_eq!(settled, expected, "the primary after {fault:?}");
        settled
    }
}

fn start(client: usize, seed: u64, notes: &Path) -> Child {
    let mut command = Command::new(std::env::current_exe().expect("own path"));
    command.args(["--exact", "process_of_a_round", "--nocapture"]);
    let values = [client.to_string(), seed.to_string(), notes.display().to_string()];
    command.envs(ENVIRONMENT.into_iter().zip(values)).stdin(Stdio::null()).stdout(Stdio::null());
    command.spawn().expect("a client starts")
}

/// Both trees are equal while nobody writes. A difference that a later resync would mend is seen here, next to what
/// made it.
fn at_rest(world: &World, clients: &[Child]) {
    let all = |signal: Signal| {
        for client in clients {
            namespace::signal(client.id(), signal).expect("signal a client");
        }
    };
    all(Signal::Stop);
    world.trees_equal();
    all(Signal::Continue);
}

/// Plays for `time`; panics with the seed.
pub fn run(seed: u64, time: Duration) {
    let want = Want {
        name: format!("fuzz-{seed}"),
        consistency: "strict",
        timeout_ms: 1500,
        // The judge does again what took the clients all that time.
        deadline: 3 * time + Duration::from_secs(300),
    };
    let (world, mut primary) = World::start(&want);
    let notes = world.lab.dir().join("notes");
    fs::create_dir_all(&notes).expect("create the notes");
    let mut fuzz =
        Fuzz { world: &world, whereabouts: where_of(&notes), number: 0, rng: Rng::of(seed, 1 << 32) };
    let mount = world.lab.mounted(primary, DIRECTORY).expect("the primary is up");
    fs::create_dir(mount.join(SHARED)).expect("make the directory of all");
    fuzz.at(primary);
    let mut children: Vec<Child> = (0..PROCESSES).map(|client| start(client, seed, &notes)).collect();
    let end = Instant::now() + time;
    let mut faults = 0;
    while Instant::now() < end {
        fuzz.pause(Duration::from_millis(800));
        let kind = if faults < FAULTS.len() { faults } else { fuzz.rng.below(FAULTS.len() as u64) as usize };
        eprintln!("{} {:?}", call::clock(), FAULTS[kind]);
        primary = fuzz.fault(FAULTS[kind], primary);
        faults += 1;
        for child in &mut children {
            let ended = child.try_wait().expect("look at a client");
            assert!(ended.is_none(), "seed {seed}: a client ended after {:?}: {ended:?}", FAULTS[kind]);
        }
        at_rest(&world, &children);
    }
    fuzz.whereabouts.tell(u64::MAX, None);
    for child in &mut children {
        let ended = wait_child(child, "a client", SETTLE).expect("it ends");
        assert!(ended.is_some_and(|status| status.success()), "seed {seed}: a client ends well");
    }
    world.trees_equal();
    let calls = judge(&world, seed, &notes, primary);
    eprintln!("seed {seed}: {faults} faults, {} calls alone, {} for the names of all", calls.0, calls.1);
}

fn judge(world: &World, seed: u64, notes: &Path, primary: Node) -> (usize, usize) {
    let plain = world.lab.dir().join("plain");
    fs::create_dir_all(&plain).expect("create a plain directory");
    let tree = world.backing(primary);
    let (mut calls, mut fights) = (0, Vec::new());
    for client in 0..PROCESSES {
        if !client.is_multiple_of(2) {
            fights.push(events(notes, client));
            continue;
        }
        let journal = Journal::read(notes, client).expect("read a journal");
        let mut actor = Actor::single(&plain, seed, client as u64);
        let mut done = Vec::new();
        for (n, returned) in journal.returned.iter().enumerate() {
            if journal.moved.contains(&(n as u64 + 1)) {
                actor.moves(&plain);
            }
            let op = actor.next();
            let outcome = actor.perform(&op);
            done.push(format!("{} {op:?}: {outcome}", n + 1));
            if outcome != *returned {
                let list = actor.root().with_extension("operations");
                fs::write(list, done.join("\n")).expect("list the operations");
            }
            assert_eq!(outcome, *returned, "seed {seed}: operation {} of client {client}: {op:?}", n + 1);
        }
        calls += journal.returned.len();
        let have = snapshot::read(&tree.join(format!("p{client}"))).expect("read a tree");
        let want = snapshot::read(actor.root()).expect("read a plain tree");
        let found = differences(&have, &want, Times::Set);
        assert!(found.is_empty(), "seed {seed}: client {client}:\n{}", found.join("\n"));
    }
    let ends = outcomes(&fights).unwrap_or_else(|error| panic!("seed {seed}: {error:?}"));
    let inode =
        |name: usize| fs::symlink_metadata(tree.join(SHARED).join(format!("n{name}"))).map(|meta| meta.ino());
    let have: Vec<Option<u64>> = (0..NAMES).map(|name| inode(name).ok()).collect();
    let same = |a: usize, b: usize, names: &[u32; NAMES]| (names[a] == names[b]) == (have[a] == have[b]);
    let fits = |names: &[u32; NAMES]| {
        (0..NAMES).all(|a| (names[a] != 0) == have[a].is_some() && (0..NAMES).all(|b| same(a, b, names)))
    };
    assert!(ends.iter().any(fits), "seed {seed}: the names at the end are {have:?}, not one of {ends:?}");
    (calls, fights.iter().map(Vec::len).sum())
}
