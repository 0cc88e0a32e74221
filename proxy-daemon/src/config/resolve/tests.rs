//! Are defaults, faults and warnings as SPEC §22 says?

use std::time::Duration;

use super::*;
use crate::config::raw;

/// What kubeadm 1.36 writes, but for the cluster's own values.
const KUBEADM: &str = r#"
apiVersion: kubeproxy.config.k8s.io/v1alpha1
bindAddress: 0.0.0.0
bindAddressHardFail: false
clientConnection:
  acceptContentTypes: ""
  burst: 0
  contentType: ""
  kubeconfig: /var/lib/kube-proxy/kubeconfig.conf
  qps: 0
clusterCIDR: 10.244.0.0/16,fd00:244::/48
configSyncPeriod: 0s
conntrack:
  maxPerCore: null
  min: null
  tcpBeLiberal: false
  tcpCloseWaitTimeout: null
  tcpEstablishedTimeout: null
  udpStreamTimeout: 0s
  udpTimeout: 0s
detectLocal:
  bridgeInterface: ""
  interfaceNamePrefix: ""
detectLocalMode: ""
enableProfiling: false
healthzBindAddress: ""
hostnameOverride: ""
iptables:
  localhostNodePorts: null
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
ipvs:
  excludeCIDRs: null
  minSyncPeriod: 0s
  scheduler: ""
  strictARP: false
  syncPeriod: 0s
  tcpFinTimeout: 0s
  tcpTimeout: 0s
  udpTimeout: 0s
kind: KubeProxyConfiguration
logging:
  flushFrequency: 0
  options:
    json:
      infoBufferSize: "0"
    text:
      infoBufferSize: "0"
  verbosity: 0
metricsBindAddress: ""
mode: ""
nftables:
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
nodePortAddresses: null
oomScoreAdj: null
portRange: ""
showHiddenMetricsForVersion: ""
windowsRunAsService: false
winkernel:
  enableDSR: false
  forwardHealthCheckVip: false
  networkName: ""
  rootHnsEndpointName: ""
  sourceVip: ""
"#;

fn extra() -> ExtraSettings {
    ExtraSettings {
        os_hostname: "  Node-1 ".to_owned(),
        ..ExtraSettings::default()
    }
}

fn faults(yaml: &str) -> Vec<String> {
    let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
    let (raw, _) = raw::parse("test", &format!("{head}{yaml}")).unwrap();
    match resolve(&raw, &extra()) {
        Ok(_) => Vec::new(),
        Err(faults) => faults.iter().map(ToString::to_string).collect(),
    }
}

#[test]
fn cfg_2_what_kubeadm_writes_is_read_without_a_word() {
    let (raw, warnings) = raw::parse("test", KUBEADM).unwrap();
    assert_eq!(warnings, Vec::<String>::new());
    let Resolved { config, warnings } = resolve(&raw, &extra()).unwrap();
    assert_eq!(warnings, Vec::<String>::new());
    assert_eq!(&*config.node_name, "node-1");
    assert_eq!(config.node_ip_override, None);
    assert_eq!(config.healthz_address, "0.0.0.0:10256".parse().ok());
    assert_eq!(config.metrics_address, "127.0.0.1:10249".parse().ok());
    assert_eq!(config.periods, Periods::DEFAULT);
    assert_eq!(config.oom_score_adj, -999);
    assert_eq!(config.conntrack.max_per_core, 32_768);
    assert_eq!(config.conntrack.min, 131_072);
    assert_eq!(
        config.conntrack.tcp_established_timeout,
        Duration::from_secs(86_400)
    );
    assert_eq!(config.conntrack.udp_timeout, Duration::ZERO);
    assert_eq!(
        config.policy.detect_local,
        DetectLocal::ClusterCidr {
            v4: "10.244.0.0/16".parse().ok(),
            v6: "fd00:244::/48".parse().ok(),
        }
    );
    assert_eq!(
        config.source,
        Source::Kubernetes {
            kubeconfig: Some("/var/lib/kube-proxy/kubeconfig.conf".into()),
            master: None,
        }
    );
}

#[test]
fn cfg_2_unknown_and_duplicate_fields_are_warnings() {
    let text = format!("{KUBEADM}\nmod: iptables\nmode: nftables\n");
    let (raw, warnings) = raw::parse("test", &text).unwrap();
    assert_eq!(raw.mode.as_deref(), Some("nftables"));
    assert!(
        warnings.iter().any(|w| w.contains("\"mod\"")),
        "{warnings:?}"
    );
    assert!(
        warnings.iter().any(|w| w.contains("duplicate")),
        "{warnings:?}"
    );
}

