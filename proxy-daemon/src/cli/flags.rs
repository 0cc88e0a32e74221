//! Which flags are there?
//!
//! Invariants: every flag of kube-proxy 1.36 on Linux is accepted; `None` means that it was not given.
#![expect(
    clippy::doc_markdown,
    reason = "the doc comments are the texts of --help"
)]

use std::any::TypeId;
use std::path::PathBuf;

use clap::{Arg, Args, Command};

use crate::config::GoDuration;

/// A boolean as Go's `strconv.ParseBool` reads it.
fn go_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        other => Err(format!("{other:?} is neither true nor false")),
    }
}

/// Flags that only kube-proxy has an effect of; each is accepted with any value.
const WITHOUT_EFFECT: &str = "ipvs-sync-period ipvs-min-sync-period ipvs-scheduler ipvs-exclude-cidrs \
     ipvs-strict-arp ipvs-tcp-timeout ipvs-tcpfin-timeout ipvs-udp-timeout vmodule log-flush-frequency \
     log-text-split-stream log-text-info-buffer-size log-json-split-stream log-json-info-buffer-size \
     boot-id-file machine-id-file";

/// Completes the command with what all flags of a type have in common, and with the flags without effect.
pub(super) fn complete(command: Command) -> Command {
    let command = command.mut_args(|arg| {
        if arg.get_value_parser().type_id() != TypeId::of::<bool>() {
            return arg.allow_hyphen_values(true);
        }
        arg.num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .value_parser(go_bool)
            .value_name("BOOL")
    });
    command.args(WITHOUT_EFFECT.split_whitespace().map(|name| {
        let arg = Arg::new(name).long(name);
        arg.hide(true).num_args(0..=1)
    }))
}

macro_rules! flags {
    ($($(#[$meta:meta])* $name:ident: $type:ty;)*) => {
        /// Every flag with an effect or a warning; `None` if it was not given.
        #[derive(Clone, Debug, Default, Args)]
        pub struct Flags {
            $($(#[$meta])* #[arg(long)] pub $name: Option<$type>,)*
        }
    };
}

flags! {
    /// A KubeProxyConfiguration v1alpha1 file; most flags are ignored with it
    config: PathBuf;
    /// A directory of manifests (Services, EndpointSlices, Nodes, ServiceCIDRs) instead of an API server
    manifests: PathBuf;
    /// The datapath (the list of them completes this)
    #[arg(visible_alias = "proxy-mode")]
    mode: String;
    /// The file that says how to reach the API server; in-cluster configuration without it
    kubeconfig: String;
    /// The API server's URL, stronger than the kubeconfig's
    master: String;
    /// Which iptables is used (the list of datapaths completes this)
    iptables_backend: String;
    /// The name of our Node object, if it is not the host's name
    hostname_override: String;
    /// An address that replaces the Node's own of its family
    bind_address: String;
    /// Where /healthz and /livez are served; empty or port 0 disables
    healthz_bind_address: String;
    /// Where the node-local server with /debug listens; empty or port 0 disables
    metrics_bind_address: String;
    /// Deprecated: the port of --healthz-bind-address, where that has none
    healthz_port: u16;
    /// Deprecated: the port of --metrics-bind-address, where that has none
    metrics_port: u16;
    /// Ends the process if an address cannot be bound
    bind_address_hard_fail: bool;
    /// Removes everything that is ours from the kernel, then exits
    cleanup: bool;
    /// Does the privileged one-time steps, then exits
    init_only: bool;
    /// How pods' traffic is known: ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix
    detect_local_mode: String;
    /// The cluster's pod networks, one per family
    cluster_cidr: String;
    /// The bridge of detect-local mode BridgeInterface
    pod_bridge_interface: String;
    /// The beginning of interface names of detect-local mode InterfaceNamePrefix
    pod_interface_name_prefix: String;
    /// Which local addresses accept NodePort traffic: networks, "primary" (the default), "localhost", "all"
    #[arg(value_delimiter = ',')]
    nodeport_addresses: Vec<String>;
    /// Masquerades every ClusterIP connection
    masquerade_all: bool;
    /// The packet mark's bit that asks for masquerading, in iptables mode
    iptables_masquerade_bit: i32;
    /// Accepted for kube-proxy's sake: loopback never serves NodePorts
    iptables_localhost_nodeports: bool;
    /// Longest delay of a retry, and interval of the look for foreign changes [default: 30s]
    iptables_sync_period: GoDuration;
    /// Least time between two syncs [default: 10ms]
    iptables_min_sync_period: GoDuration;
    /// conntrack entries per CPU; 0 leaves the limit alone [default: 32768]
    conntrack_max_per_core: i32;
    /// Least limit of conntrack entries [default: 131072]
    conntrack_min: i32;
    /// Timeout of established TCP connections; 0 leaves it alone [default: 24h]
    conntrack_tcp_timeout_established: GoDuration;
    /// Timeout of TCP connections in CLOSE_WAIT; 0 leaves it alone [default: 1h]
    conntrack_tcp_timeout_close_wait: GoDuration;
    /// Tracks TCP packets outside the window
    conntrack_tcp_be_liberal: bool;
    /// Timeout of UDP flows without an answer; 0 leaves it alone
    conntrack_udp_timeout: GoDuration;
    /// Timeout of answered UDP flows; 0 leaves it alone
    conntrack_udp_timeout_stream: GoDuration;
    /// Our own oom_score_adj [default: -999]
    oom_score_adj: i32;
    /// Feature gates: AllowServiceExternalIPs; others of kube-proxy are accepted
    #[arg(value_delimiter = ',')]
    feature_gates: Vec<String>;
    /// How logs are written: text or json
    logging_format: String;
    /// Accepted without effect: services are never redelivered
    config_sync_period: GoDuration;
    /// Accepted without effect so far
    profiling: bool;
    /// Accepted without effect so far
    kube_api_qps: f32;
    /// Accepted without effect so far
    kube_api_burst: i32;
    /// Accepted without effect: we speak JSON
    kube_api_content_type: String;
    /// Accepted without effect so far
    show_hidden_metrics_for_version: String;
    /// Writes the effective configuration to this file, then exits (not there yet)
    write_config_to: PathBuf;
}
