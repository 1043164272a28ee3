//! The ledger's server: plain threads, one a connection.
//!
//! Failure behaviour: an append that fails is taken back (the log is cut to its old length) and
//! answered with `error`; if that is not possible, or an fdatasync fails, the process ends: what
//! the disk holds is unknown then, and a restart reads it. A torn last record was never
//! acknowledged and is cut at the start; damage anywhere else refuses the start.

use super::{BLOCK, INDEX_EVERY, LINE_MAX, Record};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Connections at once; more are closed at once. Bounds the threads while the disk is frozen.
const CONNECTIONS: usize = 512;
/// A connection without a request for so long is closed: its client is gone.
const IDLE: Duration = Duration::from_secs(60);

/// Why the server cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A file operation failed.
    #[error("{op} {path}: {source}")]
    Io {
        /// What was tried.
        op: &'static str,
        /// On which file or address.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A record that is not the last one is damaged.
    #[error("{path}: record {line} is damaged and is not the last one")]
    Damaged {
        /// The log.
        path: PathBuf,
        /// Line number from 1.
        line: u64,
    },
}

fn at(op: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ServerError {
    move |source| ServerError::Io { op, path: path.to_owned(), source }
}

/// The files of a ledger, open for appending.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    log: Arc<File>,
    length: u64,
    last: u64,
    block: String,
}

impl Store {
    /// Opens the ledger in `dir` (made if missing) and finds where it ended.
    pub fn open(dir: &Path) -> Result<Self, ServerError> {
        let records = dir.join("records");
        fs::create_dir_all(&records).map_err(at("create", &records))?;
        let path = dir.join("ledger.log");
        let log =
            File::options().read(true).append(true).create(true).open(&path).map_err(at("open", &path))?;
        let mut bytes = Vec::new();
        (&log).read_to_end(&mut bytes).map_err(at("read", &path))?;
        let mut store =
            Self { dir: dir.to_owned(), log: Arc::new(log), length: 0, last: 0, block: String::new() };
        for (line_number, line) in (1..).zip(bytes.split_inclusive(|byte| *byte == b'\n')) {
            match line.strip_suffix(b"\n").and_then(Record::parse) {
                Some(record) if record.sequence == store.last + 1 => store.remember(&record, line.len()),
                _ if store.length + line.len() as u64 == bytes.len() as u64 => {
                    store.log.set_len(store.length).map_err(at("cut the torn tail of", &path))?;
                }
                _ => return Err(ServerError::Damaged { path, line: line_number }),
            }
        }
        Ok(store)
    }

    /// Sequence number of the last record.
    pub fn last(&self) -> u64 {
        self.last
    }

    fn remember(&mut self, record: &Record, length: usize) {
        self.last = record.sequence;
        self.length += length as u64;
        if self.last % BLOCK == 1 {
            self.block.clear();
        }
        // Writing to a String cannot fail.
        let _ = writeln!(self.block, "{} {}", record.sequence, record.id);
    }

    /// Appends a record; on return it is in the log, not necessarily durable.
    pub fn append(&mut self, id: &str, payload: &str) -> Result<u64, ServerError> {
        let path = self.dir.join("ledger.log");
        let record = Record { sequence: self.last + 1, id: id.to_owned(), payload: payload.to_owned() };
        let line = record.to_string();
        if let Err(error) = (&*self.log).write_all(line.as_bytes()) {
            // Part of it may be there. Without a way back the process must end.
            if let Err(second) = self.log.set_len(self.length) {
                eprintln!("ledger: cannot take back a failed append: {second}");
                std::process::exit(3);
            }
            return Err(at("append to", &path)(error));
        }
        self.remember(&record, line.len());
        if self.last.is_multiple_of(INDEX_EVERY) {
            self.write_index()?;
        }
        if self.last.is_multiple_of(BLOCK) {
            self.write_block()?;
        }
        Ok(self.last)
    }

    fn write_index(&self) -> Result<(), ServerError> {
        let (new, path) = (self.dir.join("index.json.new"), self.dir.join("index.json"));
        let text = format!("{{\"records\": {}, \"bytes\": {}}}\n", self.last, self.length);
        let mut file = File::create(&new).map_err(at("create", &new))?;
        file.write_all(text.as_bytes()).map_err(at("write", &new))?;
        file.sync_all().map_err(at("fsync", &new))?;
        fs::rename(&new, &path).map_err(at("rename", &path))
    }

