//! The directories of one cluster: opened, recognised, mounted over.
//!
//! Purpose: never serve or send a directory that is not the one we know (a volume that was not
//! mounted, a restored copy). Inputs: paths of the spec, the identity remembered in the state
//! directory. Outputs: [`TreeState`] for the core, mounts for the application. Failure: a directory
//! that cannot be used is looked at again by [`Volumes::look`] until it can; nothing is mounted
//! meanwhile. What runs here blocks (system calls): call it from a blocking thread.
//!
//! Not a reconciler, on purpose. What is observed here is evidence, not a state to be brought about: a
//! directory that is another one than before must reach the core as that, never be put right by a step.
//! Mounting is the end of the same look, not a wish of its own: it binds the tree to the data path, which
//! is made once and lives as long. And a mount that somebody took away is not just put back: what was
//! written underneath meanwhile is in no stream, so the core hears of it first ([`TreeState::Unmounted`]).

use crate::base::codes::{self, Code};
use crate::base::{ClusterId, Patterns, Volume};
use crate::engine::TreeState;
use crate::fuse::{self, Mount};
use crate::ports::Replicator;
use crate::spec::types::Directory;
use crate::store::StateDir;
use crate::sys::backing::Backing;
use crate::tree::identity::{self, Identity, Verdict};
use crate::tree::{Descriptors, Tree, local};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What is remembered of a directory, outside of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    path: PathBuf,
    identity: Identity,
    /// Stamps the tree may carry: the newest, and the one before while it is being renewed.
    stamps: Vec<String>,
    /// The patterns ([`Patterns::text`]) by which no file has names on both sides.
    #[serde(default)]
    patterns: String,
}

/// One directory.
pub struct VolumeUnit {
    /// Its path.
    pub path: PathBuf,
    /// Opened and recognised.
    pub tree: Option<Arc<Tree>>,
    /// Mounted over.
    pub mount: Option<Mount>,
    /// What it looks like.
    pub state: TreeState,
    /// Why it cannot be used, for status.
    pub note: String,
    /// A mount of ours that was ended lies at the path.
    dead: bool,
    index: Volume,
    patterns: Option<Patterns>,
    /// What was mounted on its directories when last looked.
    below: Vec<PathBuf>,
}

/// All directories of a cluster.
pub struct Volumes {
    /// In the order of the spec.
    pub units: Vec<VolumeUnit>,
    /// Unmounted by the operator: not mounted again before the next start.
    pub ejected: bool,
    /// This node's copy is not a good one: a sync may have failed in this boot, and the kernel shows lost
    /// pages as if they were on the disk. What is opened is not to be compared by cached pages.
    pub suspect: bool,
    cluster: ClusterId,
    state: StateDir,
}

impl Volumes {
    /// Nothing is touched yet.
    pub fn new(cluster: ClusterId, state: StateDir, directories: &[Directory]) -> Self {
        let units = directories
            .iter()
            .zip(0..)
            .map(|(directory, index)| VolumeUnit {
                path: directory.path.clone(),
                // Validated, and no worse than mirroring too much.
                patterns: Patterns::new(&directory.exclude, &directory.include).unwrap_or_else(|error| {
                    tracing::error!(path = %directory.path.display(), %error, "patterns are ignored");
                    None
                }),
                tree: None,
                mount: None,
                state: TreeState::Unknown,
                note: String::new(),
                dead: false,
                index: Volume(index),
                below: Vec::new(),
            })
            .collect();
        Self { units, ejected: false, suspect: false, cluster, state }
    }

    /// Opens and recognises what is not open yet; the worst state of all directories.
    pub fn look(&mut self) -> TreeState {
        let mut worst = TreeState::Ok { empty: true, stamp_ok: true };
        for unit in &mut self.units {
            if unit.tree.is_none() {
                let record = record_name(&self.cluster, unit.index);
                match open(&self.state, &record, &unit.path, unit.patterns.as_ref()) {
                    Ok((backing, state)) => {
                        unit.state = state;
                        note(state).clone_into(&mut unit.note);
                        if matches!(state, TreeState::Ok { .. }) {
                            let (patterns, counted) = (unit.patterns.clone(), Descriptors::of_process());
                            let tree = Tree::with(unit.index, backing, patterns, counted);
                            if self.suspect {
                                tree.distrust_cache();
                            }
                            unit.tree = Some(Arc::new(tree));
                        }
                    }
                    Err((state, why)) => {
                        unit.state = state;
                        unit.note = why;
                    }
                }
            }
            worst = combine(worst, unit.state);
            if let Some(mount) = unit.mount.take_if(|mount| !mount.is_in_place()) {
                tracing::error!(path = %unit.path.display(), error_code = "SKC-E3012", "{}", note(TreeState::Unmounted));
                // Not unmounted by path: somebody else's may lie there now.
                mount.abandon();
                note(TreeState::Unmounted).clone_into(&mut unit.note);
                worst = combine(worst, TreeState::Unmounted);
            }
        }
        for unit in &mut self.units {
            unit.look_below();
        }
        worst
    }

