//! What does a `KubeProxyConfiguration` say, as it is written?
//!
//! Flags are put into the same form, so that [`super::resolve()`] sees one thing. Invariants: nothing is
//! decided or checked here beyond types; every field of v1alpha1 is known by name, and any other one in a
//! file gives a warning. Spec: CFG-2.
#![expect(
    missing_docs,
    reason = "the fields' names are those of the APIs v1alpha1 and component-base, which document them"
)]

use std::collections::BTreeMap;
use std::io;

use serde::Deserialize;
use serde_saphyr::options::DuplicateKeyPolicy;

use super::GoDuration;

/// A `KubeProxyConfiguration`; `None` where nothing is written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct KubeProxyConfiguration {
    pub api_version: Option<String>,
    pub kind: Option<String>,
    /// Compat: Go reads `null` as `false` here, and only here.
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
}

/// How to reach the API server.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClientConnection {
    pub kubeconfig: Option<String>,
    pub accept_content_types: Option<String>,
    pub content_type: Option<String>,
    pub qps: Option<f32>,
    pub burst: Option<i32>,
}

/// What one mode reads.
///
/// Spec: CFG-8.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ModeSection {
    pub masquerade_bit: Option<i32>,
    pub masquerade_all: Option<bool>,
    pub localhost_node_ports: Option<bool>,
    pub sync_period: Option<GoDuration>,
    pub min_sync_period: Option<GoDuration>,
}

/// What the interface modes of detect-local read.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DetectLocalSection {
    pub bridge_interface: Option<String>,
    pub interface_name_prefix: Option<String>,
}

/// The conntrack sysctls.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Conntrack {
    pub max_per_core: Option<i32>,
    pub min: Option<i32>,
    pub tcp_established_timeout: Option<GoDuration>,
    pub tcp_close_wait_timeout: Option<GoDuration>,
    pub tcp_be_liberal: Option<bool>,
    pub udp_timeout: Option<GoDuration>,
    pub udp_stream_timeout: Option<GoDuration>,
}

/// How logs are written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Logging {
    pub format: Option<String>,
    pub verbosity: Option<u32>,
    pub flush_frequency: Option<serde_json::Value>,
    pub options: Option<serde_json::Value>,
    pub vmodule: Option<serde_json::Value>,
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
        source: io::Error,
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

/// Reads the text of a configuration file. A field that is unknown or written twice gives a warning; of two
/// values the last one holds.
///
/// # Errors
/// [`FileError`] if the text is no YAML or JSON, has a field of the wrong type, or is of another kind.
pub fn parse(name: &str, text: &str) -> Result<(KubeProxyConfiguration, Vec<String>), FileError> {
    let mut warnings = Vec::new();
    let (mut config, unknown) = match read(text, DuplicateKeyPolicy::Error) {
        Ok(read) => read,
        Err(strict) => {
            let Ok(read) = read(text, DuplicateKeyPolicy::LastWins) else {
                return Err(FileError::Parse {
                    path: name.to_owned(),
                    source: Box::new(strict),
                });
            };
            warnings.push(format!("{name}: {strict}; the last value is used"));
            read
        }
    };
    for (field, found, expected) in [
        ("kind", &config.kind, "KubeProxyConfiguration"),
        (
            "apiVersion",
            &config.api_version,
            "kubeproxy.config.k8s.io/v1alpha1",
        ),
    ] {
        if found.as_deref() != Some(expected) {
            return Err(FileError::Kind {
                path: name.to_owned(),
                field,
                found: found.clone().unwrap_or_default(),
                expected,
            });
        }
    }
    let unknown = unknown.iter();
    warnings.extend(unknown.map(|field| format!("{name}: unknown field {field:?} is ignored")));
    // Compat: in a file, zero is what kubeadm writes for "unset" (SYNC-2).
    let sections = [&mut config.iptables, &mut config.nftables, &mut config.ebpf];
    for section in sections.into_iter().flatten() {
        section.min_sync_period = section.min_sync_period.filter(|period| !period.is_zero());
    }
    Ok((config, warnings))
}

/// The configuration, and the paths of fields that v1alpha1 does not have.
fn read(
    text: &str,
    duplicate_keys: DuplicateKeyPolicy,
) -> Result<(KubeProxyConfiguration, Vec<String>), serde_saphyr::Error> {
    let options = serde_saphyr::options! { duplicate_keys: duplicate_keys };
    let mut unknown = Vec::new();
    // Each optional section that a path leads through is a `?` in it.
    let note = |path: serde_ignored::Path<'_>| unknown.push(path.to_string().replace("?.", ""));
    let config = serde_saphyr::with_deserializer_from_str_with_options(text, options, |yaml| {
        serde_ignored::deserialize(yaml, note)
    })?;
    Ok((config, unknown))
}

impl KubeProxyConfiguration {
    /// What this mode reads. Spec: CFG-8.
    pub fn section(&self, mode: &str) -> ModeSection {
        let section = match mode {
            "iptables" => self.iptables.as_ref(),
            "nftables" => self.nftables.as_ref(),
            "ebpf" => self.ebpf.as_ref(),
            _ => None,
        };
        let section = section.or(self.any_mode.as_ref());
        section.cloned().unwrap_or_default()
    }
}
