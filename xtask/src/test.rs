//! Do all tests pass, and how many were there?
//!
//! Invariants: every test binary is accounted for, also one that crashed or hung before its summary; the last line of
//! stdout is `N passed, M failed` (with `, K skipped` if tests were ignored) and nothing else; failure is an exit code.

use crate::{setup, sh};
use anyhow::{Context as _, Result};
use cargo_metadata::{Message, PackageId};
use std::fmt;
use std::io::{BufRead, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// A binary that is not done by then hangs: CI must still get its last line, well before its own limit.
const DEADLINE: Duration = Duration::from_secs(30 * 60);
/// Time to clean up after a polite request to end.
const GRACE: Duration = Duration::from_secs(15);

/// What to test.
#[derive(clap::Args, Default)]
pub(crate) struct Options {
    /// Only tests whose name contains this
    filter: Option<String>,
    /// Only what needs no root: the unit tests
    #[arg(long)]
    unit: bool,
    /// About three minutes: on every datapath, but over one protocol in each family, without slow tests and with fewer random cases
    #[arg(long, conflicts_with = "unit")]
    quick: bool,
    /// The eBPF object to test, if it is not the committed one
    #[arg(skip)]
    object: Option<PathBuf>,
}

impl Options {
    /// All tests, on this eBPF object.
    pub(crate) fn with_object(object: PathBuf) -> Self {
        Self {
            object: Some(object),
            ..Self::default()
        }
    }
}

/// Variables that make the packet tests short; `tests/src/matrix.rs`, `tests/differential` and `tests/faults` read it.
const QUICK: [(&str, &str); 3] = [
    ("BEHAVIOUR_QUICK", "1"),
    ("DIFFERENTIAL_CASES", "5"),
    ("FAULTS_SECONDS", "5"),
];

/// How many tests of tests/sources run at once: they wait more than they work. The others of that package choose themselves.
const N_THREADS: &str = "8";

/// The packages of every build: with another selection cargo would choose other features, and compile all dependencies anew.
const WORKSPACE: [&str; 1] = ["--workspace"];

/// Builds and runs all tests; whether all passed.
pub(crate) fn run(options: &Options) -> Result<bool> {
    setup::ensure()?;
    let mut total = Tally::default();
    match build(options.quick) {
        Ok(binaries) => {
            for binary in binaries.iter().filter(|b| !(options.unit && b.behaviour)) {
                eprintln!("\x1b[1m{}\x1b[0m", binary.name);
                match binary.command(options) {
                    Ok(command) => total.add(&binary.name, run_counted(command)),
                    Err(why) => total.add(&binary.name, Err(why)),
                }
            }
            if !options.quick {
                eprintln!("\x1b[1mexamples in the documentation\x1b[0m");
                let mut doc = sh::cargo();
                doc.args(["test", "--doc", "--no-fail-fast"])
                    .args(WORKSPACE);
                doc.args(options.filter.iter().flat_map(|f| ["--", f]));
                total.add("doc tests", run_counted(doc));
            }
        }
        Err(e) => {
            eprintln!("error: {e:#}");
            total.add("build", Err(anyhow::anyhow!("the tests do not build")));
        }
    }
    if !total.failures.is_empty() {
        println!("\nfailed:");
        for failure in &total.failures {
            println!("  {failure}");
        }
    }
    println!("\n{total}");
    std::io::stdout().flush()?;
    Ok(total.failed == 0)
}

/// One test executable.
struct Binary {
    name: String,
    executable: PathBuf,
    package_dir: PathBuf,
    /// Belongs to the proxy-tests package: needs root.
    behaviour: bool,
}

impl Binary {
    fn command(&self, options: &Options) -> Result<Command> {
        let mut command = if self.behaviour && !sh::is_root() {
            let sudo = sh::which("sudo").context(
                "needs root for its network namespaces, and there is no sudo here (`--unit` runs what does not)",
            )?;
            let mut command = sh::program(sudo);
            command.args(["--preserve-env", "env"]);
            command.arg(format!(
                "PATH={}",
                std::env::var_os("PATH")
                    .unwrap_or_default()
                    .to_string_lossy()
            ));
            command.arg(&self.executable);
            command
        } else {
            sh::program(&self.executable)
        };
        command.current_dir(&self.package_dir);
        command.env("CARGO_MANIFEST_DIR", &self.package_dir);
        command.env("PROXY_DAEMON", sh::root().join("target/debug/proxy-daemon"));
        if self.behaviour {
            command.env("RUST_TEST_THREADS", N_THREADS);
        }
        if let Some(object) = &options.object {
            command.env("PROXY_EBPF_OBJECT", object);
        }
        if options.quick {
            // A variable that is already set is kept.
            command.envs(
                QUICK
                    .into_iter()
                    .filter(|(name, _)| std::env::var_os(name).is_none()),
            );
        }
        command.args(&options.filter);
        Ok(command)
    }
}

/// Builds the daemon and every test executable, units first.
fn build(quick: bool) -> Result<Vec<Binary>> {
    // The behaviour tests start the daemon itself, which cargo does not build for another package's tests.
    let targets: &[&str] = if quick {
        &["--bin", "proxy-daemon"]
    } else {
        &["--all-targets"]
    };
    sh::must_run(sh::cargo().arg("build").args(targets).args(WORKSPACE))?;
    let mut command = sh::cargo();
    command.args(["test", "--no-run"]).args(WORKSPACE);
    command
        .arg("--message-format=json-render-diagnostics")
        .stdout(Stdio::piped());
    eprintln!("\x1b[1m$ {}\x1b[0m", sh::line(&command));
    let mut child = command.spawn()?;
    let stdout = child.stdout.take().context("cargo has no stdout")?;
    let mut binaries = Vec::new();
    for message in Message::parse_stream(BufReader::new(stdout)) {
        if let Message::CompilerArtifact(artifact) = message?
            && artifact.profile.test
            && let Some(executable) = artifact.executable
        {
            let package = package_name(&artifact.package_id);
            let kind = artifact
                .target
                .kind
                .first()
                .map(ToString::to_string)
                .unwrap_or_default();
            let package_dir = artifact
                .manifest_path
                .parent()
                .context("a manifest has a directory")?;
            binaries.push(Binary {
                name: format!("{package} {} ({kind})", artifact.target.name),
                executable: executable.into_std_path_buf(),
                package_dir: package_dir.as_std_path().to_path_buf(),
                behaviour: package == "proxy-tests",
            });
        }
    }
    anyhow::ensure!(child.wait()?.success(), "cargo test --no-run failed");
    binaries.sort_by(|a, b| (a.behaviour, &a.name).cmp(&(b.behaviour, &b.name)));
    Ok(binaries)
}

fn package_name(id: &PackageId) -> String {
    // path+file:///…/tests#proxy-tests@0.1.0, or path+file:///…/xtask#0.1.0 when directory and name agree
    let (path, fragment) = id.repr.rsplit_once('#').unwrap_or(("", &id.repr));
    match fragment.split_once('@') {
        Some((name, _)) => name.to_owned(),
        None => path.rsplit('/').next().unwrap_or(path).to_owned(),
    }
}

/// The result of a run of tests.
#[derive(Default, Debug, PartialEq, Eq)]
struct Tally {
    passed: u64,
    failed: u64,
    skipped: u64,
    /// Names of what failed.
    failures: Vec<String>,
}

impl Tally {
    fn add(&mut self, name: &str, outcome: Result<Self>) {
        match outcome {
            Ok(more) => {
                self.passed += more.passed;
                self.failed += more.failed;
                self.skipped += more.skipped;
                self.failures
                    .extend(more.failures.iter().map(|f| format!("{name}: {f}")));
            }
            Err(why) => {
                eprintln!("{name}: {why:#}");
                self.failed += 1;
                self.failures.push(format!("{name}: {why:#}"));
            }
        }
    }

    /// Counts one line of libtest's output, or of libtest-mimic's, which is the same.
    fn line(&mut self, line: &str) -> bool {
        if let Some(name) = line
            .strip_prefix("test ")
            .and_then(|l| l.strip_suffix(" ... FAILED"))
        {
            self.failures.push(name.trim().to_owned());
        }
        let Some((_, counts)) = line
            .strip_prefix("test result: ")
            .and_then(|l| l.split_once(". "))
        else {
            return false;
        };
        for part in counts.split(';') {
            let mut words = part.split_whitespace();
            let (Some(Ok(n)), Some(what)) = (words.next().map(str::parse::<u64>), words.next())
            else {
                continue;
            };
            match what {
                "passed" => self.passed += n,
                "failed" => self.failed += n,
                "ignored" => self.skipped += n,
                _ => {}
            }
        }
        true
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)?;
        if self.skipped > 0 {
            write!(f, ", {} skipped", self.skipped)?;
        }
        Ok(())
    }
}

