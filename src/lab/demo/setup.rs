//! What the demo takes from its spec: names, paths and the address that clients use.

use super::app::App;
use crate::lab::{LabError, Result};
use serde_yaml::Value;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

/// A spec and what the demo needs of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setup {
    /// The document as it will be applied.
    pub text: String,
    /// The same without services and checkers: the mirror goes on, the application has ended in order.
    pub at_rest: String,
    /// Cluster name.
    pub cluster: String,
    /// The first directory.
    pub directory: String,
    /// Where clients connect: first virtual IP, port of the first `--listen` of a service.
    pub connect: SocketAddr,
    /// `heartbeat.timeout` as written.
    pub timeout: String,
}

impl Setup {
    /// Reads the spec from `file` (the model of `app` if `None`); `timeout` replaces `heartbeat.timeout`.
    pub fn read(app: App, file: Option<&Path>, timeout: Option<&str>) -> Result<Self> {
        let text = match file {
            None => app.spec().to_owned(),
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
                written(&root)?
            }
        };
        let at_rest = written(&without_services(root.clone()))?;
        let spec = &root["spec"];
        let string = |value: &Value, what: &str| value.as_str().map(str::to_owned).ok_or_else(|| lacks(what));
        let address = string(&spec["virtualIPs"][0]["address"], "spec.virtualIPs[0].address")?;
        let ip: Option<IpAddr> = address.split('/').next().and_then(|ip| ip.parse().ok());
        let services = spec["services"].as_sequence().into_iter().flatten();
        let port =
            services.filter_map(|service| service["exec"]["run"].as_sequence()).find_map(|argv| port(argv));
        Ok(Self {
            cluster: string(&root["metadata"]["name"], "metadata.name")?,
            directory: string(&spec["directories"][0]["path"], "spec.directories[0].path")?,
            connect: SocketAddr::new(
                ip.ok_or_else(|| lacks("usable virtual IP"))?,
                port.ok_or_else(|| lacks("service whose exec.run has --listen ADDRESS:PORT"))?,
            ),
            timeout: spec["heartbeat"]["timeout"].as_str().unwrap_or("2s").to_owned(),
            text,
            at_rest,
        })
    }
}

/// The port of `--listen ADDRESS:PORT`.
fn port(argv: &[Value]) -> Option<u16> {
    let listen = argv.iter().skip_while(|argument| **argument != "--listen").nth(1)?.as_str()?;
    listen.rsplit_once(':')?.1.parse().ok()
}

fn without_services(mut root: Value) -> Value {
    if let Some(spec) = root.get_mut("spec").and_then(Value::as_mapping_mut) {
        for field in ["services", "checkers"] {
            spec.remove(field);
        }
    }
    root
}

fn written(root: &Value) -> Result<String> {
    serde_yaml::to_string(root)
        .map_err(|error| LabError::Refused(format!("the demo's spec cannot be written: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_specs_have_all_the_demo_needs() {
        for (app, cluster, directory) in [
            (App::Ledger, "ledger", "/srv/ledger"),
            (App::Sqlite, "notes", "/srv/notes"),
            (App::Postgres, "shop", "/srv/pg"),
        ] {
            let setup = Setup::read(app, None, None).unwrap();
            assert_eq!((setup.cluster.as_str(), setup.directory.as_str()), (cluster, directory));
            assert_eq!(setup.connect.to_string(), "10.77.1.100:7700");
            let quick = Setup::read(app, None, Some("500ms")).unwrap();
            assert_eq!((quick.timeout.as_str(), quick.connect), ("500ms", setup.connect));
            assert!(quick.text.contains("timeout: 500ms"));
            let rest = crate::spec::load_one("rest.yaml", &quick.at_rest).unwrap();
            assert!(rest.spec.services.is_empty() && rest.spec.checkers.is_empty());
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = Setup::parse("spec: {}".into(), None).unwrap_err().to_string();
        assert!(error.contains("virtualIPs"), "{error}");
    }
}
