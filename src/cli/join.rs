//! `skc join`: Enrol this node in a pair with a token.

use std::process::ExitCode;

/// Arguments of `skc join`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the verb.
pub fn run(_args: Args) -> ExitCode {
    eprintln!("skc join: not yet");
    ExitCode::from(2)
}
