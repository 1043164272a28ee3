//! `skc events`: what happened, in order.

use super::common::{Connection, Output, call};
use crate::api::Request;
use std::process::ExitCode;
use std::time::Duration;

/// Arguments of `skc events`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Go on with new events.
    #[arg(short, long)]
    follow: bool,
    /// How many of the past.
    #[arg(short = 'n', long, default_value_t = 100)]
    last: usize,
    /// Output form: json prints one object a line.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    connection: Connection,
}

/// Runs the verb.
pub fn run(args: Args) -> ExitCode {
    let request = Request::Events { follow: args.follow, last: args.last };
    // Following waits for the next event as long as it takes.
    let patience = Duration::from_secs(if args.follow { 365 * 86_400 } else { 10 });
    let show = |event: serde_json::Value| {
        if args.output == Output::Human {
            println!("{}", line(&event));
        } else {
            println!("{event}");
        }
    };
    match call(&args.connection, &request, patience, show) {
        Ok(_) => ExitCode::SUCCESS,
        Err(code) => code,
    }
}

fn line(event: &serde_json::Value) -> String {
    let text = |key: &str| match &event[key] {
        serde_json::Value::String(s) => s.clone(),
        serde_json::Value::Null => String::new(),
        other => other.to_string(),
    };
    format!("{:<24} {:<8} {:<12} {}", text("time"), text("node"), text("cluster"), text("text"))
}
