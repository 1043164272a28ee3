//! `skc get`: the specs in force, with their revisions.

use super::common::{Connection, Output, call, print_value};
use super::output::emit;
use crate::api::Request;
use std::fmt::Write;
use std::process::ExitCode;
use std::time::Duration;

/// Arguments of `skc get`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only this cluster.
    cluster: Option<String>,
    /// Output form; human prints the YAML text as applied.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    connection: Connection,
}

/// Runs the verb.
pub fn run(args: Args) -> ExitCode {
    let request = Request::Get { cluster: args.cluster };
    match call(&args.connection, &request, Duration::from_secs(10)) {
        Ok(value) if args.output == Output::Human => {
            let mut text = String::new();
            for item in value.as_array().into_iter().flatten() {
                let spec = item["text"].as_str().unwrap_or("").trim_end();
                let _ = writeln!(text, "# revision {}\n{spec}\n---", item["revision"]);
            }
            emit(&text);
            ExitCode::SUCCESS
        }
        Ok(value) => {
            print_value(args.output, &value);
            ExitCode::SUCCESS
        }
        Err(code) => code,
    }
}
