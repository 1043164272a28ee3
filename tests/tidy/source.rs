//! Rust sources as text: without comments and literals, and split into test code and the rest.

use std::fs;
use std::path::{Path, PathBuf};

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below `dir` (or `dir` itself) with one of these endings: (name within the repository, text).
pub fn read_all(dir: &str, endings: &[&str]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut todo: Vec<PathBuf> = vec![root().join(dir)];
    while let Some(path) = todo.pop() {
        if path.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        } else if path.extension().is_some_and(|e| endings.iter().any(|x| e == *x)) {
            let name = path.strip_prefix(root()).unwrap().display().to_string();
            let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{name}: {e}"));
            found.push((name, text));
        }
    }
    found.sort();
    found
}

/// All Rust files below `dir`.
pub fn sources(dir: &str) -> Vec<Source> {
    read_all(dir, &["rs"]).into_iter().map(|(name, text)| Source::new(name, text)).collect()
}

/// One file. All four texts have the same length and the same lines.
pub struct Source {
    pub name: String,
    pub text: String,
    /// Comments, strings and characters blanked.
    pub code: String,
    /// `code` without what stands under `#[cfg(test)]`.
    pub live_code: String,
    /// The rest of `code`.
    pub test_code: String,
}

impl Source {
    fn new(name: String, text: String) -> Self {
        let code = blank_literals(&text);
        let (live_code, test_code) = split_tests(&code);
        Self { name, text, code, live_code, test_code }
    }

    /// The module of the crate that the file belongs to: "net" for src/net/vip.rs.
    pub fn module(&self) -> String {
        let rest = self.name.trim_start_matches("src/");
        rest.split('/').next().unwrap_or("").trim_end_matches(".rs").to_owned()
    }

    pub fn line_of(&self, at: usize) -> usize {
        self.code[..at].matches('\n').count() + 1
    }

    /// `file:line: text` of each whole word in the code.
    pub fn all_hits(&self, needle: &str) -> Vec<String> {
        let lines = super::hits(self, &self.code, needle);
        lines.into_iter().map(|line| format!("{}:{line}: {needle}", self.name)).collect()
    }

    /// The name of the last function that begins before this line.
    pub fn function_at(&self, line: usize) -> String {
        let before: Vec<&str> = self.code.lines().take(line).collect();
        let name = |l: &&str| {
            let rest = l.split("fn ").nth(1)?;
            Some(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>())
        };
        before.iter().rev().filter_map(name).find(|n| !n.is_empty()).unwrap_or_default()
    }

    /// (line, module) of everything named as `crate::module`, groups and `super` chains resolved.
    pub fn imports(&self) -> Vec<(usize, String)> {
        let code = &self.live_code;
        let mut found = Vec::new();
        for (at, _) in code.match_indices("crate::") {
            let before = code[..at].chars().next_back();
            if !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '$') {
                let line = self.line_of(at);
                found.extend(heads(&code[at + "crate::".len()..]).into_iter().map(|m| (line, m)));
            }
        }
        // From src/a/b.rs the crate's root is super::super; from src/a/mod.rs it is super.
        let depth = self.name.matches('/').count() - usize::from(self.name.ends_with("/mod.rs"));
        let chain = "super::".repeat(depth);
        if depth > 0 {
            for (at, _) in code.match_indices(&chain) {
                let after = &code[at + chain.len()..];
                let longer = code[..at].ends_with("super::") || after.starts_with("super::");
                if !longer {
                    let line = self.line_of(at);
                    found.extend(heads(after).into_iter().map(|m| (line, m)));
                }
            }
        }
        found
    }
}

/// The first names after `crate::`: one, or those of a group `{a::b, c::{d, e}}`.
fn heads(rest: &str) -> Vec<String> {
    let name = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let rest = rest.trim_start();
    let Some(group) = rest.strip_prefix('{') else { return vec![name(rest)] };
    let (mut found, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                found.push(name(group[start..at].trim_start()));
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                found.push(name(group[start..at].trim_start()));
                start = at + 1;
            }
            _ => {}
        }
    }
    found.retain(|n| !n.is_empty());
    found
}

