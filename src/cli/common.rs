//! What the verbs share: where the agent is, how output looks, how errors are shown.

use super::output::{complain, emit, errln, out, outln};
use crate::api::{ApiError, Request, client};
use crate::base::codes::{self, Code};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Exit code of an error.
pub const ERROR: u8 = 2;

/// Where the agent listens.
#[derive(Debug, Clone, clap::Args)]
pub struct Connection {
    /// The agent's socket.
    #[arg(long, env = "SKC_SOCKET", default_value = crate::api::SOCKET, global = true)]
    pub socket: PathBuf,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Human,
    /// One JSON value.
    Json,
    /// YAML.
    Yaml,
}

/// Calls the agent; prints the error and gives the exit code if it fails.
pub fn call(
    connection: &Connection,
    request: &Request,
    patience: Duration,
) -> Result<serde_json::Value, ExitCode> {
    stream(connection, request, patience, |_| ControlFlow::Continue(()))
}

/// Like [`call`], for an answer of several items: until `item` breaks off.
pub fn stream(
    connection: &Connection,
    request: &Request,
    patience: Duration,
    item: impl FnMut(serde_json::Value) -> ControlFlow<()>,
) -> Result<serde_json::Value, ExitCode> {
    client::call(&connection.socket, request, patience, item).map_err(|error| fail(&error))
}

/// Prints an error without a hint: its page has one.
pub fn failed(code: Code, message: impl std::fmt::Display) -> ExitCode {
    fail(&ApiError { code: code.id.to_owned(), message: message.to_string(), hint: None })
}

/// The agent answered something that this version does not know.
pub fn misunderstood(error: &serde_json::Error) -> ApiError {
    let message = format!("the answer of the agent is not understood: {error}");
    ApiError::new("SKC-E7001", message, "use the skc command of the same version as the agent")
}

/// Prints an error for the person on call.
pub fn fail(error: &ApiError) -> ExitCode {
    errln!("error[{}]: {}", error.code, error.message);
    if let Some(hint) = &error.hint {
        errln!("  next: {hint}");
    }
    errln!("  more: skc explain {}", error.code);
    ExitCode::from(ERROR)
}

/// Prints a value as JSON or YAML; `false`: nobody reads any more.
pub fn print_value(output: Output, value: &serde_json::Value) -> bool {
    match output {
        Output::Yaml => out!("{}", serde_yaml::to_string(value).unwrap_or_default()),
        _ => outln!("{}", serde_json::to_string_pretty(value).unwrap_or_default()),
    }
}

/// Prints a result: `text` for people, else the value.
pub fn say(output: Output, value: &serde_json::Value, text: impl FnOnce() -> String) -> bool {
    if output == Output::Human { emit(&text()) } else { print_value(output, value) }
}

/// Asks a yes/no question on the terminal unless `yes`; without a terminal the answer is no.
pub fn confirm(question: &str, yes: bool) -> Result<(), ExitCode> {
    if yes || answered(question) {
        return Ok(());
    }
    Err(fail(&ApiError::new(
        codes::CLI_CONFIRM.id,
        "not confirmed; nothing was changed",
        "--yes goes on without asking",
    )))
}

fn answered(question: &str) -> bool {
    use std::io::{BufRead, IsTerminal};
    if !std::io::stdin().is_terminal() {
        errln!("{question}\n  there is no terminal to ask on");
        return false;
    }
    complain(&format!("{question} [y/N] "));
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).is_ok() && matches!(line.trim(), "y" | "Y" | "yes")
}
