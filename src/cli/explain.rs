//! `skc explain CODE|CONDITION`: what happened, what skc did, what to do next.
//!
//! The pages are embedded in the binary (`base::codes`), so they always speak of this version.

use super::common::{ERROR, Output, print_value};
use super::output::emit;
use super::output::errln;
use crate::base::codes::{self, CODES, CONDITIONS};
use std::fmt::Write;
use std::process::ExitCode;

/// Arguments of `skc explain`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A code (SKC-E1010, or E1010) or a condition (WAIT); without it everything is listed
    topic: Option<String>,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Runs the verb.
pub fn run(args: Args) -> ExitCode {
    let Some(topic) = args.topic else {
        list(args.output);
        return ExitCode::SUCCESS;
    };
    let topic = topic.trim();
    let found = codes::code(topic)
        .map(|c| (c.id, c.title, c.page))
        .or_else(|| codes::condition(topic).map(|c| (c.name, c.title, c.page)));
    match (found, args.output) {
        (Some((_, _, page)), Output::Human) => emit(page),
        (Some((name, title, page)), output) => {
            print_value(output, &serde_json::json!({"name": name, "title": title, "page": page}))
        }
        (None, _) => {
            let code = codes::CLI_UNKNOWN_TOPIC;
            errln!(
                "error[{code}]: {topic:?} is no code and no condition\n  hint: `skc explain` lists them all"
            );
            return ExitCode::from(ERROR);
        }
    };
    ExitCode::SUCCESS
}

fn list(output: Output) {
    let all = CODES.iter().map(|c| (c.id, c.title)).chain(CONDITIONS.iter().map(|c| (c.name, c.title)));
    match output {
        Output::Human => {
            let mut text = String::new();
            for (name, title) in all {
                let _ = writeln!(text, "{name:<13} {title}");
            }
            emit(&text)
        }
        output => print_value(
            output,
            &all.map(|(name, title)| serde_json::json!({"name": name, "title": title})).collect(),
        ),
    };
}
