//! Errors as facts.

use crate::bus::{Bus, Fact};

/// Publishes an error about `object` of `cluster`.
pub(super) fn publish(bus: &Bus, cluster: &str, object: &str, code: &str, message: String) {
    let fact = Fact::Error { code: code.to_owned(), object: object.to_owned(), message };
    bus.publish(Some(cluster), fact);
}
