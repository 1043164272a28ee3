//! The command line: one verb a file, each with `Args` and `run`.
//!
//! Exit codes: 0 done, 1 done with a result the caller must look at (changes, loss), 2 error.

pub mod agent;
pub mod demo;
pub mod explain;
pub mod init;
pub mod join;
pub mod lab;
pub mod ledger;
pub mod passthrough;
pub mod schema;
pub mod token;
pub mod validate;

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
