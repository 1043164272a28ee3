//! The `skc` binary: argument parsing and process exit only; everything else is in the library.
use std::process::ExitCode;

fn main() -> ExitCode {
    skc::cli::main()
}