    fn write_block(&self) -> Result<(), ServerError> {
        let path = self.dir.join(format!("records/{:08}.rec", self.last));
        fs::write(&path, &self.block).map_err(at("write", &path))
    }
}

/// Serves the ledger in `dir` at `listen` until the process ends.
pub fn serve(dir: &Path, listen: SocketAddr) -> Result<(), ServerError> {
    let store = Store::open(dir)?;
    let shown = PathBuf::from(listen.to_string());
    let listener = TcpListener::bind(listen).map_err(at("listen on", &shown))?;
    eprintln!("ledger: {} records in {}, listening on {listen}", store.last(), dir.display());
    let store = Arc::new(Mutex::new(store));
    let open = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming() {
        let stream = match stream {
            Ok(stream) => stream,
            Err(error) => {
                // Out of descriptors or an aborted handshake: the next one may be well.
                eprintln!("ledger: accept: {error}");
                std::thread::sleep(Duration::from_millis(10));
                continue;
            }
        };
        if open.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS {
            open.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let (store, open) = (store.clone(), open.clone());
        std::thread::spawn(move || {
            // The end of a connection, orderly or not, concerns its client only.
            let _ = converse(&stream, &store);
            open.fetch_sub(1, Ordering::Relaxed);
        });
    }
    Ok(())
}

fn converse(stream: &TcpStream, store: &Mutex<Store>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(IDLE))?;
    stream.set_write_timeout(Some(IDLE))?;
    let log = store.lock().unwrap_or_else(PoisonError::into_inner).log.clone();
    let mut reader = BufReader::new(stream);
    let mut sync_every = 1_u64;
    let mut appended = 0_u64;
    let mut line = String::new();
    loop {
        line.clear();
        if reader.by_ref().take(LINE_MAX as u64).read_line(&mut line)? == 0 {
            return Ok(());
        }
        let mut words = line.trim_end().split(' ');
        let answer = match (words.next(), words.next(), words.next(), words.next()) {
            (Some("sync"), Some(number), None, _) if number.parse::<u64>().is_ok() => {
                sync_every = number.parse().unwrap_or(1);
                "ok\n".to_owned()
            }
            (Some("append"), Some(id), Some(payload), None) if line.ends_with('\n') => {
                let result = store.lock().unwrap_or_else(PoisonError::into_inner).append(id, payload);
                appended += 1;
                match result {
                    Ok(sequence) => {
                        if sync_every > 0 && appended.is_multiple_of(sync_every) {
                            sync(&log);
                        }
                        format!("ok {sequence}\n")
                    }
                    Err(error) => format!("error {error}\n"),
                }
            }
            (Some("count"), None, ..) => {
                format!("ok {}\n", store.lock().unwrap_or_else(PoisonError::into_inner).last())
            }
            _ => {
                (&*stream).write_all(b"error not understood\n")?;
                return Ok(());
            }
        };
        (&*stream).write_all(answer.as_bytes())?;
    }
}

fn sync(log: &File) {
    if let Err(error) = log.sync_data() {
        eprintln!("ledger: fdatasync: {error}; what the disk holds is unknown");
        std::process::exit(3);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_tail_is_cut_and_the_sequence_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        for n in 1..=130 {
            assert_eq!(store.append(&format!("c:{n}"), "payload").unwrap(), n);
        }
        drop(store);
        let path = dir.path().join("ledger.log");
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 3]).unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        assert_eq!(store.last(), 129);
        assert_eq!(store.append("c:130", "payload").unwrap(), 130);
        assert_eq!(fs::read(&path).unwrap(), whole);
        assert!(dir.path().join("index.json").exists());
        assert!(dir.path().join("records/00000100.rec").exists());
    }

    #[test]
    fn damage_in_the_middle_refuses_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        store.append("c:1", "one").unwrap();
        store.append("c:2", "two").unwrap();
        let path = dir.path().join("ledger.log");
        let mut bytes = fs::read(&path).unwrap();
        bytes[3] ^= 1;
        fs::write(&path, bytes).unwrap();
        assert!(matches!(Store::open(dir.path()), Err(ServerError::Damaged { line: 1, .. })));
    }
}
