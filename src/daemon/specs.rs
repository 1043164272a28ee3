//! The specs in force on this node: validated, durable, exchanged with the peer.
//!
//! Invariants: a spec is on disk before anything acts on it; a newer revision replaces an older one,
//! never the other way round; a spec of the peer is validated like an operator's. What changes them blocks
//! (it is durable when it returns): the node calls it on a blocking thread. Absent: reacting to changes
//! (the node does that with what [`SpecBook::apply`] and [`SpecBook::accept`] return).

use super::beat::Key;
use crate::api::{ApiError, Document};
use crate::base::ClusterId;
use crate::link::pki::Node;
use crate::proto::envelope::{Envelope, SpecStamp};
use crate::spec::{self, ClusterSpec, Source};
use crate::store::StoreError;
use crate::store::specs::{Revision, SpecStore, StoredSpec};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

/// A spec in force.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its revision.
    pub revision: Revision,
    /// The text as applied; `None` = removed.
    pub text: Option<String>,
    /// The parsed spec; `None` = removed or refused by this version.
    pub spec: Option<Arc<ClusterSpec>>,
}

impl Entry {
    fn stamp(&self, cluster: &ClusterId) -> SpecStamp {
        SpecStamp {
            cluster: cluster.clone(),
            number: self.revision.number,
            node: self.revision.node.clone(),
            removed: self.text.is_none(),
        }
    }
}

/// What an apply did or would do to one cluster.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Applied {
    /// `metadata.name`.
    pub name: String,
    /// Revision in force afterwards.
    pub revision: u64,
    /// created, changed, unchanged.
    pub result: &'static str,
    /// Rendered changes.
    pub changes: Vec<String>,
}

/// All specs of the pair as this node knows them.
#[derive(Clone)]
pub struct SpecBook {
    store: SpecStore,
    node: String,
    entries: BTreeMap<ClusterId, Entry>,
    /// Removed by the peer while they ran here: kept, until they are stopped and the peer says it again.
    withheld: BTreeMap<ClusterId, SpecStamp>,
    /// What is stored and cannot be used, until it is replaced.
    unusable: BTreeMap<ClusterId, ApiError>,
}

impl SpecBook {
    /// Reads what is stored. A spec that this version refuses stays stored and is told by [`Self::unusable`].
    pub fn open(store: SpecStore, node: String) -> Result<Self, StoreError> {
        let mut unusable = BTreeMap::new();
        let mut entries = BTreeMap::new();
        for stored in store.list()? {
            match stored {
                Ok(StoredSpec { cluster, revision, yaml }) => {
                    let spec = yaml.as_deref().and_then(|text| match parse_one(&cluster.0, text) {
                        Ok(spec) => Some(Arc::new(spec)),
                        Err(error) => {
                            unusable.insert(cluster.clone(), not_usable(&cluster, &error.message));
                            None
                        }
                    });
                    entries.insert(cluster, Entry { revision, text: yaml, spec });
                }
                Err(error) => {
                    let cluster = cluster_of(&error);
                    let problem = not_usable(&cluster, &error.to_string());
                    unusable.insert(cluster, problem);
                }
            }
        }
        Ok(Self { store, node, entries, withheld: BTreeMap::new(), unusable })
    }

    /// Clusters whose stored spec this version cannot use, and why.
    pub fn unusable(&self) -> impl Iterator<Item = (&ClusterId, &ApiError)> {
        self.unusable.iter()
    }

    /// Which node removed this cluster's spec although it runs here.
    pub fn removed_by(&self, cluster: &ClusterId) -> Option<&str> {
        self.withheld.get(cluster).map(|stamp| stamp.node.as_str())
    }

    /// Clusters that the peer removed while they ran here.
    pub fn withheld(&self) -> impl Iterator<Item = &ClusterId> {
        self.withheld.keys()
    }

    /// A new version is on disk.
    fn enter(&mut self, cluster: ClusterId, entry: Entry) {
        self.unusable.remove(&cluster);
        self.withheld.remove(&cluster);
        self.entries.insert(cluster, entry);
    }

    /// Every cluster that is not removed.
    pub fn live(&self) -> impl Iterator<Item = (&ClusterId, &Entry)> {
        self.entries.iter().filter(|(_, e)| e.text.is_some())
    }

    /// One cluster, unless removed.
    pub fn get(&self, cluster: &ClusterId) -> Option<&Entry> {
        self.entries.get(cluster).filter(|e| e.text.is_some())
    }

