//! Does each file begin with its question, is `unsafe` only in its places, and do links lead to files that exist?

use super::{Tree, tokens};
use proc_macro2::TokenTree;

/// Files over this are listed, and do not fail.
const LONG: usize = 600;

/// Where STYLE allows `unsafe`: the prefix of a path.
const UNSAFE: &[&str] = &[
    "proxy-common/",
    "proxy-ebpf/",
    // Calls of libnftnl and libmnl, and two socket options.
    "proxy-daemon/src/sys/netfilter/library.rs",
    // One getsockopt that reads its value before it writes it, which no crate offers.
    "proxy-daemon/src/datapath/iptables/drift/legacy.rs",
    // A closure between fork and exec: a program must end with the daemon that started it.
    "proxy-daemon/src/sys/process.rs",
    // malloc_trim, which no crate offers.
    "proxy-daemon/src/sys/memory.rs",
    "tests/src/netns",
];

/// Rust files without `//!` at their top.
pub(super) fn undocumented(tree: &Tree) -> Vec<String> {
    tree.rust()
        .filter(|(_, text)| !text.trim_start().starts_with("//!"))
        .map(|(path, _)| {
            format!("{path} does not begin with `//!`: which question does it answer?")
        })
        .collect()
}

/// `unsafe` outside of the places for it.
pub(super) fn misplaced_unsafe(tree: &Tree) -> Vec<String> {
    tree.rust()
        .filter(|(path, _)| !UNSAFE.iter().any(|place| path.starts_with(place)))
        .filter_map(|(path, text)| {
            let is_unsafe = |t: &TokenTree| matches!(t, TokenTree::Ident(word) if word == "unsafe");
            let token = tokens(text).into_iter().find(is_unsafe)?;
            let line = token.span().start().line;
            Some(format!("{path}:{line}: `unsafe` is not allowed here"))
        })
        .collect()
}

/// Files that may be two things in one.
pub(super) fn long(tree: &Tree) -> Vec<(&str, usize)> {
    tree.rust()
        .map(|(path, text)| (path, text.lines().count()))
        .filter(|(_, n)| *n > LONG)
        .collect()
}

/// Links of documents, and paths in ARCHITECTURE.md's code map, that do not exist.
pub(super) fn dead_links(tree: &Tree) -> Vec<String> {
    let root = crate::sh::root();
    let mut problems = Vec::new();
    for (path, text) in tree.documents() {
        let dir = path.rsplit_once('/').map_or("", |(dir, _)| dir);
        for target in links(text) {
            if !root.join(dir).join(&target).exists() {
                problems.push(format!("{path}: {target} does not exist"));
            }
        }
        if path == "ARCHITECTURE.md" {
            for target in mapped(text) {
                if !root.join(&target).exists() {
                    problems.push(format!("{path}: `{target}` does not exist"));
                }
            }
        }
    }
    problems
}

/// Relative targets of `[text](target)`.
fn links(text: &str) -> Vec<String> {
    text.split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
        .map(|target| target.split('#').next().unwrap_or(target).to_owned())
        .filter(|target| !target.is_empty() && !target.contains("://") && !target.contains(' '))
        .collect()
}

/// Paths in backquotes that begin with a directory of ours.
fn mapped(text: &str) -> Vec<String> {
    text.split('`')
        .skip(1)
        .step_by(2)
        .filter(|code| {
            super::layout::DIRECTORIES
                .iter()
                .any(|d| code.strip_prefix(d).is_some_and(|r| r.starts_with('/')))
        })
        .filter(|code| !code.contains(|c: char| c.is_whitespace() || "{*<".contains(c)))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_its_question_is_found() {
        let tree = Tree::of(&[
            ("a.rs", "//! What?\nfn f() {}"),
            ("b.rs", "// no\nfn f() {}"),
            ("c.rs", ""),
        ]);
        assert_eq!(undocumented(&tree).len(), 2);
    }

    #[test]
    fn unsafe_is_found_outside_its_places_and_not_in_words_about_it() {
        let code = "fn f() { unsafe { g() } }";
        let tree = Tree::of(&[
            ("proxy-daemon/src/sys/netfilter/library.rs", code),
            (
                "proxy-daemon/src/app.rs",
                "// unsafe\nconst A: &str = \"unsafe\";",
            ),
            ("proxy-daemon/src/sync.rs", code),
        ]);
        assert_eq!(
            misplaced_unsafe(&tree),
            ["proxy-daemon/src/sync.rs:1: `unsafe` is not allowed here"]
        );
    }

    #[test]
    fn long_files_are_listed() {
        let tree = Tree::of(&[("a.rs", &"x\n".repeat(601)), ("b.rs", &"x\n".repeat(600))]);
        assert_eq!(long(&tree), [("a.rs", 601)]);
    }

    #[test]
    fn links_that_lead_nowhere_are_found() {
        let tree = Tree::of(&[(
            "README.md",
            "[a](Cargo.toml) [b](https://x.y/z) [c](#here) [d](gone/away.md)",
        )]);
        assert_eq!(
            dead_links(&tree),
            ["README.md: gone/away.md does not exist"]
        );
    }

    #[test]
    fn paths_of_the_code_map_that_lead_nowhere_are_found() {
        let tree = Tree::of(&[(
            "ARCHITECTURE.md",
            "`xtask/src/main.rs` `xtask/src/gone.rs` `nft list table`",
        )]);
        assert_eq!(
            dead_links(&tree),
            ["ARCHITECTURE.md: `xtask/src/gone.rs` does not exist"]
        );
    }
}
