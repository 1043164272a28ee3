//! The applications of `skc demo`: what differs between them. Timeline, clients, faults and figures are the same.
//!
//! Each is served through the ledger's line protocol, so the same clients write to all; `gateway.py` and its
//! siblings translate. A node's disk is judged at rest, on a copy, by the application's own tools and by comparing all
//! its records with what the clients were told.

mod postgres;
mod sqlite;

use crate::lab::error::Context;
use crate::lab::ledger::client::Ack;
use crate::lab::ledger::{Record, check};
use crate::lab::process::{self, Output};
use crate::lab::{Lab, LabError, Result};
use serde::Serialize;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Longest run of one program that prepares or judges: initdb makes a thousand files, on a machine that builds
/// something else meanwhile. Passing it is an error of the demo.
const TOOL: Duration = Duration::from_secs(240);
/// What the Python programs share.
const GATEWAY: &str = include_str!("gateway.py");

/// What writes, loses its machine and must have lost nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum App {
    /// The built-in ledger.
    #[default]
    Ledger,
    /// One SQLite database.
    Sqlite,
    /// A PostgreSQL server.
    Postgres,
}

impl App {
    /// Its model spec.
    pub fn spec(self) -> &'static str {
        match self {
            Self::Ledger => include_str!("../../../../specs/clusters/ledger.yaml"),
            Self::Sqlite => include_str!("sqlite.yaml"),
            Self::Postgres => include_str!("postgres.yaml"),
        }
    }

    /// Finds on this machine what it needs.
    ///
    /// # Errors
    /// [`LabError::Missing`] names what is not there, and what to install.
    pub fn find(self) -> Result<Box<dyn Application>> {
        Ok(match self {
            Self::Ledger => Box::new(Ledger),
            Self::Sqlite => Box::new(sqlite::Sqlite::find()?),
            Self::Postgres => Box::new(postgres::Postgres::find()?),
        })
    }
}

/// What one node's disk holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Acknowledged records that are missing or differ.
    pub lost: u64,
    /// What the application's own tools complained about.
    pub damaged: u64,
    /// Both in words: the first few.
    pub findings: Vec<String>,
    /// How its own tools looked at it, in words; empty if it has none.
    pub tools: String,
}

impl Verdict {
    fn unclean(&mut self, finding: String) {
        self.damaged += 1;
        self.findings.push(finding);
    }

    /// Reads a dump of all records, `SEQUENCE ID PAYLOAD` a line, and looks for every acknowledged one.
    fn compare(&mut self, dump: &str, acks: &[Ack]) {
        let record = |line: &str| {
            let mut words = line.split(' ');
            let (sequence, id, payload) = (words.next()?.parse().ok()?, words.next()?, words.next()?);
            Some((sequence, Record { sequence, id: id.into(), payload: payload.into() }))
        };
        let (lost, findings) = check::missing(&dump.lines().filter_map(record).collect(), acks);
        self.lost += lost;
        self.findings.extend(findings);
    }
}

/// An application that this machine can run.
pub trait Application {
    /// What its clients do, for the timeline.
    fn writes(&self) -> &'static str;

    /// What one acknowledged record took, for the figures.
    fn unit(&self) -> &'static str {
        "append + COMMIT"
    }

    /// Puts it on the booted machines. `first` is the backing directory that the other node will be seeded from.
    fn install(&self, lab: &Lab, first: &Path) -> Result<()>;

    /// Does the first directory hold data before the spec is applied, so that the operator names it as the source?
    fn brings_data(&self) -> bool {
        false
    }

    /// Must it be stopped before its files are looked at?
    fn stops_first(&self) -> bool {
        true
    }

    /// Does `dir` show that it has ended in order?
    fn has_ended(&self, dir: &Path) -> bool;

    /// Looks for `acks` in the backing directory `dir`, which is at rest and stays as it is; `scratch` does not exist
    /// and may be used.
    fn judge(&self, lab: &Lab, dir: &Path, scratch: &Path, acks: &[Ack]) -> Result<Verdict>;
}

struct Ledger;

impl Application for Ledger {
    fn writes(&self) -> &'static str {
        "append records, each with an fdatasync"
    }

    fn unit(&self) -> &'static str {
        "append + fdatasync"
    }

    fn install(&self, _: &Lab, _: &Path) -> Result<()> {
        Ok(())
    }

    fn stops_first(&self) -> bool {
        false
    }

    fn has_ended(&self, _: &Path) -> bool {
        true
    }

    fn judge(&self, _: &Lab, dir: &Path, _: &Path, acks: &[Ack]) -> Result<Verdict> {
        let found = check::check(dir, acks).context("read back", dir)?;
        let (lost, damaged, findings) = (found.lost, found.damaged, found.examples);
        Ok(Verdict { lost, damaged, findings, tools: String::new() })
    }
}