#[test]
fn cfg_2_json_is_read_too() {
    let text = r#"{"apiVersion":"kubeproxy.config.k8s.io/v1alpha1","kind":"KubeProxyConfiguration","oomScoreAdj":-5}"#;
    let (raw, _) = raw::parse("test", text).unwrap();
    assert_eq!(raw.oom_score_adj, Some(-5));
}

#[test]
fn cfg_2_wrong_types_name_the_line() {
    use std::error::Error as _;
    for (text, expected) in [
        ("kind: KubeProxyConfiguration\noomScoreAdj: many", "2"),
        ("kind: KubeProxyConfiguration\nbindAddress: ::", "2"),
        (
            "kind: KubeProxyConfiguration\nnftables:\n  syncPeriod: 30",
            "3",
        ),
    ] {
        let error = raw::parse("test", text).unwrap_err();
        let source = error.source().unwrap().to_string();
        assert!(
            source.contains(&format!("line {expected}")),
            "{text}: {source}"
        );
    }
    assert!(raw::parse("test", "kind: Service\napiVersion: v1").is_err());
    assert!(raw::parse("test", "").is_err());
}

#[test]
fn cfg_5_each_bad_value_is_a_fault() {
    for yaml in [
        "nftables: {masqueradeBit: 32}",
        "nftables: {syncPeriod: -1s}",
        "nftables: {syncPeriod: 1s, minSyncPeriod: 2s}",
        "configSyncPeriod: -1s",
        "bindAddress: nowhere",
        "healthzBindAddress: 1.2.3.4:70000",
        "metricsBindAddress: localhost:10249",
        "oomScoreAdj: 1001",
        "conntrack: {maxPerCore: -1}",
        "conntrack: {tcpEstablishedTimeout: -1s}",
        "nodePortAddresses: ['']",
        "nodePortAddresses: [Primary]",
        "nodePortAddresses: [primary, secondary]",
        "nodePortAddresses: [10.0.0.1]",
        "clusterCIDR: 10.0.0.0/8,11.0.0.0/8",
        "clusterCIDR: ten",
        "detectLocalMode: BridgeInterface",
        "detectLocalMode: InterfaceNamePrefix",
        "detectLocalMode: Guess",
        "mode: userspace",
        "mode: ipvs",
        "mode: ebpf",
        "clientConnection: {burst: -1}",
        "hostnameOverride: '  '",
        "logging: {format: xml}",
    ] {
        assert_eq!(faults(yaml).len(), 1, "{yaml}: {:?}", faults(yaml));
    }
}

#[test]
fn cfg_5_all_faults_are_told_at_once() {
    assert_eq!(
        faults("mode: ipvs\noomScoreAdj: 2000\nbindAddress: x").len(),
        3
    );
}

#[test]
fn cfg_7_defaults_follow_the_bind_address() {
    let raw = KubeProxyConfiguration {
        bind_address: Some("2001:db8::1".to_owned()),
        ..KubeProxyConfiguration::default()
    };
    let config = resolve(&raw, &extra()).unwrap().config;
    assert_eq!(config.healthz_address, "[::]:10256".parse().ok());
    assert_eq!(config.metrics_address, "[::1]:10249".parse().ok());
    assert_eq!(config.node_ip_override, "2001:db8::1".parse().ok());
}

#[test]
fn cfg_5_a_missing_port_is_filled_in() {
    for (text, expected) in [
        ("127.0.0.1", Some("127.0.0.1:1")),
        ("127.0.0.1:2", Some("127.0.0.1:2")),
        ("::1", Some("[::1]:1")),
        ("[::1]", Some("[::1]:1")),
        ("[::1]:2", Some("[::1]:2")),
        ("localhost:2", None),
        (":2", None),
    ] {
        let expected = expected.map(|address| address.parse().unwrap());
        assert_eq!(parse_listen_address(text, 1), expected, "{text}");
    }
}

#[test]
fn cfg_8_only_the_section_of_the_mode_counts() {
    let (mut raw, _) = raw::parse(
        "test",
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n\
         iptables: {masqueradeAll: true, masqueradeBit: 1, syncPeriod: 7s}\n\
         nftables: {syncPeriod: 8s}",
    )
    .unwrap();
    for (mode, masquerade_all, bit, period) in [
        ("", false, 14, 8),
        ("nftables", false, 14, 8),
        ("iptables", true, 1, 7),
    ] {
        raw.mode = Some(mode.to_owned());
        let config = resolve(&raw, &extra()).unwrap().config;
        assert_eq!(config.policy.masquerade_all, masquerade_all, "{mode}");
        assert_eq!(config.policy.netfilter.masquerade_bit.bit(), bit, "{mode}");
        assert_eq!(config.periods.sync, Duration::from_secs(period), "{mode}");
    }
}

