//! The ledger's clients: several connections under full load, every acknowledgement noted with its
//! times, in memory and (if asked) in a journal file outside of the mirror.

use super::{LINE_MAX, payload};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A connection attempt is repeated after this: the resolution of the measured outage.
const CONNECT: Duration = Duration::from_millis(75);
/// Longest wait for an answer before the record is sent again over a new connection. Above the
/// fdatasync of a busy disk, below the shortest outage that is of interest.
const ANSWER: Duration = Duration::from_millis(400);
/// Pause after a refused connection: the server is being started.
const REFUSED: Duration = Duration::from_millis(5);

/// What the clients do.
#[derive(Debug, Clone)]
pub struct Options {
    /// The server.
    pub connect: SocketAddr,
    /// Connections, one record in flight each.
    pub clients: u32,
    /// fdatasync every so many records (0 = never).
    pub sync_every: u64,
    /// Names the run: ids and payloads depend on it.
    pub seed: u64,
    /// Network namespace to connect from (`None` = this process').
    pub netns: Option<PathBuf>,
    /// Where acknowledged records are noted.
    pub journal: Option<PathBuf>,
    /// Stop after so many acknowledged records.
    pub count: Option<u64>,
}

/// An acknowledged record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ack {
    /// Position in the ledger that the server answered.
    pub sequence: u64,
    /// The record's id.
    pub id: String,
    /// Checksum of its payload.
    pub checksum: u32,
    /// First sent, since the load began.
    pub sent: Duration,
    /// Acknowledged, since the load began.
    pub acked: Duration,
}

#[derive(Debug)]
struct Shared {
    options: Options,
    begin: Instant,
    stop: AtomicBool,
    acked: AtomicU64,
    in_flight: AtomicU64,
    refused: Mutex<String>,
    acks: Mutex<Vec<Ack>>,
    journal: Mutex<Option<File>>,
}

