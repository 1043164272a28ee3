//! Where the acknowledged records are: in the ledgers of both nodes, or in quarantine.

use skc::lab::ledger::Record;
use skc::lab::ledger::client::Ack;
use std::collections::HashSet;
use std::fs;
use std::path::Path;

/// What identifies a record: place in its ledger, id, checksum of the payload.
type Key = (u64, String, u32);

/// A set of records.
#[derive(Debug, Default)]
pub struct Records(HashSet<Key>);

impl Records {
    /// Adds every record of a ledger, or of pieces of ledgers: blocks in quarantine are sparse files, so that
    /// a line may begin behind a hole.
    fn add(&mut self, bytes: &[u8]) {
        for line in bytes.split(|byte| matches!(byte, b'\n' | 0)) {
            if let Some(record) = Record::parse(line) {
                let checksum = crc32c::crc32c(record.payload.as_bytes());
                self.0.insert((record.sequence, record.id, checksum));
            }
        }
    }

    /// Adds every record of every file below `path`; nothing there = nothing added.
    pub fn add_all(&mut self, path: &Path) {
        if path.is_dir() {
            for entry in fs::read_dir(path).expect("read a directory").flatten() {
                self.add_all(&entry.path());
            }
        } else if path.is_file() {
            self.add(&fs::read(path).expect("read a file"));
        }
    }

    /// The acknowledged records that are not among them.
    pub fn lacks<'a>(&self, acks: impl IntoIterator<Item = &'a Ack>) -> Vec<&'a Ack> {
        let lacks = |ack: &&Ack| !self.0.contains(&(ack.sequence, ack.id.clone(), ack.checksum));
        acks.into_iter().filter(lacks).collect()
    }
}

#[test]
fn records_behind_holes_are_found() {
    let record = |sequence| Record { sequence, id: format!("c:{sequence}"), payload: "payload".into() };
    let ack = |sequence| Ack {
        sequence,
        id: format!("c:{sequence}"),
        checksum: crc32c::crc32c(b"payload"),
        sent: std::time::Duration::ZERO,
        acked: std::time::Duration::ZERO,
    };
    let mut bytes = vec![0; 100];
    for sequence in 1..4 {
        bytes.extend(record(sequence).to_string().into_bytes());
    }
    bytes.truncate(bytes.len() - 2);
    let mut records = Records::default();
    records.add(&bytes);
    let acks = [ack(1), ack(2), ack(3)];
    assert_eq!(records.lacks(&acks), [&acks[2]], "the torn last one");
}
