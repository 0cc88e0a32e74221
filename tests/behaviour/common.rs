//! What SYNC and LIFE look at besides flows: our rules, foreign objects, the binary itself.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use proxy_tests::address::{Family, HOST, NODE, P1, P2, VIP, X};
use proxy_tests::daemon::binary;
use proxy_tests::flow::{flow, kept, masqueraded};
use proxy_tests::matrix::Test;

/// The nodePort of [`web`].
pub(crate) const PORT: u16 = 30_080;
/// The nft families that each case of a mode could touch.
pub(crate) const FAMILIES: [&str; 2] = ["ip", "ip6"];

pub(crate) fn web(t: &mut Test) {
    t.service("web").cluster_ip(VIP).port(80).node_port(PORT);
    t.endpoints("web").ready(P2);
}

pub(crate) fn works() -> [proxy_tests::flow::Flow; 3] {
    [
        flow(P1, VIP, 80).reaches([kept(P2)]),
        flow(HOST, VIP, 80).reaches([masqueraded(P2)]),
        flow(X, NODE, PORT).reaches([masqueraded(P2)]),
    ]
}

/// What our tables hold, in an order of its own: elements of sets come in any.
pub(crate) fn rules(t: &Test) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for family in FAMILIES {
        let output = t
            .node_ns()
            .run("nft", &["-j", "list", "table", family, "proxy-daemon"]);
        let Ok(value) = serde_json::from_slice::<serde_json::Value>(&output.stdout) else {
            continue;
        };
        for object in value["nftables"].as_array().into_iter().flatten() {
            flatten(family, object, &mut found);
        }
    }
    found
}

fn flatten(family: &str, object: &serde_json::Value, found: &mut BTreeSet<String>) {
    let mut object = object.clone();
    for kind in ["table", "chain", "rule", "set", "map", "counter"] {
        let Some(inner) = object.get_mut(kind).and_then(|inner| inner.as_object_mut()) else {
            continue;
        };
        inner.remove("handle");
        let name = inner
            .get("name")
            .map(ToString::to_string)
            .unwrap_or_default();
        if let Some(elements) = inner.remove("elem") {
            for element in elements.as_array().into_iter().flatten() {
                found.insert(format!("{family} {name} {element}"));
            }
        }
    }
    if object.get("metainfo").is_none() {
        found.insert(format!("{family} {object}"));
    }
}

/// Tables, chains and iptables rules of others.
pub(crate) fn foreign(t: &Test) -> String {
    let mut text = String::new();
    for words in [
        &["nft", "-s", "list", "table", "inet", "foreign"][..],
        &["nft", "-s", "list", "table", "ip", "cni"],
        &["iptables-legacy-save"],
        &["ip6tables-legacy-save"],
        &["tc", "filter", "show", "dev", "up0", "ingress"],
    ] {
        let output = t.node_ns().run(words[0], &words[1..]);
        let lines = String::from_utf8_lossy(&output.stdout).into_owned();
        for line in lines
            .lines()
            .filter(|line| !line.starts_with('#') && !line.starts_with(':'))
        {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

pub(crate) fn make_foreign(t: &Test) {
    t.nft(
        "table inet foreign { set s { type ipv4_addr; elements = { 192.0.2.9 } }
           chain c { type filter hook input priority 7; ip saddr @s counter drop; }
         }
         table ip cni { chain nat { type nat hook prerouting priority -90;
           tcp dport 9999 dnat to 10.244.1.12:8080; }
         }",
    );
    let rules = "*filter\n:KUBE-FIREWALL - [0:0]\n-A INPUT -j KUBE-FIREWALL\n\
                 -A KUBE-FIREWALL -s 192.0.2.66 -j DROP\nCOMMIT\n\
                 *mangle\n:KUBE-IPTABLES-HINT - [0:0]\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n";
    for program in ["iptables-legacy-restore", "ip6tables-legacy-restore"] {
        let rules = if program.starts_with("ip6") {
            rules.replace("192.0.2.66", "2001:db8::66")
        } else {
            rules.to_owned()
        };
        t.node_ns().feed(program, &["--noflush"], &rules).unwrap();
    }
}

/// Runs the daemon's binary in N until it ends.
pub(crate) fn run(t: &Test, arguments: &[&str]) -> (Option<i32>, String) {
    let binary = binary();
    let output = t.node_ns().run(binary.to_str().unwrap(), arguments);
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.code(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

/// Another program that owns our table of one family, so that nobody else may touch it.
pub(crate) struct Owner(std::process::Child);

impl Owner {
    /// Takes a family's table away and keeps it.
    pub(crate) fn of(t: &Test, family: &str) -> Self {
        use std::io::Write;
        let child = t.node_ns().enter(|| {
            std::process::Command::new("nft")
                .arg("-i")
                .stdin(std::process::Stdio::piped())
                .stdout(std::process::Stdio::null())
                .spawn()
                .unwrap()
        });
        let mut owner = Self(child);
        let stdin = owner.0.stdin.as_mut().unwrap();
        let script = format!(
            "add table {family} proxy-daemon; delete table {family} proxy-daemon; \
             add table {family} proxy-daemon {{ flags owner; }}\n"
        );
        stdin.write_all(script.as_bytes()).unwrap();
        stdin.flush().unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let output = t
                .node_ns()
                .run("nft", &["list", "table", family, "proxy-daemon"]);
            if String::from_utf8_lossy(&output.stdout).contains("flags owner") {
                return owner;
            }
            assert!(Instant::now() < deadline, "the table is not owned");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

pub(crate) fn nft_family(family: Family) -> &'static str {
    if family == Family::V4 { "ip" } else { "ip6" }
}
