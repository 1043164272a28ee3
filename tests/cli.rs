//! The command line as scripts see it: exit codes, what is on standard output, readers who go away.
//!
//! What needs an agent runs in a lab (root); the rest runs anywhere.

#[path = "e2e/harness.rs"]
#[allow(dead_code, reason = "shared with the scenarios, which need more of it")]
mod harness;
#[path = "skip/mod.rs"]
mod skip;

use harness::{Arena, arena, until};
use skc::lab::wait::{Condition, Part};
use skc::lab::{Kill, Node, Orphan};
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::Duration;

const STEP: Duration = Duration::from_secs(30);
/// Says that no agent is asked, whatever runs on this machine.
const NO_AGENT: &str = "/nonexistent/skc.sock";

/// What a run of `skc` left.
struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

fn skc(args: &[&str]) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_skc"));
    let output =
        command.args(args).env("SKC_SOCKET", NO_AGENT).stdin(Stdio::null()).output().expect("it runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

/// Runs `command` for a reader who takes `bytes` and goes away; (exit code, what it complained).
fn read_a_bit(
    mut start: impl FnMut(&mut Command) -> std::process::Child,
    command: &mut Command,
    bytes: usize,
) -> (Option<i32>, String) {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = start(command);
    let mut pipe = child.stdout.take().expect("a pipe");
    pipe.read_exact(&mut vec![0; bytes]).expect("it prints something");
    drop(pipe);
    until("it ends with its reader", STEP, || child.try_wait().expect("it can be waited for").is_some());
    let mut err = String::new();
    child.stderr.take().expect("a pipe").read_to_string(&mut err).expect("text");
    (child.wait().expect("it ended").code(), err)
}

#[test]
fn a_reader_who_goes_away_is_no_error() {
    for args in [&["explain"] as &[&str], &["schema"], &["explain", "-o", "json"], &["explain", "-o", "yaml"]]
    {
        let mut command = Command::new(env!("CARGO_BIN_EXE_skc"));
        let ended = read_a_bit(|c| c.spawn().expect("it starts"), command.args(args), 1);
        assert_eq!(ended, (Some(0), String::new()), "{args:?}");
    }
}

#[test]
fn nobody_listening_at_all_is_no_panic() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    for args in [&["explain"] as &[&str], &["status"], &["explain", "nonsense"]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_skc"));
        command.args(args).env("SKC_SOCKET", NO_AGENT).stdin(Stdio::null());
        command.stdout(writer.try_clone().expect("a copy")).stderr(writer.try_clone().expect("a copy"));
        let code = command.status().expect("it runs").code();
        assert_eq!(code, Some(if args == ["explain"] { 0 } else { 2 }), "{args:?}");
    }
}

#[test]
fn without_an_agent_every_verb_that_asks_one_says_so() {
    for args in [&["status"] as &[&str], &["events"], &["get"], &["start", "x", "-y"], &["delete", "x", "-y"]]
    {
        let ran = skc(args);
        assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""), "{args:?}");
        assert!(ran.err.starts_with("error[SKC-E7002]: "), "{args:?}: {}", ran.err);
        assert!(ran.err.contains("skc explain SKC-E7002"), "{args:?}: {}", ran.err);
    }
}

#[test]
fn a_demo_whose_application_is_missing_says_what_to_install_and_starts_nothing() {
    for (app, missing) in
        [("sqlite", "python3 with its sqlite3 module: install"), ("postgres", "install PostgreSQL")]
    {
        let mut command = Command::new(env!("CARGO_BIN_EXE_skc"));
        command.args(["demo", "--app", app, "--name", "never-made"]).env("PATH", "/nonexistent");
        let output = command.stdin(Stdio::null()).output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{app}: {said}");
        assert!(
            said.starts_with("error[SKC-E7040]: this machine lacks ") && said.contains(missing),
            "{said}"
        );
    }
}

