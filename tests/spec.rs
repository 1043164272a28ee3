//! ClusterSpec from the outside: golden renderings, the model repository, the schema, the codes.
//!
//! `UPDATE_GOLDEN=1 cargo test --test spec` writes the expectations anew; read the difference before committing.

use proptest::prelude::*;
use skc::base::codes;
use skc::spec::{self, Source};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(dir: &str, ext: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![root().join(dir)];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() {
                todo.push(path);
            } else if path.extension().is_some_and(|e| e == ext) {
                found.push(path);
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "no *.{ext} under {dir}");
    found
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The source of a file, called by its path within the repository.
fn source(path: &Path) -> Source {
    Source { file: path.strip_prefix(root()).unwrap().display().to_string(), text: read(path) }
}

fn golden(path: &Path, actual: &str) {
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(path, actual).unwrap();
        return;
    }
    let expected = fs::read_to_string(path).unwrap_or_default();
    assert!(expected == actual, "{} differs. Now:\n{actual}", path.display());
}

#[test]
fn each_bad_spec_is_refused_as_recorded() {
    for path in files("tests/golden/spec/bad", "yaml") {
        let findings = spec::load(&[source(&path)]).expect_err(&path.display().to_string());
        golden(&path.with_extension("txt"), &format!("{findings}\n"));
    }
}

#[test]
fn every_spec_code_is_met_by_some_bad_spec() {
    let met: BTreeSet<&str> = files("tests/golden/spec/bad", "yaml")
        .iter()
        .flat_map(|path| spec::load(&[source(path)]).expect_err("bad").0)
        .map(|finding| finding.code.id)
        .collect();
    // Files that cannot be read are met by the command line; the others have tests of their own below.
    let elsewhere = [codes::SPEC_READ.id, codes::SPEC_AMBIGUOUS.id];
    let refusal = |c: &&codes::Code| c.id.starts_with("SKC-E1") && !c.id.starts_with("SKC-E11");
    for code in codes::CODES.iter().filter(refusal) {
        assert!(met.contains(code.id) != elsewhere.contains(&code.id), "{code}: {}", code.title);
    }
}

#[test]
fn each_unwise_spec_is_warned_of_as_recorded() {
    let mut met = BTreeSet::new();
    for path in files("tests/golden/spec/warn", "yaml") {
        spec::load(&[source(&path)]).unwrap_or_else(|findings| panic!("{findings}"));
        let warnings = spec::warnings(&[source(&path)]);
        assert!(warnings.0.iter().all(spec::Finding::is_warning));
        met.extend(warnings.0.iter().map(|warning| warning.code.id));
        golden(&path.with_extension("txt"), &format!("{warnings}\n"));
    }
    for code in codes::CODES.iter().filter(|c| c.id.starts_with("SKC-E11")) {
        assert!(met.contains(code.id), "{code}: {}", code.title);
    }
}

#[test]
fn the_model_repository_is_valid_as_a_whole() {
    let sources: Vec<Source> = files("specs", "yaml").iter().map(|p| source(p)).collect();
    let loaded = spec::load(&sources).unwrap_or_else(|findings| panic!("{findings}"));
    assert!(loaded.len() >= 4);
}

#[test]
fn each_example_is_valid_by_itself() {
    for path in files("examples", "yaml") {
        spec::load(&[source(&path)]).unwrap_or_else(|findings| panic!("{findings}"));
        assert!(path.with_file_name("README.md").is_file(), "{} has no README", path.display());
    }
}

#[test]
fn the_ledger_of_the_demo_keeps_what_the_demo_relies_on() {
    let path = root().join("specs/clusters/ledger.yaml");
    let ledger = spec::load_one("ledger.yaml", &read(&path)).unwrap();
    assert_eq!(ledger.level(), spec::Level::L2);
    assert_eq!(ledger.node("node-b").map(|(index, _)| index), Some(1));
    assert_eq!(ledger.spec.directories[0].path, Path::new("/srv/ledger"));
    assert_eq!(ledger.spec.virtual_ips[0].address.to_string(), "10.77.1.100/24");
}

#[test]
fn the_schema_in_the_repository_is_fresh() {
    golden(&root().join("schemas/clusterspec.v1.json"), &spec::schema_text());
}

