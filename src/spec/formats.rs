//! Texts with a meaning: what each `format` of the schema demands.

use super::cidr::CidrError;
use super::finding::{Path, Problem};
use super::{Cidr, limits};
use crate::base::codes;
use crate::base::units::UnitError;
use crate::base::{Rate, Size, Timespan};
use serde_json::Value;
use std::net::IpAddr;
use std::str::FromStr;

/// Whether a bare number at this place is a forgotten unit.
pub(super) fn is_quantity(format: &str) -> bool {
    matches!(format, "skc-duration" | "skc-size" | "skc-rate")
}

/// Checks a text of `format`; `bounds` are the least and greatest quantity, "" for none.
pub(super) fn text(format: &str, text: &str, bounds: (&str, &str), path: &Path) -> Option<Problem> {
    if text.contains('\0') {
        return Some(Problem::new(path, codes::SPEC_TEXT, format!("{path} contains a NUL character")));
    }
    match format {
        "skc-duration" => quantity::<Timespan, _>(text, bounds, path, Timespan::as_millis, "2s"),
        "skc-size" => quantity::<Size, _>(text, bounds, path, Size::as_bytes, "64KiB"),
        "skc-rate" => quantity::<Rate, _>(text, bounds, path, rate_rank, "adaptive"),
        "skc-name" => malformed(!is_name(text), text, path, "a name").map(|p| {
            p.hint(
                suggest_name(text)
                    .unwrap_or_else(|| "names are lower-case letters, digits and inner hyphens".to_owned()),
            )
        }),
        "skc-host" => malformed(!is_host(text), text, path, "a host name or address"),
        "skc-user" => malformed(!is_user(text), text, path, "a user name"),
        "skc-interface" => malformed(!is_interface(text), text, path, "an interface name"),
        "skc-path" => path_text(text, path),
        "skc-cidr" => cidr(text, path),
        "ip" => address(text, path),
        _ => None,
    }
}

/// Checks a list of `format`.
pub(super) fn list(format: &str, items: &[Value], path: &Path) -> Option<Problem> {
    if format != "skc-argv" {
        return None;
    }
    let program = items.first()?.as_str()?;
    let path = path.index(0);
    if program.is_empty() {
        return Some(Problem::new(&path, codes::SPEC_TEXT, "the program's name is empty"));
    }
    if program.contains('/') && !program.starts_with('/') {
        let message = format!("{program:?} is relative; commands have no fixed directory to start from");
        let hint = "write the absolute path, or the bare name to have it looked up in PATH";
        return Some(Problem::new(&path, codes::SPEC_TEXT, message).hint(hint));
    }
    if items.len() == 1 && program.contains(' ') {
        let words: Vec<&str> = program.split_whitespace().collect();
        let message = format!("{program:?} is one word with blanks; no shell splits it");
        let hint = format!("write a list: [{}]", words.join(", "));
        return Some(Problem::new(&path, codes::SPEC_TEXT, message).hint(hint));
    }
    None
}

fn malformed(bad: bool, text: &str, path: &Path, what: &str) -> Option<Problem> {
    bad.then(|| Problem::new(path, codes::SPEC_TEXT, format!("{text:?} is not {what}")))
}

fn quantity<T, R>(
    text: &str,
    (min, max): (&str, &str),
    path: &Path,
    rank: impl Fn(T) -> R,
    example: &str,
) -> Option<Problem>
where
    T: FromStr<Err = UnitError>,
    R: PartialOrd,
{
    let value = match text.parse::<T>() {
        Ok(value) => rank(value),
        Err(error) => {
            let code = match error {
                UnitError::TooLarge { .. } => codes::SPEC_RANGE,
                _ => codes::SPEC_UNIT,
            };
            let problem = Problem::new(path, code, error.to_string());
            return Some(
                problem.hint(suggest_unit::<T>(text).unwrap_or_else(|| format!("for example {example}"))),
            );
        }
    };
    let bound = |text: &str| text.parse::<T>().ok().map(&rank);
    let too_small = bound(min).is_some_and(|least| value < least);
    let too_large = bound(max).is_some_and(|most| value > most);
    (too_small || too_large).then(|| {
        let wanted = match (min, max) {
            (min, "") => format!("at least {min}"),
            ("", max) => format!("at most {max}"),
            (min, max) => format!("within {min} to {max}"),
        };
        Problem::new(path, codes::SPEC_RANGE, format!("{path} is {text}; it must be {wanted}"))
    })
}

fn rate_rank(rate: Rate) -> u64 {
    match rate {
        Rate::Adaptive => u64::MAX,
        Rate::PerSecond(size) => size.as_bytes(),
    }
}

