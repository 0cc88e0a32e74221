//! Which rules of the project can a compiler not see, and are they kept?
//!
//! Invariants: a check is a pure function from the [`Tree`] to problems, so that a test can show that it fails where it
//! should; tidy changes nothing unless asked by `--fix`.

mod files;
mod imports;
mod layout;
mod spec;

use crate::sh;
use anyhow::{Context as _, Result};
use proc_macro2::{TokenStream, TokenTree};
use std::collections::BTreeMap;
use std::path::Path;

/// How to check.
#[derive(clap::Args, Default)]
pub(crate) struct Options {
    /// Take IDs that have a test out of tests/not-covered.toml
    #[arg(long)]
    fix: bool,
    /// Print which kind of test covers each SPEC ID, and where it is
    #[arg(long)]
    spec: bool,
}

/// The text files of the repository, by path from its root.
#[derive(Default)]
struct Tree {
    files: BTreeMap<String, String>,
    /// Names of the directories at the top.
    directories: Vec<String>,
    /// Directories of the workspace's members, and of those that a plain `cargo build` takes.
    members: Vec<String>,
    default_members: Vec<String>,
}

impl Tree {
    fn read(root: &Path) -> Result<Self> {
        let metadata = cargo_metadata::MetadataCommand::new()
            .current_dir(root)
            .no_deps()
            .exec()?;
        let directories = |packages: Vec<&cargo_metadata::Package>| {
            let directory = |p: &cargo_metadata::Package| {
                Some(p.manifest_path.parent()?.file_name()?.to_owned())
            };
            packages.into_iter().filter_map(directory).collect()
        };
        let mut tree = Self {
            members: directories(metadata.workspace_packages()),
            default_members: directories(metadata.workspace_default_packages()),
            ..Self::default()
        };
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

    /// A TOML file; nothing if there is none or it cannot be read.
    fn toml(&self, path: &str) -> Option<toml::Table> {
        self.get(path)?.parse().ok()
    }

    #[cfg(test)]
    fn of(files: &[(&str, &str)]) -> Self {
        Self {
            files: files
                .iter()
                .map(|(p, t)| ((*p).to_owned(), (*t).to_owned()))
                .collect(),
            ..Self::default()
        }
    }
}

/// The tokens of a Rust file one after the other, without groups and comments; none if it cannot be read, as the compiler says.
fn tokens(source: &str) -> Vec<TokenTree> {
    fn flatten(stream: TokenStream, flat: &mut Vec<TokenTree>) {
        for token in stream {
            match token {
                TokenTree::Group(ref group) => flatten(group.stream(), flat),
                TokenTree::Ident(_) | TokenTree::Punct(_) | TokenTree::Literal(_) => {
                    flat.push(token);
                }
            }
        }
    }
    let mut flat = Vec::new();
    flatten(source.parse().unwrap_or_default(), &mut flat);
    flat
}

/// One check: its name, and what it finds.
type Check = (&'static str, fn(&Tree) -> Vec<String>);

const CHECKS: &[Check] = &[
    ("imports", imports::check),
    ("SPEC IDs and tests", spec::check),
    ("module docs", files::undocumented),
    ("unsafe", files::misplaced_unsafe),
    ("the tree", layout::check),
    ("links in documents", files::dead_links),
    ("the eBPF object", |_| {
        crate::ebpf::problems().unwrap_or_else(|e| vec![format!("{e:#}")])
    }),
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
    if options.spec {
        print!("{}", spec::table(&tree));
    }
    println!("tidy: {}", spec::summary(&tree));
    for (path, lines) in files::long(&tree) {
        println!("tidy: {path} has {lines} lines: is it two things?");
    }
    Ok(clean)
}
