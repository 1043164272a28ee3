//! Any value that the cores may send or remember.

use super::{DAMAGES, PLANS, REFUSALS, ROLES, TREES, stays};
use proptest::prelude::*;
use skc::base::{ClusterId, Epoch, Generation, NodeId, OpSeq};
use skc::engine::durable::HISTORY_MAX;
use skc::engine::{
    Damage, Durable, HeartbeatBody, Hello, Inconsistent, PeerMessage, Plan, Verdict, VerdictKind,
};
use skc::proto::envelope::{Envelope, Lacks, SpecStamp};

fn epoch() -> impl Strategy<Value = Epoch> {
    any::<(u64, u64)>().prop_map(|(g, s)| Epoch { g, s })
}

fn node() -> impl Strategy<Value = NodeId> {
    prop::sample::select(vec![NodeId::A, NodeId::B])
}

fn generation() -> impl Strategy<Value = Generation> {
    any::<u128>().prop_map(Generation)
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        prop::sample::select(DAMAGES.to_vec()),
        any::<i32>().prop_map(|errno| Damage::Apply { errno })
    ]
}

fn inconsistent() -> impl Strategy<Value = Option<Inconsistent>> {
    prop::option::of((generation(), damage()).prop_map(|(source, damage)| Inconsistent { source, damage }))
}

fn history() -> impl Strategy<Value = Vec<Generation>> {
    prop::collection::vec(generation(), 0..=HISTORY_MAX)
}

fn any_hello() -> impl Strategy<Value = Hello> {
    let words = (prop::sample::select(ROLES.to_vec()), prop::sample::select(TREES.to_vec()));
    let ids = (node(), prop::option::of(node()), prop::option::of(node()), prop::option::of(node()));
    let numbers = (any::<(u64, u128, u128)>(), any::<(Option<u64>, Option<u64>)>(), any::<[bool; 5]>());
    let lineage = (epoch(), generation(), generation(), history(), inconsistent());
    (words, ids, numbers, lineage, any::<[u64; 2]>()).prop_map(
        |((role, tree), ids, numbers, lineage, times)| {
            let (node, owner, adopt, preferred) = ids;
            let ((n, grant, mint), (from, applied), [started, alone, last_primary, intact, adopt_force]) =
                numbers;
            let (epoch, cur, base, history, inconsistent) = lineage;
            Hello {
                n,
                node,
                started,
                epoch,
                owner,
                grant,
                cur,
                base,
                history,
                alone,
                last_primary,
                intact,
                inconsistent,
                role,
                replay_from: from.map(OpSeq),
                applied: applied.map(OpSeq),
                tree,
                adopt,
                adopt_force,
                mint,
                preferred,
                timeout: times[0],
                interval: times[1],
            }
        },
    )
}

pub fn any_message() -> impl Strategy<Value = PeerMessage> {
    let plan = prop_oneof![
        prop::sample::select(PLANS.to_vec()),
        any::<u64>().prop_map(|applied| Plan::Replay { applied: OpSeq(applied) }),
    ];
    let sync =
        (node(), plan, any::<bool>(), generation()).prop_map(|(source, plan, target_was_intact, cur)| {
            VerdictKind::Sync { source, plan, target_was_intact, cur }
        });
    let kind = prop_oneof![sync, prop::sample::select(stays().to_vec())];
    let verdict = (any::<(u64, u64, u8)>(), kind, epoch()).prop_map(|((mine, yours, row), kind, epoch)| {
        PeerMessage::Verdict { mine, yours, verdict: Box::new(Verdict { kind, row, epoch }) }
    });
    prop_oneof![
        any_hello().prop_map(|hello| PeerMessage::Hello(Box::new(hello))),
        verdict,
        epoch().prop_map(|epoch| PeerMessage::SourceReady { epoch }),
        epoch().prop_map(|epoch| PeerMessage::TargetReady { epoch }),
        epoch().prop_map(|epoch| PeerMessage::UpToDate { epoch }),
        epoch().prop_map(|epoch| PeerMessage::Token { epoch }),
        epoch().prop_map(|epoch| PeerMessage::TokenTaken { epoch }),
        epoch().prop_map(|epoch| PeerMessage::Leaving { epoch }),
        epoch().prop_map(|epoch| PeerMessage::LeaveTaken { epoch }),
        (epoch(), damage()).prop_map(|(epoch, damage)| PeerMessage::Ejected { epoch, damage }),
        Just(PeerMessage::SwapRequest),
        prop::sample::select(REFUSALS.to_vec()).prop_map(|why| PeerMessage::SwapRefused { why }),
    ]
}

pub fn any_envelope() -> impl Strategy<Value = Envelope> {
    let stamp = ("\\PC{0,63}", any::<u64>(), "\\PC{0,63}", any::<bool>()).prop_map(
        |(cluster, number, node, removed)| SpecStamp { cluster: ClusterId(cluster), number, node, removed },
    );
    let words = prop::collection::vec("\\PC{0,20}", 0..3);
    let lacks = ("\\PC{0,20}", words).prop_map(|(path, what)| Lacks { path, what });
    let lacks = prop::collection::vec(lacks, 0..3);
    prop_oneof![
        ("\\PC{0,63}", any::<Vec<u8>>())
            .prop_map(|(cluster, body)| Envelope::Core { cluster: ClusterId(cluster), body }),
        prop::collection::vec(stamp.clone(), 0..4).prop_map(Envelope::SpecList),
        (stamp.clone(), "\\PC{0,200}", lacks).prop_map(|(stamp, text, lacks)| Envelope::SpecPut {
            stamp,
            text,
            lacks
        }),
        (stamp, "\\PC{0,20}", "\\PC{0,200}").prop_map(|(stamp, code, reason)| Envelope::SpecRefused {
            stamp,
            code,
            reason
        }),
        "\\PC{0,63}".prop_map(|cluster| Envelope::SpecWant(ClusterId(cluster))),
    ]
}

pub fn any_heartbeat() -> impl Strategy<Value = HeartbeatBody> {
    let spans = any::<(Option<u64>, Option<u64>)>();
    let epochs = (epoch(), prop::option::of(epoch()), prop::option::of(epoch()));
    (prop::sample::select(ROLES.to_vec()), any::<[bool; 2]>(), spans, epochs).prop_map(
        |(role, [alone, ready], (heard_ms, sure_ms), (epoch, ask_yield, yielded))| HeartbeatBody {
            role,
            epoch,
            alone,
            ready,
            heard_ms,
            sure_ms,
            ask_yield,
            yielded,
        },
    )
}

pub fn any_record() -> impl Strategy<Value = Durable> {
    let lineage = (epoch(), generation(), generation(), history(), inconsistent());
    let numbers = any::<(u128, Option<u128>, Option<u64>, Option<u128>)>();
    (lineage, numbers, prop::option::of(node()), any::<[bool; 6]>()).prop_map(
        |(lineage, (grant, intact_boot, handed, boot), owner, flags)| {
            let (epoch, cur, base, history, inconsistent) = lineage;
            let [alone, peer_outdated, last_primary, clean, behind, stopped] = flags;
            Durable {
                epoch,
                owner,
                grant,
                cur,
                base,
                history,
                alone,
                peer_outdated,
                last_primary,
                intact_boot,
                clean,
                behind,
                inconsistent,
                handed,
                stopped,
                boot,
            }
        },
    )
}
