//! Single promises, one test each.

use super::standby::Standby;
use super::support::{Mounted, eventually, isolated};
use crate::skip::skipped;
use skc::fuse::{Local, Options};
use skc::sys::backing::Backing;
use skc::sys::file;
use skc::tree::Descriptors;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

/// Runs a shell command as an ordinary user with group 1000 and the given others.
fn as_user(script: &str) -> bool {
    Command::new("sh").arg("-c").arg(script).uid(1000).gid(1000).status().expect("sh").success()
}

/// The tree's parents must be passable for an ordinary user.
fn open_up(m: &Mounted) {
    std::fs::set_permissions(m.scratch(), PermissionsExt::from_mode(0o755)).expect("chmod");
    std::fs::set_permissions(&m.dir, PermissionsExt::from_mode(0o777)).expect("chmod");
}

fn owner(path: &Path) -> (u32, u32, u32) {
    let m = path.symlink_metadata().expect("stat");
    (m.uid(), m.gid(), m.mode() & 0o7777)
}

#[test]
fn objects_belong_to_who_made_them_and_setgid_directories_pass_their_group_on() {
    isolated(|| {
        let (m, _) = Mounted::local();
        open_up(&m);
        let d = m.dir.display();
        assert!(as_user(&format!("umask 027; touch {d}/f; mkdir {d}/d; ln -s f {d}/l; mkfifo {d}/p")));
        assert_eq!(owner(&m.path("f")), (1000, 1000, 0o640));
        assert_eq!(owner(&m.path("d")), (1000, 1000, 0o750));
        assert_eq!(owner(&m.path("l")), (1000, 1000, 0o777));
        assert_eq!(owner(&m.path("p")), (1000, 1000, 0o640));
        std::fs::create_dir(m.path("team")).expect("mkdir");
        chown(m.path("team"), Some(0), Some(50)).expect("chown");
        std::fs::set_permissions(m.path("team"), PermissionsExt::from_mode(0o2777)).expect("chmod");
        assert!(as_user(&format!("umask 022; touch {d}/team/f; mkdir {d}/team/d")));
        assert_eq!(owner(&m.path("team/f")), (1000, 50, 0o644));
        assert_eq!(owner(&m.path("team/d")), (1000, 50, 0o2755));
        assert!(!as_user(&format!("touch {d}/team/d/../../../x 2>/dev/null")), "outside is not ours");
        std::fs::write(m.path("secret"), b"x").expect("write");
        std::fs::set_permissions(m.path("secret"), PermissionsExt::from_mode(0o600)).expect("chmod");
        assert!(!as_user(&format!("cat {d}/secret 2>/dev/null")));
    });
}

/// system.posix_acl_default: u::rwx, u:1000:rwx, g::r-x, m::rwx, o::---
const DEFAULT_ACL: &[u8] = &[
    2, 0, 0, 0, //
    1, 0, 7, 0, 0xff, 0xff, 0xff, 0xff, //
    2, 0, 7, 0, 0xe8, 3, 0, 0, //
    4, 0, 5, 0, 0xff, 0xff, 0xff, 0xff, //
    0x10, 0, 7, 0, 0xff, 0xff, 0xff, 0xff, //
    0x20, 0, 0, 0, 0xff, 0xff, 0xff, 0xff,
];

#[test]
fn a_default_acl_is_inherited_instead_of_the_umask() {
    isolated(|| {
        let (m, _) = Mounted::local();
        open_up(&m);
        let bare = m.scratch().join("bare");
        for dir in [m.path("d"), bare.clone()] {
            std::fs::create_dir(&dir).expect("mkdir");
            let fd = std::fs::File::open(&dir).expect("open");
            file::set_xattr(fd.as_fd(), b"system.posix_acl_default", DEFAULT_ACL, 0).expect("ACL");
        }
        for dir in [m.path("d"), bare.clone()] {
            let d = dir.display();
            assert!(
                Command::new("sh")
                    .args(["-c", &format!("umask 077; echo x > {d}/f; mkdir {d}/s")])
                    .status()
                    .expect("sh")
                    .success()
            );
        }
        for name in ["f", "s"] {
            assert_eq!(owner(&m.path("d").join(name)), owner(&bare.join(name)), "{name}");
            for acl in [&b"system.posix_acl_access"[..], b"system.posix_acl_default"] {
                let get = |dir: &Path| {
                    let f = std::fs::File::open(dir.join(name)).expect("open");
                    file::fd_get_xattr(f.as_fd(), acl)
                };
                assert_eq!(get(&m.path("d")), get(&bare), "{name}");
            }
        }
        let d = m.path("d");
        assert!(as_user(&format!("cat {}/f > /dev/null", d.display())), "the ACL lets user 1000 in");
    });
}