/// Where a program of the lab lies: in the PATH of its nodes.
fn program(lab: &Lab, name: &str) -> PathBuf {
    lab.dir().join("bin").join(name)
}

/// Writes a program into the PATH of the lab's nodes.
fn write_program(lab: &Lab, name: &str, text: &str) -> Result<()> {
    let path = program(lab, name);
    fs::write(&path, text).context("write", &path)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).context("make executable", path)
}

/// The same for a program in Python that uses the gateway.
fn write_python(lab: &Lab, name: &str, python: &str, text: &str) -> Result<()> {
    write_program(lab, "gateway.py", GATEWAY)?;
    write_program(lab, name, &format!("#!{python} -BES\n{text}"))
}

/// Finds Python and checks that it has these modules; returns the interpreter itself: a wrapper in the PATH may take
/// a while, and a service's start counts as outage.
fn find_python(modules: &str, missing: &'static str, hint: &'static str) -> Result<String> {
    let script = format!("import sys, {modules}; print(sys.executable)");
    let output = Command::new("python3").args(["-BES", "-c", &script]).stderr(Stdio::null()).output();
    let path = output.ok().filter(|o| o.status.success()).and_then(|o| String::from_utf8(o.stdout).ok());
    let path = path.map(|path| path.trim().to_owned()).filter(|path| path.starts_with('/'));
    path.ok_or_else(|| LabError::Missing { what: missing.into(), hint })
}

/// Runs a program on this machine to its end.
fn output(argv: &[impl AsRef<str>], stdin: Stdio) -> Result<Output> {
    let argv: Vec<&str> = argv.iter().map(AsRef::as_ref).collect();
    let mut command = Command::new(argv.first().copied().unwrap_or("true"));
    command.args(argv.get(1..).unwrap_or_default()).current_dir("/");
    command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
    // PGPORT, PGUSER and the like are meant for another server than the demo's.
    let others = std::env::vars_os().map(|(name, _)| name);
    for name in others.filter(|name| name.as_encoded_bytes().starts_with(b"PG")) {
        command.env_remove(name);
    }
    let child = command.spawn().context("start", argv.first().copied().unwrap_or_default())?;
    process::finish(child, &argv.join(" "), TOOL)
}

/// The same; a failure is an error.
fn succeed(argv: &[impl AsRef<str>], stdin: Stdio) -> Result<String> {
    let output = output(argv, stdin)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let command: Vec<&str> = argv.iter().map(AsRef::as_ref).collect();
    Err(LabError::Command { command: command.join(" "), stderr: said(&output) })
}

/// What a failed program said.
fn said(output: &Output) -> String {
    let text = if output.stderr.trim().is_empty() { &output.stdout } else { &output.stderr };
    format!("{} ({})", text.trim(), output.status)
}

/// Copies a tree with owners, modes and times: tools that open it must not change what is judged.
fn copy(dir: &Path, scratch: &Path) -> Result<()> {
    let [from, to] = [dir, scratch].map(|path| path.display().to_string());
    succeed(&["cp", "-a", "--", &from, &to], Stdio::null()).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec;

    #[test]
    fn every_spec_is_valid_and_automatic() {
        for app in [App::Ledger, App::Sqlite, App::Postgres] {
            let spec =
                spec::load_one("demo.yaml", app.spec()).unwrap_or_else(|findings| panic!("{findings}"));
            assert_eq!(spec.level(), spec::Level::L2, "{app:?}");
        }
    }

    #[test]
    fn a_dump_is_compared_with_what_clients_were_told() {
        let ack = |sequence, id: &str, payload: &str| Ack {
            sequence,
            id: id.into(),
            checksum: crc32c::crc32c(payload.as_bytes()),
            sent: Duration::ZERO,
            acked: Duration::ZERO,
        };
        let told = [ack(1, "a:1", "x"), ack(2, "a:2", "y"), ack(4, "a:4", "z"), ack(5, "a:5", "v")];
        let mut verdict = Verdict::default();
        verdict.compare("1 a:1 x\n2 a:2 other\n3 a:3 untold\n5 b:5 v\n", &told);
        assert_eq!((verdict.lost, verdict.findings.len()), (3, 3), "{verdict:?}");
    }

    #[test]
    fn the_programs_in_python_compile() {
        let Ok(python) = find_python("py_compile", "python3", "") else {
            return println!("SKIPPED: python3 is missing");
        };
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in
            [("gateway.py", GATEWAY), ("sqlite.py", sqlite::PROGRAM), ("postgres.py", postgres::PROGRAM)]
        {
            let path = dir.path().join(name).display().to_string();
            fs::write(&path, text).unwrap();
            succeed(&[&python, "-m", "py_compile", &path], Stdio::null()).unwrap();
        }
    }
}