/// What was probably meant: "2 sec" is "2s", "64k" is "64KiB".
fn suggest_unit<T: FromStr>(text: &str) -> Option<String> {
    const ALIASES: &[(&str, &str)] = &[
        ("msec", "ms"),
        ("sec", "s"),
        ("secs", "s"),
        ("second", "s"),
        ("seconds", "s"),
        ("min", "m"),
        ("mins", "m"),
        ("minute", "m"),
        ("minutes", "m"),
        ("hour", "h"),
        ("hours", "h"),
        ("k", "KiB"),
        ("kb", "KiB"),
        ("kib", "KiB"),
        ("m", "MiB"),
        ("mb", "MiB"),
        ("mib", "MiB"),
        ("g", "GiB"),
        ("gb", "GiB"),
        ("gib", "GiB"),
        ("kb/s", "KiB/s"),
        ("mb/s", "MiB/s"),
        ("gb/s", "GiB/s"),
        ("kib/s", "KiB/s"),
        ("mib/s", "MiB/s"),
        ("gib/s", "GiB/s"),
        ("mbps", "MiB/s"),
    ];
    if text.bytes().all(|b| b.is_ascii_digit()) {
        // A bare number: show it with each unit it could have.
        let units = ["ms", "s", "KiB", "MiB", "KiB/s", "MiB/s"];
        let readings = units.map(|unit| format!("{text}{unit}"));
        let good: Vec<&str> =
            readings.iter().filter(|r| r.parse::<T>().is_ok()).map(String::as_str).collect();
        return (!good.is_empty()).then(|| format!("did you mean {}?", good.join(" or ")));
    }
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = (text.get(..digits)?, text.get(digits..)?.trim().to_lowercase());
    if let Some(days) = unit.strip_prefix('d').and(number.parse::<u64>().ok()) {
        let hours = format!("{}h", days.checked_mul(24)?);
        return hours.parse::<T>().is_ok().then(|| format!("did you mean {hours}?"));
    }
    let candidates = [unit.as_str()]
        .into_iter()
        .chain(ALIASES.iter().filter(|(alias, _)| *alias == unit).map(|(_, unit)| *unit));
    candidates
        .map(|unit| format!("{number}{unit}"))
        .find(|candidate| candidate.parse::<T>().is_ok())
        .map(|candidate| format!("did you mean {candidate}?"))
}

pub(super) fn is_name(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=limits::NAME_MAX).contains(&text.len())
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

fn suggest_name(text: &str) -> Option<String> {
    let name: String = text
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' })
        .collect();
    let name = name.trim_matches('-');
    is_name(name).then(|| format!("did you mean {name}?"))
}

fn is_host(text: &str) -> bool {
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !l.starts_with('-')
    };
    text.parse::<IpAddr>().is_ok() || text.split('.').all(label)
}

fn is_user(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    !text.starts_with(['-', '.']) && text.bytes().all(inner)
}

fn is_interface(text: &str) -> bool {
    !matches!(text, "." | "..") && text.bytes().all(|b| b.is_ascii_graphic() && b != b'/' && b != b':')
}

fn path_text(text: &str, path: &Path) -> Option<Problem> {
    let bad = |message: String| Problem::new(path, codes::SPEC_PATH, message);
    if text.len() > limits::PATH_MAX {
        return Some(bad(format!("the path has {} bytes; at most {} exist", text.len(), limits::PATH_MAX)));
    }
    if !text.starts_with('/') {
        return Some(bad(format!("{text:?} is not absolute")).hint(format!("write /{text}")));
    }
    if text.chars().any(char::is_control) {
        return Some(bad("the path contains control characters".to_owned()));
    }
    let parts: Vec<&str> = text.split('/').skip(1).collect();
    if let Some(long) = parts.iter().find(|p| p.len() > limits::PATH_COMPONENT_MAX) {
        let max = limits::PATH_COMPONENT_MAX;
        return Some(bad(format!("a part of the path has {} bytes; at most {max} exist", long.len())));
    }
    if text != "/" && parts.iter().any(|p| matches!(*p, "" | "." | "..")) {
        let problem = bad(format!("{text:?} is not written plainly (no //, /./, /../ or slash at the end)"));
        let plain: Vec<&str> = parts.iter().copied().filter(|p| !matches!(*p, "" | ".")).collect();
        if plain.contains(&"..") {
            return Some(problem); // where it leads depends on links: nothing to suggest
        }
        return Some(problem.hint(format!("write /{}", plain.join("/"))));
    }
    None
}

fn cidr(text: &str, path: &Path) -> Option<Problem> {
    let error = text.parse::<Cidr>().err()?;
    let problem = Problem::new(path, codes::SPEC_ADDRESS, error.to_string());
    Some(match error {
        CidrError::NoPrefix(_) if text.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv4()) => {
            problem.hint(format!("did you mean {text}/24?"))
        }
        CidrError::NoPrefix(_) if text.parse::<IpAddr>().is_ok() => {
            problem.hint(format!("did you mean {text}/64?"))
        }
        _ => problem,
    })
}

fn address(text: &str, path: &Path) -> Option<Problem> {
    let Ok(ip) = text.parse::<IpAddr>() else {
        let problem = Problem::new(path, codes::SPEC_ADDRESS, format!("{text:?} is no IP address"));
        return Some(match text.split_once('/') {
            Some((ip, _)) if ip.parse::<IpAddr>().is_ok() => problem.hint(format!("without prefix: {ip}")),
            _ => problem.hint("names are not resolved here: an address must work when DNS does not"),
        });
    };
    usable(ip).map(|why| Problem::new(path, codes::SPEC_ADDRESS, format!("{text} is {why}")))
}

/// Why an address can be nobody's.
fn usable(ip: IpAddr) -> Option<&'static str> {
    if ip.is_unspecified() {
        Some("the unspecified address")
    } else if ip.is_multicast() {
        Some("a multicast address")
    } else if matches!(ip, IpAddr::V4(v4) if v4.is_broadcast()) {
        Some("the broadcast address")
    } else if matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local()) {
        Some("a link-local address: it means nothing without an interface")
    } else {
        None
    }
}
