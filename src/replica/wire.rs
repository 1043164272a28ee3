//! One data connection in plain threads: TLS 1.3 (or plain TCP in tests) under frames.
//!
//! The link does the handshake and hands over a [`DataConn`]. A [`WireReader`] belongs to one
//! thread: it reads the socket without any lock and takes the TLS lock only to decrypt. A
//! [`WireWriter`] is shared: the caller's thread encrypts and writes what the socket takes at once;
//! the rest stays in the TLS buffer, in order, and a drainer thread sends it. Neither bounds what
//! is queued beyond [`QUEUE_MAX`]: the windows of the stream do, this is the last line.
//! `close` wakes every thread; no wait of this module outlives it.

use crate::proto::frame::{FrameBuf, FrameError};
use socket2::SockRef;
use std::collections::VecDeque;
use std::io::{self, BufRead, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// One socket read.
const READ_SIZE: usize = 256 * 1024;
/// What the drainer hands to one blocking send.
const DRAIN_SIZE: usize = 256 * 1024;
/// A blocking send gives up after this long, looks whether the connection was closed, and goes on.
const SEND_SLICE: Duration = Duration::from_millis(500);
/// Unacknowledged bytes on a silent path break the socket after this long. Heartbeats notice
/// earlier; this only ends threads whose driver is gone.
const USER_TIMEOUT: Duration = Duration::from_secs(20);
/// More than this unsent means that a window above is broken: the connection ends.
pub const QUEUE_MAX: usize = 512 * 1024 * 1024;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// A socket call failed.
    #[error("{op} on the data connection")]
    Io {
        /// The call.
        op: &'static str,
        /// Its error.
        #[source]
        source: io::Error,
    },
    /// TLS failed (wrong record, alert).
    #[error("TLS on the data connection")]
    Tls(#[source] rustls::Error),
    /// The peer closed it.
    #[error("the peer closed the data connection")]
    Eof,
    /// We closed it.
    #[error("the data connection was closed here")]
    Closed,
    /// The bytes are no frame.
    #[error("bad frame on the data connection")]
    Frame(#[from] FrameError),
    /// Too much is unsent.
    #[error("{0} bytes unsent (limit {QUEUE_MAX})")]
    QueueFull(usize),
}

impl WireError {
    /// Did only the time end that [`WireReader::set_timeout`] set?
    pub fn is_timeout(&self) -> bool {
        let timed_out = |kind| matches!(kind, io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
        matches!(self, Self::Io { op: "read", source } if timed_out(source.kind()))
    }
}

fn io_err(op: &'static str) -> impl FnOnce(io::Error) -> WireError {
    move |source| WireError::Io { op, source }
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An established connection as the link hands it over: blocking socket, finished handshake.
pub struct DataConn {
    /// The socket; made blocking by [`DataConn::split`].
    pub tcp: TcpStream,
    /// The TLS session, `None` only in tests.
    pub tls: Option<rustls::Connection>,
    /// Plaintext that was already read from the session.
    pub early: Vec<u8>,
}

impl DataConn {
    /// A connection under TLS.
    pub fn tls(tcp: TcpStream, tls: impl Into<rustls::Connection>, early: Vec<u8>) -> Self {
        Self { tcp, tls: Some(tls.into()), early }
    }

    /// A connection without TLS, for tests and measurements.
    pub fn plain(tcp: TcpStream) -> Self {
        Self { tcp, tls: None, early: Vec::new() }
    }

    /// Divides it between a reading and a writing side and starts the drainer thread.
    pub fn split(self, name: &str) -> Result<(WireReader, WireWriter), WireError> {
        let Self { tcp, tls, early } = self;
        tcp.set_nonblocking(false).map_err(io_err("set_nonblocking"))?;
        tcp.set_nodelay(true).map_err(io_err("set_nodelay"))?;
        tcp.set_read_timeout(None).map_err(io_err("set_read_timeout"))?;
        tcp.set_write_timeout(Some(SEND_SLICE)).map_err(io_err("set_write_timeout"))?;
        SockRef::from(&tcp)
            .set_tcp_user_timeout(Some(USER_TIMEOUT))
            .map_err(io_err("set_tcp_user_timeout"))?;
        let engine = match tls {
            Some(mut tls) => {
                tls.set_buffer_limit(None);
                Engine::Tls(Box::new(tls))
            }
            None => Engine::Plain(VecDeque::new()),
        };
        let shared = Arc::new(Shared {
            tcp,
            state: Mutex::new(State { engine, draining: false, queued: 0, broken: None }),
            wake: Condvar::new(),
            closed: AtomicBool::new(false),
        });
        let drained = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name(format!("{name}-drain"))
            .spawn(move || drained.drain())
            .map_err(io_err("spawn"))?;
        let reader =
            WireReader { shared: Arc::clone(&shared), early, raw: vec![0; READ_SIZE], started: false };
        Ok((reader, WireWriter { shared, thread: Mutex::new(Some(thread)) }))
    }
}

enum Engine {
    Tls(Box<rustls::Connection>),
    Plain(VecDeque<u8>),
}

impl Engine {
    fn wants_write(&self) -> bool {
        match self {
            Self::Tls(tls) => tls.wants_write(),
            Self::Plain(queue) => !queue.is_empty(),
        }
    }

    /// Moves queued bytes to `out` once.
    fn flush_into(&mut self, out: &mut dyn Write) -> io::Result<usize> {
        match self {
            Self::Tls(tls) => tls.write_tls(out),
            Self::Plain(queue) => {
                let (front, _) = queue.as_slices();
                let n = out.write(front)?;
                queue.drain(..n);
                Ok(n)
            }
        }
    }
}

struct State {
    engine: Engine,
    /// The drainer has bytes in its hands: nobody else may write to the socket.
    draining: bool,
    /// Upper bound of what is unsent.
    queued: usize,
    broken: Option<io::ErrorKind>,
}

struct Shared {
    tcp: TcpStream,
    state: Mutex<State>,
    wake: Condvar,
    closed: AtomicBool,
}

/// Writes without waiting.
struct NoWait<'a>(&'a TcpStream);

impl Write for NoWait<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        SockRef::from(self.0).send_with_flags(buf, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
    }
    fn write_vectored(&mut self, bufs: &[io::IoSlice<'_>]) -> io::Result<usize> {
        SockRef::from(self.0).send_vectored_with_flags(bufs, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// At most [`DRAIN_SIZE`] bytes of a flush.
struct Limited<'a>(&'a mut Vec<u8>);

impl Write for Limited<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let room = DRAIN_SIZE.saturating_sub(self.0.len());
        let n = buf.len().min(room);
        self.0.extend_from_slice(&buf[..n]);
        Ok(n)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Shared {
    fn check(&self, state: &State) -> Result<(), WireError> {
        if self.closed.load(Ordering::Acquire) {
            return Err(WireError::Closed);
        }
        match state.broken {
            Some(kind) => Err(WireError::Io { op: "send", source: kind.into() }),
            None => Ok(()),
        }
    }

    /// Writes what the socket takes now; wakes the drainer for the rest.
    fn push(&self, state: &mut State) -> Result<(), WireError> {
        while !state.draining && state.engine.wants_write() {
            match state.engine.flush_into(&mut NoWait(&self.tcp)) {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.wake.notify_one();
                    break;
                }
                Err(source) => {
                    state.broken = Some(source.kind());
                    return Err(WireError::Io { op: "send", source });
                }
            }
        }
        if !state.engine.wants_write() {
            state.queued = 0;
        }
        if state.queued > QUEUE_MAX { Err(WireError::QueueFull(state.queued)) } else { Ok(()) }
    }

    fn drain(&self) {
        let mut chunk = Vec::with_capacity(DRAIN_SIZE);
        loop {
            {
                let mut state = lock(&self.state);
                state.draining = false;
                while !self.closed.load(Ordering::Acquire)
                    && (state.broken.is_some() || !state.engine.wants_write())
                {
                    state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                if self.closed.load(Ordering::Acquire) {
                    return;
                }
                chunk.clear();
                while chunk.len() < DRAIN_SIZE && state.engine.wants_write() {
                    if !matches!(state.engine.flush_into(&mut Limited(&mut chunk)), Ok(n) if n > 0) {
                        break;
                    }
                }
                state.queued = state.queued.saturating_sub(chunk.len());
                state.draining = true;
            }
            if let Err(e) = self.send_all(&chunk) {
                let mut state = lock(&self.state);
                state.broken = Some(e.kind());
                state.draining = false;
                drop(state);
                // The reading side reports the end.
                let _ = self.tcp.shutdown(Shutdown::Both);
            }
        }
    }

    fn send_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.closed.load(Ordering::Acquire) {
                return Err(io::ErrorKind::NotConnected.into());
            }
            match SockRef::from(&self.tcp).send_with_flags(bytes, libc::MSG_NOSIGNAL) {
                Ok(n) => bytes = &bytes[n..],
                Err(e) if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn close(&self) {
        self.closed.store(true, Ordering::Release);
        let _ = self.tcp.shutdown(Shutdown::Both);
        drop(lock(&self.state));
        self.wake.notify_all();
    }
}

/// The sending side; any thread may use it, frames leave in the order of the calls.
pub struct WireWriter {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl WireWriter {
    /// Sends one or more whole frames. Never waits for the peer.
    pub fn send(&self, frames: &[u8]) -> Result<(), WireError> {
        let mut state = lock(&self.shared.state);
        self.shared.check(&state)?;
        state.queued += frames.len();
        match &mut state.engine {
            Engine::Tls(tls) => tls.writer().write_all(frames).map_err(io_err("encrypt"))?,
            Engine::Plain(queue) => queue.extend(frames),
        }
        self.shared.push(&mut state)
    }

    /// Bytes that were given to [`Self::send`] and have not left this process (upper bound).
    pub fn queued(&self) -> usize {
        lock(&self.shared.state).queued
    }

    /// Ends the connection: readers and the drainer wake and return. Idempotent.
    pub fn close(&self) {
        self.shared.close();
    }

    /// Waits until everything was handed to the socket; `false` if that took longer.
    pub fn flush(&self, within: Duration) -> bool {
        let end = Instant::now() + within;
        loop {
            let state = lock(&self.shared.state);
            if self.shared.check(&state).is_err() {
                return false;
            }
            if !state.draining && !state.engine.wants_write() {
                return true;
            }
            drop(state);
            if Instant::now() >= end {
                return false;
            }
            std::thread::park_timeout(Duration::from_millis(1));
        }
    }
}

impl Drop for WireWriter {
    fn drop(&mut self) {
        self.close();
        if let Some(thread) = lock(&self.thread).take() {
            join_within(thread, Duration::from_secs(2));
        }
    }
}

/// Waits for a thread, at most this long; `false` = it still runs and was left alone.
pub(crate) fn join_within(thread: JoinHandle<()>, within: Duration) -> bool {
    let end = Instant::now() + within;
    while !thread.is_finished() {
        if Instant::now() >= end {
            tracing::warn!(thread = thread.thread().name(), "thread did not end in time; left behind");
            return false;
        }
        std::thread::park_timeout(Duration::from_millis(1));
    }
    thread.join().is_ok()
}

/// The receiving side; owned by one thread.
pub struct WireReader {
    shared: Arc<Shared>,
    early: Vec<u8>,
    raw: Vec<u8>,
    started: bool,
}

impl WireReader {
    /// Limits one [`Self::fill`]; past it the error is an `Io` of kind `WouldBlock` or `TimedOut`.
    pub fn set_timeout(&self, timeout: Option<Duration>) -> Result<(), WireError> {
        self.shared.tcp.set_read_timeout(timeout).map_err(io_err("set_read_timeout"))
    }

    /// Waits for bytes and appends their plaintext to `into`. May append nothing (TLS housekeeping).
    pub fn fill(&mut self, into: &mut FrameBuf) -> Result<usize, WireError> {
        if !self.started {
            self.started = true;
            into.extend(&std::mem::take(&mut self.early));
            let before = into.pending();
            if let Engine::Tls(tls) = &mut lock(&self.shared.state).engine {
                decrypt(tls, &mut &[][..], into)?;
            }
            if into.pending() > before || before > 0 {
                return Ok(into.pending());
            }
        }
        let n = loop {
            match (&self.shared.tcp).read(&mut self.raw) {
                Ok(0) if self.shared.closed.load(Ordering::Acquire) => return Err(WireError::Closed),
                Ok(0) => return Err(WireError::Eof),
                Ok(n) => break n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(WireError::Io { op: "read", source }),
            }
        };
        let before = into.pending();
        let mut state = lock(&self.shared.state);
        match &mut state.engine {
            Engine::Plain(_) => {
                drop(state);
                into.extend(&self.raw[..n]);
            }
            Engine::Tls(tls) => {
                let mut rest = &self.raw[..n];
                while !rest.is_empty() {
                    decrypt(tls, &mut rest, into)?;
                }
                if state.engine.wants_write() && !state.draining {
                    // Key updates and alerts; an error here shows at the next read or send.
                    let _ = self.shared.push(&mut state);
                }
            }
        }
        Ok(into.pending() - before)
    }

    /// Ends the connection (see [`WireWriter::close`]).
    pub fn close(&self) {
        self.shared.close();
    }
}

fn decrypt(tls: &mut rustls::Connection, rest: &mut &[u8], into: &mut FrameBuf) -> Result<(), WireError> {
    if !rest.is_empty() {
        tls.read_tls(rest).map_err(io_err("read_tls"))?;
    }
    tls.process_new_packets().map_err(WireError::Tls)?;
    let mut reader = tls.reader();
    loop {
        match reader.fill_buf() {
            Ok([]) => return Err(WireError::Eof),
            Ok(plain) => {
                let n = plain.len();
                into.extend(plain);
                reader.consume(n);
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Err(WireError::Eof),
            Err(source) => return Err(WireError::Io { op: "decrypt", source }),
        }
    }
}
