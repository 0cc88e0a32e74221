//! Is the configuration valid, and what are the defaults of missing fields?
//!
//! Invariants: pure; all faults are found at once and named by field; a setting without effect gives one
//! warning. Spec: CFG-1, CFG-5, CFG-7, CFG-8.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::raw::{Conntrack, KubeProxyConfiguration, ModeSection};
use super::{
    Config, ConntrackSettings, DetectLocal, GoDuration, LogSettings, NodePortAddresses, Periods,
    Policy, Source,
};
use crate::datapath::{DatapathChoice, DatapathKind};
use crate::forwarding::{InterfaceName, MarkBit, Netfilter};
use crate::net::{parse_address, parse_network};

/// Gates of kube-proxy without a warning: the first is implemented, the behaviour of the others is fixed. Spec: CFG-5.
const KNOWN_GATES: [&str; 4] = [
    "AllowServiceExternalIPs",
    "KubeProxyIPVS",
    "KubeProxyNFTablesLocalhostNodePorts",
    "NFTablesNetlink",
];

/// Settings without a field in the configuration file.
#[derive(Clone, Debug, Default)]
pub struct ExtraSettings {
    /// `--manifests`.
    pub manifests: Option<PathBuf>,
    /// `--master`.
    pub master: Option<String>,
    /// `--iptables-backend`.
    pub iptables_backend: Option<String>,
    /// The deprecated `--healthz-port`.
    pub healthz_port: Option<u16>,
    /// The deprecated `--metrics-port`.
    pub metrics_port: Option<u16>,
    /// The name that the operating system has for this host.
    pub os_hostname: String,
    /// Whether conntrack accepts TCP packets outside the window by now (CT-7).
    pub tcp_is_liberal: bool,
}

/// A fault in a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The field, as the configuration file spells it.
    pub field: Cow<'static, str>,
    /// The fault and the accepted values.
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

/// A resolved configuration and its warnings.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The configuration.
    pub config: Config,
    /// Settings without effect, or with a surprising one.
    pub warnings: Vec<String>,
}

/// Checks a configuration and fills in defaults.
///
/// # Errors
/// Every [`Fault`] there is; never an empty list.
pub fn resolve(
    raw: &KubeProxyConfiguration,
    extra: &ExtraSettings,
) -> Result<Resolved, Vec<Fault>> {
    let mut r = Resolver::default();
    let datapath = r.datapath(given(&raw.mode), extra.iptables_backend.as_deref());
    let bind_address = r.bind_address(given(&raw.bind_address));
    let (any_address, loopback): (IpAddr, IpAddr) = if bind_address.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::LOCALHOST.into())
    } else {
        (Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::LOCALHOST.into())
    };
    let section = Section {
        mode: datapath.mode(),
        fields: raw.section(datapath.mode()),
    };
    let tracked_strictly = datapath.may_need(|needs| needs.conntrack) && !extra.tcp_is_liberal;
    let config = Config {
        datapath,
        source: r.source(raw, extra),
        policy: Policy {
            affinity_limit: datapath.any().needs().affinity_limit,
            ..r.policy(raw, &section, tracked_strictly)
        },
        node_name: r.node_name(raw, &extra.os_hostname).into(),
        node_ip_override: Some(bind_address).filter(|address| !address.is_unspecified()),
        healthz_address: r.listen_address(
            "healthzBindAddress",
            given(&raw.healthz_bind_address),
            SocketAddr::new(any_address, extra.healthz_port.unwrap_or(10256)),
        ),
        metrics_address: r.listen_address(
            "metricsBindAddress",
            given(&raw.metrics_bind_address),
            SocketAddr::new(loopback, extra.metrics_port.unwrap_or(10249)),
        ),
        bind_address_hard_fail: raw.bind_address_hard_fail.unwrap_or(false),
        periods: r.periods(raw, &section),
        conntrack: r.conntrack(raw.conntrack.as_ref()),
        oom_score_adj: r.oom_score_adj(raw.oom_score_adj),
        log: r.log(raw),
    };
    r.name_what_has_no_effect(raw);
    if r.faults.is_empty() {
        Ok(Resolved {
            config,
            warnings: r.warnings,
        })
    } else {
        Err(r.faults)
    }
}

