//! Does every module of the daemon use only the modules and crates that it may?
//!
//! The table below is the architecture; ARCHITECTURE.md explains it. It is read against every path in the source, in
//! `use` and inline, after `super::` has been resolved, so that no spelling gets around it. Modules named `tests` may use
//! anything: they put modules together that do not know each other.

use super::Tree;
use super::tokens::{Token, tokens};

const SOURCE: &str = "proxy-daemon/src/";

/// What the files of one module may use.
struct Rule {
    /// The module, as a path from the crate; the longest one that fits a file holds for it.
    module: &'static str,
    /// Modules of ours, as paths from the crate; a module may always use itself.
    ours: &'static [&'static str],
    crates: Crates,
}

enum Crates {
    /// Whatever is in Cargo.toml, but Kubernetes types.
    Any,
    /// Whatever is in Cargo.toml.
    AnyAndKubernetes,
    /// Of those in Cargo.toml only these: the module is pure.
    Only(&'static [&'static str]),
}

const KUBERNETES: &[&str] = &["k8s_openapi", "kube"];
/// Crates that keep a module pure: words for networks, and derives for errors and for what is printed.
const PURE: &[&str] = &["ipnet", "serde", "thiserror"];
const EVERYTHING: &str = "*";
/// Modules of this name are tests.
const TESTS: &str = "tests";
/// Words that all layers share.
const SHARED: &str = "net";

/// In the reading order of the crate.
const RULES: &[Rule] = &[
    Rule {
        module: SHARED,
        ours: &[],
        crates: Crates::Only(PURE),
    },
    Rule {
        module: "config",
        ours: &["model", "forwarding", "sys"],
        crates: Crates::Any,
    },
    Rule {
        module: "model",
        ours: &[],
        crates: Crates::Only(PURE),
    },
    Rule {
        module: "model::from_k8s",
        ours: &["model"],
        crates: Crates::AnyAndKubernetes,
    },
    Rule {
        module: "diagnostics",
        ours: &["model", "sys"],
        crates: Crates::Any,
    },
    Rule {
        module: "watch",
        ours: &["model", "config", "diagnostics", "sys"],
        crates: Crates::AnyAndKubernetes,
    },
    Rule {
        module: "compile",
        ours: &["model", "forwarding", "config"],
        crates: Crates::Only(PURE),
    },
    Rule {
        module: "forwarding",
        ours: &[],
        crates: Crates::Only(PURE),
    },
    Rule {
        module: "datapath",
        ours: &["forwarding", "sys"],
        crates: Crates::Any,
    },
    Rule {
        module: "datapath::nftables",
        ours: &["datapath", "forwarding", "sys"],
        crates: Crates::Any,
    },
    Rule {
        module: "datapath::iptables",
        ours: &["datapath", "forwarding", "sys"],
        crates: Crates::Any,
    },
    Rule {
        module: "datapath::ebpf",
        ours: &["datapath", "forwarding", "sys"],
        crates: Crates::Any,
    },
    Rule {
        module: "conntrack",
        ours: &["forwarding", "sys"],
        crates: Crates::Any,
    },
    Rule {
        module: "sync",
        ours: &[
            "compile",
            "config",
            "conntrack",
            "datapath",
            "diagnostics",
            "forwarding",
            "health",
            "metrics",
            "model",
            "sys",
            // Of it only `Drained`: what changed, taken through a trait of its own.
            "watch",
        ],
        crates: Crates::Any,
    },
    Rule {
        module: "health",
        ours: &["debug", "forwarding", "sys"],
        crates: Crates::Any,
    },
    Rule {
        module: "metrics",
        ours: &[],
        crates: Crates::Any,
    },
    Rule {
        module: "telemetry",
        ours: &["config"],
        crates: Crates::Any,
    },
    Rule {
        module: "debug",
        ours: &["config", "forwarding", "model"],
        crates: Crates::Any,
    },
    Rule {
        module: "sys",
        ours: &[],
        crates: Crates::Any,
    },
    Rule {
        module: "cli",
        ours: &["config", "debug"],
        crates: Crates::Any,
    },
    Rule {
        module: "app",
        ours: &[EVERYTHING],
        crates: Crates::Any,
    },
    // The crate's root and the binary: they declare modules and start the app.
    Rule {
        module: "",
        ours: &[EVERYTHING],
        crates: Crates::Any,
    },
];

