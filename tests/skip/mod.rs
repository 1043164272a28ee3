//! Says that a test was skipped so that it cannot be overlooked.

use std::fmt::Display;
use std::io::Write;

/// Names `test` and what is missing on the process' real standard error: libtest swallows what
/// `println!` and `eprintln!` print in a test that passes, but not what is written to the stream itself.
pub fn skipped(test: &str, missing: impl Display) {
    let line = format!("SKIPPED {test}: {missing}\n");
    // Without a standard error there is nobody to tell.
    let _ = std::io::stderr().lock().write_all(line.as_bytes());
}

/// The name of the running test, by which libtest calls its thread.
pub fn this_test() -> String {
    std::thread::current().name().unwrap_or("a test").to_owned()
}
