//! `skc agent`: The node daemon: starts its guard, reconciles this node towards its specs.

use std::process::ExitCode;

/// Arguments of `skc agent`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the verb.
pub fn run(_args: Args) -> ExitCode {
    eprintln!("skc agent: not yet");
    ExitCode::from(2)
}
