//! `skc validate -f FILE|DIR`: check specs and print every finding.
//!
//! Offline: needs no agent. Exit 0 when every rule holds, 2 otherwise; warnings change nothing. All files given are checked
//! together, so that clusters of one pair cannot claim the same directory or address.

use super::common::{Output, print_value};
use super::output::emit;
use crate::base::codes;
use crate::spec::{self, ClusterSpec, Consistency, Finding, Findings, Loaded, Problem, Source};
use std::fmt::Write;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Files that are read of one directory tree, and how deep it may be: far above any real repository, so
/// that `-f /` ends.
const FILES_MAX: usize = 1000;
const DEPTH_MAX: usize = 16;

/// Arguments of `skc validate`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A spec, or a directory whose *.yaml and *.yml are read, with its subdirectories; `-` is standard input
    #[arg(short, long = "file", required = true, value_name = "FILE|DIR")]
    file: Vec<PathBuf>,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Runs the verb.
pub fn run(args: Args) -> ExitCode {
    let Args { file, output } = args;
    let mut findings = Findings::default();
    let mut sources = Vec::new();
    for path in &file {
        let mut files = Vec::new();
        collect(path, 0, &mut files, &mut findings);
        files.sort();
        if files.is_empty() && findings.0.is_empty() {
            findings.0.push(unreadable(path, "no *.yaml or *.yml file here"));
        }
        for file in files {
            match read(&file) {
                Ok(text) => sources.push(Source { file: file.display().to_string(), text }),
                Err(error) => findings.0.push(unreadable(&file, &error.to_string())),
            }
        }
    }
    let loaded = match spec::load(&sources) {
        Ok(loaded) => loaded,
        Err(more) => {
            findings.0.extend(more.0);
            Vec::new()
        }
    };
    let warnings = if findings.0.is_empty() { spec::warnings(&sources) } else { Findings::default() };
    match output {
        Output::Human => {
            emit(&human(&loaded, &findings, &warnings));
        }
        output => {
            let specs: Vec<_> = loaded
                .iter()
                .map(|l| {
                    serde_json::json!({
                        "file": l.file, "line": l.line, "name": l.spec.metadata.name,
                        "level": l.spec.level(), "risks": risks(&l.spec), "vipLease": l.spec.vip_lease(), "digest": spec::digest(&l.spec),
                    })
                })
                .collect();
            let valid = findings.0.is_empty();
            print_value(
                output,
                &serde_json::json!({"valid": valid, "specs": specs, "findings": findings, "warnings": warnings}),
            );
        }
    }
    if findings.0.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(super::common::ERROR) }
}

fn human(loaded: &[Loaded], findings: &Findings, warnings: &Findings) -> String {
    let mut text = String::new();
    if findings.0.is_empty() {
        for Loaded { file, spec, .. } in loaded {
            let (name, level) = (&spec.metadata.name, spec.level());
            let lease = match spec.spec.virtual_ips.len() {
                0 => String::new(),
                _ => format!(", VIP lease {}", spec.vip_lease()),
            };
            let _ = writeln!(text, "ok  {name}  ({file}): guarantee level {level:?}{lease}");
            text.extend(risks(spec).iter().map(|risk| format!("    {risk}\n")));
        }
        for warning in &warnings.0 {
            let _ = write!(text, "\n{warning}");
        }
    } else {
        let _ = writeln!(text, "{findings}");
    }
    text
}

/// What the operator chose to risk.
fn risks(spec: &ClusterSpec) -> Vec<String> {
    let window = spec.spec.replication.window;
    let mut risks = Vec::new();
    for directory in &spec.spec.directories {
        let lost = match spec.consistency(directory) {
            Consistency::Strict => continue,
            Consistency::Commit => "what was not fsynced may be lost at a failover",
            Consistency::Async => "also what was fsynced may be lost at a failover",
        };
        let mode = spec.consistency(directory).word();
        let path = directory.path.display();
        risks.push(format!("{path}: {mode}: {lost}, at most {} or {}", window.bytes, window.age));
    }
    risks
}

fn unreadable(path: &Path, why: &str) -> Finding {
    let problem =
        Problem::new(&spec::finding::Path::default(), codes::SPEC_READ, format!("cannot read it: {why}"));
    let span = spec::finding::Span { line: 1, column: 1, length: 1 };
    Finding::new(&path.display().to_string(), "", span, problem)
}

fn collect(path: &Path, depth: usize, files: &mut Vec<PathBuf>, findings: &mut Findings) {
    // Only the path given by hand may be a link: a link within a tree could lead out of it or in circles.
    let kind = if depth == 0 { fs::metadata(path) } else { fs::symlink_metadata(path) };
    let is_dir = kind.is_ok_and(|m| m.is_dir());
    if !is_dir {
        files.push(path.to_owned());
        return;
    }
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) => {
            findings.0.push(unreadable(path, &error.to_string()));
            return;
        }
    };
    for entry in entries.flatten().map(|e| e.path()) {
        let hidden = entry.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"."));
        let yaml = entry.extension().is_some_and(|e| e == "yaml" || e == "yml");
        let is_dir = fs::symlink_metadata(&entry).is_ok_and(|m| m.is_dir());
        if hidden || !(is_dir || yaml) {
            continue;
        }
        if depth >= DEPTH_MAX || files.len() >= FILES_MAX {
            let why = format!("more than {FILES_MAX} files or {DEPTH_MAX} levels of directories");
            findings.0.push(unreadable(path, &why));
            return;
        }
        collect(&entry, depth + 1, files, findings);
    }
}

/// Reads one byte more than a spec may have, so that `spec` can refuse it and nothing endless is read.
fn read(path: &Path) -> std::io::Result<String> {
    let limit = spec::yaml::BYTES_MAX as u64 + 1;
    let mut bytes = Vec::new();
    if path == Path::new("-") {
        std::io::stdin().lock().take(limit).read_to_end(&mut bytes)?;
    } else {
        let file = fs::File::open(path)?;
        if !file.metadata()?.is_file() {
            return Err(std::io::Error::other("not a regular file"));
        }
        file.take(limit).read_to_end(&mut bytes)?;
    }
    if bytes.len() as u64 == limit {
        // A character may be cut in half at the limit; the text is refused for its length anyway.
        return Ok(String::from_utf8_lossy(&bytes).into_owned());
    }
    String::from_utf8(bytes).map_err(|e| std::io::Error::other(format!("not UTF-8 text: {e}")))
}
