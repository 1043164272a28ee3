//! `skc join`: Enrol this node in a pair with a token.

use super::common::{Output, say};
use super::init::{Me, State, fail_link};
use crate::link::LinkError;
use crate::link::join::join;
use crate::link::pki::token::Token;
use std::process::ExitCode;

/// Arguments of `skc join`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What `skc token` printed on the first node.
    token: String,
    #[command(flatten)]
    me: Me,
    /// Output form.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    state: State,
}

/// Runs the verb.
pub fn run(args: Args) -> ExitCode {
    // Before anything is made: a mistyped token leaves nothing behind.
    let token = match Token::decode(&args.token) {
        Ok(token) => token,
        Err(error) => return fail_link(&error),
    };
    let state = match args.state.open() {
        Ok(state) => state,
        Err(code) => return code,
    };
    let setup = args.me.into_setup();
    let work = || {
        let _lock = state.lock()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|source| LinkError::Start { what: "the network runtime", source })?;
        runtime.block_on(join(&state, &token, &setup))
    };
    match work() {
        Ok(identity) => {
            let (pair, node) = (identity.pair_id(), &identity.me().name);
            let peer = identity.peer().map(|peer| peer.name.as_str());
            let value = serde_json::json!({"pair": pair, "node": node, "peer": peer});
            say(args.output, &value, || {
                let peer = peer.unwrap_or("the first node");
                format!("{node} is enrolled with {peer}, pair {pair}\n  next: start `skc agent` here\n")
            });
            ExitCode::SUCCESS
        }
        Err(error) => fail_link(&error),
    }
}
