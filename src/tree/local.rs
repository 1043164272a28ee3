//! What stays on each node (`exclude`, `include`): which names those are where only the file system says where one
//! is, and whether an object has names on both sides.

use super::{Tree, is_hidden};
use crate::base::Patterns;
use crate::base::patterns::Scope;
use crate::ports::Errno;
use crate::proto::FileId;
use crate::sys::backing::{Backing, FileHandle};
use crate::sys::file::{self, Entries};
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Deepest directory whose place is looked for name by name: more than the kernel opens by path.
const CLIMB_MAX: usize = 16 * 1024;

/// The names of one directory that stay local.
#[derive(Debug, Clone, Copy)]
pub struct LocalNames<'a>(Which<'a>);

#[derive(Debug, Clone, Copy)]
enum Which<'a> {
    Nothing,
    ByPattern(&'a Patterns, Scope),
    Everything,
}

impl LocalNames<'_> {
    /// Is this one of them?
    pub fn has(&self, name: &[u8], is_dir: bool) -> bool {
        match self.0 {
            Which::Nothing => false,
            Which::ByPattern(patterns, scope) => patterns.child(scope, name, is_dir).is_none(),
            Which::Everything => true,
        }
    }

    /// None is, by no pattern.
    pub const fn is_nothing(&self) -> bool {
        matches!(self.0, Which::Nothing)
    }
}

/// One directory of a walk.
struct Place {
    handle: FileHandle,
    /// `None`: local.
    scope: Option<Scope>,
    path: Vec<Vec<u8>>,
}

impl Tree {
    /// The local names of the directory `dir`, by its place in the file system. The caller keeps that from changing.
    pub fn local_names(&self, dir: BorrowedFd<'_>) -> Result<LocalNames<'_>, Errno> {
        let Some(patterns) = self.patterns.as_deref() else { return Ok(LocalNames(Which::Nothing)) };
        let scope = patterns.directory(&self.place_of(dir)?);
        Ok(LocalNames(scope.map_or(Which::Everything, |scope| Which::ByPattern(patterns, scope))))
    }

    /// The names that lead to `dir` from the root. The kernel tells them for a directory, unless they are too long
    /// for it: then name by name.
    fn place_of(&self, dir: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>, Errno> {
        let mut names = Vec::new();
        let mut here: Option<OwnedFd> = None;
        for _ in 0..CLIMB_MAX {
            let at = here.as_ref().map_or(dir, AsFd::as_fd);
            let handle = self.backing.handle_of(at)?;
            if handle == *self.backing.root_handle() {
                names.reverse();
                return Ok(names);
            }
            if let Some(mut path) = self.backing.path_hint(at) {
                path.extend(names.into_iter().rev());
                return Ok(path);
            }
            let parent = file::open_parent(at)?;
            names.push(self.name_in(parent.as_fd(), &handle)?);
            here = Some(parent);
        }
        Err(Errno(libc::ELOOP))
    }

    fn name_in(&self, parent: BorrowedFd<'_>, handle: &FileHandle) -> Result<Vec<u8>, Errno> {
        let list = file::open_dir(parent)?;
        let mut buf = vec![0; 64 << 10];
        while let len @ 1.. = file::read_dir(list.as_fd(), &mut buf, None)? {
            for entry in Entries::new(&buf[..len]) {
                let dir = matches!(entry.kind, libc::DT_DIR | libc::DT_UNKNOWN) && !is_dots(entry.name);
                if dir && self.backing.handle_at(parent, entry.name).is_ok_and(|h| h == *handle) {
                    return Ok(entry.name.to_vec());
                }
            }
        }
        Err(Errno(libc::ENOENT))
    }
}

/// A local name of a file that has a mirrored one, too: what is written through one of them would be missing
/// behind the other on the standby. Through the mount no such link can be made. Walks the whole tree.
pub fn link_across(backing: &Backing, patterns: &Patterns) -> Result<Option<Vec<Vec<u8>>>, Errno> {
    // Of files with several names: a name on each side.
    let mut sides: HashMap<u64, [Option<Vec<Vec<u8>>>; 2]> = HashMap::new();
    let root = *backing.root_handle();
    let mut dirs = vec![Place { handle: root, scope: Some(patterns.root()), path: Vec::new() }];
    let mut buf = vec![0; 64 << 10];
    while let Some(place) = dirs.pop() {
        let fd = match backing.open_dir(&place.handle) {
            Ok(fd) => fd,
            Err(Errno(libc::ESTALE | libc::ENOENT)) => continue,
            Err(errno) => return Err(errno),
        };
        while let len @ 1.. = file::read_dir(fd.as_fd(), &mut buf, None)? {
            for entry in Entries::new(&buf[..len]) {
                let hidden = place.path.is_empty() && is_hidden(FileId::ROOT, entry.name);
                if is_dots(entry.name) || hidden {
                    continue;
                }
                let (handle, stat) = match backing.lookup(fd.as_fd(), entry.name) {
                    Ok(found) => found,
                    Err(Errno(libc::ENOENT)) => continue,
                    Err(errno) => return Err(errno),
                };
                let scope = place.scope.and_then(|s| patterns.child(s, entry.name, stat.is_dir()));
                let path = || [&place.path[..], &[entry.name.to_vec()]].concat();
                if stat.is_dir() {
                    dirs.push(Place { handle, scope, path: path() });
                } else if stat.nlink > 1 {
                    let both = sides.entry(stat.ino).or_default();
                    both[usize::from(scope.is_some())].get_or_insert_with(path);
                    if let [Some(local), Some(_)] = both {
                        return Ok(Some(std::mem::take(local)));
                    }
                }
            }
        }
    }
    Ok(None)
}

fn is_dots(name: &[u8]) -> bool {
    matches!(name, b"." | b"..")
}
