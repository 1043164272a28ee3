//! From four machines to a running pair: certificates, agents, the first spec.

use super::error::{LabError, Result};
use super::wait::Condition;
use super::{Lab, Node};
use crate::link::pki::{NodeSetup, PORT, enroll_offline};
use crate::store::StateDir;
use std::path::Path;
use std::time::Duration;

/// Longest time until a fresh agent answers, on a machine that builds something else meanwhile.
const AGENT_LIMIT: Duration = Duration::from_secs(20);
/// Longest time for `skc apply`.
const APPLY_LIMIT: Duration = Duration::from_secs(60);

impl Lab {
    /// Creates the pair: authority, certificates and state directories of both nodes.
    pub fn enrol(&self) -> Result<()> {
        let refused = |error: &dyn std::fmt::Display| LabError::Refused(format!("enrol the pair: {error}"));
        let state = |node: Node| StateDir::open(&self.node_dir(node).join("state")).map_err(|e| refused(&e));
        let setup = |node: Node| NodeSetup {
            name: node.name().to_owned(),
            addresses: node.nets().iter().map(|net| node.address(*net).into()).collect(),
            port: PORT,
        };
        let (a, b) = (state(Node::NodeA)?, state(Node::NodeB)?);
        enroll_offline((&a, setup(Node::NodeA)), (&b, setup(Node::NodeB))).map_err(|e| refused(&e))?;
        Ok(())
    }

    /// Enrols the pair, starts both agents and waits until both answer.
    pub fn start_pair(&self) -> Result<()> {
        self.enrol()?;
        for node in Node::PAIR {
            self.start_agent(node)?;
        }
        for node in Node::PAIR {
            self.wait(node, None, &[Condition::Agent], AGENT_LIMIT)
                .map_err(|error| self.with_log(node, error))?;
        }
        Ok(())
    }

    /// An agent that does not answer has said why, most likely.
    fn with_log(&self, node: Node, error: LabError) -> LabError {
        let log = std::fs::read_to_string(self.agent_log(node)).unwrap_or_default();
        let last: Vec<&str> = log.lines().rev().take(5).collect();
        let last: Vec<&str> = last.into_iter().rev().collect();
        match error {
            LabError::Timeout { what, after, detail } => LabError::Timeout {
                what,
                after,
                detail: format!("{detail}; its log ends with: {}", last.join(" | ")),
            },
            other => other,
        }
    }

    /// `skc apply -f FILE` inside `node`; returns what it said.
    pub fn apply(&self, node: Node, spec: &Path) -> Result<String> {
        let spec = std::path::absolute(spec).map_err(|source| LabError::Io {
            op: "resolve",
            path: spec.to_owned(),
            source,
        })?;
        self.skc(node, &["apply", "-f", &spec.to_string_lossy()], APPLY_LIMIT)
    }

    /// Runs `skc ARGS` inside `node`; a failure is an error.
    pub fn skc(&self, node: Node, args: &[&str], limit: Duration) -> Result<String> {
        let program = self.program().to_string_lossy();
        let argv: Vec<&str> = std::iter::once(&*program).chain(args.iter().copied()).collect();
        self.run(node, &argv, limit)
    }
}
