//! What the kernel does with files of a mount besides plain calls: locks, asynchronous I/O, programs, mappings.

use super::mapping::{Aligned, Mapping, PAGE};
use super::support::{Mounted, eventually, isolated};
use super::uring::{Aio, Uring};
use crate::skip::{skipped, this_test};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Blocked at once; the mount has two readers.
const LOCKERS: usize = 64;

#[derive(Debug, Clone, Copy)]
enum Kind {
    /// Open file description locks (F_OFD_SETLKW).
    Ofd,
    /// flock(2).
    Bsd,
}

/// Locks the whole file exclusively; waits.
fn lock(file: &File, kind: Kind) -> std::io::Result<()> {
    // SAFETY: the descriptor is open; `all` is a valid struct flock that outlives the call.
    let result = match kind {
        Kind::Ofd => unsafe {
            let mut all: libc::flock = std::mem::zeroed();
            all.l_type = libc::F_WRLCK as i16;
            libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLKW, &raw const all)
        },
        Kind::Bsd => unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX) },
    };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

#[test]
fn sixty_four_blocked_lockers_hold_no_worker_of_the_mount() {
    isolated(|| {
        let (m, _) = Mounted::local();
        let path = m.path("lock");
        std::fs::write(&path, b"x").expect("write");
        for kind in [Kind::Ofd, Kind::Bsd] {
            let open = || File::options().read(true).write(true).open(&path).expect("open");
            let held = open();
            lock(&held, kind).expect("the first lock");
            let (about, got) = (AtomicUsize::new(0), AtomicUsize::new(0));
            std::thread::scope(|scope| {
                for _ in 0..LOCKERS {
                    scope.spawn(|| {
                        let file = open();
                        about.fetch_add(1, Ordering::Relaxed);
                        lock(&file, kind).expect("lock");
                        got.fetch_add(1, Ordering::Relaxed);
                    });
                }
                eventually("all are about to lock", || about.load(Ordering::Relaxed) == LOCKERS);
                for n in 0..200 {
                    let file = m.path(&format!("f{}", n % 10));
                    std::fs::write(&file, n.to_string()).expect("the mount serves writes");
                    assert_eq!(std::fs::read_to_string(&file).expect("and reads"), n.to_string());
                }
                assert_eq!(got.load(Ordering::Relaxed), 0, "{kind:?}");
                drop(held);
            });
            assert_eq!(got.load(Ordering::Relaxed), LOCKERS, "{kind:?}");
        }
        // POSIX locks belong to processes.
        let script = format!(
            "import fcntl,sys\nf=open('{}','r+b')\nfcntl.lockf(f,fcntl.LOCK_EX)\nprint('mine',flush=True)\nsys.stdin.read()\n",
            path.display()
        );
        let locker = || -> std::io::Result<Child> {
            Command::new("python3").args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()
        };
        let Ok(mut first) = locker() else {
            skipped(&this_test(), "python3 for POSIX locks of two processes");
            return;
        };
        let said = |child: &mut Child| {
            use std::io::Read;
            let mut text = [0; 4];
            child.stdout.as_mut().expect("piped").read_exact(&mut text).expect("a locker speaks");
            assert_eq!(&text, b"mine");
        };
        said(&mut first);
        let mut second = locker().expect("python3");
        std::fs::write(m.path("g"), b"the mount serves").expect("write");
        assert!(second.try_wait().expect("wait").is_none());
        drop(first.stdin.take());
        assert!(first.wait().expect("wait").success());
        said(&mut second);
        drop(second.stdin.take());
        assert!(second.wait().expect("wait").success());
    });
}

#[test]
fn asynchronous_input_and_output_reach_the_file() {
    isolated(|| {
        let (m, _) = Mounted::local();
        for direct in [0, libc::O_DIRECT] {
            let path = m.path(&format!("aio-{direct}"));
            let file = File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .custom_flags(direct)
                .open(&path)
                .expect("open");
            let page = |byte: u8| {
                let mut page = Aligned::new(PAGE);
                page.fill(byte);
                page
            };
            let (a, b, mut back) = (page(1), page(2), page(0));
            match Aio::new() {
                Ok(aio) => {
                    assert_eq!(aio.write(file.as_fd(), &a, 0), PAGE as i64, "io_submit, flags {direct:#o}");
                    assert_eq!(aio.read(file.as_fd(), &mut back, 0), PAGE as i64);
                    assert_eq!(back[..], a[..]);
                }
                Err(error) => skipped(&this_test(), format_args!("io_setup: {error}")),
            }
            match Uring::new() {
                Ok(mut ring) => {
                    assert_eq!(
                        ring.write(file.as_fd(), &b, PAGE as u64),
                        PAGE as i32,
                        "io_uring, flags {direct:#o}"
                    );
                    assert_eq!(ring.fsync(file.as_fd()), 0);
                    back.fill(0);
                    assert_eq!(ring.read(file.as_fd(), &mut back, PAGE as u64), PAGE as i32);
                    assert_eq!(back[..], b[..]);
                    let below = std::fs::read(m.below().join(format!("aio-{direct}"))).expect("read below");
                    assert_eq!(below.get(PAGE..), Some(&b[..]));
                }
                Err(error) => skipped(&this_test(), format_args!("io_uring_setup: {error}")),
            }
        }
    });
}