    /// What the peer needs to know to ask for what it lacks.
    pub fn stamps(&self) -> Vec<SpecStamp> {
        self.entries.iter().map(|(cluster, e)| e.stamp(cluster)).collect()
    }

    /// The message that carries one entry, removed ones included.
    pub fn put(&self, cluster: &ClusterId) -> Option<Envelope> {
        let entry = self.entries.get(cluster)?;
        let (stamp, text) = (entry.stamp(cluster), entry.text.clone().unwrap_or_default());
        Some(Envelope::SpecPut { stamp, text, lacks: Vec::new() })
    }

    /// Which of the peer's specs are newer than ours (to ask for), and which of ours are newer (to send).
    pub fn compare(&self, theirs: &[SpecStamp]) -> (Vec<ClusterId>, Vec<ClusterId>) {
        let mut want = Vec::new();
        let mut send: Vec<ClusterId> = self.entries.keys().cloned().collect();
        for stamp in theirs {
            let mine = self.entries.get(&stamp.cluster).map(|e| e.stamp(&stamp.cluster));
            if mine.as_ref().is_none_or(|mine| stamp.newer_than(mine)) {
                want.push(stamp.cluster.clone());
            }
            if mine.is_none_or(|mine| !mine.newer_than(stamp)) {
                send.retain(|cluster| cluster != &stamp.cluster);
            }
        }
        (want, send)
    }

    /// Validates documents against each other and against the other specs in force; says what changes,
    /// and unless `dry_run` makes it durable. `pair` are the enrolled nodes. `running` tells whether a cluster runs on this node: a
    /// change that needs a stop is then refused. Returns the changed clusters for the node to act on.
    pub fn apply(
        &mut self,
        documents: &[Document],
        dry_run: bool,
        check_index: Option<u64>,
        pair: &[Node],
        running: impl Fn(&ClusterId) -> bool,
    ) -> Result<(Vec<Applied>, Vec<ClusterId>), ApiError> {
        let specs = self.validate(documents)?;
        for (spec, _) in &specs {
            fits(spec, pair)?;
        }
        self.told_apart(&specs)?;
        // Everything is checked before anything is stored: an apply is in force whole or not at all.
        for (spec, _) in &specs {
            self.admit(spec, dry_run, check_index, &running)?;
        }
        let mut applied = Vec::new();
        let mut changed = Vec::new();
        for (spec, text) in specs {
            let cluster = ClusterId(spec.metadata.name.clone());
            let old = self.entries.get(&cluster);
            let known = old.map_or(0, |e| e.revision.number);
            let before = old.and_then(|e| e.spec.clone());
            let changes = lines(&spec::diff(before.as_deref(), &spec));
            let result = match (&before, changes.is_empty()) {
                (None, _) => "created",
                (Some(_), true) => "unchanged",
                (Some(_), false) => "changed",
            };
            let mut revision = known;
            if result != "unchanged" && !dry_run {
                revision = known + 1;
                let stamp = Revision { number: revision, node: self.node.clone() };
                self.store.save(&cluster, &stamp, &text).map_err(|e| not_stored(&cluster, &e))?;
                let entry = Entry { revision: stamp, text: Some(text), spec: Some(Arc::new(spec)) };
                self.enter(cluster.clone(), entry);
                changed.push(cluster.clone());
            }
            applied.push(Applied { name: cluster.0, revision, result, changes });
        }
        Ok((applied, changed))
    }

    /// Two clusters of the pair must not have the same key in heartbeats.
    fn told_apart(&self, specs: &[(ClusterSpec, String)]) -> Result<(), ApiError> {
        let mut keys: BTreeMap<Key, ClusterId> = self.live().map(|(c, _)| (Key::of(c), c.clone())).collect();
        for (spec, _) in specs {
            let cluster = ClusterId(spec.metadata.name.clone());
            match keys.insert(Key::of(&cluster), cluster.clone()) {
                Some(other) if other != cluster => return Err(same_key(&cluster, &other)),
                _ => {}
            }
        }
        Ok(())
    }

