//! A mounted directory in a mount namespace of the test's own.

use crate::skip::{skipped, this_test};
use skc::base::{Patterns, Volume};
use skc::fuse::{Local, Mount, Options};
use skc::ports::Replicator;
use skc::sys::backing::Backing;
use skc::sys::mount::private_namespace;
use skc::tree::{Descriptors, Tree};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A mounted directory. `bare` is the same content without the mount, reached by a bind mount made before.
pub struct Mounted {
    pub mount: Option<Mount>,
    pub tree: Arc<Tree>,
    pub dir: PathBuf,
    tmp: tempfile::TempDir,
}

impl Mounted {
    pub fn new(replicator: Arc<dyn Replicator>) -> Self {
        Self::with(|_| replicator, Options::default())
    }

    pub fn local() -> (Self, Arc<Local>) {
        let local = Arc::new(Local::default());
        (Self::new(Arc::clone(&local) as _), local)
    }

    pub fn with(replicator: impl FnOnce(&Arc<Tree>) -> Arc<dyn Replicator>, options: Options) -> Self {
        Self::counted(replicator, options, Descriptors::of_process())
    }

    pub fn counted(
        replicator: impl FnOnce(&Arc<Tree>) -> Arc<dyn Replicator>,
        options: Options,
        descriptors: Arc<Descriptors>,
    ) -> Self {
        Self::prepared(replicator, options, descriptors, |_| {})
    }

    /// `prepare` gets the directory before it is opened.
    pub fn prepared(
        replicator: impl FnOnce(&Arc<Tree>) -> Arc<dyn Replicator>,
        options: Options,
        descriptors: Arc<Descriptors>,
        prepare: impl FnOnce(&Path),
    ) -> Self {
        let tmp = tempfile::tempdir().expect("temporary directory");
        let dir = tmp.path().canonicalize().expect("canonical").join("dir");
        std::fs::create_dir(&dir).expect("mkdir");
        prepare(&dir);
        Self::over(tmp, dir, replicator, options, descriptors)
    }

    /// With patterns that leave something to each node.
    pub fn patterned(
        replicator: impl FnOnce(&Arc<Tree>) -> Arc<dyn Replicator>,
        exclude: &[&str],
        include: &[&str],
    ) -> Self {
        let tmp = tempfile::tempdir().expect("temporary directory");
        let dir = tmp.path().canonicalize().expect("canonical").join("dir");
        std::fs::create_dir(&dir).expect("mkdir");
        let patterns = Patterns::new(exclude, include).expect("patterns");
        Self::build(tmp, dir, replicator, Options::default(), Descriptors::of_process(), patterns)
    }

    /// Over a directory that is there already, `tmp`'s or below something mounted in it.
    pub fn over(
        tmp: tempfile::TempDir,
        dir: PathBuf,
        replicator: impl FnOnce(&Arc<Tree>) -> Arc<dyn Replicator>,
        options: Options,
        descriptors: Arc<Descriptors>,
    ) -> Self {
        Self::build(tmp, dir, replicator, options, descriptors, None)
    }

    fn build(
        tmp: tempfile::TempDir,
        dir: PathBuf,
        replicator: impl FnOnce(&Arc<Tree>) -> Arc<dyn Replicator>,
        options: Options,
        descriptors: Arc<Descriptors>,
        patterns: Option<Patterns>,
    ) -> Self {
        let backing = Backing::open(&dir).expect("open backing");
        let tree = Arc::new(Tree::with(Volume(0), backing, patterns, descriptors));
        let mount = Mount::with_options(Arc::clone(&tree), replicator(&tree), &dir, options);
        Self { mount: Some(mount.expect("mount")), tree, dir, tmp }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The backing directory, as `/proc/self/fd/N` shows it below the mount.
    pub fn below(&self) -> PathBuf {
        use std::os::fd::AsRawFd;
        PathBuf::from(format!("/proc/self/fd/{}", self.tree.backing.base().as_raw_fd()))
    }

    pub fn scratch(&self) -> &Path {
        self.tmp.path()
    }

    pub fn mount(&self) -> &Mount {
        self.mount.as_ref().expect("mounted")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Some(mount) = &self.mount {
            let result = mount.unmount();
            if !std::thread::panicking() {
                result.expect("unmount");
            }
        }
    }
}

/// Runs `test` on a thread in a mount namespace of its own.
pub fn isolated(test: impl FnOnce() + Send + 'static) {
    if !Path::new("/dev/fuse").exists() {
        skipped(&this_test(), "no /dev/fuse");
        return;
    }
    let name = this_test();
    let thread = std::thread::spawn(move || {
        if let Err(error) = private_namespace() {
            skipped(&name, format_args!("no private mount namespace: {error:?}"));
            return;
        }
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Waits until `done` holds.
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < deadline, "not within 10 s: {what}");
        std::thread::yield_now();
    }
}
