//! Torn writes and decay of the fencing slots, at every offset.

use super::*;

fn slots_with(records: u64) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fence/shop.slots");
    let mut slots = FenceSlots::open(&path).unwrap();
    assert_eq!(slots.read::<u64>().unwrap(), None);
    for record in 1..=records {
        slots.write(&(record * 10)).unwrap();
    }
    (dir, path)
}

fn newest(path: &Path) -> Result<u64, StoreError> {
    FenceSlots::open(path)?.read::<u64>().map(|reading| reading.unwrap().value)
}

#[test]
fn records_survive_reopening_and_alternate_slots() {
    for records in 1..=5 {
        let (_dir, path) = slots_with(records);
        let reading = FenceSlots::open(&path).unwrap().read::<u64>().unwrap().unwrap();
        assert_eq!((reading.value, reading.counter, reading.sibling_damaged), (records * 10, records, false));
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 2 * SLOT as u64);
    }
}

#[test]
fn a_torn_write_at_every_offset_leaves_the_old_or_the_new_record() {
    let (_dir, path) = slots_with(4);
    let old = std::fs::read(&path).unwrap();
    let mut slots = FenceSlots::open(&path).unwrap();
    slots.write(&50_u64).unwrap();
    let new = std::fs::read(&path).unwrap();
    let slot = usize::from(old[..SLOT] == new[..SLOT]);
    for torn in 0..=SLOT {
        let mut bytes = old.clone();
        let start = slot * SLOT;
        bytes[start..start + torn].copy_from_slice(&new[start..start + torn]);
        std::fs::write(&path, &bytes).unwrap();
        let value = newest(&path).unwrap();
        assert!(value == 40 || value == 50, "torn after {torn} bytes: {value}");
    }
}

#[test]
fn a_corrupted_byte_at_every_offset_invalidates_its_slot() {
    let (_dir, path) = slots_with(4);
    let good = std::fs::read(&path).unwrap();
    // Record 4 is in slot 1, record 3 in slot 0.
    for offset in 0..2 * SLOT {
        let mut bytes = good.clone();
        bytes[offset] ^= 0x5a;
        std::fs::write(&path, &bytes).unwrap();
        let reading = FenceSlots::open(&path).unwrap().read::<u64>().unwrap().unwrap();
        assert!(reading.sibling_damaged, "offset {offset}");
        assert_eq!(reading.value, if offset < SLOT { 40 } else { 30 }, "offset {offset}");
    }
}

#[test]
fn both_slots_invalid_is_damage_and_never_silently_empty() {
    let (_dir, path) = slots_with(2);
    let good = std::fs::read(&path).unwrap();
    let mut bytes = good.clone();
    bytes[100] ^= 1;
    bytes[SLOT + 100] ^= 1;
    for content in [bytes, vec![0; 2 * SLOT], Vec::new(), vec![0xff; 100]] {
        std::fs::write(&path, &content).unwrap();
        assert!(matches!(newest(&path), Err(StoreError::Damaged { .. })), "{} bytes", content.len());
    }
    std::fs::write(&path, &good[..SLOT]).unwrap();
    assert_eq!(newest(&path).unwrap(), 10, "a truncated file keeps its first slot");
}

#[test]
fn the_next_write_repairs_the_damaged_slot_and_spares_the_valid_one() {
    for broken in [0, 1] {
        let (_dir, path) = slots_with(4);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[broken * SLOT + 7] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let mut slots = FenceSlots::open(&path).unwrap();
        slots.write(&70_u64).unwrap();
        let after = std::fs::read(&path).unwrap();
        let spared = (broken ^ 1) * SLOT;
        assert_eq!(after[spared..spared + SLOT], bytes[spared..spared + SLOT]);
        assert_eq!(newest(&path).unwrap(), 70);
    }
}

#[test]
fn a_record_fits_exactly_or_is_refused() {
    let (_dir, path) = slots_with(1);
    let mut slots = FenceSlots::open(&path).unwrap();
    // A MessagePack string of this length has a three-byte head.
    let fits = "x".repeat(RECORD_MAX - 3);
    slots.write(&fits).unwrap();
    assert_eq!(slots.read::<String>().unwrap().unwrap().value, fits);
    assert!(matches!(slots.write(&"x".repeat(RECORD_MAX - 2)), Err(StoreError::TooLarge { .. })));
    assert_eq!(slots.read::<String>().unwrap().unwrap().value, fits);
}

#[test]
fn a_record_of_a_newer_release_is_refused_not_skipped() {
    let (_dir, path) = slots_with(1);
    let mut slot = encode(9, b"\x01");
    slot[8..12].copy_from_slice(&2_u32.to_le_bytes());
    let crc = crc32c::crc32c(&slot[4..]);
    slot[..4].copy_from_slice(&crc.to_le_bytes());
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[SLOT..].copy_from_slice(&slot);
    std::fs::write(&path, &bytes).unwrap();
    assert!(matches!(newest(&path), Err(StoreError::TooNew { found: 2, .. })));
}
