//! The command line as scripts see it: exit codes, what is on standard output, readers who go away.
//!
//! What needs an agent runs in a lab (root); the rest runs anywhere.

#[path = "e2e/harness.rs"]
#[allow(dead_code, reason = "shared with the scenarios, which need more of it")]
mod harness;

use harness::{Arena, arena, until};
use skc::lab::{Node, Orphan};
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
fn what_is_not_there_yet_says_so_and_starts_nothing() {
    for app in ["sqlite", "postgres"] {
        let ran = skc(&["demo", "--app", app]);
        assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""), "{app}");
        assert!(ran.err.starts_with("error[SKC-E7021]: ") && ran.err.contains("--app ledger"), "{}", ran.err);
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
