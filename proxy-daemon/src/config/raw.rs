//! What does a `KubeProxyConfiguration` say, as it is written?
//!
//! Flags are put into the same form, so that [`super::resolve()`] sees one thing. Invariants: nothing is
//! decided or checked here beyond types; every field of v1alpha1 is known by name, so that what is
//! left in `unknown` is a mistake of whoever wrote the file. Spec: CFG-2.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::GoDuration;

/// Fields that v1alpha1 does not have, by name.
pub type Unknown = BTreeMap<String, serde_json::Value>;

/// A `KubeProxyConfiguration`; `None` where nothing is written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(
    missing_docs,
    reason = "the names are those of kube-proxy's v1alpha1 API, which documents them"
)]
pub struct KubeProxyConfiguration {
    pub api_version: Option<String>,
    pub kind: Option<String>,
    // Compat: Go reads `null` as `false` here, and only here.
    pub feature_gates: Option<BTreeMap<String, Option<bool>>>,
    pub client_connection: Option<ClientConnection>,
    pub logging: Option<Logging>,
    pub hostname_override: Option<String>,
    pub bind_address: Option<String>,
    pub healthz_bind_address: Option<String>,
    pub metrics_bind_address: Option<String>,
    pub bind_address_hard_fail: Option<bool>,
    pub enable_profiling: Option<bool>,
    pub show_hidden_metrics_for_version: Option<String>,
    pub mode: Option<String>,
    pub iptables: Option<ModeSection>,
    pub nftables: Option<ModeSection>,
    pub ebpf: Option<ModeSection>,
    /// What flags say for every mode that has no section here.
    #[serde(skip)]
    pub any_mode: Option<ModeSection>,
    pub ipvs: Option<serde_json::Value>,
    pub winkernel: Option<serde_json::Value>,
    pub windows_run_as_service: Option<bool>,
    pub detect_local_mode: Option<String>,
    pub detect_local: Option<DetectLocalSection>,
    #[serde(rename = "clusterCIDR")]
    pub cluster_cidr: Option<String>,
    pub node_port_addresses: Option<Vec<String>>,
    pub oom_score_adj: Option<i32>,
    pub conntrack: Option<Conntrack>,
    pub config_sync_period: Option<GoDuration>,
    pub port_range: Option<String>,
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// How to reach the API server.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(
    missing_docs,
    reason = "the names are those of kube-proxy's v1alpha1 API, which documents them"
)]
pub struct ClientConnection {
    pub kubeconfig: Option<String>,
    pub accept_content_types: Option<String>,
    pub content_type: Option<String>,
    pub qps: Option<f32>,
    pub burst: Option<i32>,
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// What one mode reads.
///
/// Spec: CFG-8.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(
    missing_docs,
    reason = "the names are those of kube-proxy's v1alpha1 API, which documents them"
)]
pub struct ModeSection {
    pub masquerade_bit: Option<i32>,
    pub masquerade_all: Option<bool>,
    pub localhost_node_ports: Option<bool>,
    pub sync_period: Option<GoDuration>,
    pub min_sync_period: Option<GoDuration>,
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// What the interface modes of detect-local read.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(
    missing_docs,
    reason = "the names are those of kube-proxy's v1alpha1 API, which documents them"
)]
pub struct DetectLocalSection {
    pub bridge_interface: Option<String>,
    pub interface_name_prefix: Option<String>,
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// The conntrack sysctls.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(
    missing_docs,
    reason = "the names are those of kube-proxy's v1alpha1 API, which documents them"
)]
pub struct Conntrack {
    pub max_per_core: Option<i32>,
    pub min: Option<i32>,
    pub tcp_established_timeout: Option<GoDuration>,
    pub tcp_close_wait_timeout: Option<GoDuration>,
    pub tcp_be_liberal: Option<bool>,
    pub udp_timeout: Option<GoDuration>,
    pub udp_stream_timeout: Option<GoDuration>,
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// How logs are written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(
    missing_docs,
    reason = "the names are those of component-base's API, which documents them"
)]
pub struct Logging {
    pub format: Option<String>,
    pub verbosity: Option<u32>,
    pub flush_frequency: Option<serde_json::Value>,
    pub options: Option<serde_json::Value>,
    pub vmodule: Option<serde_json::Value>,
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// A configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("cannot read the configuration file {path}")]
    Read {
        /// Which file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is no YAML, or a field has the wrong type.
    #[error("{path} is not a KubeProxyConfiguration")]
    Parse {
        /// Which file.
        path: String,
        /// The fault and its position.
        #[source]
        source: Box<serde_saphyr::Error>,
    },
    /// It is of another kind.
    #[error("{path}: {field} is {found:?}, expected {expected:?}")]
    Kind {
        /// Which file.
        path: String,
        /// `kind` or `apiVersion`.
        field: &'static str,
        /// Its value.
        found: String,
        /// What it should say.
        expected: &'static str,
    },
}

/// Reads the text of a configuration file; a warning if a field is written twice, in which case the last one holds.
///
/// # Errors
/// [`FileError`] if the text is no YAML or JSON, has a field of the wrong type, or is of another kind.
pub fn parse(name: &str, text: &str) -> Result<(KubeProxyConfiguration, Vec<String>), FileError> {
    let mut warnings = Vec::new();
    let mut config: KubeProxyConfiguration = match serde_saphyr::from_str(text) {
        Ok(config) => config,
        Err(strict) => {
            let Some(config) = parse_duplicates(text) else {
                return Err(FileError::Parse {
                    path: name.to_owned(),
                    source: Box::new(strict),
                });
            };
            warnings.push(format!("{name}: {strict}; the last value is used"));
            config
        }
    };
    let expect = |field, found: Option<&String>, expected: &'static str| match found {
        Some(found) if found == expected => Ok(()),
        other => Err(FileError::Kind {
            path: name.to_owned(),
            field,
            found: other.cloned().unwrap_or_default(),
            expected,
        }),
    };
    expect("kind", config.kind.as_ref(), "KubeProxyConfiguration")?;
    expect(
        "apiVersion",
        config.api_version.as_ref(),
        "kubeproxy.config.k8s.io/v1alpha1",
    )?;
    warnings.extend(
        config
            .unknown_fields()
            .into_iter()
            .map(|field| format!("{name}: unknown field {field:?} is ignored")),
    );
    // Compat: in a file, zero is what kubeadm writes for "unset" (SYNC-2).
    let sections = [&mut config.iptables, &mut config.nftables, &mut config.ebpf];
    for section in sections.into_iter().flatten() {
        section.min_sync_period = section.min_sync_period.filter(|period| !period.is_zero());
    }
    Ok((config, warnings))
}

