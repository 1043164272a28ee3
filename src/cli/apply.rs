//! `skc apply`: validate, persist on both nodes, reconcile.

use super::common::{Connection, ERROR, Output, call, confirm, fail, print_value};
use super::documents::Files;
use super::output::{emit, errln};
use super::wait::until_ready;
use crate::api::Request;
use crate::base::Timespan;
use serde_json::Value;
use std::fmt::Write;
use std::process::ExitCode;
use std::time::Duration;

/// Longest wait for one answer of the agent, which writes specs durably.
const PATIENCE: Duration = Duration::from_secs(60);

/// Arguments of `skc apply`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    files: Files,
    /// Say what would change, change nothing. Exit 0 = nothing, 1 = changes.
    #[arg(long)]
    dry_run: bool,
    /// Refuse unless the cluster is still at this revision (from `skc diff` or `skc get`).
    #[arg(long)]
    check_index: Option<u64>,
    /// Wait until each applied cluster is Ready here and at the other node.
    #[arg(long, conflicts_with = "dry_run")]
    wait: bool,
    /// Longest wait, like 90s or 5m.
    #[arg(long, default_value = "60s", requires = "wait")]
    timeout: Timespan,
    /// Delete the clusters that the agent knows and the files do not have; asks first. Each must be stopped.
    #[arg(long)]
    prune: bool,
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
    /// Output form.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    connection: Connection,
}

/// Runs the verb.
pub fn run(args: Args) -> ExitCode {
    work(&args).unwrap_or_else(|code| code)
}

fn work(args: &Args) -> Result<ExitCode, ExitCode> {
    let documents = args.files.read().map_err(|error| fail(&error))?;
    let apply = |dry_run| {
        let request = Request::Apply { documents: documents.clone(), dry_run, check_index: args.check_index };
        call(&args.connection, &request, PATIENCE)
    };
    let mut surplus = Vec::new();
    if args.prune {
        // Asked before anything is changed: who says no has changed nothing.
        surplus = surplus_of(&args.connection, &apply(true)?)?;
        if !surplus.is_empty() && !args.dry_run {
            let question = format!(
                "this removes {} from both nodes (data stays), not in the files given. Go on?",
                surplus.join(", ")
            );
            confirm(&question, args.yes)?;
        }
    }
    let mut value = apply(args.dry_run)?;
    let applied = names(&value);
    let mut failed = false;
    for name in surplus {
        let removed = args.dry_run || {
            let request = Request::Delete { cluster: name.clone(), force: false };
            call(&args.connection, &request, PATIENCE).is_ok()
        };
        failed |= !removed;
        let result = if removed { "pruned" } else { "not pruned" };
        if let Some(all) = value.as_array_mut() {
            all.push(serde_json::json!({"name": name, "result": result, "changes": ["- the cluster"]}));
        }
    }
    let code = show(&value, args.output, args.dry_run);
    if failed {
        errln!("what is in the files is applied; the clusters above that are not pruned stay");
        return Err(ExitCode::from(ERROR));
    }
    if args.wait {
        return Ok(until_ready(&args.connection, &applied, args.timeout.as_std()));
    }
    Ok(code)
}

/// (name, revision) of what an answer to `apply` speaks of.
fn names(value: &Value) -> Vec<(String, u64)> {
    let one = |c: &Value| Some((c["name"].as_str()?.to_owned(), c["revision"].as_u64()?));
    value.as_array().into_iter().flatten().filter_map(one).collect()
}

/// The clusters that the agent knows beside those of a dry run.
fn surplus_of(connection: &Connection, wanted: &Value) -> Result<Vec<String>, ExitCode> {
    let wanted = names(wanted);
    let known = call(connection, &Request::Get { cluster: None }, PATIENCE)?;
    let name = |c: &Value| c["name"].as_str().map(str::to_owned);
    let mut surplus: Vec<String> = known.as_array().into_iter().flatten().filter_map(name).collect();
    surplus.retain(|name| wanted.iter().all(|(w, _)| w != name));
    Ok(surplus)
}

/// Prints what changed; the exit code tells `diff` and `--dry-run` whether anything would.
pub fn show(value: &Value, output: Output, only_diff: bool) -> ExitCode {
    let mut changes = 0;
    let mut text = String::new();
    for cluster in value.as_array().into_iter().flatten() {
        let (name, result) = (cluster["name"].as_str(), cluster["result"].as_str());
        let revision = cluster["revision"].as_u64().map_or(String::new(), |r| format!("revision {r} "));
        let _ = writeln!(text, "{} {revision}({})", name.unwrap_or("?"), result.unwrap_or("?"));
        for change in cluster["changes"].as_array().into_iter().flatten() {
            changes += 1;
            let _ = writeln!(text, "  {}", change.as_str().unwrap_or("?"));
        }
    }
    if output == Output::Human {
        emit(&text);
    } else {
        print_value(output, value);
    }
    ExitCode::from(u8::from(only_diff && changes > 0))
}
