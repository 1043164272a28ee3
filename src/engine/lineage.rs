//! Lineage and the decision table (facts b7): pure functions of two hellos.
//!
//! Both sides compute [`decide`] over the same two hellos and compare the results; it is
//! symmetric by construction (its first act is to order the two by node). No clock is compared. This version has no
//! intent log, so every "by ranges" of the table is carried out as a full compare.

use crate::base::{Epoch, Generation, NodeId};
use crate::engine::config::Rules;
use crate::engine::durable::{Damage, Durable, HISTORY_MAX};
use crate::engine::io::{Plan, TreeState};
use crate::engine::peer::{Hello, LiveRole, Verdict, VerdictKind};

/// Row numbers above the table's own.
pub mod row {
    /// The operator named the source.
    pub const ADOPT: u8 = 100;
    /// At least one side does not take part.
    pub const NOT_STARTED: u8 = 101;
    /// A directory is not usable.
    pub const NO_TREE: u8 = 102;
}

/// Applies the table to two hellos, in any order.
pub fn decide(x: &Hello, y: &Hello, rules: Rules) -> Verdict {
    let (a, b) = if x.node <= y.node { (x, y) } else { (y, x) };
    let (row, choice) = table(a, b, rules);
    let s = a.epoch.s.max(b.epoch.s).saturating_add(1);
    let top = a.epoch.g.max(b.epoch.g);
    match choice {
        Choice::Stay(kind) => Verdict { kind, row, epoch: Epoch { g: top, s } },
        Choice::Sync { source, plan } => {
            let (from, to) = if source == a.node { (a, b) } else { (b, a) };
            let replay = matches!(plan, Plan::Replay { .. });
            // The target gives up its claim before the source goes on, so the source may decide
            // alone at once: a new grant and a new lineage, unless it already holds them.
            let mints = !replay && !from.alone;
            let bumps = mints || (!replay && to.epoch.g > from.epoch.g);
            let kind = VerdictKind::Sync {
                source,
                plan,
                target_was_intact: to.intact && to.inconsistent.is_none(),
                cur: if mints { Generation(from.mint) } else { from.cur },
            };
            Verdict { kind, row, epoch: Epoch { g: top.saturating_add(u64::from(bumps)), s } }
        }
    }
}

enum Choice {
    Sync { source: NodeId, plan: Plan },
    Stay(VerdictKind),
}

fn usable(h: &Hello) -> bool {
    matches!(h.tree, TreeState::Ok { .. })
}

fn empty(h: &Hello) -> bool {
    matches!(h.tree, TreeState::Ok { empty: true, .. })
}

fn initialised(h: &Hello) -> bool {
    h.cur != Generation::default()
}

/// `source` by full compare. Quarantine whenever the target may hold bytes the source never had.
fn full(source: &Hello, target: &Hello) -> Choice {
    let plan = if !initialised(target) && empty(target) {
        Plan::SeedEmpty
    } else {
        let partial_copy =
            target.inconsistent.is_some_and(|i| i.damage == Damage::Resync) && !target.last_primary;
        let returning = target.inconsistent.is_some_and(|i| i.damage == Damage::Returning);
        let may_be_own = target.last_primary || target.cur != source.cur;
        Plan::FullCompare { quarantine: returning || (may_be_own && !partial_copy) }
    };
    Choice::Sync { source: source.node, plan }
}

/// `a` is the lower node.
fn table(a: &Hello, b: &Hello, rules: Rules) -> (u8, Choice) {
    use Choice::Stay;
    if !a.started || !b.started {
        return (row::NOT_STARTED, Stay(VerdictKind::NotStarted));
    }
    if !usable(a) || !usable(b) {
        return (row::NO_TREE, Stay(VerdictKind::NoTree));
    }
    if let Some(choice) = adopted(a, b, true) {
        return (row::ADOPT, choice);
    }
    let (row, choice) = rows(a, b, rules);
    if let (Stay(_), Some(chosen)) = (&choice, adopted(a, b, false)) {
        return (row::ADOPT, chosen);
    }
    (row, choice)
}

