//! `skc passthrough`: Mount the mirror file system over a directory without a peer (benchmarks and file-system tests).

use std::process::ExitCode;

/// Arguments of `skc passthrough`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the verb.
pub fn run(_args: Args) -> ExitCode {
    eprintln!("skc passthrough: not yet");
    ExitCode::from(2)
}
