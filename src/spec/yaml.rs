//! Text to plain values, read by two parsers that must agree.
//!
//! `serde_yaml` gives the values, `saphyr-parser` (in `locate`) the places. Where they see different structures the
//! document is refused, so that no text means one thing to us and another to the next tool.
//! Bounded: [`BYTES_MAX`] before anything is parsed; aliases are refused before `serde_yaml` sees them, so
//! nothing expands.

use super::finding::{Finding, Path, Problem, Span};
use super::locate::{self, Kind, Located, Node};
use crate::base::codes;
use serde::Deserialize;
use serde_json::{Map, Number, Value};
use serde_yaml::Value as Yaml;

/// Largest file. A spec has a few KiB; a megabyte is a mistake.
pub const BYTES_MAX: usize = 1 << 20;

/// One document: its values and where they stand.
pub(super) struct Document {
    pub(super) value: Value,
    pub(super) node: Node,
}

const START: Span = Span { line: 1, column: 1, length: 1 };

/// Reads every non-empty document of a text.
///
/// # Errors
/// Every problem of form; then there are no values at all, because their meaning is in doubt.
pub(super) fn read(file: &str, text: &str) -> Result<Vec<Document>, Vec<Finding>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text); // a byte order mark means nothing in UTF-8
    parse(text).map_err(|problems| {
        problems.into_iter().map(|(span, problem)| Finding::new(file, text, span, problem)).collect()
    })
}

fn parse(text: &str) -> Result<Vec<Document>, Vec<Located>> {
    let whole = |code, message: String| vec![(START, Problem::new(&Path::default(), code, message))];
    if text.len() > BYTES_MAX {
        let message = format!("{} bytes; a spec file may hold {BYTES_MAX}", text.len());
        return Err(whole(codes::SPEC_TOO_BIG, message));
    }
    if let Some(problem) = control_character(text) {
        return Err(vec![problem]);
    }
    let (nodes, problems) = locate::documents(text);
    if !problems.is_empty() {
        return Err(problems);
    }
    let values = values(text)?;
    if nodes.len() != values.len() && !(nodes.is_empty() && values.iter().all(Yaml::is_null)) {
        let message = format!("one parser sees {} documents, the other {}", nodes.len(), values.len());
        return Err(whole(codes::SPEC_AMBIGUOUS, message));
    }
    let mut documents = Vec::new();
    for (node, yaml) in nodes.into_iter().zip(values) {
        let value = agree(&node, &yaml, &Path::default()).map_err(|problem| vec![*problem])?;
        if !node.is_null() {
            documents.push(Document { value, node });
        }
    }
    if documents.is_empty() {
        let message = "no document in this file".to_owned();
        return Err(whole(codes::SPEC_NOT_ONE, message));
    }
    Ok(documents)
}

fn control_character(text: &str) -> Option<Located> {
    let bad = |c: char| c.is_control() && !matches!(c, '\n' | '\r' | '\t');
    for (number, line) in text.split('\n').enumerate() {
        if let Some((column, c)) = line.chars().enumerate().find(|(_, c)| bad(*c)) {
            let span = Span { line: number + 1, column: column + 1, length: 1 };
            let message = format!("control character U+{:04X}", u32::from(c));
            return Some((span, Problem::new(&Path::default(), codes::SPEC_SYNTAX, message)));
        }
    }
    None
}

fn values(text: &str) -> Result<Vec<Yaml>, Vec<Located>> {
    let mut values = Vec::new();
    for document in serde_yaml::Deserializer::from_str(text) {
        match Yaml::deserialize(document) {
            Ok(value) => values.push(value),
            Err(error) => {
                let span = error.location().map_or(START, |l| Span {
                    line: l.line().max(1),
                    column: l.column().max(1),
                    length: 1,
                });
                let message = format!("the second parser does not read it: {error}");
                return Err(vec![(span, Problem::new(&Path::default(), codes::SPEC_AMBIGUOUS, message))]);
            }
        }
        if values.len() > locate::DOCUMENTS_MAX {
            break;
        }
    }
    Ok(values)
}

/// The value as JSON if both parsers see the same. Depth is bounded by `locate`.
fn agree(node: &Node, yaml: &Yaml, path: &Path) -> Result<Value, Box<Located>> {
    let differ = || {
        let message = format!("two YAML parsers read {path} differently");
        let problem = Problem::new(path, codes::SPEC_AMBIGUOUS, message);
        Box::new((node.span, problem.hint("quote the text, or write it in block style")))
    };
    match (&node.kind, yaml) {
        (Kind::Map(entries), Yaml::Mapping(map)) if entries.len() == map.len() => {
            let mut object = Map::new();
            for ((key, _, child), (yaml_key, yaml_child)) in entries.iter().zip(map) {
                if !same_key(key, yaml_key) {
                    return Err(differ());
                }
                object.insert(key.clone(), agree(child, yaml_child, &path.key(key))?);
            }
            Ok(Value::Object(object))
        }
        (Kind::List(items), Yaml::Sequence(values)) if items.len() == values.len() => items
            .iter()
            .zip(values)
            .enumerate()
            .map(|(i, (item, value))| agree(item, value, &path.index(i)))
            .collect::<Result<Vec<_>, _>>()
            .map(Value::Array),
        (Kind::Scalar { text, .. }, Yaml::String(value)) if text == value => Ok(Value::from(text.as_str())),
        (Kind::Scalar { text, plain: true }, Yaml::Null) if locate::is_null_text(text) => Ok(Value::Null),
        (Kind::Scalar { text, plain: true }, Yaml::Bool(value))
            if text.eq_ignore_ascii_case(if *value { "true" } else { "false" }) =>
        {
            Ok(Value::from(*value))
        }
        (Kind::Scalar { text, plain: true }, Yaml::Number(value)) => number(text, value).ok_or_else(differ),
        _ => Err(differ()),
    }
}

/// Keys are texts; a plain `5:` or `true:` counts as the text it shows.
fn same_key(key: &str, yaml: &Yaml) -> bool {
    match yaml {
        Yaml::String(text) => text == key,
        Yaml::Number(number) => number.to_string() == key,
        Yaml::Bool(value) => value.to_string() == key,
        Yaml::Null => locate::is_null_text(key),
        _ => false,
    }
}

/// Numbers other than decimal integers and floats ("0x10", ".inf", "1_000") stay texts: no field wants them.
fn number(text: &str, value: &serde_yaml::Number) -> Option<Value> {
    if let Some(n) = value.as_u64() {
        return Some(if n.to_string() == text { Value::from(n) } else { Value::from(text) });
    }
    if let Some(n) = value.as_i64() {
        return Some(if n.to_string() == text { Value::from(n) } else { Value::from(text) });
    }
    let float = value.as_f64()?;
    Some(Number::from_f64(float).map_or_else(|| Value::from(text), Value::Number))
}