#[test]
fn programs_run_from_the_mount_and_are_busy_meanwhile() {
    isolated(|| {
        let (m, _) = Mounted::local();
        let program = m.path("program");
        std::fs::copy("/bin/sleep", &program).expect("copy");
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).expect("chmod");
        let busy = |result: std::io::Result<()>| {
            assert_eq!(result.map_err(|e| e.raw_os_error()), Err(Some(libc::ETXTBSY)));
        };
        let writable = || File::options().write(true).open(&program).map(drop);
        let mut running = None;
        // Another test's fork may hold the copy's descriptor for a moment.
        eventually("it starts", || {
            running = Command::new(&program).arg("60").spawn().ok();
            running.is_some()
        });
        let mut running = running.expect("running");
        busy(writable());
        running.kill().expect("kill");
        assert_eq!(running.wait().expect("wait").signal(), Some(libc::SIGKILL));
        eventually("it may be written again", || writable().is_ok());
        let held = File::options().write(true).open(&program).expect("open");
        busy(Command::new(&program).arg("0").status().map(drop));
        drop(held);
        std::fs::write(m.path("script"), "#!/bin/sh\nexit 7\n").expect("write");
        std::fs::set_permissions(m.path("script"), PermissionsExt::from_mode(0o755)).expect("chmod");
        let mut code = None;
        eventually("the script runs", || {
            code = Command::new(m.path("script")).status().ok().and_then(|s| s.code());
            code.is_some()
        });
        assert_eq!(code, Some(7));
    });
}

#[test]
fn mappings_and_calls_of_two_processes_see_each_other_at_once() {
    isolated(|| {
        let (m, _) = Mounted::local();
        let path = m.path("shared");
        let file = File::options().read(true).write(true).create_new(true).open(&path).expect("open");
        file.set_len(1 << 20).expect("truncate");
        let mut mine = Mapping::new(file.as_fd(), 1 << 20);
        let script = format!(
            "import mmap,os,sys\nf=open('{}','r+b')\nm=mmap.mmap(f.fileno(),0)\nfor line in sys.stdin:\n \
             w,at,val=line.split()\n at=int(at)\n\
             \x20if w=='m': m[at:at+5]=val.encode()\n\
             \x20elif w=='w': os.pwrite(f.fileno(),val.encode(),at)\n\
             \x20else: val=(m[at:at+5] if w=='r' else os.pread(f.fileno(),5,at)).decode()\n\
             \x20print(val,flush=True)\n",
            path.display()
        );
        let other = Command::new("python3")
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let Ok(mut other) = other else {
            skipped(&this_test(), "python3 is the other process");
            return;
        };
        let (mut to, from) = (other.stdin.take().expect("piped"), other.stdout.take().expect("piped"));
        let mut from = std::io::BufReader::new(from);
        let mut ask = |line: &str| {
            use std::io::{BufRead, Write};
            writeln!(to, "{line}").expect("ask");
            let mut answer = String::new();
            from.read_line(&mut answer).expect("answer");
            answer.trim().to_owned()
        };
        for (n, at) in [100usize, 70_000, 1_000_000].into_iter().enumerate() {
            let mut seen = [0; 5];
            ask(&format!("m {at} map-{n}"));
            mine.read(at, &mut seen);
            assert_eq!(seen, *format!("map-{n}").as_bytes(), "its mapping in mine");
            file.read_exact_at(&mut seen, at as u64).expect("read");
            assert_eq!(seen, *format!("map-{n}").as_bytes(), "its mapping in my read");
            ask(&format!("w {at} wri-{n}"));
            mine.read(at, &mut seen);
            assert_eq!(seen, *format!("wri-{n}").as_bytes(), "its write in my mapping");
            mine.write(at, format!("own-{n}").as_bytes());
            assert_eq!(ask(&format!("r {at} x")), format!("own-{n}"), "my mapping in its mapping");
            assert_eq!(ask(&format!("p {at} x")), format!("own-{n}"), "my mapping in its read");
        }
        drop(to);
        assert!(other.wait().expect("wait").success());
        mine.sync().expect("msync");
        assert_eq!(&std::fs::read(m.below().join("shared")).expect("read below")[100..105], b"own-0");
    });
}
