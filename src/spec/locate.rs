//! Where each value of a YAML text stands: a tree of spans from parser events.
//!
//! Second opinion beside `serde_yaml` (see `yaml`): it only locates and refuses forms. Invariants: at
//! most [`DEPTH_MAX`] levels and [`DOCUMENTS_MAX`] documents; no alias is ever followed.

use super::finding::{Path, Problem, Span, Step};
use crate::base::codes;
use saphyr_parser::{Event, Parser, ScalarStyle, Span as RawSpan};
use std::collections::BTreeMap;

/// Levels of nesting. A ClusterSpec needs seven; both parsers take far more.
pub(super) const DEPTH_MAX: usize = 64;
/// Documents in one file.
pub(super) const DOCUMENTS_MAX: usize = 64;

/// A value with its place.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) span: Span,
    pub(super) kind: Kind,
}

/// What the value is.
#[derive(Debug)]
pub(super) enum Kind {
    Scalar { text: String, plain: bool },
    List(Vec<Node>),
    Map(Vec<(String, Span, Node)>),
}

impl Node {
    /// The place of the value at `path`, or of the nearest value around it, and of its key.
    pub(super) fn find(&self, path: &Path) -> (Span, Option<Span>) {
        let (mut node, mut key) = (self, None);
        for step in &path.0 {
            let next = match (&node.kind, step) {
                (Kind::Map(entries), Step::Key(name)) => {
                    entries.iter().find(|(k, _, _)| k == name).map(|(_, span, value)| (value, Some(*span)))
                }
                (Kind::List(items), Step::Index(index)) => items.get(*index).map(|value| (value, None)),
                _ => None,
            };
            match next {
                Some((value, span)) => (node, key) = (value, span),
                None => break,
            }
        }
        (node.span, key)
    }

    /// Whether the document holds nothing.
    pub(super) fn is_null(&self) -> bool {
        matches!(&self.kind, Kind::Scalar { text, plain: true } if is_null_text(text))
    }
}

pub(super) fn is_null_text(text: &str) -> bool {
    matches!(text, "" | "~" | "null" | "Null" | "NULL")
}

/// Problems of form after which nothing more is read.
const PROBLEMS_MAX: usize = 200;

/// A problem with its place already known.
pub(super) type Located = (Span, Problem);

/// A collection whose end has not come yet.
struct Open {
    span: Span,
    /// Where it hangs, for messages.
    path: Path,
    entries: Vec<(String, Span, Node)>,
    /// The line of each key so far.
    keys: BTreeMap<String, usize>,
    /// A mapping's key that waits for its value; `None` in lists.
    key: Option<(String, Span)>,
    is_map: bool,
}

/// Builds one tree a document. Forms that specs may not use are reported and skipped over; a syntax
/// error ends the reading.
pub(super) fn documents(text: &str) -> (Vec<Node>, Vec<Located>) {
    let lines: Vec<usize> = text.lines().map(|l| l.chars().count()).collect();
    let mut builder = Builder { lines, open: Vec::new(), done: Vec::new(), problems: Vec::new() };
    let mut parser = Parser::new_from_str(text);
    while let Some(event) = parser.next_event() {
        let goes_on = match event {
            Ok((event, span)) => builder.event(event, &span),
            Err(error) => {
                let mark = *error.marker();
                let span = builder.span(&RawSpan::new(mark, mark));
                builder.report(span, codes::SPEC_SYNTAX, format!("not valid YAML: {}", error.info()), None);
                false
            }
        };
        if !goes_on || builder.problems.len() >= PROBLEMS_MAX {
            break;
        }
    }
    (builder.done, builder.problems)
}

struct Builder {
    /// Length of each line.
    lines: Vec<usize>,
    open: Vec<Open>,
    done: Vec<Node>,
    problems: Vec<Located>,
}

