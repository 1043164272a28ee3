//! Timer sets that cannot work, refused with the arithmetic shown.

use super::finding::Problem;
use super::limits::BEATS_PER_TIMEOUT;
use super::view::View;
use super::{defaults, limits};
use crate::base::{Timespan, codes};

pub(super) fn check(spec: &View<'_>, out: &mut Vec<Problem>) {
    let heartbeat = spec.get("heartbeat");
    let failover = spec.get("failover");
    let silence = heartbeat.get("timeout").timespan(defaults::heartbeat_timeout());
    let beat = silence.and_then(|t| heartbeat.get("interval").timespan(defaults::heartbeat_interval(t)));
    if let (Some(beat), Some(silence)) = (beat, silence) {
        let least = Timespan::from_millis(beat.as_millis().saturating_mul(BEATS_PER_TIMEOUT));
        if silence < least {
            let view = present(&heartbeat, &["timeout", "interval"]);
            let half = Timespan::from_millis(silence.as_millis() / 2);
            let message = format!(
                "heartbeat.timeout {silence} < {BEATS_PER_TIMEOUT} x heartbeat.interval {beat} = {least}: one-way loss is judged at half of the timeout, {half}, and two heartbeats must fit it"
            );
            let most = Timespan::from_millis(silence.as_millis() / BEATS_PER_TIMEOUT);
            let lower = format!("lower interval to at most {most}");
            let hint = match (least <= limits::HEARTBEAT_TIMEOUT_MAX, most >= limits::HEARTBEAT_INTERVAL_MIN)
            {
                (true, true) => format!("raise timeout to at least {least}, or {lower}"),
                (true, false) => format!("raise timeout to at least {least}"),
                (false, _) => lower,
            };
            out.push(Problem::new(&view.path, codes::SPEC_TIMERS, message).hint(hint));
        }
    }
    let stable = failover.get("stableFor").timespan(defaults::stable_for());
    if let (Some(stable), Some(silence)) = (stable, silence)
        && stable < silence
    {
        let message = format!(
            "failover.stableFor {stable} < heartbeat.timeout {silence}: a node could fail back before its death is noticed"
        );
        let view = present(&failover, &["stableFor"]);
        let hint = format!("raise stableFor to at least {silence}");
        out.push(Problem::new(&view.path, codes::SPEC_TIMERS, message).hint(hint));
    }
    for checker in spec.get("checkers").items() {
        checker_times(&checker, out);
        let every = checker.get("interval").timespan(defaults::check_interval());
        let fall = checker.get("fall").number(defaults::fall());
        let counted =
            matches!(checker.get("onFailure").text(), "" | "restart" | "restartService" | "failover");
        if counted && let (Some(every), Some(fall)) = (every, fall) {
            restart_limit(&failover, &checker, &format!("fall {fall} x interval {every}"), every, fall, out);
        }
    }
    for service in spec.get("services").items() {
        if let Some(every) = service.get("statusInterval").timespan(defaults::status_interval()) {
            restart_limit(&failover, &service, &format!("statusInterval {every}"), every, 1, out);
        }
    }
}

/// What is valid and unwise.
pub(super) fn warn(spec: &View<'_>, out: &mut Vec<Problem>) {
    let written = spec.get("heartbeat").get("timeout");
    let busy = limits::HEARTBEAT_TIMEOUT_BUSY;
    if let Some(timeout) = written.timespan(defaults::heartbeat_timeout()).filter(|timeout| *timeout < busy) {
        let message =
            format!("heartbeat.timeout {timeout} < {busy}: a busy machine may be taken for a dead one");
        let hint = format!("use {busy} or more unless both machines have cores to spare");
        out.push(Problem::new(&written.path, codes::SPEC_BUSY, message).hint(hint));
    }
}

/// A look must end before the next one begins.
fn checker_times(checker: &View<'_>, out: &mut Vec<Problem>) {
    let every = checker.get("interval").timespan(defaults::check_interval());
    let limit = checker.get("timeout").timespan(defaults::check_timeout());
    if let (Some(every), Some(limit)) = (every, limit)
        && limit > every
    {
        let view = present(checker, &["timeout", "interval"]);
        let of = |field: &str| if checker.get(field).is_present() { "" } else { " (default)" };
        let message = format!(
            "timeout {limit}{} > interval {every}{}: a look would still run when the next one is due",
            of("timeout"),
            of("interval")
        );
        let hint = format!("raise interval to at least {limit}, or lower timeout to at most {every}");
        out.push(Problem::new(&view.path, codes::SPEC_TIMERS, message).hint(hint));
    }
}

/// The limit of restarts must be reachable within its window, or a broken service restarts for ever.
fn restart_limit(
    failover: &View<'_>,
    item: &View<'_>,
    shown: &str,
    every: Timespan,
    times: u64,
    out: &mut Vec<Problem>,
) {
    let restarts = failover.get("maxRestarts").number(defaults::max_restarts());
    let window = failover.get("window").timespan(defaults::window());
    let (Some(restarts), Some(window)) = (restarts, window) else { return };
    let one = every.as_millis().saturating_mul(times);
    let needed = Timespan::from_millis(one.saturating_mul(restarts.saturating_add(1)));
    if needed > window {
        let message = format!(
            "({restarts} restarts + 1) x {shown} = {needed} > failover.window {window}: maxRestarts would never be reached"
        );
        let path = if item.get("name").is_present() { item.get("name").path } else { item.path.clone() };
        let hint = format!("raise window to at least {needed}, or lower maxRestarts");
        out.push(Problem::new(&path, codes::SPEC_TIMERS, message).hint(hint));
    }
}

/// The first of `fields` that is written, else the object itself: a caret needs something to point at.
fn present<'a>(object: &View<'a>, fields: &[&str]) -> View<'a> {
    fields.iter().map(|f| object.get(f)).find(View::is_present).unwrap_or_else(|| object.clone())
}
