//! What was written on the command line?
//!
//! The names, spellings and precedence are kube-proxy's. Invariants: nothing is decided here; flags
//! become the same [`KubeProxyConfiguration`] that a file is. Spec: CFG-1, CFG-4, LIFE-14.

use std::collections::BTreeMap;
use std::ffi::OsString;

use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser};
use serde::Serialize;

use crate::config::raw::{
    ClientConnection, Conntrack, DetectLocalSection, KubeProxyConfiguration, Logging, ModeSection,
};
use crate::debug::{DumpQuery, ExplainQuery};

use crate::datapath::DatapathKind;

mod flags;

pub use flags::Flags;

/// Programs a node's kernel so that packets to Kubernetes Services reach their backends.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "proxy-daemon",
    version,
    args_override_self = true,
    after_help = "Exit codes: 0 done, 1 it cannot run here, 2 wrong usage or configuration.\n\
                  Flags keep kube-proxy's names; _ may be written for -."
)]
pub struct Cli {
    /// The flags.
    #[command(flatten)]
    pub flags: Flags,
    /// Log verbosity: 0 to 3 info, 4 and 5 debug, above that trace
    #[arg(short = 'v', long = "v", value_name = "LEVEL")]
    pub verbosity: Option<u32>,
    /// What to do instead of running.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The flags that were given, by their names without dashes.
    #[arg(skip)]
    pub given: Vec<String>,
}

/// What can be asked instead of running; of the running daemon, or with `--manifests` of a directory.
#[derive(Clone, Debug, clap::Subcommand, Serialize)]
#[serde(untagged)]
pub enum Command {
    /// Prints what is forwarded where
    Dump(DumpQuery),
    /// Says where a packet would go, and which rule and which object decided it
    Explain(ExplainQuery),
}

impl Command {
    /// The question as a query of the node-local server.
    ///
    /// # Errors
    /// Never: each part is a number or text.
    pub fn query(&self) -> Result<String, serde_urlencoded::ser::Error> {
        serde_urlencoded::to_string(self)
    }
}

/// The flags that count beside a configuration file. Spec: CFG-1.
const KEPT_WITH_FILE: [&str; 13] = [
    "config",
    "manifests",
    "mode",
    "iptables-backend",
    "master",
    "hostname-override",
    "cleanup",
    "init-only",
    "write-config-to",
    "v",
    "logging-format",
    "vmodule",
    "log-flush-frequency",
];

impl Cli {
    /// Reads the command line, the program's name first.
    ///
    /// # Errors
    /// What clap says of a wrong command line, or of `--help` and `--version`.
    pub fn read(args: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let modes = DatapathKind::modes();
        let mode = format!(
            "The datapath: one of {}; the first is the default",
            modes.join(", ")
        );
        let backends = DatapathKind::backends().join(", ");
        let backend = format!(
            "Which iptables is used in iptables mode: one of {backends}, or auto (the default), which is the one \
             that this node uses already"
        );
        let command = flags::complete(Self::command())
            .mut_arg("mode", |arg| arg.help(mode))
            .mut_arg("iptables_backend", |arg| arg.help(backend));
        let matches = command.try_get_matches_from(args.into_iter().map(with_dashes))?;
        let mut cli = Self::from_arg_matches(&matches)?;
        cli.given = given(&matches);
        Ok(cli)
    }

    /// The given flags that a configuration file overrules. Spec: CFG-1.
    pub fn overruled_by_file(&self) -> Vec<&str> {
        self.given
            .iter()
            .map(String::as_str)
            .filter(|name| !KEPT_WITH_FILE.contains(name) && !name.starts_with("log-"))
            .collect()
    }

    /// Puts what counts beside a configuration file over it. Spec: CFG-1.
    pub fn over(&self, mut file: KubeProxyConfiguration) -> KubeProxyConfiguration {
        let flags = self.flags.clone();
        file.mode = flags.mode.or(file.mode);
        file.hostname_override = flags.hostname_override.or(file.hostname_override);
        let logging = file.logging.get_or_insert_default();
        logging.verbosity = self.verbosity.or(logging.verbosity);
        logging.format = flags.logging_format.or(logging.format.take());
        file
    }