/// Modules that only those who know everything may name.
const PRIVATE: &[&str] = &["app"];
/// The kinds of datapath, which must not know each other.
const DATAPATHS: &[&str] = &["datapath::nftables", "datapath::iptables", "datapath::ebpf"];

/// Breaches of the table.
pub(super) fn check(tree: &Tree) -> Vec<String> {
    let dependencies = dependencies(tree.get("proxy-daemon/Cargo.toml").unwrap_or_default());
    let mut problems = Vec::new();
    for (path, source) in tree.rust() {
        let Some(relative) = path.strip_prefix(SOURCE) else {
            continue;
        };
        let module = module_of(relative);
        let name = module.join("::");
        let Some(rule) = rule_for(&name) else {
            problems.push(format!(
                "{path}: module `{name}` is not in the table of xtask/src/tidy/imports.rs"
            ));
            continue;
        };
        for used in uses(&tokens(source), &module, &dependencies) {
            let breach = match &used {
                Use::Ours { path: target, .. } => !may_use(rule, &name, &target.join("::")),
                Use::Crate { name: external, .. } => !may_depend(rule, external),
            };
            if breach {
                let (line, what) = match &used {
                    Use::Ours { path: target, line } => {
                        (line, format!("crate::{}", target.join("::")))
                    }
                    Use::Crate {
                        name: external,
                        line,
                    } => (line, (*external).to_owned()),
                };
                let shown = if name.is_empty() {
                    "the crate's root"
                } else {
                    &name
                };
                problems.push(format!("{path}:{line}: {shown} must not use {what}"));
            }
        }
    }
    problems
}

fn rule_for(module: &str) -> Option<&'static Rule> {
    RULES
        .iter()
        .filter(|r| is_in(module, r.module) && (r.module.is_empty() == module.is_empty()))
        .max_by_key(|r| r.module.len())
}

/// Whether `module` is `ancestor` or below it.
fn is_in(module: &str, ancestor: &str) -> bool {
    module
        .strip_prefix(ancestor)
        .is_some_and(|rest| ancestor.is_empty() || rest.is_empty() || rest.starts_with("::"))
}

fn may_use(rule: &Rule, from: &str, target: &str) -> bool {
    if is_in(target, rule.module) && !rule.module.is_empty() {
        return true;
    }
    let everything = rule.ours.contains(&EVERYTHING);
    if PRIVATE.iter().any(|p| is_in(target, p)) && !everything {
        return false;
    }
    // One datapath never knows another; only datapath/mod.rs itself, which opens them, does.
    if DATAPATHS
        .iter()
        .any(|d| is_in(target, d) && !is_in(from, d))
        && !everything
        && from != "datapath"
    {
        return false;
    }
    // What the crate's root itself defines is nobody's secret.
    let known = RULES
        .iter()
        .any(|r| !r.module.is_empty() && is_in(target, r.module));
    let shared = is_in(target, SHARED);
    everything || shared || !known || rule.ours.iter().any(|allowed| is_in(target, allowed))
}

fn may_depend(rule: &Rule, external: &str) -> bool {
    match rule.crates {
        Crates::Any => !KUBERNETES.contains(&external),
        Crates::AnyAndKubernetes => true,
        Crates::Only(allowed) => allowed.contains(&external),
    }
}

