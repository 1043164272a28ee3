//! Accepts connections on the Unix socket and runs one request each.

use super::{Agent, Answer, ApiError, REQUEST_MAX, Request};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// A client that does not send its request within this time is dropped.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);
/// A client that does not take its answer within this time is dropped.
const WRITE_DEADLINE: Duration = Duration::from_secs(10);
/// What is read of a request that is too large, so that its sender gets to hear so; more is cut off.
const DISCARD_MAX: u64 = 256 << 20;
/// Connections at once; operators and scripts, not a public service.
const CONNECTIONS_MAX: usize = 64;
/// Of them, those that follow events: they stay for as long as they like and must not lock out the others.
const FOLLOWERS_MAX: usize = 16;
/// Between two looks whether a client that has closed its sending side is still there.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// How long the owner of an existing socket may take to let us in; one that is there but too busy owns it.
const PROBE_LIMIT: Duration = Duration::from_secs(1);

/// Why the socket is not ours.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another agent answers there.
    #[error("another agent serves at {}", .0.display())]
    Owned(PathBuf),
    /// Something that is no socket, and not ours to remove.
    #[error("{} is there and no socket", .0.display())]
    NoSocket(PathBuf),
    /// The system refused.
    #[error("{0}")]
    Io(#[source] std::io::Error),
}

/// Binds the socket. One that a dead agent left is replaced; one that somebody listens on is not.
/// (Two agents that start at the same moment are kept apart by the guard's lock on the run directory.)
///
/// # Errors
/// It belongs to somebody else; or I/O.
pub async fn bind(path: &Path) -> Result<UnixListener, BindError> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(BindError::Io)?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => return Err(BindError::NoSocket(path.to_owned())),
        Ok(_) => {
            let dead = match tokio::time::timeout(PROBE_LIMIT, UnixStream::connect(path)).await {
                Ok(Err(error)) => error.kind() != std::io::ErrorKind::WouldBlock,
                Ok(Ok(_)) | Err(_) => false,
            };
            if !dead {
                return Err(BindError::Owned(path.to_owned()));
            }
            std::fs::remove_file(path).map_err(BindError::Io)?;
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(BindError::Io(error)),
    }
    let listener = UnixListener::bind(path).map_err(BindError::Io)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(BindError::Io)?;
    Ok(listener)
}

