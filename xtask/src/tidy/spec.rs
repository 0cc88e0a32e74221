//! Has every behaviour of tests/SPEC.md a test, and does every test name a behaviour?
//!
//! An ID is covered by a function or a registered name that begins with it: `src_9_hairpin_is_masqueraded`; a name may
//! begin with several (`eps_5_svc_7_…`). What is not covered yet stands in tests/not-covered.toml with a reason.
//! Invariant: an ID is in exactly one of the two places.

use super::Tree;
use super::tokens::{strings, tokens};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

pub(super) const NOT_COVERED: &str = "tests/not-covered.toml";
const SPEC: &str = "tests/SPEC.md";

/// An area and a number: SRC-9.
type Id = (String, u32);

/// IDs without a test or a reason, with both, and tests that name an unknown ID.
pub(super) fn check(tree: &Tree) -> Vec<String> {
    let Some(spec) = tree.get(SPEC) else {
        return vec![format!("{SPEC} is missing")];
    };
    let defined = defined(spec);
    let areas: BTreeSet<&str> = defined.iter().map(|(area, _)| area.as_str()).collect();
    let named = named(tree, &areas);
    let (excused, mut problems) = excused(tree.get(NOT_COVERED).unwrap_or_default());
    for id in &defined {
        match (named.get(id), excused.contains_key(id)) {
            (None, false) => problems.push(format!(
                "{} has no test and no entry in {NOT_COVERED}",
                show(id)
            )),
            (Some(place), true) => {
                problems.push(format!(
                    "{} is in {NOT_COVERED}, but {place} tests it (`tidy --fix`)",
                    show(id)
                ));
            }
            _ => {}
        }
    }
    for (id, place) in &named {
        if !defined.contains(id) {
            problems.push(format!(
                "{place} names {}, which {SPEC} does not define",
                show(id)
            ));
        }
    }
    for id in excused.keys().filter(|id| !defined.contains(*id)) {
        problems.push(format!(
            "{NOT_COVERED} names {}, which {SPEC} does not define",
            show(id)
        ));
    }
    problems
}

/// How many IDs have a test.
pub(super) fn summary(tree: &Tree) -> String {
    let defined = defined(tree.get(SPEC).unwrap_or_default());
    let areas: BTreeSet<&str> = defined.iter().map(|(area, _)| area.as_str()).collect();
    let named = named(tree, &areas);
    let covered = defined.iter().filter(|id| named.contains_key(id)).count();
    let (excused, _) = excused(tree.get(NOT_COVERED).unwrap_or_default());
    format!(
        "{covered} of {} SPEC IDs have a test, {} are excused in {NOT_COVERED}",
        defined.len(),
        excused.len()
    )
}

/// not-covered.toml without the IDs that have a test; nothing if there are none.
pub(super) fn without_covered(tree: &Tree) -> Option<String> {
    let defined = defined(tree.get(SPEC)?);
    let areas: BTreeSet<&str> = defined.iter().map(|(area, _)| area.as_str()).collect();
    let named = named(tree, &areas);
    let text = tree.get(NOT_COVERED)?;
    let mut kept = String::new();
    let mut dropped = false;
    for line in text.lines() {
        if line
            .split_once('=')
            .and_then(|(id, _)| parse(id.trim()))
            .is_some_and(|id| named.contains_key(&id))
        {
            dropped = true;
        } else {
            writeln!(kept, "{line}").ok()?;
        }
    }
    dropped.then_some(kept)
}

fn show((area, number): &Id) -> String {
    format!("{area}-{number}")
}

/// IDs that a bullet of SPEC.md defines: `- **SVC-1 …`, also several in one. Rows of tables (the decisions DEC) repeat
/// what other IDs define, and are left out.
fn defined(spec: &str) -> BTreeSet<Id> {
    spec.lines()
        .filter(|l| l.starts_with("- **"))
        .flat_map(|l| l.split("**").skip(1).step_by(2))
        .filter_map(|bold| parse(bold.split_whitespace().next()?))
        .collect()
}

/// SVC-1
fn parse(word: &str) -> Option<Id> {
    let (area, number) = word.split_once('-')?;
    let area_fits = (2..=5).contains(&area.len()) && area.chars().all(|c| c.is_ascii_uppercase());
    Some((area.to_owned(), number.parse().ok()?)).filter(|_| area_fits)
}

/// IDs that a name begins with: `eps_5_svc_7_union_of_slices`.
fn ids_of(name: &str, areas: &BTreeSet<&str>) -> Vec<Id> {
    let mut ids = Vec::new();
    let mut rest = name;
    while let Some((area, after)) = rest.split_once('_')
        && let Some((number, after)) = after.split_once('_')
        && let Ok(number) = number.parse()
        && area.chars().all(|c| c.is_ascii_lowercase())
        && areas.contains(area.to_ascii_uppercase().as_str())
    {
        ids.push((area.to_ascii_uppercase(), number));
        rest = after;
    }
    ids
}

