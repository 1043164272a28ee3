//! Logging that never waits: lines go through a bounded queue to a thread that writes standard error.
//!
//! A full pipe behind standard error (a stuck log collector) would otherwise stop the guard in the middle of fencing.
//! When the queue is full lines are dropped and counted; the count is written as soon as there is room.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// Lines that wait, at most: some seconds of the busiest log.
const QUEUE: usize = 1024;
/// Longest wait for the last lines at exit.
const LAST_LINES: Duration = Duration::from_millis(200);

/// Where the guard's lines go.
#[derive(Clone, Debug)]
pub struct LogQueue {
    lines: SyncSender<Vec<u8>>,
    dropped: Arc<AtomicU64>,
    waiting: Arc<AtomicU64>,
}

/// One line in the making; queued when dropped.
#[derive(Debug)]
pub struct LogLine {
    queue: LogQueue,
    text: Vec<u8>,
}

impl LogQueue {
    /// Starts the writing thread and hands the queue to whoever installs subscribers.
    ///
    /// Call it with signals already blocked: the thread must not receive them.
    pub(super) fn install(subscribe: Option<fn(Self)>) -> io::Result<Self> {
        let (queue, lines) = Self::new();
        let counters = queue.clone();
        std::thread::Builder::new()
            .name("guard-log".into())
            .spawn(move || write(&lines, &counters, io::stderr()))?;
        if let Some(subscribe) = subscribe {
            subscribe(queue.clone());
        }
        Ok(queue)
    }

    fn new() -> (Self, Receiver<Vec<u8>>) {
        let (sender, lines) = sync_channel(QUEUE);
        (Self { lines: sender, dropped: Arc::default(), waiting: Arc::default() }, lines)
    }

    fn line(&self) -> LogLine {
        LogLine { queue: self.clone(), text: Vec::new() }
    }

    /// Waits a little for lines that are still queued.
    pub(super) fn flush(&self) {
        let end = Instant::now() + LAST_LINES;
        while self.waiting.load(Ordering::Acquire) > 0 && Instant::now() < end {
            crate::sys::process::poll_readable(&[], 5);
        }
    }
}

fn write(lines: &Receiver<Vec<u8>>, counters: &LogQueue, mut target: impl Write) {
    // Errors of standard error can be told to nobody.
    while let Ok(line) = lines.recv() {
        let _ = target.write_all(&line);
        let dropped = counters.dropped.swap(0, Ordering::AcqRel);
        if dropped > 0 {
            let _ = writeln!(target, "({dropped} log lines were dropped: standard error does not take them)");
        }
        counters.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

impl<'a> tracing_subscriber::fmt::MakeWriter<'a> for LogQueue {
    type Writer = LogLine;
    fn make_writer(&'a self) -> LogLine {
        self.line()
    }
}

impl Write for LogLine {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for LogLine {
    fn drop(&mut self) {
        if self.text.is_empty() {
            return;
        }
        self.queue.waiting.fetch_add(1, Ordering::AcqRel);
        if self.queue.lines.try_send(std::mem::take(&mut self.text)).is_err() {
            self.queue.waiting.fetch_sub(1, Ordering::AcqRel);
            self.queue.dropped.fetch_add(1, Ordering::AcqRel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_drops_and_counts_instead_of_waiting() {
        let (queue, lines) = LogQueue::new();
        for n in 0..QUEUE + 3 {
            writeln!(queue.line(), "{n}").unwrap();
        }
        assert_eq!(queue.dropped.load(Ordering::Acquire), 3);
        assert_eq!(queue.waiting.load(Ordering::Acquire), QUEUE as u64);
        let counters = LogQueue { lines: sync_channel(1).0, ..queue.clone() };
        drop(queue);
        let mut text = Vec::new();
        write(&lines, &counters, &mut text);
        let text = String::from_utf8(text).unwrap();
        assert!(text.starts_with("0\n(3 log lines were dropped"), "{}", &text[..80]);
        assert!(text.ends_with(&format!("{}\n", QUEUE - 1)));
        assert_eq!(counters.waiting.load(Ordering::Acquire), 0);
    }
}
