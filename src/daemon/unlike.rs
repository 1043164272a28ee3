//! Can both nodes hold the same? Asked when a spec goes from one to the other.

use super::cluster::ClusterUnit;
use crate::api::types::ApiError;
use crate::proto::envelope::Lacks;
use crate::spec::ClusterSpec;
use crate::sys::backing::Backing;
use crate::tree::abilities;

/// What the directories of `spec` lack on this node, of those that can be looked at. Of a cluster that runs here,
/// `unit`, below its mounts. Blocks.
pub(super) fn lacks(spec: &ClusterSpec, unit: Option<&ClusterUnit>) -> Vec<Lacks> {
    let looked = spec.spec.directories.iter().filter_map(|directory| {
        // One that is not open yet is not mounted over either.
        let below = unit.and_then(|unit| unit.below(&directory.path, abilities::lacks));
        let plain = || Backing::open(&directory.path).and_then(|backing| abilities::lacks(&backing));
        let what = below.unwrap_or_else(plain);
        // What cannot be looked at has an error of its own, and another place to tell it.
        Some(Lacks { path: directory.path.display().to_string(), what: what.ok()? })
    });
    looked.collect()
}

/// Refuses a spec of which one node could not hold what the other can: the nodes are `names`, this one first. A
/// directory that is mirrored already is not asked about: it is what it is.
pub(super) fn compare(
    spec: &ClusterSpec,
    unit: Option<&ClusterUnit>,
    names: (&str, &str),
    theirs: &[Lacks],
) -> Result<(), ApiError> {
    if unit.is_some() || theirs.is_empty() {
        return Ok(());
    }
    let ours = lacks(spec, None);
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
