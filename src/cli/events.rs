//! `skc events`: what happened, in order.

use super::common::{Connection, Output, stream};
use super::output::{emit, outln};
use crate::api::Request;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
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
    /// Only those of one failover; its id stands at the end of each of its lines.
    #[arg(long, value_name = "ID")]
    failover: Option<String>,
    /// Output form: json prints one object a line, yaml one document an event.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    connection: Connection,
}

/// Runs the verb.
pub fn run(args: Args) -> ExitCode {
    let request = Request::Events { follow: args.follow, last: args.last, failover: args.failover.clone() };
    // Following waits for the next event as long as it takes.
    let patience = Duration::from_secs(if args.follow { 365 * 86_400 } else { 10 });
    if args.follow {
        // The next event may be long in coming: `events -f | head -1` ends with its reader.
        std::thread::spawn(|| {
            crate::sys::hangup::wait(std::io::stdout().as_fd());
            std::process::exit(0);
        });
    }
    let show = |event: serde_json::Value| {
        let read = match args.output {
            Output::Human => outln!("{}", line(&event)),
            Output::Json => outln!("{event}"),
            Output::Yaml => emit(&document(&event)),
        };
        if read { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    match stream(&args.connection, &request, patience, show) {
        Ok(_) => ExitCode::SUCCESS,
        Err(code) => code,
    }
}

/// One YAML document a event, so that a stream of them can be read as it grows.
fn document(event: &serde_json::Value) -> String {
    format!("---\n{}", serde_yaml::to_string(event).unwrap_or_default())
}

fn line(event: &serde_json::Value) -> String {
    let text = |key: &str| match &event[key] {
        serde_json::Value::String(s) => s.clone(),
        serde_json::Value::Null => String::new(),
        other => other.to_string(),
    };
    let failover = event["failover_id"].as_str().map_or(String::new(), |id| format!("  [{id}]"));
    format!("{:<24} {:<8} {:<12} {}{failover}", text("time"), text("node"), text("cluster"), text("text"))
}
