//! Has every behaviour of tests/SPEC.md a test, and does every test name a behaviour?
//!
//! A test names the IDs that it shows at the beginning of its name: `src_9_hairpin_is_masqueraded`, `eps_5_svc_7_…`. An ID is covered
//! by a test that sends packets, asks the daemon or runs its binary, or, where the API server is the subject, by one that
//! speaks HTTP with a fake one ([`TestKind`]); a unit test does not count. What is not covered stands in
//! tests/not-covered.toml with a reason. Invariant: an ID is in exactly one of the two places.

use super::{Tree, tokens};
use proc_macro2::TokenTree;
use std::collections::{BTreeMap, BTreeSet};

pub(super) const NOT_COVERED: &str = "tests/not-covered.toml";
const SPEC: &str = "tests/SPEC.md";

/// An area and a number: SRC-9.
type Id = (String, u32);

/// What a test does, by its directory; the first that is not [`TestKind::Unit`] covers an ID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum TestKind {
    /// Runs the daemon in network namespaces, and sends packets or asks it.
    Behaviour,
    /// Compares packets on random clusters with the oracle.
    Differential,
    /// Runs the daemon while faults happen.
    Faults,
    /// Fills the store from a fake API server over HTTP, and from manifests.
    Sources,
    /// Calls functions.
    Unit,
}

impl TestKind {
    fn of(path: &str) -> Option<Self> {
        let directories = [
            ("tests/behaviour/", Self::Behaviour),
            ("tests/differential/", Self::Differential),
            ("tests/faults/", Self::Faults),
            ("tests/sources/", Self::Sources),
            ("tests/src/", Self::Unit),
            ("proxy-daemon/", Self::Unit),
        ];
        let found = directories
            .iter()
            .find(|(directory, _)| path.starts_with(directory));
        found.map(|(_, kind)| *kind)
    }
}

/// Of each ID that tests name: the kinds of these tests, and where the first of each kind is.
type Named = BTreeMap<Id, BTreeMap<TestKind, String>>;

/// IDs that SPEC.md defines, that tests name, and that are excused.
struct Coverage {
    defined: BTreeSet<Id>,
    named: Named,
    excused: BTreeMap<Id, String>,
    problems: Vec<String>,
}

impl Coverage {
    fn of(tree: &Tree) -> Self {
        let defined = defined(tree.get(SPEC).unwrap_or_default());
        let areas: BTreeSet<&str> = defined.iter().map(|(area, _)| area.as_str()).collect();
        let named = named(tree, &areas);
        let (excused, problems) = excused(tree);
        Self {
            defined,
            named,
            excused,
            problems,
        }
    }

    /// Where the test is that covers an ID.
    fn covers(&self, id: &Id) -> Option<&String> {
        let (kind, place) = self.named.get(id)?.first_key_value()?;
        (*kind != TestKind::Unit).then_some(place)
    }
}

/// IDs without a test or a reason, with both, and tests that name an unknown ID.
pub(super) fn check(tree: &Tree) -> Vec<String> {
    if tree.get(SPEC).is_none() {
        return vec![format!("{SPEC} is missing")];
    }
    let all = Coverage::of(tree);
    let mut problems = all.problems.clone();
    for id in &all.defined {
        let shown = show(id);
        match (all.covers(id), all.excused.contains_key(id)) {
            (None, false) if all.named.contains_key(id) => problems.push(format!(
                "{shown} has only unit tests and no entry in {NOT_COVERED}"
            )),
            (None, false) => {
                problems.push(format!("{shown} has no test and no entry in {NOT_COVERED}"));
            }
            (Some(place), true) => problems.push(format!(
                "{shown} is in {NOT_COVERED}, but {place} tests it (`tidy --fix`)"
            )),
            _ => {}
        }
    }
    let named = all
        .named
        .iter()
        .flat_map(|(id, places)| places.values().map(move |place| (id, place.as_str())));
    let excused = all.excused.keys().map(|id| (id, NOT_COVERED));
    for (id, place) in named
        .chain(excused)
        .filter(|(id, _)| !all.defined.contains(*id))
    {
        problems.push(format!(
            "{place} names {}, which {SPEC} does not define",
            show(id)
        ));
    }
    problems
}

/// How many IDs have a test.
pub(super) fn summary(tree: &Tree) -> String {
    let all = Coverage::of(tree);
    let covered = all
        .defined
        .iter()
        .filter(|id| all.covers(id).is_some())
        .count();
    format!(
        "{covered} of {} SPEC IDs have a test, {} are excused in {NOT_COVERED}",
        all.defined.len(),
        all.excused.len()
    )
}