/// Runs a test executable, passes its output on, and counts.
fn run_counted(mut command: Command) -> Result<Tally> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{}`", sh::line(&command)))?;
    let stdout = child.stdout.take().context("the child has no stdout")?;
    let guard = Deadline::start(&child);
    let mut tally = Tally::default();
    let mut summaries = 0_u32;
    let mut lines = BufReader::new(stdout);
    let mut raw = Vec::new();
    while lines.read_until(b'\n', &mut raw)? > 0 {
        let line = String::from_utf8_lossy(&raw);
        print!("{line}");
        summaries += u32::from(tally.line(line.trim_end()));
        raw.clear();
    }
    let status = child.wait()?;
    let timed_out = guard.stop();
    if timed_out {
        tally.failed += 1;
        tally.failures.push(format!(
            "not done after {} minutes, ended",
            DEADLINE.as_secs() / 60
        ));
    } else if summaries == 0 {
        tally.failed += 1;
        tally
            .failures
            .push(format!("ended without a summary ({status})"));
    } else if !status.success() && tally.failed == 0 {
        tally.failed += 1;
        tally
            .failures
            .push(format!("no test failed, yet it ended with {status}"));
    }
    Ok(tally)
}

/// Ends a child that hangs: politely first, so that it can take its namespaces down.
struct Deadline {
    done: mpsc::Sender<()>,
    expired: Arc<AtomicBool>,
}

impl Deadline {
    fn start(child: &Child) -> Self {
        let pid = child.id().to_string();
        let (done, finished) = mpsc::channel();
        let expired = Arc::new(AtomicBool::new(false));
        let mark = Arc::clone(&expired);
        std::thread::spawn(move || {
            for (signal, wait) in [("-TERM", DEADLINE), ("-KILL", GRACE)] {
                if !matches!(
                    finished.recv_timeout(wait),
                    Err(mpsc::RecvTimeoutError::Timeout)
                ) {
                    return;
                }
                mark.store(true, Ordering::SeqCst);
                if let Err(e) = sh::program("kill").args([signal, &pid]).status() {
                    eprintln!("cannot end process {pid}: {e}");
                }
            }
        });
        Self { done, expired }
    }

    fn stop(self) -> bool {
        // The thread may have ended already.
        drop(self.done);
        self.expired.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Tally {
        let mut command = sh::program("sh");
        command.args(["-c", script]);
        run_counted(command).expect("sh starts")
    }

    #[test]
    fn passes_failures_and_ignored_tests_are_counted() {
        let tally = shell(
            "echo 'test a ... ok'; echo 'test b/nftables/v4 ... FAILED'; \
             echo 'test result: FAILED. 1 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.01s'; exit 101",
        );
        assert_eq!((tally.passed, tally.failed, tally.skipped), (1, 1, 2));
        assert_eq!(tally.failures, ["b/nftables/v4"]);
        assert_eq!(tally.to_string(), "1 passed, 1 failed, 2 skipped");
    }

    #[test]
    fn a_binary_that_dies_before_its_summary_is_a_failure() {
        let tally = shell("echo 'test a ... ok'; kill -ABRT $$");
        assert_eq!((tally.passed, tally.failed), (0, 1));
    }

    #[test]
    fn silence_is_not_a_pass() {
        assert_eq!(shell("true").failed, 1);
    }

    #[test]
    fn an_exit_code_without_a_failed_test_is_a_failure() {
        let tally = shell("echo 'test result: ok. 3 passed; 0 failed; 0 ignored'; exit 1");
        assert_eq!((tally.passed, tally.failed), (3, 1));
    }

    #[test]
    fn the_last_line_names_skips_only_if_there_are_any() {
        assert_eq!(
            Tally {
                passed: 4,
                ..Tally::default()
            }
            .to_string(),
            "4 passed, 0 failed"
        );
    }

    #[test]
    fn packages_are_named_in_both_forms_of_cargo() {
        let id = |s: &str| PackageId { repr: s.to_owned() };
        assert_eq!(
            package_name(&id("path+file:///a/tests#proxy-tests@0.1.0")),
            "proxy-tests"
        );
        assert_eq!(package_name(&id("path+file:///a/xtask#0.1.0")), "xtask");
    }
}
