//! Messages to systemd (`sd_notify(3)`): readiness, stopping, watchdog. Without `NOTIFY_SOCKET` all are no-ops.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use tracing::debug;

/// The way to the service manager.
pub(super) struct Notify {
    socket: Option<(UnixDatagram, SocketAddr)>,
    /// Half of what the manager allows between two signs of life.
    pub(super) watchdog_ms: Option<u64>,
}

impl Notify {
    pub(super) fn from_env() -> Self {
        let socket = std::env::var_os("NOTIFY_SOCKET").and_then(|name| {
            let address = match name.as_bytes().strip_prefix(b"@") {
                Some(rest) => SocketAddr::from_abstract_name(rest),
                None => SocketAddr::from_pathname(&name),
            };
            let socket = UnixDatagram::unbound().ok()?;
            socket.set_nonblocking(true).ok()?;
            Some((socket, address.ok()?))
        });
        let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
        let ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog_ms =
            number("WATCHDOG_USEC").filter(|usec| ours && *usec > 0).map(|usec| (usec / 2000).max(1));
        Self { socket, watchdog_ms }
    }

    pub(super) fn send(&self, text: &str) {
        if let Some((socket, address)) = &self.socket
            && let Err(error) = socket.send_to_addr(text.as_bytes(), address)
        {
            debug!(%error, text, "the service manager does not listen");
        }
    }
}
