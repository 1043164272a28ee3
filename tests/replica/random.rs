//! Seeded random operations on a mirror, and seeded random trees on disk.

use crate::support::{Mirror, Res};
use std::fs;
use std::path::Path;

pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.next() as u8).collect()
    }
}

fn name(r: &mut Rng) -> String {
    ["a", "b", "c", "d", "e"][r.below(5) as usize].to_string()
}

fn path(r: &mut Rng) -> String {
    let depth = 1 + r.below(3);
    (0..depth).map(|_| name(r)).collect::<Vec<_>>().join("/")
}

/// One random operation; most of them are refused by the file system, which is fine.
pub fn step(m: &Mirror, r: &mut Rng) -> Res {
    let p = path(r);
    match r.below(20) {
        0..=2 => m.create(&p),
        3..=4 => m.mkdir(&p),
        5 => m.symlink(&p, "some/where"),
        6 => m.link(&p, &path(r)),
        7 => m.unlink(&p),
        8 => m.rmdir(&p),
        9 | 10 => m.rename(&p, &path(r), [0, 0, 1, 2][r.below(4) as usize]),
        11..=13 => {
            let (at, n) = (r.below(300_000), 1 + r.below(20_000) as usize);
            let data = r.bytes(n);
            m.write(&p, at, &data)
        }
        14 => m.truncate(&p, r.below(300_000)),
        15 => m.chmod_chown(&p, 0o600 + r.below(0o177) as u32, r.below(5) as u32),
        16 => {
            let n = r.below(200) as usize;
            let value = r.bytes(n);
            m.set_xattr(&p, &format!("user.{}", name(r)), &value)
        }
        17 => m.remove_xattr(&p, &format!("user.{}", name(r))),
        // FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
        18 => m.fallocate(&p, 3, r.below(40) * 4096, (1 + r.below(20)) * 4096),
        _ => m.make(&p, libc::S_IFIFO | 0o640),
    }
}

/// A random tree, made directly.
pub fn grow(root: &Path, r: &mut Rng, steps: usize) {
    for _ in 0..steps {
        let p = root.join(path(r));
        let _ = match r.below(8) {
            0..=2 => {
                let mut data = vec![0; r.below(4) as usize * 65_536];
                let n = r.below(70_000) as usize;
                data.extend(r.bytes(n));
                fs::write(&p, data)
            }
            3 | 4 => fs::create_dir(&p),
            5 => std::os::unix::fs::symlink(name(r), &p),
            6 => fs::hard_link(&p, root.join(path(r))),
            _ => (|| {
                let file = fs::File::options().write(true).create(true).truncate(false).open(&p)?;
                file.set_len(r.below(400_000))?;
                use std::os::unix::fs::FileExt;
                let n = r.below(9000) as usize;
                file.write_all_at(&r.bytes(n), r.below(300_000))
            })(),
        };
    }
}
