//! Logs: `tracing` to standard error, human or JSON.
//!
//! `SKC_LOG` filters (syntax of `tracing_subscriber::EnvFilter`, for example `skc::net=debug,info`); a
//! filter that does not parse is reported and replaced by the default, because an agent must come up
//! whatever its environment says. Fields: object, epoch, role, peer, op_seq, failover_id, elapsed_ms,
//! error_code; never file contents or keys.

use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Environment variable with the filter.
pub const FILTER_VARIABLE: &str = "SKC_LOG";

/// What is logged when nothing is said: our state changes, and warnings of libraries.
const DEFAULT_FILTER: &str = "warn,skc=info,netlink_packet_route=error";

/// How a log line looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    /// For people: text, colour on a terminal only.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

/// Installs the global subscriber. A second call does nothing (tests, guard and worker in one process).
pub fn init(format: Format) {
    init_to(format, std::io::stderr);
}

/// Like [`init`] with a writer of one's own (the guard's must not block).
pub fn init_to<W>(format: Format, writer: W)
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let wanted = std::env::var(FILTER_VARIABLE).unwrap_or_else(|_| DEFAULT_FILTER.to_owned());
    let (filter, problem) = match EnvFilter::try_new(&wanted) {
        Ok(filter) => (filter, None),
        Err(error) => (EnvFilter::new(DEFAULT_FILTER), Some(error)),
    };
    // A log on a full disk, or without a reader, takes no line. Told by `eprintln!`, as the subscriber would, that
    // ends in a panic of whichever thread logged: of one that serves a mount, or of a state machine's task.
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).log_internal_errors(false);
    let installed = match format {
        Format::Human => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
        Format::Json => builder.json().flatten_event(true).try_init(),
    };
    if let (Ok(()), Some(error)) = (installed, problem) {
        tracing::warn!(%error, filter = wanted, "{FILTER_VARIABLE} is not understood; using {DEFAULT_FILTER}");
    }
}
