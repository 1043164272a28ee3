//! The two tasks of an established control connection: a reader and a writer.
//!
//! Both report into one bounded inbox; the first `Closed` is the end. The writer pings every
//! interval, so a peer that hears nothing for `timeout` knows that the connection is dead.

use super::handle::Timers;
use super::wire::{self, WireError};
use super::{DownReason, LinkError};
use crate::proto::control::{self, Control, FRAME_MAX};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, split};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::sleep;

/// Messages queued for the peer. With the bound in bytes: what one stuck connection may hold.
pub(super) const QUEUE_MESSAGES: usize = 1024;
/// Bytes queued for the peer: two messages of the greatest length.
pub(super) const QUEUE_BYTES: usize = 2 * FRAME_MAX;
/// Messages (16 MiB at most each) read ahead of the consumer; then the peer's writes wait.
const INBOX: usize = 4;
/// Time for a last word to a peer that may be unreachable.
const FAREWELL: Duration = Duration::from_millis(300);

/// What the connection's tasks report.
pub(super) enum Inbound {
    /// A message of the peer.
    Message(Vec<u8>),
    /// The end.
    Closed(DownReason),
}

/// The bounded queue to the peer.
#[derive(Clone)]
pub(super) struct Outbox {
    frames: mpsc::Sender<Vec<u8>>,
    queued: Arc<AtomicUsize>,
}

impl Outbox {
    /// Queues a message.
    ///
    /// # Errors
    /// Full, closed, or too long for a frame.
    pub(super) fn send(&self, message: &[u8]) -> Result<(), LinkError> {
        let frame = control::encode(&Control::Message, message)?;
        let length = frame.len();
        let before = self.queued.fetch_add(length, Ordering::AcqRel);
        let result = if before + length > QUEUE_BYTES {
            Err(LinkError::QueueFull)
        } else {
            self.frames.try_send(frame).map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => LinkError::QueueFull,
                mpsc::error::TrySendError::Closed(_) => LinkError::NotConnected,
            })
        };
        if result.is_err() {
            self.queued.fetch_sub(length, Ordering::AcqRel);
        }
        result
    }
}

/// A running connection. Dropping it says farewell and ends both tasks within [`FAREWELL`].
pub(super) struct Connection {
    pub(super) inbox: mpsc::Receiver<Inbound>,
    outbox: Option<Outbox>,
    stop: Option<mpsc::Sender<()>>,
    reader: AbortHandle,
    writer: AbortHandle,
}

impl Connection {
    /// Starts the tasks on a greeted stream.
    pub(super) fn start(stream: impl AsyncRead + AsyncWrite + Send + 'static, timers: Arc<Timers>) -> Self {
        let (mut input, output) = split(stream);
        let (frames, queue) = mpsc::channel(QUEUE_MESSAGES);
        let (report, inbox) = mpsc::channel(INBOX);
        let (stop, stopped) = mpsc::channel(1);
        let outbox = Outbox { frames, queued: Arc::default() };
        let queued = outbox.queued.clone();
        let clock = timers.clone();
        let reports = report.clone();
        let reader = tokio::spawn(async move {
            let end = read(&mut input, &clock, &reports).await;
            let _ = reports.send(Inbound::Closed(end)).await;
        });
        let writer = tokio::spawn(async move {
            if let Some(end) = write(output, queue, stopped, &queued, &timers).await {
                let _ = report.send(Inbound::Closed(end)).await;
            }
        });
        Self {
            inbox,
            outbox: Some(outbox),
            stop: Some(stop),
            reader: reader.abort_handle(),
            writer: writer.abort_handle(),
        }
    }

    /// The queue to the peer.
    pub(super) fn outbox(&self) -> Option<Outbox> {
        self.outbox.clone()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.reader.abort();
        drop((self.outbox.take(), self.stop.take()));
        let writer = self.writer.clone();
        // Outside a runtime (process exit) there is nobody left to say farewell.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                sleep(FAREWELL).await;
                writer.abort();
            });
        } else {
            writer.abort();
        }
    }
}

fn ended(error: &WireError) -> DownReason {
    match error {
        WireError::Silent(_) => DownReason::Silent,
        other => DownReason::Broken(other.to_string()),
    }
}

async fn read(
    input: &mut (impl AsyncRead + Unpin),
    timers: &Timers,
    reports: &mpsc::Sender<Inbound>,
) -> DownReason {
    loop {
        match wire::read_frame(input, FRAME_MAX, timers.timeout()).await {
            Ok((Control::Message, message)) => {
                if reports.send(Inbound::Message(message)).await.is_err() {
                    return DownReason::Shutdown;
                }
            }
            Ok((Control::Ping, _)) => {}
            Ok((Control::Bye, _)) => return DownReason::PeerLeft,
            Ok((Control::Refuse { code, why }, _)) => {
                return DownReason::Broken(format!("refused by the peer: {why} ({code})"));
            }
            Ok((other, _)) => {
                return DownReason::Broken(format!("unexpected frame {}", name(&other)));
            }
            Err(error) => return ended(&error),
        }
    }
}

/// Name of a frame kind, without its content.
fn name(header: &Control) -> &'static str {
    match header {
        Control::Hello(_) => "Hello",
        Control::Ready { .. } => "Ready",
        Control::Refuse { .. } => "Refuse",
        Control::Ping => "Ping",
        Control::Message => "Message",
        Control::Bye => "Bye",
        Control::DataHello(_) => "DataHello",
        Control::DataAccept => "DataAccept",
        Control::JoinRequest(_) => "JoinRequest",
        Control::JoinReply(_) => "JoinReply",
    }
}

/// `None` = stopped by this side.
async fn write(
    mut output: impl AsyncWrite + Unpin,
    mut queue: mpsc::Receiver<Vec<u8>>,
    mut stopped: mpsc::Receiver<()>,
    queued: &AtomicUsize,
    timers: &Timers,
) -> Option<DownReason> {
    loop {
        let (frame, message) = tokio::select! {
            // Stop first: a queue that never empties must not delay it. Pings last: any message
            // tells the peer as much.
            biased;
            _ = stopped.recv() => break,
            frame = queue.recv() => match frame {
                Some(frame) => (frame, true),
                None => break,
            },
            () = sleep(timers.interval()) => {
                (control::encode(&Control::Ping, &[]).unwrap_or_default(), false)
            }
        };
        let result = wire::write_frame(&mut output, &frame, timers.timeout()).await;
        if message {
            queued.fetch_sub(frame.len(), Ordering::AcqRel);
        }
        if let Err(error) = result {
            return Some(ended(&error));
        }
    }
    let _ = wire::say(&mut output, &Control::Bye, &[], FAREWELL).await;
    let _ = output.shutdown().await;
    None
}
