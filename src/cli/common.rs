//! What the verbs share: where the agent is, how output looks, how errors are shown.

use super::output::{complain, errln, out, outln};
use crate::api::{ApiError, Document, Request, client};
use crate::base::codes::{self, Code};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
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

/// Largest spec file read, and how many: far above any real repository.
const FILE_MAX: u64 = 1 << 20;
const FILES_MAX: usize = 1000;

/// Reads a file or every `*.yaml`/`*.yml` below a directory, sorted by path.
pub fn read_documents(path: &Path) -> Result<Vec<Document>, ApiError> {
    let mut files = Vec::new();
    collect(path, &mut files, 0).map_err(|e| unreadable(path, &e))?;
    files.sort();
    files
        .into_iter()
        .map(|file| {
            let size = std::fs::metadata(&file).map_err(|e| unreadable(&file, &e))?.len();
            if size > FILE_MAX {
                return Err(ApiError::new(
                    "SKC-E7005",
                    format!("{} has {size} bytes; a spec file may have {FILE_MAX}", file.display()),
                    "name the right file",
                ));
            }
            let text = std::fs::read_to_string(&file).map_err(|e| unreadable(&file, &e))?;
            Ok(Document { file: file.display().to_string(), text })
        })
        .collect()
}

fn unreadable(path: &Path, error: &std::io::Error) -> ApiError {
    ApiError::new("SKC-E7005", format!("cannot read {}: {error}", path.display()), "check the path")
}

fn collect(path: &Path, files: &mut Vec<PathBuf>, depth: usize) -> std::io::Result<()> {
    if !std::fs::metadata(path)?.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    for entry in std::fs::read_dir(path)? {
        let entry = entry?.path();
        let hidden = entry.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"."));
        let yaml = entry.extension().is_some_and(|e| e == "yaml" || e == "yml");
        if depth < 16 && files.len() < FILES_MAX && !hidden && (entry.is_dir() || yaml) {
            collect(&entry, files, depth + 1)?;
        }
    }
    Ok(())
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
