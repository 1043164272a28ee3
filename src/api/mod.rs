//! The agent's local interface: JSON lines over a Unix socket.
//!
//! One request a connection: the client sends one line (a [`Request`]) and reads [`Answer`]s, one a
//! line, until one has `more: false`. The socket belongs to root (0600): who may open it may do all.
//! REST and roles come later behind the same [`Agent`] trait.

pub mod client;
pub mod server;
pub mod types;

pub use types::{Action, Answer, ApiError, ClusterStatus, Document, Request};

use futures::future::BoxFuture;
use tokio::sync::mpsc;

/// Default path of the socket.
pub const SOCKET: &str = "/run/skc/skc.sock";

/// Longest request line: 64 specs of 1 MiB would be far more than a pair can hold; 8 MiB is plenty.
pub const REQUEST_MAX: usize = 8 << 20;

/// "The request is too large": said by the client before it sends, and by the server to any other client.
fn too_large() -> ApiError {
    ApiError::new(
        "SKC-E7007",
        format!("the request is larger than {} MiB, nothing was done", REQUEST_MAX >> 20),
        "apply fewer files at once",
    )
}

/// What the server asks of the daemon.
pub trait Agent: Send + Sync + 'static {
    /// Answers one request. Follow-up lines (events, progress) go to `more`, the result is the last line.
    fn call(
        &self,
        request: Request,
        more: mpsc::Sender<serde_json::Value>,
    ) -> BoxFuture<'_, Result<serde_json::Value, ApiError>>;
}
