//! The timeline and the figures as a person likes to read them.

use super::{Kind, Report, Step};
use crate::lab::{Lab, Node};
use std::fmt::Write as _;

/// `12345` as `12,345`.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Bytes with a binary unit.
pub fn bytes(number: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB"];
    let mut value = number as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{number} B") } else { format!("{value:.1} {}", units[unit]) }
}

fn icon(kind: Kind) -> (&'static str, u8) {
    match kind {
        Kind::Setup => ("·", 2),
        Kind::Ready => ("●", 32),
        Kind::Write => ("✎", 36),
        Kind::Cut => ("⚡", 31),
        Kind::Takeover => ("▲", 33),
        Kind::Return => ("↻", 36),
        Kind::Swap => ("⇄", 36),
        Kind::Check => ("✓", 32),
    }
}

/// One line of the timeline, with colour if `colour`.
pub fn line(step: &Step, colour: bool) -> String {
    let (icon, code) = icon(step.kind);
    let at = format!("{:6.1} s", step.at_s);
    if colour {
        format!("\x1b[2m{at}\x1b[0m  \x1b[{code}m{icon}\x1b[0m  {}", step.text)
    } else {
        format!("{at}  {icon}  {}", step.text)
    }
}

/// The figures under the timeline.
pub fn figures(report: &Report, colour: bool) -> String {
    let mut out = String::from("\n");
    let mut row = |name: &str, value: String| {
        let _ = writeln!(out, "  {name:<22} {value}");
    };
    row("acknowledged", thousands(report.acknowledged));
    row("lost", report.lost.to_string());
    row("trees", if report.trees_equal { "equal".into() } else { "DIFFER".into() });
    row(
        "outage",
        format!("{} ms  (heartbeat.timeout {})", thousands(report.outage_ms), report.heartbeat_timeout),
    );
    row("resync", format!("{} in {:.2} s, under load", bytes(report.resync_bytes), report.resync_seconds));
    row("swap", format!("{} ms", thousands(report.swap_ms)));
    row(&report.unit, format!("p50 {} us, p99 {} us", report.append_p50_us, report.append_p99_us));
    for finding in &report.findings {
        let _ = writeln!(out, "  ! {finding}");
    }
    let (verdict, code) = match (report.good(), report.lost) {
        (true, _) => ("A machine died. Nothing was lost.", 32),
        (false, 0) => ("The trees differ: this is a bug, please report it with the seed below.", 31),
        (false, _) => ("RECORDS WERE LOST: this is a bug, please report it with the seed below.", 31),
    };
    let verdict = if colour { format!("\x1b[1;{code}m{verdict}\x1b[0m") } else { verdict.to_owned() };
    let _ = writeln!(out, "\n  {verdict}  ({:.0} s, seed {})", report.seconds, report.seed);
    out
}

/// What to do with a lab that `--keep` left running.
pub fn keep_hints(lab: &Lab, directory: &str, connect: &str) -> String {
    let run = format!("skc lab --name {}", lab.name());
    format!(
        "\nIt is still running. Look around:\n  \
         {run} exec node-a -- skc status\n  \
         {run} exec node-b -- skc events\n  \
         {run} exec client -- skc ledger client --connect {connect} --journal /tmp/ledger.journal --seconds 5\n  \
         {run} kill node-a        # a power cut; `{run} start node-a` brings it back\n  \
         ls {}\n  \
         {run} down               # the end\n",
        lab.backing(Node::NodeA, directory).display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_and_bytes_have_units() {
        assert_eq!(
            (thousands(7), thousands(1000), thousands(1_234_567)),
            ("7".into(), "1,000".into(), "1,234,567".into())
        );
        assert_eq!((bytes(1023), bytes(1536)), ("1023 B".to_owned(), "1.5 KiB".to_owned()));
    }

    #[test]
    fn a_pipe_gets_no_escape_codes() {
        let step = Step { at_s: 1.25, kind: Kind::Cut, text: "x".into() };
        assert!(!line(&step, false).contains('\x1b'));
        assert!(!figures(&Report::default(), false).contains('\x1b'));
    }
}
