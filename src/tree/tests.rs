use super::*;
use crate::sys::file;
use identity::Verdict;
use std::path::Path;

fn tree(path: &Path) -> Option<Tree> {
    let tree = Tree::new(Volume(0), Backing::open(path).expect("open backing"));
    if let Err(error) = tree.open_path(FileId::ROOT) {
        eprintln!("skipped: open_by_handle_at: {error:?}");
        return None;
    }
    Some(tree)
}

fn id(tree: &Tree, parent: FileId, name: &[u8]) -> FileId {
    let dir = tree.open_path(parent).expect("open parent");
    let (handle, stat) = tree.backing.lookup(dir.as_fd(), name).expect("lookup");
    tree.inodes.lookup(handle, parent, name, &stat)
}

#[test]
fn ids_are_stable_and_never_reused() {
    let tmp = tempfile::tempdir().expect("temporary directory");
    std::fs::write(tmp.path().join("a"), b"").expect("write");
    let Some(t) = tree(tmp.path()) else { return };
    let a = id(&t, FileId::ROOT, b"a");
    assert_eq!(id(&t, FileId::ROOT, b"a"), a);
    let mut gone = Vec::new();
    t.inodes.forget(a, 1, &mut gone);
    assert_eq!((gone.len(), t.inodes.handle(a).is_some()), (0, true));
    t.inodes.forget(a, 1, &mut gone);
    assert_eq!((gone, t.inodes.handle(a)), (vec![a], None));
    assert!(id(&t, FileId::ROOT, b"a") > a);
    assert_eq!(t.stat(a).err(), Some(Errno(libc::ESTALE)));
}

#[test]
fn a_child_holds_its_parents_in_the_table() {
    let tmp = tempfile::tempdir().expect("temporary directory");
    std::fs::create_dir_all(tmp.path().join("d/e")).expect("mkdir");
    std::fs::write(tmp.path().join("d/e/f"), b"").expect("write");
    let Some(t) = tree(tmp.path()) else { return };
    let d = id(&t, FileId::ROOT, b"d");
    let e = id(&t, d, b"e");
    let f = id(&t, e, b"f");
    let mut gone = Vec::new();
    t.inodes.forget(d, 1, &mut gone);
    t.inodes.forget(e, 1, &mut gone);
    assert_eq!(gone, []);
    assert_eq!(t.alias(f), Some((e, b"f".to_vec())));
    assert_eq!(t.alias(e), Some((d, b"e".to_vec())));
    t.inodes.forget(f, 1, &mut gone);
    assert_eq!(gone, [f, e, d]);
    assert_eq!(t.inodes.len(), 1);
}

#[test]
fn a_false_alias_is_replaced_by_a_true_one() {
    let tmp = tempfile::tempdir().expect("temporary directory");
    std::fs::create_dir_all(tmp.path().join("x/y")).expect("mkdir");
    std::fs::write(tmp.path().join("a"), b"").expect("write");
    let Some(t) = tree(tmp.path()) else { return };
    let a = id(&t, FileId::ROOT, b"a");
    std::fs::rename(tmp.path().join("a"), tmp.path().join("x/y/b")).expect("rename");
    std::fs::write(tmp.path().join("a"), b"another").expect("write");
    let (parent, name) = t.alias(a).expect("found by the kernel's name cache");
    assert_eq!(name, b"b");
    let (grand, name) = t.alias(parent).expect("parent has a name");
    assert_eq!(name, b"y");
    assert_eq!(t.alias(grand), Some((FileId::ROOT, b"x".to_vec())));
}

#[test]
fn a_hard_link_the_table_never_saw_is_found_by_a_scan() {
    let tmp = tempfile::tempdir().expect("temporary directory");
    std::fs::create_dir_all(tmp.path().join("p/q")).expect("mkdir");
    std::fs::write(tmp.path().join("a"), b"").expect("write");
    std::fs::hard_link(tmp.path().join("a"), tmp.path().join("p/q/other")).expect("link");
    let Some(t) = tree(tmp.path()) else { return };
    let a = id(&t, FileId::ROOT, b"a");
    file::unlink(t.backing.base(), b"a").expect("unlink");
    t.inodes.drop_alias(a, FileId::ROOT, b"a");
    let (_, name) = t.alias(a).expect("found");
    assert_eq!(name, b"other");
    std::fs::remove_file(tmp.path().join("p/q/other")).expect("remove");
    assert_eq!(t.alias(a), None);
}

