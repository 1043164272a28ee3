use super::*;

/// Handles need CAP_DAC_READ_SEARCH; without it these tests say so and stop.
fn backing() -> Option<(tempfile::TempDir, Backing)> {
    let tmp = tempfile::tempdir().expect("temporary directory");
    let backing = Backing::open(tmp.path()).expect("open backing");
    if let Err(error) = backing.open_path(backing.root_handle()) {
        eprintln!("skipped: open_by_handle_at: {error:?}");
        return None;
    }
    Some((tmp, backing))
}

#[test]
fn an_object_is_found_again_by_handle_after_a_rename() {
    let Some((tmp, b)) = backing() else { return };
    let fd = file::open_at(b.base(), b"a", libc::O_CREAT | libc::O_RDWR, 0o600).expect("create");
    file::pwrite(fd.as_fd(), b"hello", 3).expect("pwrite");
    let h = b.handle_of(fd.as_fd()).expect("handle");
    drop(fd);
    std::fs::rename(tmp.path().join("a"), tmp.path().join("b")).expect("rename");
    assert_eq!(b.handle_at(b.base(), b"b"), Ok(h));
    let fd = b.open_handle(&h, libc::O_RDONLY).expect("open by handle");
    let mut buf = [1; 16];
    assert_eq!(file::pread(fd.as_fd(), &mut buf, 0), Ok(8));
    assert_eq!(&buf[..8], b"\0\0\0hello");
    assert_eq!(b.path_hint(fd.as_fd()), Some(vec![b"b".to_vec()]));
    file::unlink(b.base(), b"b").expect("unlink");
    assert_eq!(b.path_hint(fd.as_fd()).map(|p| p == [b"b".to_vec()]), Some(false));
    drop(fd);
    assert_eq!(b.open_path(&h).err(), Some(Errno(libc::ESTALE)));
}

#[test]
fn attributes_and_xattrs_work_on_path_descriptors_of_every_type() {
    let Some((_tmp, b)) = backing() else { return };
    file::make_dir(b.base(), b"d", 0o755).expect("mkdir");
    file::make_symlink(b.base(), b"l", b"/nonexistent/target").expect("symlink");
    file::make_node(b.base(), b"p", libc::S_IFIFO | 0o600, 0).expect("mkfifo");
    for name in [&b"d"[..], b"l", b"p"] {
        let h = b.handle_at(b.base(), name).expect("handle");
        let fd = b.open_path(&h).expect("open");
        file::set_times(fd.as_fd(), file::SetTime::At((5, 7)), file::SetTime::At((9, 11))).expect("times");
        file::chown(fd.as_fd(), Some(12), Some(34)).expect("chown");
        let s = file::stat(fd.as_fd()).expect("stat");
        assert_eq!((s.atime, s.mtime, s.uid, s.gid), ((5, 7), (9, 11), 12, 34), "{name:?}");
        file::set_xattr(fd.as_fd(), b"trusted.test", b"value", 0).expect("setxattr");
        assert_eq!(file::get_xattr(fd.as_fd(), b"trusted.test"), Ok(b"value".to_vec()));
        assert_eq!(file::list_xattr(fd.as_fd()), Ok(b"trusted.test\0".to_vec()));
        file::remove_xattr(fd.as_fd(), b"trusted.test").expect("removexattr");
        assert_eq!(file::get_xattr(fd.as_fd(), b"trusted.test"), Err(Errno(libc::ENODATA)));
    }
    let l = b.open_path(&b.handle_at(b.base(), b"l").expect("handle")).expect("open");
    assert_eq!(file::read_link(l.as_fd()), Ok(b"/nonexistent/target".to_vec()));
    let d = b.open_path(&b.handle_at(b.base(), b"d").expect("handle")).expect("open");
    file::chmod(d.as_fd(), 0o2711).expect("chmod");
    assert_eq!(file::stat(d.as_fd()).map(|s| s.mode), Ok(libc::S_IFDIR | 0o2711));
}

#[test]
fn a_tmpfile_gets_a_name_by_linkat() {
    let Some((_tmp, b)) = backing() else { return };
    let fd = match file::open_tmpfile(b.base(), 0o640, false) {
        Err(Errno(libc::EOPNOTSUPP)) => {
            eprintln!("skipped: no O_TMPFILE here");
            return;
        }
        other => other.expect("O_TMPFILE"),
    };
    let h = b.handle_of(fd.as_fd()).expect("handle");
    let by_path = b.open_path(&h).expect("open by handle while it has no name");
    file::link_at(by_path.as_fd(), b.base(), b"named").expect("linkat");
    assert_eq!(b.handle_at(b.base(), b"named"), Ok(h));
}

#[test]
fn open_flags_that_would_break_replication_are_stripped() {
    let Some((_tmp, b)) = backing() else { return };
    let fd =
        file::open_at(b.base(), b"f", libc::O_CREAT | libc::O_RDWR | libc::O_APPEND, 0o600).expect("create");
    file::pwrite(fd.as_fd(), b"0123456789", 0).expect("pwrite");
    file::pwrite(fd.as_fd(), b"AB", 2).expect("pwrite");
    let again = file::open_at(b.base(), b"f", libc::O_RDWR | libc::O_TRUNC, 0).expect("open");
    let mut buf = [0; 16];
    assert_eq!(file::pread(again.as_fd(), &mut buf, 0), Ok(10));
    assert_eq!(&buf[..10], b"01AB456789");
}

#[test]
fn the_handle_of_a_deleted_object_is_stale_also_while_its_number_is_used_again() {
    let Some((tmp, b)) = backing() else { return };
    let file = tmp.path().join("f");
    std::fs::write(&file, b"").expect("create");
    let handle = b.handle_at(b.base(), b"f").expect("handle");
    std::fs::remove_file(&file).expect("unlink");
    std::thread::scope(|scope| {
        let churn = scope.spawn(|| {
            for _ in 0..5000 {
                std::fs::write(&file, b"").expect("create");
                std::fs::remove_file(&file).expect("unlink");
            }
        });
        while !churn.is_finished() {
            assert_eq!(b.open_path(&handle).err(), Some(Errno(libc::ESTALE)));
        }
    });
}
