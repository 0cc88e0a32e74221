//! Which datapath do the demo and the benchmark run the daemon with?

use clap::Args;
use clap::builder::PossibleValuesParser;
use proxy_daemon::datapath::{DatapathChoice, DatapathKind};

use crate::datapath::Datapath;

/// The datapath, as the command line says it.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct Mode {
    /// The daemon's --mode
    #[arg(long, default_value = DatapathKind::DEFAULT.mode(), value_parser = modes())]
    mode: String,
    /// The daemon's --iptables-backend; without it, the daemon finds out
    #[arg(long, value_parser = backends())]
    iptables_backend: Option<String>,
}

impl Mode {
    /// The daemon's flags, and those of the demo and the benchmark, which are the same.
    pub fn flags(&self) -> Vec<String> {
        let backend = self.iptables_backend.iter();
        let backend = backend.map(|backend| format!("--iptables-backend={backend}"));
        let mut flags = vec![format!("--mode={}", self.mode)];
        flags.extend(backend);
        flags
    }

    /// A name to show.
    pub fn name(&self) -> String {
        match &self.iptables_backend {
            Some(backend) if self.is_iptables() => format!("iptables ({backend})"),
            Some(_) | None => self.mode.clone(),
        }
    }

    /// Whether it is the iptables mode.
    pub fn is_iptables(&self) -> bool {
        self.mode == "iptables"
    }

    /// Commands that print the daemon's rules of IPv4.
    pub fn show(&self) -> &'static [&'static str] {
        let backend = self.iptables_backend.as_deref();
        let choice = DatapathChoice::of(&self.mode, backend.filter(|name| *name != "auto"));
        let (DatapathChoice::Fixed(kind) | DatapathChoice::Detect(kind)) =
            choice.unwrap_or(DatapathChoice::Fixed(DatapathKind::DEFAULT));
        Datapath::named(kind.name()).map_or(&[], |datapath| datapath.commands())
    }
}

fn modes() -> PossibleValuesParser {
    DatapathKind::modes().into()
}

fn backends() -> PossibleValuesParser {
    [&["auto"], &DatapathKind::backends()[..]].concat().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(mode: &str, backend: Option<&str>) -> Mode {
        Mode {
            mode: mode.to_owned(),
            iptables_backend: backend.map(str::to_owned),
        }
    }

    #[test]
    fn the_daemon_is_told_what_was_said() {
        assert_eq!(mode("nftables", None).flags(), ["--mode=nftables"]);
        let legacy = mode("iptables", Some("legacy"));
        assert_eq!(
            legacy.flags(),
            ["--mode=iptables", "--iptables-backend=legacy"]
        );
        assert_eq!(legacy.name(), "iptables (legacy)");
        assert_eq!(legacy.show(), ["iptables-legacy-save", "ipset list"]);
        assert_eq!(mode("nftables", None).show().len(), 1);
    }
}
