//! What a process notes outside of the mirror: before an operation that it starts, and what of the others it
//! knew to be acknowledged by then; after it, what it returned. A line that power cut in half counts as not written.

use crate::act::{Actor, GONE, Outcome};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Processes of a round.
pub const PROCESSES: usize = 8;
/// Operations acknowledged, by process.
pub type Acks = [u64; PROCESSES];

/// One number a process: how many of its operations were acknowledged.
pub struct Board(File);

impl Board {
    pub fn open(dir: &Path) -> io::Result<Self> {
        let path = dir.join("board");
        let file = File::options().create(true).truncate(false).read(true).write(true).open(path)?;
        if file.metadata()?.len() == 0 {
            file.write_all_at(&[0; PROCESSES * 8], 0)?;
        }
        Ok(Self(file))
    }

    pub fn read(&self) -> io::Result<Acks> {
        let mut bytes = [0; PROCESSES * 8];
        self.0.read_exact_at(&mut bytes, 0)?;
        Ok(std::array::from_fn(|p| u64::from_le_bytes(std::array::from_fn(|n| bytes[p * 8 + n]))))
    }

    fn note(&self, process: usize, acks: u64) -> io::Result<()> {
        self.0.write_all_at(&acks.to_le_bytes(), process as u64 * 8)
    }
}

fn path(dir: &Path, process: usize) -> PathBuf {
    dir.join(format!("p{process}.journal"))
}

/// What a process writes down.
pub struct Notes {
    board: Board,
    journal: File,
    process: usize,
}

impl Notes {
    pub fn open(dir: &Path, process: usize) -> io::Result<Self> {
        let journal = File::options().create_new(true).append(true).open(path(dir, process))?;
        Ok(Self { board: Board::open(dir)?, journal, process })
    }

    fn line(&mut self, text: &str) -> io::Result<()> {
        self.journal.write_all(format!("{text}\n").as_bytes())
    }

    /// Operation `n` is about to begin.
    pub fn starts(&mut self, n: u64) -> io::Result<()> {
        let knew = self.board.read()?.map(|acks| acks.to_string()).join(" ");
        self.line(&format!("S {n} {knew}"))
    }

    /// What was open was closed before operation `n`, which had been started.
    pub fn moved(&mut self, n: u64) -> io::Result<()> {
        self.line(&format!("M {n}"))
    }

    /// Operation `n` returned.
    pub fn acknowledged(&mut self, n: u64, outcome: Outcome, syncs: bool) -> io::Result<()> {
        let kind = if outcome >= 0 && syncs { 'F' } else { 'A' };
        self.line(&format!("{kind} {n} {outcome}"))?;
        self.board.note(self.process, n)
    }
}

/// The life of a process: operations without end, until its machine dies or its mount does.
pub fn live(root: &Path, dir: &Path, seed: u64, process: usize) -> io::Result<()> {
    let mut notes = Notes::open(dir, process)?;
    let mut actor = Actor::new(root, seed, process as u64);
    for n in 1.. {
        let op = actor.next();
        notes.starts(n)?;
        match actor.attempt(&op, &GONE) {
            Ok(outcome) => notes.acknowledged(n, outcome, op.syncs())?,
            Err(_) => break,
        }
    }
    Ok(())
}

/// What is known of a process afterwards.
#[derive(Debug, Default)]
pub struct Journal {
    /// For every operation that was started, what the process knew of all others.
    pub knew: Vec<Acks>,
    /// What every acknowledged operation returned.
    pub returned: Vec<Outcome>,
    /// Operations by which something was synced.
    pub synced: Vec<u64>,
    /// Operations before which everything open was closed.
    pub moved: Vec<u64>,
}

impl Journal {
    pub fn read(dir: &Path, process: usize) -> io::Result<Self> {
        let text = match std::fs::read_to_string(path(dir, process)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            other => other?,
        };
        let mut journal = Self::default();
        for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
            let damaged = || io::Error::other(format!("journal of process {process}: {line:?}"));
            let mut words = line.split_whitespace();
            let kind = words.next();
            let numbers: Vec<i64> = words.map(str::parse).collect::<Result<_, _>>().map_err(|_| damaged())?;
            match (kind, numbers.as_slice()) {
                (Some("S"), [n, knew @ ..]) if *n as usize == journal.knew.len() + 1 => {
                    let knew: Vec<u64> = knew.iter().map(|n| *n as u64).collect();
                    journal.knew.push(knew.try_into().map_err(|_| damaged())?);
                }
                (Some("M"), [n]) if *n as usize == journal.knew.len() => journal.moved.push(*n as u64),
                (Some(kind @ ("A" | "F")), [n, outcome]) if *n as usize == journal.knew.len() => {
                    journal.returned.push(*outcome);
                    if kind == "F" {
                        journal.synced.push(*n as u64);
                    }
                }
                _ => return Err(damaged()),
            }
        }
        Ok(journal)
    }
}
