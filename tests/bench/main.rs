//! The benchmark as a test target: `cargo test --release --test bench -- --ignored --nocapture`.
//! The same as `skc lab bench`. Not part of the ordinary run: figures need a quiet machine.

#[path = "../skip/mod.rs"]
mod skip;

use skc::lab::bench::{Options, Target, run, table};
use skc::lab::{Lab, LabError};
use std::path::PathBuf;

fn measure(targets: &[Target], rounds: usize, scale: usize) {
    if let Err(error) = Lab::preflight() {
        skip::skipped(&skip::this_test(), error);
        return;
    }
    let program = PathBuf::from(env!("CARGO_BIN_EXE_skc"));
    let lab = Lab::new(&format!("bench-{}", std::process::id()), None, program).expect("a lab");
    let options = Options { targets: targets.to_vec(), rounds, scale };
    let report = run(&lab, &options, &mut |line| eprintln!("{line}")).map_err(|error: LabError| {
        let diagnosis = lab.diagnosis();
        if let Err(second) = lab.down() {
            eprintln!("cleaning up: {second}");
        }
        format!("{error}\n{diagnosis}")
    });
    println!("{}", table(&report.unwrap_or_else(|error| panic!("{error}"))));
}

#[test]
fn the_loops_run_on_a_bare_directory() {
    measure(&[Target::Bare], 1, 2);
}

#[test]
#[ignore = "figures need a quiet machine; run it on purpose"]
fn bare_fuse_and_mirror_in_each_mode() {
    measure(&Target::ALL, 5, 100);
}