/// What the operator named, if both sides were told the same or only one was told.
fn adopted(a: &Hello, b: &Hello, force: bool) -> Option<Choice> {
    let wish = |h: &Hello| h.adopt.filter(|_| !force || h.adopt_force);
    let source = match (wish(a), wish(b)) {
        (Some(x), Some(y)) if x != y => return None,
        (x, y) => x.or(y)?,
    };
    let (from, to) = if source == a.node { (a, b) } else { (b, a) };
    if from.inconsistent.is_some() && !force {
        return None;
    }
    Some(match full(from, to) {
        Choice::Sync { source, plan: Plan::FullCompare { .. } } => {
            Choice::Sync { source, plan: Plan::FullCompare { quarantine: true } }
        }
        other => other,
    })
}

fn rows(a: &Hello, b: &Hello, rules: Rules) -> (u8, Choice) {
    use Choice::Stay;
    // 2: nobody was ever initialised. One empty and one not is asked too: the empty one may be a
    // volume that is not mounted.
    if !initialised(a) && !initialised(b) {
        let both_clean = a.inconsistent.is_none() && b.inconsistent.is_none();
        return match (empty(a), empty(b)) {
            (true, true) if both_clean => {
                // Equal nothings: whoever is preferred becomes the first primary.
                let (from, to) = if keeps(a, b) == b.node { (b, a) } else { (a, b) };
                (2, full(from, to))
            }
            _ => (2, Stay(VerdictKind::AskSource)),
        };
    }
    // 4 before 3: a source is never inconsistent.
    match (unfit(a), unfit(b)) {
        (true, true) => return (4, Stay(VerdictKind::BothInconsistent)),
        (true, false) => return unfit_row(b, a),
        (false, true) => return unfit_row(a, b),
        (false, false) => {}
    }
    let split = || VerdictKind::SplitBrain { keeps: keeps(a, b) };
    // 6: both went on alone.
    let common_base = a.base == b.base && a.base != Generation::default() && a.cur != b.cur;
    if (a.alone && b.alone) || common_base {
        return (6, Stay(split()));
    }
    if a.cur != b.cur {
        return lineages(a, b, split());
    }
    // 10: equal lineage, one of them wrote alone.
    match (a.alone, b.alone) {
        (true, false) => return (10, full(a, b)),
        (false, true) => return (10, full(b, a)),
        _ => {}
    }
    // 11: the intact one, also against a crashed primary (hole 3).
    if rules.intact_beats_primary {
        match (a.intact, b.intact) {
            (true, false) => return (11, full(a, b)),
            (false, true) => return (11, full(b, a)),
            _ => {}
        }
    }
    // 12: replay.
    if a.intact
        && b.intact
        && let Some(choice) = replay(a, b).or_else(|| replay(b, a))
    {
        return (12, choice);
    }
    // 13, 14: the last primary, else the higher session (a hand-over broke off), else the lower id.
    let row = if a.intact && b.intact { 13 } else { 14 };
    let a_first = if a.last_primary == b.last_primary { a.epoch.s >= b.epoch.s } else { a.last_primary };
    (row, if a_first { full(a, b) } else { full(b, a) })
}

/// Never a source: not initialised, or inconsistent.
fn unfit(h: &Hello) -> bool {
    !initialised(h) || h.inconsistent.is_some()
}

/// Rows 3 and 5. A target that acknowledged alone and then got damaged holds what nobody else has:
/// that is the operator's to give up.
fn unfit_row(source: &Hello, target: &Hello) -> (u8, Choice) {
    let row = if initialised(target) { 5 } else { 3 };
    if target.alone {
        return (4, Choice::Stay(VerdictKind::BothInconsistent));
    }
    (row, full(source, target))
}

/// Rows 7 to 9: different lineages. A node that is `alone` is never overwritten by rule: `alone` is
/// cleared before the peer may become its successor, so such a pair contradicts itself.
fn lineages(a: &Hello, b: &Hello, split: VerdictKind) -> (u8, Choice) {
    for (x, y) in [(a, b), (b, a)] {
        if x.base == y.cur && !y.alone {
            return (7, full(x, y));
        }
    }
    for (x, y) in [(a, b), (b, a)] {
        if x.history.contains(&y.cur) && !y.alone {
            return (8, full(x, y));
        }
    }
    let ancestors = |h: &Hello| {
        let mut all = h.history.clone();
        all.extend([h.cur, h.base]);
        all.retain(|g| *g != Generation::default());
        all
    };
    let (ours, theirs) = (ancestors(a), ancestors(b));
    if ours.iter().any(|g| theirs.contains(g)) {
        (9, Choice::Stay(split))
    } else {
        (9, Choice::Stay(VerdictKind::Unrelated))
    }
}

