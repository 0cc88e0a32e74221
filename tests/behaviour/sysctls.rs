//! CT-8 to CT-11: which kernel parameters are written, and which failures are errors.

use nix::sys::signal::Signal;
use proxy_tests::case;
use proxy_tests::daemon::{Directory, binary};
use proxy_tests::matrix::{Case, Test};

use crate::common::rules;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case!(ct_8_liberal_mode_is_written)
            .kernel()
            .tcp()
            .v4()
            .fresh(),
        case!(ct_10_timeouts_are_written)
            .kernel()
            .tcp()
            .v4()
            .fresh(),
        case!(ct_9_the_limit_follows_the_machine_and_is_never_lowered)
            .kernel()
            .tcp()
            .v4()
            .fresh(),
        case!(ct_11_a_read_only_limit_that_is_large_enough_is_no_failure)
            .kernel()
            .tcp()
            .v4()
            .fresh(),
        case!(ct_11_a_refused_sysctl_ends_the_daemon)
            .kernel()
            .tcp()
            .v4()
            .fresh(),
    ]
}

fn ct_8_liberal_mode_is_written(t: &mut Test) {
    let name = "net.netfilter.nf_conntrack_tcp_be_liberal";
    t.apply();
    assert_eq!(t.node_ns().read_sysctl(name).unwrap(), "0");
    t.restart(Signal::SIGTERM, &["--conntrack-tcp-be-liberal=true"]);
    assert_eq!(t.node_ns().read_sysctl(name).unwrap(), "1");
    t.restart(Signal::SIGTERM, &["--conntrack-tcp-be-liberal=false"]);
    assert_eq!(t.node_ns().read_sysctl(name).unwrap(), "1");
}

fn ct_10_timeouts_are_written(t: &mut Test) {
    let read = |t: &Test, name: &str| {
        t.node_ns()
            .read_sysctl(&format!("net.netfilter.nf_conntrack_{name}"))
            .unwrap()
    };
    let stream = read(t, "udp_timeout_stream");
    t.bed_mut().daemon.set_flags(&[
        "--conntrack-udp-timeout=77s",
        "--conntrack-udp-timeout-stream=0s",
    ]);
    t.bed_mut()
        .daemon
        .set_flags(&["--conntrack-tcp-timeout-close-wait=1h30m"]);
    t.apply();
    assert_eq!(read(t, "tcp_timeout_established"), "86400");
    assert_eq!(read(t, "tcp_timeout_close_wait"), "5400");
    assert_eq!(read(t, "udp_timeout"), "77");
    assert_eq!(read(t, "udp_timeout_stream"), stream);
}

/// What conntrack's parameters are taken for by a daemon that runs `--init-only`, and how that ends.
///
/// Files stand in for the parameters, since a network namespace cannot write the machine's limit, and a test must not.
struct Parameters {
    files: Directory,
    hash_size: Directory,
}

impl Parameters {
    fn new(max: u64, n_buckets: u64) -> Self {
        let parameters = Self {
            files: Directory::new().unwrap(),
            hash_size: Directory::new().unwrap(),
        };
        for (name, value) in [
            ("max", max),
            ("buckets", n_buckets),
            ("tcp_timeout_established", 86_400),
            ("tcp_timeout_close_wait", 3_600),
            ("tcp_be_liberal", 0),
        ] {
            let name = format!("nf_conntrack_{name}");
            parameters
                .files
                .write(&name, &format!("{value}\n"))
                .unwrap();
        }
        parameters.hash_size.write("hashsize", "unwritten").unwrap();
        parameters
    }

