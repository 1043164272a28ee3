//! One database in WAL mode with `synchronous=FULL`, a transaction a record.

use super::{Application, Verdict, copy, find_python, output, program, said, write_python};
use crate::lab::ledger::client::Ack;
use crate::lab::{Lab, Result};
use std::path::Path;
use std::process::Stdio;

/// Serves the database to clients, and checks and dumps a copy of it.
pub(super) const PROGRAM: &str = include_str!("sqlite.py");
/// Its name in the nodes.
const NAME: &str = "skc-demo-sqlite";

/// See the module.
pub(super) struct Sqlite {
    python: String,
}

impl Sqlite {
    pub(super) fn find() -> Result<Self> {
        let what = "python3 with its sqlite3 module";
        let hint = "install python3 (Debian, Ubuntu: python3; Fedora: python3; SUSE: python3)";
        Ok(Self { python: find_python("sqlite3, socket, threading", what, hint)? })
    }
}

impl Application for Sqlite {
    fn writes(&self) -> &'static str {
        "append records, each a transaction of SQLite (WAL, synchronous=FULL)"
    }

    fn install(&self, lab: &Lab, _: &Path) -> Result<()> {
        write_python(lab, NAME, &self.python, PROGRAM)
    }

    /// The last connection's orderly end brings the log into the database and removes it.
    fn has_ended(&self, dir: &Path) -> bool {
        !dir.join("records.db-wal").exists() && !dir.join("records.db-shm").exists()
    }

    fn judge(&self, lab: &Lab, dir: &Path, scratch: &Path, acks: &[Ack]) -> Result<Verdict> {
        copy(dir, scratch)?;
        let [program, scratch] = [&program(lab, NAME), scratch].map(|path| path.display().to_string());
        let dump = output(&[&program, "--data", &scratch, "--dump"], Stdio::null())?;
        let mut verdict = Verdict { tools: "PRAGMA integrity_check".into(), ..Verdict::default() };
        if !dump.status.success() {
            verdict.unclean(format!("{}: SQLite: {}", dir.display(), said(&dump)));
        }
        verdict.compare(&dump.stdout, acks);
        Ok(verdict)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::time::Duration;

    fn ack(sequence: u64) -> Ack {
        let (id, checksum) = (format!("c:{sequence}"), crc32c::crc32c(b"payload"));
        Ack { sequence, id, checksum, sent: Duration::ZERO, acked: Duration::ZERO }
    }

    #[test]
    fn a_missing_record_and_a_damaged_database_are_found() {
        let Ok(sqlite) = Sqlite::find() else {
            return println!("SKIPPED: python3 with its sqlite3 module is missing");
        };
        let home = tempfile::tempdir().unwrap();
        let at = |name: &str| home.path().join(name);
        let lab = Lab::new("unit", Some(at("lab")), "skc".into()).unwrap();
        fs::create_dir_all(at("lab/bin")).unwrap();
        fs::create_dir(at("data")).unwrap();
        sqlite.install(&lab, &at("data")).unwrap();
        let script = "import sys; sys.path.insert(0, sys.argv[1]); sys.argv = sys.argv[1:]\n\
                      names = {'__name__': 'demo'}\n\
                      exec(open(sys.argv[0] + '/skc-demo-sqlite').read(), names)\n\
                      database = names['Database'](sys.argv[1])\n\
                      for n in range(1, 401): assert database.append(f'c:{n}', 'payload') == n\n\
                      assert database.append('c:7', 'payload') == 7\n\
                      database.end()\n";
        let [bin, data] = ["lab/bin", "data"].map(|name| at(name).display().to_string());
        let made = output(&[&sqlite.python, "-BES", "-c", script, &bin, &data], Stdio::null()).unwrap();
        assert!(made.status.success(), "{}", said(&made));
        assert!(sqlite.has_ended(&at("data")));

        let acks: Vec<Ack> = (1..=401).map(ack).collect();
        let whole = sqlite.judge(&lab, &at("data"), &at("one"), &acks[..400]).unwrap();
        assert_eq!((whole.lost, whole.damaged), (0, 0), "{whole:?}");
        let one = sqlite.judge(&lab, &at("data"), &at("two"), &acks).unwrap();
        assert_eq!((one.lost, one.damaged, one.findings.len()), (1, 0, 1), "{one:?}");
        // The second page and what follows belong to the table and its index.
        let mut bytes = fs::read(at("data/records.db")).unwrap();
        bytes[4096..12288].fill(0xa5);
        fs::write(at("data/records.db"), bytes).unwrap();
        let damaged = sqlite.judge(&lab, &at("data"), &at("three"), &acks[..400]).unwrap();
        assert!(damaged.damaged > 0 && damaged.lost > 0, "{damaged:?}");
    }
}
