//! Is the top of the repository as given, and does a plain `cargo build` leave out what needs another toolchain?

use super::Tree;

/// The directories at the top; there are no others.
pub(super) const DIRECTORIES: &[&str] = &[
    "deploy",
    "proxy-common",
    "proxy-daemon",
    "proxy-ebpf",
    "tests",
    "xtask",
];
/// Crates that a plain `cargo build` leaves out.
const NOT_DEFAULT: &[&str] = &["proxy-ebpf"];

/// Directories that do not belong, and crates that are not where they should be in Cargo.toml.
pub(super) fn check(tree: &Tree) -> Vec<String> {
    let mut problems: Vec<String> = tree
        .directories
        .iter()
        .filter(|d| !DIRECTORIES.contains(&d.as_str()))
        .map(|d| format!("{d}/ is a seventh directory at the top"))
        .collect();
    let manifest = tree.get("Cargo.toml").unwrap_or_default();
    let crates: Vec<&str> = DIRECTORIES
        .iter()
        .copied()
        .filter(|d| *d != "deploy")
        .collect();
    let default: Vec<&str> = crates
        .iter()
        .copied()
        .filter(|c| !NOT_DEFAULT.contains(c))
        .collect();
    for (key, wanted) in [("members", crates), ("default-members", default)] {
        let mut found = list(manifest, key);
        found.sort_unstable();
        if found != wanted {
            problems.push(format!(
                "Cargo.toml: {key} should be {wanted:?}, not {found:?}"
            ));
        }
    }
    problems
}

/// The strings of `key = ["a", "b"]` on one line.
fn list<'a>(manifest: &'a str, key: &str) -> Vec<&'a str> {
    manifest
        .lines()
        .filter_map(|l| l.split_once('='))
        .find(|(k, _)| k.trim() == key)
        .map(|(_, value)| value.split('"').skip(1).step_by(2).collect())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "members = [\"proxy-common\", \"proxy-daemon\", \"proxy-ebpf\", \"tests\", \"xtask\"]\n\
         default-members = [\"proxy-common\", \"proxy-daemon\", \"tests\", \"xtask\"]\n";

    #[test]
    fn the_given_layout_passes() {
        assert_eq!(
            check(&Tree::of(&[("Cargo.toml", GOOD)])),
            Vec::<String>::new()
        );
    }

    #[test]
    fn another_directory_is_found() {
        let mut tree = Tree::of(&[("Cargo.toml", GOOD)]);
        tree.directories = vec!["tests".to_owned(), "docs".to_owned()];
        assert_eq!(check(&tree), ["docs/ is a seventh directory at the top"]);
    }

    #[test]
    fn the_ebpf_crate_among_the_default_members_is_found() {
        let bad = GOOD.replace("default-members = [", "default-members = [\"proxy-ebpf\", ");
        assert_eq!(check(&Tree::of(&[("Cargo.toml", &bad)])).len(), 1);
    }
}