    /// Mounts over every directory; call when `look` said Ok.
    pub fn mount(&mut self, replicator: &Arc<dyn Replicator>) -> Result<(), (Code, String)> {
        for unit in &mut self.units {
            let Some(tree) = &unit.tree else {
                return Err((codes::FS_MOUNT, format!("{}: {}", unit.path.display(), unit.note)));
            };
            if unit.mount.is_none() {
                if unit.dead {
                    fuse::mountinfo::prepare(&unit.path).map_err(|e| (codes::FS_MOUNT, e.to_string()))?;
                    // The kernel that knew these ids through the former mount forgot them with it.
                    tree.inodes.forget_all_lookups(&mut Vec::new());
                    unit.dead = false;
                }
                unit.note = bypassing(&unit.path);
                match Mount::new(tree.clone(), replicator.clone(), &unit.path) {
                    Ok(mount) => unit.mount = Some(mount),
                    Err(error) => {
                        unit.note = error.to_string();
                        return Err((error.code(), format!("{}: {error}", unit.path.display())));
                    }
                }
            }
        }
        Ok(())
    }

    /// The trees, if all are there.
    pub fn trees(&self) -> Option<Vec<Arc<Tree>>> {
        self.units.iter().map(|u| u.tree.clone()).collect()
    }

    /// The operator said that these directories are right as they are: remember them anew.
    pub fn adopt(&mut self) -> Result<(), String> {
        for unit in &mut self.units {
            let failed = |e: &dyn std::fmt::Display| format!("{}: {e}", unit.path.display());
            let backing = Backing::open(&unit.path).map_err(|e| failed(&format!("errno {}", e.0)))?;
            let identity = identity::renew(&backing).map_err(|e| failed(&e))?;
            let record =
                Record { path: unit.path.clone(), identity, stamps: Vec::new(), patterns: String::new() };
            put(&self.state, &record_name(&self.cluster, unit.index), &record)?;
        }
        Ok(())
    }

    /// These trees are right as they are: their stamps are remembered anew.
    pub fn bless(&mut self) -> Result<(), String> {
        for unit in &mut self.units {
            let (Some(tree), TreeState::Ok { empty, stamp_ok: false }) = (&unit.tree, unit.state) else {
                continue;
            };
            let name = record_name(&self.cluster, unit.index);
            if let Some(record) = get(&self.state, &name)? {
                renew_stamp(&self.state, &name, record, &tree.backing)?;
                unit.state = TreeState::Ok { empty, stamp_ok: true };
                unit.note.clear();
            }
        }
        Ok(())
    }

    /// Ends the mounts: who waits for an answer gets ENOTCONN. The dead mounts stay in place, so that nothing
    /// is written underneath them, until the directories can be mounted again.
    pub fn give_up(&mut self) {
        for unit in &mut self.units {
            let Some(mount) = unit.mount.take() else { continue };
            tracing::error!(path = %unit.path.display(), error_code = "SKC-E3014", "the mount is ended: its disk does not answer");
            mount.abort();
            unit.dead = true;
            "its mount was ended because the disk does not answer".clone_into(&mut unit.note);
            // Its readers may hang for as long as the disk does.
            let ended = std::thread::Builder::new().name("mount-end".into()).spawn(move || drop(mount));
            if let Err(error) = ended {
                tracing::warn!(%error, "no thread for the end of a mount");
            }
        }
    }

    /// Unmounts all; what cannot be unmounted in order is aborted and detached.
    pub fn unmount(&mut self) {
        for unit in &mut self.units {
            if let Some(mount) = unit.mount.take()
                && let Err(errno) = mount.unmount()
            {
                tracing::warn!(path = %unit.path.display(), errno = errno.0, "unmount");
            }
        }
    }
}

