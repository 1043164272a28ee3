//! Accepts connections on the Unix socket and runs one request each.

use super::{Agent, Answer, ApiError, REQUEST_MAX, Request};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

/// A client that does not send its request within this time is dropped.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);
/// A client that does not take its answer within this time is dropped.
const WRITE_DEADLINE: Duration = Duration::from_secs(10);
/// Connections at once; operators and scripts, not a public service.
const CONNECTIONS_MAX: usize = 64;

/// Binds the socket. A stale file of a dead agent is replaced (the state directory's lock has
/// already proven that no other agent of this node runs).
pub fn bind(path: &Path) -> std::io::Result<UnixListener> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves until the listener fails or the task is dropped.
pub async fn serve(listener: UnixListener, agent: Arc<dyn Agent>) {
    let slots = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let agent = agent.clone();
                tokio::spawn(async move {
                    if let Err(error) = one(stream, agent).await {
                        tracing::debug!(%error, "api connection ended");
                    }
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "api accept failed");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

async fn one(stream: UnixStream, agent: Arc<dyn Agent>) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = Vec::new();
    let mut reader = BufReader::new(read.take(REQUEST_MAX as u64));
    tokio::time::timeout(REQUEST_DEADLINE, reader.read_until(b'\n', &mut line)).await??;
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
    let (tx, mut rx) = mpsc::channel(256);
    let mut call = agent.call(request, tx);
    loop {
        tokio::select! {
            biased; // items before the result, in order
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
        }
    }
}

async fn put(write: &mut tokio::net::unix::OwnedWriteHalf, answer: &Answer) -> std::io::Result<()> {
    let mut bytes = serde_json::to_vec(answer)?;
    bytes.push(b'\n');
    tokio::time::timeout(WRITE_DEADLINE, write.write_all(&bytes)).await?
}