/// A path used by a file.
#[derive(Debug, PartialEq, Eq)]
enum Use<'a> {
    /// From the root of our crate.
    Ours { path: Vec<&'a str>, line: usize },
    /// A crate of Cargo.toml.
    Crate { name: &'a str, line: usize },
}

/// Every path of ours, and every crate, that the tokens name.
fn uses<'a>(tokens: &[Token<'a>], file: &[&'a str], dependencies: &[String]) -> Vec<Use<'a>> {
    let mut found = Vec::new();
    // Inline modules that are open, with the depth of braces at which each ends.
    let mut inline: Vec<(&str, usize)> = Vec::new();
    let mut depth = 0_usize;
    let text = |at: usize| tokens.get(at).map_or("", |t| t.text);
    let testing = |inline: &[(&str, usize)]| {
        file.contains(&TESTS) || inline.iter().any(|(name, _)| *name == TESTS)
    };
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        let head = at == 0 || text(at - 1) != "::";
        match token.text {
            "{" => {
                if at >= 2 && text(at - 2) == "mod" {
                    inline.push((text(at - 1), depth));
                }
                depth += 1;
            }
            "}" => {
                depth = depth.saturating_sub(1);
                if inline.last().is_some_and(|(_, end)| *end == depth) {
                    inline.pop();
                }
            }
            "crate" | "super" | "self" if head && text(at + 1) == "::" => {
                let mut base: Vec<&str> = match token.text {
                    "crate" => Vec::new(),
                    _ => file
                        .iter()
                        .copied()
                        .chain(inline.iter().map(|(name, _)| *name))
                        .collect(),
                };
                let mut next = at;
                while text(next) == "super" {
                    base.pop();
                    next += 2;
                }
                if token.text != "super" {
                    next += 2;
                }
                for path in leaves(tokens, next, &base)
                    .into_iter()
                    .filter(|_| !testing(&inline))
                {
                    found.push(Use::Ours {
                        path,
                        line: token.line,
                    });
                }
            }
            name if head && !testing(&inline) && dependencies.iter().any(|d| d == name) => {
                let in_use = at > 0 && text(at - 1) == "use" && [";", "as"].contains(&text(at + 1));
                if text(at + 1) == "::" || in_use {
                    found.push(Use::Crate {
                        name: token.text,
                        line: token.line,
                    });
                }
            }
            _ => {}
        }
        at += 1;
    }
    found
}

