//! `skc explain`: What an error code or condition means and what to do.

use std::process::ExitCode;

/// Arguments of `skc explain`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the verb.
pub fn run(_args: Args) -> ExitCode {
    eprintln!("skc explain: not yet");
    ExitCode::from(2)
}
