//! The workers of the scenarios. They write what they see into the diary; the test reads it.

use crate::support::{eventually, note};
use skc::base::Millis;
use skc::guard::client::{Guard, GuardError, GuardEvent};
use skc::guard::message::{Datagram, FdKind, MountRef, VipRef};
use skc::service::plan::Output;
use skc::service::{Failure, Manager, Program, ServiceError, ServiceId, ServicePlan, State};
use skc::sys::process::{self, Exit, ProcessId};
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

pub fn play(scenario: &str, dir: &Path) -> ExitCode {
    let id = process::stat(std::process::id() as i32).expect("own stat").id;
    note(dir, &format!("worker {} {}", id.pid, id.start));
    let guard = Guard::connect_from_env().expect("connects").expect("there is a guard");
    let welcome = guard.welcome();
    note(dir, &format!("welcome {} {}", welcome.incarnation, welcome.tombstone_sent));
    match scenario {
        "full" => full(&guard, dir),
        "hang" => {
            guard.set_budget(1000, 500).expect("budget");
            guard.ready().expect("ready");
            note(dir, "ready .");
            serve(&guard, dir)
        }
        "crash" => {
            note(dir, &format!("started {}", skc::sys::clock::boottime().0));
            ExitCode::FAILURE
        }
        "tombstone" => tombstone(&guard, dir),
        "orderly" => {
            start(&guard, dir, foreground("orderly.main", "exec sleep 1000"));
            guard.ready().expect("ready");
            note(dir, "ready .");
            serve(&guard, dir)
        }
        "deaf" => {
            start(&guard, dir, foreground("deaf.main", "exec sleep 1000"));
            guard.ready().expect("ready");
            note(dir, "ready .");
            loop {
                std::thread::park_timeout(Duration::from_millis(100));
                guard.ping().expect("ping");
            }
        }
        "leftovers" => leftovers(&guard, dir),
        "services" => {
            guard.ready().expect("ready");
            let runtime = tokio::runtime::Runtime::new().expect("runtime");
            runtime.block_on(services(&guard, dir));
            note(dir, "services done");
            ExitCode::SUCCESS
        }
        other => panic!("no scenario {other}"),
    }
}

/// The main loop of a worker: pings, and leaves when asked.
fn serve(guard: &Guard, dir: &Path) -> ExitCode {
    let mut events = guard.events().expect("first reader");
    loop {
        if let Err(GuardError::Gone) = guard.ping() {
            return ExitCode::FAILURE;
        }
        std::thread::park_timeout(Duration::from_millis(20));
        match events.try_recv() {
            Ok(GuardEvent::ShutdownRequested { reboot }) => {
                note(dir, &format!("shutdown {reboot}"));
                guard.shutting_down().expect("leave");
                return ExitCode::SUCCESS;
            }
            Ok(GuardEvent::ServiceExited(status)) => note(dir, &format!("exited {}", status.id)),
            _ => {}
        }
    }
}

fn plan(id: &str, program: Program) -> ServicePlan {
    ServicePlan {
        id: ServiceId(id.to_owned()),
        program,
        env: [("WHO".to_owned(), id.to_owned())].into(),
        credentials: None,
        directory: None,
        start_timeout: 5000,
        stop_timeout: 5000,
        status_interval: 100,
        output: Output::File,
    }
}

fn shell(script: &str) -> Vec<String> {
    vec!["sh".to_owned(), "-c".to_owned(), script.to_owned()]
}

fn foreground(id: &str, script: &str) -> ServicePlan {
    plan(id, Program::Run { argv: shell(script) })
}

/// Starts a service and notes its process.
fn start(guard: &Guard, dir: &Path, plan: ServicePlan) {
    let status = guard.start_service(plan).expect("start");
    assert_eq!(status.state, State::Running, "{status:?}");
    if let Some(pid) = status.pid {
        let id = process::stat(pid).expect("its process").id;
        note(dir, &format!("service {} {}", id.pid, id.start));
    }
}

/// Waits for a file that a service writes its pid into.
fn until_pid_file(dir: &Path, name: &str) -> ProcessId {
    eventually(name, || {
        let text = std::fs::read_to_string(dir.join(name)).ok()?;
        Some(process::stat(text.strip_suffix('\n')?.parse().ok()?)?.id)
    })
}

