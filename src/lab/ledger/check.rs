//! The ledger's checker: reads a data directory as plain files and compares it with what clients
//! were told. It shares nothing with replication.

use super::Record;
use super::client::Ack;
use std::collections::HashMap;
use std::io;
use std::path::Path;

/// What the checker found.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Report {
    /// Acknowledged records looked for.
    pub acknowledged: u64,
    /// Of these, how many are missing or differ.
    pub lost: u64,
    /// Records in the log.
    pub present: u64,
    /// Records whose id was in the log before (sent again after an answer got lost).
    pub repeated: u64,
    /// Lines that are no record, or out of sequence (not counting a torn last one).
    pub damaged: u64,
    /// The first few losses, in words.
    pub examples: Vec<String>,
}

impl Report {
    /// Nothing lost and nothing damaged.
    pub fn good(&self) -> bool {
        self.lost == 0 && self.damaged == 0
    }
}

/// How many losses are spelled out.
const EXAMPLES: usize = 5;

/// Looks for every acknowledged record in `dir/ledger.log`.
pub fn check(dir: &Path, acks: &[Ack]) -> io::Result<Report> {
    let bytes = std::fs::read(dir.join("ledger.log"))?;
    let mut report = Report {
        acknowledged: acks.len() as u64,
        lost: 0,
        present: 0,
        repeated: 0,
        damaged: 0,
        examples: Vec::new(),
    };
    let mut found = HashMap::<u64, Record>::new();
    let mut ids = HashMap::<String, u64>::new();
    let mut expected = 1;
    let lines: Vec<&[u8]> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
    for (number, line) in lines.iter().enumerate() {
        match line.strip_suffix(b"\n").and_then(Record::parse) {
            Some(record) => {
                if record.sequence != expected {
                    report.damaged += 1;
                }
                expected = record.sequence + 1;
                report.present += 1;
                report.repeated += u64::from(ids.insert(record.id.clone(), record.sequence).is_some());
                found.insert(record.sequence, record);
            }
            None if number + 1 == lines.len() && !line.ends_with(b"\n") => {}
            None => report.damaged += 1,
        }
    }
    (report.lost, report.examples) = missing(&found, acks);
    Ok(report)
}

/// Looks for every acknowledged record among those found: how many are missing or differ, and the first of them in words.
pub(in crate::lab) fn missing(found: &HashMap<u64, Record>, acks: &[Ack]) -> (u64, Vec<String>) {
    let (mut lost, mut examples) = (0, Vec::new());
    for ack in acks {
        let what = match found.get(&ack.sequence) {
            Some(record) if record.id != ack.id => format!("holds {} instead", record.id),
            Some(record) if crc32c::crc32c(record.payload.as_bytes()) != ack.checksum => {
                "has other bytes".to_owned()
            }
            Some(_) => continue,
            None => "is missing".to_owned(),
        };
        lost += 1;
        if examples.len() < EXAMPLES {
            examples.push(format!("record {} ({}) {what}", ack.sequence, ack.id));
        }
    }
    (lost, examples)
}

#[cfg(test)]
mod tests {
    use super::super::{payload, server::Store};
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_missing_and_a_changed_record_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        let mut acks = Vec::new();
        for n in 1..=20 {
            let text = payload(1, 1, n);
            let sequence = store.append(&format!("c:{n}"), &text).unwrap();
            let checksum = crc32c::crc32c(text.as_bytes());
            acks.push(Ack {
                sequence,
                id: format!("c:{n}"),
                checksum,
                sent: Duration::ZERO,
                acked: Duration::ZERO,
            });
        }
        store.append("c:20", &payload(1, 1, 20)).unwrap();
        let report = check(dir.path(), &acks).unwrap();
        assert!(report.good() && report.repeated == 1, "{report:?}");
        acks[4].checksum ^= 1;
        acks.push(Ack { sequence: 99, ..acks[0].clone() });
        let report = check(dir.path(), &acks).unwrap();
        assert_eq!((report.lost, report.examples.len()), (2, 2));
    }
}
