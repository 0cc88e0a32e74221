//! Are only agreed directories at the top of the repository, and does a plain `cargo build` skip crates for another toolchain?

use super::Tree;

/// The directories at the top; there are no others.
pub(super) const DIRECTORIES: &[&str] = &[
    "deploy",
    "docs",
    "proxy-common",
    "proxy-daemon",
    "proxy-ebpf",
    "tests",
    "xtask",
];
/// Those without a crate.
const NO_CRATE: &[&str] = &["deploy", "docs"];
/// Crates that a plain `cargo build` leaves out.
const NOT_DEFAULT: &[&str] = &["proxy-ebpf"];

/// Directories that are not agreed, and crates that are not where they should be in Cargo.toml.
pub(super) fn check(tree: &Tree) -> Vec<String> {
    let mut problems: Vec<String> = tree
        .directories
        .iter()
        .filter(|d| !DIRECTORIES.contains(&d.as_str()))
        .map(|d| format!("{d}/ does not belong at the top"))
        .collect();
    let crates = DIRECTORIES.iter().filter(|d| !NO_CRATE.contains(d));
    let default = crates.clone().filter(|d| !NOT_DEFAULT.contains(d));
    for (key, wanted, found) in [
        (
            "members",
            crates.copied().collect::<Vec<_>>(),
            &tree.members,
        ),
        (
            "default-members",
            default.copied().collect(),
            &tree.default_members,
        ),
    ] {
        let mut found: Vec<&str> = found.iter().map(String::as_str).collect();
        found.sort_unstable();
        if found != wanted {
            problems.push(format!(
                "Cargo.toml: {key} should be {wanted:?}, not {found:?}"
            ));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Tree {
        let own = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        Tree {
            members: own(&[
                "proxy-common",
                "proxy-daemon",
                "proxy-ebpf",
                "tests",
                "xtask",
            ]),
            default_members: own(&["proxy-common", "proxy-daemon", "tests", "xtask"]),
            ..Tree::default()
        }
    }

    #[test]
    fn the_given_layout_passes() {
        assert_eq!(check(&good()), Vec::<String>::new());
    }

    #[test]
    fn another_directory_is_found() {
        let mut tree = good();
        tree.directories = vec!["tests".to_owned(), "misc".to_owned()];
        assert_eq!(check(&tree), ["misc/ does not belong at the top"]);
    }

    #[test]
    fn the_ebpf_crate_among_the_default_members_is_found() {
        let mut tree = good();
        tree.default_members.push("proxy-ebpf".to_owned());
        assert_eq!(check(&tree).len(), 1);
    }
}
