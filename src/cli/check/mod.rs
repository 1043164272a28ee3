//! `skc check`: what this machine has and lacks, before the first spec and on any later day.
//!
//! Exit 0: nothing is missing; 1: something is, each with its code. It changes nothing: a probe file in a
//! named directory and a mount over a temporary one are gone at the end. Ports, addresses and mounts that
//! our own running agent holds are as they should be.

mod directory;
mod machine;
mod network;

use super::common::{Connection, Output, print_value};
use super::output::emit;
use crate::api::{Request, client};
use crate::base::codes::Code;
use crate::link::pki::PORT;
use std::fmt::Write;
use std::net::IpAddr;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Longest wait for our own agent's sign of life.
const ANSWER: Duration = Duration::from_secs(2);

/// Arguments of `skc check`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Also check this directory: file system, space, fsync latency, whether it is mounted over; repeat it
    #[arg(long = "directory")]
    directories: Vec<PathBuf>,
    /// Also check that this host has this address; repeat it
    #[arg(long = "address")]
    addresses: Vec<IpAddr>,
    /// Also ask the network whether somebody has this virtual IP, like 10.0.1.100/24; repeat it
    #[arg(long = "vip", value_name = "ADDRESS/PREFIX")]
    vips: Vec<crate::net::Vip>,
    /// Also check the way to the other node; repeat it for each of its addresses
    #[arg(long = "peer", value_name = "ADDRESS")]
    peers: Vec<IpAddr>,
    /// TCP and UDP port of the link
    #[arg(long, default_value_t = PORT)]
    port: u16,
    /// Output form
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    connection: Connection,
}

/// One finding.
#[derive(Debug, serde::Serialize)]
struct Finding {
    what: String,
    ok: bool,
    note: String,
    /// The page that says more; only where something is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'static str>,
}

impl Finding {
    fn good(what: impl Into<String>, note: impl Into<String>) -> Self {
        Self { what: what.into(), ok: true, note: note.into(), code: None }
    }

    fn bad(what: impl Into<String>, code: Code, note: impl Into<String>) -> Self {
        Self { what: what.into(), ok: false, note: note.into(), code: Some(code.id) }
    }

    fn of(what: impl Into<String>, code: Code, ok: bool, note: impl Into<String>) -> Self {
        if ok { Self::good(what, note) } else { Self::bad(what, code, note) }
    }
}

/// Runs the verb: exit 0 all good, 1 something is missing.
pub fn run(args: Args) -> ExitCode {
    let agent = client::call(&args.connection.socket, &Request::Ping, ANSWER, |_| ControlFlow::Continue(()));
    let ours = agent.is_ok().then(|| args.connection.socket.display().to_string());
    let mut findings = machine::all();
    findings.extend(network::ports(args.port, ours.as_deref()));
    for directory in &args.directories {
        findings.extend(directory::all(directory));
    }
    findings.extend(network::all(&args.addresses, &args.vips, &args.peers, args.port));
    let good = findings.iter().all(|f| f.ok);
    if args.output == Output::Human {
        let mut text = String::new();
        for f in &findings {
            let code = f.code.map_or(String::new(), |code| format!("  [{code}]"));
            let word = if f.ok { "ok  " } else { "MISS" };
            let _ = writeln!(text, "{word} {:<20} {}{code}", f.what, f.note);
        }
        emit(&text);
    } else {
        print_value(args.output, &serde_json::to_value(&findings).unwrap_or_default());
    }
    ExitCode::from(u8::from(!good))
}