/// The section that counts in the mode. Spec: CFG-8.
struct Section {
    mode: &'static str,
    fields: ModeSection,
}

impl Section {
    /// What one of its fields is called.
    fn field(&self, name: &str) -> String {
        format!("{}.{name}", self.mode)
    }
}

/// The text; an empty one is as good as none.
#[expect(clippy::ref_option, reason = "the fields are options")]
fn given(text: &Option<String>) -> Option<&str> {
    text.as_deref().filter(|text| !text.is_empty())
}

#[derive(Default)]
struct Resolver {
    faults: Vec<Fault>,
    warnings: Vec<String>,
}

impl Resolver {
    fn fault(&mut self, field: impl Into<Cow<'static, str>>, message: impl Into<String>) {
        self.faults.push(Fault {
            field: field.into(),
            message: message.into(),
        });
    }

    fn datapath(&mut self, mode: Option<&str>, backend: Option<&str>) -> DatapathChoice {
        let modes = DatapathKind::modes();
        let default = modes.first().copied().unwrap_or_default();
        let mode = mode.unwrap_or(default);
        let backend = backend.filter(|backend| !matches!(*backend, "" | "auto"));
        let known = modes.join(", ");
        if let Some(backend) = backend.filter(|name| !DatapathKind::backends().contains(name)) {
            let known = DatapathKind::backends().join(", ");
            let message = format!("{backend:?} is none of auto, {known}");
            self.fault("--iptables-backend", message);
        }
        if let Some(choice) = DatapathChoice::of(mode, backend) {
            return choice;
        }
        if let Some(choice) = DatapathChoice::of(mode, None) {
            let message = format!("--iptables-backend has no effect in {mode} mode");
            self.warnings.push(message);
            return choice;
        }
        self.fault(
            "mode",
            match mode {
                "ebpf" => format!("the ebpf mode is not implemented yet; use one of {known}"),
                "ipvs" | "kernelspace" => {
                    format!("there is no {mode} mode; use {default}, which scales as well")
                }
                _ => format!("{mode:?} is not a mode; use one of {known}"),
            },
        );
        DatapathChoice::Fixed(DatapathKind::DEFAULT)
    }

    fn bind_address(&mut self, text: Option<&str>) -> IpAddr {
        text.map_or(Ok(Ipv4Addr::UNSPECIFIED.into()), parse_address)
            .unwrap_or_else(|error| {
                self.fault("bindAddress", error.to_string());
                Ipv4Addr::UNSPECIFIED.into()
            })
    }

    /// An address to listen on; port 0 is none at all. Spec: MET-7, CFG-5, CFG-7.
    fn listen_address(
        &mut self,
        field: &'static str,
        text: Option<&str>,
        default: SocketAddr,
    ) -> Option<SocketAddr> {
        let parse = |text| parse_listen_address(text, default.port());
        let address = text.map_or(Some(default), parse);
        if address.is_none() {
            let text = text.unwrap_or_default();
            self.fault(
                field,
                format!("{text:?} is not IP:port with a port from 1 to 65535 (0 disables)"),
            );
        }
        address.filter(|address| address.port() != 0)
    }

    fn source(&mut self, raw: &KubeProxyConfiguration, extra: &ExtraSettings) -> Source {
        let client = raw.client_connection.as_ref();
        let kubeconfig = client.and_then(|client| given(&client.kubeconfig));
        let master = given(&extra.master);
        if let Some(directory) = &extra.manifests {
            if kubeconfig.is_some() || master.is_some() {
                self.warnings
                    .push("--manifests is set: the API server is not used".to_owned());
            }
            return Source::Manifests(directory.clone());
        }
        Source::Kubernetes {
            kubeconfig: kubeconfig.map(PathBuf::from),
            master: master.map(str::to_owned),
        }
    }