#[test]
fn a_diff_names_each_change_and_its_cost_as_recorded() {
    for path in files("tests/golden/spec/diff", "yaml").iter().filter(|p| p.ends_with("new.yaml")) {
        let old = path.with_file_name("old.yaml");
        let old = old.is_file().then(|| spec::load_one("old.yaml", &read(&old)).unwrap());
        let new = spec::load_one("new.yaml", &read(path)).unwrap_or_else(|f| panic!("{f}"));
        let changes = spec::diff(old.as_ref(), &new);
        golden(&path.with_file_name("expected.txt"), &spec::diff::render(&changes));
        let same = old.is_some_and(|old| spec::digest(&old) == spec::digest(&new));
        assert_eq!(changes.is_empty(), same, "{}: digest and diff disagree", path.display());
    }
}

#[test]
fn the_canonical_text_reads_back_equal_and_is_its_own_canonical_text() {
    let mut paths = files("specs", "yaml");
    paths.extend(files("examples", "yaml"));
    for loaded in paths.iter().flat_map(|p| spec::load(&[source(p)]).unwrap()) {
        let text = spec::canonical(&loaded.spec);
        let again = spec::load_one("canonical", &text).unwrap_or_else(|f| panic!("{f}"));
        assert_eq!(again, loaded.spec);
        assert_eq!(spec::canonical(&again), text);
        assert_eq!(spec::check(&again), vec![]);
    }
}

#[test]
fn json_is_accepted_as_the_yaml_it_is() {
    let ledger = spec::load_one("l", &read(&root().join("specs/clusters/ledger.yaml"))).unwrap();
    let json = serde_json::to_string_pretty(&ledger).unwrap();
    assert_eq!(spec::load_one("json", &json).unwrap(), ledger);
}

#[test]
fn the_one_range_that_is_accepted_is_the_one_of_the_wire() {
    assert_eq!(spec::defaults::range().as_bytes(), skc::proto::stream::BLOCK);
    let text = read(&root().join("specs/clusters/ledger.yaml"));
    let with =
        |range: &str| text.replace("  services:", &format!("  replication: {{range: {range}}}\n  services:"));
    assert_eq!(spec::load_one("x", &with("65536B")).unwrap(), spec::load_one("x", &text).unwrap());
    for range in ["65535B", "4KiB", "1GiB"] {
        let findings = spec::load_one("x", &with(range)).unwrap_err();
        assert!(findings.0.iter().all(|f| f.code == codes::SPEC_NOT_YET), "{findings}");
    }
}

#[test]
fn the_highest_number_of_restarts_is_accepted_and_one_more_is_not() {
    let text = read(&root().join("specs/clusters/ledger.yaml"));
    let with =
        |n: u16| text.replace("  services:", &format!("  failover: {{maxRestarts: {n}}}\n  services:"));
    let max = spec::limits::RESTARTS_MAX;
    assert_eq!(spec::load_one("x", &with(max)).unwrap().spec.failover.max_restarts, max);
    let codes: Vec<&str> =
        spec::load_one("x", &with(max + 1)).unwrap_err().0.iter().map(|f| f.code.id).collect();
    assert_eq!(codes, [codes::SPEC_RANGE.id]);
}

#[test]
fn what_two_parsers_read_differently_is_refused() {
    let text = read(&root().join("specs/clusters/ledger.yaml"));
    let odd = text.replace("timeout: 2s", "timeout: 2s, interval:");
    let codes: Vec<&str> = spec::load_one("x", &odd).unwrap_err().0.iter().map(|f| f.code.id).collect();
    assert_eq!(codes, [codes::SPEC_AMBIGUOUS.id]);
}

#[test]
fn a_file_at_the_limit_is_read_and_one_byte_more_is_not() {
    let mut text = read(&root().join("specs/clusters/ledger.yaml"));
    text.push_str(&"#".repeat(spec::yaml::BYTES_MAX - text.len() - 1));
    text.push('\n');
    assert!(spec::load_one("x", &text).is_ok());
    text.push('\n');
    assert_eq!(spec::load_one("x", &text).unwrap_err().0[0].code, codes::SPEC_TOO_BIG);
}

#[test]
fn documents_at_the_limit_are_read_and_one_more_is_not() {
    let counted = |n: usize| {
        let text = ["kind: no\n"].repeat(n).join("---\n");
        spec::load(&[Source { file: "x".into(), text }]).unwrap_err()
    };
    assert!(counted(64).0.iter().all(|f| f.code == codes::SPEC_NOT_ONE));
    assert!(counted(65).0.iter().any(|f| f.code == codes::SPEC_TOO_BIG));
}

