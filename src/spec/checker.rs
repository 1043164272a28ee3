//! `spec.checkers[]`: what is watched and what follows from a failure.

use super::types::NAME_PATTERN;
use super::{defaults, limits};
use crate::base::Timespan;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A periodic look at something, with a consequence after `fall` failures in a row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "CheckerFields", into = "CheckerFields")]
pub struct Checker {
    /// Unique within the cluster.
    pub name: String,
    /// What is looked at.
    pub probe: Probe,
    /// Time between two looks.
    pub interval: Timespan,
    /// A look that takes longer has failed.
    pub timeout: Timespan,
    /// Successes in a row that make it good again.
    pub rise: u16,
    /// Failures in a row that make it bad.
    pub fall: u16,
    /// What follows when it becomes bad.
    pub on_failure: OnFailure,
    /// The service of `restartService`; present whenever `on_failure` asks for it.
    pub service: Option<String>,
    /// The role in which it runs.
    pub on: OnRole,
}

/// What a checker looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// A TCP connection can be opened.
    Tcp {
        /// Host name or address.
        host: String,
        /// Port.
        port: u16,
    },
    /// A command exits 0.
    Exec {
        /// Program and arguments; no shell.
        command: Vec<String>,
    },
    /// A host answers an ICMP echo.
    Ping {
        /// Host name or address.
        host: String,
    },
}

/// What follows when a checker becomes bad.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum OnFailure {
    /// All services are stopped and started here; counts towards `maxRestarts`.
    #[default]
    Restart,
    /// Only the named service is.
    RestartService,
    /// The other node becomes primary, if it can; counts towards `maxRestarts`.
    Failover,
    /// This node waits (not primary) until the checker is good again.
    Wait,
    /// The cluster stops on this node until an operator starts it.
    Stop,
    /// Only an event is recorded.
    Event,
}

/// The role in which a checker runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum OnRole {
    /// On the node that serves.
    #[default]
    Primary,
    /// On the other one.
    Standby,
    /// On both.
    Both,
}

impl OnRole {
    /// Whether the checker runs on a node that is (or is not) primary.
    pub const fn runs(self, primary: bool) -> bool {
        match self {
            Self::Primary => primary,
            Self::Standby => !primary,
            Self::Both => true,
        }
    }
}

/// A checker as it is written: exactly one of `tcp`, `exec`, `ping`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "Checker")]
struct CheckerFields {
    /// Unique within the cluster.
    #[schemars(length(min = 1, max = limits::NAME_MAX), extend("pattern" = NAME_PATTERN, "format" = "skc-name"))]
    name: String,
    /// A TCP connection can be opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tcp: Option<TcpFields>,
    /// A command exits 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    exec: Option<CommandFields>,
    /// A host answers an ICMP echo.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ping: Option<PingFields>,
    /// Time between two looks. Default: 2s.
    #[serde(default = "defaults::check_interval")]
    #[schemars(extend("x-skc-min" = "100ms", "x-skc-max" = "1h"))]
    interval: Timespan,
    /// A look that takes longer has failed; at most `interval`. Default: 1s.
    #[serde(default = "defaults::check_timeout")]
    #[schemars(extend("x-skc-min" = "10ms", "x-skc-max" = "1h"))]
    timeout: Timespan,
    /// Successes in a row that make it good again. Default: 1.
    #[serde(default = "defaults::rise")]
    #[schemars(range(min = 1, max = limits::RISE_FALL_MAX))]
    rise: u16,
    /// Failures in a row that make it bad. Default: 3.
    #[serde(default = "defaults::fall")]
    #[schemars(range(min = 1, max = limits::RISE_FALL_MAX))]
    fall: u16,
    /// What follows when it becomes bad. Default: restart.
    #[serde(default)]
    on_failure: OnFailure,
    /// The service that `restartService` restarts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = limits::NAME_MAX), extend("format" = "skc-name"))]
    service: Option<String>,
    /// The role in which it runs. Default: primary.
    #[serde(default)]
    on: OnRole,
}

/// A TCP port.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "TcpProbe")]
struct TcpFields {
    /// Host name or address. Default: 127.0.0.1.
    #[serde(default = "localhost")]
    #[schemars(length(min = 1, max = limits::HOST_MAX), extend("format" = "skc-host"))]
    host: String,
    /// Port.
    #[schemars(range(min = 1, max = 65535))]
    port: u16,
}

/// A command.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "CommandProbe")]
struct CommandFields {
    /// Program and arguments; no shell.
    #[schemars(length(min = 1, max = limits::ARGS_MAX), inner(length(max = limits::ARG_LEN_MAX)), extend("format" = "skc-argv"))]
    command: Vec<String>,
}

/// A host.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "PingProbe")]
struct PingFields {
    /// Host name or address.
    #[schemars(length(min = 1, max = limits::HOST_MAX), extend("format" = "skc-host"))]
    host: String,
}

fn localhost() -> String {
    "127.0.0.1".to_owned()
}

impl TryFrom<CheckerFields> for Checker {
    type Error = String;
    fn try_from(f: CheckerFields) -> Result<Self, String> {
        let probe = match (f.tcp, f.exec, f.ping) {
            (Some(TcpFields { host, port }), None, None) => Probe::Tcp { host, port },
            (None, Some(CommandFields { command }), None) => Probe::Exec { command },
            (None, None, Some(PingFields { host })) => Probe::Ping { host },
            _ => return Err(format!("checker {}: exactly one of tcp, exec, ping", f.name)),
        };
        if f.on_failure == OnFailure::RestartService && f.service.is_none() {
            return Err(format!("checker {}: onFailure restartService needs a service", f.name));
        }
        Ok(Self {
            name: f.name,
            probe,
            interval: f.interval,
            timeout: f.timeout,
            rise: f.rise,
            fall: f.fall,
            on_failure: f.on_failure,
            service: f.service,
            on: f.on,
        })
    }
}

impl From<Checker> for CheckerFields {
    fn from(c: Checker) -> Self {
        let (mut tcp, mut exec, mut ping) = (None, None, None);
        match c.probe {
            Probe::Tcp { host, port } => tcp = Some(TcpFields { host, port }),
            Probe::Exec { command } => exec = Some(CommandFields { command }),
            Probe::Ping { host } => ping = Some(PingFields { host }),
        }
        Self {
            name: c.name,
            tcp,
            exec,
            ping,
            interval: c.interval,
            timeout: c.timeout,
            rise: c.rise,
            fall: c.fall,
            on_failure: c.on_failure,
            service: c.service,
            on: c.on,
        }
    }
}
