//! What the schema cannot say: rules between the fields of one document.
//!
//! Runs on documents that may have other problems, reports everything it can see, and never twice what `shape`
//! reports. Rules about time are in `timers`, rules between documents in `across`.

use super::finding::{Path, Problem};
use super::view::View;
use super::{Cidr, defaults, formats, limits, nearest, timers};
use crate::base::patterns::PatternError;
use crate::base::{Patterns, Size, codes};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Trees that cannot be mirrored: the kernel's, and skc's own. Neither what holds them nor what they hold.
const RESERVED: &[&str] = &["/proc", "/sys", "/dev", "/run/skc", "/var/lib/skc"];

/// Longest name of an environment variable.
const ENV_NAME_MAX: usize = 256;

pub(super) fn check(root: &View<'_>) -> Vec<Problem> {
    let spec = root.get("spec");
    let mut out = Vec::new();
    not_yet(&spec, &mut out);
    labels(&root.get("metadata"), &mut out);
    names(&spec, &mut out);
    nodes(&spec, &mut out);
    directories(&spec, &mut out);
    patterns(&spec, &mut out);
    addresses(&spec, &mut out);
    services(&spec, &mut out);
    checkers(&spec, &mut out);
    failover(&spec, &mut out);
    timers::check(&spec, &mut out);
    out
}

fn not_yet(spec: &View<'_>, out: &mut Vec<Problem>) {
    let mut refuse = |view: &View<'_>, what: String, hint: &str| {
        let problem = Problem::new(&view.path, codes::SPEC_NOT_YET, format!("{what} is not supported yet"));
        out.push(problem.hint(hint));
    };
    let mode = spec.get("mode");
    if matches!(mode.text(), "light" | "farm") {
        refuse(&mode, format!("mode: {}", mode.text()), "use mirror");
    }
    let range = spec.get("replication").get("range");
    if range.text().parse::<Size>().is_ok_and(|size| size != defaults::range()) {
        let hint = format!("use {} or remove it", defaults::range());
        refuse(&range, format!("range: {}", range.text()), &hint);
    }
    for service in spec.get("services").items() {
        let unit = service.get("systemd");
        if unit.is_present() {
            let name = if unit.text().is_empty() { "UNIT" } else { unit.text() };
            let hint = format!(
                "use exec: {{start: [systemctl, start, {name}], stop: [systemctl, stop, {name}], status: [systemctl, is-active, -q, {name}]}}"
            );
            refuse(&unit, "systemd".to_owned(), &hint);
        }
    }
}

fn labels(metadata: &View<'_>, out: &mut Vec<Problem>) {
    for field in ["labels", "annotations"] {
        for (key, view) in metadata.get(field).entries() {
            let lengths = [("key", key.len()), ("value", view.text().len())];
            if let Some((part, length)) = lengths.iter().find(|(_, l)| *l > limits::LABEL_VALUE_MAX) {
                let max = limits::LABEL_VALUE_MAX;
                let message = format!("the {part} has {length} bytes; at most {max} are allowed");
                out.push(Problem::new(&view.path, codes::SPEC_RANGE, message));
            }
        }
    }
}

/// Names and paths that stand for one thing each.
fn names(spec: &View<'_>, out: &mut Vec<Problem>) {
    for (list, field, what) in [
        ("nodes", "name", "node"),
        ("directories", "path", "directory"),
        ("services", "name", "service"),
        ("checkers", "name", "checker"),
    ] {
        let mut seen: BTreeMap<&str, Path> = BTreeMap::new();
        for view in spec.get(list).items().map(|item| item.get(field)) {
            if view.text().is_empty() {
                continue;
            }
            match seen.get(view.text()) {
                Some(first) => {
                    let message = format!("{what} {:?} stands here and in {first}", view.text());
                    out.push(Problem::new(&view.path, codes::SPEC_DUPLICATE_NAME, message));
                }
                None => drop(seen.insert(view.text(), view.path.clone())),
            }
        }
    }
}

