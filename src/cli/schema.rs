//! `skc schema`: Print the JSON schema of ClusterSpec.

use std::process::ExitCode;

/// Arguments of `skc schema`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the verb.
pub fn run(_args: Args) -> ExitCode {
    eprintln!("skc schema: not yet");
    ExitCode::from(2)
}
