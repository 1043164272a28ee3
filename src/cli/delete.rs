//! `skc delete`: removes a stopped cluster's spec from both nodes. Directories are left as they are.

use super::common::{Connection, Output, call, confirm, say};
use crate::api::Request;
use std::process::ExitCode;
use std::time::Duration;

/// Arguments of `skc delete`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The cluster.
    cluster: String,
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
    /// Although the other node cannot be asked whether the cluster runs there: it never comes back.
    #[arg(long)]
    force: bool,
    /// Output form.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    connection: Connection,
}

/// Runs the verb.
pub fn run(args: Args) -> ExitCode {
    let question = format!("{}: this removes the cluster from both nodes (data stays). Go on?", args.cluster);
    if let Err(code) = confirm(&question, args.yes) {
        return code;
    }
    let request = Request::Delete { cluster: args.cluster.clone(), force: args.force };
    match call(&args.connection, &request, Duration::from_secs(30)) {
        Ok(_) => {
            let value = serde_json::json!({"cluster": args.cluster, "result": "removed"});
            say(args.output, &value, || {
                format!("{} is removed from both nodes; its directories stay as they are\n", args.cluster)
            });
            ExitCode::SUCCESS
        }
        Err(code) => code,
    }
}