    /// Runs the daemon on one CPU, whatever the machine has.
    fn init(&self, t: &Test, is_read_only: bool, flags: &[&str]) -> (Option<i32>, String) {
        let remount = if is_read_only {
            "mount -o remount,ro,bind /proc/sys/net/netfilter &&"
        } else {
            ""
        };
        let script = format!(
            "mount --bind {} /proc/sys/net/netfilter && {remount} \
             mount --bind {}/hashsize /sys/module/nf_conntrack/parameters/hashsize && \
             exec taskset -c 0 \"$@\"",
            self.files.path().display(),
            self.hash_size.path().display(),
        );
        let daemon = binary();
        let mut words = vec!["-m", "sh", "-c", &script, "sh", daemon.to_str().unwrap()];
        words.extend(["--init-only", "--hostname-override=node-n", "--v=2"]);
        words.extend(flags);
        let output = t.node_ns().run("unshare", &words);
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), log)
    }

    fn max(&self) -> u64 {
        let path = self.files.path().join("nf_conntrack_max");
        std::fs::read_to_string(path)
            .unwrap()
            .trim()
            .parse()
            .unwrap()
    }

    fn hash_size(&self) -> String {
        std::fs::read_to_string(self.hash_size.path().join("hashsize")).unwrap()
    }
}

fn ct_9_the_limit_follows_the_machine_and_is_never_lowered(t: &mut Test) {
    // Keeps conntrack loaded, so that the files that stand in for its parameters have a place.
    t.apply();
    let flags = ["--conntrack-max-per-core=10000", "--conntrack-min=10000"];
    let n_cpus = std::fs::read_dir("/sys/devices/system/cpu")
        .unwrap()
        .flatten();
    let is_online = |entry: &std::fs::DirEntry| {
        let name = entry.file_name().into_string().unwrap();
        let is_cpu = name
            .strip_prefix("cpu")
            .is_some_and(|n| n.parse::<u32>().is_ok());
        // The first one cannot be switched off on most machines, and then does not say.
        let says = std::fs::read_to_string(entry.path().join("online"));
        is_cpu && says.map_or(true, |says| says.trim() == "1")
    };
    let wanted = 10_000 * u64::try_from(n_cpus.filter(is_online).count()).unwrap();

    let low = Parameters::new(wanted - 1, 1);
    let (code, log) = low.init(t, false, &flags);
    assert_eq!((code, low.max()), (Some(0), wanted), "{log}");
    assert_eq!(low.hash_size(), (wanted / 4).to_string());

    let high = Parameters::new(2_000_000, 1);
    let (code, log) = high.init(t, false, &flags);
    assert_eq!((code, high.max()), (Some(0), 2_000_000), "{log}");
    assert_eq!(high.hash_size(), "unwritten");
}

fn ct_11_a_read_only_limit_that_is_large_enough_is_no_failure(t: &mut Test) {
    t.apply();
    let flags = ["--conntrack-max-per-core=1", "--conntrack-min=10000"];
    for (current, expected) in [(10_000, Some(0)), (2_000_000, Some(0)), (9_999, Some(1))] {
        let parameters = Parameters::new(current, 1);
        let (code, log) = parameters.init(t, true, &flags);
        assert_eq!((code, parameters.max()), (expected, current), "{log}");
    }
}

fn ct_11_a_refused_sysctl_ends_the_daemon(t: &mut Test) {
    let manifests = Directory::new().unwrap();
    let script =
        "mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys && exec \"$@\"";
    let manifests = format!("--manifests={}", manifests.path().display());
    let daemon = binary();
    let daemon = daemon.to_str().unwrap();
    let flags = [
        "--hostname-override=node-n",
        "--conntrack-max-per-core=0",
        &manifests,
    ];
    let mut words = vec!["-m", "timeout", "10", "sh", "-c", script, "sh", daemon];
    words.extend(flags);
    words.push("--conntrack-udp-timeout=4321s");
    let datapath = t.datapath().flags();
    words.extend(datapath.iter().map(String::as_str));
    let output = t.node_ns().run("unshare", &words);
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert!(log.contains("nf_conntrack"), "{log}");
    assert!(rules(t).is_empty(), "{:#?}", rules(t));
}
