//! Kernel, privileges, FUSE.

use super::Finding;
use crate::base::Volume;
use crate::base::codes;
use crate::fuse::abi::init::HAS_RESEND;
use crate::fuse::{InitValues, Local, Mount};
use crate::sys::backing::Backing;
use crate::tree::Tree;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Oldest kernel of the support table (DESIGN section 8).
const KERNEL_MIN: (u32, u32) = (5, 14);
/// A user namespace that maps every id to itself: /proc/PID/uid_map of the initial one (user_namespaces(7)).
const ALL_IDS: [&str; 3] = ["0", "0", "4294967295"];

pub(super) fn all() -> Vec<Finding> {
    let root = root();
    let (is_root, device) = (root.ok, device());
    let usable = is_root && device.ok;
    let mut findings = vec![kernel(), root, id_map(), device];
    if usable {
        findings.push(features());
    }
    findings
}

fn kernel() -> Finding {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let note = format!("{} (5.14 or later is needed)", release.trim());
    Finding::of("kernel", codes::FS_KERNEL, version(&release) >= KERNEL_MIN, note)
}

fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(['.', '-']).map(|n| n.trim().parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn root() -> Finding {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ids = status.lines().find_map(|l| l.strip_prefix("Uid:"));
    let uid = ids.and_then(|l| l.split_whitespace().nth(1)).unwrap_or("?");
    Finding::of("uid", codes::CLI_ROOT, uid == "0", format!("{uid} (mounting and addresses need 0)"))
}

/// In a container owners of files may be ids that do not exist on the other node.
fn id_map() -> Finding {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let whole = map.split_whitespace().eq(ALL_IDS);
    let note =
        if whole { "every id is itself" } else { "a user namespace hides or moves ids of file owners" };
    Finding::of("uid map", codes::CLI_ROOT, whole, note)
}

fn device() -> Finding {
    match std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        Ok(_) => Finding::good("/dev/fuse", "can be opened"),
        Err(error) => Finding::bad("/dev/fuse", codes::FS_NO_FUSE, format!("{error}; try `modprobe fuse`")),
    }
}

/// A directory of ours that is gone at the end; nothing is ever deleted below it.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// What FUSE offers is only said to who mounts: mounts over an empty directory for a moment.
fn features() -> Finding {
    let what = "FUSE features";
    let path = std::env::temp_dir().join(format!("skc-check-{}", std::process::id()));
    if let Err(error) = std::fs::create_dir(&path) {
        return Finding::bad(what, codes::FS_MOUNT, format!("no directory to try it on: {error}"));
    }
    let directory = Temporary(path);
    match negotiate(&directory.0) {
        Ok(init) => Finding::good(what, described(init)),
        Err((code, why)) => Finding::bad(what, code, why),
    }
}

fn negotiate(path: &Path) -> Result<InitValues, (codes::Code, String)> {
    let backing = Backing::open(path).map_err(|e| (codes::FS_MOUNT, format!("errno {}", e.0)))?;
    let tree = Arc::new(Tree::new(Volume(0), backing));
    let mount = Mount::new(tree, Arc::new(Local::default()), path).map_err(|e| (e.code(), e.to_string()))?;
    let init = mount.init_values();
    match mount.unmount() {
        Ok(()) => Ok(init),
        Err(errno) => Err((codes::FS_MOUNT, format!("unmounting it again: errno {}", errno.0))),
    }
}

fn described(init: InitValues) -> String {
    let resend = if init.has(HAS_RESEND) {
        "an agent may die and be started again without a failover"
    } else {
        "no RESEND (it came with 6.9): the death of an agent is a failover"
    };
    format!("protocol 7.{}, all that is needed; {resend}", init.minor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_versions_are_compared_as_numbers() {
        for (release, enough) in [
            ("5.14.0-427.el9.x86_64", true),
            ("6.1.0", true),
            ("5.4.0-150-generic", false),
            ("4.19", false),
            ("", false),
        ] {
            assert_eq!(version(release) >= KERNEL_MIN, enough, "{release}");
        }
    }
}
