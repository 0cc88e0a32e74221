//! SYNC-10, LIFE-5, LIFE-7: beside rules and sets of others that no program can print.

use std::collections::BTreeSet;
use std::path::Path;

use nix::sys::signal::Signal;
use proxy_tests::address::{P1, P2, R, VIP, VIP2};
use proxy_tests::case;
use proxy_tests::daemon::{Directory, binary};
use proxy_tests::datapath::{Flavour, nft_family};
use proxy_tests::flow::{flow, kept};
use proxy_tests::matrix::{Case, Test};

use crate::common::{rules, web, works};

/// What iptables-nft 1.8.9 cannot print, or prints as something else, in the chain FOREIGN of a table.
const RULES: [&str; 8] = [
    "ct mark vmap { 0x77 : drop }",
    "tcp dport vmap { 4444 : drop }",
    "meta mark 0x77 numgen random mod 2 vmap { 0 : drop }",
    "meta mark 0x77 meta mark set 0x78",
    "meta mark 0x77 fib daddr type local drop",
    "meta mark 0x77 @nh,0,3 2 drop",
    "meta mark 0x77 quota over 5 mbytes drop",
    "meta mark 0x77 log prefix \"foreign\"",
];

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case!(sync_10_rules_that_cannot_be_printed_are_in_nobodys_way)
            .slow()
            .kernel()
            .tcp()
            .fresh(),
        case!(sync_10_sets_that_cannot_be_printed_are_in_nobodys_way)
            .kernel()
            .tcp()
            .fresh(),
        case!(life_7_cleanup_goes_past_rules_that_cannot_be_printed)
            .kernel()
            .tcp()
            .fresh(),
    ]
}

/// Something of others that the daemon's programs cannot print.
struct Foreign {
    add: String,
    remove: String,
}

impl Foreign {
    fn all(t: &Test) -> Vec<Self> {
        let family = nft_family(t.family);
        let mut all = Vec::new();
        for table in ["nat", "filter"] {
            for rule in RULES {
                all.push(Self::new(
                    format!("nft 'add rule {family} {table} FOREIGN {rule}'"),
                    format!("nft 'flush chain {family} {table} FOREIGN'"),
                ));
            }
            all.push(Self::new(
                format!(
                    "nft 'add chain {family} {table} foreign {{ type filter hook prerouting priority 5; }}'"
                ),
                format!("nft 'delete chain {family} {table} foreign'"),
            ));
            for flavour in Flavour::ALL {
                let program = flavour.program(t.family, "");
                all.push(Self::new(
                    format!("{program} -w -t {table} -A FOREIGN -m u32 --u32 0=1 -j RETURN"),
                    format!("{program} -w -t {table} -F FOREIGN"),
                ));
            }
        }
        all
    }

    fn new(add: String, remove: String) -> Self {
        Self { add, remove }
    }
}

/// The libraries of iptables but for one, as if another program knew more than ours.
fn libraries() -> Directory {
    let directory = Directory::new().unwrap();
    let candidates = [
        "/usr/lib/x86_64-linux-gnu/xtables",
        "/usr/lib/aarch64-linux-gnu/xtables",
        "/usr/lib64/xtables",
        "/usr/lib/xtables",
    ];
    let all = candidates.iter().find(|path| Path::new(path).exists());
    let all = all.expect("iptables has its libraries somewhere");
    for entry in std::fs::read_dir(all).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() != "libxt_u32.so" {
            let link = directory.path().join(entry.file_name());
            std::os::unix::fs::symlink(entry.path(), link).unwrap();
        }
    }
    directory
}

fn shell(t: &Test, script: &str) -> String {
    match t.node_ns().check_run("sh", &["-c", script]) {
        Ok(text) => text,
        Err(error) => panic!("{script}: {error:#}"),
    }
}

/// A chain of others in each table, which ours are beside.
fn make_foreign_chains(t: &Test) {
    for flavour in Flavour::ALL {
        let program = flavour.program(t.family, "");
        for (table, built_in) in [("nat", "PREROUTING"), ("filter", "FORWARD")] {
            let call = format!("{program} -w -t {table}");
            shell(
                t,
                &format!("{call} -N FOREIGN && {call} -A {built_in} -j FOREIGN"),
            );
        }
    }
}

/// What others have in the tables of iptables-nft.
fn foreign_rules(t: &Test) -> String {
    let family = nft_family(t.family);
    let list = |table| format!("nft -s list chain {family} {table} FOREIGN");
    shell(t, &format!("{}; {}", list("nat"), list("filter")))
}

/// An object that is missing when the daemon starts again, and one that others added.
fn restart_beside(t: &mut Test, foreign: &Foreign) {
    t.service("gone").cluster_ip(VIP2).port(80).affinity(100);
    t.endpoints("gone").ready(P2).ready(R);
    t.apply();
    t.bed_mut().daemon.signal(Signal::SIGKILL).unwrap();
    t.delete_service("gone");
    t.delete_endpoints("gone");
    shell(t, &foreign.add);
    t.apply();
}

