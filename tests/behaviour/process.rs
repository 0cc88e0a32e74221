//! LIFE: hanging readers, programs and sockets must not block the process; limits of its files and capabilities.

use std::fs::File;
use std::io::{PipeReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use proxy_tests::address::{Family, P1, P2, R, R2, Site, VIP};
use proxy_tests::case;
use proxy_tests::daemon::{Directory, http};
use proxy_tests::flow::{flow, kept};
use proxy_tests::matrix::{Case, Test};
use proxy_tests::wait::within;

use crate::common::{iptables, rules, run, web, works};

/// The healthz server, which any client may ask.
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
        case!(life_11_who_takes_the_socket_keeps_it_not_from_starting)
            .slow()
            .kernel()
            .tcp()
            .v4()
            .fresh(),
        case!(life_7_cleanup_beside_a_running_daemon_is_refused)
            .kernel()
            .tcp()
            .v4()
            .fresh(),
        case!(life_6_a_hang_up_is_survived)
            .kernel()
            .tcp()
            .v4()
            .fresh(),
        case!(life_20_what_is_not_needed_is_given_up)
            .kernel()
            .tcp()
            .fresh(),
        case!(life_21_as_many_files_as_are_allowed)
            .kernel()
            .tcp()
            .v4()
            .fresh(),
        case!(ds_1_a_shortage_makes_no_node_single_stack)
            .slow()
            .kernel()
            .tcp()
            .v4()
            .fresh(),
    ]
}

/// Has the daemon log into a pipe that is full from the start and has no reader.
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
    // A reader that comes late still gets the lines in the pipe.
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
        log.trim_end().ends_with("exiting; rules stay active"),
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
        let ends = within(Duration::from_secs(10), || {
            daemon.ended().unwrap().is_some()
        });
        assert!(ends, "the daemon blocks on its log");
    }
}

