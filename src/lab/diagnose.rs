//! What to show when something in a lab went wrong: status, events and logs of both nodes.

use super::{Lab, Node};
use std::fmt::Write as _;
use std::time::Duration;

/// Lines of each log that are shown.
const LINES: usize = 40;

impl Lab {
    /// A text for the person who has to find out why; never fails.
    pub fn diagnosis(&self) -> String {
        let mut out = String::new();
        let program = self.program().to_string_lossy();
        for node in Node::PAIR {
            let _ = writeln!(out, "---- {node} ----");
            for verb in [&["status"] as &[&str], &["events", "-n", "40"]] {
                let argv: Vec<&str> = std::iter::once(&*program).chain(verb.iter().copied()).collect();
                let text = match self.exec(node, &argv, Duration::from_secs(5)) {
                    Ok(output) => output.stdout + &output.stderr,
                    Err(error) => error.to_string(),
                };
                let _ = writeln!(out, "{}", text.trim_end());
            }
            let path = self.agent_log(node);
            let log = std::fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let _ = writeln!(out, "last lines of {}:", path.display());
            for line in lines.iter().skip(lines.len().saturating_sub(LINES)) {
                let _ = writeln!(out, "  {line}");
            }
        }
        out
    }
}
