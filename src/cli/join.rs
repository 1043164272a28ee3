//! `skc join`: Enrol this node in a pair with a token.

use super::init::{Me, State, fail_link};
use super::output::outln;
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
            let peer = identity.peer().map_or("the first node", |peer| peer.name.as_str());
            outln!("{} is enrolled with {peer}, pair {}", identity.me().name, identity.pair_id());
            outln!("  next: start `skc agent` here");
            ExitCode::SUCCESS
        }
        Err(error) => fail_link(&error),
    }
}