/// Notes the process that a service writes the pid of.
fn note_pid_file(dir: &Path, name: &str, head: &str) {
    let id = until_pid_file(dir, name);
    note(dir, &format!("{head} {} {}", id.pid, id.start));
}

fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status().expect(program);
    assert!(status.success(), "{program} {arguments:?}: {status}");
}

/// Everything a worker can leave behind: services of both kinds, addresses, a mount, a checker of its own.
fn full(guard: &Guard, dir: &Path) -> ExitCode {
    if guard.welcome().incarnation > 1 {
        return full_again(guard, dir);
    }
    let mount = dir.join("mount");
    std::fs::create_dir(&mount).expect("mount point");
    let under = File::open(&mount).expect("directory under the mount");
    run("ip", &["link", "set", "lo", "up"]);
    guard
        .set_vips(vec![
            VipRef { address: "10.98.7.6".parse().expect("v4"), prefix: 24, ifindex: 1 },
            VipRef { address: "fd98::7".parse().expect("v6"), prefix: 64, ifindex: 1 },
        ])
        .expect("vips");
    run("ip", &["address", "add", "10.98.7.6/24", "dev", "lo"]);
    run("ip", &["address", "add", "fd98::7/64", "dev", "lo", "nodad"]);
    // A FUSE file system that never answers: whoever looks at it hangs until it is aborted.
    let device = File::options().read(true).write(true).open("/dev/fuse").expect("/dev/fuse");
    let status = Command::new("mount")
        .args(["-i", "-t", "fuse", "-o", "fd=0,rootmode=40000,user_id=0,group_id=0", "skc-test"])
        .arg(&mount)
        .stdin(Stdio::from(device.try_clone().expect("device")))
        .status()
        .expect("mount");
    assert!(status.success(), "mount: {status}");
    let table = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let wanted = mount.to_str().expect("path");
    let line = table.lines().find(|line| line.split(' ').nth(4) == Some(wanted)).expect("our mount");
    let number = line.split(' ').nth(2).and_then(|d| d.split_once(':')).expect("device").1;
    let connection: u32 = number.parse().expect("minor");
    guard.set_mounts(vec![MountRef { path: wanted.to_owned(), connection }]).expect("mounts");
    let kinds = [(FdKind::Device, device.as_fd()), (FdKind::Directory, under.as_fd())];
    guard.hold("volume-0", &kinds).expect("hold");
    let at = dir.display();
    start(guard, dir, foreground("full.simple", "trap '' TERM; while :; do sleep 1000; done"));
    // A program in the foreground with a daemon that left its session and closed everything.
    let script = format!("setsid sh -c 'echo $$ >{at}/stray; exec sleep 2000' & exec sleep 1000");
    start(guard, dir, foreground("full.stray", &script));
    note_pid_file(dir, "stray", "stray");
    // A service of commands whose daemon was forked twice.
    let script = format!("(setsid sh -c 'echo $$ >{at}/daemon; exec sleep 3000' &)");
    let commands = Program::Commands {
        start: shell(&script),
        stop: shell(&format!("echo stopped >>{at}/stop-command")),
        status: shell("exit 0"),
    };
    start(guard, dir, plan("full.daemon", commands));
    note_pid_file(dir, "daemon", "daemon");
    // A client of the mount, and something the worker itself runs.
    let mut client =
        Command::new("stat").arg(mount.join("file")).stderr(Stdio::null()).spawn().expect("stat");
    let mut checker = Command::new("sleep").arg("4000").spawn().expect("sleep");
    for (head, child) in [("client", &client), ("checker", &checker)] {
        let id = process::stat(child.id() as i32).expect("child").id;
        note(dir, &format!("{head} {} {}", id.pid, id.start));
    }
    guard.set_budget(2000, 60_000).expect("budget");
    guard.ready().expect("ready");
    note(dir, "ready .");
    let code = serve(guard, dir);
    for child in [&mut client, &mut checker] {
        child.kill().and_then(|()| child.wait()).expect("end of a child");
    }
    code
}

