//! Specs between the two nodes: who has what, who lacks what, and what the other one does not take.

use super::node::Node;
use super::specs;
use crate::api::types::Reason;
use crate::base::ClusterId;
use crate::bus::Fact;
use crate::proto::envelope::{Envelope, SpecStamp};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

impl Node {
    /// What the peer says it has: asks for what is newer there, sends what is newer here.
    pub(super) fn compare_lists(&self, theirs: &[SpecStamp]) {
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

    /// Sends one spec, for example after it was applied here.
    pub fn send_spec(&self, cluster: &ClusterId) {
        let put = self.specs.lock().unwrap_or_else(PoisonError::into_inner).put(cluster);
        if let Some(put) = put {
            self.send(&put);
        }
    }

    /// Takes a spec of the peer, then acts on it.
    pub(super) async fn take_spec(self: Arc<Self>, stamp: SpecStamp, text: String) {
        let (node, told) = (self.clone(), stamp.clone());
        let accepted = self
            .change_specs(move |specs| specs.accept(&told, text, |cluster| node.is_stopped(cluster)))
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
