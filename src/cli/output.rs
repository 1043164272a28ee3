//! Printing that survives a reader who went away.
//!
//! `println!` and `eprintln!` panic on a closed pipe (`skc status | head -1`), therefore every verb prints
//! with what is here. A reader who went away is no error of the verb: its exit code stays that of its work,
//! and a verb that goes on until somebody stops it (`status -w`, `events -f`) ends with 0.

use std::io::Write;

/// Writes to standard output. `false`: nobody reads any more.
pub fn emit(text: &str) -> bool {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok()
}

/// Writes to standard error, if anybody reads it.
pub fn complain(text: &str) {
    let mut out = std::io::stderr().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// `print!` that does not panic; gives whether somebody reads.
macro_rules! out {
    ($($arg:tt)*) => { $crate::cli::output::emit(&format!($($arg)*)) };
}
/// `println!` that does not panic; gives whether somebody reads.
macro_rules! outln {
    ($($arg:tt)*) => { $crate::cli::output::emit(&(format!($($arg)*) + "\n")) };
}
/// `eprintln!` that does not panic.
macro_rules! errln {
    ($($arg:tt)*) => { $crate::cli::output::complain(&(format!($($arg)*) + "\n")) };
}
pub(crate) use {errln, out, outln};
