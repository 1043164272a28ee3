//! `skc demo`: a two-node cluster on this machine: write, cut the power, fail over, come back, swap.

use super::common::{Output, fail, failed};
use super::output::{complain, emit, errln, outln};
use crate::api::ApiError;
use crate::base::codes;
use crate::lab::demo::{self, Options, app, setup::Setup, show};
use crate::lab::{Lab, LabError};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

/// Exit code when something was lost or differs.
const LOSS: u8 = 1;

/// Arguments of `skc demo`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The application
    #[arg(long, value_enum, default_value_t)]
    app: App,
    /// Leave the lab running and say how to look around
    #[arg(long)]
    keep: bool,
    /// Output form: json prints one object
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    /// Decides the moment of the power cut [default: random]
    #[arg(long)]
    seed: Option<u64>,
    /// Another spec than the application's built-in one (ledger: specs/clusters/ledger.yaml)
    #[arg(long)]
    spec: Option<PathBuf>,
    /// Another heartbeat.timeout, like 500ms
    #[arg(long)]
    timeout: Option<String>,
    /// Name of the lab it runs in
    #[arg(long, default_value = "demo")]
    name: String,
}

/// What writes, is killed and must have lost nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
enum App {
    /// The built-in ledger: appends records, each with an fdatasync
    #[default]
    Ledger,
    /// SQLite in WAL mode behind a small server (needs python3 with its sqlite3 module)
    Sqlite,
    /// PostgreSQL with data checksums (needs its server and client programs and python3)
    Postgres,
}

impl From<App> for app::App {
    fn from(app: App) -> Self {
        match app {
            App::Ledger => Self::Ledger,
            App::Sqlite => Self::Sqlite,
            App::Postgres => Self::Postgres,
        }
    }
}

/// Runs the verb.
pub fn run(args: Args) -> ExitCode {
    let human = args.output == Output::Human;
    let colour = human && std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => {
            return failed(codes::LAB_SETUP, format!("find this program: {error}"));
        }
    };
    let options = Options {
        app: args.app.into(),
        name: args.name,
        keep: args.keep,
        seed: args.seed.unwrap_or_else(random_seed),
        spec: args.spec,
        timeout: args.timeout,
        program,
    };
    let mut tell = |step: &demo::Step| {
        if human {
            // A closed pipe ends the output, not the demo.
            outln!("{}", show::line(step, colour));
        }
    };
    match demo::run(&options, &mut tell) {
        Ok(report) => {
            if human {
                emit(&show::figures(&report, colour));
                hints(&options);
            } else {
                super::common::print_value(args.output, &serde_json::json!(report));
            }
            if report.good() {
                return ExitCode::SUCCESS;
            }
            let dir =
                Lab::new(&options.name, None, options.program).map(|lab| lab.dir().display().to_string());
            let (lost, seed, dir) = (report.lost, report.seed, dir.unwrap_or_default());
            failed(
                codes::LAB_VERDICT,
                format!(
                    "{lost} records lost, trees equal: {}; seed {seed}, all of it is kept in {dir}",
                    report.trees_equal
                ),
            );
            ExitCode::from(LOSS)
        }
        Err(error) => broken(&options, &error),
    }
}

fn hints(options: &Options) {
    let lab = Lab::new(&options.name, None, options.program.clone());
    let setup = Setup::read(options.app, options.spec.as_deref(), options.timeout.as_deref());
    if let (true, Ok(lab), Ok(setup)) = (options.keep, lab, setup) {
        emit(&show::keep_hints(&lab, &setup.directory, &setup.connect.to_string()));
    }
}

fn broken(options: &Options, error: &LabError) -> ExitCode {
    if let LabError::NeedsRoot = error {
        let program = options.program.display();
        let what = "skc demo needs root for its network namespaces and FUSE mounts";
        return fail(&ApiError::new(error.code().id, what, format!("sudo {program} demo")));
    }
    if let Ok(lab) = Lab::new(&options.name, None, options.program.clone())
        && lab.is_up()
    {
        complain(&lab.diagnosis());
        errln!("seed {}; the lab is left as it is: `skc lab down --name {}`", options.seed, lab.name());
    }
    failed(error.code(), error)
}

fn random_seed() -> u64 {
    let mut bytes = [0; 4];
    // Without random numbers the moment is the same each time: still a demo.
    if getrandom::fill(&mut bytes).is_err() {
        return 1;
    }
    u64::from(u32::from_ne_bytes(bytes))
}
