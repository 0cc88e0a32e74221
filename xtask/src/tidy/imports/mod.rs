//! Does every module of the daemon use only the modules and crates that it may?
//!
//! Every path in the tokens of a file is compared with the [`table`], also inside of macros, after `super::` was resolved. Modules
//! named `tests` may use any module.

mod table;

use super::Tree;
use proc_macro2::TokenTree::{Group, Ident, Literal, Punct};
use proc_macro2::{Spacing, TokenStream};
use table::{Crates, RULES};

const SOURCE: &str = "proxy-daemon/src/";
const TABLE: &str = "xtask/src/tidy/imports/table.rs";

/// Breaches of the table.
pub(super) fn check(tree: &Tree) -> Vec<String> {
    let manifest = tree.toml("proxy-daemon/Cargo.toml").unwrap_or_default();
    let dependencies: Vec<String> = ["dependencies", "dev-dependencies"]
        .iter()
        .filter_map(|section| manifest.get(*section)?.as_table())
        .flat_map(|table| table.keys().map(|name| name.replace('-', "_")))
        .collect();
    let mut problems = Vec::new();
    let ours = |(path, _): &(&str, &str)| path.starts_with(SOURCE);
    for (path, source) in tree.rust().filter(ours) {
        let module = module_of(path.trim_start_matches(SOURCE));
        let name = module.join("::");
        let Some(&rule) = RULES
            .iter()
            .filter(|(of, ..)| is_in(&name, of) && of.is_empty() == name.is_empty())
            .max_by_key(|(of, ..)| of.len())
        else {
            problems.push(format!("{path}: module `{name}` is not in {TABLE}"));
            continue;
        };
        let mut found = Vec::new();
        match source.parse() {
            Ok(tokens) => add_paths(tokens, &module, &[], &mut found),
            Err(why) => problems.push(format!("{path}: {why}")),
        }
        for (used, line) in found {
            let breach = match used.split_once("::").unwrap_or((&used, "")) {
                ("crate", target) => !may_use(rule, &name, target),
                (first, _) => dependencies.iter().any(|d| d == first) && !rule.2.contain(first),
            };
            if breach {
                problems.push(format!("{path}:{line}: `{name}` must not use {used}"));
            }
        }
    }
    problems
}

/// Whether `module` is `ancestor` or below it.
fn is_in(module: &str, ancestor: &str) -> bool {
    let rest = module.strip_prefix(ancestor);
    rest.is_some_and(|rest| ancestor.is_empty() || rest.is_empty() || rest.starts_with("::"))
}

fn may_use((module, ours, _): (&str, &str, Crates), from: &str, target: &str) -> bool {
    if ours == "*" || is_in(target, "net") || (is_in(target, module) && !module.is_empty()) {
        return true;
    }
    // A datapath does not know another; only `datapath` itself, which opens them, does.
    let mut others = RULES
        .iter()
        .filter(|(of, ..)| of.starts_with("datapath::") && !is_in(from, of));
    if from != "datapath" && others.any(|(of, ..)| is_in(target, of)) {
        return false;
    }
    // Every module may use items of the crate's root.
    let is_module = RULES
        .iter()
        .any(|(of, ..)| !of.is_empty() && is_in(target, of));
    !is_module
        || ours
            .split_whitespace()
            .any(|allowed| is_in(target, allowed))
}

/// `datapath/nftables/mod.rs` is the module `datapath::nftables`.
fn module_of(relative: &str) -> Vec<String> {
    let stem = relative.strip_suffix(".rs").unwrap_or(relative);
    let mut parts: Vec<String> = stem.split('/').map(str::to_owned).collect();
    parts.pop_if(|last| ["mod", "lib", "main"].contains(&last.as_str()));
    parts
}

/// Adds every path in the tokens, from the root of our crate or from another crate, each with its line.
fn add_paths(
    tokens: TokenStream,
    module: &[String],
    prefix: &[String],
    found: &mut Vec<(String, usize)>,
) {
    if module.iter().any(|part| part == "tests") {
        return;
    }
    let (mut before, mut path, mut n_colons, mut line) = (String::new(), prefix.to_vec(), 0, 0);
    let end = Punct(proc_macro2::Punct::new(';', Spacing::Alone));
    for token in tokens.into_iter().chain([end]) {
        match token {
            Punct(sign) if sign.as_char() == ':' => {
                n_colons += 1;
                continue;
            }
            Ident(part) if n_colons == 2 => path.push(part.to_string()),
            // `use crate::a::{b, c::d}`
            Group(group) if n_colons == 2 => {
                add_paths(group.stream(), module, &path, found);
            }
            other @ (Group(_) | Ident(_) | Punct(_) | Literal(_)) => {
                if path.len() > 1 || before == "use" {
                    found.extend(resolve(&path, module).map(|path| (path, line)));
                }
                if let Group(group) = &other {
                    let name = path.first().filter(|_| before == "mod");
                    let inside = [module, name.map_or(&[], std::slice::from_ref)].concat();
                    add_paths(group.stream(), &inside, &[], found);
                }
                before = path.pop().unwrap_or_default();
                path = prefix.to_vec();
                if let Ident(first) = other {
                    line = first.span().start().line;
                    path.push(first.to_string());
                }
            }
        }
        n_colons = 0;
    }
}

/// `super::a` in the module `b::c` is `crate::b::a`; other paths stay as they are.
fn resolve(path: &[String], module: &[String]) -> Option<String> {
    let mut full = match path.first()?.as_str() {
        "self" | "super" => [&["crate".to_owned()], module].concat(),
        _ => Vec::new(),
    };
    for part in path {
        match part.as_str() {
            "super" => drop(full.pop()),
            "self" => {}
            other => full.push(other.to_owned()),
        }
    }
    Some(full.join("::"))
}

#[cfg(test)]
mod tests;
