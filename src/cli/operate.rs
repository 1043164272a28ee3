//! The operations on a cluster: each says what it will do, asks unless `--yes`, and waits.

use super::common::{Connection, Output, call, confirm, print_value};
use super::output::outln;
use crate::api::{Action, Request};
use std::process::ExitCode;
use std::time::Duration;

/// Arguments of an operation without dangerous variants.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The cluster.
    cluster: String,
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
    /// Longest wait for the result, in seconds.
    #[arg(long, default_value_t = 120)]
    wait: u64,
    /// Output form.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    connection: Connection,
}

/// Arguments of an operation that can discard data.
#[derive(Debug, clap::Args)]
pub struct ForceArgs {
    #[command(flatten)]
    args: Args,
    /// Accept what the question says is lost.
    #[arg(long)]
    force: bool,
}

/// Arguments of `skc adopt`.
#[derive(Debug, clap::Args)]
pub struct AdoptArgs {
    #[command(flatten)]
    force: ForceArgs,
    /// Name of the node whose directories are right; default: this node.
    #[arg(long)]
    source: Option<String>,
}

/// Runs one of the harmless operations.
pub fn run(args: Args, action: Action) -> ExitCode {
    let question = match action {
        Action::Stop => {
            Some("stops the services of this cluster on this node; the peer takes over if it can.")
        }
        Action::Swap => Some("exchanges the roles; the services stop here and start on the other node."),
        Action::Eject => Some("unmounts the directories; from then on nothing written there is replicated."),
        _ => None,
    };
    go(&args, action, question)
}

/// `skc sync`: makes everything that was written durable on both nodes.
pub fn sync(args: &Args) -> ExitCode {
    finish(args, &Request::Sync { cluster: args.cluster.clone() })
}

/// `skc promote [--force]`.
pub fn promote(args: ForceArgs) -> ExitCode {
    let question = args.force.then_some(
        "makes this node primary without proof that it holds the newest data. What only the other \
         node acknowledged is not here; when it returns, its differing data goes to quarantine.",
    );
    go(&args.args, Action::Promote { force: args.force }, question)
}

/// `skc adopt [--source NODE] [--force]`.
pub fn adopt(args: AdoptArgs) -> ExitCode {
    let AdoptArgs { force: ForceArgs { args, force }, source } = args;
    let who = source.clone().unwrap_or_else(|| "this node".to_owned());
    let question = format!(
        "makes the directories of {who} the source. What differs on the other node is replaced \
         (kept in quarantine there)."
    );
    go(&args, Action::Adopt { source, force }, force.then_some(question.as_str()))
}

fn go(args: &Args, action: Action, question: Option<&str>) -> ExitCode {
    if let Some(question) = question
        && let Err(code) = confirm(&format!("{}: this {question} Go on?", args.cluster), args.yes)
    {
        return code;
    }
    finish(args, &Request::Operate { cluster: args.cluster.clone(), action })
}

fn finish(args: &Args, request: &Request) -> ExitCode {
    match call(&args.connection, request, Duration::from_secs(args.wait)) {
        Ok(value) => {
            if args.output == Output::Human {
                outln!("{}", value["text"].as_str().unwrap_or("done"));
            } else {
                print_value(args.output, &value);
            }
            ExitCode::SUCCESS
        }
        Err(code) => code,
    }
}