#[test]
fn an_unconfirmed_operation_and_a_missing_lab_have_their_codes() {
    for args in [&["delete", "shop"] as &[&str], &["stop", "shop"], &["promote", "shop", "--force"]] {
        let ran = skc(args);
        assert_eq!(ran.code, Some(2), "{args:?}");
        assert!(ran.err.contains("error[SKC-E7031]: ") && ran.err.contains("--yes"), "{args:?}: {}", ran.err);
    }
    let ran = skc(&["lab", "status", "--name", "never-made"]);
    assert_eq!(ran.code, Some(2));
    assert!(ran.err.starts_with("error[SKC-E7041]: "), "{}", ran.err);
    let ran = skc(&["passthrough", "--foreground", "/nonexistent"]);
    assert_eq!(ran.code, Some(2));
    assert!(ran.err.starts_with("error[SKC-E7044]: "), "{}", ran.err);
}

#[test]
fn a_pair_is_made_with_answers_for_scripts() {
    let home = tempfile::tempdir().expect("a directory");
    let state = home.path().join("state").display().to_string();
    let json = |args: &[&str]| {
        let ran = skc(&[args, &["-o", "json"]].concat());
        assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{args:?}");
        serde_json::from_str::<serde_json::Value>(&ran.out).expect("JSON")
    };
    let made = json(&["init", "--state", &state, "--name", "node-a", "--address", "192.0.2.1"]);
    assert_eq!((&made["node"], &made["state"]), (&"node-a".into(), &state.as_str().into()), "{made}");
    let token = json(&["token", "--state", &state]);
    assert!(
        token["token"].as_str().is_some_and(|t| !t.is_empty()) && token["expires_in_s"].as_u64() > Some(0)
    );
    let again = skc(&["init", "--state", &state, "--name", "node-a", "--address", "192.0.2.1"]);
    assert_eq!(again.code, Some(2));
    assert!(again.err.starts_with("error[SKC-E2002]: "), "{}", again.err);
    let ran = skc(&["join", "no-token", "--state", &state, "--name", "node-b", "--address", "192.0.2.2"]);
    assert!(ran.code == Some(2) && ran.err.starts_with("error[SKC-E2010]: "), "{}", ran.err);
    let plain = skc(&["lab", "--name", "never-made", "path", "node-a", "backing", "/srv/x"]).out;
    let path = json(&["lab", "--name", "never-made", "path", "node-a", "backing", "/srv/x"]);
    assert_eq!(path["path"].as_str(), Some(plain.trim()));
    assert_eq!(skc(&["lab", "status", "-o", "nonsense"]).code, Some(2));
}

/// A lab whose pair runs.
fn pair(name: &str) -> Option<Arena> {
    let arena = arena(name)?;
    for node in Node::PAIR {
        std::fs::create_dir_all(arena.backing(node, "/srv/data")).expect("the directory");
    }
    arena.start_pair().expect("the agents start");
    Some(arena)
}

#[test]
fn readers_of_an_agents_answers_may_go_away() {
    let Some(arena) = pair("cli-pipe") else { return };
    for args in [
        &["events", "-f"] as &[&str],
        &["events", "-f", "-o", "yaml"],
        &["events", "-o", "json"],
        &["status", "-w"],
        &["status", "-w", "-o", "json"],
        &["get", "-o", "json"],
    ] {
        let argv: Vec<&str> = std::iter::once("skc").chain(args.iter().copied()).collect();
        let mut command = arena.command(Node::NodeA, &argv);
        let ended =
            read_a_bit(|c| arena.spawn(Node::NodeA, c, Orphan::LivesOn).expect("it starts"), &mut command, 1);
        assert_eq!(ended, (Some(0), String::new()), "{args:?}");
    }
}

fn skc_in(arena: &Arena, node: Node, args: &[&str]) -> Ran {
    let argv: Vec<&str> = std::iter::once("skc").chain(args.iter().copied()).collect();
    let output = arena.exec(node, &argv, STEP).expect("it runs");
    Ran { code: output.status.code(), out: output.stdout, err: output.stderr }
}

