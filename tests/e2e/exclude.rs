//! `exclude`: what stays on each node stays there through failover, resync and swap, and a change of the
//! patterns mirrors what was local.

use crate::harness::{Arena, arena, until};
use crate::scenario::{Cluster, SETTLE, Spec};
use skc::lab::{Kill, Node, compare};
use std::fs;
use std::path::{Path, PathBuf};

const DIRECTORY: &str = "/srv/work";
const SPEC: Spec = Spec { second: Some((DIRECTORY, r#"exclude: ["*.tmp", /cache]"#)), ..Spec::LEDGER };

fn is_mirrored(path: &Path, _: bool) -> bool {
    !path.starts_with("cache") && !path.iter().any(|p| Path::new(p).extension().is_some_and(|e| e == "tmp"))
}

#[track_caller]
fn mirrored_equal(trees: &[PathBuf; 2], is_mirrored: &dyn Fn(&Path, bool) -> bool) {
    let mut last = None;
    until("what is mirrored is equal", SETTLE, || {
        last = compare::mirrored(&trees[0], &trees[1], is_mirrored).ok();
        last.as_ref().is_some_and(compare::Comparison::equal)
    });
}

/// Runs a shell line in the mirrored directory on `node`.
#[track_caller]
fn sh(lab: &Arena, node: Node, line: &str) {
    let line = format!("cd {DIRECTORY} && {line}");
    lab.run(node, &["sh", "-ec", &line], SETTLE).unwrap_or_else(|e| panic!("{node}: {line}: {e}"));
}

#[track_caller]
fn holds(tree: &Path, file: &str, text: &str) {
    assert_eq!(
        fs::read_to_string(tree.join(file)).unwrap_or_default().trim(),
        text,
        "{file} in {}",
        tree.display()
    );
}

#[test]
fn excluded_files_stay_on_their_node() {
    let Some(lab) = arena("exclude") else { return };
    let trees = Node::PAIR.map(|node| lab.backing(node, DIRECTORY));
    for (tree, node) in trees.iter().zip(Node::PAIR) {
        fs::create_dir_all(tree).expect("create the directory");
        fs::write(tree.join("before.tmp"), node.to_string()).expect("write");
    }
    let (cluster, primary, standby) = Cluster::start(&lab, &SPEC);
    let of = |node| &trees[usize::from(node == Node::NodeB)];
    let load = cluster.load();
    cluster.progress(&load, 50);
    sh(
        &lab,
        primary,
        "mkdir -p keep cache/deep; echo one >keep/a; echo p1 >keep/s.tmp; echo p1 >cache/deep/x",
    );
    sh(
        &lab,
        primary,
        "! ln keep/a keep/a.tmp && ! ln keep/s.tmp keep/s && mv keep/s.tmp keep/t.tmp && sync cache/deep/x",
    );
    // By copying, as between two file systems.
    sh(&lab, primary, "echo two >b.tmp && mv b.tmp b");
    mirrored_equal(&trees, &is_mirrored);
    holds(of(standby), "b", "two");
    assert!(!of(standby).join("cache").exists() && !of(standby).join("keep/t.tmp").exists());

    lab.kill(primary, Kill::Power).expect("the power cut");
    cluster.wait(standby, &["ALONE", "vip"]);
    sh(
        &lab,
        standby,
        "test ! -e cache; mkdir cache; echo s1 >cache/x; echo s1 >keep/t.tmp; rm b; mkdir old; echo s1 >old/o.tmp",
    );
    cluster.power_on(primary);
    cluster.wait(primary, &["SECOND", "Ready", "UpToDate"]);
    mirrored_equal(&trees, &is_mirrored);
    holds(of(primary), "cache/deep/x", "p1");
    holds(of(primary), "keep/t.tmp", "p1");
    holds(of(standby), "keep/t.tmp", "s1");

    cluster.does(standby, "swap", &[]);
    cluster.wait(primary, &["PRIM", "Ready", "vip"]);
    cluster.wait(standby, &["SECOND", "Ready", "UpToDate"]);
    // The other node's own goes with the directory around it.
    sh(&lab, primary, "test ! -e old/o.tmp; rmdir old; cat keep/t.tmp; echo p2 >keep/t.tmp; rm -r cache");
    mirrored_equal(&trees, &is_mirrored);
    holds(of(standby), "cache/x", "s1");
    for (node, tree) in Node::PAIR.iter().zip(&trees) {
        holds(tree, "before.tmp", &node.to_string());
    }
    cluster.wait(standby, &["SECOND", "Ready", "UpToDate"]);
    cluster.progress(&load, 50);
    assert_eq!(cluster.finish(load), primary);
}

#[test]
fn a_change_of_patterns_mirrors_what_was_local() {
    let Some(lab) = arena("exclude-change") else { return };
    let trees = Node::PAIR.map(|node| lab.backing(node, DIRECTORY));
    for tree in &trees {
        fs::create_dir_all(tree).expect("create the directory");
    }
    let (cluster, primary, standby) = Cluster::start(&lab, &SPEC);
    sh(&lab, primary, "mkdir cache; echo one >cache/x; echo one >a.tmp; echo one >a");
    mirrored_equal(&trees, &is_mirrored);
    let text = SPEC.text().replace(r#""*.tmp", /cache"#, r#""*.tmp""#);
    let path = cluster.write_spec("changed.yaml", &text);
    let refused = lab.apply(primary, &path).expect_err("not while it runs").to_string();
    assert!(refused.contains("exclude") && refused.contains("stop"), "{refused}");
    for node in [standby, primary] {
        cluster.does(node, "stop", &[]);
        cluster.wait(node, &["STOP"]);
    }
    lab.apply(primary, &path).expect("now it may");
    for node in [primary, standby] {
        cluster.does(node, "start", &[]);
    }
    let primary = cluster.settled();
    cluster.wait(primary.peer().expect("a pair"), &["SECOND", "Ready", "UpToDate"]);
    mirrored_equal(&trees, &|path, _| path != Path::new("a.tmp"));
    holds(&trees[0], "cache/x", "one");
    holds(&trees[1], "cache/x", "one");
    cluster.verdict();
}
