//! Do the programs do what we ask, on the real kernel, and say why if not?
//!
//! Each test has a network namespace of its own, so they need root.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::process::{Command, Stdio};

use nix::fcntl::{Flock, FlockArg};

use super::*;
use crate::datapath::fixtures::in_netns;

/// What a shell answers in the namespace of this thread.
#[expect(
    clippy::disallowed_methods,
    reason = "a test looks at the kernel with a tool of its own"
)]
pub(in crate::datapath::iptables) fn shell(script: &str) -> String {
    let output = Command::new("/bin/sh")
        .args(["-c", script])
        .stdin(Stdio::null())
        .output()
        .expect("sh runs");
    assert!(output.status.success(), "{script}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}

/// The programs of every family and flavour.
pub(in crate::datapath::iptables) fn all_tools() -> Vec<Tools> {
    let mut all = Vec::new();
    for family in IpFamily::ALL {
        for flavour in [Flavour::Nft, Flavour::Legacy] {
            all.push(Tools::open(family, flavour).expect("iptables and ipset are installed"));
        }
    }
    all
}

fn save(tools: &Tools, table: &str) -> Vec<String> {
    let mut lines = Vec::new();
    tools
        .save(table, &mut |line| lines.push(line.to_owned()))
        .expect("it can be read");
    lines
}

/// The object and the cause of an error.
fn cause(result: Result<(), DatapathError>) -> (String, io::Error) {
    match result.expect_err("an error") {
        DatapathError::Refused { object, source, .. } => (object, source),
        error @ (DatapathError::Unusable { .. } | DatapathError::Held { .. }) => panic!("{error}"),
    }
}

#[test]
fn what_is_restored_is_saved() {
    in_netns(|| {
        for tools in all_tools() {
            tools
                .restore("*nat\n:PROXYD-A - [0:0]\n-A PROXYD-A -j RETURN\nCOMMIT\n")
                .expect("it is valid");
            let lines = save(&tools, "nat");
            assert!(lines.contains(&":PROXYD-A - [0:0]".to_owned()), "{lines:?}");
            assert!(
                lines.contains(&"-A PROXYD-A -j RETURN".to_owned()),
                "{lines:?}"
            );
        }
    });
}

#[test]
fn looking_creates_no_table() {
    in_netns(|| {
        for tools in all_tools() {
            assert!(
                !save(&tools, "nat")
                    .iter()
                    .any(|line| line.starts_with("-A"))
            );
        }
        let names = "cat /proc/self/net/ip_tables_names /proc/self/net/ip6_tables_names";
        assert_eq!(shell(names), "");
        assert_eq!(shell("nft list ruleset"), "");
    });
}

#[test]
fn many_rules_go_in_and_come_out() {
    const N: usize = 5_000;
    in_netns(|| {
        for tools in all_tools() {
            let rules: Vec<String> = (0..N)
                .map(|i| format!("-A PROXYD-A -p udp -m udp --dport {i} -j RETURN\n"))
                .collect();
            let rules = rules.concat();
            tools
                .restore(&format!("*nat\n:PROXYD-A - [0:0]\n{rules}COMMIT\n"))
                .expect("they are valid");
            let lines = save(&tools, "nat");
            let rules: BTreeSet<&str> = lines
                .iter()
                .map(String::as_str)
                .filter(|line| line.starts_with("-A PROXYD-A "))
                .collect();
            assert_eq!(rules.len(), N, "{tools:?}");
        }
    });
}

#[test]
fn an_error_is_what_the_program_said_with_its_line() {
    in_netns(|| {
        for tools in all_tools() {
            let input = "*nat\n:PROXYD-A - [0:0]\n-A PROXYD-A -j PROXYD-MISSING\nCOMMIT\n";
            let (object, error) = cause(tools.restore(input));
            assert!(object.contains(tools.flavour.name()), "{object}");
            let text = error.to_string();
            assert!(text.contains("PROXYD-MISSING"), "{text}");
            assert!(
                text.contains("line: 3") || text.contains("line: 4"),
                "{text}"
            );
            assert!(
                !save(&tools, "nat")
                    .iter()
                    .any(|line| line.contains("PROXYD"))
            );
            let (object, error) = cause(tools.ipset_restore(&["add PROXYD-MISSING 10.0.0.1\n"]));
            assert_eq!(object, "ipset");
            assert!(error.to_string().contains("Error in line 1"), "{error}");
        }
    });
}

#[test]
fn of_input_that_ends_too_early_nothing_is_written() {
    in_netns(|| {
        for tools in all_tools() {
            cause(tools.restore("*nat\n:PROXYD-A - [0:0]\n"));
            assert!(
                !save(&tools, "nat")
                    .iter()
                    .any(|line| line.contains("PROXYD"))
            );
        }
    });
}

#[test]
fn sets_are_written_again_without_harm() {
    in_netns(|| {
        for tools in all_tools() {
            for _ in 0..2 {
                tools
                    .ipset_restore(&[
                        "create PROXYD-A hash:ip\nadd PROXYD-A 10.0.0.1\ndel PROXYD-A 10.0.0.2\n",
                    ])
                    .expect("it is valid");
            }
            let mut lines = Vec::new();
            tools
                .ipset_save(None, &mut |line| lines.push(line.to_owned()))
                .expect("sets can be read");
            assert_eq!(lines.len(), 2, "{lines:?}");
            assert!(
                lines[0].starts_with("create PROXYD-A hash:ip "),
                "{lines:?}"
            );
            assert_eq!(lines[1], "add PROXYD-A 10.0.0.1");
        }
    });
}

/// Programs that use a lock of their own.
fn with_lock(name: &str, wait: Duration) -> (Tools, PathBuf) {
    let file = std::env::temp_dir().join(format!("{}-{name}", std::process::id()));
    let mut tools = Tools::open(IpFamily::V4, Flavour::Legacy).expect("iptables is installed");
    tools.environment = vec![(VARIABLE, file.clone().into_os_string())];
    tools.lock.clone_from(&file);
    tools.lock_wait = wait;
    (tools, file)
}

fn hold(file: &Path) -> Flock<File> {
    let file = File::create(file).expect("a file");
    Flock::lock(file, FlockArg::LockExclusive).expect("nobody has it")
}

#[test]
fn who_holds_the_lock_too_long_is_named() {
    in_netns(|| {
        let (tools, file) = with_lock("too-long", Duration::from_secs(3));
        let held = hold(&file);
        let rules = "-A PROXYD-A -j RETURN\n".repeat(10_000);
        let (_, error) = cause(tools.restore(&format!("*nat\n:PROXYD-A - [0:0]\n{rules}COMMIT\n")));
        drop(held);
        fs::remove_file(&file).expect("the file is there");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let text = error.to_string();
        let holder = format!("held by process {} (", std::process::id());
        assert!(text.contains(&holder), "{text}");
        assert!(text.contains(&*file.to_string_lossy()), "{text}");
    });
}

#[test]
fn a_lock_is_waited_for() {
    in_netns(|| {
        let (tools, file) = with_lock("waited-for", LOCK_WAIT);
        let held = hold(&file);
        let lock = tools.lock.clone();
        let release = std::thread::spawn(move || {
            // Until the other waits for it.
            let inode = std::os::unix::fs::MetadataExt::ino(
                &fs::metadata(&lock).expect("the file is there"),
            );
            let waits =
                |line: &str| line.contains(" -> FLOCK") && line.contains(&format!(":{inode} "));
            while !fs::read_to_string("/proc/locks")
                .expect("/proc/locks")
                .lines()
                .any(waits)
            {
                std::thread::yield_now();
            }
            drop(held);
        });
        tools
            .restore("*nat\n:PROXYD-A - [0:0]\nCOMMIT\n")
            .expect("the lock is free again");
        release.join().expect("it was waited for");
        fs::remove_file(&file).expect("the file is there");
        assert!(save(&tools, "nat").contains(&":PROXYD-A - [0:0]".to_owned()));
    });
}

#[test]
fn what_programs_say_tells_the_flavour() {
    let of = |text, nft, legacy| {
        assert_eq!(is_of(text, Flavour::Nft), nft, "{text}");
        assert_eq!(is_of(text, Flavour::Legacy), legacy, "{text}");
    };
    of("iptables-restore v1.8.9 (nf_tables)", true, false);
    of("iptables-restore v1.8.9 (legacy)", false, true);
    of("ip6tables-restore v1.6.2", false, true);
    of("ip6tables-restore v1.6.1", false, false);
    of("iptables-restore v1.4", false, false);
    of("", false, false);
}

#[test]
fn programs_without_a_flavour_in_their_name_are_asked_for_it() {
    let directory = std::env::temp_dir().join(format!("{}-plain", std::process::id()));
    fs::create_dir(&directory).expect("a directory");
    let find_here = |name: &str| Some(directory.join(name)).filter(|file| file.exists());
    for flavour in [Flavour::Nft, Flavour::Legacy] {
        let other = match flavour {
            Flavour::Nft => Flavour::Legacy,
            Flavour::Legacy => Flavour::Nft,
        };
        for family in IpFamily::ALL {
            let (restore, save) =
                find_iptables(family, flavour, &find).expect("iptables is installed");
            let plain = [(restore, "restore"), (save, "save")].map(|(program, what)| {
                let name = format!("{}-{what}", program_name(family));
                let file = directory.join(name);
                std::os::unix::fs::symlink(program.canonicalize().expect("a file"), &file)
                    .expect("a program of our own");
                file
            });
            let [restore, save] = plain.clone();
            assert_eq!(
                find_iptables(family, flavour, &find_here),
                Some((restore, save))
            );
            assert_eq!(find_iptables(family, other, &find_here), None);
            for file in plain {
                fs::remove_file(file).expect("the file is there");
            }
            assert_eq!(find_iptables(family, flavour, &find_here), None);
        }
    }
    fs::remove_dir(directory).expect("it is empty");
}

#[test]
fn warnings_and_hints_are_not_the_message() {
    use std::os::unix::process::ExitStatusExt as _;
    let message = |said: &str| {
        failure(&Ended {
            status: std::process::ExitStatus::from_raw(0x100),
            said: said.to_owned(),
        })
        .to_string()
    };
    assert_eq!(
        message(
            "# Warning: iptables-legacy tables present, use it\n\na: b\nError at line: 3\nTry `a -h' or\n"
        ),
        "a: b; Error at line: 3"
    );
    assert_eq!(message(""), "it said nothing and ended with exit status: 1");
}

#[test]
fn life_15_a_kernel_without_sets_is_known_by_what_ipset_says() {
    assert!(lacks_ip_set(
        "ipset v7.17: Kernel error received: Invalid argument\n"
    ));
    assert!(!lacks_ip_set(
        "ipset v7.17: The set with the given name does not exist\n"
    ));
}
