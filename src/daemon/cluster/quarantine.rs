//! Looks what lies in the quarantines of a cluster's directories: for status.
//!
//! Inputs: the directories' own folders on the disk (a survey, in a blocking thread), now and then and
//! when a resync has kept something. Output: [`ClusterUnit::quarantine`]. Failure: the former list stays.

use super::{ClusterUnit, ended};
use crate::api::types::{QuarantineStatus, Reason};
use crate::base::codes;
use crate::replica::kept;
use std::fmt::Write;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// Between two surveys: an operator who removes a folder sees the reason go while he is still there.
const EVERY: Duration = Duration::from_secs(60);
/// Before the directories are open there is nothing to look at.
const NOT_OPEN: Duration = Duration::from_secs(2);
/// Folders named in one reason.
const NAMED: usize = 3;

/// Keeps the list up to date.
pub async fn follow(unit: Arc<ClusterUnit>, mut stop: watch::Receiver<bool>) {
    loop {
        let looking = unit.clone();
        let found = tokio::task::spawn_blocking(move || survey(&looking)).await;
        let pause = match found {
            Ok(Some(list)) => {
                *unit.quarantine.lock().unwrap_or_else(PoisonError::into_inner) = list;
                EVERY
            }
            _ => NOT_OPEN,
        };
        tokio::select! {
            biased; // the end first
            () = ended(&mut stop) => return,
            () = unit.streams.resurvey.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// `None`: the directories are not open.
fn survey(unit: &ClusterUnit) -> Option<Vec<QuarantineStatus>> {
    let (trees, paths) = {
        let volumes = unit.volumes.lock().unwrap_or_else(PoisonError::into_inner);
        let paths: Vec<_> = volumes.units.iter().map(|u| u.path.display().to_string()).collect();
        (volumes.trees()?, paths)
    };
    let mut all = Vec::new();
    for (tree, path) in trees.iter().zip(paths) {
        match kept::survey(tree) {
            Ok(found) => all.extend(found.into_iter().map(|kept| status(path.clone(), kept))),
            Err(errno) => {
                tracing::warn!(cluster = %unit.id, path, errno = errno.0, "the quarantine cannot be looked at");
            }
        }
    }
    Some(all)
}

fn status(directory: String, kept: kept::Kept) -> QuarantineStatus {
    let kept::Kept { name, objects, bytes, more, incomplete } = kept;
    QuarantineStatus { directory, name, objects, bytes, more, incomplete }
}

/// What status says of them: the incomplete ones first, each with its reason.
pub fn reasons(all: &[QuarantineStatus]) -> Vec<Reason> {
    let mut reasons = Vec::new();
    for one in all {
        if let Some(why) = &one.incomplete {
            let text = format!(
                "quarantine {} of {} does not hold everything that a resync replaced: {why}",
                one.name, one.directory
            );
            reasons.push(Reason { code: codes::REASON_0602.id.to_owned(), text });
        }
    }
    let mut directories: Vec<&str> = all.iter().map(|q| q.directory.as_str()).collect();
    directories.dedup();
    for directory in directories {
        let of: Vec<_> = all.iter().filter(|q| q.directory == directory).collect();
        let mut text = format!("quarantine of {directory} holds what resyncs replaced: ");
        // Newest first: that is the one somebody looks for.
        let shown: Vec<_> = of.iter().rev().take(NAMED).map(|q| line(q)).collect();
        text.push_str(&shown.join("; "));
        if of.len() > NAMED {
            let _ = write!(text, "; and {} older", of.len() - NAMED);
        }
        reasons.push(Reason { code: codes::REASON_0601.id.to_owned(), text });
    }
    reasons
}

fn line(kept: &QuarantineStatus) -> String {
    let least = if kept.more { "at least " } else { "" };
    format!("{} ({least}{} objects, {} KiB)", kept.name, kept.objects, kept.bytes.div_ceil(1024))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(name: &str, incomplete: Option<&str>) -> QuarantineStatus {
        QuarantineStatus {
            directory: "/srv/a".into(),
            name: name.into(),
            objects: 2,
            bytes: 4096,
            more: false,
            incomplete: incomplete.map(str::to_owned),
        }
    }

    #[test]
    fn the_incomplete_one_is_said_first_and_the_newest_are_named() {
        assert!(reasons(&[]).is_empty());
        let mut all = vec![kept("1", Some("no space")), kept("2", None), kept("3", None), kept("4", None)];
        all[3].more = true;
        let said: Vec<_> = reasons(&all).into_iter().map(|r| format!("{} {}", r.code, r.text)).collect();
        assert_eq!(
            said,
            [
                "SKC-R0602 quarantine 1 of /srv/a does not hold everything that a resync replaced: no space",
                "SKC-R0601 quarantine of /srv/a holds what resyncs replaced: \
                 4 (at least 2 objects, 4 KiB); 3 (2 objects, 4 KiB); 2 (2 objects, 4 KiB); and 1 older",
            ]
        );
    }
}
