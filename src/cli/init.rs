//! `skc init`: Create the pair: certificate authority, this node's certificate, state directory.

use std::process::ExitCode;

/// Arguments of `skc init`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the verb.
pub fn run(_args: Args) -> ExitCode {
    eprintln!("skc init: not yet");
    ExitCode::from(2)
}
