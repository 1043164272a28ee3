//! `skc agent`: the node daemon. The process itself is the guard; the worker is its child.

use super::output::errln;
use crate::daemon::agent::{Options, worker};
use crate::guard::{self, GuardConfig};
use crate::telemetry::{self, Format};
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

/// Arguments of `skc agent`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Durable state of this node (made by `skc init` or `skc join`).
    #[arg(long, default_value = "/var/lib/skc")]
    state: PathBuf,
    /// Volatile state.
    #[arg(long, default_value = "/run/skc")]
    run_dir: PathBuf,
    /// Socket for the command line; default: skc.sock in the run directory.
    #[arg(long, env = "SKC_SOCKET")]
    socket: Option<PathBuf>,
    /// Apply every spec of this directory, now and after each change (a GitOps checkout).
    #[arg(long)]
    specs: Option<PathBuf>,
    /// Log one JSON object a line (level by SKC_LOG).
    #[arg(long)]
    log_json: bool,
    /// Started by the guard.
    #[arg(long, hide = true)]
    worker: bool,
}

/// Runs the verb.
pub fn run(args: Args) -> ExitCode {
    if args.worker {
        telemetry::init(if args.log_json { Format::Json } else { Format::Human });
        let socket = args.socket.clone().unwrap_or_else(|| args.run_dir.join("skc.sock"));
        return match worker(Options { state: args.state, socket, specs: args.specs }) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                tracing::error!(error, error_code = "SKC-E7025", "the agent cannot serve");
                errln!("error[SKC-E7025]: the agent cannot serve: {error}");
                ExitCode::from(2)
            }
        };
    }
    let mut argv: Vec<OsString> = vec![
        std::env::current_exe().unwrap_or_else(|_| "/proc/self/exe".into()).into(),
        "agent".into(),
        "--worker".into(),
        "--state".into(),
        args.state.into(),
        "--run-dir".into(),
        args.run_dir.clone().into(),
    ];
    if args.log_json {
        argv.push("--log-json".into());
    }
    for (flag, value) in [("--socket", args.socket), ("--specs", args.specs)] {
        if let Some(value) = value {
            argv.push(flag.into());
            argv.push(value.into());
        }
    }
    let mut config = GuardConfig::new(argv, args.run_dir);
    // Not before: the guard's log must not block, and its thread must start with signals blocked.
    config.log = Some(if args.log_json {
        |queue| telemetry::init_to(Format::Json, queue)
    } else {
        |queue| telemetry::init_to(Format::Human, queue)
    });
    guard::run(config)
}