/// IDs that tests name, with the first place of each.
fn named(tree: &Tree, areas: &BTreeSet<&str>) -> BTreeMap<Id, String> {
    let mut found = BTreeMap::new();
    for (path, source) in tree
        .rust()
        .filter(|(p, _)| p.starts_with("tests/") || p.starts_with("proxy-daemon/"))
    {
        let words = tokens(source);
        // A test function, also one that a macro is given; an unused function does not get past clippy.
        let functions = words.windows(2).filter_map(|pair| match pair {
            [keyword, name] if keyword.text == "fn" => Some((name.text, name.line)),
            _ => None,
        });
        let registered = strings(source)
            .into_iter()
            .map(|t| (t.text, t.line))
            .filter(|(name, _)| {
                name.split('/')
                    .next()
                    .is_some_and(|n| n.chars().all(|c| c.is_alphanumeric() || c == '_'))
            });
        for (name, line) in functions.chain(registered) {
            for id in ids_of(name.split('/').next().unwrap_or(name), areas) {
                found.entry(id).or_insert_with(|| format!("{path}:{line}"));
            }
        }
    }
    found
}

/// Entries `ID = "reason"`, and the lines that are none.
fn excused(text: &str) -> (BTreeMap<Id, String>, Vec<String>) {
    let mut entries = BTreeMap::new();
    let mut problems = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let entry = line.split_once('=').and_then(|(id, reason)| {
            let reason = reason.trim().strip_prefix('"')?.strip_suffix('"')?;
            Some((parse(id.trim())?, reason.trim().to_owned()))
                .filter(|(_, reason)| !reason.is_empty())
        });
        match entry {
            Some((id, reason)) => {
                if entries.insert(id.clone(), reason).is_some() {
                    problems.push(format!("{NOT_COVERED}:{}: {} twice", at + 1, show(&id)));
                }
            }
            None => problems.push(format!(
                "{NOT_COVERED}:{}: not of the form ID = \"reason\"",
                at + 1
            )),
        }
    }
    (entries, problems)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC_TEXT: &str = "# x\n- **SVC-1 Service watch.** [proc] See **EPS-9**, or EPS-8.\n\
         - **EV-1** Normal. **EV-2** Warning.\n| DEC-1 | **DEC-2** |\nSVC-7 is text\n";

    fn tree(test: &str, excuses: &str) -> Tree {
        Tree::of(&[
            (SPEC, SPEC_TEXT),
            ("tests/behaviour/a.rs", test),
            (NOT_COVERED, excuses),
        ])
    }

    const ALL: &str = "EPS-9 = \"later\"\nEV-1 = \"later\"\nEV-2 = \"later\"\n";

    #[test]
    fn bullets_define_and_tables_do_not() {
        let ids: Vec<_> = defined("- **SVC-1 A b.** x\n- **EV-1** n. **EV-2** m.\n| DEC-1 | x |\n")
            .iter()
            .map(show)
            .collect();
        assert_eq!(ids, ["EV-1", "EV-2", "SVC-1"]);
    }

    #[test]
    fn a_function_or_a_registered_name_covers_an_id() {
        assert_eq!(
            check(&tree("fn svc_1_watch_is_filtered() {}", ALL)),
            Vec::<String>::new()
        );
        assert_eq!(
            check(&tree("row(\"svc_1_watch/nftables/v4\");", ALL)),
            Vec::<String>::new()
        );
        assert_eq!(
            check(&tree(
                "fn eps_9_svc_1_both() {}",
                "EV-1 = \"l\"\nEV-2 = \"l\""
            )),
            Vec::<String>::new()
        );
    }

    #[test]
    fn an_id_without_a_test_is_found() {
        let found = check(&tree("// fn svc_1_in_a_comment() {}", ALL));
        assert_eq!(
            found,
            ["SVC-1 has no test and no entry in tests/not-covered.toml"]
        );
    }

    #[test]
    fn an_id_with_both_is_found_and_fixed() {
        let both = tree(
            "fn svc_1_a() {}",
            &format!("# why\nSVC-1 = \"later\"\n{ALL}"),
        );
        assert!(
            check(&both)
                .iter()
                .any(|p| p.starts_with("SVC-1 is in tests/not-covered.toml"))
        );
        assert_eq!(without_covered(&both), Some(format!("# why\n{ALL}")));
        assert_eq!(without_covered(&tree("fn svc_1_a() {}", ALL)), None);
    }

    #[test]
    fn a_test_of_an_unknown_id_is_found() {
        let found = check(&tree("fn svc_1_a() {} fn svc_77_b() {}", ALL));
        assert_eq!(
            found,
            ["tests/behaviour/a.rs:1 names SVC-77, which tests/SPEC.md does not define"]
        );
    }

    #[test]
    fn names_that_only_look_like_ids_are_left_alone() {
        assert_eq!(
            check(&tree(
                "fn svc_1_a() {} fn ipv_4_x() {} fn svc_name() {} f(\"svc 2 x\")",
                ALL
            )),
            Vec::<String>::new()
        );
    }

    #[test]
    fn excuses_need_a_known_id_and_a_reason() {
        let found = check(&tree(
            "fn svc_1_a() {}",
            &format!("{ALL}ABC-1 = \"x\"\nEV-2 = \"again\"\nSVC-9 =\n"),
        ));
        assert_eq!(found.len(), 3, "{found:?}");
    }
}