    fn admit(
        &self,
        spec: &ClusterSpec,
        dry_run: bool,
        check_index: Option<u64>,
        running: &impl Fn(&ClusterId) -> bool,
    ) -> Result<(), ApiError> {
        let cluster = ClusterId(spec.metadata.name.clone());
        let old = self.entries.get(&cluster);
        let known = old.map_or(0, |e| e.revision.number);
        if let Some(expected) = check_index
            && expected != known
        {
            return Err(ApiError::new(
                "SKC-E7010",
                format!(
                    "{cluster} is at revision {known}, not {expected}: it was changed since; nothing was applied"
                ),
                "run `skc diff` again and apply with its revision",
            ));
        }
        let before = old.and_then(|e| e.spec.as_deref());
        let mut hard = spec::diff(before, spec);
        hard.retain(|c| before.is_some() && c.effect == spec::Effect::NeedsStop);
        let hard = lines(&hard);
        if !dry_run && !hard.is_empty() && running(&cluster) {
            return Err(ApiError::new(
                "SKC-E7016",
                format!(
                    "{cluster} runs here; nothing was applied. These changes need a stop:\n{}",
                    hard.join("\n")
                ),
                format!("skc stop {cluster} on both nodes, apply, skc start {cluster} on both"),
            ));
        }
        Ok(())
    }

    /// Removes a cluster's spec; the revision stays so that the peer cannot bring it back.
    pub fn remove(&mut self, cluster: &ClusterId) -> Result<(), ApiError> {
        let Some(entry) = self.entries.get(cluster).filter(|e| e.text.is_some()) else {
            return Err(unknown(cluster));
        };
        let revision = Revision { number: entry.revision.number + 1, node: self.node.clone() };
        self.store.remove(cluster, &revision).map_err(|e| not_stored(cluster, &e))?;
        self.enter(cluster.clone(), Entry { revision, text: None, spec: None });
        Ok(())
    }

    /// Takes a spec from the peer if it is newer and `fits`; true = it changed something here. A cluster that is
    /// not `stopped` here does not lose its spec: what serves must come up again after a restart.
    pub fn accept(
        &mut self,
        stamp: &SpecStamp,
        text: String,
        stopped: impl Fn(&ClusterId) -> bool,
        fits: impl Fn() -> Result<(), ApiError>,
    ) -> Result<bool, ApiError> {
        let cluster = &stamp.cluster;
        if self.entries.get(cluster).is_some_and(|e| !stamp.newer_than(&e.stamp(cluster))) {
            return Ok(false);
        }
        if stamp.removed && self.get(cluster).is_some() && !stopped(cluster) {
            self.withheld.insert(cluster.clone(), stamp.clone());
            return Err(ApiError::new(
                "SKC-E7022",
                format!("{} removed {cluster} while it runs here; its spec is kept", stamp.node),
                format!("skc stop {cluster} (it is removed then), or apply its spec again on {}", stamp.node),
            ));
        }
        let revision = Revision { number: stamp.number, node: stamp.node.clone() };
        let entry = if stamp.removed {
            self.store.remove(cluster, &revision).map_err(|e| not_stored(cluster, &e))?;
            Entry { revision, text: None, spec: None }
        } else {
            let spec = parse_one(&cluster.0, &text)?;
            fits()?;
            self.store.save(cluster, &revision, &text).map_err(|e| not_stored(cluster, &e))?;
            Entry { revision, text: Some(text), spec: Some(Arc::new(spec)) }
        };
        self.enter(cluster.clone(), entry);
        Ok(true)
    }

    fn validate(&self, documents: &[Document]) -> Result<Vec<(ClusterSpec, String)>, ApiError> {
        let given: Vec<Source> =
            documents.iter().map(|d| Source { file: d.file.clone(), text: d.text.clone() }).collect();
        let loaded = spec::load(&given).map_err(|f| refused(&f))?;
        if loaded.is_empty() {
            let hint = "name a file or a directory with specs";
            return Err(ApiError::new("SKC-E7011", "no ClusterSpec was given", hint));
        }
        // The other specs in force join the check for what two clusters cannot share.
        let replaced = |c: &ClusterId| loaded.iter().any(|l| l.spec.metadata.name == c.0);
        let mut all = given;
        for (cluster, entry) in self.live().filter(|(c, e)| !replaced(c) && e.spec.is_some()) {
            let text = entry.text.clone().unwrap_or_default();
            all.push(Source { file: format!("{cluster} (in force)"), text });
        }
        spec::load(&all).map_err(|f| refused(&f))?;
        let several = |file: &str| loaded.iter().filter(|l| l.file == file).count() > 1;
        Ok(loaded
            .iter()
            .map(|l| {
                // A file with one spec is kept to the letter, comments included.
                let text = documents.iter().find(|d| d.file == l.file && !several(&l.file));
                let text = text.map_or_else(|| spec::canonical(&l.spec), |d| d.text.clone());
                (l.spec.clone(), text)
            })
            .collect())
    }
}

