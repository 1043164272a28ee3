//! `skc lab`: the two-node lab, verb by verb.

use super::common::{Output, failed, print_value, say};
use super::output::{errln, outln};
use crate::base::Patterns;
use crate::lab::forward::{self, shape::Shape};
use crate::lab::node::{self, STATE_DIR};
use crate::lab::wait::{Condition, Part};
use crate::lab::{Kill, Lab, LabError, Link, Node, Result};
use crate::lab::{bench, compare};
use clap::Subcommand;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Arguments of `skc lab`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which lab; several exist side by side
    #[arg(long, default_value = "lab", global = true)]
    name: String,
    /// Where everything of it is [default: /var/tmp/skc-lab/NAME]
    #[arg(long, env = "SKC_LAB_DIR", global = true)]
    dir: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Boot node-a, node-b, client and witness, enrol the pair, start the agents
    Up {
        /// Apply this spec once both agents run
        #[arg(long)]
        spec: Option<PathBuf>,
        /// Machines only
        #[arg(long)]
        no_agent: bool,
        /// Output form
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// End everything of the lab and remove it
    Down,
    /// Which nodes run, what is cut
    Status {
        /// Output form
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Run a program inside a node; its exit code is passed on
    Exec {
        node: Node,
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Power cut: links down first, then every process, then the network
    Kill {
        node: Node,
        /// Kill the processes only; the kernel goes on answering ARP and sends RST
        #[arg(long)]
        kernel_lives: bool,
    },
    /// Boot a node again with its disk as it was, and start its agent
    Start {
        node: Node,
        /// Machine only
        #[arg(long)]
        no_agent: bool,
    },
    /// Drop frames: between the pair on net1, net2 or all, or on the way to the witness
    Cut {
        #[arg(default_value = "all")]
        link: Link,
        /// Only frames that this node sends (with `witness`: this node's way, both directions)
        #[arg(long)]
        from: Option<Node>,
        /// Only frames to this node
        #[arg(long)]
        to: Option<Node>,
    },
    /// Take cuts back (all of them without arguments)
    Heal {
        link: Option<Link>,
        #[arg(long)]
        from: Option<Node>,
        #[arg(long)]
        to: Option<Node>,
    },
    /// Delay, drop or limit frames between a node and the switch
    Link {
        /// Added to every round trip between any two nodes on net1 and net2, in milliseconds
        #[arg(long)]
        rtt: Option<f64>,
        /// Part of all frames that get lost, in percent
        #[arg(long)]
        loss: Option<f64>,
        /// Megabits a second that a node may send on a network
        #[arg(long)]
        rate: Option<f64>,
        /// Decides which frames get lost
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Take it all back
        #[arg(long, conflicts_with_all = ["rtt", "loss", "rate"])]
        clear: bool,
    },
    /// SIGSTOP: agent, guard, or every process of the node
    Stall(PartArgs),
    /// SIGCONT
    Go(PartArgs),
    /// Wait for PRIM, SECOND, ALONE, WAIT, STOP, Ready, UpToDate, vip, an error code ... (several: all at once)
    Wait {
        node: Node,
        #[arg(required = true)]
        conditions: Vec<Condition>,
        /// Seconds
        #[arg(long, default_value_t = 60.0)]
        timeout: f64,
        /// Only this cluster
        #[arg(long)]
        cluster: Option<String>,
        /// Output form
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Print the host's path of a directory of a node: through its mounts, or its backing directory
    Path {
        node: Node,
        #[arg(value_parser = ["mount", "backing"])]
        which: String,
        /// Path inside the node
        #[arg(default_value = "/srv")]
        path: String,
        /// Output form
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Compare the backing trees of the pair, at rest: names, attributes, bytes, holes; exit code 1 if they differ
    Compare {
        /// Path inside the nodes
        path: String,
        /// As in the spec: what matches is left out (repeatable)
        #[arg(long, value_name = "PATTERN")]
        exclude: Vec<String>,
        /// As in the spec: only what matches is compared (repeatable)
        #[arg(long, value_name = "PATTERN")]
        include: Vec<String>,
        /// Output form
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Measure the bare directory, FUSE without a peer, and the mirror, alternating
    Bench {
        /// Rounds
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        /// Percent of the full number of operations
        #[arg(long, default_value_t = 100)]
        scale: usize,
        /// On what
        #[arg(long, value_enum, value_delimiter = ',', default_values_t = bench::Target::ALL)]
        targets: Vec<bench::Target>,
        /// Output form
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    #[command(name = "__monitor", hide = true)]
    Monitor {
        node: Node,
        #[arg(long)]
        boot_id: String,
    },
    #[command(name = "__init", hide = true)]
    Init {
        node: Node,
        #[arg(long)]
        boot_id: String,
    },
    #[command(name = "__forward", hide = true)]
    Forward {
        node: Node,
        #[arg(long)]
        shape: String,
    },
    #[command(name = "__detach", hide = true)]
    Detach {
        #[arg(long)]
        log: PathBuf,
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
}

#[derive(Debug, clap::Args)]
struct PartArgs {
    node: Node,
    /// The agent's worker only
    #[arg(long, conflicts_with = "guard")]
    agent: bool,
    /// The guard only
    #[arg(long)]
    guard: bool,
}

impl PartArgs {
    fn part(&self) -> Part {
        match (self.agent, self.guard) {
            (true, _) => Part::Agent,
            (_, true) => Part::Guard,
            _ => Part::All,
        }
    }
}

/// Runs the verb.
pub fn run(args: Args) -> ExitCode {
    match verb(args) {
        Ok(code) => code,
        Err(error) => failed(error.code(), error),
    }
}

fn verb(args: Args) -> Result<ExitCode> {
    let program = std::env::current_exe().map_err(|source| LabError::Io {
        op: "find",
        path: "this program".into(),
        source,
    })?;
    let lab = Lab::new(&args.name, args.dir, program)?;
    match args.verb {
        Verb::Up { spec, no_agent, output } => up(&lab, spec, no_agent, output)?,
        Verb::Down => lab.down()?,
        Verb::Status { output } => status(&lab, output)?,
        Verb::Exec { node, command } => {
            let argv: Vec<&str> = command.iter().map(String::as_str).collect();
            let status = lab.exec_here(node, &argv)?;
            let signal = std::os::unix::process::ExitStatusExt::signal(&status).unwrap_or(0);
            return Ok(ExitCode::from(status.code().unwrap_or(128 + signal) as u8));
        }
        Verb::Kill { node, kernel_lives: false } => lab.kill(node, Kill::Power)?,
        Verb::Kill { node, kernel_lives: true } => lab.kill(node, Kill::Processes)?,
        Verb::Start { node, no_agent } => {
            lab.boot(node)?;
            if node.is_pair() && !no_agent {
                lab.start_agent(node)?;
            }
        }
        Verb::Cut { link, from, to } => lab.cut(link, from, to)?,
        Verb::Heal { link, from, to } => lab.heal(link, from, to)?,
        Verb::Link { clear: true, .. } => lab.link(None)?,
        Verb::Link { rtt: None, loss: None, rate: None, .. } => {
            return Err(LabError::Refused("say what: --rtt, --loss, --rate, or --clear".into()));
        }
        Verb::Link { rtt, loss, rate, seed, clear: false } => {
            lab.link(Some(Shape::new(rtt.unwrap_or(0.0), loss.unwrap_or(0.0), rate, seed)?))?;
        }
        Verb::Stall(which) => lab.stall(which.node, which.part())?,
        Verb::Go(which) => lab.go(which.node, which.part())?,
        Verb::Wait { node, conditions, timeout, cluster, output } => {
            let limit = Duration::try_from_secs_f64(timeout)
                .map_err(|error| LabError::Refused(format!("--timeout {timeout}: {error}")))?;
            let begin = Instant::now();
            lab.wait(node, cluster.as_deref(), &conditions, limit)?;
            let value =
                serde_json::json!({"node": node, "met": true, "seconds": begin.elapsed().as_secs_f64()});
            say(output, &value, String::new);
        }
        Verb::Path { node, which, path, output } => {
            let found = if which == "mount" { lab.mounted(node, &path)? } else { lab.backing(node, &path) };
            let shown = found.display().to_string();
            say(output, &serde_json::json!({"path": shown}), || shown.clone() + "\n");
        }
        Verb::Compare { path, exclude, include, output } => {
            let patterns = Patterns::new(&exclude, &include)
                .map_err(|bad| LabError::Refused(format!("the pattern --{bad}")))?;
            return compare(&lab, &path, patterns.as_ref(), output);
        }
        Verb::Bench { rounds, scale, targets, output } => {
            let options = bench::Options { targets, rounds, scale };
            let report = bench::run(&lab, &options, &mut |line| errln!("{line}"))?;
            say(output, &serde_json::json!(report), || bench::table(&report));
        }
        Verb::Monitor { node, boot_id } => node::monitor(&lab, node, &boot_id)?,
        Verb::Init { node, boot_id } => node::init(&lab, node, &boot_id)?,
        Verb::Forward { node, shape } => {
            let shape: Shape = serde_json::from_str(&shape)
                .map_err(|error| LabError::Refused(format!("--shape {shape}: {error}")))?;
            forward::run(&lab, node, &shape)?;
        }
        Verb::Detach { log, command } => node::detach_here(&command, &log)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn compare(lab: &Lab, path: &str, patterns: Option<&Patterns>, output: Output) -> Result<ExitCode> {
    let [a, b] = Node::PAIR.map(|node| lab.backing(node, path));
    for root in [&a, &b] {
        // Blocks whose zeroing is still in a journal count as data for as long as their pages cannot be dropped.
        let synced = std::fs::File::open(root).and_then(|dir| {
            crate::sys::file::sync_fs(dir.as_fd()).map_err(|e| std::io::Error::from_raw_os_error(e.0))
        });
        synced.map_err(|source| LabError::Io { op: "sync", path: root.clone(), source })?;
    }
    let is_mirrored = |path: &Path, is_dir| {
        let names: Vec<&[u8]> = path.iter().map(OsStrExt::as_bytes).collect();
        patterns.is_none_or(|patterns| patterns.mirrors(&names, is_dir))
    };
    let found = compare::mirrored(&a, &b, &is_mirrored).map_err(|source| LabError::Io {
        op: "compare",
        path: a,
        source,
    })?;
    say(output, &serde_json::json!(found), || {
        let counts =
            format!("{} objects, {} bytes: {} differences", found.objects, found.bytes, found.differences);
        std::iter::once(counts).chain(found.examples.clone()).map(|line| line + "\n").collect()
    });
    Ok(ExitCode::from(u8::from(!found.equal())))
}

fn up(lab: &Lab, spec: Option<PathBuf>, no_agent: bool, output: Output) -> Result<()> {
    lab.up()?;
    let mut applied = String::new();
    if no_agent {
        lab.enrol()?;
    } else {
        lab.start_pair()?;
        if let Some(spec) = spec {
            applied = lab.apply(Node::NodeA, &spec)?;
        }
    }
    let said: Vec<&str> = applied.lines().collect();
    let value =
        serde_json::json!({"name": lab.name(), "dir": lab.dir(), "agents": !no_agent, "applied": said});
    say(output, &value, || applied.clone());
    Ok(())
}

fn status(lab: &Lab, output: Output) -> Result<()> {
    let state = lab.state()?;
    let rows: Vec<_> = Node::ALL.into_iter().map(|node| (node, lab.booted(node).ok())).collect();
    if output != Output::Human {
        let nodes: serde_json::Map<_, _> = rows
            .iter()
            .map(|(node, boot)| {
                let value = serde_json::json!({
                    "up": boot.is_some(),
                    "init": boot.as_ref().map(|b| b.init),
                    "boot_id": boot.as_ref().map(|b| &b.boot_id),
                    "addresses": node.nets().iter().map(|net| node.address(*net)).collect::<Vec<_>>(),
                });
                (node.to_string(), value)
            })
            .collect();
        let all = serde_json::json!({"name": lab.name(), "dir": lab.dir(), "nodes": nodes, "cuts": state.cuts, "link": state.link});
        print_value(output, &all);
        return Ok(());
    }
    outln!("lab {}  {}", lab.name(), lab.dir().display());
    for (node, boot) in rows {
        let life = boot
            .map_or("down".to_owned(), |boot| format!("up    PID 1 is {}, boot {}", boot.init, boot.boot_id));
        let addresses: Vec<_> = node.nets().iter().map(|net| node.address(*net).to_string()).collect();
        outln!("  {:<8} {:<24} {life}", node.name(), addresses.join(" "));
    }
    for cut in state.cuts {
        let name = |node: Option<Node>| node.map_or("anyone", Node::name);
        outln!("  cut      net{} from {} to {}", cut.net, name(cut.from), name(cut.to));
    }
    if let Some(shape) = state.link {
        outln!("  link     {shape}");
    }
    outln!("  state of an agent is at {STATE_DIR} inside the node; its log at NODE/agent.log here");
    Ok(())
}