#[test]
fn a_hostile_list_ends_in_bounded_findings() {
    let text = read(&root().join("specs/clusters/ledger.yaml"));
    let many = "\n    - {nmae: x}".repeat(50_000);
    let hostile = text.replace("  checkers:", &format!("  checkers:{many}\n  checkers2:"));
    let findings = spec::load_one("x", &hostile).unwrap_err();
    assert!(findings.0.len() <= 200, "{} findings", findings.0.len());
}

#[test]
fn one_spec_is_one_spec() {
    let text = read(&root().join("specs/clusters/backoffice.yaml"));
    let findings = spec::load_one("x", &text).unwrap_err();
    assert_eq!(findings.0.len(), 1);
    assert_eq!(findings.0[0].code, codes::SPEC_NOT_ONE);
}

/// A good spec with a piece cut out, doubled or replaced: the inputs nearest to the truth.
fn damaged() -> impl Strategy<Value = String> {
    let texts: Vec<String> = files("specs", "yaml").iter().map(|p| read(p)).collect();
    let piece = prop_oneof![
        Just(String::new()),
        "[-\\[\\]{}:,&*!|>'\"%@`#?~\n\t 0-9a-z\u{e9}\u{1F600}]{0,6}",
        Just("\r\n".to_owned()),
        Just("---\n".to_owned()),
        Just("\u{feff}".to_owned()),
    ];
    (prop::sample::select(texts), any::<prop::sample::Index>(), 0usize..40, piece).prop_map(
        |(text, at, length, piece)| {
            let chars: Vec<char> = text.chars().collect();
            let at = at.index(chars.len());
            let end = (at + length).min(chars.len());
            chars[..at].iter().collect::<String>() + &piece + &chars[end..].iter().collect::<String>()
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn no_damaged_spec_panics_and_findings_point_into_the_text(text in damaged()) {
        if let Err(findings) = spec::load(&[Source { file: "x".into(), text: text.clone() }]) {
            prop_assert!(!findings.0.is_empty());
            for finding in &findings.0 {
                prop_assert!(finding.span.line >= 1 && finding.span.line <= text.lines().count() + 1);
                prop_assert!(!finding.to_string().is_empty());
            }
        }
    }

    #[test]
    fn no_text_panics(text in "\\PC{0,200}") {
        let _ = spec::load(&[Source { file: "x".into(), text }]);
    }
}

/// Shapes that make careless parsers quadratic, deep or endless, each near the limit of a file.
#[test]
fn hostile_texts_are_answered_in_bounded_time() {
    let size = spec::yaml::BYTES_MAX - 64;
    let repeat = |piece: &str| piece.repeat(size / piece.len());
    let numbered = |before: &str, after: &str, n: usize| {
        (0..n).fold(String::new(), |all, i| all + before + &i.to_string() + after)
    };
    let keys: String = numbered("k", ": {}\n", size / 12);
    let anchors: String = numbered("- &a", " x\n", size / 16);
    let deep: String = (0..60).map(|i| " ".repeat(i) + "a:\n").collect();
    for (what, text) in [
        ("open lists", repeat("[")),
        ("open mappings", repeat("{")),
        ("nested dashes", repeat("- ")),
        ("question marks", repeat("? ")),
        ("colons", repeat("a: ")),
        ("one long text", repeat("a")),
        ("words", repeat("a\n")),
        ("blank lines", repeat("\n")),
        ("blanks", repeat(" ")),
        ("comments", repeat("#\n")),
        ("open quote", "\"".to_owned() + &repeat("a ")),
        ("open quote over lines", "'".to_owned() + &repeat("\n\n a")),
        ("escapes", "\"".to_owned() + &repeat("\\x41") + "\""),
        ("block text", "a: |\n".to_owned() + &repeat(" b\n")),
        ("folded text", "a: >\n".to_owned() + &repeat(" b\n\n")),
        ("same keys", repeat("a: 1\n")),
        ("many keys", keys),
        ("many anchors", anchors),
        ("many aliases", "- &a [x]\n".to_owned() + &repeat("- *a\n")),
        ("many tags", repeat("- !t x\n")),
        ("documents", repeat("---\na: b\n")),
        ("directives", repeat("%TAG ! a\n")),
        ("flat list", "[".to_owned() + &repeat("a,") + "a]"),
        ("flat mappings", "[".to_owned() + &repeat("a: b,") + "a]"),
        ("deep then wide", deep + &(" ".repeat(60) + "[" + &"a,".repeat(400_000) + "a]")),
        ("tabs", repeat("\t")),
        ("carriage returns", repeat("a\r")),
    ] {
        let started = std::time::Instant::now();
        let findings = spec::load(&[Source { file: "x".into(), text }]).expect_err(what);
        assert!(findings.0.len() <= 1000, "{what}: {} findings", findings.0.len());
        let took = started.elapsed();
        if std::env::var_os("SHOW_TIMES").is_some() {
            eprintln!("{what}: {took:?}, {}", findings.0[0].message.chars().take(80).collect::<String>());
        }
        // Linear work on a megabyte takes seconds even unoptimised on a busy machine; quadratic work takes hours.
        assert!(took.as_secs() < 300, "{what} took {took:?}");
    }
}

fn skc(arguments: &[&str], input: &str) -> (i32, String, String) {
    use std::io::Write;
    use std::process::{Command, Stdio};
    let mut child = Command::new(env!("CARGO_BIN_EXE_skc"))
        .args(arguments)
        .current_dir(root())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let out = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (out.status.code().unwrap(), text(out.stdout), text(out.stderr))
}

#[test]
fn validate_takes_files_directories_and_standard_input() {
    let (code, out, _) = skc(&["validate", "-f", "specs"], "");
    assert_eq!(code, 0, "{out}");
    let good = out.lines().filter(|l| l.starts_with("ok "));
    let names: Vec<&str> = good.filter_map(|l| l.split_whitespace().nth(1)).collect();
    assert_eq!(
        names,
        ["archive", "backoffice-wiki", "backoffice-tickets", "files", "ledger", "shop-db"],
        "sorted by file"
    );
    let risks: Vec<&str> = out.lines().filter(|l| !l.starts_with("ok ")).map(str::trim).collect();
    assert_eq!(
        risks,
        [
            "/srv/archive/documents: commit: what was not fsynced may be lost at a failover, at most 8MiB or 2s",
            "/srv/archive/thumbnails: async: also what was fsynced may be lost at a failover, at most 8MiB or 2s",
        ]
    );
    let ledger = read(&root().join("specs/clusters/ledger.yaml"));
    assert_eq!(skc(&["validate", "-f", "-"], &ledger).0, 0);
    let (code, out, _) = skc(&["validate", "-f", "-", "-o", "json"], &ledger.replace("path:", "pth:"));
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &json["valid"]), (2, &serde_json::json!(false)));
    assert_eq!(json["findings"][0]["file"], "-");
    assert!(json["findings"].as_array().unwrap().iter().any(|f| f["code"] == "SKC-E1010" && f["line"] == 14));
}

