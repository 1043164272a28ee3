//! PostgreSQL with data checksums. Its data directory is made on the first node before any spec is applied, the way
//! an operator brings existing data; the other node is seeded from it.

use super::{
    Application, Verdict, copy, find_python, output, program, said, succeed, write_program, write_python,
};
use crate::lab::error::Context;
use crate::lab::ledger::client::Ack;
use crate::lab::process::Output;
use crate::lab::{Lab, LabError, Result};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// Serves the server to clients and dumps its records.
pub(super) const PROGRAM: &str = include_str!("postgres.py");
/// Its name in the nodes.
const NAME: &str = "skc-demo-gateway";
/// Programs that are needed; `pg_amcheck` is used where it is there.
const PROGRAMS: [&str; 5] = ["initdb", "postgres", "pg_ctl", "psql", "pg_checksums"];
/// Where distributions put them.
const HOMES: [&str; 2] = ["/usr/lib/postgresql", "/usr"];
const HINT: &str =
    "install PostgreSQL (Debian, Ubuntu: postgresql; Fedora: postgresql-server and postgresql-contrib)";
/// The user whom it runs as: it refuses root.
const USER: &str = "postgres";
/// What the first node's directory holds before the spec is applied. Where contrib is missing the extension fails, which
/// ends nothing, and the judge says so.
const TABLES: &str = "CREATE TABLE record(sequence bigserial PRIMARY KEY, id text NOT NULL UNIQUE, payload text NOT NULL)\n\
     CREATE EXTENSION amcheck\n";
/// The server of a node: its socket lies in memory of the node's own, not in the mirror.
const SERVER: &str = "mkdir -p -m 700 /dev/shm/skc-demo && exec";

/// See the module.
pub(super) struct Postgres {
    python: String,
    /// Directory of its programs.
    bin: PathBuf,
}

impl Postgres {
    pub(super) fn find() -> Result<Self> {
        let missing = |what: String| LabError::Missing { what, hint: HINT };
        let versions = HOMES.iter().flat_map(|home| fs::read_dir(home).into_iter().flatten().flatten());
        let mut bins: Vec<PathBuf> = versions.map(|entry| entry.path().join("bin")).collect();
        bins.push("/usr/bin".into());
        let whole = |bin: &PathBuf| PROGRAMS.iter().all(|program| bin.join(program).exists());
        let bin = bins.into_iter().find(whole);
        let bin = bin.ok_or_else(|| missing(format!("PostgreSQL ({})", PROGRAMS.join(", "))))?;
        if !output(&["id", USER], Stdio::null()).is_ok_and(|output| output.status.success()) {
            return Err(missing(format!("the user {USER}, whom PostgreSQL runs as")));
        }
        let python = find_python("socket, struct, threading", "python3", "install python3")?;
        Ok(Self { python, bin })
    }

    fn argv(&self, program: &str, rest: &[&str]) -> Vec<String> {
        let program = self.bin.join(program).display().to_string();
        let all = ["runuser", "-u", USER, "--", &program].into_iter().chain(rest.iter().copied());
        all.map(str::to_owned).collect()
    }

    /// Runs one of its programs as its user.
    fn tool(&self, program: &str, rest: &[&str]) -> Result<Output> {
        output(&self.argv(program, rest), Stdio::null())
    }

    /// The same; a failure is an error.
    fn make(&self, program: &str, rest: &[&str], stdin: Stdio) -> Result<()> {
        succeed(&self.argv(program, rest), stdin).map(drop)
    }

    /// Looks at a running server: the records, and indexes against their tables.
    fn look(&self, lab: &Lab, dir: &str, socket: &str, acks: &[Ack], verdict: &mut Verdict) -> Result<()> {
        let gateway = program(lab, NAME).display().to_string();
        let dump = output(&[&gateway, "--data", dir, "--socket", socket, "--dump"], Stdio::null())?;
        if !dump.status.success() {
            verdict.unclean(format!("{dir}: {}", said(&dump)));
        }
        verdict.compare(&dump.stdout, acks);
        let has = "SELECT count(*) FROM pg_extension WHERE extname = 'amcheck'";
        let has = self.tool("psql", &["-qAtX", "-h", socket, "-c", has, "postgres"])?;
        if has.stdout.trim() != "1" || !self.bin.join("pg_amcheck").exists() {
            verdict.tools = "pg_checksums --check (pg_amcheck or its extension is not installed: \
                             indexes were not compared)"
                .into();
            return Ok(());
        }
        verdict.tools = "pg_amcheck --heapallindexed and pg_checksums --check".into();
        self.clean("pg_amcheck", &["-h", socket, "--heapallindexed", "-d", "postgres"], dir, verdict)
    }

    fn clean(&self, program: &str, rest: &[&str], dir: &str, verdict: &mut Verdict) -> Result<()> {
        let output = self.tool(program, rest)?;
        if !output.status.success() {
            verdict.unclean(format!("{dir}: {program}: {}", said(&output)));
        }
        Ok(())
    }
}

impl Application for Postgres {
    fn writes(&self) -> &'static str {
        "append records, each a transaction of PostgreSQL"
    }

    fn install(&self, lab: &Lab, first: &Path) -> Result<()> {
        let server = self.bin.join("postgres").display().to_string();
        let script = format!(
            "#!/bin/sh\n{SERVER} {server} -k /dev/shm/skc-demo -p 5432 -c listen_addresses= \"$@\"\n"
        );
        write_program(lab, "skc-demo-postgres", &script)?;
        write_python(lab, NAME, &self.python, PROGRAM)?;
        let data = first.display().to_string();
        succeed(&["install", "-d", "-o", USER, "-m", "700", &data], Stdio::null())?;
        // Not synced: a lab's power cut leaves the page cache of this machine alone.
        let options =
            ["--data-checksums", "--no-sync", "-A", "trust", "-U", USER, "-E", "UTF8", "--locale=C"];
        self.make("initdb", &[&["-D", &data], &options as &[&str]].concat(), Stdio::null())?;
        let tables = lab.dir().join("tables.sql");
        fs::write(&tables, TABLES).context("write", &tables)?;
        let tables = File::open(&tables).context("open", tables)?;
        self.make("postgres", &["--single", "-D", &data, "postgres"], tables.into())
    }

    fn brings_data(&self) -> bool {
        true
    }

    fn has_ended(&self, dir: &Path) -> bool {
        !dir.join("postmaster.pid").exists()
    }

    fn judge(&self, lab: &Lab, dir: &Path, scratch: &Path, acks: &[Ack]) -> Result<Verdict> {
        copy(dir, scratch)?;
        let data = scratch.display().to_string();
        let (shown, log) = (dir.display().to_string(), format!("{data}/demo.log"));
        let options = format!("-k {data} -c listen_addresses=");
        let mut verdict = Verdict::default();
        let start = ["-D", &data, "-l", &log, "-o", &options, "-w", "-t", "100", "start"];
        let started = self.tool("pg_ctl", &start)?;
        if started.status.success() {
            let looked = self.look(lab, &shown, &data, acks, &mut verdict);
            // Also after an error: nothing of the demo may stay behind.
            self.clean("pg_ctl", &["-D", &data, "-m", "fast", "-w", "stop"], &shown, &mut verdict)?;
            looked?;
        } else {
            let log = fs::read_to_string(&log).unwrap_or_default();
            verdict.unclean(format!("{shown}: PostgreSQL does not start: {}", log.trim()));
            verdict.compare("", acks);
        }
        self.clean("pg_checksums", &["--check", "-D", &data], &shown, &mut verdict)?;
        Ok(verdict)
    }
}
