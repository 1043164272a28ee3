//! `skc ledger`: the small real application of the demo (server, client, checker).

use super::common::failed;
use super::output::outln;
use crate::base::codes;
use crate::lab::ledger::client::{Load, Options, read_journal};
use crate::lab::ledger::{check, server};
use clap::Subcommand;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Arguments of `skc ledger`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Serve a ledger kept in a directory
    Serve {
        /// Its directory
        #[arg(long)]
        data: PathBuf,
        /// Where to listen
        #[arg(long)]
        listen: SocketAddr,
    },
    /// Append records from several connections; note what was acknowledged
    Client {
        /// The server
        #[arg(long)]
        connect: SocketAddr,
        /// File for acknowledged records, outside of the mirror
        #[arg(long)]
        journal: PathBuf,
        /// Stop after so many acknowledged records
        #[arg(long)]
        count: Option<u64>,
        /// Stop after so many seconds
        #[arg(long)]
        seconds: Option<f64>,
        /// Connections
        #[arg(long, default_value_t = 4)]
        clients: u32,
        /// fdatasync every so many records of a connection (0 = never)
        #[arg(long, default_value_t = 1)]
        sync: u64,
        /// Names the run
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Is every acknowledged record in the directory?
    Check {
        /// A ledger's directory
        #[arg(long)]
        data: PathBuf,
        /// A client's journal
        #[arg(long)]
        journal: PathBuf,
    },
}

/// Runs the verb.
pub fn run(args: Args) -> ExitCode {
    let result = match args.verb {
        Verb::Serve { data, listen } => {
            server::serve(&data, listen).map(|()| ExitCode::SUCCESS).map_err(|e| e.to_string())
        }
        Verb::Client { connect, journal, count, seconds, clients, sync, seed } => {
            let options = Options {
                connect,
                clients,
                sync_every: sync,
                seed,
                netns: None,
                journal: Some(journal),
                count,
            };
            client(options, seconds)
        }
        Verb::Check { data, journal } => verify(&data, &journal),
    };
    result.unwrap_or_else(|error| failed(codes::LEDGER, error))
}

fn client(options: Options, seconds: Option<f64>) -> Result<ExitCode, String> {
    if options.count.is_none() && seconds.is_none() {
        return Err("say when to stop: --count or --seconds".into());
    }
    let limit = Duration::try_from_secs_f64(seconds.unwrap_or(3600.0)).map_err(|error| error.to_string())?;
    let load = Load::start(options).map_err(|error| error.to_string())?;
    while !load.ended() && load.now() < limit {
        std::thread::sleep(Duration::from_millis(10));
    }
    let end = load.now();
    let (gap, at) = load.longest_gap(Duration::ZERO, end);
    let (p50, p99) = load.latency(Duration::ZERO, end);
    let complaint = load.complaint();
    let acks = load.stop();
    let report = serde_json::json!({
        "acknowledged": acks.len(),
        "seconds": end.as_secs_f64(),
        "outage_ms": gap.as_millis() as u64,
        "outage_at_s": at.as_secs_f64(),
        "p50_us": p50.as_micros() as u64,
        "p99_us": p99.as_micros() as u64,
        "last_complaint": complaint,
    });
    outln!("{report}");
    Ok(ExitCode::SUCCESS)
}

fn verify(data: &std::path::Path, journal: &std::path::Path) -> Result<ExitCode, String> {
    let text =
        std::fs::read_to_string(journal).map_err(|error| format!("read {}: {error}", journal.display()))?;
    let acks = read_journal(&text).map_err(|error| format!("{}: {error}", journal.display()))?;
    let report = check::check(data, &acks).map_err(|error| format!("read {}: {error}", data.display()))?;
    outln!("{}", serde_json::to_string(&report).unwrap_or_default());
    Ok(ExitCode::from(u8::from(!report.good())))
}
