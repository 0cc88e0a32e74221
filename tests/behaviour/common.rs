//! What SYNC and LIFE look at besides flows: our rules, foreign objects, the binary itself.

use std::collections::BTreeSet;
use std::process::Child;
use std::time::Duration;

use proxy_tests::address::{Family, HOST, NODE, P1, P2, VIP, X};
use proxy_tests::daemon::{Directory, binary};
use proxy_tests::datapath::{Flavour, everything_of_ours, nft_family};
use proxy_tests::flow::{flow, kept, masqueraded};
use proxy_tests::matrix::Test;
use proxy_tests::wait::within;

/// The nodePort of [`web`].
pub(crate) const PORT: u16 = 30_080;

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

/// Our objects in the kernel, of every datapath: those that do not run must have none.
pub(crate) fn rules(t: &Test) -> BTreeSet<String> {
    everything_of_ours(t.node_ns())
}

/// Waits until our objects in the kernel are these.
#[track_caller]
pub(crate) fn await_rules(t: &Test, expected: &BTreeSet<String>, after: &str) {
    if !within(Duration::from_secs(10), || rules(t) == *expected) {
        let now = rules(t);
        let missing: Vec<_> = expected.difference(&now).collect();
        let more: Vec<_> = now.difference(expected).collect();
        panic!(
            "after {after}: missing {missing:#?}\nmore {more:#?}\n{}",
            t.bed().daemon.log()
        );
    }
}

/// Tables, chains and iptables rules of others.
pub(crate) fn foreign(t: &Test) -> String {
    let mut text = String::new();
    let mut words: Vec<Vec<String>> = [
        "nft -s list table inet foreign",
        "nft -s list table ip cni",
        "tc filter show dev up0 ingress",
        "ipset save",
    ]
    .map(|line| line.split(' ').map(str::to_owned).collect())
    .to_vec();
    for (flavour, family) in iptables() {
        words.push(vec![flavour.program(family, "save")]);
    }
    for words in words {
        let arguments: Vec<&str> = words[1..].iter().map(String::as_str).collect();
        let output = t.node_ns().run(&words[0], &arguments);
        text.extend(["-- ", &words.join(" "), "\n"]);
        let lines = String::from_utf8_lossy(&output.stdout).into_owned();
        for line in lines
            .lines()
            .filter(|line| !line.starts_with('#') && !line.contains("PROXYD"))
        {
            // Packets change the counters of chains.
            let line = line
                .split('[')
                .next()
                .filter(|_| line.starts_with(':'))
                .unwrap_or(line);
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

pub(crate) fn iptables() -> impl Iterator<Item = (Flavour, Family)> {
    let both = |flavour| Family::ALL.map(|family| (flavour, family));
    Flavour::ALL.into_iter().flat_map(both)
}

/// Objects of others wherever ours could be: before, behind and between them.
pub(crate) fn make_foreign(t: &Test) {
    t.nft(
        "table inet foreign { set s { type ipv4_addr; elements = { 192.0.2.9 } }
           chain c { type filter hook input priority 7; ip saddr @s counter drop; }
         }
         table ip cni { chain nat { type nat hook prerouting priority -90;
           tcp dport 9999 dnat to 10.244.1.12:8080; }
         }",
    );
    let sets = "create foreign4 hash:ip family inet\nadd foreign4 192.0.2.67\n\
                create foreign6 hash:ip family inet6\nadd foreign6 2001:db8::67\n";
    t.node_ns().feed("ipset", &["restore"], sets).unwrap();
    for (flavour, family) in iptables() {
        let (other, set) = match family {
            Family::V4 => ("192.0.2.66", "foreign4"),
            Family::V6 => ("2001:db8::66", "foreign6"),
        };
        let rules = format!(
            "*filter\n:KUBE-FIREWALL - [0:0]\n:KUBE-EMPTY - [0:0]\n\
             -A INPUT -j KUBE-FIREWALL\n-A INPUT -s {other} -j DROP\n\
             -A FORWARD -m set --match-set {set} src -j DROP\n\
             -A OUTPUT -m comment --comment \"of others\" -d {other} -j DROP\n\
             -A KUBE-FIREWALL -s {other} -j DROP\nCOMMIT\n\
             *nat\n:CNI-HOSTPORT - [0:0]\n\
             -A PREROUTING -p tcp -m tcp --dport 9997 -j CNI-HOSTPORT\n\
             -A OUTPUT -p tcp -m tcp --dport 9997 -j CNI-HOSTPORT\n\
             -A POSTROUTING -s {other} -j MASQUERADE\n\
             -A CNI-HOSTPORT -d {other} -j RETURN\nCOMMIT\n\
             *mangle\n:KUBE-IPTABLES-HINT - [0:0]\n:KUBE-KUBELET-CANARY - [0:0]\n\
             -A POSTROUTING -s {other} -j MARK --set-xmark 0x1/0x1\nCOMMIT\n"
        );
        let restore = flavour.program(family, "restore");
        t.node_ns().feed(&restore, &["--noflush"], &rules).unwrap();
    }
}

/// Runs the daemon's binary in N until it ends, with the flags that ask for the datapath before these.
pub(crate) fn run_as(t: &Test, arguments: &[&str]) -> (Option<i32>, String) {
    let flags = t.datapath().flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    run(t, &[&flags[..], arguments].concat())
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

/// What keeps the daemon from writing one family's rules, for as long as it is asked to.
///
/// For a datapath that runs a program to write them it is another program in its place, for the others a program that
/// reserves what they write.
pub(crate) struct Obstacle {
    owner: Option<Owner>,
    programs: Directory,
}

impl Obstacle {
    /// Prepares one, before the daemon starts.
    pub(crate) fn prepare(t: &mut Test) -> Self {
        let programs = Directory::new().unwrap();
        let path = std::env::var("PATH").unwrap_or_default();
        let here = programs.path().display().to_string();
        for family in Family::ALL {
            let Some(name) = t.datapath().programs(family).pop() else {
                continue;
            };
            let script = format!(
                "#!/bin/sh\n[ ! -e {here}/refuse.{0} ] || {{ echo 'refused, for the test' >&2; exit 1; }}\n\
                 PATH={path}\nexec {name} \"$@\"\n",
                nft_family(family)
            );
            programs.write(&name, &script).unwrap();
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            std::fs::set_permissions(programs.path().join(&name), mode).unwrap();
            t.bed_mut()
                .daemon
                .set_variable("PATH", &format!("{here}:{path}"));
        }
        Self {
            owner: None,
            programs,
        }
    }

    /// Makes writes of this family fail.
    pub(crate) fn put_up(&mut self, t: &Test, family: Family) {
        self.owner = t.datapath().seize(family, t.node_ns()).map(Owner);
        if self.owner.is_none() {
            let name = format!("refuse.{}", nft_family(family));
            self.programs.write(&name, "").unwrap();
        }
    }
}

impl Obstacle {
    /// Lets everything be written again.
    pub(crate) fn take_down(&mut self) {
        for family in Family::ALL {
            let refuse = format!("refuse.{}", nft_family(family));
            drop(std::fs::remove_file(self.programs.path().join(refuse)));
        }
        self.owner = None;
    }
}

impl Drop for Obstacle {
    fn drop(&mut self) {
        self.take_down();
    }
}

/// Another program that owns a family's table, so that the kernel refuses other writers.
struct Owner(Child);

impl Drop for Owner {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
