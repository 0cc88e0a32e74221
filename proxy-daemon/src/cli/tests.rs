//! Do flags mean what kube-proxy's flags mean?

use super::*;
use crate::config::{ExtraSettings, Periods, Source, resolve};

fn read(args: &[&str]) -> Cli {
    let args = std::iter::once("proxy-daemon").chain(args.iter().copied());
    Cli::read(args.map(OsString::from)).unwrap()
}

fn extra() -> ExtraSettings {
    ExtraSettings {
        os_hostname: "node-1".to_owned(),
        ..ExtraSettings::default()
    }
}

#[test]
fn the_command_is_well_formed() {
    Cli::command().debug_assert();
}

#[test]
fn cfg_4_underscores_are_dashes_in_names_only() {
    let cli = read(&["--cluster_cidr", "10.0.0.0/8", "--hostname_override=a_b"]);
    assert_eq!(cli.flags.cluster_cidr.as_deref(), Some("10.0.0.0/8"));
    assert_eq!(cli.flags.hostname_override.as_deref(), Some("a_b"));
}

#[test]
fn cfg_8_flags_set_every_mode_but_the_bit() {
    for mode in DatapathKind::modes() {
        let bit = if mode == "iptables" { 3 } else { 14 };
        flags_set_periods_and_masquerade_all(mode, bit);
    }
}

fn flags_set_periods_and_masquerade_all(mode: &str, bit: u8) {
    let mode = format!("--mode={mode}");
    let cli = read(&[
        &mode,
        "--masquerade-all",
        "--iptables-sync-period=1m0s",
        "--iptables-min-sync-period",
        "0",
        "--iptables-masquerade-bit=3",
    ]);
    let resolved = resolve(&cli.as_configuration().unwrap(), &extra()).unwrap();
    assert!(resolved.config.policy.masquerade_all);
    assert_eq!(resolved.config.policy.netfilter.masquerade_bit.bit(), bit);
    assert_eq!(
        resolved.config.periods,
        Periods {
            min_sync: std::time::Duration::ZERO,
            sync: std::time::Duration::from_secs(60),
        }
    );
}

#[test]
fn booleans_are_go_booleans_and_the_last_value_wins() {
    let cli = read(&[
        "--masquerade-all=true",
        "--masquerade-all=F",
        "--mode=a",
        "--proxy-mode",
        "b",
    ]);
    assert_eq!(cli.flags.masquerade_all, Some(false));
    assert_eq!(cli.flags.mode.as_deref(), Some("b"));
    assert_eq!(read(&["-v=4"]).verbosity, Some(4));
    assert_eq!(read(&["--v", "2"]).verbosity, Some(2));
    assert_eq!(
        read(&["--oom-score-adj", "-5"]).flags.oom_score_adj,
        Some(-5)
    );
}

#[test]
fn lists_are_split_and_joined() {
    let cli = read(&[
        "--nodeport-addresses=192.0.2.0/24,2001:db8::/32",
        "--nodeport-addresses=198.51.100.0/24",
    ]);
    assert_eq!(cli.flags.nodeport_addresses.unwrap().len(), 3);
}

#[test]
fn life_14_positional_arguments_and_unknown_flags_are_refused() {
    for args in [
        &["something"][..],
        &["--no-such-flag"],
        &["--cleanup", "extra"],
    ] {
        let args = std::iter::once("proxy-daemon").chain(args.iter().copied());
        let error = Cli::read(args.map(OsString::from)).unwrap_err();
        assert_eq!(error.exit_code(), 2);
    }
}

#[test]
fn cfg_1_a_file_overrules_flags_and_they_are_named() {
    let cli = read(&[
        "--config=x",
        "--cluster-cidr=10.0.0.0/8",
        "--hostname-override=h",
        "--iptables-backend=legacy",
        "-v=5",
    ]);
    assert_eq!(cli.overruled_by_file(), ["cluster-cidr"]);
    let config = cli.over(KubeProxyConfiguration::default());
    assert_eq!(config.hostname_override.as_deref(), Some("h"));
    assert_eq!(config.logging.unwrap().verbosity, Some(5));
    assert_eq!(config.cluster_cidr, None);
}

#[test]
fn met_7_an_empty_address_flag_disables() {
    let cli = read(&["--metrics-bind-address=", "--healthz-port=0"]);
    let mut extra = extra();
    extra.healthz_port = cli.flags.healthz_port;
    let config = resolve(&cli.as_configuration().unwrap(), &extra)
        .unwrap()
        .config;
    assert_eq!(config.metrics_address, None);
    assert_eq!(config.healthz_address, None);
}

#[test]
fn manifests_need_no_api_server() {
    let cli = read(&["--manifests", "/m"]);
    let extra = ExtraSettings {
        manifests: cli.flags.manifests.clone(),
        ..extra()
    };
    let config = resolve(&cli.as_configuration().unwrap(), &extra)
        .unwrap()
        .config;
    assert_eq!(config.source, Source::Manifests("/m".into()));
}

#[test]
fn every_flag_of_kube_proxy_is_accepted() {
    for flag in [
        "--ipvs-strict-arp",
        "--ipvs-scheduler=rr",
        "--log-flush-frequency=5s",
        "--boot-id-file=/x",
        "--feature-gates=AllowServiceExternalIPs=false,Other=true",
        "--kube-api-qps=5",
        "--conntrack-tcp-be-liberal",
        "--profiling=false",
    ] {
        read(&[flag]);
    }
}

#[test]
fn xm_15_dump_and_explain_are_questions() {
    let cli = read(&["--manifests=/m", "dump", "-o", "json"]);
    assert_eq!(cli.command.unwrap().query().unwrap(), "output=json");
    let cli = read(&[
        "explain",
        "--from=10.0.0.1",
        "--to",
        "10.96.0.10",
        "--port=53",
        "--proto=udp",
    ]);
    assert_eq!(
        cli.command.unwrap().query().unwrap(),
        "from=10.0.0.1&to=10.96.0.10&proto=udp&port=53"
    );
}

#[test]
fn a_flag_without_effect_takes_no_other_flag_for_its_value() {
    let cli = read(&["--ipvs-strict-arp", "--cleanup", "--vmodule", "a=1"]);
    assert_eq!(cli.flags.cleanup, Some(true));
}
