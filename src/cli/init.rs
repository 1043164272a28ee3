//! `skc init`: Create the pair: certificate authority, this node's certificate, state directory.

use super::common::{Output, fail, say};
use crate::api::ApiError;
use crate::link::LinkError;
use crate::link::pki::{self, NodeSetup, PORT};
use crate::store::StateDir;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

/// Where the state directory is.
#[derive(Debug, clap::Args)]
pub struct State {
    /// The state directory.
    #[arg(long, env = "SKC_STATE", default_value = "/var/lib/skc")]
    pub state: PathBuf,
}

impl State {
    /// Opens it.
    pub fn open(&self) -> Result<StateDir, ExitCode> {
        StateDir::open(&self.state).map_err(|error| fail_link(&error.into()))
    }

    /// Refuses if it belongs to no pair and does not exist: a verb that only reads makes nothing.
    pub fn open_existing(&self) -> Result<StateDir, ExitCode> {
        if self.state.join("pair.json").exists() {
            return self.open();
        }
        Err(fail_link(&LinkError::NoPair(self.state.display().to_string())))
    }
}

/// What this node is called and where it is reached.
#[derive(Debug, clap::Args)]
pub struct Me {
    /// This node's name: lower-case letters, digits, '-'. The name that sorts first breaks ties.
    #[arg(long)]
    name: String,
    /// An address of this node; repeat it for every network to the other node, in the same order
    /// on both nodes.
    #[arg(long = "address", required = true)]
    addresses: Vec<IpAddr>,
    /// TCP and UDP port of the link.
    #[arg(long, default_value_t = PORT)]
    port: u16,
}

impl Me {
    /// As enrolment wants it.
    pub fn into_setup(self) -> NodeSetup {
        NodeSetup { name: self.name, addresses: self.addresses, port: self.port }
    }
}

/// Arguments of `skc init`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    me: Me,
    /// Output form.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    state: State,
}

/// Prints an error of the link with its code and hint.
pub fn fail_link(error: &LinkError) -> ExitCode {
    fail(&ApiError::new(error.code(), error.to_string(), error.hint()))
}

/// Runs the verb.
pub fn run(args: Args) -> ExitCode {
    let state = match args.state.open() {
        Ok(state) => state,
        Err(code) => return code,
    };
    let work = || {
        let _lock = state.lock()?;
        pki::init(&state, args.me.into_setup())
    };
    match work() {
        Ok(identity) => {
            let (pair, node, root) = (identity.pair_id(), &identity.me().name, state.root().display());
            let value = serde_json::json!({"pair": pair, "node": node, "state": root.to_string()});
            say(args.output, &value, || {
                format!(
                    "pair {pair} made; this is {node}\n  state: {root}\n  next:  start `skc agent` here, run \
                     `skc token`, then `skc join TOKEN` on the other node\n"
                )
            });
            ExitCode::SUCCESS
        }
        Err(error) => fail_link(&error),
    }
}