/// A spec without services: two directories of the pair, kept equal.
fn spec(arena: &Arena, name: &str, bandwidth: &str) -> String {
    let text = format!(
        "apiVersion: skc.dev/v1\nkind: ClusterSpec\nmetadata: {{name: {name}}}\nspec:\n  nodes:\n    \
         - {{name: node-a, addresses: [10.77.1.1, 10.77.2.1]}}\n    \
         - {{name: node-b, addresses: [10.77.1.2, 10.77.2.2]}}\n  directories: [{{path: /srv/{name}}}]\n  \
         replication: {{resyncBandwidth: {bandwidth}}}\n  arbitration: {{ping: [10.77.1.254]}}\n"
    );
    for node in Node::PAIR {
        std::fs::create_dir_all(arena.backing(node, &format!("/srv/{name}"))).expect("the directory");
    }
    let path = arena.dir().join(format!("{name}.yaml"));
    std::fs::write(&path, text).expect("the spec");
    path.display().to_string()
}

fn clusters(arena: &Arena, node: Node) -> Vec<String> {
    let ran = skc_in(arena, node, &["get", "-o", "json"]);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let all: Vec<serde_json::Value> = serde_json::from_str(&ran.out).expect("JSON");
    all.iter().map(|c| c["name"].as_str().expect("a name").to_owned()).collect()
}

#[test]
fn specs_are_compared_applied_waited_for_and_pruned() {
    let Some(arena) = pair("cli-apply") else { return };
    let run = |args: &[&str]| skc_in(&arena, Node::NodeA, args);
    let shop = spec(&arena, "shop", "200MiB/s");
    // Nothing is there: everything is a change, and a dry run changes nothing.
    for args in [&["diff", "-f", &shop] as &[&str], &["apply", "--dry-run", "-f", &shop]] {
        let ran = run(args);
        assert_eq!(ran.code, Some(1), "{args:?}: {}", ran.err);
        assert!(ran.out.contains("shop"), "{args:?}: {}", ran.out);
        assert!(clusters(&arena, Node::NodeA).is_empty());
    }
    let ran = run(&["apply", "-f", &shop, "--wait", "--timeout", "25s", "-o", "json"]);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let applied: serde_json::Value = serde_json::from_str(&ran.out).expect("JSON");
    assert_eq!((&applied[0]["result"], &applied[0]["revision"]), (&"created".into(), &1.into()));
    let both = Node::PAIR.map(|node| arena.cluster(node, "shop").expect("the status"));
    assert!(both.iter().all(|c| c["ready"] == "Ready" && c["role"] != "ALONE"), "{both:?}");
    // The same again is no change.
    assert_eq!(run(&["diff", "-f", &shop]).code, Some(0));
    assert_eq!(run(&["apply", "--dry-run", "-f", &shop]).code, Some(0));
    // Errors are 2, and nothing is in force of what was refused.
    for args in [
        &["diff", "-f", "/nonexistent.yaml"] as &[&str],
        &["apply", "-f", "/dev/null"],
        &["apply", "-f", &shop, "--check-index", "99"],
        &["status", "nonsense"],
        &["start", "nonsense"],
    ] {
        let ran = run(args);
        assert_eq!(ran.code, Some(2), "{args:?}: {}{}", ran.out, ran.err);
        assert!(ran.err.starts_with("error[SKC-E"), "{args:?}: {}", ran.err);
    }
    let changed = spec(&arena, "shop", "300MiB/s");
    assert_eq!(run(&["diff", "-f", &changed]).code, Some(1));
    assert_eq!(run(&["apply", "-f", &changed, "--check-index", "1"]).code, Some(0));
    assert_eq!(run(&["apply", "-f", &changed, "--check-index", "1"]).code, Some(2), "it is at 2 now");
    // Several files, and standard input.
    let files = spec(&arena, "files", "200MiB/s");
    assert_eq!(run(&["diff", "-f", &shop, "-f", &files]).code, Some(1));
    let piped = arena.exec(Node::NodeA, &["sh", "-c", &format!("skc apply -f - --wait < {files}")], STEP);
    let piped = piped.expect("it runs");
    assert!(piped.status.success(), "{}", piped.stderr);
    assert_eq!(clusters(&arena, Node::NodeA), ["files", "shop"]);
    // Surplus clusters go only when asked for, confirmed, and stopped.
    let prune = ["apply", "-f", &shop, "--prune"];
    let ran = run(&prune);
    assert_eq!(ran.code, Some(2));
    assert!(ran.err.contains("removes files") && ran.err.contains("error[SKC-E7031]"), "{}", ran.err);
    let ran = run(&[&prune[..], &["--dry-run"]].concat());
    assert_eq!(ran.code, Some(1));
    assert!(ran.out.contains("files (pruned)"), "{}", ran.out);
    let ran = run(&[&prune[..], &["--yes"]].concat());
    assert_eq!(ran.code, Some(2), "it runs");
    assert!(
        ran.err.contains("SKC-E7022") && ran.out.contains("files (not pruned)"),
        "{}{}",
        ran.err,
        ran.out
    );
    assert_eq!(clusters(&arena, Node::NodeA), ["files", "shop"]);
    for node in Node::PAIR {
        let ran = skc_in(&arena, node, &["stop", "files", "--yes"]);
        assert_eq!(ran.code, Some(0), "{}", ran.err);
    }
    let ran = run(&["apply", "-f", &files, "--wait", "--timeout", "5s"]);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(ran.err.contains("stopped by the operator"), "{}", ran.err);
    let ran = run(&[&prune[..], &["--yes"]].concat());
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert_eq!(clusters(&arena, Node::NodeA), ["shop"]);
    until("the peer removes it, too", STEP, || clusters(&arena, Node::NodeB) == ["shop"]);
    // A wait that cannot end says what it waited for.
    arena.kill(Node::NodeB, Kill::Power).expect("a power cut");
    until("the cut is noticed", STEP, || {
        arena.cluster(Node::NodeA, "shop").is_ok_and(|c| c["peer"]["connected"] == false)
    });
    let late = spec(&arena, "shop", "200MiB/s");
    let ran = run(&["apply", "-f", &late, "--wait", "--timeout", "1s"]);
    assert_eq!(ran.code, Some(2));
    assert!(ran.err.contains("error[SKC-E7033]") && ran.err.contains("node-b"), "{}", ran.err);
}

