//! A standby whose file system cannot what the primary's can: other types, full, read-only, small attributes.
//! It is ejected with the reason, and a resync makes it equal as soon as it can.

use crate::compare::scan;
use crate::random::{Rng, grow, step};
use crate::skip::{skipped, this_test};
use crate::support::{Mirror, Pair, Res};
use skc::ports::Gate;
use skc::replica::Event;
use skc::sys::mount::private_namespace;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Runs `test` on a thread in a mount namespace of its own.
fn isolated(test: impl FnOnce() + Send + 'static) {
    let name = this_test();
    let thread = std::thread::Builder::new().name(name.clone()).spawn(move || match private_namespace() {
        Ok(()) => test(),
        Err(error) => skipped(&name, format_args!("no private mount namespace: {error:?}")),
    });
    if let Err(panic) = thread.expect("a thread").join() {
        std::panic::resume_unwind(panic);
    }
}

fn runs(program: &str, args: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output();
    let output = output.map_err(|e| format!("{program}: {e}"))?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if output.status.success() { Ok(()) } else { Err(format!("{program} {}: {said}", args.join(" "))) }
}

/// A small file system of its own.
struct Disk {
    image: PathBuf,
    at: PathBuf,
    _dir: tempfile::TempDir,
}

impl Disk {
    fn new(kind: &str, options: &str) -> Result<Self, String> {
        let dir = tempfile::tempdir().unwrap();
        let (image, at) = (dir.path().join("image"), dir.path().join("at"));
        fs::create_dir(&at).unwrap();
        let disk = Self { image, at, _dir: dir };
        if kind == "tmpfs" {
            runs("mount", &["-t", "tmpfs", "-o", options, "tmpfs", &disk.at.display().to_string()])?;
            return Ok(disk);
        }
        // The smallest that every mkfs takes; it is sparse.
        let size = if kind == "ext4" { 16 << 20 } else { 320 << 20 };
        File::create(&disk.image).unwrap().set_len(size).unwrap();
        let image = disk.image.display().to_string();
        // A small ext4 would get small blocks, and with them short symbolic links.
        let args = if kind == "ext4" { vec!["-Fq", "-b", "4096", &image] } else { vec!["-fq", &image] };
        runs(&format!("mkfs.{kind}"), &args)?;
        disk.mount()?;
        Ok(disk)
    }

    fn mount(&self) -> Result<(), String> {
        runs("mount", &["-o", "loop", &self.image.display().to_string(), &self.at.display().to_string()])
    }

    fn again(&self) {
        // Descriptors of a standby that is just going away may hold it for a moment.
        crate::support::until("it can be unmounted", || {
            runs("umount", &[&self.at.display().to_string()]).is_ok()
        });
        self.mount().unwrap();
    }

    fn directory(&self) -> tempfile::TempDir {
        tempfile::tempdir_in(&self.at).unwrap()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = runs("umount", &["-l", &self.at.display().to_string()]);
    }
}

/// What file systems of all types have alike: not the allocation, nor the flags of a type.
fn assert_alike(pair: &Pair) {
    let all = |root: &Path| {
        let mut all = scan(root);
        all.values_mut().for_each(crate::compare::Object::only_what_all_have);
        all
    };
    let (a, b) = (all(pair.a.path()), all(pair.b.path()));
    for (path, one) in &a {
        assert_eq!(Some(one), b.get(path), "{}", path.display());
    }
    assert_eq!(a.len(), b.len());
}

#[test]
fn pairs_of_unlike_file_systems_hold_equal_trees() {
    isolated(|| {
        let kinds = ["ext4", "xfs", "btrfs", "tmpfs"];
        let disks: Vec<_> = kinds.iter().map(|kind| Disk::new(kind, "size=64m")).collect();
        for (n, disk) in disks.iter().enumerate() {
            if let Err(error) = disk {
                skipped(&this_test(), format_args!("{}: {error}", kinds[n]));
            }
        }
        for (seed, (a, b)) in [(0, 1), (1, 0), (0, 2), (2, 0), (0, 3), (3, 0), (1, 2)].into_iter().enumerate()
        {
            let (Ok(one), Ok(two)) = (&disks[a], &disks[b]) else { continue };
            let (from, to) = (one.directory(), two.directory());
            let mut rng = Rng(seed as u64 + 77);
            grow(from.path(), &mut rng, 25);
            let mut pair = Pair::with(from, to, |_| {}, |_| {});
            pair.ready();
            assert_alike(&pair);
            let done: Vec<u64> = (0..600).filter_map(|_| step(&pair.mirror, &mut rng).ok()).collect();
            assert!(done.len() > 10);
            for unique in done {
                assert_eq!(pair.mirror.wait(unique), 0, "{} beside {}", kinds[a], kinds[b]);
            }
            assert_alike(&pair);
            if kinds[a] == "btrfs" {
                // What only btrfs knows: the other stays without it, live and in a resync.
                for res in [
                    pair.mirror.create("packed"),
                    pair.mirror.set_xattr("packed", "btrfs.compression", b"zlib"),
                ] {
                    assert_eq!(pair.mirror.wait(res.expect("done on btrfs")), 0);
                }
                let Pair { a, b, mirror, standby, .. } = pair;
                assert!(standby.close(crate::support::LONG));
                drop((mirror, standby));
                let mut pair = Pair::with(a, b, |_| {}, |_| {});
                pair.ready();
                assert_alike(&pair);
            }
        }
    });
}

