//! Guard and worker as real processes: every kind of death, and what is left afterwards.
//!
//! The test binary plays all parts (`guard`, `worker`, `test`), because the guard wants the main thread of its
//! process; hence a runner of its own instead of libtest's threads. Needs root for network and mount namespaces.

mod support;
mod tests;
mod worker;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["role:guard", scenario, dir] => guard(scenario, &PathBuf::from(dir)),
        ["role:worker", scenario, dir] => worker::play(scenario, &PathBuf::from(dir)),
        _ => runner(&words),
    }
}

fn guard(scenario: &str, dir: &std::path::Path) -> ExitCode {
    let exe = std::env::current_exe().expect("own path");
    let argv: Vec<OsString> = vec![exe.into(), "role:worker".into(), scenario.into(), dir.into()];
    let mut config = skc::guard::GuardConfig::new(argv, dir.join("run"));
    config.log = Some(|queue| skc::telemetry::init_to(skc::telemetry::Format::Human, queue));
    config.ready_timeout = Duration::from_secs(20);
    config.shutdown_timeout = Duration::from_secs(10);
    if scenario == "deaf" {
        config.shutdown_timeout = Duration::from_millis(300);
    }
    skc::guard::run(config)
}

/// Runs every test whose name contains one of the words; prints like libtest as far as tools look at it.
fn runner(words: &[&str]) -> ExitCode {
    let all = tests::all();
    if words.contains(&"--list") {
        for (name, _) in &all {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    let filters: Vec<&&str> = words.iter().filter(|w| !w.starts_with('-')).collect();
    let mut failed = 0;
    for (name, test) in all {
        if !filters.is_empty() && !filters.iter().any(|f| name.contains(**f)) {
            continue;
        }
        let began = std::time::Instant::now();
        let result = std::panic::catch_unwind(test);
        let verdict = if result.is_ok() { "ok" } else { "FAILED" };
        println!("test {name} ... {verdict} ({} ms)", began.elapsed().as_millis());
        failed += usize::from(result.is_err());
    }
    println!("test result: {}. {failed} failed", if failed == 0 { "ok" } else { "FAILED" });
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