#[test]
fn writing_clears_suid_and_capabilities_for_an_ordinary_user_only() {
    isolated(|| {
        let (m, _) = Mounted::local();
        open_up(&m);
        let f = m.path("f");
        // struct vfs_cap_data, revision 2: CAP_NET_RAW permitted
        let caps = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let fresh = || {
            std::fs::write(&f, b"0123456789").expect("write");
            chown(&f, Some(1000), Some(1000)).expect("chown");
            std::fs::set_permissions(&f, PermissionsExt::from_mode(0o6777)).expect("chmod");
            let fd = std::fs::File::open(&f).expect("open");
            file::set_xattr(fd.as_fd(), b"security.capability", &caps, 0).expect("capability");
        };
        let has_caps = || {
            let fd = std::fs::File::open(&f).expect("open");
            file::fd_get_xattr(fd.as_fd(), b"security.capability").is_ok()
        };
        fresh();
        assert_eq!((owner(&f).2, has_caps()), (0o6777, true));
        assert!(as_user(&format!("printf x >> {}", f.display())));
        assert_eq!((owner(&f).2, has_caps()), (0o777, false), "append");
        fresh();
        assert!(as_user(&format!("truncate -s 3 {}", f.display())));
        assert_eq!((owner(&f).2, has_caps()), (0o777, false), "truncate");
        fresh();
        std::fs::File::options().append(true).open(&f).expect("open").write_all(b"x").expect("write");
        assert_eq!((owner(&f).2, has_caps()), (0o6777, false), "root keeps suid, not capabilities");
        fresh();
        chown(&f, Some(1001), None).expect("chown");
        assert_eq!((owner(&f).2, has_caps()), (0o777, false), "chown");
    });
}

/// The kernel believes a mode that it has until it is told: who only asks for the mode, or runs the program, must not
/// see the old one.
#[test]
fn what_an_ordinary_user_wrote_into_is_suid_no_more_for_anybody() {
    isolated(|| {
        let other = tempfile::tempdir().expect("temporary directory");
        let standby = Backing::open(other.path()).expect("open");
        let m = Mounted::with(|tree| Arc::new(Standby::new(tree, standby)), Options::default());
        open_up(&m);
        let f = m.path("f");
        // stat -c %a asks for the mode alone, which the kernel then has.
        let mode = || {
            let out = Command::new("stat").args(["-c", "%a"]).arg(&f).output().expect("stat");
            String::from_utf8(out.stdout).expect("text").trim().to_owned()
        };
        let ways = [
            ("append", "printf x >> F"),
            ("direct write", "dd if=/dev/zero of=F bs=4096 count=1 oflag=direct conv=notrunc status=none"),
            ("fallocate", "fallocate -l 8192 F"),
            ("punched hole", "fallocate -p -o 0 -l 4096 F"),
            ("copy", "cat S 1<> F"),
        ];
        std::fs::write(m.path("s"), b"copied").expect("write");
        for (way, script) in ways {
            std::fs::write(&f, vec![7; 10_000]).expect("write");
            chown(&f, Some(1001), Some(1001)).expect("chown");
            std::fs::set_permissions(&f, PermissionsExt::from_mode(0o6777)).expect("chmod");
            assert_eq!(mode(), "6777");
            let script = script
                .replace('F', &f.display().to_string())
                .replace('S', &m.path("s").display().to_string());
            assert!(as_user(&script), "{way}");
            assert_eq!(mode(), "777", "{way}");
            assert_eq!(owner(&m.below().join("f")).2, 0o777, "{way}, below");
            assert_eq!(owner(&other.path().join("f")).2, 0o777, "{way}, on the standby");
        }
    });
}

#[test]
fn append_holes_and_copies_land_where_they_should() {
    isolated(|| {
        let (m, _) = Mounted::local();
        let path = m.path("f");
        let mut a = std::fs::File::options().append(true).create(true).open(&path).expect("open");
        let mut b = std::fs::File::options().append(true).open(&path).expect("open");
        for _ in 0..50 {
            a.write_all(b"aa").expect("append");
            b.write_all(b"b").expect("append");
        }
        assert_eq!(std::fs::read(&path).expect("read"), b"aab".repeat(50));
        let sparse = std::fs::File::options().read(true).write(true).create_new(true).open(m.path("s"));
        let mut sparse = sparse.expect("open");
        sparse.seek(SeekFrom::Start(1 << 20)).expect("seek");
        sparse.write_all(b"end").expect("write");
        assert_eq!(file::seek_data(sparse.as_fd(), 0), Ok(1 << 20));
        assert_eq!(file::seek_hole(sparse.as_fd(), 1 << 20), Ok((1 << 20) + 3));
        let nowhere = Err(skc::ports::Errno(6)); // ENXIO
        assert_eq!(file::seek_data(sparse.as_fd(), u64::MAX), nowhere, "before the file's begin");
        assert_eq!(file::seek_hole(sparse.as_fd(), u64::MAX), nowhere, "before the file's begin");
        let to = std::fs::File::create_new(m.path("c")).expect("create");
        let mut at = 0;
        while at < (1 << 20) + 3 {
            let got = file::copy_range(sparse.as_fd(), at, to.as_fd(), at, 4 << 20).expect("copy");
            assert!(got > 0);
            at += got as u64;
        }
        assert_eq!(std::fs::read(m.path("c")).expect("read"), std::fs::read(m.path("s")).expect("read"));
    });
}

