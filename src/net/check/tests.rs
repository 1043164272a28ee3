use super::*;
use crate::base::Timespan;
use crate::spec::checker::{OnFailure, OnRole};
use std::sync::Mutex;
use std::time::Instant;

fn spec(probe: Probe, timeout_ms: u64) -> Spec {
    Spec {
        name: "c".into(),
        probe,
        interval: Timespan::from_millis(10),
        timeout: Timespan::from_millis(timeout_ms),
        rise: 1,
        fall: 2,
        on_failure: OnFailure::Event,
        service: None,
        on: OnRole::Primary,
    }
}

fn shell(script: &str) -> Probe {
    Probe::Exec { command: ["sh", "-c", script].map(str::to_owned).to_vec() }
}

async fn verdict(checker: &Checker) -> Standing {
    let mut watch = checker.watch();
    let known = watch.wait_for(|s| s.health != Health::Unknown);
    tokio::time::timeout(Duration::from_secs(10), known).await.expect("no verdict").unwrap().clone()
}

fn silent() -> OnChange {
    Arc::new(|_, _| {})
}

#[tokio::test]
async fn a_listening_port_is_up_and_a_closed_one_down() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let tcp = || Probe::Tcp { host: "127.0.0.1".into(), port };
    let up = Checker::start(spec(tcp(), 1000), silent());
    assert_eq!(verdict(&up).await.health, Health::Up);
    drop((up, listener));
    let down = Checker::start(spec(tcp(), 1000), silent());
    assert_eq!(verdict(&down).await.health, Health::Down);
    assert!(!all_healthy([&down]));
}

#[tokio::test]
async fn exit_codes_decide_and_the_end_of_the_output_is_kept() {
    let script = "i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done; echo disk full >&2; exit 3";
    let checker = Checker::start(spec(shell(script), 5000), silent());
    let standing = verdict(&checker).await;
    assert_eq!(standing.health, Health::Down);
    assert!(standing.output.starts_with("exit status: 3: "), "{}", standing.output);
    assert!(standing.output.contains("disk full"));
    assert!(standing.output.len() <= OUTPUT_MAX + 32);
    let checker = Checker::start(spec(shell("echo fine"), 5000), silent());
    assert_eq!(verdict(&checker).await.output, "fine");
}

#[tokio::test]
async fn a_command_that_hangs_is_killed_with_its_children() {
    let marker = format!("3333.{}", std::process::id());
    let checker = Checker::start(spec(shell(&format!("sleep {marker} & sleep {marker}")), 100), silent());
    let standing = verdict(&checker).await;
    assert_eq!((standing.health, &*standing.output), (Health::Down, "no result within 100 ms"));
    drop(checker);
    let alive = || {
        std::fs::read_dir("/proc").unwrap().flatten().any(|e| {
            let line = std::fs::read(e.path().join("cmdline")).unwrap_or_default();
            line == format!("sleep\0{marker}\0").as_bytes()
        })
    };
    let start = Instant::now();
    while alive() {
        assert!(start.elapsed() < Duration::from_secs(5), "left behind");
        tokio::time::sleep(Duration::from_millis(5)).await; // the pace of polling
    }
}

#[tokio::test]
async fn a_background_process_that_keeps_the_pipe_does_not_delay_the_verdict() {
    let start = Instant::now();
    let checker = Checker::start(spec(shell("sleep 3 & exit 0"), 2000), silent());
    assert_eq!(verdict(&checker).await.health, Health::Up);
    assert!(start.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn a_missing_program_is_down_and_says_so() {
    let checker = Checker::start(spec(Probe::Exec { command: vec!["/no/such".into()] }, 1000), silent());
    let standing = verdict(&checker).await;
    assert!(standing.output.starts_with("cannot be started: "), "{}", standing.output);
}

#[tokio::test]
async fn looks_during_a_freeze_do_not_count_and_changes_are_reported_once() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = seen.clone();
    let report: OnChange = Arc::new(move |_, s| sink.lock().unwrap().push(s.health));
    let checker = Checker::start(spec(shell("exit 1"), 1000), report);
    checker.freeze(true);
    let mut watch = checker.watch();
    let moved = tokio::time::timeout(Duration::from_millis(200), watch.changed()).await;
    assert!(moved.is_err(), "a look counted during the freeze");
    checker.freeze(false);
    verdict(&checker).await;
    for _ in 0..3 {
        watch.changed().await.unwrap();
    }
    assert_eq!(*seen.lock().unwrap(), [Health::Down]);
}