/// The i-th addresses of the two nodes form one path, so both need equally many of equal kind.
fn nodes(spec: &View<'_>, out: &mut Vec<Problem>) {
    let nodes: Vec<View<'_>> = spec.get("nodes").items().collect();
    let [a, b] = nodes.as_slice() else { return };
    let (a, b): (Vec<_>, Vec<_>) =
        (a.get("addresses").items().collect(), b.get("addresses").items().collect());
    if a.is_empty() || b.is_empty() {
        return;
    }
    if a.len() != b.len() {
        let path = nodes[1].get("addresses").path;
        let message = format!("{} addresses here, {} at {}", b.len(), a.len(), nodes[0].path);
        let problem = Problem::new(&path, codes::SPEC_CHOICE, message);
        out.push(
            problem
                .at_key()
                .hint("the first addresses of both nodes form one path, the second ones the next"),
        );
    }
    for (a, b) in a.iter().zip(&b) {
        let (Some(x), Some(y)) = (a.ip(), b.ip()) else { continue };
        if x.is_ipv4() != y.is_ipv4() {
            let message = format!("{y} cannot reach {x} at {}: one is IPv4, the other IPv6", a.path);
            out.push(Problem::new(&b.path, codes::SPEC_CHOICE, message));
        } else if x.is_loopback() != y.is_loopback() {
            let (view, ip) = if x.is_loopback() { (a, x) } else { (b, y) };
            let message = format!("{ip} is a loopback address: it reaches only the node itself");
            out.push(Problem::new(&view.path, codes::SPEC_ADDRESS, message));
        }
    }
}

fn directories(spec: &View<'_>, out: &mut Vec<Problem>) {
    let views: Vec<View<'_>> = spec.get("directories").items().map(|d| d.get("path")).collect();
    for (i, view) in views.iter().enumerate() {
        let path = view.text();
        if !path.starts_with('/') {
            continue;
        }
        if let Some(reserved) = reserved(path) {
            let message = if holds(path, reserved) {
                format!("{path} holds {reserved}, which cannot be mirrored")
            } else {
                format!("{path} lies in {reserved}, which cannot be mirrored")
            };
            out.push(Problem::new(&view.path, codes::SPEC_RESERVED_PATH, message));
            continue;
        }
        for other in views[..i].iter().filter(|other| reserved(other.text()).is_none()) {
            if let Some(message) = overlap(path, other.text()) {
                let message = format!("{message} ({})", other.path);
                out.push(Problem::new(&view.path, codes::SPEC_OVERLAP, message));
            }
        }
    }
}

/// What of a directory stays on each node.
fn patterns(spec: &View<'_>, out: &mut Vec<Problem>) {
    for directory in spec.get("directories").items() {
        for field in ["exclude", "include"] {
            let list = directory.get(field);
            let views: Vec<View<'_>> = list.items().filter(|item| item.value.is_string()).collect();
            let texts: Vec<&str> = views.iter().map(View::text).collect();
            let alone = texts
                .iter()
                .zip(&views)
                .filter_map(|(text, view)| Patterns::new(&[*text], &[]).err().map(|bad| (view, bad.error)));
            let mut bad: Vec<(&View<'_>, PatternError)> = alone.collect();
            if bad.is_empty()
                && let Err(together) = Patterns::new(&texts, &[])
            {
                bad.extend(views.get(together.index).map(|view| (view, together.error)));
            }
            for (view, error) in bad {
                let message = format!("the pattern {:?} cannot be used: {error}", view.text());
                let problem = Problem::new(&view.path, codes::SPEC_PATTERN, message);
                out.push(match pattern_hint(view.text(), &error) {
                    Some(hint) => problem.hint(hint),
                    None => problem,
                });
            }
        }
    }
}

fn pattern_hint(text: &str, error: &PatternError) -> Option<String> {
    match error {
        PatternError::EmptyComponent => {
            let plain: Vec<&str> = text.split('/').filter(|part| !part.is_empty()).collect();
            let root = if text.starts_with('/') { "/" } else { "" };
            Some(format!("write {root}{}: what lies below is meant with it", plain.join("/")))
        }
        PatternError::Everything => Some("remove it, or remove the directory".to_owned()),
        PatternError::DoubleStar => Some("write a/**/b; within a name one * is enough".to_owned()),
        _ => None,
    }
}

fn reserved(path: &str) -> Option<&'static str> {
    RESERVED.iter().copied().find(|r| holds(path, r) || holds(r, path))
}

