//! Which flags are there?
//!
//! Invariants: every flag of kube-proxy 1.36 on Linux is accepted; `None` means that it was not given.
#![expect(
    clippy::doc_markdown,
    reason = "the doc comments are the texts of --help"
)]

use std::path::PathBuf;

use clap::Args;

use crate::config::GoDuration;

/// A boolean as Go's `strconv.ParseBool` reads it.
fn go_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        other => Err(format!("{other:?} is neither true nor false")),
    }
}

macro_rules! flags {
    (@build [$($done:tt)*]) => {
        /// Every flag; `None` or empty if it was not given.
        #[derive(Clone, Debug, Default, Args)]
        pub struct Flags { $($done)* }
    };
    (@build [$($done:tt)*] $(#[$meta:meta])* bool $name:ident : $type:ty ; $($rest:tt)*) => {
        flags!(@build [$($done)*
            $(#[$meta])*
            #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
                  value_parser = go_bool, value_name = "BOOL")]
            pub $name: Option<bool>,
        ] $($rest)*);
    };
    (@build [$($done:tt)*] $(#[$meta:meta])* list $name:ident : $type:ty ; $($rest:tt)*) => {
        flags!(@build [$($done)*
            $(#[$meta])*
            #[arg(long, value_delimiter = ',')]
            pub $name: Option<Vec<$type>>,
        ] $($rest)*);
    };
    (@build [$($done:tt)*] $(#[$meta:meta])* value $name:ident : $type:ty ; $($rest:tt)*) => {
        flags!(@build [$($done)*
            $(#[$meta])*
            #[arg(long, allow_hyphen_values = true)]
            pub $name: Option<$type>,
        ] $($rest)*);
    };
    (@build [$($done:tt)*] $(#[$meta:meta])* hidden $name:ident : $type:ty ; $($rest:tt)*) => {
        flags!(@build [$($done)*
            $(#[$meta])*
            /// Accepted for kube-proxy's sake, without effect.
            #[arg(long, hide = true, allow_hyphen_values = true, num_args = 0..=1,
                  require_equals = false, default_missing_value = "")]
            pub $name: Option<$type>,
        ] $($rest)*);
    };
}

flags! {
    @build []
    /// A KubeProxyConfiguration v1alpha1 file; most flags are ignored with it
    value config: PathBuf;
    /// A directory of manifests (Services, EndpointSlices, Nodes, ServiceCIDRs) instead of an API server
    value manifests: PathBuf;
    /// The datapath (the list of them completes this)
    #[arg(visible_alias = "proxy-mode")]
    value mode: String;
    /// The file that says how to reach the API server; in-cluster configuration without it
    value kubeconfig: String;
    /// The API server's URL, stronger than the kubeconfig's
    value master: String;
    /// Which iptables is used (the list of datapaths completes this)
    value iptables_backend: String;
    /// The name of our Node object, if it is not the host's name
    value hostname_override: String;
    /// An address that replaces the Node's own of its family
    value bind_address: String;
    /// Where /healthz and /livez are served; empty or port 0 disables
    value healthz_bind_address: String;
    /// Where the node-local server with /debug listens; empty or port 0 disables
    value metrics_bind_address: String;
    /// Deprecated: the port of --healthz-bind-address, where that has none
    value healthz_port: u16;
    /// Deprecated: the port of --metrics-bind-address, where that has none
    value metrics_port: u16;
    /// Ends the process if an address cannot be bound
    bool bind_address_hard_fail: bool;
    /// Removes everything that is ours from the kernel, then exits
    bool cleanup: bool;
    /// Does the privileged one-time steps, then exits
    bool init_only: bool;
    /// How pods' traffic is known: ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix
    value detect_local_mode: String;
    /// The cluster's pod networks, one per family
    value cluster_cidr: String;
    /// The bridge of detect-local mode BridgeInterface
    value pod_bridge_interface: String;
    /// The beginning of interface names of detect-local mode InterfaceNamePrefix
    value pod_interface_name_prefix: String;
    /// Which local addresses accept NodePort traffic: networks, "primary" (the default), "localhost", "all"
    list nodeport_addresses: String;
    /// Masquerades every ClusterIP connection
    bool masquerade_all: bool;
    /// The packet mark's bit that asks for masquerading, in iptables mode
    value iptables_masquerade_bit: i32;
    /// Accepted for kube-proxy's sake: loopback never serves NodePorts
    bool iptables_localhost_nodeports: bool;
    /// Longest delay of a retry, and interval of the look for foreign changes [default: 30s]
    value iptables_sync_period: GoDuration;
    /// Least time between two syncs [default: 10ms]
    value iptables_min_sync_period: GoDuration;
    /// conntrack entries per CPU; 0 leaves the limit alone [default: 32768]
    value conntrack_max_per_core: i32;
    /// Least limit of conntrack entries [default: 131072]
    value conntrack_min: i32;
    /// Timeout of established TCP connections; 0 leaves it alone [default: 24h]
    value conntrack_tcp_timeout_established: GoDuration;
    /// Timeout of TCP connections in CLOSE_WAIT; 0 leaves it alone [default: 1h]
    value conntrack_tcp_timeout_close_wait: GoDuration;
    /// Tracks TCP packets outside the window
    bool conntrack_tcp_be_liberal: bool;
    /// Timeout of UDP flows without an answer; 0 leaves it alone
    value conntrack_udp_timeout: GoDuration;
    /// Timeout of answered UDP flows; 0 leaves it alone
    value conntrack_udp_timeout_stream: GoDuration;
    /// Our own oom_score_adj [default: -999]
    value oom_score_adj: i32;
    /// Feature gates: AllowServiceExternalIPs; others of kube-proxy are accepted
    list feature_gates: String;
    /// How logs are written: text or json
    value logging_format: String;
    /// Accepted without effect: services are never redelivered
    value config_sync_period: GoDuration;
    /// Accepted without effect so far
    bool profiling: bool;
    /// Accepted without effect so far
    value kube_api_qps: f32;
    /// Accepted without effect so far
    value kube_api_burst: i32;
    /// Accepted without effect: we speak JSON
    value kube_api_content_type: String;
    /// Accepted without effect so far
    value show_hidden_metrics_for_version: String;
    /// Writes the effective configuration to this file, then exits (not there yet)
    value write_config_to: PathBuf;
    hidden ipvs_sync_period: String;
    hidden ipvs_min_sync_period: String;
    hidden ipvs_scheduler: String;
    hidden ipvs_exclude_cidrs: String;
    hidden ipvs_strict_arp: String;
    hidden ipvs_tcp_timeout: String;
    hidden ipvs_tcpfin_timeout: String;
    hidden ipvs_udp_timeout: String;
    hidden vmodule: String;
    hidden log_flush_frequency: String;
    hidden log_text_split_stream: String;
    hidden log_text_info_buffer_size: String;
    hidden log_json_split_stream: String;
    hidden log_json_info_buffer_size: String;
    hidden boot_id_file: String;
    hidden machine_id_file: String;
}