fn full_again(guard: &Guard, dir: &Path) -> ExitCode {
    let welcome = guard.welcome();
    let fence = welcome.fence.as_ref().expect("a fence happened");
    note(dir, &format!("steps {:?}", fence.steps));
    let addresses = Command::new("ip").args(["address", "show", "dev", "lo"]).output().expect("ip");
    let text = String::from_utf8_lossy(&addresses.stdout);
    note(dir, &format!("addresses {} {}", text.contains("10.98.7.6"), text.contains("fd98::7")));
    let held = guard.fetch("volume-0").expect("fetch");
    let [(FdKind::Directory, directory)] = held.as_slice() else { panic!("{held:?}") };
    let path = std::fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(directory)));
    note(dir, &format!("fetched {}", path.expect("link").display()));
    guard.ready().expect("ready");
    note(dir, "ready .");
    serve(guard, dir)
}

fn tombstone(guard: &Guard, dir: &Path) -> ExitCode {
    if guard.welcome().incarnation > 1 {
        // Alive but never ready.
        loop {
            std::thread::park_timeout(Duration::from_millis(100));
            if let Err(GuardError::Gone) = guard.ping() {
                return ExitCode::FAILURE;
            }
            if dir.join("get-ready").exists() {
                let sent = guard.set_tombstone(vec![]).expect("clear");
                note(dir, &format!("cleared {sent}"));
                guard.ready().expect("ready");
                return serve(guard, dir);
            }
        }
    }
    let to = std::fs::read_to_string(dir.join("peer")).expect("peer").parse().expect("address");
    guard.set_budget(300, 60_000).expect("budget");
    let sent =
        guard.set_tombstone(vec![Datagram { bytes: b"never alone".to_vec(), to: vec![to] }]).expect("set");
    assert!(!sent);
    guard.ready().expect("ready");
    note(dir, "ready .");
    serve(guard, dir)
}

fn leftovers(guard: &Guard, dir: &Path) -> ExitCode {
    let at = dir.display();
    let script = format!("setsid sh -c 'echo $$ >{at}/stray; exec sleep 2000' & exec sleep 1000");
    start(guard, dir, foreground("left.main", &script));
    note_pid_file(dir, "stray", "stray");
    guard.ready().expect("ready");
    note(dir, "ready .");
    serve(guard, dir)
}

