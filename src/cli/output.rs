//! Printing that survives a reader who went away.

use std::io::Write;

/// Writes to standard output. A closed pipe (`| head`) is no error of ours, and `println!` would
/// panic on it.
pub fn emit(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