impl VolumeUnit {
    /// What somebody mounted on a directory of the mirror is seen and used, and on this node only: said once.
    fn look_below(&mut self) {
        let below = self.mount.as_ref().map(Mount::mounted_below).unwrap_or_default();
        if below == self.below {
            return;
        }
        self.below = below;
        if let Some(first) = self.below.first() {
            tracing::warn!(
                path = %self.path.display(), below = %first.display(), count = self.below.len(), error_code = codes::FS_BELOW.id,
                "mounted on a directory of the mirror; what is written there is not replicated"
            );
        }
    }

    /// The note and what is mounted below, for status.
    pub fn notes(&self) -> String {
        let Some(first) = self.below.first() else { return self.note.clone() };
        let mounted = format!("mounted below and not replicated: {}", first.display());
        if self.note.is_empty() { mounted } else { format!("{}; {mounted}", self.note) }
    }
}

/// Processes that hold the directory open from before the mount write past the mirror.
fn bypassing(path: &Path) -> String {
    let holders = fuse::holders::find(path);
    let Some(first) = holders.first() else { return String::new() };
    tracing::warn!(
        path = %path.display(), count = holders.len(), first = first.name, pid = first.pid, error_code = "SKC-E3006",
        "processes hold the directory open from before the mount; what they write there is not replicated"
    );
    let list: Vec<String> =
        holders.iter().take(5).map(|h| format!("{} ({}, {})", h.name, h.pid, h.how)).collect();
    format!("held open from before the mount, restart them: {}", list.join(", "))
}

fn record_name(cluster: &ClusterId, volume: Volume) -> String {
    format!("volumes/{cluster}.{}.json", volume.0)
}

/// The worse of two states: what keeps a cluster from starting hides what does not.
fn combine(a: TreeState, b: TreeState) -> TreeState {
    match (a, b) {
        (TreeState::Ok { empty: x, stamp_ok: p }, TreeState::Ok { empty: y, stamp_ok: q }) => {
            TreeState::Ok { empty: x && y, stamp_ok: p && q }
        }
        (TreeState::Ok { .. }, other) | (other, _) => other,
    }
}

fn note(state: TreeState) -> &'static str {
    match state {
        TreeState::Ok { stamp_ok: true, .. } => "",
        TreeState::Ok { stamp_ok: false, .. } => {
            "its stamp is not the one remembered: it was restored from a copy; it will be compared in full"
        }
        TreeState::Unknown => "not looked at yet",
        TreeState::Missing => "the directory does not exist",
        TreeState::Replaced => "this is not the directory that was mirrored (another token or another root)",
        TreeState::EmptyWhereNotEmpty => {
            "the directory is empty and has no token: its volume is probably not mounted"
        }
        TreeState::DiskError => "its disk answers with errors",
        TreeState::DiskHangs => "its disk does not answer",
        TreeState::Unmounted => "its mount was taken away; what was written there since is in no stream",
    }
}

fn open(
    state: &StateDir,
    record: &str,
    path: &Path,
    patterns: Option<&Patterns>,
) -> Result<(Backing, TreeState), (TreeState, String)> {
    fuse::mountinfo::prepare(path).map_err(|e| (TreeState::Missing, e.to_string()))?;
    let backing = Backing::open(path).map_err(|e| match e.0 {
        libc::ENOENT | libc::ENOTDIR => (TreeState::Missing, note(TreeState::Missing).to_owned()),
        errno => (TreeState::DiskError, format!("cannot be opened: errno {errno}")),
    })?;
    let disk = |e: identity::IdentityError| (TreeState::DiskError, e.to_string());
    let known = get(state, record).map_err(|e| (TreeState::DiskError, e))?;
    let text = patterns.map_or("", Patterns::text);
    if let Some(patterns) = patterns.filter(|_| known.as_ref().is_none_or(|known| known.patterns != text)) {
        no_link_across(&backing, patterns)?;
    }
    let patterns_text = text.to_owned();
    let Some(mut known) = known else {
        let identity = identity::establish(&backing).map_err(disk)?;
        let fresh = Record { path: path.to_owned(), identity, stamps: Vec::new(), patterns: patterns_text };
        put(state, record, &fresh).map_err(|e| (TreeState::DiskError, e))?;
        let empty = identity::is_empty(&backing, patterns).map_err(disk)?;
        renew_stamp(state, record, fresh, &backing).map_err(|e| (TreeState::DiskError, e))?;
        return Ok((backing, TreeState::Ok { empty, stamp_ok: true }));
    };
    match identity::check(&backing, patterns, &known.identity).map_err(disk)? {
        Verdict::Ok { empty } => {
            let stamp =
                identity::stamp(&backing).map_err(disk)?.map(|s| String::from_utf8_lossy(&s).into_owned());
            let stamp_ok = known.stamps.is_empty() || stamp.is_some_and(|s| known.stamps.contains(&s));
            if stamp_ok {
                known.patterns = patterns_text;
                renew_stamp(state, record, known, &backing).map_err(|e| (TreeState::DiskError, e))?;
            }
            Ok((backing, TreeState::Ok { empty, stamp_ok }))
        }
        Verdict::EmptyWhereNotEmpty => {
            Err((TreeState::EmptyWhereNotEmpty, note(TreeState::EmptyWhereNotEmpty).to_owned()))
        }
        Verdict::Missing | Verdict::Replaced => {
            Err((TreeState::Replaced, note(TreeState::Replaced).to_owned()))
        }
    }
}