/// Running clients. Dropping it stops them.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts the clients.
    pub fn start(options: Options) -> io::Result<Self> {
        let journal =
            options.journal.as_ref().map(|path| File::options().create(true).append(true).open(path));
        let shared = Arc::new(Shared {
            begin: Instant::now(),
            stop: AtomicBool::new(false),
            acked: AtomicU64::new(0),
            in_flight: AtomicU64::new(0),
            refused: Mutex::default(),
            acks: Mutex::default(),
            journal: Mutex::new(journal.transpose()?),
            options,
        });
        let mut load = Self { shared: shared.clone(), threads: Vec::new() };
        for client in 0..shared.options.clients {
            let shared = shared.clone();
            let thread = std::thread::Builder::new().name(format!("ledger-client-{client}"));
            load.threads.push(thread.spawn(move || shared.run(client))?);
        }
        Ok(load)
    }

    /// Time since the load began; all other times are on this scale.
    pub fn now(&self) -> Duration {
        self.shared.begin.elapsed()
    }

    /// Records acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.shared.acked.load(Ordering::Acquire)
    }

    /// Requests sent and not answered at this moment.
    pub fn in_flight(&self) -> u64 {
        self.shared.in_flight.load(Ordering::Acquire)
    }

    /// The last complaint of a server or connection, for messages.
    pub fn complaint(&self) -> String {
        self.shared.refused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Has every client ended (their count is reached)?
    pub fn ended(&self) -> bool {
        self.threads.iter().all(JoinHandle::is_finished)
    }

    /// The longest time between two acknowledgements (of any client) that overlaps `from..to`:
    /// (length, begin). The time since the last acknowledgement counts.
    pub fn longest_gap(&self, from: Duration, to: Duration) -> (Duration, Duration) {
        let acks = self.shared.acks.lock().unwrap_or_else(PoisonError::into_inner);
        let mut times: Vec<Duration> = acks.iter().map(|ack| ack.acked).collect();
        drop(acks);
        times.push(self.now());
        times.sort_unstable();
        let mut longest = (Duration::ZERO, from);
        for pair in times.windows(2) {
            if let [before, after] = *pair
                && after >= from
                && before <= to
                && after.saturating_sub(before) > longest.0
            {
                longest = (after.saturating_sub(before), before);
            }
        }
        longest
    }

    /// Median and 99th percentile of the time from sending to acknowledgement, within `from..to`.
    pub fn latency(&self, from: Duration, to: Duration) -> (Duration, Duration) {
        let acks = self.shared.acks.lock().unwrap_or_else(PoisonError::into_inner);
        let inside = acks.iter().filter(|ack| ack.sent >= from && ack.acked <= to);
        let mut times: Vec<Duration> = inside.map(|ack| ack.acked.saturating_sub(ack.sent)).collect();
        drop(acks);
        times.sort_unstable();
        let pick = |part: usize| times.get(times.len() * part / 100).copied().unwrap_or_default();
        (pick(50), pick(99))
    }

    /// Stops the clients and returns every acknowledged record.
    pub fn stop(mut self) -> Vec<Ack> {
        self.halt();
        std::mem::take(&mut *self.shared.acks.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn halt(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            // A panic of a client shows as missing acknowledgements.
            let _ = thread.join();
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.halt();
    }
}

impl Shared {
    fn run(&self, client: u32) {
        if let Some(netns) = &self.options.netns
            && let Err(error) = crate::sys::namespace::join_net(netns)
        {
            self.complain(&format!("{}: {error}", netns.display()));
            return;
        }
        let mut connection = None;
        let mut n = 0;
        while !self.done() {
            n += 1;
            let text = payload(self.options.seed, client, n);
            let id = format!("{:x}-{client}:{n}", self.options.seed);
            let request = format!("append {id} {text}\n");
            let sent = self.begin.elapsed();
            let sequence = loop {
                if self.done() {
                    return;
                }
                match self.attempt(&mut connection, &request) {
                    Ok(sequence) => break sequence,
                    Err(error) => {
                        connection = None;
                        self.complain(&error.to_string());
                        if error.kind() != io::ErrorKind::TimedOut
                            && error.kind() != io::ErrorKind::WouldBlock
                        {
                            std::thread::sleep(REFUSED);
                        }
                    }
                }
            };
            let acked = self.begin.elapsed();
            let checksum = crc32c::crc32c(text.as_bytes());
            self.note(Ack { sequence, id, checksum, sent, acked });
        }
    }

    fn done(&self) -> bool {
        self.stop.load(Ordering::Acquire)
            || self.options.count.is_some_and(|count| self.acked.load(Ordering::Acquire) >= count)
    }

    fn complain(&self, text: &str) {
        text.clone_into(&mut self.refused.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn attempt(&self, connection: &mut Option<BufReader<TcpStream>>, request: &str) -> io::Result<u64> {
        if connection.is_none() {
            let stream = TcpStream::connect_timeout(&self.options.connect, CONNECT)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(ANSWER))?;
            stream.set_write_timeout(Some(ANSWER))?;
            let mut reader = BufReader::new(stream);
            exchange(&mut reader, &format!("sync {}\n", self.options.sync_every))?;
            *connection = Some(reader);
        }
        let Some(reader) = connection.as_mut() else { return Err(io::ErrorKind::NotConnected.into()) };
        self.in_flight.fetch_add(1, Ordering::AcqRel);
        let answer = exchange(reader, request);
        self.in_flight.fetch_sub(1, Ordering::AcqRel);
        let answer = answer?;
        let sequence = answer.strip_prefix("ok ").and_then(|number| number.parse().ok());
        sequence.ok_or_else(|| io::Error::other(format!("the server answered {answer:?}")))
    }

    fn note(&self, ack: Ack) {
        if let Some(journal) = self.journal.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            let (sent, acked) = (ack.sent.as_micros(), ack.acked.as_micros());
            let line = format!("{} {} {:08x} {sent} {acked}\n", ack.sequence, ack.id, ack.checksum);
            if let Err(error) = journal.write_all(line.as_bytes()) {
                self.complain(&format!("journal: {error}"));
            }
        }
        self.acks.lock().unwrap_or_else(PoisonError::into_inner).push(ack);
        self.acked.fetch_add(1, Ordering::AcqRel);
    }
}

fn exchange(reader: &mut BufReader<TcpStream>, request: &str) -> io::Result<String> {
    reader.get_mut().write_all(request.as_bytes())?;
    let mut line = String::new();
    let length = reader.take(LINE_MAX as u64).read_line(&mut line)?;
    if length == 0 || !line.ends_with('\n') {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    line.truncate(length - 1);
    Ok(line)
}

/// Reads a journal file back.
pub fn read_journal(text: &str) -> Result<Vec<Ack>, String> {
    let parse = |line: &str| {
        let mut fields = line.split(' ');
        let sequence = fields.next()?.parse().ok()?;
        let id = fields.next()?.to_owned();
        let checksum = u32::from_str_radix(fields.next()?, 16).ok()?;
        let mut time = || fields.next()?.parse().ok().map(Duration::from_micros);
        Some(Ack { sequence, id, checksum, sent: time()?, acked: time()? })
    };
    let mut acks = Vec::new();
    for (number, line) in text.lines().enumerate() {
        acks.push(parse(line).ok_or_else(|| format!("line {}: not a journal line: {line:?}", number + 1))?);
    }
    Ok(acks)
}
