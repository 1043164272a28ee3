//! The body of a heartbeat: what each cluster's core says, within one datagram.

use crate::base::ClusterId;
use crate::engine::HeartbeatBody;
use serde::{Deserialize, Serialize};

/// Bytes a body may have (the link's limit is 1200; some are left for the envelope).
pub const BODY_MAX: usize = 1150;

/// Names a cluster in a heartbeat: the first bytes of a hash of its name. Two clusters of one pair
/// with equal keys are refused when the second is applied, and not brought up if they met otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Key(u32);

impl Key {
    /// The key of a cluster.
    pub fn of(cluster: &ClusterId) -> Self {
        let hash = blake3::hash(cluster.0.as_bytes());
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&hash.as_bytes()[..4]);
        Self(u32::from_le_bytes(bytes))
    }
}

/// Encodes as many clusters as fit, beginning with the one at `start`; returns the body and where to
/// begin next time, so that with very many clusters each is in every second or third heartbeat.
pub fn encode(clusters: &[(Key, HeartbeatBody)], start: usize) -> (Vec<u8>, usize) {
    let mut body = Vec::with_capacity(BODY_MAX);
    if clusters.is_empty() {
        return (body, 0);
    }
    let mut at = start % clusters.len();
    for _ in 0..clusters.len() {
        let item = rmp_serde::to_vec(&clusters[at]).unwrap_or_default();
        if body.len() + item.len() > BODY_MAX {
            break;
        }
        body.extend_from_slice(&item);
        at = (at + 1) % clusters.len();
    }
    (body, at)
}

/// Decodes what arrived; garbage ends the list.
pub fn decode(mut body: &[u8]) -> Vec<(Key, HeartbeatBody)> {
    let mut clusters = Vec::new();
    while !body.is_empty() {
        match rmp_serde::from_read(&mut body) {
            Ok(item) => clusters.push(item),
            Err(_) => break,
        }
    }
    clusters
}

/// Two cluster names with the same key.
#[cfg(test)]
pub fn colliding() -> (String, String) {
    let mut seen = std::collections::HashMap::new();
    (0..)
        .map(|n| format!("c{n}"))
        .find_map(|name| {
            seen.insert(Key::of(&ClusterId(name.clone())), name.clone()).map(|other| (other, name))
        })
        .expect("32 bits collide after some ten thousands")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_clusters_take_turns_and_come_back_equal() {
        let all: Vec<_> = (0..200)
            .map(|n| {
                (
                    Key::of(&ClusterId(format!("c{n}"))),
                    HeartbeatBody { heard_ms: Some(n), ..Default::default() },
                )
            })
            .collect();
        let mut seen = Vec::new();
        let mut start = 0;
        for _ in 0..20 {
            let (body, next) = encode(&all, start);
            assert!(body.len() <= BODY_MAX);
            seen.extend(decode(&body));
            start = next;
        }
        for item in &all {
            assert!(seen.contains(item));
        }
    }

    #[test]
    fn garbage_gives_nothing() {
        assert!(decode(&[0xc1, 2, 3]).is_empty());
        assert!(decode(&[]).is_empty());
    }
}
