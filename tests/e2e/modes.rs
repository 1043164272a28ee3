//! The modes `commit` and `async`: what a failover may lose and what not, changes under load, the tail.

use crate::harness::{Arena, arena, until};
use crate::scenario::{Cluster, SETTLE, Spec};
use skc::lab::forward::shape::Shape;
use skc::lab::{Kill, Link, Node, compare};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

/// A directory that answers early beside one that does not.
const FAST: Option<(&str, &str)> = Some(("/srv/fast", "consistency: async"));
/// Files that the records go to in turn.
const FILES: u64 = 3;
/// A record: its number and a newline.
const RECORD: usize = 64;
/// A sync of the file written last every so many records.
const SYNC_EVERY: u64 = 1000;
/// Never waits for a disk, so that something is in flight nearly always.
const NO_SYNC: u64 = u64::MAX;
/// Far enough that much is in flight at every moment.
const FAR_MS: f64 = 30.0;

fn record(n: u64) -> [u8; RECORD] {
    let mut record = [b' '; RECORD];
    record[RECORD - 1] = b'\n';
    for (place, digit) in record.iter_mut().zip(n.to_string().bytes()) {
        *place = digit;
    }
    record
}

fn number(record: &[u8]) -> Option<u64> {
    let line = std::str::from_utf8(record).ok()?;
    line.ends_with('\n').then(|| line.trim_end().parse().ok()).flatten()
}

/// A program that writes numbered records, one after the other, until a call fails or it is stopped.
struct Writer {
    /// So many were answered.
    answered: Arc<AtomicU64>,
    /// So many are behind a sync that was answered.
    synced: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Writer {
    /// Goes on with record `from` in `dir` as `node` sees it; a sync every `sync` records.
    fn start(lab: &Arena, node: Node, dir: &str, from: u64, sync: u64) -> Self {
        let dir = lab.mounted(node, dir).expect("the node runs");
        let open = |n| {
            let path = dir.join(format!("log-{n}"));
            File::options().write(true).create(true).truncate(false).open(path).expect("open a log")
        };
        let files: Vec<File> = (0..FILES).map(open).collect();
        let (answered, synced, stop): (Arc<AtomicU64>, Arc<AtomicU64>, Arc<AtomicBool>) =
            (Arc::new(from.into()), Arc::default(), Arc::default());
        let (count, durable, ends) = (answered.clone(), synced.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            for n in from.. {
                let file = &files[(n % FILES) as usize];
                if ends.load(Ordering::Acquire)
                    || file.write_all_at(&record(n), n / FILES * RECORD as u64).is_err()
                {
                    return;
                }
                count.store(n + 1, Ordering::Release);
                if n % sync == sync - 1 {
                    if file.sync_data().is_err() {
                        return;
                    }
                    durable.store(n + 1, Ordering::Release);
                }
            }
        });
        Self { answered, synced, stop, thread }
    }

    fn answered(&self) -> u64 {
        self.answered.load(Ordering::Acquire)
    }

    #[track_caller]
    fn progress(&self, more: u64) {
        let goal = self.answered() + more;
        until("records are written", SETTLE, || self.answered() >= goal);
    }

    /// Waits for its end: (answered, synced).
    fn ended(self) -> (u64, u64) {
        self.thread.join().expect("the writer does not panic");
        (self.answered.load(Ordering::Acquire), self.synced.load(Ordering::Acquire))
    }

    fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Release);
        self.ended().0
    }
}

/// How many records the directory holds; they must be the first ones, whole.
#[track_caller]
fn prefix(dir: &Path) -> u64 {
    let mut found = Vec::new();
    for n in 0..FILES {
        let bytes = fs::read(dir.join(format!("log-{n}"))).expect("read a log");
        assert_eq!(bytes.len() % RECORD, 0, "log-{n} ends with a whole record");
        found.extend(bytes.chunks(RECORD).map(|r| number(r).expect("a record")));
    }
    found.sort_unstable();
    for (n, at) in found.iter().zip(0..) {
        assert_eq!(*n, at, "a record is missing, and later ones are there");
    }
    found.len() as u64
}

/// Records in the first file: what can be told of a directory that changes.
fn first_log(dir: &Path) -> u64 {
    fs::metadata(dir.join("log-0")).expect("a log").len() / RECORD as u64
}