/// Splits at items under `#[cfg(test)]`: up to their closing brace, or their semicolon.
fn split_tests(code: &str) -> (String, String) {
    let mut live = code.as_bytes().to_vec();
    let mut test = blank(code.as_bytes());
    let mut from = 0;
    while let Some(at) = code[from..].find("#[cfg(test)]").map(|at| at + from) {
        let (mut depth, mut end) = (0usize, code.len());
        for (offset, b) in code.bytes().enumerate().skip(at) {
            match b {
                b'{' => depth += 1,
                b'}' if depth <= 1 => {
                    end = offset + 1;
                    break;
                }
                b'}' => depth -= 1,
                b';' if depth == 0 => {
                    end = offset + 1;
                    break;
                }
                _ => {}
            }
        }
        test[at..end].copy_from_slice(&code.as_bytes()[at..end]);
        let blanked = blank(&live[at..end]);
        live[at..end].copy_from_slice(&blanked);
        from = end;
    }
    (text(live), text(test))
}

fn blank(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().map(|b| if *b == b'\n' { b'\n' } else { b' ' }).collect()
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).expect("cut at ASCII characters only")
}

/// Blanks comments, strings and characters; bytes keep their places.
fn blank_literals(source: &str) -> String {
    let bytes = source.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = literal_end(bytes, at);
        if end > at {
            out[at..end].copy_from_slice(&blank(&bytes[at..end]));
            at = end;
        } else {
            at += 1;
        }
    }
    // What is not ASCII outside of literals cannot be code that a rule looks for.
    text(out.into_iter().map(|b| if b.is_ascii() { b } else { b' ' }).collect())
}

/// The end of the comment or literal that begins at `at`; `at` itself if none does.
fn literal_end(bytes: &[u8], at: usize) -> usize {
    let rest = &bytes[at..];
    let find = |from: usize, what: &[u8]| {
        let from = from.min(bytes.len());
        bytes[from..]
            .windows(what.len())
            .position(|w| w == what)
            .map_or(bytes.len(), |p| from + p + what.len())
    };
    if rest.starts_with(b"//") {
        return find(at, b"\n").saturating_sub(1).max(at + 2).min(bytes.len());
    }
    if rest.starts_with(b"/*") {
        let (mut depth, mut i) = (1, at + 2);
        while i < bytes.len() && depth > 0 {
            match &bytes[i..] {
                [b'/', b'*', ..] => (depth, i) = (depth + 1, i + 2),
                [b'*', b'/', ..] => (depth, i) = (depth - 1, i + 2),
                _ => i += 1,
            }
        }
        return i;
    }
    let word_before = at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_');
    if rest[0] == b'r' && (!word_before || bytes[at - 1] == b'b') {
        let hashes = rest[1..].iter().take_while(|b| **b == b'#').count();
        if rest.get(1 + hashes) == Some(&b'"') {
            let close: Vec<u8> = [b'"'].into_iter().chain(std::iter::repeat_n(b'#', hashes)).collect();
            return find(at + 2 + hashes, &close);
        }
    }
    match rest[0] {
        b'"' => {
            let mut i = at + 1;
            while i < bytes.len() && bytes[i] != b'"' {
                i += if bytes[i] == b'\\' { 2 } else { 1 };
            }
            (i + 1).min(bytes.len())
        }
        // 'x', '\n', '\u{..}', but not a lifetime.
        b'\'' if rest.get(1) == Some(&b'\\') => find(at + 3, b"'"),
        b'\'' => {
            let width = match rest.get(1) {
                Some(b) if b.is_ascii() => 1,
                Some(b) if *b >= 0xf0 => 4,
                Some(b) if *b >= 0xe0 => 3,
                _ => 2,
            };
            if rest.get(1 + width) == Some(&b'\'') { at + width + 2 } else { at }
        }
        _ => at,
    }
}

#[test]
fn literals_and_comments_are_blanked_and_code_stays() {
    let source = Source::new(
        "src/net/mod.rs".to_owned(),
        "use crate::{base::x, spec::{a, b}}; // crate::daemon\nlet a = \"crate::cli\"; let l: &'a str = r#\"unsafe \"x\"#; let c = '\"'; unsafe {}\n#[cfg(test)]\nmod tests { use crate::lab; }\nuse super::link;\n"
            .to_owned(),
    );
    let names: Vec<String> = source.imports().into_iter().map(|(_, m)| m).collect();
    assert_eq!(names, ["base", "spec", "link"]);
    assert_eq!(source.all_hits("unsafe"), ["src/net/mod.rs:2: unsafe"]);
    assert!(source.test_code.contains("crate::lab") && !source.live_code.contains("crate::lab"));
    assert_eq!(source.module(), "net");
}