fn events(arena: &Arena, node: Node, last: &str, more: &[&str]) -> Vec<serde_json::Value> {
    let ran = skc_in(arena, node, &[&["events", "-o", "json", "-n", last], more].concat());
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    ran.out.lines().map(|line| serde_json::from_str(line).expect("one object a line")).collect()
}

#[test]
fn what_happened_is_still_told_after_the_agent_started_again() {
    let Some(arena) = pair("cli-events") else { return };
    let shop = spec(&arena, "shop", "200MiB/s");
    let ran = skc_in(&arena, Node::NodeA, &["apply", "-f", &shop, "--wait", "--timeout", "25s"]);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let is = |node: Node, role: &str| arena.cluster(node, "shop").is_ok_and(|c| c["role"] == role);
    let dead = if is(Node::NodeA, "PRIM") { Node::NodeA } else { Node::NodeB };
    let survivor = dead.peer().expect("a pair");
    arena.kill(dead, Kill::Power).expect("a power cut");
    until("the survivor serves", STEP, || is(survivor, "ALONE"));
    let before = events(&arena, survivor, "1000", &[]);
    let id = |e: &serde_json::Value| e["failover_id"].as_str().map(str::to_owned);
    let failover = before.iter().find_map(id).expect("an event of the failover");
    let of_it = events(&arena, survivor, "1000", &["--failover", &failover]);
    assert!(!of_it.is_empty() && of_it.len() < before.len(), "{} of {}", of_it.len(), before.len());
    assert!(of_it.iter().all(|e| id(e).as_ref() == Some(&failover)), "{of_it:?}");
    assert!(events(&arena, survivor, "1000", &["--failover", "f0"]).is_empty());
    let lines = skc_in(&arena, survivor, &["events", "--failover", &failover]).out;
    assert_eq!(lines.matches(&format!("[{failover}]")).count(), of_it.len(), "{lines}");
    // All of it ends and starts again.
    arena.kill_part(survivor, Part::All).expect("the agent dies");
    arena.start_agent(survivor).expect("it starts again");
    arena.wait(survivor, None, &[Condition::Agent], STEP).expect("it answers");
    let after = events(&arena, survivor, "1000", &[]);
    let all: Vec<_> = after.iter().map(|e| (e["time"].clone(), e["text"].clone())).collect();
    // The log may begin after the very first event of a life.
    for event in before.iter().filter(|event| event["kind"] != "AgentStarted") {
        let times = all.iter().filter(|one| **one == (event["time"].clone(), event["text"].clone())).count();
        assert_eq!(times, 1, "{event}");
    }
    assert_eq!(events(&arena, survivor, "1000", &["--failover", &failover]), of_it);
    assert_eq!(events(&arena, survivor, "3", &[]).len(), 3);
    // YAML is YAML: a stream of documents.
    let yaml = skc_in(&arena, survivor, &["events", "-n", "2", "-o", "yaml"]).out;
    let documents: Vec<_> = yaml.split("---\n").filter(|d| !d.is_empty()).collect();
    assert_eq!(documents.len(), 2, "{yaml}");
    for document in documents {
        assert!(document.lines().any(|line| line.starts_with("text: ")), "{document}");
    }
}

