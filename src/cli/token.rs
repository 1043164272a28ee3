//! `skc token`: Print a one-time token for the second node.

use super::init::{State, fail_link};
use super::output::{errln, outln};
use crate::link::LinkError;
use crate::link::pki::{Identity, token};
use std::process::ExitCode;

/// Arguments of `skc token`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    state: State,
}

/// Runs the verb: the token alone on stdout, what to do with it on stderr.
pub fn run(args: Args) -> ExitCode {
    let state = match args.state.open_existing() {
        Ok(state) => state,
        Err(code) => return code,
    };
    let issue = || {
        let identity = Identity::load(&state)?;
        let text = token::issue(&identity, token::LIFETIME)?.encode()?;
        Ok::<_, LinkError>((identity, text))
    };
    match issue() {
        Ok((identity, text)) => {
            outln!("{text}");
            errln!(
                "valid once, for {} minutes, while `skc agent` runs here ({})\n  \
                 next: on the other node: skc join TOKEN --name NAME --address ADDRESS",
                token::LIFETIME.as_secs() / 60,
                identity.me().name,
            );
            ExitCode::SUCCESS
        }
        Err(error) => fail_link(&error),
    }
}
