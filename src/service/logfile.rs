//! Bounded log files of services: append, and once past the limit keep the newest part beside it.
//!
//! A service holds its log open, so the file is copied to `<name>.1` and emptied in place (appending writers go on at
//! its start). Lines written between copy and emptying are lost; nothing else is. Failure to log never stops a service.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A log longer than this is rotated. Two of them a service: 8 MiB of a run directory that is usually memory.
pub(super) const LOG_MAX: u64 = 4 * 1024 * 1024;

pub(super) fn path(directory: &Path, id: &str) -> PathBuf {
    directory.join(format!("{id}.log"))
}

pub(super) fn open(directory: &Path, id: &str) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o640).open(path(directory, id))
}

/// Rotates the log if it is too long; says whether it did.
pub(super) fn rotate(directory: &Path, id: &str) -> io::Result<bool> {
    let current = path(directory, id);
    let length = match fs::metadata(&current) {
        Ok(meta) => meta.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    if length <= LOG_MAX {
        return Ok(false);
    }
    let mut source = OpenOptions::new().read(true).write(true).open(&current)?;
    source.seek(SeekFrom::Start(length - LOG_MAX))?;
    let mut target = File::create(directory.join(format!("{id}.log.1")))?;
    let copied = io::copy(&mut (&mut source).take(LOG_MAX), &mut target);
    // Emptied even if the copy failed (a full file system): the bound matters more than the history.
    source.set_len(0)?;
    copied.map(|_| true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_log_is_kept_at_the_limit_and_rotated_one_byte_over() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!rotate(dir.path(), "a").unwrap(), "no log yet");
        let mut log = open(dir.path(), "a").unwrap();
        log.write_all(&vec![b'x'; LOG_MAX as usize]).unwrap();
        assert!(!rotate(dir.path(), "a").unwrap());
        log.write_all(b"y").unwrap();
        assert!(rotate(dir.path(), "a").unwrap());
        log.write_all(b"after").unwrap();
        assert_eq!(fs::read(path(dir.path(), "a")).unwrap(), b"after");
        let old = fs::read(dir.path().join("a.log.1")).unwrap();
        assert_eq!((old.len() as u64, old.last()), (LOG_MAX, Some(&b'y')));
    }
}
