//! Waiting for a condition of a node's agent, and stopping its processes for a while.

use super::error::{Context, LabError, Result};
use super::process::{self, poll};
use super::{Lab, Node};
use crate::sys::namespace::{self, Signal};
use serde_json::Value;
use std::str::FromStr;
use std::time::Duration;

/// Longest time that one `skc status` may take before it is asked again.
const STATUS_LIMIT: Duration = Duration::from_secs(5);

/// What can be waited for; compared without regard to case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// The role is this (PRIM, SECOND, ALONE, WAIT, STOP).
    Role(String),
    /// The readiness is this (NotReady, Transient, Ready).
    Ready(String),
    /// The data state is this (UpToDate, Behind, ...).
    Data(String),
    /// The node holds every virtual IP.
    Vip,
    /// It does not hold any.
    NoVip,
    /// The agent answers at all.
    Agent,
    /// A reason with this code is shown.
    Reason(String),
}

impl Condition {
    /// Does it hold for this cluster object of `skc status -o json`?
    pub fn holds(&self, cluster: &Value) -> bool {
        let is =
            |key: &str, want: &str| cluster[key].as_str().is_some_and(|text| text.eq_ignore_ascii_case(want));
        let held = || cluster["vips"].as_array().into_iter().flatten().map(|vip| vip["held"] == true);
        match self {
            Self::Role(role) => is("role", role),
            Self::Ready(ready) => is("ready", ready),
            Self::Data(state) => is("data_state", state),
            Self::Vip => held().count() > 0 && held().all(|h| h),
            Self::NoVip => held().all(|h| !h),
            Self::Agent => true,
            Self::Reason(code) => cluster["reasons"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|reason| reason["code"] == code.as_str()),
        }
    }
}

impl FromStr for Condition {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        const ROLES: [&str; 5] = ["PRIM", "SECOND", "ALONE", "WAIT", "STOP"];
        const READY: [&str; 3] = ["Ready", "NotReady", "Transient"];
        const DATA: [&str; 6] = ["UpToDate", "Consistent", "Outdated", "Inconsistent", "Crashed", "Behind"];
        let known = |list: &[&str]| list.iter().any(|item| item.eq_ignore_ascii_case(text));
        match text {
            _ if known(&ROLES) => Ok(Self::Role(text.to_owned())),
            _ if known(&READY) => Ok(Self::Ready(text.to_owned())),
            _ if known(&DATA) => Ok(Self::Data(text.to_owned())),
            "vip" => Ok(Self::Vip),
            "no-vip" => Ok(Self::NoVip),
            "agent" => Ok(Self::Agent),
            code if code.starts_with("SKC-") => Ok(Self::Reason(code.to_owned())),
            other => Err(format!(
                "no condition {other:?}: there are {}, {}, {}, vip, no-vip, agent and error codes (SKC-E0123)",
                ROLES.join(", "),
                READY.join(", "),
                DATA.join(", ")
            )),
        }
    }
}

/// Which processes of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The agent's worker.
    Agent,
    /// The guard.
    Guard,
    /// Everything but PID 1.
    All,
}

impl Lab {
    /// `skc status -o json` inside the node: the clusters, or nothing while no agent answers.
    pub fn status(&self, node: Node) -> Result<Vec<Value>> {
        let program = self.program().to_string_lossy();
        let output = self.exec(node, &[&program, "status", "-o", "json"], STATUS_LIMIT)?;
        if !output.status.success() {
            return Err(LabError::Command {
                command: format!("{node}: skc status"),
                stderr: output.stderr.trim().to_owned(),
            });
        }
        match serde_json::from_str(&output.stdout) {
            Ok(Value::Array(clusters)) => Ok(clusters),
            _ => Err(LabError::Refused(format!("{node}: skc status answered {:?}", output.stdout))),
        }
    }

    /// The status object of one cluster in the node.
    pub fn cluster(&self, node: Node, cluster: &str) -> Result<Value> {
        let clusters = self.status(node)?;
        let found = clusters.into_iter().find(|c| c["name"] == cluster);
        found.ok_or_else(|| LabError::Refused(format!("{node} knows no cluster {cluster:?}")))
    }

    /// Waits until all `conditions` hold at once in `node`; `cluster` `None` = for every cluster, at least one.
    pub fn wait(
        &self,
        node: Node,
        cluster: Option<&str>,
        conditions: &[Condition],
        limit: Duration,
    ) -> Result<()> {
        let mut last = String::new();
        let met = poll(limit, || {
            let clusters = match self.status(node) {
                Ok(clusters) => clusters,
                Err(error) => {
                    last = error.to_string();
                    return None;
                }
            };
            if conditions == [Condition::Agent] {
                return Some(());
            }
            let mut ours =
                clusters.iter().filter(|c| cluster.is_none_or(|name| c["name"] == name)).peekable();
            let any = ours.peek().is_some();
            last = serde_json::to_string(&clusters).unwrap_or_default();
            (any && ours.all(|c| conditions.iter().all(|condition| condition.holds(c)))).then_some(())
        });
        met.ok_or_else(|| LabError::Timeout {
            what: format!("{conditions:?} at {node}"),
            after: limit,
            detail: format!("; last seen: {last}"),
        })
    }

    /// Processes of a node, as the host numbers them.
    pub fn processes(&self, node: Node, part: Part) -> Result<Vec<u32>> {
        let boot = self.booted(node)?;
        let space = process::namespace(boot.init, "pid");
        let all = super::node::running(space.as_deref(), boot.init);
        let verb = |pid: u32| {
            let arguments = process::arguments(pid);
            let agent = arguments.get(1).is_some_and(|verb| verb == "agent");
            (agent, arguments.iter().any(|argument| argument == "--worker"))
        };
        Ok(all
            .into_iter()
            .filter(|pid| match part {
                Part::All => true,
                Part::Agent => verb(*pid) == (true, true),
                Part::Guard => verb(*pid) == (true, false),
            })
            .collect())
    }

    fn signal_part(&self, node: Node, part: Part, signal: Signal) -> Result<()> {
        let pids = self.processes(node, part)?;
        if pids.is_empty() {
            return Err(LabError::Refused(format!("nothing like {part:?} runs in {node}")));
        }
        for pid in pids {
            namespace::signal(pid, signal).context("signal a process of", node.name())?;
        }
        Ok(())
    }

    /// SIGSTOP: the processes hang, the kernel lives.
    pub fn stall(&self, node: Node, part: Part) -> Result<()> {
        self.signal_part(node, part, Signal::Stop)
    }

    /// SIGCONT.
    pub fn go(&self, node: Node, part: Part) -> Result<()> {
        self.signal_part(node, part, Signal::Continue)
    }

    /// SIGKILL, guard first so that it starts nothing anew.
    pub fn kill_part(&self, node: Node, part: Part) -> Result<()> {
        self.signal_part(node, part, Signal::Kill)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn conditions_are_read_from_a_status_object() {
        let cluster = json!({"role": "PRIM", "ready": "Ready", "data_state": "UpToDate",
            "vips": [{"address": "10.77.1.100/24", "held": true}], "reasons": [{"code": "SKC-E0001"}]});
        for text in ["PRIM", "prim", "ready", "UpToDate", "vip", "SKC-E0001"] {
            assert!(text.parse::<Condition>().unwrap().holds(&cluster), "{text}");
        }
        for text in ["SECOND", "NotReady", "Behind", "no-vip", "SKC-E0002"] {
            assert!(!text.parse::<Condition>().unwrap().holds(&cluster), "{text}");
        }
        assert!("nonsense".parse::<Condition>().is_err());
    }
}
