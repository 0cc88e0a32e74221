//! Which rules of the project can a compiler not see, and are they kept?
//!
//! Invariants: a check is a pure function from the [`Tree`] to problems, so that a test can show that it fails where it
//! should; tidy changes nothing unless asked by `--fix`.

mod files;
mod imports;
mod layout;
mod spec;
mod tokens;

use crate::sh;
use anyhow::{Context as _, Result};
use std::collections::BTreeMap;
use std::path::Path;

/// How to check.
#[derive(clap::Args, Default)]
pub(crate) struct Options {
    /// Take IDs that have a test out of tests/not-covered.toml
    #[arg(long)]
    fix: bool,
}

/// The text files of the repository, by path from its root.
#[derive(Default)]
struct Tree {
    files: BTreeMap<String, String>,
    /// Names of the directories at the top.
    directories: Vec<String>,
}

impl Tree {
    fn read(root: &Path) -> Result<Self> {
        let mut tree = Self::default();
        let mut todo = vec![String::new()];
        while let Some(dir) = todo.pop() {
            for entry in
                std::fs::read_dir(root.join(&dir)).with_context(|| format!("cannot list {dir}"))?
            {
                let entry = entry?;
                let name = entry.file_name().to_string_lossy().into_owned();
                let path = if dir.is_empty() {
                    name.clone()
                } else {
                    format!("{dir}/{name}")
                };
                if entry.file_type()?.is_dir() {
                    // Hidden directories (.git, .ci) and cargo's output are not the project's source.
                    if name == "target" || name.starts_with('.') {
                        continue;
                    }
                    if dir.is_empty() {
                        tree.directories.push(name);
                    }
                    todo.push(path);
                } else if [".rs", ".toml", ".md"].iter().any(|e| name.ends_with(e)) {
                    let text = std::fs::read_to_string(entry.path())
                        .with_context(|| format!("cannot read {path}"))?;
                    tree.files.insert(path, text);
                }
            }
        }
        Ok(tree)
    }

    /// Rust sources, by path.
    fn rust(&self) -> impl Iterator<Item = (&str, &str)> {
        self.with_extension("rs")
    }

    /// Documents, by path.
    fn documents(&self) -> impl Iterator<Item = (&str, &str)> {
        self.with_extension("md")
    }

    fn with_extension(&self, wanted: &'static str) -> impl Iterator<Item = (&str, &str)> {
        self.files
            .iter()
            .filter(move |(path, _)| Path::new(path).extension().is_some_and(|e| e == wanted))
            .map(|(path, text)| (path.as_str(), text.as_str()))
    }

    fn get(&self, path: &str) -> Option<&str> {
        self.files.get(path).map(String::as_str)
    }

    #[cfg(test)]
    fn of(files: &[(&str, &str)]) -> Self {
        Self {
            files: files
                .iter()
                .map(|(p, t)| ((*p).to_owned(), (*t).to_owned()))
                .collect(),
            directories: Vec::new(),
        }
    }
}

/// One check: its name, and what it finds.
type Check = (&'static str, fn(&Tree) -> Vec<String>);

const CHECKS: &[Check] = &[
    ("who imports whom", imports::check),
    ("SPEC IDs and tests", spec::check),
    ("module docs", files::undocumented),
    ("unsafe", files::misplaced_unsafe),
    ("the tree", layout::check),
    ("links in documents", files::dead_links),
];

/// Runs every check; whether none found a problem.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let root = sh::root();
    let mut tree = Tree::read(&root)?;
    if options.fix
        && let Some(text) = spec::without_covered(&tree)
    {
        std::fs::write(root.join(spec::NOT_COVERED), text)?;
        tree = Tree::read(&root)?;
    }
    let mut clean = true;
    for (name, check) in CHECKS {
        let problems = check(&tree);
        println!(
            "tidy: {name}: {}",
            if problems.is_empty() {
                "ok".to_owned()
            } else {
                format!("{} problems", problems.len())
            }
        );
        for problem in &problems {
            println!("  {problem}");
        }
        clean &= problems.is_empty();
    }
    println!("tidy: {}", spec::summary(&tree));
    for (path, lines) in files::long(&tree) {
        println!("tidy: {path} has {lines} lines: is it two things?");
    }
    Ok(clean)
}
