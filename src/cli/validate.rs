//! `skc validate`: Check specs and print every finding.

use std::process::ExitCode;

/// Arguments of `skc validate`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the verb.
pub fn run(_args: Args) -> ExitCode {
    eprintln!("skc validate: not yet");
    ExitCode::from(2)
}
