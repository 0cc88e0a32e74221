//! How is the object built?

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

use super::record::{Record, Tools, digest, object, sources};
use crate::{setup, sh};

/// Debian's packages: a compiler whose library source is there, and the LLVM that it was built with.
const PACKAGES: &[&str] = &["rustc-web", "cargo-web", "rust-web-src", "llvm-22-dev"];
const LLVM: &str = "/usr/lib/llvm-22";
const LINKER_VERSION: &str = "0.13.0";
/// What calls a panic, or is only reached by one.
const FORBIDDEN: &[&str] = &["panic", "unwrap_failed", "slice_index"];

/// An object that was just built.
pub(super) struct Fresh {
    path: PathBuf,
    pub(super) record: Record,
}

impl Fresh {
    /// Puts it where it is committed.
    pub(super) fn commit(&self) -> Result<()> {
        let to = object();
        if let Some(directory) = to.parent() {
            std::fs::create_dir_all(directory).context("cannot make the object's directory")?;
        }
        std::fs::copy(&self.path, &to).context("cannot copy the object")?;
        self.record.write()
    }
}

/// Where CI and the tests find the object that was built last.
pub(crate) fn path() -> PathBuf {
    sh::root().join("target/ebpf/programs.o")
}

/// Builds the object, and checks that nothing in it can panic.
pub(super) fn fresh() -> Result<Fresh> {
    setup::ensure_packages(PACKAGES)?;
    let linker = linker()?;
    let target = sh::root().join("target/ebpf");
    let home = cargo_home()?;
    let flags = [
        format!("-Clinker={}", linker.display()),
        "-Clink-arg=--btf".to_owned(),
        "-Cdebuginfo=2".to_owned(),
        "-Ctarget-cpu=v3".to_owned(),
        "--cfg=bpf_target_arch=\"x86_64\"".to_owned(),
        // The same bytes wherever the project lies: debug information holds paths.
        format!("--remap-path-prefix={}=/proxy-daemon", sh::root().display()),
        format!("--remap-path-prefix={}=/cargo", home.display()),
        "--remap-path-prefix=/usr/lib/rustlib=/rustlib".to_owned(),
        "--remap-path-prefix=/usr/lib/rust-web=/rust".to_owned(),
    ];
    let mut cargo = sh::program("/usr/bin/cargo");
    sh::must_run(
        cargo
            .args(["build", "--release", "--locked", "--package", "proxy-ebpf"])
            .args(["--features", "programs", "--bin", "proxy-ebpf"])
            .args(["-Zbuild-std=core", "--target", "bpfel-unknown-none"])
            .env("RUSTC", "/usr/bin/rustc")
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_TARGET_DIR", &target)
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
            .env_remove("RUSTUP_TOOLCHAIN")
            .env_remove("RUSTFLAGS"),
    )?;
    let built = target.join("bpfel-unknown-none/release/proxy-ebpf");
    let stripped = path();
    sh::must_run(
        sh::program(format!("{LLVM}/bin/llvm-objcopy"))
            .arg("--strip-debug")
            .args([&built, &stripped]),
    )?;
    check_panics(&stripped)?;
    let bytes = std::fs::read(&stripped).context("cannot read the object")?;
    Ok(Fresh {
        path: stripped,
        record: Record {
            sources: sources()?,
            object: digest(&bytes),
            tools: tools()?,
        },
    })
}

/// Fails if a symbol or a section shows a way to a panic: the verifier would refuse the programs.
fn check_panics(object: &PathBuf) -> Result<()> {
    let output = sh::program(format!("{LLVM}/bin/llvm-readelf"))
        .args(["--symbols", "--sections", "--wide"])
        .arg(object)
        .output()
        .context("cannot start llvm-readelf")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!(
            "llvm-readelf failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    let found = text.lines().find(|line| {
        line.contains(".text.unlikely") || FORBIDDEN.iter().any(|word| line.contains(word))
    });
    if let Some(line) = found {
        bail!(
            "the programs can panic, see this symbol or section: {}",
            line.trim()
        );
    }
    Ok(())
}

/// bpf-linker in its version, built with Debian's LLVM if there is none.
fn linker() -> Result<PathBuf> {
    let tools = sh::root().join("target/tools");
    let built = tools.join("bin/bpf-linker");
    let output = sh::program(&built).arg("--version").output();
    let version = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    if version.is_ok_and(|version| version.trim() == format!("bpf-linker {LINKER_VERSION}")) {
        return Ok(built);
    }
    sh::must_run(
        sh::cargo()
            .args([
                "install",
                "bpf-linker",
                "--version",
                LINKER_VERSION,
                "--locked",
            ])
            .args([
                "--no-default-features",
                "--features",
                "llvm-22",
                "--force",
                "--root",
            ])
            .arg(&tools)
            .env("LLVM_PREFIX", LLVM)
            .env("LLVM_SYS_221_PREFIX", LLVM)
            .env("CARGO_TARGET_DIR", tools.join("build")),
    )?;
    Ok(built)
}

fn tools() -> Result<Tools> {
    let rustc = first_line("/usr/bin/rustc", "--version")?;
    let llvm = first_line(&format!("{LLVM}/bin/llvm-config"), "--version")?;
    Ok(Tools(BTreeMap::from([
        ("bpf-linker".to_owned(), LINKER_VERSION.to_owned()),
        ("llvm".to_owned(), llvm),
        ("rustc".to_owned(), rustc),
    ])))
}

fn first_line(program: &str, argument: &str) -> Result<String> {
    let output = sh::program(program)
        .arg(argument)
        .output()
        .with_context(|| format!("cannot start {program}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or_default().trim().to_owned())
}

/// Where cargo keeps the sources of crates.
fn cargo_home() -> Result<PathBuf> {
    let given = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo"));
    given
        .or_else(home)
        .context("neither CARGO_HOME nor HOME is set")
}