#[test]
fn cfg_8_faults_name_the_section_of_the_mode() {
    for (section, other) in [("iptables", "nftables"), ("nftables", "iptables")] {
        for (fields, expected) in [
            ("{masqueradeBit: 32}", "masqueradeBit: "),
            ("{syncPeriod: -1s}", "syncPeriod: "),
            ("{minSyncPeriod: -1s}", "minSyncPeriod: "),
            ("{syncPeriod: 1s, minSyncPeriod: 2s}", "minSyncPeriod: "),
        ] {
            let told = faults(&format!("mode: {section}\n{section}: {fields}"));
            let [told] = &told[..] else {
                panic!("{told:?}")
            };
            assert!(told.starts_with(&format!("{section}.{expected}")), "{told}");
            assert!(faults(&format!("mode: {section}\n{other}: {fields}")).is_empty());
        }
    }
}

#[test]
fn cfg_5_the_iptables_backend_is_one_of_two_or_found_out() {
    let resolved = |mode: &str, backend: Option<&str>| {
        let raw = KubeProxyConfiguration {
            mode: Some(mode.to_owned()),
            cluster_cidr: Some("10.0.0.0/8".to_owned()),
            ..KubeProxyConfiguration::default()
        };
        let iptables_backend = backend.map(str::to_owned);
        let extra = ExtraSettings {
            iptables_backend,
            ..extra()
        };
        resolve(&raw, &extra).map(|resolved| (resolved.config.datapath, resolved.warnings.len()))
    };
    let kind = |name| DatapathKind::named(name).unwrap();
    let detected = DatapathChoice::Detect(kind("iptables-nft"));
    let legacy = DatapathChoice::Fixed(kind("iptables-legacy"));
    for (text, expected) in [
        (None, detected),
        (Some("auto"), detected),
        (Some("nft"), DatapathChoice::Fixed(kind("iptables-nft"))),
        (Some("legacy"), legacy),
    ] {
        assert_eq!(resolved("iptables", text), Ok((expected, 0)));
    }
    assert!(detected.may_need(|needs| needs.loads_modules));
    let nftables = DatapathChoice::Fixed(kind("nftables"));
    assert_eq!(resolved("", Some("legacy")), Ok((nftables, 1)));
    let told = resolved("iptables", Some("xtables")).unwrap_err();
    assert_eq!(told[0].field, "--iptables-backend");
}

#[test]
fn np_5_local_host_node_ports_are_said_once_to_have_no_effect() {
    for mode in ["nftables", "iptables"] {
        let (raw, _) = raw::parse(
            "test",
            &format!("{KUBEADM}\n")
                .replace("localhostNodePorts: null", "localhostNodePorts: true")
                .replace("mode: \"\"", &format!("mode: {mode}")),
        )
        .unwrap();
        let warnings = resolve(&raw, &extra()).unwrap().warnings;
        let [warning] = &warnings[..] else {
            panic!("{warnings:?}")
        };
        assert!(warning.contains("iptables.localhostNodePorts"), "{warning}");
    }
}

#[test]
fn sync_2_zero_in_a_file_is_the_default() {
    let (raw, _) = raw::parse("test", KUBEADM).unwrap();
    assert_eq!(raw.nftables.unwrap().min_sync_period, None);
}

#[test]
fn ext_4_the_gate_is_heard() {
    let raw = KubeProxyConfiguration {
        feature_gates: Some([("AllowServiceExternalIPs".to_owned(), Some(false))].into()),
        ..KubeProxyConfiguration::default()
    };
    assert!(
        !resolve(&raw, &extra())
            .unwrap()
            .config
            .policy
            .allow_external_ips
    );
}

