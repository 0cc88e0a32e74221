//! How much work are the eBPF programs for the kernel's verifier?
#![expect(clippy::print_stdout, reason = "that is its output")]

use anyhow::{Context as _, Result};
use aya::programs::{SchedClassifier, Xdp};
use aya::{Ebpf, EbpfLoader, VerifierLogLevel};
use proxy_tests::ebpf::object;

fn main() -> Result<()> {
    let path = object();
    let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut loader = EbpfLoader::new();
    loader.verifier_log_level(VerifierLogLevel::STATS);
    let mut programs = loader
        .load(&bytes)
        .context("cannot create the maps; are you root?")?;
    println!(
        "{:12} {:>22} {:>12}",
        "program", "verified instructions", "JIT bytes"
    );
    for name in ["proxy_in", "proxy_out"] {
        let program: &mut SchedClassifier = named(&mut programs, name)?;
        program
            .load()
            .with_context(|| format!("the verifier refuses {name}"))?;
        show(name, &program.info()?);
    }
    let program: &mut Xdp = named(&mut programs, "proxy_xdp")?;
    program.load().context("the verifier refuses proxy_xdp")?;
    show("proxy_xdp", &program.info()?);
    Ok(())
}

fn named<'a, T>(programs: &'a mut Ebpf, name: &str) -> Result<&'a mut T>
where
    &'a mut T: TryFrom<&'a mut aya::programs::Program, Error = aya::programs::ProgramError>,
{
    let program = programs
        .program_mut(name)
        .with_context(|| format!("there is no program {name}"))?;
    Ok(program.try_into()?)
}

fn show(name: &str, info: &aya::programs::ProgramInfo) {
    let verified = info
        .verified_instruction_count()
        .map_or_else(|| "not told".to_owned(), |n| n.to_string());
    println!("{name:12} {verified:>22} {:>12}", info.size_jitted());
}
