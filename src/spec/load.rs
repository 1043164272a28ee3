//! Texts to specs: the one way in.
//!
//! Form, then shape against the schema, then the rules, then the rules between documents; everything that is
//! wrong is reported at once, each with its place.

use super::finding::{At, Finding, Findings, Path, Problem, Span};
use super::view::View;
use super::yaml::{self, Document};
use super::{ClusterSpec, across, rules, schema, shape, timers};
use crate::base::codes;
use serde_json::Value;

/// Findings of all texts after which no more are collected.
pub(super) const FINDINGS_MAX: usize = 1000;

/// Clusters that are checked together: twenty times what a pair is made for. Each is compared with
/// each other one.
pub const CLUSTERS_MAX: usize = 1000;

/// A text and the name by which findings call it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// File name, or what stands for it.
    pub file: String,
    /// YAML; JSON is YAML too.
    pub text: String,
}

/// A spec and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// The name of its source.
    pub file: String,
    /// The line in which its document begins, from 1.
    pub line: usize,
    /// The spec; every rule holds.
    pub spec: ClusterSpec,
}

/// Reads all specs of all sources and checks them, also against each other.
///
/// # Errors
/// Everything that is wrong; never empty. Specs are returned only when all of them are good.
pub fn load(sources: &[Source]) -> Result<Vec<Loaded>, Findings> {
    let schema = schema();
    let mut findings = Vec::new();
    let mut documents: Vec<(&Source, Document)> = Vec::new();
    for source in sources {
        match yaml::read(&source.file, &source.text) {
            Ok(read) => documents.extend(read.into_iter().map(|d| (source, d))),
            Err(problems) => findings.extend(problems),
        }
    }
    let mut clusters = Vec::new();
    for (source, document) in &documents {
        if findings.len() >= FINDINGS_MAX {
            break;
        }
        if clusters.len() >= CLUSTERS_MAX {
            let message = format!("more than {CLUSTERS_MAX} clusters at once");
            findings.push(place(
                source,
                document,
                Problem::new(&Path::default(), codes::SPEC_TOO_BIG, message),
            ));
            break;
        }
        let problems = if let Some(problem) = not_a_spec(&document.value) {
            vec![problem]
        } else {
            clusters.push((*source, document));
            let mut problems = shape::check(&schema, &document.value);
            problems.extend(rules::check(&View::root(&document.value)));
            problems.truncate(shape::PROBLEMS_MAX);
            problems
        };
        findings.extend(problems.into_iter().map(|p| place(source, document, p)));
    }
    let places: Vec<String> =
        clusters.iter().map(|(source, d)| format!("{}:{}", source.file, d.node.span.line)).collect();
    let claims: Vec<(&str, &Value)> =
        places.iter().zip(&clusters).map(|(place, (_, d))| (place.as_str(), &d.value)).collect();
    for (index, problem) in across::check(&claims) {
        if let Some((source, document)) = clusters.get(index) {
            findings.push(place(source, document, problem));
        }
    }
    let mut loaded = Vec::new();
    if findings.is_empty() {
        for (source, document) in documents {
            match serde_json::from_value(document.value.clone()) {
                Ok(spec) => {
                    loaded.push(Loaded { file: source.file.clone(), line: document.node.span.line, spec });
                }
                // The schema comes from the types, so this is a rule that only the types know.
                Err(error) => {
                    let problem = Problem::new(&Path::default(), codes::SPEC_TYPE, error.to_string());
                    findings.push(place(source, &document, problem));
                }
            }
        }
    }
    if findings.is_empty() {
        return Ok(loaded);
    }
    order(sources, &mut findings);
    Err(Findings(findings))
}

/// What is unwise in sources that [`load`] accepts, each with its place.
pub fn warnings(sources: &[Source]) -> Findings {
    let mut findings = Vec::new();
    for source in sources {
        for document in yaml::read(&source.file, &source.text).unwrap_or_default() {
            let mut problems = Vec::new();
            timers::warn(&View::root(&document.value).get("spec"), &mut problems);
            findings.extend(problems.into_iter().map(|p| place(source, &document, p)));
        }
    }
    order(sources, &mut findings);
    Findings(findings)
}

/// Reads a text that holds exactly one spec.
///
/// # Errors
/// Everything that is wrong; a second document is.
pub fn load_one(file: &str, text: &str) -> Result<ClusterSpec, Findings> {
    let source = Source { file: file.to_owned(), text: text.to_owned() };
    let mut loaded = load(std::slice::from_ref(&source))?;
    match (loaded.pop(), loaded.is_empty()) {
        (Some(one), true) => Ok(one.spec),
        (second, _) => {
            let line = second.map_or(1, |s| s.line);
            let problem = Problem::new(
                &Path::default(),
                codes::SPEC_NOT_ONE,
                "one spec is expected here, and this is another",
            );
            let span = Span { line, column: 1, length: 1 };
            Err(Findings(vec![Finding::new(file, text, span, problem)]))
        }
    }
}

/// Checks a spec that was built by hand or came over the wire; empty means that every rule holds.
pub fn check(spec: &ClusterSpec) -> Vec<Problem> {
    match serde_json::to_value(spec) {
        Ok(value) => {
            let mut problems = shape::check(&schema(), &value);
            problems.extend(rules::check(&View::root(&value)));
            problems
        }
        Err(error) => {
            vec![Problem::new(&Path::default(), codes::SPEC_TYPE, error.to_string())]
        }
    }
}

fn not_a_spec(value: &Value) -> Option<Problem> {
    let path = Path::default();
    if !value.is_object() {
        return Some(Problem::new(&path, codes::SPEC_NOT_ONE, "this is no mapping, so it is no ClusterSpec"));
    }
    let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or("");
    let (version, kind) = (text("apiVersion"), text("kind"));
    let (right_version, right_kind) = (version == "skc.dev/v1", kind == "ClusterSpec");
    if right_version && right_kind {
        return None;
    }
    let (key, found) = if right_kind { ("apiVersion", version) } else { ("kind", kind) };
    let problem = if value.get(key).is_some() {
        Problem::new(&path.key(key), codes::SPEC_NOT_ONE, format!("{key} {found:?} is not known here"))
    } else {
        Problem::new(&path, codes::SPEC_NOT_ONE, format!("the document has no {key}"))
    };
    Some(problem.hint("a spec begins with apiVersion: skc.dev/v1 and kind: ClusterSpec"))
}

fn place(source: &Source, document: &Document, problem: Problem) -> Finding {
    let (value, key) = document.node.find(&problem.path);
    let span = match (problem.at, key) {
        (At::Key, Some(key)) => key,
        _ => value,
    };
    Finding::new(&source.file, &source.text, span, problem)
}

/// Sources in the given order, within each by place; what is twice at one place is said once.
fn order(sources: &[Source], findings: &mut Vec<Finding>) {
    let rank = |f: &Finding| sources.iter().position(|s| s.file == f.file);
    findings.sort_by_key(|f| (rank(f), f.span, f.code.id));
    findings.dedup();
    findings.truncate(FINDINGS_MAX);
}
