//! Gives both nodes of a fresh lab their certificates, without a running agent.

use super::error::{LabError, Result};
use super::{Lab, Node};

/// Creates the pair's certificate authority and the state directory of each node.
pub fn pair(lab: &Lab) -> Result<()> {
    Err(LabError::Missing {
        what: format!("offline enrolment of {} and {} in lab {}", Node::NodeA, Node::NodeB, lab.name()),
        hint: "not yet in this version; `--no-agent` boots the machines only",
    })
}
