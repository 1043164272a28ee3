//! `skc status`: roles, data states, guarantee level, resync progress, "would fail over now".

use super::common::{Connection, Output, call, fail, misunderstood, print_value};
use super::output::emit;
use crate::api::{ClusterStatus, Request};
use std::process::ExitCode;
use std::time::Duration;

/// Arguments of `skc status`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only this cluster.
    cluster: Option<String>,
    /// Again every second until interrupted.
    #[arg(short, long)]
    watch: bool,
    /// Output form.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    connection: Connection,
}

/// Runs the verb.
pub fn run(args: Args) -> ExitCode {
    loop {
        let request = Request::Status { cluster: args.cluster.clone() };
        let value = match call(&args.connection, &request, Duration::from_secs(10)) {
            Ok(value) => value,
            Err(code) => return code,
        };
        let read = if args.output == Output::Human {
            let mut text = if args.watch { "\x1b[2J\x1b[H".to_owned() } else { String::new() };
            match serde_json::from_value::<Vec<ClusterStatus>>(value) {
                Ok(clusters) if clusters.is_empty() => text += "no clusters; next: skc apply -f SPEC.yaml\n",
                Ok(clusters) => text.extend(clusters.iter().map(render)),
                Err(error) => return fail(&misunderstood(&error)),
            }
            emit(&text)
        } else {
            print_value(args.output, &value)
        };
        if !args.watch || !read {
            return ExitCode::SUCCESS;
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// One cluster for a person.
pub fn render(c: &ClusterStatus) -> String {
    use std::fmt::Write;
    if c.name.is_empty() {
        return render_node(c);
    }
    let mut s = String::new();
    let _ = write!(s, "{}  {} {}  on {}", c.name, c.role, c.ready, c.node);
    // A cluster that is not up knows neither.
    for (what, value) in [("epoch", &c.epoch), ("data", &c.data_state)] {
        if !value.is_empty() {
            let _ = write!(s, "  {what} {value}");
        }
    }
    s.push('\n');
    let peer =
        if c.peer.connected { format!("connected, {}", c.peer.role) } else { "not connected".to_owned() };
    let _ = writeln!(s, "  peer        {} {peer}", c.peer.name);
    for p in &c.peer.paths {
        let age = p.age_ms.map_or("never heard".to_owned(), |ms| format!("heard {ms} ms ago"));
        let rtt = p.rtt_us.map_or(String::new(), |us| format!(", round trip {us} us"));
        let _ = writeln!(
            s,
            "  path        {} {} ({age}{rtt})",
            p.address,
            if p.alive { "alive" } else { "dead" }
        );
    }
    for v in &c.vips {
        let _ = writeln!(
            s,
            "  vip         {} {} {}",
            v.address,
            if v.held { "here" } else { "not here" },
            v.note
        );
    }
    for d in &c.directories {
        let _ = writeln!(s, "  directory   {} {} {} {}", d.name, d.state, d.consistency, d.note);
    }
    for (kind, items) in [("service", &c.services), ("checker", &c.checkers)] {
        for i in items {
            let _ = writeln!(s, "  {kind:<11} {} {} {}", i.name, i.state, i.note);
        }
    }
    if c.resync.active {
        let eta = c.resync.eta_s.map_or(String::new(), |e| format!(", {e} s left"));
        let _ = writeln!(
            s,
            "  resync      {} files, {} MiB compared, {} KiB sent{eta}",
            c.resync.files,
            c.resync.compared_bytes >> 20,
            c.resync.bytes >> 10
        );
    }
    s.push_str(&window(c));
    let _ = writeln!(s, "  guarantee   {}  {}", c.level, c.level_note);
    let _ = writeln!(
        s,
        "  would fail over now: {}{}",
        if c.would_fail_over.now { "yes" } else { "no" },
        if c.would_fail_over.why.is_empty() { String::new() } else { format!(", {}", c.would_fail_over.why) }
    );
    for r in &c.reasons {
        let _ = writeln!(s, "  why         [{}] {}", r.code, r.text);
    }
    if let Some(command) = &c.command {
        let _ = writeln!(s, "  next        {command}");
    }
    s
}

/// How far the standby is behind, where that is more than the calls in flight.
fn window(c: &ClusterStatus) -> String {
    let early = c.directories.iter().any(|d| matches!(d.consistency.as_str(), "commit" | "async"));
    if !early || c.role != "PRIM" {
        return String::new();
    }
    let w = &c.window;
    let oldest = w.oldest_ms.map_or(String::new(), |ms| format!(", the oldest {ms} ms ago"));
    format!(
        "  standby     {} operations, {} KiB behind{oldest}; answered {} of {} KiB, at most {} ms\n",
        c.unacknowledged,
        w.bytes.div_ceil(1024),
        w.answered_bytes.div_ceil(1024),
        w.limit_bytes >> 10,
        w.limit_ms
    )
}

/// A node whose agent cannot serve.
fn render_node(c: &ClusterStatus) -> String {
    use std::fmt::Write;
    let since = c.extra.get("since_ms").and_then(serde_json::Value::as_u64).unwrap_or(0) / 1000;
    let mut s = format!("this node is not ready, for {since} s; its agent tries again by itself\n");
    for r in &c.reasons {
        let _ = writeln!(s, "  why         [{}] {}", r.code, r.text);
    }
    if let Some(command) = &c.command {
        let _ = writeln!(s, "  next        {command}");
    }
    s
}
