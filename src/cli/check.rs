//! `skc check`: what this machine has and lacks, before the first spec.

use super::common::Output;
use super::output::outln;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

/// Arguments of `skc check`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Also check this directory: file system, space, fsync latency, whether it is mounted over.
    #[arg(long)]
    directory: Option<PathBuf>,
    /// Output form.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// One finding.
#[derive(Debug, serde::Serialize)]
struct Finding {
    what: &'static str,
    ok: bool,
    note: String,
}

/// Oldest kernel of the support table (DESIGN section 8).
const KERNEL_MIN: (u32, u32) = (5, 14);

/// Runs the verb: exit 0 all good, 1 something is missing.
pub fn run(args: Args) -> ExitCode {
    let mut findings = vec![kernel(), root(), fuse_device(), port(7690), port(7691)];
    if let Some(directory) = &args.directory {
        findings.extend(check_directory(directory));
    }
    let good = findings.iter().all(|f| f.ok);
    if args.output == Output::Human {
        for f in &findings {
            outln!("{} {:<14} {}", if f.ok { "ok  " } else { "MISS" }, f.what, f.note);
        }
    } else {
        super::common::print_value(args.output, &serde_json::to_value(&findings).unwrap_or_default());
    }
    ExitCode::from(u8::from(!good))
}

fn kernel() -> Finding {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map(|n| n.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    Finding {
        what: "kernel",
        ok: version >= KERNEL_MIN,
        note: format!("{} (5.14 or later is needed)", release.trim()),
    }
}

fn root() -> Finding {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let uid = status.lines().find_map(|l| l.strip_prefix("Uid:")).and_then(|l| l.split_whitespace().nth(1));
    Finding { what: "root", ok: uid == Some("0"), note: "mounting and addresses need root".to_owned() }
}

fn fuse_device() -> Finding {
    match std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        Ok(_) => Finding { what: "/dev/fuse", ok: true, note: "can be opened".to_owned() },
        Err(error) => Finding { what: "/dev/fuse", ok: false, note: format!("{error}; try `modprobe fuse`") },
    }
}

fn port(port: u16) -> Finding {
    let what = if port == 7690 { "port 7690" } else { "port 7691" };
    match std::net::TcpListener::bind(("0.0.0.0", port)) {
        Ok(_) => Finding { what, ok: true, note: "free".to_owned() },
        Err(error) => Finding { what, ok: false, note: format!("{error} (fine if it is the agent itself)") },
    }
}

fn check_directory(path: &std::path::Path) -> Vec<Finding> {
    let mut findings = Vec::new();
    match std::fs::metadata(path) {
        Ok(meta) if meta.is_dir() => {
            findings.push(Finding { what: "directory", ok: true, note: path.display().to_string() });
        }
        Ok(_) => {
            findings.push(Finding {
                what: "directory",
                ok: false,
                note: format!("{} is no directory", path.display()),
            });
            return findings;
        }
        Err(error) => {
            findings.push(Finding {
                what: "directory",
                ok: false,
                note: format!("{}: {error}", path.display()),
            });
            return findings;
        }
    }
    let probe = path.join(format!(".skc-check-{}", std::process::id()));
    let began = Instant::now();
    let result = std::fs::File::create(&probe).and_then(|f| f.sync_all());
    let _ = std::fs::remove_file(&probe);
    findings.push(match result {
        Ok(()) => Finding {
            what: "fsync",
            ok: true,
            note: format!("{:.1} ms", began.elapsed().as_secs_f64() * 1e3),
        },
        Err(error) => Finding { what: "fsync", ok: false, note: error.to_string() },
    });
    findings
}
