//! What the demo takes from its spec: names, paths and the address that clients use.

use crate::lab::{LabError, Result};
use serde_yaml::Value;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

/// The spec that the repository shows as a model; `--spec` takes another.
const EMBEDDED: &str = include_str!("../../../specs/clusters/ledger.yaml");

/// A spec and what the demo needs of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setup {
    /// The document as it will be applied.
    pub text: String,
    /// Cluster name.
    pub cluster: String,
    /// The first directory.
    pub directory: String,
    /// Where clients connect: first virtual IP, port of the first service's `--listen`.
    pub connect: SocketAddr,
    /// `heartbeat.timeout` as written.
    pub timeout: String,
}

impl Setup {
    /// Reads the spec from `file` (the embedded one if `None`); `timeout` replaces `heartbeat.timeout`.
    pub fn read(file: Option<&Path>, timeout: Option<&str>) -> Result<Self> {
        let text = match file {
            None => EMBEDDED.to_owned(),
            Some(path) => std::fs::read_to_string(path).map_err(|source| LabError::Io {
                op: "read",
                path: path.to_owned(),
                source,
            })?,
        };
        Self::parse(text, timeout)
    }

    fn parse(text: String, timeout: Option<&str>) -> Result<Self> {
        let lacks = |what: &str| LabError::Refused(format!("the demo's spec has no {what}"));
        let mut root: Value = serde_yaml::from_str(&text)
            .map_err(|error| LabError::Refused(format!("the demo's spec is not YAML: {error}")))?;
        let text = match timeout {
            None => text,
            Some(timeout) => {
                let spec =
                    root.get_mut("spec").and_then(Value::as_mapping_mut).ok_or_else(|| lacks("spec"))?;
                let mut heartbeat = serde_yaml::Mapping::new();
                heartbeat.insert("timeout".into(), timeout.into());
                spec.insert("heartbeat".into(), heartbeat.into());
                serde_yaml::to_string(&root).map_err(|error| {
                    LabError::Refused(format!("the demo's spec cannot be written: {error}"))
                })?
            }
        };
        let spec = &root["spec"];
        let string = |value: &Value, what: &str| value.as_str().map(str::to_owned).ok_or_else(|| lacks(what));
        let address = string(&spec["virtualIPs"][0]["address"], "spec.virtualIPs[0].address")?;
        let ip: Option<IpAddr> = address.split('/').next().and_then(|ip| ip.parse().ok());
        let argv =
            spec["services"][0]["exec"]["run"].as_sequence().ok_or_else(|| lacks("service with exec.run"))?;
        let listen =
            argv.iter().skip_while(|argument| **argument != "--listen").nth(1).and_then(Value::as_str);
        let port = listen.and_then(|listen| listen.rsplit_once(':')?.1.parse().ok());
        Ok(Self {
            cluster: string(&root["metadata"]["name"], "metadata.name")?,
            directory: string(&spec["directories"][0]["path"], "spec.directories[0].path")?,
            connect: SocketAddr::new(
                ip.ok_or_else(|| lacks("usable virtual IP"))?,
                port.ok_or_else(|| lacks("--listen ADDRESS:PORT in its first service"))?,
            ),
            timeout: spec["heartbeat"]["timeout"].as_str().unwrap_or("2s").to_owned(),
            text,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_spec_has_all_the_demo_needs() {
        let setup = Setup::read(None, None).unwrap();
        assert_eq!((setup.cluster.as_str(), setup.directory.as_str()), ("ledger", "/srv/ledger"));
        assert_eq!(setup.connect.ip().to_string(), "10.77.1.100");
        let quick = Setup::read(None, Some("500ms")).unwrap();
        assert_eq!((quick.timeout.as_str(), quick.connect), ("500ms", setup.connect));
        assert!(quick.text.contains("timeout: 500ms"));
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = Setup::parse("spec: {}".into(), None).unwrap_err().to_string();
        assert!(error.contains("virtualIPs"), "{error}");
    }
}