/// Refuses patterns that part the names of one file. Once for each set of patterns: through the mount no
/// such name can be made.
fn no_link_across(backing: &Backing, patterns: &Patterns) -> Result<(), (TreeState, String)> {
    let found = local::link_across(backing, patterns)
        .map_err(|e| (TreeState::DiskError, format!("looking for links failed: errno {}", e.0)))?;
    let Some(path) = found else { return Ok(()) };
    let path: Vec<String> = path.iter().map(|name| name.escape_ascii().to_string()).collect();
    let what = format!("{} stays local, but another name of the same file is mirrored", path.join("/"));
    tracing::error!(error_code = codes::FS_LINK_ACROSS.id, "{what}");
    Err((TreeState::Missing, format!("{what} ({})", codes::FS_LINK_ACROSS.id)))
}

/// State first, then the tree: at any power cut the tree's stamp is one of the two remembered.
fn renew_stamp(state: &StateDir, name: &str, mut record: Record, backing: &Backing) -> Result<(), String> {
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes).map_err(|e| e.to_string())?;
    let fresh = format!("{:032x}", u128::from_be_bytes(bytes));
    record.stamps.insert(0, fresh.clone());
    put(state, name, &record)?;
    identity::set_stamp(backing, fresh.as_bytes()).map_err(|e| e.to_string())?;
    record.stamps.truncate(1);
    put(state, name, &record)
}

fn get(state: &StateDir, name: &str) -> Result<Option<Record>, String> {
    let bytes = state.read_small(name).map_err(|e| e.to_string())?;
    bytes.map(|b| serde_json::from_slice(&b).map_err(|e| format!("{name} is damaged: {e}"))).transpose()
}

fn put(state: &StateDir, name: &str, record: &Record) -> Result<(), String> {
    state.make_dir("volumes").map_err(|e| e.to_string())?;
    let text = serde_json::to_vec_pretty(record).map_err(|e| e.to_string())?;
    state.write_atomic(name, &text).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(path: &Path) -> Directory {
        let (path, consistency) = (path.to_path_buf(), None);
        Directory { path, consistency, exclude: Vec::new(), include: Vec::new() }
    }

    #[test]
    fn patterns_that_part_the_names_of_a_file_are_refused() {
        let (dir, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::create_dir(dir.path().join("cache")).unwrap();
        std::fs::write(dir.path().join("a"), b"").unwrap();
        std::fs::hard_link(dir.path().join("a"), dir.path().join("b")).unwrap();
        let excluding = Directory { exclude: vec!["/cache".into()], ..directory(dir.path()) };
        let look = || {
            let state = StateDir::open(state.path()).unwrap();
            let directories = std::slice::from_ref(&excluding);
            let mut volumes = Volumes::new(ClusterId("c".into()), state, directories);
            (volumes.look(), volumes.units[0].note.clone())
        };
        std::fs::hard_link(dir.path().join("a"), dir.path().join("cache/c")).unwrap();
        let (state, note) = look();
        assert!(state == TreeState::Missing && note.contains("cache/c stays local"), "{state:?} {note}");
        std::fs::remove_file(dir.path().join("cache/c")).unwrap();
        assert!(matches!(look().0, TreeState::Ok { .. }));
    }

    #[test]
    fn a_suspect_copy_is_opened_without_trust_in_cached_pages() {
        let (dir, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for suspect in [false, true] {
            let state = StateDir::open(state.path()).unwrap();
            let mut volumes = Volumes::new(ClusterId("c".into()), state, &[directory(dir.path())]);
            volumes.suspect = suspect;
            let looked = volumes.look();
            assert!(matches!(looked, TreeState::Ok { .. }), "{looked:?}: {}", volumes.units[0].note);
            assert_eq!(volumes.trees().unwrap()[0].is_cache_distrusted(), suspect);
        }
    }
}