/// "These two cannot be told apart".
pub fn same_key(cluster: &ClusterId, other: &ClusterId) -> ApiError {
    ApiError::new(
        "SKC-E7018",
        format!(
            "{cluster} and {other} have the same short name in heartbeats: one would be taken for the other"
        ),
        format!("give {cluster} another name"),
    )
}

/// Does a spec fit the enrolled nodes? Both must be in it (of a pair that is not complete, this one), with
/// the addresses they were enrolled with: the link knows no others, so others would be silently unused.
pub fn fits(spec: &ClusterSpec, pair: &[Node]) -> Result<(), ApiError> {
    let list =
        |addresses: &[IpAddr]| addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let mut problems = names_fit(spec, pair).err().into_iter().collect::<Vec<_>>();
    for node in pair {
        if let Some((_, written)) = spec.node(&node.name)
            && written.addresses != node.addresses
        {
            problems.push(format!(
                "addresses of {}: the spec says [{}], it was enrolled with [{}]; heartbeat paths are those of \
                 `skc init` and `skc join`, in that order",
                node.name,
                list(&written.addresses),
                list(&node.addresses)
            ));
        }
    }
    if problems.is_empty() {
        return Ok(());
    }
    let right = pair.iter().map(|n| format!("{{name: {}, addresses: [{}]}}", n.name, list(&n.addresses)));
    Err(misfit(spec, &problems.join("\n"), &right.collect::<Vec<_>>().join(", ")))
}

/// The part of [`fits`] without which a cluster cannot come up: the names; else what is wrong with them.
pub fn names_fit(spec: &ClusterSpec, pair: &[Node]) -> Result<(), String> {
    let named: Vec<&str> = spec.spec.nodes.iter().map(|n| n.name.as_str()).collect();
    let enrolled: Vec<&str> = pair.iter().map(|n| n.name.as_str()).collect();
    if enrolled.iter().all(|name| named.contains(name)) {
        return Ok(());
    }
    Err(format!("spec.nodes are {}; enrolled here: {}", named.join(" and "), enrolled.join(" and ")))
}

/// "The spec does not fit the pair".
pub fn misfit(spec: &ClusterSpec, why: &str, right: &str) -> ApiError {
    ApiError::new(
        "SKC-E7017",
        format!("{} does not fit this pair: {why}", spec.metadata.name),
        format!("write nodes: [{right}], or enrol the nodes as the spec has them"),
    )
}

/// Changes for people, one a line.
fn lines(changes: &[spec::Change]) -> Vec<String> {
    spec::diff::render(changes).lines().map(str::to_owned).collect()
}

fn parse_one(name: &str, text: &str) -> Result<ClusterSpec, ApiError> {
    let spec = spec::load_one(name, text).map_err(|f| refused(&f))?;
    if spec.metadata.name == name {
        return Ok(spec);
    }
    Err(ApiError::new(
        "SKC-E7012",
        format!("the stored text of {name} is the spec of {}", spec.metadata.name),
        "apply the spec again",
    ))
}

/// Whose file it is that cannot be read.
fn cluster_of(error: &StoreError) -> ClusterId {
    let path = match error {
        StoreError::Io { path, .. } | StoreError::Damaged { path, .. } => path.file_stem(),
        _ => None,
    };
    ClusterId(path.map_or_else(|| "?".to_owned(), |stem| stem.to_string_lossy().into_owned()))
}

fn not_usable(cluster: &ClusterId, why: &str) -> ApiError {
    ApiError::new(
        "SKC-E7012",
        format!("the stored spec of {cluster} cannot be used: {why}"),
        format!("skc apply -f FILE, with the right spec of {cluster}"),
    )
}

fn refused(findings: &spec::Findings) -> ApiError {
    let message = format!("the spec is refused, nothing was applied\n\n{findings}");
    ApiError::new("SKC-E7013", message, "mend every finding; `skc explain` has a page for each code")
}

/// The code of what is worth another try.
pub const NOT_STORED: &str = "SKC-E7014";

fn not_stored(cluster: &ClusterId, error: &StoreError) -> ApiError {
    ApiError::new(
        NOT_STORED,
        format!("the spec of {cluster} cannot be stored: {error}; the one before stays in force"),
        "see to the state directory's disk",
    )
}