#[test]
fn an_unlinked_open_file_and_a_linked_tmpfile_live_on() {
    isolated(|| {
        let (m, _) = Mounted::local();
        let mut f =
            std::fs::File::options().read(true).write(true).create_new(true).open(m.path("f")).expect("f");
        f.write_all(b"one").expect("write");
        // Held by O_PATH only: there is no FUSE file handle to go by.
        let top = std::fs::File::open(&m.dir).expect("open");
        std::fs::write(m.path("p"), b"12345").expect("write");
        let path_only = file::open_at(top.as_fd(), b"p", 0o10_000_000, 0).expect("open O_PATH");
        std::fs::remove_file(m.path("p")).expect("unlink");
        file::chmod(path_only.as_fd(), 0o421).expect("chmod by O_PATH");
        let seen = file::stat(path_only.as_fd()).expect("stat by O_PATH");
        assert_eq!((seen.nlink, seen.size, seen.mode & 0o777), (0, 5, 0o421));
        std::fs::create_dir(m.path("d")).expect("mkdir");
        let dir = std::fs::File::open(m.path("d")).expect("open");
        std::fs::remove_file(m.path("f")).expect("unlink");
        std::fs::remove_dir(m.path("d")).expect("rmdir");
        f.write_all(b" two").expect("write after unlink");
        f.set_permissions(PermissionsExt::from_mode(0o400)).expect("chmod after unlink");
        f.sync_all().expect("fsync after unlink");
        let meta = f.metadata().expect("stat");
        assert_eq!((meta.nlink(), meta.len(), meta.mode() & 0o777), (0, 7, 0o400));
        assert_eq!(dir.metadata().expect("stat of a removed directory").nlink(), 0);
        let mut text = String::new();
        f.seek(SeekFrom::Start(0)).expect("seek");
        f.read_to_string(&mut text).expect("read");
        assert_eq!(text, "one two");
        let tmp = file::open_tmpfile(top.as_fd(), 0o640, false).expect("O_TMPFILE");
        file::pwrite(tmp.as_fd(), b"tmp", 0).expect("write");
        file::link_at(tmp.as_fd(), top.as_fd(), b"named").expect("link");
        drop(tmp);
        assert_eq!(std::fs::read(m.path("named")).expect("read"), b"tmp");
        assert_eq!(m.path("named").metadata().expect("stat").nlink(), 1);
    });
}

#[test]
fn the_mirror_s_own_things_are_not_there() {
    isolated(|| {
        let (m, _) = Mounted::local();
        std::fs::create_dir(m.below().join(".skc")).expect("mkdir below");
        let fd = m.tree.backing.base();
        file::set_xattr(fd, b"trusted.skc.token", b"secret", 0).expect("setxattr below");
        assert_eq!(std::fs::read_dir(&m.dir).expect("readdir").count(), 0);
        assert!(!m.path(".skc").exists());
        let refused = std::fs::create_dir(m.path(".skc")).expect_err("hidden");
        assert_eq!(refused.raw_os_error(), Some(1));
        let top = std::fs::File::open(&m.dir).expect("open");
        assert_eq!(file::fd_list_xattr(top.as_fd()), Ok(vec![]));
        assert!(file::fd_get_xattr(top.as_fd(), b"trusted.skc.token").is_err());
        assert!(file::set_xattr(top.as_fd(), b"trusted.skc.token", b"x", 0).is_err());
        std::fs::create_dir(m.path("sub")).expect("mkdir");
        std::fs::create_dir(m.path("sub/.skc")).expect("only hidden in the root");
    });
}

#[test]
fn a_large_directory_lists_completely_and_costs_no_descriptors() {
    isolated(|| {
        let (m, _) = Mounted::local();
        for i in 0..5000 {
            std::fs::write(m.below().join(format!("file-{i:05}")), b"").expect("write below");
        }
        let fds = || std::fs::read_dir("/proc/self/fd").expect("fds").count();
        let before = fds();
        let names: std::collections::BTreeSet<_> = std::fs::read_dir(&m.dir)
            .expect("readdir")
            .map(|e| {
                let e = e.expect("entry");
                e.metadata().expect("stat");
                e.file_name()
            })
            .collect();
        assert_eq!(names.len(), 5000);
        assert!(m.tree.inodes.len() >= 5000);
        // Other tests run beside this one in the same process.
        assert!(fds() < before + 500, "no descriptor per file");
    });
}

