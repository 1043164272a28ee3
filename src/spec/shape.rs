//! Checks a value against the JSON schema of ClusterSpec and reports everything that does not fit.
//!
//! The schema is derived from the types, so fields, words, bounds and forms have one source. Only what
//! our own types generate is understood (`$ref`, objects, lists, strings, integers, words); this is no
//! general validator. Texts with a meaning carry a `format` that `formats` knows.

use super::finding::{Path, Problem};
use super::{formats, nearest};
use crate::base::codes;
use serde_json::{Map, Value};

/// Findings of one document at which the walk stops: nobody reads more, and a hostile file could hold
/// a million.
pub(super) const PROBLEMS_MAX: usize = 200;

/// Fields that users of similar tools write and that will come: (schema of the object, field).
const FIELDS_TO_COME: &[(&str, &str, &str)] = &[
    ("Checker", "http", "use tcp or exec"),
    ("Checker", "systemd", "use exec, for example [systemctl, is-active, UNIT]"),
    ("Service", "systemd", "use exec with start, stop and status: [systemctl, start, UNIT] and so on"),
    ("Arbitration", "witness", "use ping"),
    ("Arbitration", "etcd", "use ping"),
];

pub(super) fn check(schema: &Value, value: &Value) -> Vec<Problem> {
    let mut walk = Walk { root: schema, problems: Vec::new() };
    walk.value(schema, value, &Path::default(), "");
    walk.problems
}

struct Walk<'a> {
    root: &'a Value,
    problems: Vec<Problem>,
}

/// A schema, its `$ref` resolved: keywords are looked up beside the reference first.
#[derive(Clone, Copy)]
struct Rule<'a> {
    own: &'a Value,
    base: &'a Value,
    name: &'a str,
}

impl<'a> Rule<'a> {
    fn get(self, keyword: &str) -> Option<&'a Value> {
        self.own.get(keyword).or_else(|| self.base.get(keyword))
    }
    fn text(self, keyword: &str) -> &'a str {
        self.get(keyword).and_then(Value::as_str).unwrap_or("")
    }
    fn count(self, keyword: &str, absent: u64) -> u64 {
        self.get(keyword).and_then(Value::as_u64).unwrap_or(absent)
    }
}