#[test]
fn an_unlinked_object_stays_reachable_while_it_is_kept() {
    let tmp = tempfile::tempdir().expect("temporary directory");
    std::fs::write(tmp.path().join("a"), b"data").expect("write");
    let Some(t) = tree(tmp.path()) else { return };
    let a = id(&t, FileId::ROOT, b"a");
    let PathFd::Opened(fd) = t.open_path(a).expect("open") else { panic!("not kept yet") };
    file::unlink(t.backing.base(), b"a").expect("unlink");
    t.inodes.set_kept(a, Some(fd));
    assert_eq!(t.stat(a).map(|s| (s.nlink, s.size)), Ok((0, 4)));
    let data = t.open(a, libc::O_RDWR).expect("open data of an unlinked file");
    assert_eq!(file::pwrite(data.as_fd(), b"more", 4), Ok(4));
    assert_eq!(t.alias(a), None);
    let mut gone = Vec::new();
    t.inodes.forget(a, 1, &mut gone);
    assert_eq!(gone, [a]);
}

#[test]
fn an_unmounted_or_replaced_directory_is_noticed() {
    let tmp = tempfile::tempdir().expect("temporary directory");
    let (one, two) = (tmp.path().join("one"), tmp.path().join("two"));
    std::fs::create_dir(&one).expect("mkdir");
    std::fs::create_dir(&two).expect("mkdir");
    let b = Backing::open(&one).expect("open");
    let me = identity::establish(&b).expect("establish");
    assert_eq!(identity::establish(&b).as_ref(), Ok(&me));
    assert_eq!(identity::check(&b, None, &me), Ok(Verdict::Ok { empty: true }));
    std::fs::write(one.join("f"), b"").expect("write");
    assert_eq!(identity::check(&b, None, &me), Ok(Verdict::Ok { empty: false }));
    let other = Backing::open(&two).expect("open");
    assert_eq!(identity::check(&other, None, &me), Ok(Verdict::EmptyWhereNotEmpty));
    std::fs::write(two.join("f"), b"").expect("write");
    assert_eq!(identity::check(&other, None, &me), Ok(Verdict::Missing));
    identity::establish(&other).expect("establish");
    assert_eq!(identity::check(&other, None, &me), Ok(Verdict::Replaced));
    identity::set_stamp(&b, b"7.1").expect("stamp");
    assert_eq!(identity::stamp(&b), Ok(Some(b"7.1".to_vec())));
    assert_eq!(identity::stamp(&other), Ok(None));
}

#[test]
fn a_name_the_stream_does_not_know_yet_is_not_offered() {
    let tmp = tempfile::tempdir().expect("temporary directory");
    std::fs::write(tmp.path().join("a"), b"").expect("write");
    let Some(t) = tree(tmp.path()) else { return };
    let a = id(&t, FileId::ROOT, b"a");
    std::fs::hard_link(tmp.path().join("a"), tmp.path().join("b")).expect("link");
    assert_eq!(id(&t, FileId::ROOT, b"b"), a);
    let unsent = Some((FileId::ROOT, &b"b"[..]));
    assert_eq!(t.alias_except(a, unsent), Some((FileId::ROOT, b"a".to_vec())));
    t.inodes.drop_alias(a, FileId::ROOT, b"a");
    assert_eq!(t.alias_except(a, unsent), Some((FileId::ROOT, b"a".to_vec())), "found by other means");
    // A file without any other name is bound as one without a name.
    std::fs::remove_file(tmp.path().join("a")).expect("remove");
    assert_eq!(t.alias_except(a, unsent), None);
}
