//! `skc lab`: The two-node lab, verb by verb.

use std::process::ExitCode;

/// Arguments of `skc lab`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the verb.
pub fn run(_args: Args) -> ExitCode {
    eprintln!("skc lab: not yet");
    ExitCode::from(2)
}
