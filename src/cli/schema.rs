//! `skc schema`: print the JSON schema of ClusterSpec, for editors and other tools.
//!
//! `schemas/clusterspec.v1.json` in the repository is this output; a test fails when it is stale.

use super::output::emit;
use std::process::ExitCode;

/// Arguments of `skc schema`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the verb.
pub fn run(_args: Args) -> ExitCode {
    emit(&crate::spec::schema_text());
    ExitCode::SUCCESS
}