/// Every number of a record in any file below `path`; blocks in quarantine are sparse.
fn numbers(path: &Path, into: &mut Vec<u64>) {
    if path.is_dir() {
        for entry in fs::read_dir(path).expect("read a directory").flatten() {
            numbers(&entry.path(), into);
        }
    } else if path.is_file() {
        into.extend(fs::read(path).expect("read a file").chunks_exact(RECORD).filter_map(number));
    }
}

/// What of the records from `held` on was answered is in the node's quarantine, and its status says so.
#[track_caller]
fn tail_is_kept(cluster: &Cluster<'_>, node: Node, dir: &Path, held: u64, answered: u64) {
    let mut kept = Vec::new();
    numbers(&dir.join(".skc/quarantine"), &mut kept);
    for n in held..answered {
        assert!(kept.contains(&n), "record {n} of {held}..{answered} is in quarantine");
    }
    // The cut may fall into a sync that had everything on the other side.
    if held < answered {
        cluster.wait(node, &["SKC-R0601"]);
    }
}

fn spec(replication: &str) -> String {
    let text = Spec::LEDGER.text();
    text.replace("  services:", &format!("  replication: {{{replication}}}\n  services:"))
}

/// The directory's mode in the node's status.
fn mode(cluster: &Cluster<'_>, node: Node) -> String {
    let status = cluster.status(node);
    status["directories"][0]["consistency"].as_str().unwrap_or_default().to_owned()
}

/// Applies another mode and waits until the primary shows it; nothing else changes.
#[track_caller]
fn change(cluster: &Cluster<'_>, on: Node, primary: Node, replication: &str, shown: &str) {
    let epoch = cluster.status(primary)["epoch"].clone();
    let said = cluster.change_on(on, &spec(replication));
    assert!(said.contains("in place"), "{said}");
    until("the mode is in force", SETTLE, || mode(cluster, primary) == shown);
    assert_eq!(cluster.status(primary)["epoch"], epoch, "no change of role");
}

fn resyncs(cluster: &Cluster<'_>, node: Node) -> usize {
    cluster.events(node).iter().filter(|(code, _)| code == "SKC-V0014").count()
}

/// Commit through its life: taken up under load, a link that fails, a swap, a power cut, the return.
#[test]
fn commit_loses_nothing_that_was_synced_and_the_rest_is_a_prefix() {
    let Some(lab) = arena("commit") else { return };
    let (cluster, primary, standby) = Cluster::start(&lab, &Spec::LEDGER);
    lab.link(Some(Shape::new(FAR_MS, 0.0, None, 1).expect("a shape"))).expect("a far standby");
    let writer = Writer::start(&lab, primary, "/srv/ledger", 0, SYNC_EVERY);
    writer.progress(5);
    assert_eq!(mode(&cluster, primary), "strict");
    change(&cluster, standby, primary, "consistency: commit", "commit");
    writer.progress(2 * SYNC_EVERY);

    // The link that carries replication fails: the other one goes on with what was answered.
    let before = resyncs(&cluster, primary);
    lab.cut(Link::Net1, None, None).expect("the cut");
    writer.progress(3 * SYNC_EVERY);
    lab.heal(None, None, None).expect("the repair");
    assert_eq!(resyncs(&cluster, primary), before, "it was replayed");
    cluster.wait(primary, &["PRIM", "Ready", "vip"]);

    // What was written before `skc sync` is there when it returns.
    let before = writer.answered();
    cluster.does(primary, "sync", &[]);
    assert!(first_log(&cluster.backing(standby)) >= before / FILES, "{before} records were synced");
    cluster.refuses(standby, "sync", &[], "SKC-E7029");

    // An orderly change of roles loses nothing, synced or not.
    cluster.does(primary, "swap", &[]);
    let (answered, _) = writer.ended();
    cluster.wait(standby, &["PRIM", "Ready", "vip"]);
    cluster.wait(primary, &["SECOND", "Ready", "UpToDate"]);
    let held = prefix(&cluster.backing(standby));
    assert!((answered..=answered + 1).contains(&held), "{held} records after a swap, {answered} answered");

    // The new primary loses its power with clients and the writer at work.
    let (primary, standby) = (standby, primary);
    let load = cluster.load();
    let writer = Writer::start(&lab, primary, "/srv/ledger", held, SYNC_EVERY);
    cluster.progress(&load, 50);
    writer.progress(3 * SYNC_EVERY / 2);
    lab.kill(primary, Kill::Power).expect("the power cut");
    let (answered, synced) = writer.ended();
    cluster.wait(standby, &["ALONE", "Ready", "vip"]);
    let held = prefix(&cluster.backing(standby));
    eprintln!("commit: {answered} answered, {synced} synced, {held} held");
    assert!((synced..=answered + 1).contains(&held), "{synced} synced <= {held} <= {answered} answered");
    lab.link(None).expect("near again");
    cluster.power_on(primary);
    cluster.wait(primary, &["SECOND", "Ready", "UpToDate"]);
    tail_is_kept(&cluster, primary, &cluster.backing(primary), held, answered);
    cluster.progress(&load, 50);
    // Clients were answered behind an fdatasync: nothing of theirs is lost.
    assert_eq!(cluster.finish(load), standby);
}