#[test]
fn validate_says_what_it_cannot_read() {
    let empty = tempfile::tempdir().unwrap();
    let binary = empty.path().join("x.yaml");
    for (what, path) in
        [("missing", "no/such/file.yaml"), ("empty directory", empty.path().to_str().unwrap())]
    {
        let (code, out, _) = skc(&["validate", "-f", path], "");
        assert!(code == 2 && out.contains("SKC-E1001"), "{what}: {out}");
    }
    fs::write(&binary, [0xff, 0xfe, b'a']).unwrap();
    let (code, out, _) = skc(&["validate", "-f", empty.path().to_str().unwrap(), "-f", "specs"], "");
    assert!(code == 2 && out.contains("x.yaml") && out.contains("UTF-8"), "{out}");
}

#[test]
fn schema_and_explain_print_what_is_embedded() {
    assert_eq!(skc(&["schema"], ""), (0, spec::schema_text(), String::new()));
    let (code, out, _) = skc(&["explain", "e1010"], "");
    assert!(code == 0 && out.starts_with("# SKC-E1010"), "{out}");
    assert_eq!(skc(&["explain", "wait"], "").1, codes::condition("WAIT").unwrap().page);
    let (code, out, err) = skc(&["explain", "nonsense"], "");
    assert!(code == 2 && out.is_empty() && err.contains("skc explain"), "{err}");
    let (_, list, _) = skc(&["explain"], "");
    assert_eq!(list.lines().count(), codes::CODES.len() + codes::CONDITIONS.len());
}