#[test]
fn shared_mappings_and_birth_times_work() {
    isolated(|| {
        let (m, _) = Mounted::local();
        let script = format!(
            "import mmap,os\nf=open('{0}/m','w+b')\nf.truncate(100000)\nm=mmap.mmap(f.fileno(),100000)\n\
             m[50000:50005]=b'hello'\nm.flush()\nassert os.pread(f.fileno(),5,50000)==b'hello'\n",
            m.dir.display()
        );
        match Command::new("python3").args(["-c", &script]).status() {
            Ok(status) => assert!(status.success()),
            Err(error) => skipped("shared_mappings_and_birth_times_work", format_args!("python3: {error}")),
        }
        let meta = std::fs::metadata(m.path("m"));
        if let Ok(meta) = meta {
            assert_eq!(std::fs::read(m.below().join("m")).expect("read below")[50000..50005], *b"hello");
            assert_eq!(
                meta.created().ok(),
                m.below().join("m").metadata().expect("stat below").created().ok()
            );
        }
    });
}

#[test]
fn a_name_the_kernel_did_not_know_of_is_opened_with_the_caller_s_rights() {
    isolated(|| {
        let (m, _) = Mounted::local();
        open_up(&m);
        let f = m.path("f");
        assert!(!f.exists(), "now the kernel believes that there is nothing");
        std::fs::write(m.below().join("f"), b"secret").expect("write below");
        std::fs::set_permissions(m.below().join("f"), PermissionsExt::from_mode(0o600)).expect("chmod");
        let d = m.dir.display();
        assert!(!as_user(&format!("(exec 3<>{d}/f) 2>/dev/null")), "open with O_CREAT");
        assert!(!as_user(&format!("(: >{d}/f) 2>/dev/null")), "open with O_CREAT and O_TRUNC");
        assert_eq!(std::fs::read(m.below().join("f")).expect("read"), b"secret");
        // Whoever may gets the file that is there.
        assert!(!m.path("g").exists());
        std::fs::write(m.below().join("g"), b"0123").expect("write below");
        std::fs::File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(m.path("g"))
            .expect("open")
            .write_all(b"ab")
            .expect("write");
        assert_eq!(std::fs::read(m.path("g")).expect("read"), b"ab23");
        assert!(!m.path("h").exists());
        std::os::unix::fs::symlink("g", m.below().join("h")).expect("symlink below");
        std::fs::File::options()
            .append(true)
            .create(true)
            .open(m.path("h"))
            .expect("open")
            .write_all(b"+")
            .expect("write");
        assert_eq!(std::fs::read(m.path("g")).expect("read"), b"ab23+");
    });
}

#[test]
fn past_the_share_of_applications_opening_fails_and_everything_else_works() {
    isolated(|| {
        let all = Arc::new(Descriptors::with_limit(200));
        let most = all.for_applications();
        let m = Mounted::counted(|_| Arc::new(Local::default()), Options::default(), Arc::clone(&all));
        std::fs::write(m.path("f"), b"x").expect("write");
        std::fs::create_dir(m.path("d")).expect("mkdir");
        let open = |_| std::fs::File::open(m.path("f"));
        // Closing is not waited for: what was opened above may still count for a moment.
        let mut held = Vec::new();
        eventually("all that may be are open", || {
            held.extend(open(0));
            held.len() == most
        });
        let enfile = |r: std::io::Result<()>| {
            assert_eq!(r.expect_err("no room").raw_os_error(), Some(libc::ENFILE));
        };
        enfile(open(0).map(drop));
        enfile(std::fs::File::create_new(m.path("new")).map(drop));
        enfile(std::fs::read_dir(m.path("d")).map(drop));
        assert!(!m.path("new").exists(), "nothing is left of what was refused");
        std::fs::rename(m.path("f"), m.path("d/g")).expect("rename");
        std::fs::create_dir(m.path("e")).expect("mkdir");
        assert_eq!(m.path("d/g").metadata().expect("stat").len(), 1);
        drop(held.pop());
        eventually("one more may be opened again", || std::fs::File::create_new(m.path("new")).is_ok());
        // An open file without a name costs one more, which cannot be refused.
        eventually("the new one is closed", || std::fs::read_dir(m.path("d")).is_ok());
        std::fs::remove_file(m.path("d/g")).expect("unlink");
        enfile(std::fs::read_dir(m.path("d")).map(drop));
        drop(held);
        eventually("all are given back", || {
            let again: Vec<_> = (0..most).map_while(|_| std::fs::File::open(m.path("new")).ok()).collect();
            again.len() == most
        });
    });
}
