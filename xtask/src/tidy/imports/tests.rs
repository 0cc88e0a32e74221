//! Does the check find forbidden imports in every spelling?

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
    refused("proxy-daemon/src/helpers.rs", "", "`helpers` is not in");
}

#[test]
fn every_module_of_the_table_exists() {
    let source = crate::sh::root().join(SOURCE);
    let named = RULES
        .iter()
        .flat_map(|(module, ours, _)| ours.split_whitespace().chain([*module]));
    for module in named.filter(|name| !["", "*"].contains(name)) {
        let path = source.join(module.replace("::", "/"));
        assert!(
            path.with_extension("rs").exists() || path.join("mod.rs").exists(),
            "{TABLE} names `{module}`, which does not exist"
        );
    }
}
