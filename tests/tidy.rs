//! The rules of the repository, as a test: direction of imports, where `unsafe` and printing may stand,
//! file length, sleeps, allows, error codes. Each rule reports every offender as `file:line`.
//!
//! The sources are read as text; `Source::code` is a file without comments and literals, so that a
//! rule never trips over prose. What the rules mean is in the text of each failure.

#[path = "tidy/source.rs"]
mod source;

use skc::base::codes;
use source::{Source, read_all, root, sources};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

/// Longest source file. The aim is 400; above 700 nobody holds it in mind.
const LINES_MAX: usize = 700;

/// Modules that the order line of the plan does not name: beside which one they stand.
const BESIDE: &[(&str, &str)] = &[("telemetry", "bus"), ("lib", "main")];

/// Imports against the order, each with its reason: (file, module).
const EXCEPTIONS: &[(&str, &str)] = &[
    ("src/cli/agent.rs", "daemon"), // the verb that becomes the daemon: the dispatch of verbs stands in one place
];

/// Everything that may lie at the top, besides dot files and what building leaves.
const TOP: &[&str] = &[
    "Cargo.toml",
    "Cargo.lock",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "SECURITY.md",
    "deny.toml",
    "examples",
    "rustfmt.toml",
    "schemas",
    "specs",
    "src",
    "target",
    "tests",
];

/// Functions that may sleep in tests: they ask again until a deadline, the sleep is only their pace. Elsewhere a
/// sleep that is such a pace says so in a comment on its line.
const POLLERS: &[&str] = &["poll", "until", "eventually", "wait", "watch"];
/// The comment.
const PACE: &str = "// pace";

fn report(rule: &str, offenders: &[String]) {
    assert!(offenders.is_empty(), "{rule}\n  {}", offenders.join("\n  "));
}

/// Every line of `text` that holds `needle` as a whole word.
fn hits(source: &Source, text: &str, needle: &str) -> Vec<usize> {
    let word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    text.match_indices(needle)
        .filter(|(at, _)| !word(text[..*at].chars().next_back()) || !word(needle.chars().next()))
        .filter(|(at, _)| {
            !word(text[at + needle.len()..].chars().next()) || !word(needle.chars().next_back())
        })
        .map(|(at, _)| source.line_of(at))
        .collect()
}

/// Rank of each module, read from the order line of the plan: a smaller rank is imported by a larger one.
fn ranks() -> BTreeMap<String, usize> {
    let plan = fs::read_to_string(root().join("src/docs/design/0001-first-mirror.md")).unwrap();
    let line = plan.lines().find(|l| l.starts_with("Order of imports:")).expect("the plan has an order line");
    let order = line.split('`').nth(1).expect("the order stands in backquotes");
    let mut ranks = BTreeMap::new();
    for (rank, group) in order.split("<-").enumerate() {
        for name in group.trim().trim_matches(['{', '}']).split(',') {
            ranks.insert(name.trim().to_owned(), rank);
        }
    }
    for (module, beside) in BESIDE {
        let rank = *ranks.get(*beside).unwrap_or_else(|| panic!("{beside} is not in the order line"));
        ranks.insert((*module).to_owned(), rank);
    }
    ranks
}

#[test]
fn imports_go_in_one_direction() {
    let ranks = ranks();
    let mut offenders = Vec::new();
    for source in sources("src") {
        let module = source.module();
        let Some(own) = ranks.get(&module) else {
            offenders.push(format!("{}:1: module {module} is not in the order line", source.name));
            continue;
        };
        for (line, target) in source.imports() {
            match ranks.get(&target) {
                Some(rank)
                    if rank > own && !EXCEPTIONS.contains(&(source.name.as_str(), target.as_str())) =>
                {
                    offenders.push(format!("{}:{line}: {module} may not import {target}", source.name));
                }
                _ => {} // an unknown name is an item of the crate root; a missing module does not compile
            }
        }
    }
    report(
        "imports against the order line of src/docs/design/0001-first-mirror.md (test modules are free):",
        &offenders,
    );
}

#[test]
fn unsafe_stands_only_in_sys() {
    let mut offenders = Vec::new();
    for source in sources("src") {
        if !source.name.starts_with("src/sys/") {
            offenders.extend(source.all_hits("unsafe"));
        }
    }
    report("`unsafe` outside src/sys (wrap the call there):", &offenders);
}

#[test]
fn no_file_is_too_long() {
    let long = |s: &Source| {
        let lines = s.text.lines().count();
        (lines > LINES_MAX).then(|| format!("{}:{lines}: {lines} lines", s.name))
    };
    let all = sources("src").into_iter().chain(sources("tests"));
    report(
        "files of more than 700 lines (split by phase):",
        &all.filter_map(|s| long(&s)).collect::<Vec<_>>(),
    );
}