/// The same, the last one of duplicate fields holding; `None` if that was not what was wrong.
fn parse_duplicates(text: &str) -> Option<KubeProxyConfiguration> {
    let lenient = serde_saphyr::options! {
        duplicate_keys: serde_saphyr::options::DuplicateKeyPolicy::LastWins,
    };
    let value: serde_json::Value = serde_saphyr::from_str_with_options(text, lenient).ok()?;
    serde_json::from_value(value).ok()
}

impl KubeProxyConfiguration {
    /// What this mode reads. Spec: CFG-8.
    pub fn section(&self, mode: &str) -> ModeSection {
        let mut sections = self.sections().into_iter();
        let section = sections.find(|(name, _)| *name == mode);
        let section = section.and_then(|(_, section)| section);
        section
            .or(self.any_mode.as_ref())
            .cloned()
            .unwrap_or_default()
    }

    const fn sections(&self) -> [(&'static str, Option<&ModeSection>); 3] {
        [
            ("iptables", self.iptables.as_ref()),
            ("nftables", self.nftables.as_ref()),
            ("ebpf", self.ebpf.as_ref()),
        ]
    }

    /// The paths of fields that v1alpha1 does not have.
    pub fn unknown_fields(&self) -> Vec<String> {
        let of_modes = self
            .sections()
            .map(|(name, section)| (name, section.map(|s| &s.unknown)));
        let sections: [(&str, Option<&Unknown>); 5] = [
            ("", Some(&self.unknown)),
            (
                "clientConnection",
                self.client_connection.as_ref().map(|s| &s.unknown),
            ),
            ("logging", self.logging.as_ref().map(|s| &s.unknown)),
            (
                "detectLocal",
                self.detect_local.as_ref().map(|s| &s.unknown),
            ),
            ("conntrack", self.conntrack.as_ref().map(|s| &s.unknown)),
        ];
        sections
            .into_iter()
            .chain(of_modes)
            .filter_map(|(section, unknown)| Some((section, unknown?)))
            .flat_map(|(section, unknown)| {
                let dot = if section.is_empty() { "" } else { "." };
                unknown
                    .keys()
                    .map(move |name| format!("{section}{dot}{name}"))
            })
            .collect()
    }
}