/// A directory beside a strict one: bounded loss here, none there.
#[test]
fn async_loses_at_most_its_window_and_its_strict_neighbour_nothing() {
    const WINDOW: u64 = 64 << 10;
    let Some(lab) = arena("async") else { return };
    let fast = Node::PAIR.map(|node| lab.backing(node, "/srv/fast"));
    for dir in &fast {
        fs::create_dir_all(dir).expect("a directory");
    }
    let of = |node: Node| &fast[usize::from(node == Node::NodeB)];
    let cluster = Cluster::apply(
        &lab,
        &Spec { replication: "window: {bytes: 64KiB, age: 1s}", second: FAST, ..Spec::LEDGER },
    );
    let primary = cluster.settled();
    let standby = primary.peer().expect("a pair");
    lab.link(Some(Shape::new(FAR_MS, 0.0, None, 2).expect("a shape"))).expect("a far standby");
    let load = cluster.load();
    let writer = Writer::start(&lab, primary, "/srv/fast", 0, NO_SYNC);
    let status = cluster.status(primary);
    let modes: Vec<_> = (0..2).map(|n| status["directories"][n]["consistency"].clone()).collect();
    assert_eq!(modes, ["strict", "async"]);
    // The window is used, shown, and kept.
    let mut most = 0;
    until("the window fills", SETTLE, || {
        let window = cluster.status(primary)["window"].clone();
        let answered = window["answered_bytes"].as_u64().expect("shown");
        assert!(answered <= WINDOW && window["limit_bytes"] == WINDOW, "{window}");
        most = most.max(answered);
        most > WINDOW / 2 && window["oldest_ms"].is_u64()
    });
    cluster.progress(&load, 20);

    // In order nothing is lost: what was answered is drained first.
    cluster.does(standby, "swap", &[]);
    let (answered, _) = writer.ended();
    let (primary, standby) = (standby, primary);
    cluster.wait(primary, &["PRIM", "Ready", "vip"]);
    let held = prefix(of(primary));
    assert!((answered..=answered + 1).contains(&held), "{held} records after a swap, {answered} answered");

    let writer = Writer::start(&lab, primary, "/srv/fast", held, NO_SYNC);
    writer.progress(2 * SYNC_EVERY);
    cluster.wait(standby, &["SECOND", "Ready", "UpToDate"]);
    cluster.progress(&load, 20);
    lab.kill(primary, Kill::Power).expect("the power cut");
    let (answered, _) = writer.ended();
    cluster.wait(standby, &["ALONE", "Ready", "vip"]);
    let held = prefix(of(standby));
    eprintln!("async: {answered} answered, {held} held");
    assert!(held <= answered + 1 && (answered - held.min(answered)) * RECORD as u64 <= WINDOW);
    lab.link(None).expect("near again");
    cluster.power_on(primary);
    cluster.wait(primary, &["SECOND", "Ready", "UpToDate"]);
    tail_is_kept(&cluster, primary, of(primary), held, answered);

    // Strict from here on: what is answered is there.
    let text = Spec { replication: "window: {bytes: 64KiB, age: 1s}", second: FAST, ..Spec::LEDGER }.text();
    let writer = Writer::start(&lab, standby, "/srv/fast", held, NO_SYNC);
    writer.progress(1000);
    cluster.change_on(standby, &text.replace(", consistency: async", ""));
    let strict = || cluster.status(standby)["directories"][1]["consistency"] == "strict";
    until("the mode is in force", SETTLE, strict);
    for _ in 0..20 {
        writer.progress(10);
        let answered = writer.answered();
        assert!(
            first_log(of(primary)) >= answered / FILES,
            "record {answered} was answered before the standby had it"
        );
    }
    writer.stop();
    cluster.progress(&load, 20);
    assert_eq!(cluster.finish(load), standby);
    until("both trees are equal", SETTLE, || {
        compare::trees(&fast[0], &fast[1]).is_ok_and(|found| found.equal())
    });
}
