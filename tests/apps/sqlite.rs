//! SQLite with synchronous=FULL: a database a journal mode, each with a client that notes every commit.

use crate::world::{DIRECTORY, SETTLE, World};
use crate::{App, last_number, notes};
use skc::lab::{Node, Orphan};
use std::process::{Child, Command, Stdio};

const MODES: [&str; 4] = ["delete", "truncate", "persist", "wal"];
/// Commits of each client before the cut may fall.
const LEAST: u64 = 30;

/// Transactions of one to four rows and the new count; the last id is noted after COMMIT returned.
const CLIENT: &str = r#"
import os, sqlite3, sys
path, mode, notes = sys.argv[1:4]
db = sqlite3.connect(path, isolation_level=None, timeout=30)
assert db.execute(f"PRAGMA journal_mode={mode}").fetchone()[0] == mode
db.execute("PRAGMA synchronous=FULL")
db.execute("CREATE TABLE IF NOT EXISTS record(id INTEGER PRIMARY KEY, body BLOB)")
db.execute("CREATE TABLE IF NOT EXISTS total(id INTEGER PRIMARY KEY, n INTEGER)")
last = db.execute("SELECT coalesce(max(id), 0) FROM record").fetchone()[0]
out = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
while True:
    db.execute("BEGIN IMMEDIATE")
    for _ in range(1 + last % 4):
        last += 1
        db.execute("INSERT INTO record VALUES(?, ?)", (last, bytes([last % 251]) * (last * 37 % 3000)))
    db.execute("INSERT OR REPLACE INTO total VALUES(1, ?)", (last,))
    db.execute("COMMIT")
    os.write(out, b"%d\n" % last)
"#;

/// Sound, every record up to the given id there and right, no part of a transaction.
const CHECK: &str = r#"
import sqlite3, sys
path, mode, told = sys.argv[1], sys.argv[2], int(sys.argv[3])
db = sqlite3.connect(path, isolation_level=None, timeout=30)
found = db.execute("PRAGMA integrity_check").fetchall()
assert found == [("ok",)], found
assert db.execute("PRAGMA journal_mode").fetchone()[0] == ("wal" if mode == "wal" else "delete")
have = dict(db.execute("SELECT id, body FROM record"))
lost = [n for n in range(1, told + 1) if have.get(n) != bytes([n % 251]) * (n * 37 % 3000)]
assert not lost, f"{len(lost)} lost or wrong, the first {lost[:5]}, of {told}"
total = db.execute("SELECT n FROM total").fetchall()
assert total == [(len(have),)] and max(have) == len(have), (total, len(have))
assert len(have) <= told + 4, f"{len(have)} are more than {told} and one transaction"
"#;

/// What is missing on this machine.
pub fn missing() -> Option<String> {
    let python = Command::new("python3").args(["-c", "import sqlite3"]).stderr(Stdio::null()).status();
    let works = python.is_ok_and(|status| status.success());
    (!works).then(|| "python3 with its sqlite3 module".to_owned())
}

/// See the module.
#[derive(Default)]
pub struct Sqlite {
    /// What each client had been told at the last start.
    before: [u64; MODES.len()],
}

fn database(mode: &str) -> String {
    format!("{DIRECTORY}/{mode}.db")
}

fn told(world: &World, mode: &str) -> u64 {
    last_number(&notes(world).join(mode))
}

impl App for Sqlite {
    fn install(&mut self, _: &World, _: Node) {}

    fn start(&mut self, world: &World, node: Node) -> Vec<Child> {
        self.before = MODES.map(|mode| told(world, mode));
        let client = |mode: &str| {
            let notes = notes(world).join(mode).display().to_string();
            let argv = ["python3", "-c", CLIENT, &database(mode), mode, &notes];
            let mut command = world.lab.command(node, &argv);
            command.stdin(Stdio::null());
            world.lab.spawn(node, &mut command, Orphan::LivesOn).expect("a client starts")
        };
        MODES.map(client).into()
    }

    fn busy(&self, world: &World) -> bool {
        MODES.iter().zip(self.before).all(|(mode, before)| told(world, mode) >= before + LEAST)
    }

    fn check(&mut self, world: &World, node: Node) -> u64 {
        let one = |mode: &str| {
            let told = told(world, mode);
            let argv = ["python3", "-c", CHECK, &database(mode), mode, &told.to_string()];
            if let Err(error) = world.lab.run(node, &argv, SETTLE) {
                panic!("{mode}: {error}");
            }
            told
        };
        MODES.map(one).iter().sum()
    }
}
