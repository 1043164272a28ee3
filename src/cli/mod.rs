//! The command line: one verb a file, each with `Args` and `run`.
//!
//! Exit codes: 0 done, 1 done with a result the caller must look at (changes, loss), 2 error.

pub mod agent;
pub mod apply;
pub mod check;
pub mod common;
pub mod delete;
pub mod demo;
pub mod diff;
pub mod documents;
pub mod events;
pub mod explain;
pub mod get;
pub mod init;
pub mod join;
pub mod lab;
pub mod ledger;
pub mod operate;
pub mod output;
pub mod passthrough;
pub mod schema;
pub mod status;
pub mod token;
pub mod validate;
pub mod wait;

use crate::api::Action;
use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Two ordinary Linux machines become one highly available service.
#[derive(Debug, Parser)]
#[command(name = "skc", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Roles, data states, guarantee level, progress, "would fail over now"
    Status(status::Args),
    /// What happened and why
    Events(events::Args),
    /// Put specs in force on both nodes
    Apply(apply::Args),
    /// What apply would change (exit 0 nothing, 1 changes, 2 error)
    Diff(diff::Args),
    /// The specs in force
    Get(get::Args),
    /// Remove a stopped cluster's spec from both nodes
    Delete(delete::Args),
    /// Preflight of this machine: kernel, FUSE, ports, disk, addresses
    Check(check::Args),
    /// Bring a cluster up on this node
    Start(operate::Args),
    /// Hand over if possible, then stop on this node
    Stop(operate::Args),
    /// Exchange the roles
    Swap(operate::Args),
    /// Become primary; --force without proof that the data is the newest
    Promote(operate::ForceArgs),
    /// Name the node whose directories are the source (first start, split brain, replaced disk)
    Adopt(operate::AdoptArgs),
    /// Hold automatic decisions
    Pause(operate::Args),
    /// Take automatic decisions up again
    Resume(operate::Args),
    /// Make everything that was written durable on both nodes
    Sync(operate::Args),
    /// Unmount and leave plain directories (after stop)
    Eject(operate::Args),
    /// The node daemon: starts its guard, reconciles this node towards its specs
    Agent(agent::Args),
    /// A two-node cluster on this machine: write, cut the power, fail over, come back, swap
    Demo(demo::Args),
    /// The two-node lab, verb by verb
    Lab(lab::Args),
    /// The ledger application of the demo (server, client, checker)
    #[command(hide = true)]
    Ledger(ledger::Args),
    /// Create the pair: certificate authority, this node's certificate, state directory
    Init(init::Args),
    /// Print a one-time token for the second node
    Token(token::Args),
    /// Enrol this node in a pair with a token
    Join(join::Args),
    /// Check specs and print every finding
    Validate(validate::Args),
    /// Print the JSON schema of ClusterSpec
    Schema(schema::Args),
    /// What an error code or condition means and what to do
    Explain(explain::Args),
    /// Mount the mirror file system over a directory without a peer (benchmarks and file-system tests)
    #[command(hide = true)]
    Passthrough(passthrough::Args),
}

/// Parses the arguments of the process and runs the verb.
pub fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Status(args) => status::run(args),
        Command::Events(args) => events::run(args),
        Command::Apply(args) => apply::run(args),
        Command::Diff(args) => diff::run(args),
        Command::Get(args) => get::run(args),
        Command::Delete(args) => delete::run(args),
        Command::Check(args) => check::run(args),
        Command::Start(args) => operate::run(args, Action::Start),
        Command::Stop(args) => operate::run(args, Action::Stop),
        Command::Swap(args) => operate::run(args, Action::Swap),
        Command::Promote(args) => operate::promote(args),
        Command::Adopt(args) => operate::adopt(args),
        Command::Pause(args) => operate::run(args, Action::Pause),
        Command::Resume(args) => operate::run(args, Action::Resume),
        Command::Sync(args) => operate::sync(&args),
        Command::Eject(args) => operate::run(args, Action::Eject),
        Command::Agent(args) => agent::run(args),
        Command::Demo(args) => demo::run(args),
        Command::Lab(args) => lab::run(args),
        Command::Ledger(args) => ledger::run(args),
        Command::Init(args) => init::run(args),
        Command::Token(args) => token::run(args),
        Command::Join(args) => join::run(args),
        Command::Validate(args) => validate::run(args),
        Command::Schema(args) => schema::run(args),
        Command::Explain(args) => explain::run(args),
        Command::Passthrough(args) => passthrough::run(args),
    }
}
