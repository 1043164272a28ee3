//! `skc diff`: what `skc apply` would change. Exit 0 nothing, 1 changes, 2 error.

use super::common::{Connection, Output, call, fail};
use super::documents::Files;
use crate::api::Request;
use std::process::ExitCode;
use std::time::Duration;

/// Arguments of `skc diff`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    files: Files,
    /// Output form.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    connection: Connection,
}

/// Runs the verb.
pub fn run(args: Args) -> ExitCode {
    let documents = match args.files.read() {
        Ok(documents) => documents,
        Err(error) => return fail(&error),
    };
    match call(&args.connection, &Request::Diff { documents }, Duration::from_secs(60)) {
        Ok(value) => super::apply::show(&value, args.output, true),
        Err(code) => code,
    }
}
