//! `skc ledger`: The ledger application of the demo (server, client, checker).

use std::process::ExitCode;

/// Arguments of `skc ledger`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the verb.
pub fn run(_args: Args) -> ExitCode {
    eprintln!("skc ledger: not yet");
    ExitCode::from(2)
}
