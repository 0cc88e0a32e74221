//! LIFE: what the process must not wait for, and what it may take from the machine.

use std::fs::File;
use std::io::{PipeReader, Read, Write};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::Signal;
use proxy_tests::address::{Family, P1, P2, R, R2, Site, VIP};
use proxy_tests::case;
use proxy_tests::daemon::{Directory, http};
use proxy_tests::datapath::Datapath;
use proxy_tests::flow::{flow, kept};
use proxy_tests::matrix::{Case, Test};

use crate::common::{iptables, run, web, works};

/// Where the node answers whoever asks.
const HEALTHZ: &str = "127.0.0.1:10256";

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case!(life_18_a_log_that_nobody_reads_holds_up_nothing)
            .kernel()
            .tcp()
            .v4()
            .fresh(),
        case!(life_18_the_last_lines_are_written_before_the_end)
            .kernel()
            .tcp()
            .v4()
            .fresh(),
        case!(life_9_a_program_that_hangs_holds_up_nothing)
            .kernel()
            .tcp()
            .v4()
            .fresh(),
    ]
}

/// Has the daemon log into a pipe that is full from the start and that nobody reads.
fn unread_log(t: &mut Test) -> PipeReader {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let size = fcntl(&writer, FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    writer
        .write_all(&vec![b'x'; usize::try_from(size).unwrap()])
        .unwrap();
    t.bed_mut().daemon.log_to(File::from(OwnedFd::from(writer)));
    reader
}

fn life_18_a_log_that_nobody_reads_holds_up_nothing(t: &mut Test) {
    let mut log = unread_log(t);
    web(t);
    t.check(works());
    for host in [R, R2, P2] {
        t.endpoints("web").clear().ready(host);
        t.check([flow(P1, VIP, 80).reaches([kept(host)])]);
    }
    let (code, _) = http(t.node_ns(), HEALTHZ, "/livez").unwrap();
    assert_eq!(code, 200);
    let started = Instant::now();
    let status = t.bed_mut().daemon.signal(Signal::SIGTERM).unwrap();
    assert!(status.success(), "{status}");
    assert!(started.elapsed() < Duration::from_secs(5));
    t.observe(works());
    // What was not lost is still to be read by one who comes late, up to the end of the pipe.
    t.bed_mut().daemon.log_to(None);
    let mut text = String::new();
    log.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("xxx"), "{text}");
}

fn life_18_the_last_lines_are_written_before_the_end(t: &mut Test) {
    web(t);
    t.check(works());
    t.bed_mut().daemon.signal(Signal::SIGTERM).unwrap();
    let log = t.bed().daemon.log();
    assert!(
        log.trim_end().ends_with("ending, Services keep working"),
        "{log}"
    );
    // And why it did not start, through a pipe that is full as well.
    let (code, text) = run(t, &["--hostname-override=node-n", "--mode=surprise"]);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("surprise"), "{text}");
    for arguments in [&["--mode=surprise"], &["--surprise"]] {
        let _unread = unread_log(t);
        t.bed_mut().daemon.set_flags(arguments);
        let bed = t.bed_mut();
        bed.daemon.start(bed.topology.site(Site::N)).unwrap();
        let daemon = &mut bed.daemon;
        let deadline = Instant::now() + Duration::from_secs(10);
        while daemon.ended().unwrap().is_none() {
            assert!(Instant::now() < deadline, "it waits for the reader");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Programs that hang in the place of all that are called iptables, and ipset.
fn hanging_programs(t: &mut Test, names: &[&str]) -> Directory {
    let programs = Directory::new().unwrap();
    for name in names {
        // The shell stays, so that it has a child of its own.
        let script = format!(
            "#!/bin/sh\necho $$ >> {}/pids\nsleep 6000\necho\n",
            programs.path().display()
        );
        programs.write(name, &script).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(programs.path().join(name), mode).unwrap();
    }
    let path = std::env::var("PATH").unwrap_or_default();
    let path = format!("{}:{path}", programs.path().display());
    t.bed_mut().daemon.set_variable("PATH", &path);
    programs
}

/// The groups of processes that stand-ins were started in.
fn groups(programs: &Directory) -> Vec<i32> {
    let pids = std::fs::read_to_string(programs.path().join("pids")).unwrap_or_default();
    pids.lines().filter_map(|pid| pid.parse().ok()).collect()
}

fn life_9_a_program_that_hangs_holds_up_nothing(t: &mut Test) {
    let names: Vec<String> = iptables()
        .flat_map(|(flavour, family)| ["save", "restore"].map(|what| flavour.program(family, what)))
        .collect();
    let own: Vec<String> = match t.datapath() {
        Datapath::Nftables => Vec::new(),
        Datapath::Iptables(flavour) => Family::ALL
            .into_iter()
            .flat_map(|family| ["save", "restore"].map(|what| flavour.program(family, what)))
            .collect(),
    };
    let names: Vec<&str> = names
        .iter()
        .filter(|name| !own.contains(name))
        .map(String::as_str)
        .collect();
    // Something of each other mode is there to be removed.
    for (flavour, family) in iptables() {
        let restore = flavour.program(family, "restore");
        let script = "*nat\n:PROXYD-OLD - [0:0]\nCOMMIT\n";
        t.node_ns().feed(&restore, &["--noflush"], script).unwrap();
    }
    let programs = hanging_programs(t, &names);
    let (family, other) = (t.family, t.family.other());
    t.service("web")
        .families(&[family, other])
        .cluster_ip(VIP)
        .port(80);
    let reaches = |host, family| flow(P1, VIP, 80).family(family).reaches([kept(host)]);
    for host in [P2, R, R2] {
        t.endpoints("web").clear().ready(host);
        t.slice("web", "web-other")
            .clear()
            .family(other)
            .ready(host);
        t.check([reaches(host, family), reaches(host, other)]);
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    while groups(&programs).is_empty() {
        assert!(Instant::now() < deadline, "no stand-in runs");
        std::thread::sleep(Duration::from_millis(10));
    }
    let (code, _) = http(t.node_ns(), HEALTHZ, "/livez").unwrap();
    assert_eq!(code, 200);
    let started = Instant::now();
    t.bed_mut().daemon.signal(Signal::SIGTERM).unwrap();
    assert!(started.elapsed() < Duration::from_secs(5));
    for group in groups(&programs) {
        let deadline = Instant::now() + Duration::from_secs(5);
        // Whoever is in the group, dead and not reaped by init yet, or alive.
        while has_living(group) {
            assert!(Instant::now() < deadline, "{group} is left behind");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    t.observe([reaches(R2, family), reaches(R2, other)]);
}

/// Whether a group of processes has one that has not ended.
fn has_living(group: i32) -> bool {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok())
        .filter_map(|stat| Some(stat.rsplit_once(") ")?.1.to_owned()))
        .any(|rest| {
            let fields: Vec<&str> = rest.split(' ').collect();
            fields[0] != "Z" && fields[2] == group.to_string()
        })
}
