//! Room that a user does not get on the bare directory he does not get through the mount, though its daemon is root.

use crate::skip::{skipped, this_test};
use crate::standby::Standby;
use crate::support::{Mounted, isolated};
use skc::fuse::{Local, Options};
use skc::ports::Replicator;
use skc::sys::backing::Backing;
use skc::tree::{Descriptors, Tree};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Writes `mib` MiB as user `uid`; what dd says if it fails.
fn fill(path: &Path, mib: u32, uid: u32) -> Result<(), String> {
    use std::os::unix::process::CommandExt;
    let mut dd = Command::new("dd");
    dd.args(["if=/dev/zero", "bs=64k", "status=none", "conv=fsync"]).arg(format!("count={}", 16 * mib));
    let done = dd.arg(format!("of={}", path.display())).uid(uid).gid(uid).output().expect("dd");
    if done.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&done.stderr).into_owned()) }
}

fn run(program: &str, args: &[&str]) -> bool {
    let quiet = Command::new(program).args(args).stdout(Stdio::null()).stderr(Stdio::null()).status();
    quiet.is_ok_and(|status| status.success())
}

/// A small ext4 in a file, mounted below a temporary directory; `None`: the test is skipped.
fn small(test: &str, features: &[&str], options: &str) -> Option<tempfile::TempDir> {
    let tmp = tempfile::tempdir().expect("temporary directory");
    std::fs::set_permissions(tmp.path(), PermissionsExt::from_mode(0o755)).expect("chmod");
    let (image, at) = (tmp.path().join("image"), tmp.path().join("disk"));
    std::fs::File::create(&image).and_then(|f| f.set_len(64 << 20)).expect("an image");
    std::fs::create_dir(&at).expect("mkdir");
    let (image, at) = (image.to_string_lossy().into_owned(), at.to_string_lossy().into_owned());
    let made = run("mkfs.ext4", &[&["-q"], features, &[&image]].concat())
        && run("mount", &["-o", options, &image, &at]);
    if !made {
        skipped(test, format_args!("no ext4 on a loop device with the options {options}"));
        return None;
    }
    std::fs::create_dir(tmp.path().join("disk/dir")).expect("mkdir");
    Some(tmp)
}

fn mounted(tmp: tempfile::TempDir) -> Mounted {
    let dir = tmp.path().canonicalize().expect("canonical").join("disk/dir");
    let m = Mounted::over(
        tmp,
        dir,
        |_| Arc::new(Local::default()),
        Options::default(),
        Descriptors::of_process(),
    );
    std::fs::set_permissions(&m.dir, PermissionsExt::from_mode(0o1777)).expect("chmod");
    m
}

#[test]
fn blocks_reserved_for_root_are_not_a_users() {
    let test = this_test();
    isolated(move || {
        let Some(tmp) = small(&test, &["-m", "50"], "loop") else { return };
        let disk = tmp.path().join("disk");
        let m = mounted(tmp);
        let said = fill(&m.path("users"), 50, 1000).expect_err("half of the blocks are root's");
        assert!(said.contains("No space left"), "{said}");
        fill(&m.path("roots"), 8, 0).expect("root has them");
        let said = fill(&m.path("users2"), 1, 1000).expect_err("the same thread serves a user again");
        assert!(said.contains("No space left"), "{said}");
        drop(m);
        assert!(run("umount", &[&disk.to_string_lossy()]), "the disk is let go");
    });
}

/// The file system sets the time before it looks for room.
#[test]
fn a_write_that_finds_no_room_has_its_time_on_the_standby_too() {
    let test = this_test();
    isolated(move || {
        let Some(tmp) = small(&test, &["-m", "0"], "loop") else { return };
        let (disk, other) = (tmp.path().join("disk"), tempfile::tempdir().expect("temporary directory"));
        let at = other.path().to_path_buf();
        let replicator = |tree: &Arc<Tree>| -> Arc<dyn Replicator> {
            Arc::new(Standby::new(tree, Backing::open(&at).expect("open the standby")))
        };
        let dir = tmp.path().canonicalize().expect("canonical").join("disk/dir");
        let m = Mounted::over(tmp, dir, replicator, Options::default(), Descriptors::of_process());
        fill(&m.path("all"), 80, 0).expect_err("more than there is");
        // Every block is taken; the file below has none yet.
        std::fs::write(m.path("late"), b"").expect("a name needs no block");
        let early = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
        let late = std::fs::File::options().write(true).open(m.path("late")).expect("open");
        late.set_modified(early).expect("utimens");
        let written = late.write_at(&vec![1; 65536], 0);
        assert_eq!(written.map_err(|e| e.raw_os_error()), Err(Some(28)), "ENOSPC");
        for name in ["all", "late"] {
            let (here, there) = (std::fs::metadata(m.path(name)), std::fs::metadata(other.path().join(name)));
            let shown =
                |m: std::io::Result<std::fs::Metadata>| m.map(|m| (m.len(), m.mtime(), m.mtime_nsec())).ok();
            assert_eq!(shown(here), shown(there), "{name}");
        }
        drop(late);
        drop(m);
        assert!(run("umount", &[&disk.to_string_lossy()]), "the disk is let go");
    });
}

/// A failing disk is judged by what the mount reports of it.
#[test]
fn a_write_that_the_disk_fails_is_reported() {
    let test = this_test();
    isolated(move || {
        let Some(tmp) = small(&test, &["-m", "0"], "loop,errors=continue") else { return };
        let (disk, other) = (tmp.path().join("disk"), tempfile::tempdir().expect("temporary directory"));
        let at = disk.to_string_lossy().into_owned();
        let dir = tmp.path().canonicalize().expect("canonical").join("disk/dir");
        let mut standby = None;
        let replicator = |tree: &Arc<Tree>| -> Arc<dyn Replicator> {
            let made = Arc::new(Standby::new(tree, Backing::open(other.path()).expect("open the standby")));
            standby = Some(Arc::clone(&made));
            made
        };
        let m = Mounted::over(tmp, dir, replicator, Options::default(), Descriptors::of_process());
        let standby = standby.expect("made");
        let file = std::fs::File::create(m.path("f")).expect("create");
        if !run("mount", &["-o", "remount,abort", &at]) {
            return skipped(&test, "no ext4 that can be told to fail");
        }
        let failed = file.write_at(&[1; 4096], 0).expect_err("the file system has failed");
        assert!(matches!(failed.raw_os_error(), Some(5 | 30)), "EIO or EROFS: {failed}");
        assert!(standby.disk_failures.load(Ordering::SeqCst) > 0, "the failure is reported");
        drop(file);
        drop(m);
        drop(standby);
        assert!(run("umount", &[&at]), "the disk is let go");
    });
}

#[test]
fn a_hard_quota_holds_for_its_user() {
    let test = this_test();
    isolated(move || {
        let Some(tmp) = small(&test, &["-O", "quota"], "loop,usrquota") else { return };
        let disk = tmp.path().join("disk");
        let at = disk.to_string_lossy().into_owned();
        if !run("setquota", &["-u", "1000", "0", "4096", "0", "0", &at]) {
            return skipped(&test, "no setquota (Debian: quota)");
        }
        let m = mounted(tmp);
        fill(&m.path("mine"), 2, 1000).expect("within the quota");
        let said = fill(&m.path("more"), 4, 1000).expect_err("beyond it");
        assert!(said.contains("quota"), "{said}");
        fill(&m.path("other"), 4, 1001).expect("another user has none");
        drop(m);
        assert!(run("umount", &[&at]), "the disk is let go");
    });
}
