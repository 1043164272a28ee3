//! What is wrong with a document, where, and what to do: the findings and how they look.

use crate::base::codes::Code;
use serde::ser::{Serialize, SerializeStruct, Serializer};
use std::fmt::{self, Write};

/// Longest part of a source line that is shown; longer lines are cut around the finding.
const LINE_SHOWN: usize = 120;

/// One step from a value to one of its parts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Into a mapping.
    Key(String),
    /// Into a list.
    Index(usize),
}

/// Where a value stands within its document: `spec.nodes[0].name`.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Path(pub Vec<Step>);

impl Path {
    /// This path and one key.
    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        self.with(Step::Key(key.to_owned()))
    }

    /// This path and one index.
    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        self.with(Step::Index(index))
    }

    fn with(&self, step: Step) -> Self {
        let mut steps = self.0.clone();
        steps.push(step);
        Self(steps)
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("the document");
        }
        for (i, step) in self.0.iter().enumerate() {
            match step {
                Step::Key(key) if i == 0 => f.write_str(key)?,
                Step::Key(key) => write!(f, ".{key}")?,
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

/// What of a value a problem points at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// The value itself.
    Value,
    /// Its key.
    Key,
}

/// A finding before it has a place in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The value it is about.
    pub path: Path,
    /// What the caret points at.
    pub at: At,
    /// The kind of problem.
    pub code: Code,
    /// One sentence.
    pub message: String,
    /// What to write instead, if that can be said.
    pub hint: Option<String>,
}

impl Problem {
    /// A problem of the value at `path`.
    pub fn new(path: &Path, code: Code, message: impl Into<String>) -> Self {
        Self { path: path.clone(), at: At::Value, code, message: message.into(), hint: None }
    }

    /// Points at the key instead.
    #[must_use]
    pub fn at_key(mut self) -> Self {
        self.at = At::Key;
        self
    }

    /// With a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// A place in a text. Lines and columns count from 1, columns and length in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    /// Line.
    pub line: usize,
    /// Column.
    pub column: usize,
    /// Characters on that line; at least 1.
    pub length: usize,
}

/// One thing that is wrong, with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The file as it was named.
    pub file: String,
    /// Where.
    pub span: Span,
    /// That line, without control characters.
    pub source_line: String,
    /// The value it is about: `spec.nodes[0].name`.
    pub path: String,
    /// The kind of problem.
    pub code: Code,
    /// One sentence.
    pub message: String,
    /// What to write instead.
    pub hint: Option<String>,
}

impl Finding {
    /// Is it about something that is allowed?
    pub fn is_warning(&self) -> bool {
        self.code.id.starts_with("SKC-E11")
    }

    /// Puts a problem at its place in `text`.
    pub fn new(file: &str, text: &str, span: Span, problem: Problem) -> Self {
        let line = text.lines().nth(span.line.saturating_sub(1)).unwrap_or("");
        Self {
            file: file.to_owned(),
            span,
            // A terminal must not act on what a file holds; one character stays one column.
            source_line: line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect(),
            path: problem.path.to_string(),
            code: problem.code,
            message: problem.message,
            hint: problem.hint,
        }
    }
}

impl Serialize for Finding {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut s = serializer.serialize_struct("Finding", 8)?;
        s.serialize_field("file", &self.file)?;
        s.serialize_field("line", &self.span.line)?;
        s.serialize_field("column", &self.span.column)?;
        s.serialize_field("length", &self.span.length)?;
        s.serialize_field("code", self.code.id)?;
        s.serialize_field("path", &self.path)?;
        s.serialize_field("message", &self.message)?;
        s.serialize_field("hint", &self.hint)?;
        s.end()
    }
}

/// Draws the finding as compilers do: message, place, line, caret, hint.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Span { line, column, length } = self.span;
        let gutter = " ".repeat(line.to_string().len());
        let (shown, start) = window(&self.source_line, column);
        let before = column.saturating_sub(1).saturating_sub(start);
        let room = shown.chars().count().saturating_sub(before).max(1);
        let word = if self.is_warning() { "warning" } else { "error" };
        writeln!(f, "{word}[{}]: {}", self.code, self.message)?;
        writeln!(f, "{gutter}--> {}:{line}:{column}", self.file)?;
        writeln!(f, "{gutter} |")?;
        writeln!(f, "{line} | {}", shown.trim_end())?;
        writeln!(f, "{gutter} | {}{}", " ".repeat(before), "^".repeat(length.clamp(1, room)))?;
        if let Some(hint) = &self.hint {
            writeln!(f, "{gutter} = hint: {hint}")?;
        }
        Ok(())
    }
}

/// The part of a long line around `column`, and how many characters were cut before it.
fn window(line: &str, column: usize) -> (String, usize) {
    if line.chars().count() <= LINE_SHOWN {
        return (line.to_owned(), 0);
    }
    let start = column.saturating_sub(1 + LINE_SHOWN / 3);
    (line.chars().skip(start).take(LINE_SHOWN).collect(), start)
}

/// Everything that is wrong with a set of documents; never empty when returned as an error.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings(pub Vec<Finding>);

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.0 {
            writeln!(f, "{finding}")?;
        }
        let mut codes: Vec<&str> = self.0.iter().map(|x| x.code.id).collect();
        codes.sort_unstable();
        codes.dedup();
        let plural = if self.0.len() == 1 { "finding" } else { "findings" };
        let mut more = String::new();
        if let Some(first) = codes.first() {
            write!(more, "; more: skc explain {first}")?;
            if codes.len() > 1 {
                write!(more, " (also {})", codes[1..].join(", "))?;
            }
        }
        write!(f, "{} {plural}{more}", self.0.len())
    }
}

impl std::error::Error for Findings {}

impl Serialize for Findings {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}
