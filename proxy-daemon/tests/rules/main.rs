//! What do the rules of each mode look like, cluster by cluster?
//!
//! Golden files: a change of the rules shows in a review as a change of text. `dump --rules` prints the
//! rules of the manifests in `clusters`, without root. Only what the empty cluster does not have, or has
//! otherwise, is kept of the others. When a change is meant, run with `INSTA_UPDATE=always`.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test, which runs the program"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const EMPTY: &str = "empty";
const USUAL_FLAGS: [&str; 2] = [
    "--hostname-override=node-1",
    "--cluster-cidr=10.244.0.0/16,fd00:244::/48",
];

fn clusters() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rules/clusters")
}

/// What the daemon prints for a cluster, and the first line of its manifests.
fn dump(cluster: &str, mode: &str) -> (String, String) {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{cluster}-{mode}"));
    fs::create_dir_all(&directory).unwrap();
    for name in [EMPTY, cluster] {
        let name = format!("{name}.yaml");
        fs::copy(clusters().join(&name), directory.join(&name)).unwrap();
    }
    let text = fs::read_to_string(clusters().join(format!("{cluster}.yaml"))).unwrap();
    let mut comments = text.lines().map_while(|line| line.strip_prefix("# "));
    let title = comments.next().unwrap();
    let flags = comments.find_map(|line| line.strip_prefix("Flags: "));
    let output = Command::new(env!("CARGO_BIN_EXE_proxy-daemon"))
        .args(USUAL_FLAGS)
        .arg(format!("--mode={mode}"))
        .arg(format!("--manifests={}", directory.display()))
        .args(flags.unwrap_or_default().split_whitespace())
        .args(["dump", "--rules"])
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{cluster}: {errors}");
    (String::from_utf8(output.stdout).unwrap(), title.to_owned())
}

/// The text in pieces: a set or a chain with all its lines is one, as is any other line.
fn pieces(text: &str) -> Vec<String> {
    let mut pieces: Vec<String> = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        let continues =
            line.starts_with("\t\t") || line.starts_with("\t}") || line.starts_with("-A");
        match pieces.last_mut() {
            Some(piece) if continues => piece.extend([line, "\n"]),
            _ => pieces.push(format!("{line}\n")),
        }
    }
    pieces
}

/// Each piece with its first line and the headings above it: both families have the same names.
fn by_name(text: &str) -> Vec<([String; 3], String)> {
    let (mut program, mut table) = (String::new(), String::new());
    let named = pieces(text).into_iter().map(|piece| {
        let first = piece.lines().next().unwrap_or_default().to_owned();
        if piece.starts_with("table ") || piece.starts_with('#') {
            (program, table) = (first.clone(), String::new());
        } else if piece.starts_with('*') {
            table.clone_from(&first);
        }
        ([program.clone(), table.clone(), first], piece)
    });
    named.collect()
}

/// The pieces that are new, chains that are different, and the elements of sets.
fn differs_from_empty(text: &str, empty: &str) -> String {
    let empty: BTreeMap<_, _> = by_name(empty).into_iter().collect();
    let mut kept = String::new();
    for (name, piece) in by_name(text) {
        let is_heading = piece.starts_with(['t', '#', '*']);
        let is_set = name[2].starts_with("\tset ") || name[2].starts_with("\tmap ");
        match empty.get(&name) {
            Some(same) if *same == piece && !is_heading => {}
            Some(before) if is_set => {
                let usual = before
                    .lines()
                    .skip(1)
                    .filter(|line| !line.ends_with(['{', '}']));
                let usual: BTreeSet<&str> = usual.collect();
                let new = piece.lines().filter(|line| !usual.contains(line));
                kept.extend(new.flat_map(|line| [line, "\n"]));
            }
            Some(_) | None => kept += &piece,
        }
    }
    kept
}

fn check(mode: &str) {
    let (empty, _) = dump(EMPTY, mode);
    let mut names: Vec<String> = fs::read_dir(clusters())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    names.sort();
    assert!(names.len() > 12);
    let mut settings = insta::Settings::clone_current();
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    for name in names {
        let (text, title) = dump(&name, mode);
        assert_eq!(
            dump(&name, mode).0,
            text,
            "the same input gives the same bytes"
        );
        let text = if name == EMPTY {
            text
        } else {
            differs_from_empty(&text, &empty)
        };
        settings.set_description(title);
        settings.bind(|| insta::assert_snapshot!(format!("{name}.{mode}"), text));
    }
}

#[test]
fn rules_of_nftables_are_as_kept() {
    check("nftables");
}

#[test]
fn rules_of_iptables_are_as_kept() {
    check("iptables");
}
