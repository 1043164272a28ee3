//! Specs between the two nodes: who has what, who lacks what, and what the other one does not take.

use super::node::Node;
use super::{specs, unlike};
use crate::api::types::Reason;
use crate::base::ClusterId;
use crate::bus::Fact;
use crate::proto::envelope::{Envelope, Lacks, SpecStamp};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

impl Node {
    /// What the peer says it has: asks for what is newer there, sends what is newer here.
    pub(super) fn compare_lists(self: &Arc<Self>, theirs: &[SpecStamp]) {
        let has = |cluster: &ClusterId, number: u64| {
            theirs.iter().any(|stamp| stamp.cluster == *cluster && stamp.number >= number)
        };
        self.refusals
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|cluster, (number, _)| !has(cluster, *number));
        let (want, send) = self.specs.lock().unwrap_or_else(PoisonError::into_inner).compare(theirs);
        for cluster in want {
            self.send(&Envelope::SpecWant(cluster));
        }
        for cluster in &send {
            self.send_spec(cluster);
        }
    }

    /// Says which specs this node has.
    pub(super) fn send_list(&self) {
        let stamps = self.specs.lock().unwrap_or_else(PoisonError::into_inner).stamps();
        self.send(&Envelope::SpecList(stamps));
    }

    /// Sends one spec, for example after it was applied here, and what its directories lack on this node. Not in
    /// line with other messages: a newer stamp wins in any order.
    pub fn send_spec(self: &Arc<Self>, cluster: &ClusterId) {
        let specs = self.specs.lock().unwrap_or_else(PoisonError::into_inner);
        let spec = specs.get(cluster).and_then(|entry| entry.spec.clone());
        let Some(Envelope::SpecPut { stamp, text, .. }) = specs.put(cluster) else { return };
        drop(specs);
        let node = self.clone();
        drop(tokio::spawn(async move {
            let directories = spec.iter().flat_map(|spec| &spec.spec.directories);
            let paths = directories.map(|directory| directory.path.clone()).collect();
            let lacks = unlike::lacks(paths, node.unit(&stamp.cluster)).await;
            node.send(&Envelope::SpecPut { stamp, text, lacks });
        }));
    }

    /// Takes a spec of the peer, then acts on it.
    pub(super) async fn take_spec(self: Arc<Self>, stamp: SpecStamp, text: String, theirs: Vec<Lacks>) {
        let (node, told) = (self.clone(), stamp.clone());
        // A directory that is mirrored already is not asked about: it is what it is.
        let new = self.unit(&stamp.cluster).is_none();
        let paths = theirs.iter().filter(|_| new).map(|lacks| PathBuf::from(&lacks.path)).collect();
        let ours = unlike::lacks(paths, None).await;
        let peer = self.link().identity().peer().map_or("the other node", |p| p.name.as_str()).to_owned();
        let own = self.shared.name.clone();
        let accepted = self
            .change_specs(move |specs| {
                let fits = || unlike::compare((&own, &peer), &ours, &theirs);
                specs.accept(&told, text, |cluster| node.is_stopped(cluster), fits)
            })
            .await;
        let cluster = Some(stamp.cluster.0.as_str());
        match accepted {
            Ok(true) => {
                self.bus().publish(cluster, Fact::SpecApplied { revision: stamp.number });
                self.send_list(); // voids what was told of a refusal
                self.reconcile().await;
            }
            Ok(false) => {}
            Err(error) => {
                tracing::error!(cluster = %stamp.cluster, %error, "the peer's spec is refused here");
                let (code, reason) = (error.code.clone(), error.message.clone());
                if error.code == specs::NOT_STORED {
                    self.not_stored.store(true, Ordering::Relaxed);
                }
                self.send(&Envelope::SpecRefused { stamp: stamp.clone(), code, reason });
                self.bus().publish(cluster, Fact::SpecRefused { code: error.code, reason: error.message });
            }
        }
    }

    /// The peer does not take a revision of ours. Only what is in the specs is kept: a peer cannot fill
    /// the memory with names.
    pub(super) fn spec_refused(&self, stamp: &SpecStamp, code: String, reason: &str) {
        let cluster = &stamp.cluster;
        let ours = self.specs.lock().unwrap_or_else(PoisonError::into_inner).stamps().contains(stamp);
        if !ours {
            return;
        }
        let peer = self.link().identity().peer().map_or("the other node", |p| p.name.as_str()).to_owned();
        let text = format!("{peer} refuses revision {} of the spec: {reason}", stamp.number);
        tracing::error!(%cluster, error_code = code, "{text}");
        self.bus().publish(Some(&cluster.0), Fact::SpecRefused { code: code.clone(), reason: text.clone() });
        self.refusals
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(cluster.clone(), (stamp.number, Reason { code, text }));
    }

    /// Why the peer does not take this revision, as far as it said.
    pub fn peer_refuses(&self, cluster: &ClusterId, revision: u64) -> Option<Reason> {
        let refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        refusals.get(cluster).filter(|(number, _)| *number == revision).map(|(_, why)| why.clone())
    }
}
