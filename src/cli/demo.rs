//! `skc demo`: a two-node cluster on this machine: write, cut the power, fail over, come back, swap.

use super::common::Output;
use super::output::{complain, emit, errln, outln};
use crate::lab::demo::{self, Options, setup::Setup, show};
use crate::lab::{Lab, LabError};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

/// Arguments of `skc demo`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Leave the lab running and say how to look around
    #[arg(long)]
    keep: bool,
    /// Output form: json prints one object
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    /// Decides the moment of the power cut [default: random]
    #[arg(long)]
    seed: Option<u64>,
    /// Another spec than the built-in specs/clusters/ledger.yaml
    #[arg(long)]
    spec: Option<PathBuf>,
    /// Another heartbeat.timeout, like 500ms
    #[arg(long)]
    timeout: Option<String>,
    /// Name of the lab it runs in
    #[arg(long, default_value = "demo")]
    name: String,
}

/// Runs the verb.
pub fn run(args: Args) -> ExitCode {
    let human = args.output == Output::Human;
    let colour = human && std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => {
            errln!("skc demo: find this program: {error}");
            return ExitCode::from(2);
        }
    };
    let options = Options {
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
            ExitCode::from(u8::from(!report.good()))
        }
        Err(error) => failed(&options, &error),
    }
}

fn hints(options: &Options) {
    let lab = Lab::new(&options.name, None, options.program.clone());
    let setup = Setup::read(options.spec.as_deref(), options.timeout.as_deref());
    if let (true, Ok(lab), Ok(setup)) = (options.keep, lab, setup) {
        emit(&show::keep_hints(&lab, &setup.directory, &setup.connect.to_string()));
    }
}

fn failed(options: &Options, error: &LabError) -> ExitCode {
    match error {
        LabError::NeedsRoot => {
            let program = options.program.display();
            errln!(
                "skc demo: needs root for its network namespaces and FUSE mounts; run: sudo {program} demo"
            );
        }
        error => {
            errln!("skc demo: {error}");
            if let Ok(lab) = Lab::new(&options.name, None, options.program.clone())
                && lab.is_up()
            {
                complain(&lab.diagnosis());
                errln!(
                    "seed {}; the lab is left as it is: `skc lab down --name {}`",
                    options.seed,
                    lab.name()
                );
            }
        }
    }
    ExitCode::from(2)
}

fn random_seed() -> u64 {
    let mut bytes = [0; 4];
    // Without random numbers the moment is the same each time: still a demo.
    if getrandom::fill(&mut bytes).is_err() {
        return 1;
    }
    u64::from(u32::from_ne_bytes(bytes))
}