#[test]
fn nothing_is_left_half_done() {
    let mut offenders = Vec::new();
    for source in sources("src").into_iter().chain(sources("tests")) {
        for name in ["todo!", "unimplemented!", "dbg!"] {
            offenders.extend(source.all_hits(name));
        }
    }
    report("todo!, unimplemented! or dbg! (say in the answer what is not done):", &offenders);
}

#[test]
fn tests_do_not_sleep() {
    let mut offenders = Vec::new();
    for source in sources("src").into_iter().chain(sources("tests")) {
        let code = if source.name.starts_with("tests/") { &source.code } else { &source.test_code };
        for needle in ["thread::sleep", "time::sleep"] {
            for line in hits(&source, code, needle) {
                let inside = source.function_at(line);
                let says_so = source.text.lines().nth(line - 1).is_some_and(|l| l.contains(PACE));
                let first_word = inside.split('_').next().unwrap_or("");
                if !POLLERS.contains(&first_word) && !says_so {
                    offenders.push(format!("{}:{line}: {needle} in fn {inside}", source.name));
                }
            }
        }
    }
    report(
        "sleeps in tests (ask a predicate with a deadline, in a function named wait_for, until, ..., or say `// pace`):",
        &offenders,
    );
}

#[test]
fn the_top_level_is_as_prescribed() {
    let mut offenders = Vec::new();
    for entry in fs::read_dir(root()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap_or_default();
        if !name.starts_with('.') && !TOP.contains(&name.as_str()) {
            offenders.push(format!("{name}:1: not prescribed"));
        }
    }
    report("entries at the top of the repository:", &offenders);
}

#[test]
fn every_allow_says_why() {
    let mut offenders = Vec::new();
    for source in sources("src").into_iter().chain(sources("tests")) {
        for needle in ["[allow(", "[expect("] {
            for (at, _) in source.code.match_indices(needle) {
                let line = source.line_of(at);
                let text = source.text.lines().nth(line - 1).unwrap_or("");
                // In an attribute over several lines the reason stands in one of them.
                let rest: String = source.text.lines().skip(line - 1).take(6).collect();
                let attribute = rest.split(")]").next().unwrap_or("");
                if !text.contains("//") && !attribute.contains("reason =") {
                    offenders.push(format!("{}:{line}: {}", source.name, text.trim()));
                }
            }
        }
    }
    report("#[allow] without a reason (`reason = \"...\"` or a comment on the line):", &offenders);
}

#[test]
fn only_the_command_line_prints() {
    let mut offenders = Vec::new();
    for source in sources("src") {
        if ["cli", "lab", "main"].contains(&source.module().as_str()) {
            continue;
        }
        for needle in ["println!", "print!"] {
            for line in hits(&source, &source.live_code, needle) {
                offenders.push(format!("{}:{line}: {needle}", source.name));
            }
        }
    }
    report("println! outside cli, lab and main (use tracing, or return the text):", &offenders);
}

#[test]
fn verbs_survive_a_reader_who_goes_away() {
    let mut offenders = Vec::new();
    // The agent's own lines go to a log, not to a pipe that somebody closes.
    let free = ["src/cli/output.rs", "src/cli/agent.rs"];
    for source in sources("src/cli").iter().filter(|s| !free.contains(&s.name.as_str())) {
        for needle in ["println!", "print!", "eprintln!", "eprint!"] {
            for line in hits(source, &source.live_code, needle) {
                offenders.push(format!("{}:{line}: {needle}", source.name));
            }
        }
    }
    report("printing that panics on a closed pipe (use out!, outln!, errln! of cli/output.rs):", &offenders);
}

#[test]
fn every_ignored_test_says_why() {
    let mut offenders = Vec::new();
    for source in sources("src").into_iter().chain(sources("tests")) {
        for (at, _) in source.code.match_indices("#[ignore]") {
            offenders.push(format!("{}:{}: #[ignore]", source.name, source.line_of(at)));
        }
    }
    report("#[ignore] without a reason (`#[ignore = \"...\"]`):", &offenders);
}

/// Who reads the machine's clock, and why that decides nothing. Everything else counts with CLOCK_BOOTTIME or
/// `Instant`: a clock that is set by an hour moves no role and no timer.
const WALL_CLOCK: &[(&str, &str)] = &[
    ("src/bus/time.rs", "the times of events, for people"),
    ("src/link/pki/token.rs", "the expiry of a token that somebody carries to another machine"),
    ("src/store/state.rs", "a lower bound of a counter that also grows by itself"),
    ("src/replica/standby/mod.rs", "the name of a quarantine"),
    ("src/replica/primary/conn.rs", "an identity where the system gives no randomness"),
];