/// Row 12: `from` is the live writer, its list is whole and reaches back to what `to` has applied.
fn replay(from: &Hello, to: &Hello) -> Option<Choice> {
    let live = matches!(from.role, LiveRole::Prim | LiveRole::Frozen);
    let (first, applied) = (from.replay_from?, to.applied?);
    (live && first.0 <= applied.0.saturating_add(1))
        .then_some(Choice::Sync { source: from.node, plan: Plan::Replay { applied } })
}

/// Split brain: who keeps serving until the operator decided. The one that serves; if both do, the preferred, else the lower.
fn keeps(a: &Hello, b: &Hello) -> NodeId {
    let serves = |h: &Hello| matches!(h.role, LiveRole::Alone | LiveRole::Prim | LiveRole::Frozen);
    match (serves(a), serves(b)) {
        (true, false) => a.node,
        (false, true) => b.node,
        _ if a.preferred == b.preferred => a.preferred.unwrap_or(a.node),
        _ => a.node,
    }
}

/// Moves the record to a new lineage minted by this node.
pub fn mint(record: &mut Durable, fresh: Generation) {
    let old = record.cur;
    record.base = old;
    if old != Generation::default() {
        record.history.retain(|g| *g != old);
        record.history.insert(0, old);
        record.history.truncate(HISTORY_MAX);
    }
    record.cur = fresh;
}

/// Makes the record's lineage the source's, once the trees are equal. `cur` is the verdict's; a
/// source that minted it in this session counts its old lineage as the base.
pub fn adopt(record: &mut Durable, source: &Hello, cur: Generation) {
    let mut theirs = Durable {
        cur: source.cur,
        base: source.base,
        history: source.history.iter().copied().take(HISTORY_MAX).collect(),
        ..Durable::default()
    };
    if cur != source.cur {
        mint(&mut theirs, cur);
    }
    record.cur = theirs.cur;
    record.base = theirs.base;
    record.history = theirs.history;
}

/// A random-looking id from the process's seed and durable, monotone numbers: unique as long as seeds
/// are, and reproducible in the model.
pub fn fresh_id(seed: u128, epoch: Epoch, purpose: u64) -> u128 {
    let low = mix(seed as u64 ^ mix(epoch.g ^ mix(epoch.s ^ mix(purpose))));
    let high = mix((seed >> 64) as u64 ^ mix(low ^ epoch.s.rotate_left(32) ^ epoch.g));
    let id = (u128::from(high) << 64) | u128::from(low);
    if id == 0 { 1 } else { id }
}

/// The finaliser of splitmix64 (public domain): a bijection that spreads every bit.
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::durable::Inconsistent;

    fn hello(node: NodeId, cur: u128, base: u128) -> Hello {
        Hello {
            n: 1,
            node,
            started: true,
            epoch: Epoch { g: 2, s: 3 },
            owner: Some(node),
            grant: cur,
            cur: Generation(cur),
            base: Generation(base),
            history: vec![Generation(base)],
            alone: false,
            last_primary: false,
            intact: true,
            inconsistent: None,
            role: LiveRole::Wait,
            replay_from: None,
            applied: None,
            tree: TreeState::Ok { empty: false, stamp_ok: true },
            adopt: None,
            adopt_force: false,
            mint: 77,
            preferred: None,
            timeout: 2_000,
            interval: 200,
        }
    }

    fn plan(source: &Hello, target: &Hello) -> Plan {
        match decide(source, target, Rules::default()).kind {
            VerdictKind::Sync { source: from, plan, .. } if from == source.node => plan,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_a_former_primary_alone_holds_is_kept_also_when_its_resync_begins_anew() {
        let promoted = Hello { alone: true, last_primary: true, ..hello(NodeId::B, 9, 5) };
        let former = Hello { last_primary: true, intact: false, ..hello(NodeId::A, 5, 4) };
        let kept = Plan::FullCompare { quarantine: true };
        assert_eq!(plan(&promoted, &former), kept);
        // As the target recorded it, and then the session broke.
        let half_way = |damage| Hello {
            last_primary: false,
            inconsistent: Some(Inconsistent { source: Generation(9), damage }),
            ..former.clone()
        };
        assert_eq!(plan(&promoted, &half_way(Damage::Returning)), kept);
        // A standby that was being copied has nothing of its own.
        assert_eq!(plan(&promoted, &half_way(Damage::Resync)), Plan::FullCompare { quarantine: false });
    }
}
