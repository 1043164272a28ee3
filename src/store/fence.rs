//! [`FenceSlots`]: the durable record that says what this node may do (facts b3).
//!
//! Two 4 KiB slots in one preallocated file. A write goes to the slot that does not hold the
//! newest valid record, so a torn write leaves the previous one whole. `O_DIRECT|O_DSYNC` keeps a
//! fencing write from waiting behind the journal commit of other files' data (hole 18); where the
//! file system refuses `O_DIRECT` (some tmpfs), `O_DSYNC` and fdatasync serve.
//!
//! Invariants: the counter only grows; a record is trusted only if the checksum over the whole
//! slot fits; a file that exists has at least one valid slot (it is born by rename), so "both
//! invalid" is damage and "no file" is "never initialised".
//!
//! Failure: after a failed write it is unknown whether the record is on the disk. The caller must
//! not act on it; the next write goes to the same slot again. A single damaged slot is either a
//! write that a power cut tore (never acted upon) or decay of the newest record; they look alike,
//! so [`Reading::sibling_damaged`] tells the caller.

use super::StoreError;
use super::state::{sync_dir, write_atomic};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Slot size: the largest logical block size of current disks, so that a slot is one block.
const SLOT: usize = 4096;
/// Bytes before the payload: crc, magic, version, length, counter.
const HEADER: usize = 24;
/// Largest encoded record; the rest of the slot is room for a longer header.
pub const RECORD_MAX: usize = 3584;
const MAGIC: u32 = u32::from_le_bytes(*b"skcF");
const VERSION: u32 = 1;

/// The newest valid record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading<T> {
    /// The record.
    pub value: T,
    /// Its number; the first is 1.
    pub counter: u64,
    /// The other slot is unreadable (torn write, or decay: see the module's text).
    pub sibling_damaged: bool,
}

/// The fencing record of one cluster. One owner; `&mut` for writes.
#[derive(Debug)]
pub struct FenceSlots {
    path: PathBuf,
    file: Option<Slots>,
    /// Highest counter seen or attempted, and the slot the next write goes to.
    counter: u64,
    next: usize,
}

#[derive(Debug)]
struct Slots {
    file: File,
    direct: bool,
}

enum Slot {
    Valid { counter: u64, payload: Vec<u8> },
    Blank,
    TooNew(u32),
    Damaged,
}

