//! The blocking client that the command line uses.

use super::{Answer, ApiError, REQUEST_MAX, Request};
use std::io::{BufRead, BufReader, Write};
use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Sends `request` and calls `item` for every line before the result; if it breaks off, the result is null.
///
/// `patience` bounds the wait for each line.
pub fn call(
    socket: &Path,
    request: &Request,
    patience: Duration,
    mut item: impl FnMut(serde_json::Value) -> ControlFlow<()>,
) -> Result<serde_json::Value, ApiError> {
    let unreachable = |error: std::io::Error| {
        ApiError::new(
            "SKC-E7002",
            format!("no agent answers at {}: {error}", socket.display()),
            "start it with `skc agent` (or `systemctl start skc`), as root",
        )
    };
    let mut line = serde_json::to_vec(request).unwrap_or_default();
    line.push(b'\n');
    if line.len() > REQUEST_MAX {
        return Err(super::too_large());
    }
    let mut stream = UnixStream::connect(socket).map_err(unreachable)?;
    stream.set_read_timeout(Some(patience)).map_err(unreachable)?;
    stream.set_write_timeout(Some(Duration::from_secs(10))).map_err(unreachable)?;
    stream.write_all(&line).map_err(unreachable)?;
    let mut reader = BufReader::new(stream);
    let mut buffer = String::new();
    loop {
        buffer.clear();
        match reader.read_line(&mut buffer) {
            Ok(0) => {
                return Err(ApiError::new(
                    "SKC-E7003",
                    "the agent closed the connection before it answered",
                    "look at its log; the operation may or may not have been carried out: `skc status`",
                ));
            }
            Ok(_) => {}
            Err(error) => {
                return Err(ApiError::new(
                    "SKC-E7004",
                    format!("no answer within {} s: {error}", patience.as_secs()),
                    "the operation may still be going on: `skc status`, `skc events`",
                ));
            }
        }
        let answer: Answer = serde_json::from_str(&buffer).map_err(|error| {
            ApiError::new(
                "SKC-E7001",
                format!("the answer is not understood: {error}"),
                "use the same version",
            )
        })?;
        match answer {
            Answer { error: Some(error), .. } => return Err(error),
            Answer { more: true, body: Some(body), .. } => {
                if item(body).is_break() {
                    return Ok(serde_json::Value::Null);
                }
            }
            Answer { more: true, .. } => {}
            Answer { body, .. } => return Ok(body.unwrap_or_default()),
        }
    }
}