#[test]
fn a_machine_is_checked_and_what_is_missing_has_its_code() {
    let Some(arena) = pair("cli-check") else { return };
    let check = |args: &[&str]| {
        let ran = skc_in(&arena, Node::NodeA, &[&["check", "-o", "json"], args].concat());
        let found: Vec<serde_json::Value> = serde_json::from_str(&ran.out).expect("JSON");
        let bad: Vec<_> = found.iter().filter(|f| f["ok"] == false).cloned().collect();
        assert_eq!(ran.code, Some(i32::from(!bad.is_empty())), "{found:#?}");
        (found, bad)
    };
    let good = [
        "--address",
        "10.77.1.1",
        "--vip",
        "10.77.1.100/24",
        "--peer",
        "10.77.1.2",
        "--directory",
        "/srv/data",
    ];
    let (found, bad) = check(&good);
    assert!(bad.is_empty(), "{bad:#?}");
    let note = |what: &str| {
        let one = found.iter().find(|f| f["what"].as_str().is_some_and(|w| w.starts_with(what)));
        one.unwrap_or_else(|| panic!("{what} is looked at: {found:#?}"))["note"].to_string()
    };
    assert!(note("port 7690/tcp").contains("our own agent"), "{}", note("port 7690/tcp"));
    assert!(note("port 7690/udp").contains("our own agent"), "{}", note("port 7690/udp"));
    assert!(note("FUSE features").contains("protocol 7."), "{}", note("FUSE features"));
    for what in ["kernel", "uid", "/dev/fuse", "file system", "space", "fsync", "address", "vip", "peer"] {
        note(what);
    }
    // Without our agent's word the ports belong to somebody else.
    for (args, code) in [
        (&["--socket", NO_AGENT] as &[&str], "SKC-E2027"),
        (&["--address", "192.0.2.1"], "SKC-E2004"),
        (&["--vip", "10.77.1.9/24"], "SKC-E5006"),
        (&["--vip", "192.0.2.1/24"], "SKC-E5003"),
        (&["--directory", "/nonexistent"], "SKC-E3001"),
        (&["--directory", "/proc"], "SKC-E3001"),
    ] {
        let (_, bad) = check(args);
        assert!(bad.iter().any(|f| f["code"] == code), "{args:?}: {bad:#?}");
    }
    let files: Vec<_> =
        std::fs::read_dir(arena.backing(Node::NodeA, "/srv/data")).expect("it is there").collect();
    assert!(files.is_empty(), "{files:?}");
}

/// Standard error of an agent is a file as often as not, and disks get full.
#[test]
fn a_log_that_is_not_taken_stops_nobody() {
    const CHILD: &str = "SKC_TEST_LOGS";
    if std::env::var_os(CHILD).is_some() {
        skc::telemetry::init(skc::telemetry::Format::Human);
        tracing::error!("nobody takes this");
        return;
    }
    let full = std::fs::File::options().write(true).open("/dev/full").expect("/dev/full");
    let status = Command::new(std::env::current_exe().expect("own path"))
        .args(["a_log_that_is_not_taken_stops_nobody", "--exact", "--nocapture"])
        .env(CHILD, "1")
        .stdout(Stdio::null())
        .stderr(full)
        .status();
    assert!(status.expect("it runs").success());
}