    fn node_name(&mut self, raw: &KubeProxyConfiguration, os_hostname: &str) -> String {
        let name = given(&raw.hostname_override).unwrap_or(os_hostname);
        let name = name.trim().to_lowercase();
        if name.is_empty() {
            self.fault(
                "hostnameOverride",
                "the node has no name; set --hostname-override to the name of its Node object",
            );
        }
        name
    }

    fn policy(
        &mut self,
        raw: &KubeProxyConfiguration,
        section: &Section,
        tracked_strictly: bool,
    ) -> Policy {
        let gates = raw.feature_gates.as_ref();
        let external_ips = gates.and_then(|gates| gates.get("AllowServiceExternalIPs"));
        let (v4, v6) = self.cluster_cidr(given(&raw.cluster_cidr));
        let conntrack = raw.conntrack.as_ref();
        let is_liberal = conntrack.and_then(|conntrack| conntrack.tcp_be_liberal) == Some(true);
        Policy {
            detect_local: self.detect_local(raw, (v4, v6)),
            cluster_cidrs: v4
                .map(IpNet::from)
                .into_iter()
                .chain(v6.map(IpNet::from))
                .collect(),
            masquerade_all: section.fields.masquerade_all.unwrap_or(false),
            node_port_addresses: self.node_port_addresses(raw.node_port_addresses.as_deref()),
            allow_external_ips: external_ips.is_none_or(|gate| gate.unwrap_or(false)),
            // That is known to the datapath.
            affinity_limit: None,
            netfilter: Netfilter {
                masquerade_bit: self.masquerade_bit(section),
                drop_invalid: tracked_strictly && !is_liberal,
            },
        }
    }

    fn masquerade_bit(&mut self, section: &Section) -> MarkBit {
        let Some(number) = section.fields.masquerade_bit else {
            return MarkBit::DEFAULT;
        };
        let bit = u8::try_from(number).ok().and_then(MarkBit::new);
        if bit.is_none() {
            let message = format!("{number} is not from 0 to 31");
            self.fault(section.field("masqueradeBit"), message);
        }
        bit.unwrap_or(MarkBit::DEFAULT)
    }

    /// Spec: §5.2.
    fn detect_local(
        &mut self,
        raw: &KubeProxyConfiguration,
        (v4, v6): (Option<Ipv4Net>, Option<Ipv6Net>),
    ) -> DetectLocal {
        let section = raw.detect_local.clone().unwrap_or_default();
        let none = DetectLocal::ClusterCidr { v4: None, v6: None };
        match given(&raw.detect_local_mode).unwrap_or("ClusterCIDR") {
            "ClusterCIDR" => {
                if given(&raw.cluster_cidr).is_none() {
                    self.warnings.push(
                        "no clusterCIDR: no source counts as a pod, and ClusterIP traffic keeps its source \
                         (set --cluster-cidr, or another --detect-local-mode)"
                            .to_owned(),
                    );
                }
                DetectLocal::ClusterCidr { v4, v6 }
            }
            "NodeCIDR" => DetectLocal::NodeCidr,
            "BridgeInterface" => self
                .interface("detectLocal.bridgeInterface", section.bridge_interface)
                .map_or(none, DetectLocal::BridgeInterface),
            "InterfaceNamePrefix" => self
                .interface(
                    "detectLocal.interfaceNamePrefix",
                    section.interface_name_prefix,
                )
                .map_or(none, DetectLocal::InterfaceNamePrefix),
            other => {
                self.fault(
                    "detectLocalMode",
                    format!(
                        "{other:?} is none of ClusterCIDR, NodeCIDR, BridgeInterface, InterfaceNamePrefix"
                    ),
                );
                none
            }
        }
    }

    fn interface(&mut self, field: &'static str, name: Option<String>) -> Option<InterfaceName> {
        let name = name.unwrap_or_default();
        let interface = InterfaceName::new(&name);
        if interface.is_none() {
            self.fault(
                field,
                format!("{name:?} is no interface name (1 to 15 bytes); this mode needs one"),
            );
        }
        interface
    }

