//! Reading the specs that `apply` and `diff` are given. Nothing is left out silently: what does not fit a
//! limit is an error, because a spec that was skipped looks like one that is not wanted.

use crate::api::{ApiError, Document};
use crate::base::codes;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Largest spec file, number of files and depth of directories: far above any real repository, so that
/// `-f /` ends. `watch` has the same.
const FILE_MAX: u64 = 1 << 20;
const FILES_MAX: usize = 1000;
const DEPTH_MAX: usize = 16;

/// The flag of every verb that takes specs.
#[derive(Debug, clap::Args)]
pub struct Files {
    /// A spec, or a directory whose *.yaml and *.yml are read, with its subdirectories; `-` is standard
    /// input; repeat it for several
    #[arg(short, long = "file", required = true, value_name = "FILE|DIR")]
    file: Vec<PathBuf>,
}

impl Files {
    /// Reads all of them, each directory sorted by path.
    pub fn read(&self) -> Result<Vec<Document>, ApiError> {
        let mut documents = Vec::new();
        for path in &self.file {
            let mut files = Vec::new();
            collect(path, &mut files, 0)?;
            files.sort();
            for file in files {
                documents.push(read(&file)?);
                if documents.len() > FILES_MAX {
                    return Err(refused(path, &format!("more than {FILES_MAX} files")));
                }
            }
        }
        Ok(documents)
    }
}

fn refused(path: &Path, why: &str) -> ApiError {
    let message = format!("cannot read {}: {why}; nothing was applied", path.display());
    ApiError::new(codes::CLI_READ.id, message, "name the right files or directory")
}

fn collect(path: &Path, files: &mut Vec<PathBuf>, depth: usize) -> Result<(), ApiError> {
    let failed = |error: std::io::Error| refused(path, &error.to_string());
    if path == Path::new("-") || !fs::metadata(path).map_err(failed)?.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    for entry in fs::read_dir(path).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let (file, kind) = (entry.path(), entry.file_type().map_err(failed)?);
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        let yaml = file.extension().is_some_and(|e| e == "yaml" || e == "yml");
        // A link within a tree is followed to a file only: to a directory it could lead out or in circles.
        if hidden || !(kind.is_dir() || (yaml && !file.is_dir())) {
            continue;
        }
        if depth >= DEPTH_MAX || files.len() >= FILES_MAX {
            let why = format!("more than {FILES_MAX} files or {DEPTH_MAX} levels of directories");
            return Err(refused(path, &why));
        }
        collect(&file, files, depth + 1)?;
    }
    Ok(())
}

/// Reads one byte more than a spec may have, so that nothing endless is read.
fn read(path: &Path) -> Result<Document, ApiError> {
    let failed = |error: std::io::Error| refused(path, &error.to_string());
    let mut bytes = Vec::new();
    if path == Path::new("-") {
        std::io::stdin().lock().take(FILE_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    } else {
        fs::File::open(path)
            .and_then(|file| file.take(FILE_MAX + 1).read_to_end(&mut bytes))
            .map_err(failed)?;
    }
    if bytes.len() as u64 > FILE_MAX {
        return Err(refused(path, &format!("it has more than the {FILE_MAX} bytes that a spec may have")));
    }
    let text =
        String::from_utf8(bytes).map_err(|error| refused(path, &format!("not UTF-8 text: {error}")))?;
    Ok(Document { file: path.display().to_string(), text })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Result<Vec<String>, ApiError> {
        let documents = Files { file: vec![dir.to_owned()] }.read()?;
        Ok(documents.into_iter().map(|d| d.file.rsplit('/').next().unwrap_or("").to_owned()).collect())
    }

    #[test]
    fn a_tree_is_read_in_order_without_what_is_hidden() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("sub/.git")).unwrap();
        for name in ["b.yaml", "a.yml", "c.txt", ".d.yaml", "sub/e.yaml", "sub/.git/f.yaml"] {
            fs::write(dir.path().join(name), "x").unwrap();
        }
        std::os::unix::fs::symlink(dir.path(), dir.path().join("round.yaml")).unwrap();
        assert_eq!(names(dir.path()).unwrap(), ["a.yml", "b.yaml", "e.yaml"]);
    }

    #[test]
    fn what_is_too_much_is_refused_not_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let big = dir.path().join("big.yaml");
        fs::write(&big, vec![b' '; FILE_MAX as usize]).unwrap();
        assert!(names(dir.path()).is_ok(), "exactly the limit");
        fs::write(&big, vec![b' '; FILE_MAX as usize + 1]).unwrap();
        assert!(names(dir.path()).unwrap_err().message.contains("big.yaml"));
        fs::remove_file(&big).unwrap();
        for n in 0..FILES_MAX {
            fs::write(dir.path().join(format!("{n}.yaml")), "x").unwrap();
        }
        assert_eq!(names(dir.path()).unwrap().len(), FILES_MAX);
        fs::write(dir.path().join("one-more.yaml"), "x").unwrap();
        assert!(names(dir.path()).unwrap_err().message.contains("more than 1000"));
        assert!(Files { file: vec!["/nonexistent".into()] }.read().is_err());
    }
}