    /// What the flags say, as if it stood in a file.
    ///
    /// # Errors
    /// A feature gate that is not written as `Name=true` or `Name=false`.
    pub fn as_configuration(&self) -> Result<KubeProxyConfiguration, String> {
        let flags = self.flags.clone();
        // Spec: CFG-8. The period flags and --masquerade-all are for every mode, the bit is not.
        let section = ModeSection {
            masquerade_all: flags.masquerade_all,
            sync_period: flags.iptables_sync_period,
            min_sync_period: flags.iptables_min_sync_period,
            ..ModeSection::default()
        };
        Ok(KubeProxyConfiguration {
            feature_gates: Some(feature_gates(&flags.feature_gates.unwrap_or_default())?),
            client_connection: Some(ClientConnection {
                kubeconfig: flags.kubeconfig,
                content_type: flags.kube_api_content_type,
                qps: flags.kube_api_qps,
                burst: flags.kube_api_burst,
                ..ClientConnection::default()
            }),
            logging: Some(Logging {
                format: flags.logging_format,
                verbosity: self.verbosity,
                ..Logging::default()
            }),
            hostname_override: flags.hostname_override,
            bind_address: flags.bind_address,
            healthz_bind_address: flags.healthz_bind_address.map(empty_disables),
            metrics_bind_address: flags.metrics_bind_address.map(empty_disables),
            bind_address_hard_fail: flags.bind_address_hard_fail,
            enable_profiling: flags.profiling,
            show_hidden_metrics_for_version: flags.show_hidden_metrics_for_version,
            mode: flags.mode,
            iptables: Some(ModeSection {
                masquerade_bit: flags.iptables_masquerade_bit,
                localhost_node_ports: flags.iptables_localhost_nodeports,
                ..section.clone()
            }),
            any_mode: Some(section),
            detect_local_mode: flags.detect_local_mode,
            detect_local: Some(DetectLocalSection {
                bridge_interface: flags.pod_bridge_interface,
                interface_name_prefix: flags.pod_interface_name_prefix,
            }),
            cluster_cidr: flags.cluster_cidr,
            node_port_addresses: flags
                .nodeport_addresses
                .map(|list| list.into_iter().filter(|text| !text.is_empty()).collect()),
            oom_score_adj: flags.oom_score_adj,
            conntrack: Some(Conntrack {
                max_per_core: flags.conntrack_max_per_core,
                min: flags.conntrack_min,
                tcp_established_timeout: flags.conntrack_tcp_timeout_established,
                tcp_close_wait_timeout: flags.conntrack_tcp_timeout_close_wait,
                tcp_be_liberal: flags.conntrack_tcp_be_liberal,
                udp_timeout: flags.conntrack_udp_timeout,
                udp_stream_timeout: flags.conntrack_udp_timeout_stream,
            }),
            config_sync_period: flags.config_sync_period,
            ..KubeProxyConfiguration::default()
        })
    }
}

/// An address given as an empty flag is none, where an empty field of a file is the default. Spec: MET-7.
fn empty_disables(address: String) -> String {
    if address.is_empty() {
        return "0.0.0.0:0".to_owned();
    }
    address
}

fn feature_gates(list: &[String]) -> Result<BTreeMap<String, Option<bool>>, String> {
    let gates = list.iter().filter(|gate| !gate.is_empty()).map(|gate| {
        let parse = || {
            let (name, value) = gate.split_once('=')?;
            let value = value.trim().to_lowercase().parse().ok()?;
            Some((name.trim().to_owned(), Some(value)))
        };
        parse().ok_or_else(|| format!("--feature-gates: {gate:?} is not Name=true or Name=false"))
    });
    gates.collect()
}

/// `--some_flag=a_b` is `--some-flag=a_b`. Spec: CFG-4.
fn with_dashes(arg: OsString) -> OsString {
    let Some(text) = arg.to_str().filter(|text| text.starts_with("--")) else {
        return arg;
    };
    let (name, value) = text.split_at(text.find('=').unwrap_or(text.len()));
    format!("{}{value}", name.replace('_', "-")).into()
}

/// The names of the flags on the command line.
fn given(matches: &ArgMatches) -> Vec<String> {
    let ids = matches.ids().map(clap::Id::as_str);
    ids.filter(|id| matches.value_source(id) == Some(ValueSource::CommandLine))
        .filter(|id| !["Flags", "Cli"].contains(id))
        .map(|id| if id == "verbosity" { "v" } else { id }.replace('_', "-"))
        .collect()
}

#[cfg(test)]
mod tests;