async fn until(what: &str, manager: &Manager, id: &ServiceId, wanted: impl Fn(&State) -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let status = manager.status(id).await.expect("status").expect("known");
        if wanted(&status.state) {
            return;
        }
        assert!(Instant::now() < end, "{what}: {status:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The manager's promises, one after the other.
async fn services(guard: &Guard, dir: &Path) {
    const WATCHDOG: Millis = 5000;
    tokio::spawn(guard.clone().keep_alive(WATCHDOG));
    let manager = Manager::new(guard.clone());
    let id = ServiceId("s.main".to_owned());

    let first = manager.start(foreground("s.main", "echo $WHO; exec sleep 1000")).await.expect("start");
    let again = manager.start(foreground("s.main", "echo $WHO; exec sleep 1000")).await.expect("start");
    assert_eq!(first, again, "starting what runs changes nothing");
    let log = std::fs::read_to_string(dir.join("run/services/s.main.log")).expect("log");
    assert_eq!(log, "s.main\n");
    let changed = manager.start(foreground("s.main", "exec sleep 1001")).await.expect("restart");
    assert_ne!(first.pid, changed.pid, "a changed plan restarts");
    assert!(process::stat(first.pid.expect("pid")).is_none());
    note(dir, "services restart");

    let pid = process::stat(changed.pid.expect("pid")).expect("lives").id;
    let mut events = guard.events().expect("first reader");
    process::signal(pid, libc::SIGKILL).expect("kill");
    let event =
        tokio::time::timeout(Duration::from_secs(10), events.recv()).await.expect("in time").expect("event");
    let GuardEvent::ServiceExited(status) = event else { panic!("{event:?}") };
    assert_eq!(
        (&status.id, &status.state),
        (&id, &State::Failed(Failure::Exited(Exit::Signal(libc::SIGKILL))))
    );
    until("failed", &manager, &id, |s| matches!(s, State::Failed(_))).await;
    manager.start(foreground("s.main", "exec sleep 1001")).await.expect("start after a failure");
    note(dir, "services failure");

    manager.stop(&id).await.expect("stop");
    manager.stop(&id).await.expect("stopping what is stopped changes nothing");
    manager.stop(&ServiceId("never.heard".to_owned())).await.expect("unknown is stopped");
    until("stopped", &manager, &id, |s| *s == State::Stopped).await;

    for (script, wanted) in [("exit 7", Exit::Code(7)), ("kill -9 $$", Exit::Signal(9))] {
        let error = manager.start(foreground("s.bad", script)).await.expect_err("must fail");
        let ServiceError::NotStarted { failure: Failure::Exited(exit), .. } = error else {
            panic!("{error}")
        };
        assert_eq!(exit, wanted);
    }
    let missing = plan("s.missing", Program::Run { argv: vec!["/no/such/program".to_owned()] });
    let error = manager.start(missing).await.expect_err("must fail");
    assert!(matches!(error, ServiceError::NotStarted { failure: Failure::Exec(_), .. }), "{error}");
    note(dir, "services bad");

    // SIGTERM is ignored, a daemon has left the session: both are gone when stop returns.
    let at = dir.display();
    let script = format!(
        "trap '' TERM; (setsid sh -c 'trap \"\" TERM; echo $$ >{at}/hard; while :; do sleep 1; done' &); while :; do sleep 1; done"
    );
    let mut hard = foreground("s.hard", &script);
    hard.stop_timeout = 300;
    let status = manager.start(hard).await.expect("start");
    let stray = until_pid_file(dir, "hard");
    manager.stop(&status.id).await.expect("stop");
    assert!(process::stat(stray.pid).is_none_or(|s| s.id != stray || s.is_dead()), "the daemon is gone");
    assert!(process::stat(status.pid.expect("pid")).is_none());
    note(dir, "services hard");

    // Commands: start, a status that turns bad, stop.
    let commands = Program::Commands {
        start: shell(&format!("touch {at}/up")),
        stop: shell(&format!("rm -f {at}/up; echo stop >>{at}/stops")),
        status: shell(&format!("test -e {at}/up")),
    };
    let id = ServiceId("s.commands".to_owned());
    manager.start(plan("s.commands", commands.clone())).await.expect("start");
    std::fs::remove_file(dir.join("up")).expect("up");
    // The failed starts above were reported as well.
    loop {
        let event = tokio::time::timeout(Duration::from_secs(10), events.recv()).await.expect("in time");
        if matches!(event.expect("event"), GuardEvent::ServiceExited(s) if s.id == id) {
            break;
        }
    }
    until("status said no", &manager, &id, |s| *s == State::Failed(Failure::StatusFailed(Exit::Code(1))))
        .await;
    assert_eq!(
        std::fs::read_to_string(dir.join("stops")).expect("stops"),
        "stop\n",
        "cleaned up by its stop command"
    );
    manager.start(plan("s.commands", commands)).await.expect("start again");
    manager.stop(&id).await.expect("stop");
    let mut slow = plan(
        "s.slow",
        Program::Commands { start: shell("exec sleep 1000"), stop: shell("exit 0"), status: shell("exit 0") },
    );
    slow.start_timeout = 200;
    let error = manager.start(slow).await.expect_err("start command hangs");
    assert!(matches!(error, ServiceError::NotStarted { failure: Failure::StartTimeout, .. }), "{error}");
    note(dir, "services commands");

    let result =
        guard.run(|g| g.run_command(shell("echo out; echo err >&2; exit 4"), 5000)).await.expect("command");
    assert_eq!(
        (result.exit, result.stdout.as_slice(), result.stderr.as_slice()),
        (Some(Exit::Code(4)), &b"out\n"[..], &b"err\n"[..])
    );
    let result = guard.run(|g| g.run_command(shell("yes | head -c 300000"), 10_000)).await.expect("command");
    assert_eq!(result.stdout.len(), skc::guard::message::OUTPUT_MAX, "only the end is kept");
    let result =
        guard.run(|g| g.run_command(shell("echo begun; exec sleep 1000"), 300)).await.expect("command");
    assert_eq!((result.exit, result.stdout.as_slice()), (None, &b"begun\n"[..]));
    let error =
        guard.run(|g| g.run_command(vec!["/no/such/program".to_owned()], 300)).await.expect_err("must fail");
    assert!(matches!(error, GuardError::Refused { .. }), "{error}");
    assert!(manager.list().await.expect("list").iter().all(|s| s.state != State::Running));
}
