//! Can both nodes hold the same? Asked when a spec goes from one to the other.

use super::cluster::ClusterUnit;
use crate::api::types::ApiError;
use crate::proto::envelope::Lacks;
use crate::sys::backing::Backing;
use crate::tree::abilities;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Longest look: a disk that does not answer keeps no spec from its way.
const LOOK: Duration = Duration::from_secs(2);

/// What these directories lack on this node, of those that can be looked at in time. Of a cluster that runs here,
/// `unit`, below its mounts.
pub(super) async fn lacks(paths: Vec<PathBuf>, unit: Option<Arc<ClusterUnit>>) -> Vec<Lacks> {
    let look = tokio::task::spawn_blocking(move || {
        let looked = paths.iter().filter_map(|path| {
            // One that is not open yet is not mounted over either.
            let below = unit.as_ref().and_then(|unit| unit.below(path, abilities::lacks));
            let plain = || Backing::open(path).and_then(|backing| abilities::lacks(&backing));
            // What cannot be looked at has an error of its own, and another place to tell it.
            Some(Lacks { path: path.display().to_string(), what: below.unwrap_or_else(plain).ok()? })
        });
        looked.collect()
    });
    tokio::time::timeout(LOOK, look).await.ok().and_then(Result::ok).unwrap_or_default()
}

/// Refuses directories of which one node could not hold what the other can: the nodes are `names`, this one first.
pub(super) fn compare(names: (&str, &str), ours: &[Lacks], theirs: &[Lacks]) -> Result<(), ApiError> {
    let found = ours.iter().filter_map(|own| {
        let other = theirs.iter().find(|other| other.path == own.path)?;
        difference(own, other, names)
    });
    let found: Vec<String> = found.collect();
    if found.is_empty() {
        return Ok(());
    }
    Err(ApiError::new(
        "SKC-E7019",
        found.join("; "),
        "put the directory on file systems of the same abilities, and apply the spec again",
    ))
}

fn difference(own: &Lacks, other: &Lacks, (here, there): (&str, &str)) -> Option<String> {
    let only = |a: &Lacks, b: &Lacks| -> Vec<String> {
        a.what.iter().filter(|what| !b.what.contains(what)).cloned().collect()
    };
    let (mine, its) = (only(own, other), only(other, own));
    let say = |node: &str, what: &[String]| format!("{} on {node} cannot hold {}", own.path, what.join(", "));
    match (mine.is_empty(), its.is_empty()) {
        (true, true) => None,
        (false, true) => Some(format!("{}, which {there} can", say(here, &mine))),
        (true, false) => Some(format!("{}, which {here} can", say(there, &its))),
        (false, false) => Some(format!("{}, and {}", say(here, &mine), say(there, &its))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_one_side_lacks_is_said() {
        let lacks =
            |what: &[&str]| Lacks { path: "/d".into(), what: what.iter().map(|w| (*w).to_owned()).collect() };
        let said = |a: &[&str], b: &[&str]| difference(&lacks(a), &lacks(b), ("a", "b")).unwrap_or_default();
        assert_eq!(said(&["x"], &["x"]), "");
        assert_eq!(said(&["x", "y"], &["y"]), "/d on a cannot hold x, which b can");
        assert_eq!(said(&[], &["y"]), "/d on b cannot hold y, which a can");
        assert_eq!(said(&["x"], &["y"]), "/d on a cannot hold x, and /d on b cannot hold y");
    }
}
