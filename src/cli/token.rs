//! `skc token`: Print a one-time token for the second node.

use super::common::{Output, say};
use super::init::{State, fail_link};
use super::output::errln;
use crate::link::LinkError;
use crate::link::pki::{Identity, token};
use std::process::ExitCode;

/// Arguments of `skc token`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Output form.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
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
            let (node, seconds) = (&identity.me().name, token::LIFETIME.as_secs());
            let value = serde_json::json!({"token": text, "node": node, "expires_in_s": seconds});
            say(args.output, &value, || format!("{text}\n"));
            if args.output == Output::Human {
                errln!(
                    "valid once, for {} minutes, while `skc agent` runs here ({node})\n  \
                     next: on the other node: skc join TOKEN --name NAME --address ADDRESS",
                    seconds / 60,
                );
            }
            ExitCode::SUCCESS
        }
        Err(error) => fail_link(&error),
    }
}
