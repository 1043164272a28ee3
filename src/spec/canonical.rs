//! One text and one digest for each spec, whatever way it was written.

use super::ClusterSpec;

/// The effective spec as YAML: every default written out, fields in the order of the types.
///
/// Reading it gives an equal spec; equal specs give equal texts.
pub fn canonical(spec: &ClusterSpec) -> String {
    // Plain structs of texts, numbers and lists: writing them to memory cannot fail.
    serde_yaml::to_string(spec).unwrap_or_default()
}

/// BLAKE3 of [`canonical`], in hex: compares revisions between nodes.
pub fn digest(spec: &ClusterSpec) -> String {
    blake3::hash(canonical(spec).as_bytes()).to_hex().to_string()
}