/// "There is no such cluster".
pub fn unknown(cluster: &ClusterId) -> ApiError {
    ApiError::new("SKC-E7015", format!("there is no cluster {cluster}"), "`skc get` lists them")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::StateDir;

    fn spec(name: &str, directory: &str) -> Document {
        let text = format!(
            "apiVersion: skc.dev/v1\nkind: ClusterSpec\nmetadata: {{name: {name}}}\nspec:\n  nodes:\n    \
             - {{name: node-a, addresses: [10.0.1.1]}}\n    - {{name: node-b, addresses: [10.0.1.2]}}\n  \
             directories:\n    - {{path: {directory}}}\n"
        );
        Document { file: format!("{name}.yaml"), text }
    }

    fn node(name: &str, address: &str) -> Node {
        let addresses = vec![address.parse().unwrap()];
        Node { name: name.into(), addresses, port: 7690, certificate: String::new() }
    }

    /// The nodes of `spec`.
    fn pair() -> [Node; 2] {
        [node("node-a", "10.0.1.1"), node("node-b", "10.0.1.2")]
    }

    fn book(state: &StateDir) -> SpecBook {
        SpecBook::open(SpecStore::open(state).unwrap(), "node-a".into()).unwrap()
    }

    fn shop() -> ClusterId {
        ClusterId("shop".into())
    }

    #[test]
    fn a_stored_spec_that_cannot_be_used_is_told_until_it_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let revision = Revision { number: 7, node: "node-a".into() };
        SpecStore::open(&state).unwrap().save(&shop(), &revision, "spec: [").unwrap();
        std::fs::write(state.path("specs/mail.yaml"), [0xff, 0xfe]).unwrap();
        let mut book = book(&state);
        let told: Vec<_> = book.unusable().map(|(c, e)| (c.0.as_str(), e.code.as_str())).collect();
        assert_eq!(told, [("mail", "SKC-E7012"), ("shop", "SKC-E7012")]);
        let (applied, _) = book.apply(&[spec("shop", "/srv/shop")], false, None, &pair(), |_| false).unwrap();
        assert_eq!(applied[0].revision, 8);
        assert_eq!(book.unusable().count(), 1);
    }

    #[test]
    fn the_peer_cannot_remove_what_runs_here() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let mut book = book(&state);
        book.apply(&[spec("shop", "/srv/shop")], false, None, &pair(), |_| false).unwrap();
        let removal = SpecStamp { cluster: shop(), number: 2, node: "node-b".into(), removed: true };
        let error = book.accept(&removal, String::new(), |_| false, || Ok(())).expect_err("it runs");
        assert_eq!(error.code, "SKC-E7022");
        assert!(book.get(&shop()).is_some());
        assert_eq!(book.removed_by(&shop()), Some("node-b"));
        // At the next exchange of lists, when it is stopped.
        assert!(book.accept(&removal, String::new(), |_| true, || Ok(())).unwrap());
        assert!(book.get(&shop()).is_none() && book.removed_by(&shop()).is_none());
    }

    #[test]
    fn a_spec_that_does_not_fit_the_pair_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let mut book = book(&state);
        let mut apply = |pair: &[Node]| book.apply(&[spec("shop", "/srv/shop")], true, None, pair, |_| false);
        assert!(apply(&pair()).is_ok());
        assert!(apply(&pair()[..1]).is_ok(), "the other node has not joined yet");
        let other_name = apply(&[node("node-a", "10.0.1.1"), node("node-c", "10.0.1.2")]);
        let other_address = apply(&[node("node-a", "10.0.1.1"), node("node-b", "10.9.9.9")]);
        for (result, culprit) in [(other_name, "node-c"), (other_address, "10.9.9.9")] {
            let error = result.expect_err(culprit);
            assert!(error.code == "SKC-E7017" && error.message.contains(culprit), "{error}");
            assert!(error.hint.is_some_and(|hint| hint.contains(culprit)));
        }
    }

    #[test]
    fn clusters_that_heartbeats_cannot_tell_apart_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let mut book = book(&state);
        let (one, two) = crate::daemon::beat::colliding();
        let (one, two) = (spec(&one, "/srv/one"), spec(&two, "/srv/two"));
        let mut apply = |specs: &[Document]| book.apply(specs, false, None, &pair(), |_| false);
        let both = apply(&[one.clone(), two.clone()]).expect_err("in one apply");
        assert_eq!(both.code, "SKC-E7018");
        apply(std::slice::from_ref(&one)).unwrap();
        assert_eq!(apply(&[two]).expect_err("beside the one in force").code, "SKC-E7018");
        apply(&[one]).expect("itself again");
    }
}
