//! The ledger: a small real application. A server appends records to files and answers after that;
//! clients note every acknowledged record outside of the mirror; a checker reads both.
//!
//! Line protocol over TCP: `sync K` (every K-th append of this connection is answered after an
//! fdatasync; 1 = each, 0 = none), `append ID PAYLOAD` -> `ok SEQUENCE`. A client that got no answer
//! sends the record again under the same id, so a record may be in the log twice: the id tells.
//!
//! Files: `ledger.log` (append-only, one line a record with a checksum), `index.json` (replaced by
//! rename every [`INDEX_EVERY`] records), `records/N.rec` (a new file every [`BLOCK`] records): what a
//! mirror sees of a typical application.

pub mod check;
pub mod client;
pub mod server;

use std::fmt;

/// A summary is renamed into place every so many records: often enough that a power cut of a
/// loaded server has a fair chance to fall into it.
pub const INDEX_EVERY: u64 = 64;
/// Records a file of `records/`.
pub const BLOCK: u64 = 100;
/// Longest line that either side reads: the longest record is far below.
pub const LINE_MAX: usize = 4096;

/// One line of `ledger.log`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Position in the ledger, from 1.
    pub sequence: u64,
    /// Chosen by the client; the same for every attempt.
    pub id: String,
    /// 100 to 300 printable bytes without spaces.
    pub payload: String,
}

impl Record {
    fn checksum(&self) -> u32 {
        crc32c::crc32c(format!("{} {} {}", self.sequence, self.id, self.payload).as_bytes())
    }

    /// Reads a line without its newline; `None` if it is not exactly what was written.
    pub fn parse(line: &[u8]) -> Option<Self> {
        let line = std::str::from_utf8(line).ok()?;
        let mut fields = line.split(' ');
        let sequence = fields.next()?.parse().ok()?;
        let sum = u32::from_str_radix(fields.next()?, 16).ok()?;
        let (id, payload) = (fields.next()?.to_owned(), fields.next()?.to_owned());
        let record = Self { sequence, id, payload };
        (fields.next().is_none() && record.checksum() == sum).then_some(record)
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} {:08x} {} {}", self.sequence, self.checksum(), self.id, self.payload)
    }
}

/// A small generator (SplitMix64): payloads are the same for the same seed.
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit` (which is not zero).
    pub fn below(&mut self, limit: u64) -> u64 {
        self.number() % limit.max(1)
    }
}

/// The payload of record `n` of `client`: 100 to 300 letters and digits.
pub fn payload(seed: u64, client: u32, n: u64) -> String {
    const LETTERS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
    let mut random = Random(seed ^ (u64::from(client) << 48) ^ n);
    let length = 100 + random.below(201) as usize;
    (0..length).map(|_| char::from(LETTERS[(random.number() & 31) as usize])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_back_and_any_damage_shows() {
        let record = Record { sequence: 12, id: "c1:7".into(), payload: payload(1, 1, 7) };
        let line = record.to_string();
        let line = line.trim_end().as_bytes();
        assert_eq!(Record::parse(line), Some(record));
        for at in 0..line.len() {
            let mut damaged = line.to_vec();
            damaged[at] ^= 1;
            assert_eq!(Record::parse(&damaged), None, "byte {at}");
            assert_eq!(Record::parse(&line[..at]), None, "cut at {at}");
        }
    }

    #[test]
    fn payloads_stay_in_their_bounds() {
        for n in 0..500 {
            assert!((100..=300).contains(&payload(7, 3, n).len()));
        }
        assert_eq!(payload(7, 3, 1), payload(7, 3, 1));
        assert_ne!(payload(7, 3, 1), payload(7, 4, 1));
    }
}
