//! `skc apply`: validate, persist on both nodes, reconcile.

use super::common::{Connection, Output, call, fail, print_value, read_documents};
use super::output::outln;
use crate::api::Request;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Arguments of `skc apply`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A spec file or a directory of them.
    #[arg(short, long)]
    file: PathBuf,
    /// Say what would change, change nothing. Exit 0 = nothing, 1 = changes.
    #[arg(long)]
    dry_run: bool,
    /// Refuse unless the cluster is still at this revision (from `skc diff` or `skc get`).
    #[arg(long)]
    check_index: Option<u64>,
    /// Output form.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    connection: Connection,
}

/// Runs the verb.
pub fn run(args: Args) -> ExitCode {
    let documents = match read_documents(&args.file) {
        Ok(documents) => documents,
        Err(error) => return fail(&error),
    };
    let request = Request::Apply { documents, dry_run: args.dry_run, check_index: args.check_index };
    match call(&args.connection, &request, Duration::from_secs(60)) {
        Ok(value) => show(&value, args.output, args.dry_run),
        Err(code) => code,
    }
}

/// Prints what changed; the exit code tells `diff` and `--dry-run` whether anything would.
pub fn show(value: &serde_json::Value, output: Output, only_diff: bool) -> ExitCode {
    let mut changes = 0;
    for cluster in value.as_array().into_iter().flatten() {
        changes += cluster["changes"].as_array().map_or(0, Vec::len);
    }
    if output == Output::Human {
        for cluster in value.as_array().into_iter().flatten() {
            outln!(
                "{} revision {} ({})",
                cluster["name"].as_str().unwrap_or("?"),
                cluster["revision"],
                cluster["result"].as_str().unwrap_or("?")
            );
            for change in cluster["changes"].as_array().into_iter().flatten() {
                outln!("  {}", change.as_str().unwrap_or("?"));
            }
        }
    } else {
        print_value(output, value);
    }
    ExitCode::from(u8::from(only_diff && changes > 0))
}