/// The paths of a use tree that starts at `at`: `a::b`, or `{a, b::{c, d}}`, each put behind `base`.
fn leaves<'a>(tokens: &[Token<'a>], at: usize, base: &[&'a str]) -> Vec<Vec<&'a str>> {
    let text = |at: usize| tokens.get(at).map_or("", |t| t.text);
    let mut path = base.to_vec();
    let mut at = at;
    loop {
        match text(at) {
            "{" => {
                let mut found = Vec::new();
                let mut depth = 0_usize;
                let mut starts = true;
                loop {
                    match text(at) {
                        "{" => depth += 1,
                        "}" => depth -= 1,
                        "" => return found,
                        "," => {}
                        _ if depth == 1 && starts => found.extend(leaves(tokens, at, &path)),
                        _ => {}
                    }
                    starts = matches!(text(at), "{" | ",");
                    if depth == 0 {
                        return found;
                    }
                    at += 1;
                }
            }
            "super" => {
                path.pop();
            }
            "self" | "*" => return vec![path],
            word if word.starts_with(|c: char| c.is_alphanumeric() || c == '_') => path.push(word),
            _ => return vec![path],
        }
        if text(at + 1) != "::" {
            return vec![path];
        }
        at += 2;
    }
}

/// `datapath/nftables/mod.rs` is the module `datapath::nftables`.
fn module_of(relative: &str) -> Vec<&str> {
    let stem = relative.strip_suffix(".rs").unwrap_or(relative);
    let mut parts: Vec<&str> = stem.split('/').collect();
    if matches!(parts.last().copied(), Some("mod" | "lib" | "main")) {
        parts.pop();
    }
    parts
}

/// Names in `[dependencies]` and `[dev-dependencies]`, as the source spells them.
fn dependencies(manifest: &str) -> Vec<String> {
    let mut inside = false;
    let mut names = Vec::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            inside = line.contains("dependencies");
        } else if inside
            && let Some(name) = line.split(['.', '=', ' ']).next().filter(|n| !n.is_empty())
        {
            names.push(name.replace('-', "_"));
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: (&str, &str) = (
        "proxy-daemon/Cargo.toml",
        "[dependencies]\nipnet.workspace = true\nk8s-openapi = \"1\"\ntracing.workspace = true\n",
    );

    fn problems(path: &str, source: &str) -> Vec<String> {
        check(&Tree::of(&[MANIFEST, (path, source)]))
    }

    #[track_caller]
    fn refused(path: &str, source: &str, what: &str) {
        let found = problems(path, source);
        assert!(
            found.iter().any(|p| p.contains(what)),
            "{source}: {found:?}"
        );
    }

    #[track_caller]
    fn allowed(path: &str, source: &str) {
        assert_eq!(problems(path, source), Vec::<String>::new());
    }

    #[test]
    fn a_datapath_may_use_the_contract_and_nothing_before_it() {
        let path = "proxy-daemon/src/datapath/nftables/render.rs";
        allowed(
            path,
            "use crate::forwarding::State; use crate::datapath::delta::Tracker; use super::text;",
        );
        refused(path, "use crate::model::Service;", "crate::model::Service");
        refused(
            path,
            "fn f() { crate::compile::compile() }",
            "crate::compile",
        );
        refused(
            path,
            "use crate::{forwarding::State, watch::{store::Store, Event}};",
            "crate::watch::store::Store",
        );
    }

    #[test]
    fn a_datapath_may_not_use_another() {
        let path = "proxy-daemon/src/datapath/nftables/render.rs";
        refused(
            path,
            "use crate::datapath::iptables::x;",
            "datapath::iptables",
        );
        refused(path, "use super::super::iptables::x;", "datapath::iptables");
        allowed(
            "proxy-daemon/src/datapath/mod.rs",
            "use self::iptables::Iptables; use crate::datapath::nftables::Nft;",
        );
    }

    #[test]
    fn super_is_resolved_also_in_inline_modules() {
        let path = "proxy-daemon/src/compile/mod.rs";
        allowed(path, "mod a { use super::*; use super::super::model::X; }");
        refused(
            path,
            "mod a { use super::super::watch::X; }",
            "crate::watch::X",
        );
        refused(
            path,
            "mod a { mod b {} use super::super::sync::X; }",
            "crate::sync::X",
        );
    }

    #[test]
    fn tests_may_use_anything_and_only_they() {
        let path = "proxy-daemon/src/compile/mod.rs";
        allowed(
            path,
            "mod tests { use crate::watch::X; use tracing::info; }",
        );
        allowed(
            "proxy-daemon/src/compile/tests/world.rs",
            "use crate::watch::X;",
        );
        refused(
            path,
            "mod tests { } use crate::watch::X;",
            "crate::watch::X",
        );
    }

    #[test]
    fn pure_modules_have_no_crates_but_theirs() {
        allowed(
            "proxy-daemon/src/model/service.rs",
            "use ipnet::IpNet; // use tracing::info;",
        );
        refused(
            "proxy-daemon/src/model/service.rs",
            "fn f() { tracing::info!(\"x\") }",
            "tracing",
        );
        refused(
            "proxy-daemon/src/forwarding/eval.rs",
            "use crate::model::X;",
            "crate::model::X",
        );
    }

    #[test]
    fn kubernetes_types_stay_at_the_edge() {
        allowed(
            "proxy-daemon/src/model/from_k8s.rs",
            "use k8s_openapi::api; use super::Service;",
        );
        allowed(
            "proxy-daemon/src/watch/kubernetes.rs",
            "use k8s_openapi::api;",
        );
        refused(
            "proxy-daemon/src/model/mod.rs",
            "use k8s_openapi::api;",
            "k8s_openapi",
        );
        refused(
            "proxy-daemon/src/app.rs",
            "use k8s_openapi::api;",
            "k8s_openapi",
        );
    }

    #[test]
    fn shared_words_are_for_all_and_use_nothing() {
        allowed(
            "proxy-daemon/src/forwarding/state.rs",
            "use crate::net::Port;",
        );
        refused(
            "proxy-daemon/src/net/parse.rs",
            "use crate::model::X;",
            "crate::model::X",
        );
    }

    #[test]
    fn nobody_imports_app() {
        refused(
            "proxy-daemon/src/sync.rs",
            "use crate::app::run;",
            "crate::app::run",
        );
        allowed("proxy-daemon/src/main.rs", "use crate::app::run;");
    }

    #[test]
    fn a_module_without_a_rule_is_refused() {
        refused(
            "proxy-daemon/src/helpers.rs",
            "",
            "`helpers` is not in the table",
        );
    }
}