/// A line for each ID: the kinds of its tests with the first place of each, or why it has none.
pub(super) fn table(tree: &Tree) -> String {
    let all = Coverage::of(tree);
    let line = |id: &Id| {
        let tests = all.named.get(id).into_iter().flatten();
        let tests = tests.map(|(kind, place)| format!("{kind:?} {place}").to_lowercase());
        let excuse = all.excused.get(id);
        let excuse = excuse.map(|reason| format!("not covered: {reason}"));
        let cells: Vec<String> = tests.chain(excuse).collect();
        format!("{:9} {}\n", show(id), cells.join(", "))
    };
    all.defined.iter().map(line).collect()
}

/// not-covered.toml without the IDs that have a test; nothing if there are none.
pub(super) fn without_covered(tree: &Tree) -> Option<String> {
    let all = Coverage::of(tree);
    let is_covered = |line: &str| {
        let id = line.split_once('=').and_then(|(id, _)| parse(id.trim()));
        id.is_some_and(|id| all.covers(&id).is_some())
    };
    let text = tree.get(NOT_COVERED)?;
    let kept: Vec<&str> = text.lines().filter(|line| !is_covered(line)).collect();
    (kept.len() < text.lines().count()).then(|| kept.join("\n") + "\n")
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

/// IDs that tests name.
fn named(tree: &Tree, areas: &BTreeSet<&str>) -> Named {
    let mut found = Named::new();
    for (path, source) in tree.rust() {
        let Some(kind) = TestKind::of(path) else {
            continue;
        };
        let mut is_fn = false;
        for token in tokens(source) {
            // A test function, also one that a macro is given (an unused function does not get past clippy), or a registered name.
            let name = match &token {
                TokenTree::Ident(name) if is_fn => name.to_string(),
                TokenTree::Literal(text) => {
                    text.to_string().trim_matches(['r', '#', '"']).to_owned()
                }
                TokenTree::Ident(_) | TokenTree::Group(_) | TokenTree::Punct(_) => String::new(),
            };
            is_fn = matches!(&token, TokenTree::Ident(word) if word == "fn");
            let name = name.split('/').next().unwrap_or_default();
            if !name.chars().all(|c| c.is_alphanumeric() || c == '_') {
                continue;
            }
            for id in ids_of(name, areas) {
                let line = token.span().start().line;
                let places = found.entry(id).or_default();
                places
                    .entry(kind)
                    .or_insert_with(|| format!("{path}:{line}"));
            }
        }
    }
    found
}

/// Entries `ID = "reason"`, and the errors of the others.
fn excused(tree: &Tree) -> (BTreeMap<Id, String>, Vec<String>) {
    let (mut entries, mut problems) = (BTreeMap::new(), Vec::new());
    let table = match tree
        .get(NOT_COVERED)
        .unwrap_or_default()
        .parse::<toml::Table>()
    {
        Ok(table) => table,
        Err(why) => return (entries, vec![format!("{NOT_COVERED}: {why}")]),
    };
    for (key, value) in table {
        let reason = value.as_str().unwrap_or_default().trim();
        match parse(&key).filter(|_| !reason.is_empty()) {
            Some(id) => drop(entries.insert(id, reason.to_owned())),
            None => problems.push(format!(
                "{NOT_COVERED}: {key} is not of the form ID = \"reason\""
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
            &format!("{ALL}ABC-1 = \"x\"\nSVC-9 = \"\"\n"),
        ));
        assert_eq!(found.len(), 2, "{found:?}");
        let twice = format!("{ALL}EV-2 = \"again\"\n");
        assert!(!check(&tree("fn svc_1_a() {}", &twice)).is_empty());
    }

    #[test]
    fn a_unit_test_covers_nothing() {
        let mut tree = tree("", ALL);
        let unit = "fn svc_1_a() {}".to_owned();
        tree.files.insert("proxy-daemon/src/a.rs".to_owned(), unit);
        assert_eq!(
            check(&tree),
            ["SVC-1 has only unit tests and no entry in tests/not-covered.toml"]
        );
        let excuse = format!("{ALL}SVC-1 = \"why\"\n");
        tree.files.insert(NOT_COVERED.to_owned(), excuse);
        assert_eq!(check(&tree), Vec::<String>::new());
        assert!(table(&tree).contains("unit proxy-daemon/src/a.rs:1, not covered: why"));
    }
}