/// Serves until the listener fails or the task is dropped.
pub async fn serve(listener: UnixListener, agent: Arc<dyn Agent>) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let followers = Arc::new(Semaphore::new(FOLLOWERS_MAX));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (agent, followers) = (agent.clone(), followers.clone());
                tokio::spawn(async move {
                    if let Err(error) = one(stream, agent, slot, &followers).await {
                        tracing::debug!(%error, "api connection ended");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "api accept failed");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

/// One request; a client that leaves ends the wait for its answer, not what it asked for.
async fn one(
    stream: UnixStream,
    agent: Arc<dyn Agent>,
    slot: OwnedSemaphorePermit,
    followers: &Arc<Semaphore>,
) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = Vec::new();
    let mut reader = BufReader::new(read.take(REQUEST_MAX as u64));
    let asked = async {
        reader.read_until(b'\n', &mut line).await?;
        if line.len() < REQUEST_MAX || line.ends_with(b"\n") {
            return Ok(true);
        }
        // The rest is read and dropped: a client that still writes would not read the answer.
        reader.get_mut().set_limit(DISCARD_MAX);
        skip_line(&mut reader).await.map(|()| false)
    };
    let whole = tokio::time::timeout(REQUEST_DEADLINE, asked).await??;
    if !whole {
        let answer = Answer { more: false, body: None, error: Some(super::too_large()) };
        return put(&mut write, &answer).await;
    }
    let request: Request = match serde_json::from_slice(&line) {
        Ok(request) => request,
        Err(error) => {
            let error = ApiError::new(
                "SKC-E7001",
                format!("the request is not understood: {error}"),
                "use the skc command of the same version as the agent",
            );
            return put(&mut write, &Answer { more: false, body: None, error: Some(error) }).await;
        }
    };
    let _slot = if matches!(request, Request::Events { follow: true, .. }) {
        let Ok(place) = followers.clone().try_acquire_owned() else {
            let error = ApiError::new(
                "SKC-E7006",
                format!("{FOLLOWERS_MAX} clients follow the events already"),
                "end one of them (`skc events -f`), or ask without -f",
            );
            return put(&mut write, &Answer { more: false, body: None, error: Some(error) }).await;
        };
        drop(slot);
        place
    } else {
        slot
    };
    let mut left = std::pin::pin!(left(reader.into_inner().into_inner()));
    let (tx, mut rx) = mpsc::channel(256);
    let mut call = agent.call(request, tx);
    loop {
        tokio::select! {
            biased; // items before the result, in order, and both before the end
            Some(item) = rx.recv() => put(&mut write, &Answer { more: true, body: Some(item), error: None }).await?,
            result = &mut call => {
                while let Ok(item) = rx.try_recv() {
                    put(&mut write, &Answer { more: true, body: Some(item), error: None }).await?;
                }
                let answer = match result {
                    Ok(body) => Answer { more: false, body: Some(body), error: None },
                    Err(error) => Answer { more: false, body: None, error: Some(error) },
                };
                return put(&mut write, &answer).await;
            }
            () = &mut left => return Ok(()),
        }
    }
}

/// Resolves when the client is gone. One that only closed its sending side still waits for its answer.
async fn left(mut read: OwnedReadHalf) {
    let mut rest = [0; 256];
    while matches!(read.read(&mut rest).await, Ok(1..)) {}
    loop {
        match read.ready(Interest::WRITABLE).await {
            Ok(ready) if !ready.is_write_closed() => tokio::time::sleep(LOOK_EVERY).await,
            _ => return,
        }
    }
}

/// Reads up to the end of the line (or of what comes), keeping nothing.
async fn skip_line(reader: &mut (impl AsyncBufReadExt + Unpin)) -> std::io::Result<()> {
    loop {
        let chunk = reader.fill_buf().await?;
        let end = chunk.iter().position(|byte| *byte == b'\n');
        let (used, done) = (end.map_or(chunk.len(), |at| at + 1), end.is_some() || chunk.is_empty());
        reader.consume(used);
        if done {
            return Ok(());
        }
    }
}

async fn put(write: &mut OwnedWriteHalf, answer: &Answer) -> std::io::Result<()> {
    let mut bytes = serde_json::to_vec(answer)?;
    bytes.push(b'\n');
    tokio::time::timeout(WRITE_DEADLINE, write.write_all(&bytes)).await?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_a_dead_agents_socket_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/skc.sock");
        let alive = bind(&path).await.unwrap();
        assert!(matches!(bind(&path).await, Err(BindError::Owned(_))));
        drop(alive);
        bind(&path).await.expect("its owner is dead");
        let file = dir.path().join("file");
        std::fs::write(&file, "precious").unwrap();
        assert!(matches!(bind(&file).await, Err(BindError::NoSocket(_))));
        assert_eq!(std::fs::read(&file).unwrap(), b"precious");
    }

    struct Echo;

    impl Agent for Echo {
        fn call(
            &self,
            request: Request,
            _: mpsc::Sender<serde_json::Value>,
        ) -> futures::future::BoxFuture<'_, Result<serde_json::Value, ApiError>> {
            Box::pin(async move { Ok(serde_json::to_value(request).unwrap_or_default()) })
        }
    }

    /// A server in a directory of its own.
    async fn served(agent: Arc<dyn Agent>) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("skc.sock");
        tokio::spawn(serve(bind(&path).await.unwrap(), agent));
        (dir, path)
    }

    async fn answer(client: UnixStream) -> Answer {
        let mut line = String::new();
        BufReader::new(client).read_line(&mut line).await.unwrap();
        serde_json::from_str(&line).unwrap()
    }

    #[tokio::test]
    async fn a_request_that_is_too_large_is_told_the_limit() {
        let (_dir, path) = served(Arc::new(Echo)).await;
        // Exactly the limit, its newline included, is fine.
        let empty = serde_json::to_vec(&Request::Get { cluster: Some(String::new()) }).unwrap();
        for (over, code) in [(0, None), (1, Some("SKC-E7007")), (20 << 20, Some("SKC-E7007"))] {
            let name = "x".repeat(REQUEST_MAX - 1 - empty.len() + over);
            let mut bytes = serde_json::to_vec(&Request::Get { cluster: Some(name) }).unwrap();
            bytes.push(b'\n');
            let mut client = UnixStream::connect(&path).await.unwrap();
            client.write_all(&bytes).await.unwrap();
            let answer = answer(client).await;
            assert_eq!(answer.error.map(|e| e.code).as_deref(), code, "{over} bytes over");
        }
    }

    /// Answers a get at once and nothing else ever; says when a caller leaves.
    struct Waits(mpsc::Sender<()>);

    impl Agent for Waits {
        fn call(
            &self,
            request: Request,
            more: mpsc::Sender<serde_json::Value>,
        ) -> futures::future::BoxFuture<'_, Result<serde_json::Value, ApiError>> {
            Box::pin(async move {
                if !matches!(request, Request::Get { .. }) {
                    let left = self.0.clone();
                    tokio::spawn(async move {
                        more.closed().await;
                        let _ = left.send(()).await;
                    });
                    std::future::pending::<()>().await;
                }
                Ok(serde_json::Value::Null)
            })
        }
    }

    async fn asked(path: &Path, request: &Request) -> UnixStream {
        let mut bytes = serde_json::to_vec(request).unwrap();
        bytes.push(b'\n');
        let mut client = UnixStream::connect(path).await.unwrap();
        client.write_all(&bytes).await.unwrap();
        client
    }

    #[tokio::test]
    async fn followers_do_not_lock_out_operators() {
        let (_dir, path) = served(Arc::new(Waits(mpsc::channel(100).0))).await;
        let mut clients = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            clients.push(asked(&path, &Request::Events { follow: true, last: 0, failover: None }).await);
        }
        let refused = answer(clients.pop().expect("the one too many")).await;
        assert_eq!(refused.error.map(|e| e.code).as_deref(), Some("SKC-E7006"));
        let operator = asked(&path, &Request::Get { cluster: None }).await;
        let answer = tokio::time::timeout(Duration::from_secs(20), answer(operator)).await;
        assert!(answer.expect("an answer in time").error.is_none());
    }

    #[tokio::test]
    async fn a_client_that_leaves_ends_the_wait_and_one_that_only_stops_sending_does_not() {
        let (tx, mut left) = mpsc::channel(1);
        let (_dir, path) = served(Arc::new(Waits(tx))).await;
        let mut client = asked(&path, &Request::Ping).await;
        client.shutdown().await.unwrap();
        let still = tokio::time::timeout(LOOK_EVERY * 3, left.recv()).await;
        assert!(still.is_err(), "it waits for its answer");
        drop(client);
        let gone = tokio::time::timeout(Duration::from_secs(20), left.recv()).await;
        assert_eq!(gone.expect("noticed"), Some(()));
    }
}
