//! Processes that hold the directory open from before the mount: they write underneath it, unreplicated.

use std::io::{BufRead, BufReader};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Most findings reported; more mean the same to the operator.
const FINDINGS_MAX: usize = 64;
/// Most descriptors and mappings looked at, so that a huge machine does not delay the mount for long
/// (about 1 us each).
const LOOKED_AT_MAX: usize = 500_000;

/// One process that holds something of the directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Process id.
    pub pid: u32,
    /// Its name.
    pub name: String,
    /// How it holds it: `cwd`, `root`, `fd 7`, `map`.
    pub how: String,
    /// What it holds.
    pub path: PathBuf,
}

fn below(path: &Path, dir: &Path) -> bool {
    path.starts_with(dir)
}

/// First thing of `dir` that process `pid` holds.
fn look(proc: &Path, dir: &Path, budget: &mut usize) -> Option<(String, PathBuf)> {
    for what in ["cwd", "root"] {
        if let Ok(target) = std::fs::read_link(proc.join(what))
            && below(&target, dir)
        {
            return Some((what.into(), target));
        }
    }
    for fd in std::fs::read_dir(proc.join("fd")).ok()?.flatten() {
        *budget = budget.checked_sub(1)?;
        if let Ok(target) = std::fs::read_link(fd.path())
            && below(&target, dir)
        {
            return Some((format!("fd {}", fd.file_name().to_string_lossy()), target));
        }
    }
    for line in BufReader::new(std::fs::File::open(proc.join("maps")).ok()?).split(b'\n') {
        *budget = budget.checked_sub(1)?;
        let line = line.ok()?;
        let Some(at) = line.iter().position(|b| *b == b'/') else { continue };
        let target = Path::new(std::ffi::OsStr::from_bytes(&line[at..]));
        if below(target, dir) {
            return Some(("map".into(), target.to_path_buf()));
        }
    }
    None
}

/// Processes other than this one that hold `dir` or something in it. To be called before the mount: after
/// it, users of the mount look the same. Reads links in /proc only; processes that cannot be read (other
/// pid namespaces) are not seen.
pub fn find(dir: &Path) -> Vec<Holder> {
    let me = std::process::id();
    let mut budget = LOOKED_AT_MAX;
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir("/proc") else { return found };
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|s| s.parse::<u32>().ok()) else { continue };
        if pid == me {
            continue;
        }
        if let Some((how, path)) = look(&entry.path(), dir, &mut budget) {
            let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            found.push(Holder { pid, name: name.trim().into(), how, path });
        }
        if found.len() == FINDINGS_MAX || budget == 0 {
            break;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn a_process_inside_the_directory_is_found() {
        let tmp = tempfile::tempdir().expect("temporary directory");
        let dir = tmp.path().canonicalize().expect("canonical");
        let mut child = Command::new("cat")
            .current_dir(&dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("spawn");
        let found = find(&dir);
        drop(child.stdin.take());
        child.wait().expect("wait");
        let holder = found.iter().find(|h| h.pid == child.id()).expect("found");
        assert_eq!((holder.how.as_str(), &holder.path), ("cwd", &dir));
    }
}
