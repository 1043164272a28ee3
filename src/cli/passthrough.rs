//! `skc passthrough`: Mount the mirror file system over a directory without a peer (benchmarks and file-system tests).

use super::common::failed;
use super::output::errln;
use crate::base::Volume;
use crate::base::codes::{self, Code};
use crate::fuse::{self, Local, Mount, MountError, PrepareError};
use crate::sys::backing::Backing;
use crate::tree::Tree;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// Arguments of `skc passthrough`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The directory to mount over
    dir: PathBuf,
    /// Stay in the foreground until SIGTERM or unmounted (default: return once it is mounted)
    #[arg(long)]
    foreground: bool,
    /// Threads that read requests
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=16))]
    workers: u8,
    /// Write a line to this descriptor once it is mounted
    #[arg(long)]
    ready_fd: Option<u32>,
    /// Write the process id here
    #[arg(long)]
    pidfile: Option<PathBuf>,
}

/// Why it is not mounted, with the page that says more.
struct Failure(Code, String);

impl From<String> for Failure {
    fn from(message: String) -> Self {
        Self(codes::PASSTHROUGH, message)
    }
}

impl From<MountError> for Failure {
    fn from(error: MountError) -> Self {
        Self(error.code(), error.to_string())
    }
}

/// Runs the verb.
#[allow(clippy::needless_pass_by_value)] // every verb has this signature
pub fn run(args: Args) -> ExitCode {
    let result = if args.foreground { serve(&args) } else { background(&args) };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure(code, message)) => failed(code, message),
    }
}

/// Starts this program again in the foreground and waits until it is mounted.
fn background(args: &Args) -> Result<(), Failure> {
    let exe = std::env::current_exe().map_err(|e| format!("finding this program: {e}"))?;
    let mut command = Command::new(exe);
    command.arg("passthrough").arg(&args.dir).args(["--foreground", "--ready-fd", "1"]);
    command.arg("--workers").arg(args.workers.to_string());
    if let Some(pidfile) = &args.pidfile {
        command.arg("--pidfile").arg(pidfile);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0).current_dir("/");
    let mut child = command.spawn().map_err(|e| format!("starting the daemon: {e}"))?;
    let mut ready = [0; 1];
    let stdout = child.stdout.as_mut().ok_or_else(|| "no pipe to the daemon".to_owned())?;
    // Ends with the daemon: it either mounts within the kernel's time or exits.
    stdout.read_exact(&mut ready).map_err(|_| "the daemon could not mount, see above".to_owned().into())
}

fn prepare_code(error: &PrepareError) -> Code {
    match error {
        PrepareError::AlreadyMounted(_) => codes::FS_BUSY_MOUNT,
        PrepareError::MountedBelow { .. } => codes::FS_BELOW,
        _ => codes::FS_MOUNT,
    }
}

fn serve(args: &Args) -> Result<(), Failure> {
    crate::sys::resources::prepare(); // before there are threads
    let path = fuse::prepare(&args.dir).map_err(|e| Failure(prepare_code(&e), e.to_string()))?;
    let backing = Backing::open(&path).map_err(|e| format!("opening {}: errno {}", path.display(), e.0))?;
    for holder in fuse::holders::find(&path) {
        errln!(
            "warning: process {} ({}) holds {} ({}) and bypasses the mount",
            holder.pid,
            holder.name,
            holder.path.display(),
            holder.how
        );
    }
    let tree = Arc::new(Tree::new(Volume(0), backing));
    let options = fuse::Options { workers: usize::from(args.workers), ..fuse::Options::default() };
    let mount = Mount::with_options(tree, Arc::new(Local::default()), &path, options)?;
    let served = announce(args).and_then(|()| wait(&mount));
    let unmounted = if mount.is_alive() { mount.unmount() } else { Ok(()) };
    served?;
    unmounted.map_err(|e| format!("unmounting {}: errno {}", path.display(), e.0).into())
}

fn announce(args: &Args) -> Result<(), Failure> {
    if let Some(pidfile) = &args.pidfile {
        std::fs::write(pidfile, format!("{}\n", std::process::id()))
            .map_err(|e| format!("writing {}: {e}", pidfile.display()))?;
    }
    if let Some(fd) = args.ready_fd {
        let path = format!("/proc/self/fd/{fd}");
        std::fs::File::options()
            .write(true)
            .open(&path)
            .and_then(|mut f| f.write_all(b"\n"))
            .map_err(|e| format!("writing to descriptor {fd}: {e}"))?;
    }
    Ok(())
}

/// Until a signal asks to stop, or somebody unmounted.
fn wait(mount: &Mount) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| format!("starting the event loop: {e}"))?;
    runtime.block_on(async {
        let on = |kind| signal(kind).map_err(|e| format!("handling signals: {e}"));
        let (mut term, mut int) = (on(SignalKind::terminate())?, on(SignalKind::interrupt())?);
        let mut tick = tokio::time::interval(Duration::from_millis(200));
        while mount.is_alive() {
            tokio::select! {
                _ = term.recv() => return Ok(()),
                _ = int.recv() => return Ok(()),
                _ = tick.tick() => {}
            }
        }
        Ok(())
    })
}
