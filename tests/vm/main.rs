//! Whole machines: Debian guests under QEMU's software CPU, for what namespaces on one kernel cannot show: another
//! kernel's FUSE, systemd as PID 1, a real loss of page caches, quotas, a clock of one's own. For semantics,
//! never for timing.
//!
//! `cargo test` boots one guest and mounts. All of it: `cargo test --release --test vm -- --ignored --test-threads 1`
//! (about 10 minutes). The image is made once (`tests/vm/image`, 3 minutes) and kept in `SKC_VM_DIR`, by default
//! below the target directory. Needs root, qemu-system-x86 and debootstrap.
#![cfg(target_arch = "x86_64")]

#[path = "../skip/mod.rs"]
mod skip;

mod guest;
mod pair;
mod scenarios;

use std::path::{Path, PathBuf};
use std::process::Command;

/// Where the image is kept and guests have their disks.
fn home() -> PathBuf {
    std::env::var_os("SKC_VM_DIR")
        .map_or_else(|| Path::new(env!("CARGO_TARGET_TMPDIR")).join("vm"), PathBuf::from)
}

/// The image, built if need be; says what is missing otherwise.
fn image() -> Result<PathBuf, String> {
    let has = |program: &str| Command::new(program).arg("--version").output().is_ok();
    if !has("qemu-system-x86_64") {
        return Err("qemu-system-x86_64 (Debian: qemu-system-x86)".to_owned());
    }
    let dir = home();
    if dir.join("root.img").exists() {
        return Ok(dir);
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vm/image");
    let built = Command::new(script).arg(&dir).output().map_err(|e| format!("tests/vm/image: {e}"))?;
    let said = String::from_utf8_lossy(&built.stdout).trim().to_owned();
    match built.status.code() {
        Some(0) => Ok(dir),
        Some(77) => Err(said),
        other => panic!("tests/vm/image: {other:?}: {said} {}", String::from_utf8_lossy(&built.stderr)),
    }
}

/// The program under test as a tar file: without debugging symbols it is read in a moment.
fn payload(world: &Path) -> PathBuf {
    let dir = world.join("payload");
    std::fs::create_dir_all(&dir).expect("a directory");
    let skc = dir.join("skc");
    let stripped = Command::new("strip").args(["-o"]).arg(&skc).arg(env!("CARGO_BIN_EXE_skc")).status();
    if !stripped.is_ok_and(|status| status.success()) {
        std::fs::copy(env!("CARGO_BIN_EXE_skc"), &skc).expect("copy skc");
    }
    if let Some(suite) = std::env::var_os("SKC_VM_PJDFSTEST") {
        std::fs::copy(suite, dir.join("pjdfstest")).expect("copy pjdfstest");
    }
    let tar = world.join("payload.tar");
    let packed = Command::new("tar").arg("cf").arg(&tar).arg("-C").arg(&dir).arg(".").status();
    assert!(packed.is_ok_and(|status| status.success()), "tar");
    tar
}
