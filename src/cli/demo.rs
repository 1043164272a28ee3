//! `skc demo`: A two-node cluster on this machine: write, cut the power, fail over, come back, swap.

use std::process::ExitCode;

/// Arguments of `skc demo`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the verb.
pub fn run(_args: Args) -> ExitCode {
    eprintln!("skc demo: not yet");
    ExitCode::from(2)
}