/// Whether `inner` is `outer` or lies within it.
pub(super) fn holds(outer: &str, inner: &str) -> bool {
    outer == "/" || inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Says how two different directories overlap, if they do. Equal ones are duplicates, not overlaps.
pub(super) fn overlap(path: &str, other: &str) -> Option<String> {
    if path == other || !other.starts_with('/') {
        None
    } else if holds(other, path) {
        Some(format!("{path} lies within {other}"))
    } else if holds(path, other) {
        Some(format!("{path} holds {other}"))
    } else {
        None
    }
}

/// Every address has one owner and one role.
fn addresses(spec: &View<'_>, out: &mut Vec<Problem>) {
    let mut owners: BTreeMap<IpAddr, (&str, Path)> = BTreeMap::new();
    let mut claim = |ip: IpAddr, role: &'static str, view: &View<'_>| match owners.get(&ip) {
        Some((owner, first)) if *owner == role => {
            let message = format!("{ip} stands here and in {first}");
            out.push(Problem::new(&view.path, codes::SPEC_DUPLICATE_ADDRESS, message));
        }
        Some((owner, first)) => {
            let message = format!("{ip} is {role} here and {owner} in {first}");
            out.push(Problem::new(&view.path, codes::SPEC_ADDRESS_ROLE, message));
        }
        None => drop(owners.insert(ip, (role, view.path.clone()))),
    };
    for view in spec.get("nodes").items().flat_map(|n| n.get("addresses").items()) {
        if let Some(ip) = view.ip() {
            claim(ip, "a node's address", &view);
        }
    }
    for view in spec.get("arbitration").get("ping").items() {
        if let Some(ip) = view.ip() {
            claim(ip, "a witness", &view);
        }
    }
    for view in spec.get("virtualIPs").items().map(|v| v.get("address")) {
        if let Ok(vip) = view.text().parse::<Cidr>() {
            claim(vip.ip(), "a virtual IP", &view);
        }
    }
    vip_networks(spec, out);
}

/// A virtual IP without an interface goes where a node address of its network is; each node needs one.
fn vip_networks(spec: &View<'_>, out: &mut Vec<Problem>) {
    for vip in spec.get("virtualIPs").items().filter(|v| !v.get("interface").is_present()) {
        let view = vip.get("address");
        let Ok(cidr) = view.text().parse::<Cidr>() else { continue };
        let lacking = spec.get("nodes").items().find(|node| {
            let mut ips = node.get("addresses").items().peekable();
            ips.peek().is_some() && ips.all(|ip| ip.ip().is_some_and(|ip| !cidr.contains(ip)))
        });
        if let Some(node) = lacking {
            let name = node.get("name").text();
            let message = format!("no address of node {name:?} lies in the network of {cidr}");
            let problem = Problem::new(&view.path, codes::SPEC_VIP_NETWORK, message);
            out.push(problem.hint("correct the address or its prefix length, or name the interface"));
        }
    }
}

fn services(spec: &View<'_>, out: &mut Vec<Problem>) {
    for service in spec.get("services").items().filter(|s| s.value.is_object()) {
        let exec = service.get("exec");
        let has = |field| exec.get(field).is_present();
        let managed = ["start", "stop", "status"];
        let lacking: Vec<&str> = managed.into_iter().filter(|f| !has(f)).collect();
        let message = if !exec.is_present() {
            // A systemd unit was reported as "not yet".
            (!service.get("systemd").is_present()).then(|| format!("{} lacks exec", service.path))
        } else if !exec.value.is_object() {
            None
        } else if has("run") {
            let other = managed.into_iter().find(|f| has(f));
            other.map(|other| format!("{} has both run and {other}", exec.path))
        } else if lacking.is_empty() {
            None
        } else {
            Some(format!("{} lacks {}", exec.path, lacking.join(", ")))
        };
        if let Some(message) = message {
            let path = if exec.is_present() { &exec.path } else { &service.path };
            let problem = Problem::new(path, codes::SPEC_CHOICE, message).at_key();
            out.push(problem.hint("either run (stays in the foreground), or start, stop and status"));
        }
        for (name, view) in service.get("env").entries() {
            let good = (1..=ENV_NAME_MAX).contains(&name.len()) && !name.contains(['=', '\0']);
            if !good {
                let message = format!("{name:?} is no name of an environment variable");
                out.push(Problem::new(&view.path, codes::SPEC_TEXT, message).at_key());
            }
            if view.text().len() > limits::ARG_LEN_MAX {
                let message = format!("the value has more than {} bytes", limits::ARG_LEN_MAX);
                out.push(Problem::new(&view.path, codes::SPEC_RANGE, message));
            }
        }
    }
}

fn checkers(spec: &View<'_>, out: &mut Vec<Problem>) {
    let services: Vec<&str> = spec.get("services").items().map(|s| s.get("name").text()).collect();
    for checker in spec.get("checkers").items().filter(|c| c.value.is_object()) {
        let kinds: Vec<&str> =
            ["tcp", "exec", "ping"].into_iter().filter(|k| checker.get(k).is_present()).collect();
        let to_come = ["http", "systemd"].iter().any(|k| checker.get(k).is_present());
        if kinds.len() > 1 || (kinds.is_empty() && !to_come) {
            let message = match kinds.as_slice() {
                [] => format!("{} says not what to check", checker.path),
                many => format!("{} has {} at once", checker.path, many.join(" and ")),
            };
            let problem = Problem::new(&checker.path, codes::SPEC_CHOICE, message);
            out.push(problem.hint("exactly one of tcp, exec and ping"));
        }
        let service = checker.get("service");
        if service.is_present() {
            reference(&service, &services, "service", out);
        } else if checker.get("onFailure").text() == "restartService" {
            let message = format!("{} says not which service to restart", checker.path);
            let problem = Problem::new(&checker.get("onFailure").path, codes::SPEC_MISSING_FIELD, message);
            out.push(problem.hint("add service: NAME"));
        }
        let (action, role) = (checker.get("onFailure").text(), checker.get("on").text());
        if role == "standby" && matches!(action, "" | "restart" | "restartService") {
            let message = "nothing runs on the standby that could be restarted".to_owned();
            let view = if action.is_empty() { checker.get("on") } else { checker.get("onFailure") };
            let problem = Problem::new(&view.path, codes::SPEC_CHOICE, message);
            out.push(problem.hint("use onFailure: wait, stop or event"));
        }
    }
}

fn failover(spec: &View<'_>, out: &mut Vec<Problem>) {
    let nodes: Vec<&str> = spec.get("nodes").items().map(|n| n.get("name").text()).collect();
    let failover = spec.get("failover");
    let preferred = failover.get("preferredPrimary");
    if preferred.is_present() {
        reference(&preferred, &nodes, "node", out);
    } else if failover.get("failback").text() == "automatic" {
        let message = "failback: automatic needs to know where to".to_owned();
        let problem = Problem::new(&failover.get("failback").path, codes::SPEC_MISSING_FIELD, message);
        out.push(problem.hint("add preferredPrimary: NODE"));
    }
}

fn reference(view: &View<'_>, known: &[&str], what: &str, out: &mut Vec<Problem>) {
    let name = view.text();
    if known.contains(&name) || !formats::is_name(name) {
        return; // a malformed name was reported as such
    }
    let hint = match nearest(name, known.iter().copied()) {
        Some(word) => format!("did you mean {word}?"),
        None if known.is_empty() => format!("there is no {what}"),
        None => format!("{what}s here: {}", known.join(", ")),
    };
    let problem = Problem::new(&view.path, codes::SPEC_REFERENCE, format!("there is no {what} {name:?}"));
    out.push(problem.hint(hint));
}