impl<'a> Walk<'a> {
    fn rule(&self, schema: &'a Value, name: &'a str) -> Rule<'a> {
        let target = schema.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix("#/$defs/"));
        match target.and_then(|name| Some((self.root.get("$defs")?.get(name)?, name))) {
            Some((base, name)) => Rule { own: schema, base, name },
            None => Rule { own: schema, base: schema, name },
        }
    }

    fn report(&mut self, problem: Problem) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(problem);
        }
    }

    fn value(&mut self, schema: &'a Value, value: &Value, path: &Path, name: &'a str) {
        let rule = self.rule(schema, name);
        let words = words(rule);
        if !words.is_empty() {
            return self.word(&words, value, path);
        }
        match (rule.text("type"), value) {
            ("object", Value::Object(object)) => self.object(rule, object, path),
            ("array", Value::Array(items)) => self.list(rule, items, path),
            ("string", Value::String(text)) => self.string(rule, text, path),
            ("integer", Value::Number(_)) => self.integer(rule, value, path),
            // `timeout: 2` is a forgotten unit rather than a wrong type.
            ("string", Value::Number(n)) if formats::is_quantity(rule.text("format")) => {
                self.string(rule, &n.to_string(), path);
            }
            (expected, found) => self.report(mismatch(expected, found, path)),
        }
    }

    fn word(&mut self, words: &[&str], value: &Value, path: &Path) {
        let Value::String(text) = value else {
            return self.report(mismatch("string", value, path));
        };
        if words.contains(&text.as_str()) {
            return;
        }
        let problem = Problem::new(path, codes::SPEC_WORD, format!("{text:?} is not allowed in {path}"));
        let hint = match nearest(text, words.iter().copied()) {
            Some(word) => format!("did you mean {word}? Allowed: {}", words.join(", ")),
            None => format!("allowed: {}", words.join(", ")),
        };
        self.report(problem.hint(hint));
    }

    fn object(&mut self, rule: Rule<'a>, object: &Map<String, Value>, path: &Path) {
        let none = Map::new();
        let fields = rule.get("properties").and_then(Value::as_object).unwrap_or(&none);
        let others = rule.get("additionalProperties").filter(|s| s.is_object());
        let max = rule.count("maxProperties", u64::MAX);
        if object.len() as u64 > max {
            let message = format!("{path} has {} entries; at most {max} are supported", object.len());
            self.report(Problem::new(path, codes::SPEC_RANGE, message).at_key());
        }
        let required = rule.get("required").and_then(Value::as_array);
        for field in required.into_iter().flatten().filter_map(Value::as_str) {
            if !object.contains_key(field) {
                let message = format!("{path} lacks {field:?}");
                self.report(Problem::new(path, codes::SPEC_MISSING_FIELD, message).at_key());
            }
        }
        for (key, value) in object {
            if self.problems.len() >= PROBLEMS_MAX {
                return;
            }
            let path = path.key(key);
            match (rule.get("properties").and_then(|p| p.get(key)), others) {
                (Some(schema), _) | (None, Some(schema)) => self.value(schema, value, &path, ""),
                (None, None) => self.unknown(rule.name, key, fields, &path),
            }
        }
    }

    fn unknown(&mut self, object: &str, key: &str, fields: &Map<String, Value>, path: &Path) {
        if let Some((_, _, instead)) = FIELDS_TO_COME.iter().find(|(o, f, _)| *o == object && *f == key) {
            let problem = Problem::new(path, codes::SPEC_NOT_YET, format!("{path} is not supported yet"));
            return self.report(problem.at_key().hint(*instead));
        }
        let names = || fields.keys().map(String::as_str);
        let hint = match nearest(key, names()) {
            Some(name) => format!("did you mean {name}?"),
            None => match self.elsewhere(key) {
                Some(place) => format!("{key} belongs to {place}"),
                None => format!("fields here: {}", names().collect::<Vec<_>>().join(", ")),
            },
        };
        let problem = Problem::new(path, codes::SPEC_UNKNOWN_FIELD, format!("{path} is no field"));
        self.report(problem.at_key().hint(hint));
    }

    /// The one object that has a field of this name, if there is exactly one.
    fn elsewhere(&self, key: &str) -> Option<&'a str> {
        let defs = self.root.get("$defs")?.as_object()?;
        let mut found = defs
            .iter()
            .filter(|(_, def)| def.get("properties").is_some_and(|p| p.get(key).is_some()))
            .map(|(name, _)| name.as_str());
        let first = found.next()?;
        found.next().is_none().then_some(first)
    }

    fn list(&mut self, rule: Rule<'a>, items: &[Value], path: &Path) {
        let (min, max) = (rule.count("minItems", 0), rule.count("maxItems", u64::MAX));
        let n = items.len() as u64;
        if n < min || n > max {
            let wanted = match (min, max) {
                (a, b) if a == b => format!("exactly {a}"),
                (_, b) if n > b => format!("at most {b}"),
                (a, _) => format!("at least {a}"),
            };
            let message = format!("{path} has {n} entries; {wanted} are supported");
            self.report(Problem::new(path, codes::SPEC_RANGE, message).at_key());
        }
        let Some(schema) = rule.get("items") else { return };
        // One over the limit is still looked at, the rest is not: the list is refused anyway.
        for (index, item) in items.iter().enumerate().take(usize::try_from(max).unwrap_or(usize::MAX)) {
            self.value(schema, item, &path.index(index), "");
        }
        if let Some(problem) = formats::list(rule.text("format"), items, path) {
            self.report(problem);
        }
    }

    fn string(&mut self, rule: Rule<'a>, text: &str, path: &Path) {
        let (min, max) = (rule.count("minLength", 0), rule.count("maxLength", u64::MAX));
        let length = text.chars().count() as u64;
        if length < min {
            return self.report(Problem::new(path, codes::SPEC_RANGE, format!("{path} is empty")));
        }
        if length > max {
            let message = format!("{path} has {length} characters; at most {max} are allowed");
            return self.report(Problem::new(path, codes::SPEC_RANGE, message));
        }
        let bounds = (rule.text("x-skc-min"), rule.text("x-skc-max"));
        if let Some(problem) = formats::text(rule.text("format"), text, bounds, path) {
            self.report(problem);
        }
    }

    fn integer(&mut self, rule: Rule<'a>, value: &Value, path: &Path) {
        let (min, max) = (rule.count("minimum", 0), rule.count("maximum", u64::MAX));
        match value.as_u64() {
            Some(n) if (min..=max).contains(&n) => {}
            _ if value.is_f64() => {
                self.report(Problem::new(path, codes::SPEC_TYPE, format!("{path} must be a whole number")));
            }
            _ => {
                let message = format!("{value} is not within {min} to {max}");
                self.report(Problem::new(path, codes::SPEC_RANGE, message));
            }
        }
    }
}

/// The words of a choice: `oneOf` constants (documented variants) or `enum`.
fn words(rule: Rule<'_>) -> Vec<&str> {
    let constants = rule.get("oneOf").and_then(Value::as_array).into_iter().flatten();
    let constants = constants.filter_map(|s| s.get("const").and_then(Value::as_str));
    let list = rule.get("enum").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    constants.chain(list).collect()
}

fn mismatch(expected: &str, found: &Value, path: &Path) -> Problem {
    let wanted = match expected {
        "object" => "a mapping (key: value)",
        "array" => "a list",
        "string" => "text",
        "integer" => "a whole number",
        _ => "something else",
    };
    if found.is_null() {
        let problem = Problem::new(path, codes::SPEC_TYPE, format!("{path} is empty; {wanted} is expected"));
        return problem.at_key().hint("give a value, or remove the key to get the default");
    }
    let (seen, scalar) = match found {
        Value::Bool(b) => (format!("the truth value {b}"), true),
        Value::Number(n) => (format!("the number {n}"), true),
        Value::String(_) => ("text".to_owned(), false),
        Value::Array(_) => ("a list".to_owned(), false),
        _ => ("a mapping".to_owned(), false),
    };
    let problem = Problem::new(path, codes::SPEC_TYPE, format!("{path} must be {wanted}, not {seen}"));
    match (expected, found) {
        ("string", _) if scalar => problem.hint(format!("quote it: \"{found}\"")),
        ("array", Value::String(text)) => {
            let words: Vec<&str> = text.split_whitespace().collect();
            problem.hint(format!("write a list: [{}]", words.join(", ")))
        }
        ("integer", Value::String(text)) if text.parse::<u64>().is_ok() => problem.hint("remove the quotes"),
        _ => problem,
    }
}
