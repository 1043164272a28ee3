//! Changes of role, death and hand-over.

use super::support::{Mounted, eventually, isolated};
use skc::base::{Epoch, Volume};
use skc::fuse::{Local, Options, PrepareError, prepare};
use skc::ports::Gate;
use skc::sys::backing::Backing;
use skc::sys::namespace::{self, Mount};
use skc::tree::Tree;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(5);

#[test]
fn a_standby_is_read_only_and_shows_every_change_at_once() {
    isolated(|| {
        let (m, local) = Mounted::local();
        std::fs::write(m.path("f"), b"one").expect("write");
        assert!(!m.path("later").exists());
        let writer = std::fs::File::options().write(true).open(m.path("f")).expect("open");
        local.set_gate(Gate::ReadOnly);
        assert!(m.mount().invalidate_all(SECOND));
        let erofs = |r: std::io::Result<()>| assert_eq!(r.unwrap_err().raw_os_error(), Some(30));
        erofs(std::fs::write(m.path("g"), b"x"));
        erofs(std::fs::remove_file(m.path("f")));
        erofs(std::fs::File::options().write(true).open(m.path("f")).map(drop));
        erofs(writer.write_at(b"x", 0).map(drop));
        for n in 0..20 {
            let text = format!("version {n} {}", "x".repeat(n));
            std::fs::write(m.below().join("f"), &text).expect("write below");
            assert_eq!(std::fs::read_to_string(m.path("f")).expect("read"), text);
            assert_eq!(m.path("f").metadata().expect("stat").len(), text.len() as u64);
        }
        std::fs::write(m.below().join("later"), b"").expect("write below");
        assert!(m.path("later").exists(), "no negative entry survives the change of role");
        std::fs::rename(m.below().join("later"), m.below().join("f")).expect("rename below");
        assert_eq!(std::fs::read(m.path("f")).expect("read"), b"");
        std::fs::File::open(m.path("f")).expect("open").sync_all().expect("fsync of a standby's file");
        // Promotion again.
        local.set_gate(Gate::Alone(Epoch { g: 1, s: 1 }));
        assert!(m.mount().invalidate_all(SECOND));
        std::fs::write(m.path("f"), b"mine").expect("write");
        assert_eq!(std::fs::read(m.below().join("f")).expect("read"), b"mine");
        local.set_gate(Gate::Shut);
        let refused = std::fs::write(m.path("f"), b"x").expect_err("shut");
        assert_eq!(refused.raw_os_error(), Some(5));
    });
}

#[test]
fn pages_cached_before_a_demotion_are_not_served_after_the_next_promotion() {
    isolated(|| {
        let (m, local) = Mounted::local();
        std::fs::write(m.path("f"), b"old old old").expect("write");
        let reader = std::fs::File::open(m.path("f")).expect("open");
        let mut buf = [0; 11];
        reader.read_exact_at(&mut buf, 0).expect("read");
        local.set_gate(Gate::ReadOnly);
        assert!(m.mount().invalidate_all(SECOND));
        std::fs::write(m.below().join("f"), b"new new new").expect("write below");
        local.set_gate(Gate::Alone(Epoch { g: 1, s: 1 }));
        assert!(m.mount().invalidate_all(SECOND));
        reader.read_exact_at(&mut buf, 0).expect("read");
        assert_eq!(&buf, b"new new new");
    });
}

#[test]
fn the_session_continues_on_the_same_device_after_its_threads_stopped() {
    isolated(|| {
        let (mut m, local) = Mounted::local();
        let mut f = std::fs::File::create_new(m.path("f")).expect("create");
        f.write_all(b"before").expect("write");
        let mount = m.mount.take().expect("mounted");
        let device = mount.device_fd().try_clone_to_owned().expect("dup");
        let init = mount.init_values();
        drop(mount);
        // Nobody serves now: a call waits instead of failing.
        let path = m.path("g");
        let waiting = std::thread::spawn(move || std::fs::write(path, b"waited"));
        let resumed =
            skc::fuse::Mount::resume(Arc::clone(&m.tree), local, &m.dir, device, init, Options::default());
        m.mount = Some(resumed.expect("resume"));
        waiting.join().expect("thread").expect("the waiting call succeeds");
        assert_eq!(std::fs::read(m.path("g")).expect("read"), b"waited");
        assert_eq!(std::fs::read(m.path("f")).expect("read"), b"before");
    });
}

