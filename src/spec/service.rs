//! `spec.services[]`: what runs on the primary.

use super::types::NAME_PATTERN;
use super::{defaults, limits};
use crate::base::Timespan;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A service: either a program supervised in the foreground or three commands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "ServiceFields", into = "ServiceFields")]
pub struct Service {
    /// Unique within the cluster.
    pub name: String,
    /// How it is started and stopped.
    pub exec: Exec,
    /// Added to the environment of every command.
    pub env: BTreeMap<String, String>,
    /// The user who runs it; `None` = the agent's own.
    pub user: Option<String>,
    /// Where commands run; `None` = `/`.
    pub working_directory: Option<PathBuf>,
    /// A start that takes longer has failed.
    pub start_timeout: Timespan,
    /// A stop that takes longer is followed by SIGKILL to the whole process group.
    pub stop_timeout: Timespan,
    /// Time between two looks at its state.
    pub status_interval: Timespan,
}

/// The commands of a service, each an argument vector; no shell is involved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exec {
    /// One program that stays in the foreground; its exit is a failure, SIGTERM its stop.
    Run {
        /// Program and arguments.
        argv: Vec<String>,
    },
    /// A service that goes into the background by itself.
    Commands {
        /// Exit 0 = started.
        start: Vec<String>,
        /// Exit 0 = stopped.
        stop: Vec<String>,
        /// Exit 0 = running.
        status: Vec<String>,
    },
}

/// A service as it is written.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "Service")]
struct ServiceFields {
    /// Unique within the cluster.
    #[schemars(length(min = 1, max = limits::NAME_MAX), extend("pattern" = NAME_PATTERN, "format" = "skc-name"))]
    name: String,
    /// Commands, each a list of program and arguments (no shell): `run`, or `start`, `stop` and `status`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    exec: Option<ExecFields>,
    /// A systemd unit (not yet).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    systemd: Option<String>,
    /// Added to the environment of every command.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = limits::ENV_MAX))]
    env: BTreeMap<String, String>,
    /// The user who runs it. Default: the agent's own (root).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = limits::USER_MAX), extend("format" = "skc-user"))]
    user: Option<String>,
    /// Where its commands run. Default: /.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", length(min = 1, max = limits::PATH_MAX), extend("format" = "skc-path"))]
    working_directory: Option<PathBuf>,
    /// A start that takes longer has failed. Default: 30s.
    #[serde(default = "defaults::start_timeout")]
    #[schemars(extend("x-skc-min" = "100ms", "x-skc-max" = "1h"))]
    start_timeout: Timespan,
    /// A stop that takes longer is followed by SIGKILL. Default: 10s.
    #[serde(default = "defaults::stop_timeout")]
    #[schemars(extend("x-skc-min" = "100ms", "x-skc-max" = "1h"))]
    stop_timeout: Timespan,
    /// Time between two looks at its state. Default: 2s.
    #[serde(default = "defaults::status_interval")]
    #[schemars(extend("x-skc-min" = "100ms", "x-skc-max" = "1h"))]
    status_interval: Timespan,
}

/// Either `run`, or `start`, `stop` and `status`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "Exec")]
struct ExecFields {
    /// A program that stays in the foreground: its exit is a failure, SIGTERM its stop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = limits::ARGS_MAX), inner(length(max = limits::ARG_LEN_MAX)), extend("format" = "skc-argv"))]
    run: Option<Vec<String>>,
    /// Exit 0 = started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = limits::ARGS_MAX), inner(length(max = limits::ARG_LEN_MAX)), extend("format" = "skc-argv"))]
    start: Option<Vec<String>>,
    /// Exit 0 = stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = limits::ARGS_MAX), inner(length(max = limits::ARG_LEN_MAX)), extend("format" = "skc-argv"))]
    stop: Option<Vec<String>>,
    /// Exit 0 = running.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = limits::ARGS_MAX), inner(length(max = limits::ARG_LEN_MAX)), extend("format" = "skc-argv"))]
    status: Option<Vec<String>>,
}

impl TryFrom<ServiceFields> for Service {
    type Error = String;
    fn try_from(f: ServiceFields) -> Result<Self, String> {
        if f.systemd.is_some() {
            return Err(format!("service {}: systemd units are not supported yet", f.name));
        }
        let exec = match f.exec.unwrap_or_default() {
            ExecFields { run: Some(argv), start: None, stop: None, status: None } => Exec::Run { argv },
            ExecFields { run: None, start: Some(start), stop: Some(stop), status: Some(status) } => {
                Exec::Commands { start, stop, status }
            }
            _ => {
                return Err(format!("service {}: exec holds either run, or start, stop and status", f.name));
            }
        };
        Ok(Self {
            name: f.name,
            exec,
            env: f.env,
            user: f.user,
            working_directory: f.working_directory,
            start_timeout: f.start_timeout,
            stop_timeout: f.stop_timeout,
            status_interval: f.status_interval,
        })
    }
}

impl From<Service> for ServiceFields {
    fn from(s: Service) -> Self {
        let exec = match s.exec {
            Exec::Run { argv } => ExecFields { run: Some(argv), ..ExecFields::default() },
            Exec::Commands { start, stop, status } => {
                ExecFields { run: None, start: Some(start), stop: Some(stop), status: Some(status) }
            }
        };
        Self {
            name: s.name,
            exec: Some(exec),
            systemd: None,
            env: s.env,
            user: s.user,
            working_directory: s.working_directory,
            start_timeout: s.start_timeout,
            stop_timeout: s.stop_timeout,
            status_interval: s.status_interval,
        }
    }
}