#[test]
fn no_decision_reads_the_wall_clock() {
    let clocks = ["SystemTime", "UtcDateTime", "OffsetDateTime", "Zoned", "Timestamp::now", "CLOCK_REALTIME"];
    let mut offenders = Vec::new();
    let mut unused: BTreeSet<&str> = WALL_CLOCK.iter().map(|(file, _)| *file).collect();
    for source in sources("src") {
        let tests = source.code.find("mod tests {").unwrap_or(source.code.len());
        let code = &source.code[..tests];
        let lines = clocks.iter().flat_map(|clock| hits(&source, code, clock));
        if WALL_CLOCK.iter().any(|(file, _)| *file == source.name) {
            if lines.count() > 0 {
                unused.remove(source.name.as_str());
            }
        } else {
            offenders.extend(lines.map(|line| format!("{}:{line}", source.name)));
        }
    }
    report(
        "the wall clock is read (use sys::clock::boottime or Instant, or say why in WALL_CLOCK):",
        &offenders,
    );
    assert!(unused.is_empty(), "exceptions that nobody needs: {unused:?}");
}

/// (file, line, code) of every "SKC-E####", "SKC-R####" and "SKC-V####" in a text.
fn codes_in(name: &str, text: &str) -> Vec<(String, usize, String)> {
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for (at, _) in line.match_indices("SKC-") {
            let code: String = line[at..].chars().take(9).collect();
            let kind = code.get(4..5).is_some_and(|k| "ERV".contains(k));
            if kind && code.len() == 9 && code[5..].bytes().all(|b| b.is_ascii_digit()) {
                found.push((name.to_owned(), number + 1, code));
            }
        }
    }
    found
}

#[test]
fn every_code_in_use_is_registered() {
    let mut offenders = Vec::new();
    let texts = read_all("src", &["rs", "md"]).into_iter().chain(read_all("README.md", &["md"]));
    for (name, text) in texts.filter(|(name, _)| name != "src/base/codes.rs") {
        for (name, line, code) in codes_in(&name, &text) {
            // E00 and E01 are never assigned and E9999 never exists: examples and tests use them.
            let example = ["SKC-E00", "SKC-E01", "SKC-E9999"].iter().any(|e| code.starts_with(e));
            if codes::code(&code).is_none() && !example {
                offenders.push(format!("{name}:{line}: {code}"));
            }
        }
    }
    report("codes without an entry in src/base/codes.rs (and a page in src/docs/explain):", &offenders);
}

#[test]
fn every_page_belongs_to_a_code_or_condition() {
    let known: BTreeSet<&str> =
        codes::CODES.iter().map(|c| c.id).chain(codes::CONDITIONS.iter().map(|c| c.name)).collect();
    let pages = read_all("src/docs/explain", &["md"]);
    let stem = |name: &str| name.rsplit('/').next().unwrap_or("").trim_end_matches(".md").to_owned();
    let orphans = pages.iter().filter(|(name, _)| !known.contains(stem(name).as_str()));
    let orphans: Vec<String> = orphans.map(|(name, _)| format!("{name}:1")).collect();
    assert_eq!(pages.len() - orphans.len(), known.len(), "every entry has its page");
    report("pages without an entry in src/base/codes.rs:", &orphans);
}

/// `path::function` in backquotes, in a page that promises something.
#[test]
fn every_test_that_a_promise_names_is_there() {
    let mut offenders = Vec::new();
    for page in ["src/docs/guarantees.md", "src/docs/limits.md", "src/docs/posix.md"] {
        let text = fs::read_to_string(root().join(page)).unwrap();
        let mut named = 0;
        for (n, line) in text.lines().enumerate() {
            // Every other piece stands between backquotes.
            for (file, test) in line.split('`').skip(1).step_by(2).filter_map(|code| code.split_once(".rs::"))
            {
                named += 1;
                let source = fs::read_to_string(root().join(format!("{file}.rs"))).unwrap_or_default();
                let is_test = source.split("#[test]").skip(1).any(|rest| {
                    let head = rest.split('{').next().unwrap_or("");
                    head.contains(&format!("fn {test}("))
                });
                if !is_test {
                    offenders.push(format!("{page}:{}: {file}.rs has no test {test}", n + 1));
                }
            }
        }
        assert!(named > 0 || page != "src/docs/guarantees.md", "{page} names no test");
    }
    report("tests that a page of promises names and that are not there:", &offenders);
}