#[test]
fn cfg_5_np_2_networks_and_words_mix_in_node_port_addresses() {
    const V4: &str = "10.0.0.0/8";
    const LOOPBACK: &[&str] = &["127.0.0.0/8", "::1/128"];
    const ALL: &[&str] = &["0.0.0.0/0", "::/0"];
    // The list, whether it has the node IPs, its networks, whether silence opens, whether it warns.
    for (list, primary, networks, silence_is_all, warns) in [
        (&[][..], true, vec![], false, false),
        (&["primary"], true, vec![], false, false),
        (&[" primary ", "primary"], true, vec![], false, false),
        (&["all"], false, vec![ALL], false, false),
        (&["localhost"], false, vec![LOOPBACK], false, true),
        (&["primary", "localhost"], true, vec![LOOPBACK], false, true),
        (
            &["primary", "localhost", "all"],
            true,
            vec![LOOPBACK, ALL],
            false,
            true,
        ),
        (&[V4, "primary"], true, vec![&[V4][..]], false, false),
        (
            &["localhost", V4],
            false,
            vec![LOOPBACK, &[V4]],
            false,
            true,
        ),
        (&[V4], false, vec![&[V4]], true, false),
        (
            &["127.0.0.1/32"],
            false,
            vec![&["127.0.0.1/32"]],
            true,
            true,
        ),
        (&["0.0.0.0/0"], false, vec![&["0.0.0.0/0"]], true, false),
    ] {
        let yaml = KubeProxyConfiguration {
            node_port_addresses: Some(list.iter().map(|&text| text.to_owned()).collect()),
            ..KubeProxyConfiguration::default()
        };
        let flag = format!("--nodeport-addresses={}", list.join(","));
        let flags = (!list.is_empty()).then_some(flag);
        let words = ["proxy-daemon".to_owned()].into_iter().chain(flags);
        let cli = crate::cli::Cli::read(words.map(Into::into)).unwrap();
        let cli = cli.as_configuration().unwrap();
        for raw in [yaml, cli] {
            let Resolved { config, warnings } = resolve(&raw, &extra()).unwrap();
            let expected = NodePortAddresses {
                primary,
                networks: networks
                    .concat()
                    .iter()
                    .map(|n| n.parse().unwrap())
                    .collect(),
                silence_is_all,
            };
            assert_eq!(config.policy.node_port_addresses, expected, "{list:?}");
            let n_warnings = warnings.iter().filter(|w| w.contains("localhost")).count();
            assert_eq!(n_warnings, usize::from(warns), "{list:?}: {warnings:?}");
        }
    }
}

#[test]
fn cfg_5_known_feature_gates_are_accepted_silently_and_others_named() {
    for (gate, is_named) in [
        ("AllowServiceExternalIPs", false),
        ("KubeProxyNFTablesLocalhostNodePorts", false),
        ("NFTablesNetlink", false),
        ("KubeProxyIPVS", false),
        ("SomethingElse", true),
    ] {
        for value in [true, false] {
            let raw = KubeProxyConfiguration {
                feature_gates: Some([(gate.to_owned(), Some(value))].into()),
                ..KubeProxyConfiguration::default()
            };
            let Resolved { warnings, .. } = resolve(&raw, &extra()).unwrap();
            let named = warnings.iter().any(|warning| warning.contains(gate));
            assert_eq!(named, is_named, "{gate}: {warnings:?}");
        }
    }
}

#[test]
fn ct_7_invalid_is_dropped_where_conntrack_is_needed_and_strict() {
    for (mode, is_liberal, asks_for_it, expected) in [
        ("nftables", false, false, true),
        ("iptables", false, false, true),
        ("nftables", true, false, false),
        ("nftables", false, true, false),
        ("skeleton", false, false, false),
    ] {
        let text = format!("{KUBEADM}\n").replace("mode: \"\"", &format!("mode: {mode}"));
        let (mut raw, _) = raw::parse("test", &text).unwrap();
        raw.conntrack.get_or_insert_default().tcp_be_liberal = Some(asks_for_it);
        let extra = ExtraSettings {
            tcp_is_liberal: is_liberal,
            ..extra()
        };
        let config = resolve(&raw, &extra).unwrap().config;
        assert_eq!(config.policy.netfilter.drop_invalid, expected, "{mode}");
    }
}

#[test]
fn cfg_2_null_is_what_is_not_written() {
    let fields = [
        "mode",
        "bindAddress",
        "featureGates",
        "oomScoreAdj",
        "conntrack",
        "configSyncPeriod",
        "nodePortAddresses",
        "enableProfiling",
    ];
    for null in ["null", "Null", "NULL", "~", ""] {
        let all: String = fields.map(|field| format!("{field}: {null}\n")).concat();
        let text = format!("{all}nftables: {{syncPeriod: {null}, masqueradeBit: {null}}}");
        assert_eq!(faults(&text), Vec::<String>::new(), "{text}");
        // But Go reads that as `false`.
        let text = format!("{KUBEADM}featureGates: {{AllowServiceExternalIPs: {null}}}");
        let (raw, _) = raw::parse("test", &text).unwrap();
        let config = resolve(&raw, &extra()).unwrap().config;
        assert!(!config.policy.allow_external_ips);
    }
}