    /// Spec: DL-1, DL-5, CFG-5.
    fn cluster_cidr(&mut self, text: Option<&str>) -> (Option<Ipv4Net>, Option<Ipv6Net>) {
        let field = "clusterCIDR";
        let (mut v4, mut v6) = (None, None);
        let parts = text.unwrap_or_default().split(',').map(str::trim);
        let parts: Vec<&str> = parts.filter(|part| !part.is_empty()).collect();
        if parts.len() > 2 {
            self.fault(
                field,
                "has more than two networks; one per family is enough",
            );
        }
        for part in &parts {
            match parse_network(part) {
                Ok(IpNet::V4(network)) => v4 = v4.or(Some(network)),
                Ok(IpNet::V6(network)) => v6 = v6.or(Some(network)),
                Err(error) => self.fault(field, error.to_string()),
            }
        }
        if parts.len() == 2 && (v4.is_none() || v6.is_none()) && self.faults.is_empty() {
            self.fault(field, "two networks must be one of IPv4 and one of IPv6");
        }
        (v4, v6)
    }

    /// Networks and words in any mix. Spec: NP-2, NP-3, NP-5, CFG-5.
    fn node_port_addresses(&mut self, texts: Option<&[String]>) -> NodePortAddresses {
        const FIELD: &str = "nodePortAddresses";
        const LOCALHOST: [&str; 2] = ["127.0.0.0/8", "::1/128"];
        const ALL: [&str; 2] = ["0.0.0.0/0", "::/0"];
        let texts = texts.unwrap_or_default();
        if texts.is_empty() {
            return NodePortAddresses::primary();
        }
        let mut primary = false;
        let mut networks: Vec<IpNet> = Vec::new();
        // A word is for both families: a family that is not mentioned accepts nothing (NP-4).
        let mut has_word = false;
        let mut names_loopback = false;
        for text in texts.iter().map(|text| text.trim()) {
            let stands_for: &[&str] = match text {
                "primary" => &[],
                "localhost" => &LOCALHOST,
                "all" => &ALL,
                network => &[network],
            };
            primary |= text == "primary";
            has_word |= stands_for != [text];
            for network in stands_for {
                match parse_network(network) {
                    Ok(network) => {
                        names_loopback |= network.addr().is_loopback() && network.prefix_len() > 0;
                        networks.push(network);
                    }
                    Err(error) => self.fault(
                        FIELD,
                        format!("{error}; and it is none of the words primary, localhost, all"),
                    ),
                }
            }
        }
        if names_loopback {
            self.warnings.push(format!(
                "{FIELD}: NodePorts are not served on localhost yet: clients on the node must use \
                 another of its addresses (NP-14)"
            ));
        }
        NodePortAddresses {
            primary,
            networks: networks.into(),
            silence_is_all: !has_word,
        }
    }

    /// Spec: SYNC-1 to SYNC-3, SYNC-14.
    fn periods(&mut self, raw: &KubeProxyConfiguration, section: &Section) -> Periods {
        // Compat: zero is "unset".
        let period = section.fields.sync_period;
        let period = period.filter(|period| !period.is_zero());
        let sync = self.duration(section.field("syncPeriod"), period, Periods::DEFAULT.sync);
        let min_sync = self.duration(
            section.field("minSyncPeriod"),
            section.fields.min_sync_period,
            Periods::DEFAULT.min_sync.min(sync),
        );
        if min_sync > sync {
            self.fault(section.field("minSyncPeriod"), "is longer than syncPeriod");
        }
        self.duration("configSyncPeriod", raw.config_sync_period, Duration::ZERO);
        Periods { min_sync, sync }
    }

    fn duration(
        &mut self,
        field: impl Into<Cow<'static, str>>,
        value: Option<GoDuration>,
        default: Duration,
    ) -> Duration {
        let duration = value.map_or(Some(default), GoDuration::get);
        if let (None, Some(value)) = (duration, value) {
            self.fault(field, format!("{value} is negative"));
        }
        duration.unwrap_or(default)
    }