fn sync_10_rules_that_cannot_be_printed_are_in_nobodys_way(t: &mut Test) {
    let libraries = libraries();
    let path = libraries.path().display().to_string();
    t.bed_mut().daemon.set_variable("XTABLES_LIBDIR", &path);
    make_foreign_chains(t);
    web(t);
    t.check(works());
    let before = rules(t);
    for foreign in Foreign::all(t) {
        restart_beside(t, &foreign);
        let theirs = foreign_rules(t);
        t.observe(works());
        t.endpoints("web").clear().ready(R);
        t.apply();
        t.observe([flow(P1, VIP, 80).reaches([kept(R)])]);
        t.endpoints("web").clear();
        t.apply();
        t.observe([flow(P1, VIP, 80).is_rejected()]);
        t.endpoints("web").clear().ready(P2);
        t.apply();
        assert_eq!(foreign_rules(t), theirs, "{}", foreign.add);
        shell(t, &foreign.remove);
        let after = rules(t);
        let left: Vec<_> = after.difference(&before).collect();
        let missing: Vec<_> = before.difference(&after).collect();
        assert!(
            left.is_empty() && missing.is_empty(),
            "{}: left {left:#?}\nmissing {missing:#?}\n{}",
            foreign.add,
            t.bed().daemon.log()
        );
    }
}

/// Our objects, without elements that packets made.
fn without_clients(t: &Test) -> BTreeSet<String> {
    let mut rules = rules(t);
    rules.retain(|line| !line.contains("\"affinity\"") && !line.contains("-A-"));
    rules
}

/// An ipset that does not know the type of a set of others fails to print all sets.
fn sync_10_sets_that_cannot_be_printed_are_in_nobodys_way(t: &mut Test) {
    let programs = Directory::new().unwrap();
    let path = std::env::var("PATH").unwrap_or_default();
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in save|list|'list -terse') echo 'a set of an unknown type' >&2; exit 1;; esac\n\
         PATH={path}\nexec ipset \"$@\"\n"
    );
    programs.write("ipset", &script).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(programs.path().join("ipset"), mode).unwrap();
    let path = format!("{}:{path}", programs.path().display());
    t.bed_mut().daemon.set_variable("PATH", &path);
    web(t);
    t.service("sticky").cluster_ip(VIP2).port(80).affinity(100);
    t.endpoints("sticky").ready(P2).ready(R);
    t.check(works());
    let before = without_clients(t);
    let backend = t.only(&flow(P1, VIP2, 80), 3);
    t.bed_mut().daemon.signal(Signal::SIGKILL).unwrap();
    let node = t.node_ns();
    for name in shell(t, "ipset list -n").lines() {
        // What a fresh daemon has to put right.
        if name.ends_with("-refused") || name.ends_with("-node-addresses") {
            assert!(node.run("ipset", &["flush", name]).status.success());
        }
    }
    // Another time for the clients that are remembered.
    t.service("sticky").affinity(200);
    t.apply();
    t.observe(works());
    assert_eq!(t.only(&flow(P1, VIP2, 80), 3), backend);
    t.service("sticky").affinity(100);
    t.apply();
    assert_eq!(without_clients(t), before, "{}", t.bed().daemon.log());
    t.endpoints("web").clear();
    t.apply();
    t.observe([flow(P1, VIP, 80).is_rejected()]);
    t.bed_mut().daemon.signal(Signal::SIGTERM).unwrap();
    let cleanup = format!("PATH={path} {} --cleanup", binary().display());
    shell(t, &cleanup);
    assert!(rules(t).is_empty(), "{:#?}", rules(t));
}

fn life_7_cleanup_goes_past_rules_that_cannot_be_printed(t: &mut Test) {
    make_foreign_chains(t);
    web(t);
    t.check(works());
    t.bed_mut().daemon.signal(Signal::SIGTERM).unwrap();
    let family = nft_family(t.family);
    let (all, libraries) = (Foreign::all(t), libraries());
    for foreign in &all {
        shell(t, &foreign.add);
    }
    // A foreign rule jumps to our chain: the chain cannot be removed, and the error must say so.
    let datapath = t.datapath();
    let leads_to_ours = datapath == Flavour::Nft.datapath();
    if leads_to_ours {
        shell(
            t,
            &format!(
                "nft 'add rule {family} nat FOREIGN tcp dport vmap {{ 4444 : jump PROXYD-VIPS }}'"
            ),
        );
    }
    let theirs = foreign_rules(t);
    let cleanup = |t: &Test| {
        let variable = format!("XTABLES_LIBDIR={}", libraries.path().display());
        let binary = binary().display().to_string();
        let output = t.node_ns().run("env", &[&variable, &binary, "--cleanup"]);
        let text = [output.stdout, output.stderr].concat();
        (
            output.status.code(),
            String::from_utf8_lossy(&text).into_owned(),
        )
    };
    let (code, text) = cleanup(t);
    assert_eq!(code == Some(0), !leads_to_ours, "{text}");
    assert_eq!(foreign_rules(t), theirs);
    if leads_to_ours {
        assert!(text.contains("PROXYD-VIPS"), "{text}");
        let chains = shell(t, &format!("nft list chains {family}"));
        assert_eq!(chains.matches("chain PROXYD").count(), 1, "{chains}");
        shell(t, &format!("nft 'flush chain {family} nat FOREIGN'"));
        let (code, text) = cleanup(t);
        assert_eq!(code, Some(0), "{text}");
    }
    for foreign in &all {
        shell(t, &foreign.remove);
    }
    assert!(rules(t).is_empty(), "{:#?}", rules(t));
}