type Op = (&'static str, fn(&Mirror) -> Res);

const OPERATIONS: [Op; 12] = [
    ("create", |m| m.create("d/new")),
    ("mkdir", |m| m.mkdir("d/new")),
    ("symlink", |m| m.symlink("d/new", &"t".repeat(3000))),
    ("link", |m| m.link("f", "d/new")),
    ("write", |m| m.write("f", 1 << 20, &[5; 70_000])),
    ("fallocate", |m| m.fallocate("f", 0, 0, 1 << 20)),
    ("truncate", |m| m.truncate("f", 100)),
    ("rename", |m| m.rename("f", "d/g", 0)),
    ("unlink", |m| m.unlink("f")),
    ("rmdir", |m| m.rmdir("e")),
    ("chmod", |m| m.chmod_chown("f", 0o600, 3)),
    ("set xattr", |m| m.set_xattr("f", "user.a", &[1; 200])),
];

/// Does `op` with a standby that `spoil` spoils; expects it to be ejected with `errno`; mends it and expects equal
/// trees. False: this operation needs nothing that the standby lacks.
fn ejected_and_healed(
    (name, op): Op,
    disk: &Disk,
    errno: i32,
    spoil: impl Fn(&Disk),
    mend: impl Fn(&Disk),
) -> bool {
    let (from, to) = (tempfile::tempdir().unwrap(), disk.directory());
    for dir in ["d", "e"] {
        fs::create_dir(from.path().join(dir)).unwrap();
    }
    fs::write(from.path().join("f"), vec![9; 50_000]).unwrap();
    let mut pair = Pair::with(from, to, |_| {}, |_| {});
    pair.ready();
    spoil(disk);
    let unique = op(&pair.mirror).unwrap_or_else(|e| panic!("{name} on the primary: {e:?}"));
    let mut told = None;
    crate::support::until(name, || {
        told = pair.events.try_iter().find_map(|event| match event {
            ('b', Event::ApplyFailed { errno, what, .. }) => Some((errno, what)),
            _ => None,
        });
        told.is_some() || pair.mirror.replies.get(unique).is_some()
    });
    let Some((got, what)) = told else {
        mend(disk);
        return false;
    };
    assert_eq!(got, errno, "{name}: {what}");
    assert!(!what.is_empty());
    // Strict: the application waits until it is decided that this node goes on alone.
    assert_eq!(pair.mirror.replies.get(unique), None, "{name}");
    pair.gate(Gate::Alone(pair.epoch));
    assert_eq!(pair.mirror.wait(unique), 0, "{name}");
    let Pair { a, b, mirror, standby, .. } = pair;
    assert!(standby.close(crate::support::LONG));
    drop((mirror, standby));
    mend(disk);
    let mut pair = Pair::with(a, b, |_| {}, |_| {});
    pair.ready();
    assert_alike(&pair);
    true
}

#[test]
fn every_operation_that_the_standby_cannot_do_ejects_it_and_heals() {
    isolated(|| {
        // Full: no block, no inode.
        let full = Disk::new("tmpfs", "size=2m,nr_inodes=48").expect("tmpfs");
        let fill = |disk: &Disk| {
            let mut file = File::create(disk.at.join("filler")).unwrap();
            while file.write(&[1; 4096]).is_ok_and(|n| n > 0) {}
            for n in 0..100 {
                let _ = File::create_new(disk.at.join(format!("inode-{n}")));
            }
        };
        let empty = |disk: &Disk| {
            for entry in fs::read_dir(&disk.at).unwrap().flatten() {
                let _ = fs::remove_file(entry.path());
            }
        };
        let ejected: Vec<_> = OPERATIONS
            .into_iter()
            .filter(|op| ejected_and_healed(*op, &full, libc::ENOSPC, fill, empty))
            .map(|(name, _)| name)
            .collect();
        for name in ["create", "mkdir", "symlink", "link", "write", "fallocate"] {
            assert!(ejected.contains(&name), "{name}: {ejected:?}");
        }
        // Read-only, as a file system makes itself after an error.
        let failing = match Disk::new("ext4", "") {
            Ok(disk) => disk,
            Err(error) => return skipped(&this_test(), format_args!("read-only: {error}")),
        };
        let abort = |disk: &Disk| {
            let _ = runs("mount", &["-o", "remount,abort", &disk.at.display().to_string()]);
        };
        for op in OPERATIONS {
            assert!(ejected_and_healed(op, &failing, libc::EROFS, abort, Disk::again), "{}", op.0);
        }
    });
}

#[test]
fn an_attribute_too_large_for_the_standby_ejects_it_until_it_is_gone() {
    isolated(|| {
        let (large, small) = match (Disk::new("xfs", ""), Disk::new("ext4", "")) {
            (Ok(large), Ok(small)) => (large, small),
            (Err(error), _) | (_, Err(error)) => return skipped(&this_test(), error),
        };
        let (from, to) = (large.directory(), small.directory());
        fs::write(from.path().join("f"), b"x").unwrap();
        let mut pair = Pair::with(from, to, |_| {}, |_| {});
        pair.ready();
        let unique = pair.mirror.set_xattr("f", "user.large", &vec![1; 20_000]).unwrap();
        let errno = pair.events.iter().find_map(|event| match event {
            ('b', Event::ApplyFailed { errno, .. }) => Some(errno),
            _ => None,
        });
        assert!(matches!(errno, Some(libc::ENOSPC | libc::E2BIG)), "{errno:?}");
        pair.gate(Gate::Alone(pair.epoch));
        assert_eq!(pair.mirror.wait(unique), 0);
        let removed = pair.mirror.remove_xattr("f", "user.large").unwrap();
        assert_eq!(pair.mirror.wait(removed), 0);
        let Pair { a, b, mirror, standby, .. } = pair;
        assert!(standby.close(crate::support::LONG));
        drop((mirror, standby));
        let mut pair = Pair::with(a, b, |_| {}, |_| {});
        pair.ready();
        assert_alike(&pair);
    });
}