    /// Spec: CT-8 to CT-10.
    fn conntrack(&mut self, raw: Option<&Conntrack>) -> ConntrackSettings {
        let raw = raw.cloned().unwrap_or_default();
        let mut timeout = |field: &'static str, value, default_hours: u64| {
            self.duration(field, value, Duration::from_secs(default_hours * 3600))
        };
        ConntrackSettings {
            tcp_established_timeout: timeout(
                "conntrack.tcpEstablishedTimeout",
                raw.tcp_established_timeout,
                24,
            ),
            tcp_close_wait_timeout: timeout(
                "conntrack.tcpCloseWaitTimeout",
                raw.tcp_close_wait_timeout,
                1,
            ),
            udp_timeout: timeout("conntrack.udpTimeout", raw.udp_timeout, 0),
            udp_stream_timeout: timeout("conntrack.udpStreamTimeout", raw.udp_stream_timeout, 0),
            tcp_be_liberal: raw.tcp_be_liberal.unwrap_or(false),
            max_per_core: self.count("conntrack.maxPerCore", raw.max_per_core, 32_768),
            min: self.count("conntrack.min", raw.min, 131_072),
        }
    }

    fn count(&mut self, field: &'static str, value: Option<i32>, default: u32) -> u32 {
        value
            .map_or(Ok(default), u32::try_from)
            .unwrap_or_else(|_| {
                self.fault(field, format!("{} is negative", value.unwrap_or_default()));
                default
            })
    }

    fn oom_score_adj(&mut self, value: Option<i32>) -> i32 {
        let value = value.unwrap_or(-999);
        if !(-1000..=1000).contains(&value) {
            self.fault("oomScoreAdj", format!("{value} is not from -1000 to 1000"));
        }
        value
    }

    fn log(&mut self, raw: &KubeProxyConfiguration) -> LogSettings {
        let logging = raw.logging.clone().unwrap_or_default();
        let format = given(&logging.format).unwrap_or("text");
        if !["text", "json"].contains(&format) {
            self.fault(
                "logging.format",
                format!("{format:?} is neither text nor json"),
            );
        }
        LogSettings {
            json: format == "json",
            verbosity: logging.verbosity.unwrap_or(0),
        }
    }

    /// One warning for everything that was set, is legal, and changes nothing.
    fn name_what_has_no_effect(&mut self, raw: &KubeProxyConfiguration) {
        let client = raw.client_connection.clone().unwrap_or_default();
        let iptables = raw.iptables.as_ref();
        let localhost = iptables.and_then(|section| section.localhost_node_ports);
        let hidden_metrics = given(&raw.show_hidden_metrics_for_version);
        let fields = [
            ("enableProfiling", raw.enable_profiling == Some(true)),
            ("clientConnection.qps", client.qps > Some(0.0)),
            ("clientConnection.burst", client.burst > Some(0)),
            ("showHiddenMetricsForVersion", hidden_metrics.is_some()),
            ("iptables.localhostNodePorts", localhost == Some(true)),
        ];
        let fields = fields.into_iter().filter(|(_, is_set)| *is_set);
        let gates = raw.feature_gates.iter().flat_map(BTreeMap::keys);
        let gates = gates.filter(|name| !KNOWN_GATES.contains(&name.as_str()));
        let names: Vec<String> = fields
            .map(|(name, _)| name.to_owned())
            .chain(gates.map(|name| format!("featureGates.{name}")))
            .collect();
        if client.burst.is_some_and(|burst| burst < 0) {
            self.fault("clientConnection.burst", "is negative");
        }
        if !names.is_empty() {
            let names = names.join(", ");
            let message = format!("accepted, without effect so far: {names}");
            self.warnings.push(message);
        }
    }
}

fn parse_listen_address(text: &str, default_port: u16) -> Option<SocketAddr> {
    if let Ok(ip) = parse_address(text.trim_start_matches('[').trim_end_matches(']')) {
        return Some(SocketAddr::new(ip, default_port));
    }
    let (host, port) = text.rsplit_once(':')?;
    let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let ip = parse_address(bracketed.unwrap_or(host)).ok()?;
    let is_unambiguous = ip.is_ipv4() || bracketed.is_some();
    is_unambiguous.then_some(SocketAddr::new(ip, port.parse().ok()?))
}

#[cfg(test)]
mod tests;