#[test]
fn stacking_is_refused_and_a_dead_mount_is_detached() {
    isolated(|| {
        let (mut m, _) = Mounted::local();
        assert_eq!(prepare(&m.dir), Err(PrepareError::AlreadyMounted(m.dir.clone())));
        std::fs::create_dir(m.path("sub")).expect("mkdir");
        assert!(matches!(prepare(&m.path("sub")), Err(PrepareError::OtherFuse { .. })));
        m.mount().abort();
        eventually("the readers end", || !m.mount().is_alive());
        let dead = std::fs::read_dir(&m.dir).expect_err("dead");
        assert_eq!(dead.raw_os_error(), Some(107));
        m.mount = None;
        assert_eq!(prepare(&m.dir), Ok(m.dir.clone()));
        assert!(m.dir.join("sub").is_dir(), "the backing directory is back");
    });
}

#[test]
fn what_is_mounted_below_is_neither_hidden_nor_taken_along() {
    isolated(|| {
        let tmp = tempfile::tempdir().expect("temporary directory");
        let dir = tmp.path().canonicalize().expect("canonical").join("dir");
        let sub = dir.join("sub/deep");
        std::fs::create_dir_all(&sub).expect("mkdir");
        let tmpfs =
            |at: &std::path::Path| namespace::mount(Mount::New("tmpfs", "size=1m"), at).expect("tmpfs");
        tmpfs(&sub);
        assert_eq!(prepare(&dir), Err(PrepareError::MountedBelow { below: sub.clone() }));
        // And should it come between the look and the mount.
        let tree = Arc::new(Tree::new(Volume(0), Backing::open(&dir).expect("open")));
        let refused = skc::fuse::Mount::new(tree, Arc::new(Local::default()), &dir);
        assert_eq!(refused.err().map(|e| e.code().id), Some("SKC-E3013"));
        std::fs::write(sub.join("seen"), b"x").expect("it is not hidden");
        namespace::unmount(&sub, false).expect("unmount");
        assert_eq!(prepare(&dir), Ok(dir.clone()));
        // While the mirror is mounted it is visible, and named.
        let (mut m, _) = Mounted::local();
        std::fs::create_dir(m.path("sub")).expect("mkdir");
        assert!(m.mount().mounted_below().is_empty());
        tmpfs(&m.path("sub"));
        assert_eq!(m.mount().mounted_below(), [m.path("sub")]);
        std::fs::write(m.path("sub/own"), b"x").expect("write");
        assert!(!m.below().join("sub/own").exists());
        m.mount().abort();
        eventually("the readers end", || !m.mount().is_alive());
        m.mount = None;
        assert_eq!(prepare(&m.dir), Err(PrepareError::MountedBelow { below: m.path("sub") }));
        namespace::unmount(&m.path("sub"), true).expect("unmount");
        assert_eq!(prepare(&m.dir), Ok(m.dir.clone()));
    });
}

#[test]
fn aborting_by_number_leaves_the_dead_mount_in_place() {
    isolated(|| {
        let (m, _) = Mounted::local();
        skc::fuse::abort(m.mount().connection(), &m.dir).expect("abort");
        eventually("the readers end", || !m.mount().is_alive());
        assert_eq!(std::fs::write(m.path("f"), b"x").unwrap_err().raw_os_error(), Some(107));
        assert_eq!(std::fs::read_dir(m.below()).expect("readdir below").count(), 0);
    });
}

#[test]
fn unmounting_a_busy_mirror_does_not_wait_for_its_users() {
    isolated(|| {
        let (mut m, _) = Mounted::local();
        let mut f = std::fs::File::create_new(m.path("f")).expect("create");
        let mount = m.mount.take().expect("mounted");
        mount.unmount().expect("unmount");
        assert!(!mount.is_alive());
        assert_eq!(f.write_all(b"x").unwrap_err().raw_os_error(), Some(107));
        assert!(m.path("f").exists(), "the backing directory is back");
    });
}
