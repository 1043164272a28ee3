//! `skc token`: Print a one-time token for the second node.

use std::process::ExitCode;

/// Arguments of `skc token`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the verb.
pub fn run(_args: Args) -> ExitCode {
    eprintln!("skc token: not yet");
    ExitCode::from(2)
}