impl FenceSlots {
    /// Opens the slots; an absent file is fine (never initialised).
    ///
    /// # Errors
    /// I/O, [`StoreError::Damaged`] if neither slot is valid.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let mut slots = Self { path: path.to_owned(), file: None, counter: 0, next: 1 };
        slots.attach()?;
        if slots.file.is_some() {
            slots.newest()?;
        }
        Ok(slots)
    }

    /// The newest valid record; `None` = never initialised.
    ///
    /// # Errors
    /// I/O, [`StoreError::Damaged`], or a record of a newer release.
    pub fn read<T: DeserializeOwned>(&mut self) -> Result<Option<Reading<T>>, StoreError> {
        if self.file.is_none() {
            self.attach()?;
        }
        if self.file.is_none() {
            return Ok(None);
        }
        let (payload, counter, sibling_damaged) = self.newest()?;
        let value = rmp_serde::from_slice(&payload)
            .map_err(|error| self.damaged(format!("record {counter} does not decode: {error}")))?;
        Ok(Some(Reading { value, counter, sibling_damaged }))
    }

    /// Makes `value` the newest record. Durable when it returns `Ok`.
    ///
    /// # Errors
    /// A record larger than [`RECORD_MAX`]; I/O, after which it is unknown which record is newest.
    pub fn write<T: Serialize>(&mut self, value: &T) -> Result<(), StoreError> {
        let payload = rmp_serde::to_vec_named(value)
            .map_err(|error| StoreError::Encode { what: "fencing record", why: error.to_string() })?;
        if payload.len() > RECORD_MAX {
            return Err(StoreError::TooLarge { bytes: payload.len(), limit: RECORD_MAX });
        }
        if self.file.is_none() {
            self.attach()?;
        }
        let counter =
            self.counter.checked_add(1).ok_or_else(|| self.damaged("counter exhausted".to_owned()))?;
        self.counter = counter;
        let slot = encode(counter, &payload);
        if self.file.is_none() {
            return self.create(&slot);
        }
        let offset = (self.next * SLOT) as u64;
        self.write_slot(&slot, offset)?;
        self.next ^= 1;
        Ok(())
    }

    /// The file is born with its first record, by rename: it never exists without a valid slot.
    fn create(&mut self, slot: &[u8; SLOT]) -> Result<(), StoreError> {
        if let Some(dir) = self.path.parent() {
            std::fs::create_dir_all(dir).map_err(StoreError::io("create directory", dir))?;
            if let Some(above) = dir.parent() {
                sync_dir(above)?;
            }
        }
        let mut both = Vec::with_capacity(2 * SLOT);
        both.extend_from_slice(slot);
        both.extend_from_slice(&[0; SLOT]);
        write_atomic(&self.path, &both)?;
        self.next = 1;
        self.attach()
    }

    /// Opens the file if it exists: O_DIRECT first, page cache with O_DSYNC where that is refused.
    fn attach(&mut self) -> Result<(), StoreError> {
        self.file = match open(&self.path, libc::O_DIRECT | libc::O_DSYNC) {
            Ok(file) => Some(Slots { file, direct: true }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                let file = open(&self.path, libc::O_DSYNC).map_err(StoreError::io("open", &self.path))?;
                Some(Slots { file, direct: false })
            }
            Err(source) => return Err(StoreError::Io { operation: "open", path: self.path.clone(), source }),
        };
        Ok(())
    }

    fn write_slot(&mut self, slot: &[u8; SLOT], offset: u64) -> Result<(), StoreError> {
        let failed = StoreError::io("write fencing slot of", &self.path);
        let Some(slots) = &mut self.file else {
            return Err(failed(io::Error::from(io::ErrorKind::NotFound)));
        };
        if slots.direct {
            let mut buffer = AlignedBuffer::new();
            buffer.bytes().copy_from_slice(slot);
            match slots.file.write_all_at(buffer.bytes(), offset) {
                // Some file systems accept the flag and refuse the write.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    slots.file = match open(&self.path, libc::O_DSYNC) {
                        Ok(file) => file,
                        Err(error) => return Err(failed(error)),
                    };
                    slots.direct = false;
                }
                result => return result.map_err(failed),
            }
        }
        slots.file.write_all_at(slot, offset).and_then(|()| slots.file.sync_data()).map_err(failed)
    }

    /// Reads both slots, remembers where the next write goes, returns the newest payload.
    fn newest(&mut self) -> Result<(Vec<u8>, u64, bool), StoreError> {
        let slots = [self.read_slot(0)?, self.read_slot(1)?];
        let counter_of = |slot: &Slot| match slot {
            Slot::Valid { counter, .. } => *counter,
            _ => 0,
        };
        if let Some(found) = slots.iter().find_map(|slot| match slot {
            Slot::TooNew(found) => Some(*found),
            _ => None,
        }) {
            return Err(StoreError::TooNew { path: self.path.clone(), found, known: VERSION });
        }
        let newest = usize::from(counter_of(&slots[1]) > counter_of(&slots[0]));
        let sibling_damaged = matches!(slots[newest ^ 1], Slot::Damaged);
        let Slot::Valid { counter, payload } = &slots[newest] else {
            return Err(self.damaged("neither slot holds a valid record".to_owned()));
        };
        self.counter = self.counter.max(*counter);
        self.next = newest ^ 1;
        Ok((payload.clone(), *counter, sibling_damaged))
    }

    fn read_slot(&self, index: usize) -> Result<Slot, StoreError> {
        let failed = StoreError::io("read fencing slot of", &self.path);
        let Some(slots) = &self.file else {
            return Err(failed(io::Error::from(io::ErrorKind::NotFound)));
        };
        let mut buffer = AlignedBuffer::new();
        let offset = (index * SLOT) as u64;
        let mut result = slots.file.read_exact_at(buffer.bytes(), offset);
        if slots.direct && matches!(&result, Err(error) if error.raw_os_error() == Some(libc::EINVAL)) {
            result = open(&self.path, 0).and_then(|file| file.read_exact_at(buffer.bytes(), offset));
        }
        match result {
            Ok(()) => Ok(decode(buffer.bytes())),
            // Shorter than two slots, or a block the disk cannot read: damage, not a reason to stop
            // looking at the other slot.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(Slot::Damaged),
            Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(Slot::Damaged),
            Err(error) => Err(failed(error)),
        }
    }

    fn damaged(&self, why: String) -> StoreError {
        StoreError::Damaged { path: self.path.clone(), why }
    }
}

fn open(path: &Path, flags: i32) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)
}

/// Layout, little endian: crc32c of the rest of the slot, magic, version, payload length, counter,
/// payload, zeros.
fn encode(counter: u64, payload: &[u8]) -> [u8; SLOT] {
    let mut slot = [0; SLOT];
    slot[4..8].copy_from_slice(&MAGIC.to_le_bytes());
    slot[8..12].copy_from_slice(&VERSION.to_le_bytes());
    slot[12..16].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    slot[16..24].copy_from_slice(&counter.to_le_bytes());
    slot[HEADER..HEADER + payload.len()].copy_from_slice(payload);
    let crc = crc32c::crc32c(&slot[4..]);
    slot[..4].copy_from_slice(&crc.to_le_bytes());
    slot
}

fn decode(slot: &[u8]) -> Slot {
    if slot.iter().all(|byte| *byte == 0) {
        return Slot::Blank;
    }
    let word = |at: usize| {
        slot.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes).unwrap_or_default()
    };
    if word(0) != crc32c::crc32c(slot.get(4..).unwrap_or_default()) || word(4) != MAGIC {
        return Slot::Damaged;
    }
    if word(8) != VERSION {
        return Slot::TooNew(word(8));
    }
    let counter = u64::from(word(16)) | u64::from(word(20)) << 32;
    let payload = slot.get(HEADER..HEADER.saturating_add(word(12) as usize));
    match payload {
        Some(payload) if payload.len() <= RECORD_MAX && counter > 0 => {
            Slot::Valid { counter, payload: payload.to_vec() }
        }
        _ => Slot::Damaged,
    }
}

/// A slot-sized buffer at a slot-aligned address, as O_DIRECT wants it, without `unsafe`.
struct AlignedBuffer {
    backing: Vec<u8>,
    start: usize,
}

impl AlignedBuffer {
    fn new() -> Self {
        let backing = vec![0_u8; 2 * SLOT];
        let start = backing.as_ptr().align_offset(SLOT).min(SLOT);
        Self { backing, start }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.backing[self.start..self.start + SLOT]
    }
}

#[cfg(test)]
#[path = "fence_tests.rs"]
mod tests;