/// Programs that hang in the place of all that are called iptables, and ipset.
fn hanging_programs(t: &mut Test, names: &[&str]) -> Directory {
    let programs = Directory::new().unwrap();
    for name in names {
        // The shell does not exec, so that it has a child.
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
    let own: Vec<String> = Family::ALL
        .into_iter()
        .flat_map(|family| t.datapath().programs(family))
        .collect();
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
    let one_runs = || !groups(&programs).is_empty();
    assert!(
        within(Duration::from_secs(10), one_runs),
        "no stand-in runs"
    );
    let (code, _) = http(t.node_ns(), HEALTHZ, "/livez").unwrap();
    assert_eq!(code, 200);
    let started = Instant::now();
    t.bed_mut().daemon.signal(Signal::SIGTERM).unwrap();
    assert!(started.elapsed() < Duration::from_secs(5));
    for group in groups(&programs) {
        // A dead process that init has not reaped yet does not count.
        let is_gone = within(Duration::from_secs(5), || !has_living(group));
        assert!(is_gone, "{group} is left behind");
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

fn life_11_who_takes_the_socket_keeps_it_not_from_starting(t: &mut Test) {
    // By root, which is more than a stranger is.
    let address = SocketAddr::from_abstract_name(b"proxy-daemon").unwrap();
    let stranger = t.node_ns().enter(|| UnixListener::bind_addr(&address));
    web(t);
    let world = t.clone();
    let bed = t.bed_mut();
    bed.daemon.publish(&world).unwrap();
    bed.daemon.start(bed.topology.site(Site::N)).unwrap();
    t.eventually(Duration::from_secs(30), works());
    t.bed_mut().settle().unwrap();
    // Two real ones still exclude each other, and also once the stranger is gone.
    let manifests = format!(
        "--manifests={}",
        t.bed().daemon.manifests().path().display()
    );
    let second = [
        "--hostname-override=node-n",
        "--conntrack-max-per-core=0",
        &manifests,
    ];
    let (code, text) = run(t, &second);
    assert!(
        code == Some(1) && text.contains("runs here already"),
        "{text}"
    );
    drop(stranger);
    let (code, text) = run(t, &second);
    assert!(
        code == Some(1) && text.contains("runs here already"),
        "{text}"
    );
    // One that was killed is no obstacle.
    t.bed_mut().kill_daemon().unwrap();
    t.check(works());
}

fn life_7_cleanup_beside_a_running_daemon_is_refused(t: &mut Test) {
    web(t);
    t.check(works());
    let before = rules(t);
    let (code, text) = run(t, &["--cleanup"]);
    assert!(
        code == Some(1) && text.contains("runs here already"),
        "{code:?} {text}"
    );
    assert_eq!(rules(t), before);
    t.observe(works());
}

fn life_6_a_hang_up_is_survived(t: &mut Test) {
    web(t);
    t.check(works());
    let pid = Pid::from_raw(t.bed().daemon.pid().cast_signed());
    for _ in 0..3 {
        nix::sys::signal::kill(pid, Signal::SIGHUP).unwrap();
    }
    t.endpoints("web").clear().ready(R);
    t.check([flow(P1, VIP, 80).reaches([kept(R)])]);
    assert!(t.bed_mut().daemon.ended().unwrap().is_none());
    let is_told = || t.bed().daemon.log().contains("ignored SIGHUP");
    let told = within(Duration::from_secs(5), is_told);
    assert!(told, "{}", t.bed().daemon.log());
}

/// A field of `/proc/PID/task/*/status`, for each thread of the daemon.
fn of_threads(t: &Test, name: &str) -> Vec<String> {
    let threads = format!("/proc/{}/task", t.bed().daemon.pid());
    let threads = std::fs::read_dir(threads).unwrap().flatten();
    let lines = threads.filter_map(|thread| {
        // One that cleans up previous modes ends some time after the start.
        let status = std::fs::read_to_string(thread.path().join("status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        Some(line.unwrap().trim().to_owned())
    });
    let lines: Vec<String> = lines.collect();
    assert!(!lines.is_empty());
    lines
}

fn life_20_what_is_not_needed_is_given_up(t: &mut Test) {
    web(t);
    t.check(works());
    // NET_ADMIN, NET_RAW and DAC_READ_SEARCH; SYS_MODULE where it is needed.
    let mut allowed = (1 << 12) | (1 << 13) | (1 << 2);
    if t.datapath().loads_modules() {
        allowed |= 1 << 16;
    }
    for set in ["CapEff:", "CapPrm:", "CapInh:", "CapBnd:", "CapAmb:"] {
        for held in of_threads(t, set) {
            let held = u64::from_str_radix(&held, 16).unwrap();
            assert_eq!(held & !allowed, 0, "{set} {held:x}");
        }
    }
    assert!(of_threads(t, "NoNewPrivs:").iter().all(|it| it == "1"));
    // Later work still succeeds: changes, drift detection, a repair.
    t.endpoints("web").clear().ready(R);
    t.check([flow(P1, VIP, 80).reaches([kept(R)])]);
    t.flush();
    t.eventually(
        Duration::from_secs(60),
        [flow(P1, VIP, 80).reaches([kept(R)])],
    );
    t.restart(Signal::SIGKILL, &[]);
    t.observe([flow(P1, VIP, 80).reaches([kept(R)])]);
}

/// Has the daemon start with these limits of open files.
fn limit_files(t: &mut Test, soft: usize, hard: usize) {
    let limit = format!("--nofile={soft}:{hard}");
    t.bed_mut().daemon.set_prefix(&["prlimit", &limit]);
}

fn life_21_as_many_files_as_are_allowed(t: &mut Test) {
    limit_files(t, 200, 4000);
    web(t);
    t.check(works());
    let limits = format!("/proc/{}/limits", t.bed().daemon.pid());
    let limits = std::fs::read_to_string(limits).unwrap();
    let files = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let soft = files.unwrap().split_whitespace().nth(3).unwrap();
    assert_eq!(soft, "4000", "{limits}");
}

fn ds_1_a_shortage_makes_no_node_single_stack(t: &mut Test) {
    let (family, other) = (t.family, t.family.other());
    t.service("web")
        .families(&[family, other])
        .cluster_ip(VIP)
        .port(80);
    t.endpoints("web").ready(P2);
    t.slice("web", "web-other").family(other).ready(P2);
    let world = t.clone();
    let directory = Directory::new().unwrap();
    // At whatever call descriptors run out: the daemon exits with an error, or retries.
    for n_files in 12..28 {
        limit_files(t, n_files, n_files);
        let bed = t.bed_mut();
        bed.daemon
            .log_to(File::create(directory.path().join("log")).unwrap());
        bed.daemon.publish(&world).unwrap();
        bed.daemon.start(bed.topology.site(Site::N)).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let status = bed.daemon.ended().unwrap();
            let log = std::fs::read_to_string(directory.path().join("log")).unwrap();
            assert!(!log.contains("single-stack"), "{n_files}: {log}");
            if let Some(status) = status {
                assert!(!status.success(), "{n_files}: {status}: {log}");
                assert!(log.contains("Too many open files"), "{n_files}: {log}");
                break;
            }
            let news = ["synced", "sync failed", "not served yet"];
            let has_news = |family: &str| {
                let family = format!("family=\"{family}\"");
                let lines = log.lines().filter(|line| line.contains(&family));
                lines
                    .into_iter()
                    .any(|line| news.iter().any(|it| line.contains(it)))
            };
            // Without the manifests there is nothing to serve yet.
            let waits = log.contains("manifests cannot be read");
            if waits || has_news("IPv4") && has_news("IPv6") {
                bed.kill_daemon().unwrap();
                break;
            }
            assert!(Instant::now() < deadline, "{n_files}: {log}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    // One that comes later passes.
    limit_files(t, 4000, 4000);
    let path = directory.path().join("later");
    t.bed_mut().daemon.log_to(File::create(&path).unwrap());
    let both =
        |host| [family, other].map(|family| flow(P1, VIP, 80).family(family).reaches([kept(host)]));
    t.check(both(P2));
    let pid = format!("--pid={}", t.bed().daemon.pid());
    let limit = |t: &Test, n: &str| {
        let limit = format!("--nofile={n}:4000");
        t.node_ns().check_run("prlimit", &[&pid, &limit]).unwrap();
    };
    limit(t, "3");
    t.endpoints("web").clear().ready(R);
    t.slice("web", "web-other").clear().family(other).ready(R);
    let world = t.clone();
    t.bed_mut().daemon.publish(&world).unwrap();
    let log = || std::fs::read_to_string(&path).unwrap();
    let is_short = || log().contains("Too many open files");
    assert!(within(Duration::from_secs(10), is_short), "{}", log());
    limit(t, "4000");
    t.eventually(Duration::from_secs(60), both(R));
}