impl Builder {
    /// Takes one event; false ends the reading.
    fn event(&mut self, event: Event<'_>, raw: &RawSpan) -> bool {
        let span = self.span(raw);
        let (anchor, tag) = match &event {
            Event::Scalar(_, _, anchor, tag)
            | Event::SequenceStart(anchor, tag)
            | Event::MappingStart(anchor, tag) => (*anchor, tag.is_some()),
            _ => (0, false),
        };
        if anchor != 0 {
            self.form(span, "an anchor (&)");
        }
        if tag {
            self.form(span, "a tag (!)");
        }
        match event {
            Event::Alias(_) => {
                self.form(span, "an alias (*)");
                self.value(Node { span, kind: Kind::Scalar { text: String::new(), plain: true } });
            }
            Event::Scalar(text, style, ..) => {
                let plain = style == ScalarStyle::Plain;
                self.value(Node { span, kind: Kind::Scalar { text: text.into_owned(), plain } });
            }
            Event::SequenceStart(..) | Event::MappingStart(..) => {
                if self.open.len() >= DEPTH_MAX {
                    let message = format!("nested more than {DEPTH_MAX} levels deep");
                    self.report(span, codes::SPEC_TOO_BIG, message, None);
                    return false;
                }
                let is_map = matches!(event, Event::MappingStart(..));
                let path = self.next_path();
                self.open.push(Open {
                    span,
                    path,
                    entries: Vec::new(),
                    keys: BTreeMap::new(),
                    key: None,
                    is_map,
                });
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(),
            Event::DocumentStart(_) if self.done.len() >= DOCUMENTS_MAX => {
                let message = format!("more than {DOCUMENTS_MAX} documents in one file");
                self.report(span, codes::SPEC_TOO_BIG, message, None);
                return false;
            }
            _ => {}
        }
        true
    }

    /// The path of the value that comes next.
    fn next_path(&self) -> Path {
        match self.open.last() {
            Some(Open { path, key: Some((key, _)), .. }) => path.key(key),
            Some(Open { path, entries, is_map: false, .. }) => path.index(entries.len()),
            Some(Open { path, .. }) => path.clone(),
            None => Path::default(),
        }
    }

    /// Files a finished value: as key, as value of the waiting key, as item, or as document.
    fn value(&mut self, node: Node) {
        let Some(open) = self.open.last_mut() else {
            self.done.push(node);
            return;
        };
        if !open.is_map {
            let span = node.span;
            open.entries.push((String::new(), span, node));
            return;
        }
        if let Some((key, span)) = open.key.take() {
            open.entries.push((key, span, node));
            return;
        }
        let (span, path) = (node.span, open.path.clone());
        let Kind::Scalar { text, .. } = node.kind else {
            open.key = Some((String::new(), span));
            self.form(span, "a key that is no text");
            return;
        };
        let twice = open.keys.insert(text.clone(), span.line);
        open.key = Some((text.clone(), span));
        if text == "<<" {
            self.form(span, "a merge key (<<)");
        }
        if let Some(first) = twice {
            let message = format!("key {text:?} stands twice in {path}");
            let hint = format!("it stands already in line {first}; remove one of the two");
            self.report(span, codes::SPEC_DUPLICATE_KEY, message, Some(hint));
        }
    }

    fn close(&mut self) {
        let Some(open) = self.open.pop() else { return };
        let kind = if open.is_map {
            Kind::Map(open.entries)
        } else {
            Kind::List(open.entries.into_iter().map(|(_, _, node)| node).collect())
        };
        self.value(Node { span: open.span, kind });
    }

    fn form(&mut self, span: Span, what: &str) {
        let hint = "write the value out where it is used".to_owned();
        self.report(span, codes::SPEC_FORM, format!("{what} may not be used in a spec"), Some(hint));
    }

    fn report(&mut self, span: Span, code: codes::Code, message: String, hint: Option<String>) {
        let mut problem = Problem::new(&self.next_path(), code, message);
        problem.hint = hint;
        self.problems.push((span, problem));
    }

    /// The parser counts columns from 0 and spans may reach over several lines.
    fn span(&self, raw: &RawSpan) -> Span {
        let (line, column) = (raw.start.line().max(1), raw.start.col() + 1);
        let end = if raw.end.line() == raw.start.line() {
            raw.end.col()
        } else {
            self.lines.get(line - 1).copied().unwrap_or(0)
        };
        Span { line, column, length: end.saturating_sub(column - 1).max(1) }
    }
}
