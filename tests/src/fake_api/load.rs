//! Where do the objects of a fake cluster come from?

use std::path::Path;

use anyhow::{Context, Result};
use proxy_daemon::watch::ObjectKind;
use serde_json::Value;

/// The kind of an object, if it is one of ours.
pub(super) fn kind_of(object: &Value) -> Option<ObjectKind> {
    let kind = object["kind"].as_str()?;
    match object["apiVersion"].as_str() {
        Some(version) => ObjectKind::of(version, kind),
        None => ObjectKind::ALL
            .into_iter()
            .find(|known| known.name() == kind),
    }
}

/// The objects in the manifests of a directory; lists are taken apart.
///
/// # Errors
/// When a file cannot be read or is no YAML.
pub fn read_directory(path: &Path) -> Result<Vec<Value>> {
    let mut objects = Vec::new();
    let entries = std::fs::read_dir(path).with_context(|| format!("{}", path.display()))?;
    let mut paths: Vec<_> = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    paths.sort();
    for path in paths {
        let extension = path.extension().unwrap_or_default();
        if !["yaml", "yml", "json"]
            .iter()
            .any(|known| extension == *known)
        {
            continue;
        }
        let text = std::fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
        let documents: Vec<Value> = if let Ok(object) = serde_json::from_str(&text) {
            vec![object]
        } else {
            let options = serde_saphyr::options! {
                budget: serde_saphyr::budget! {
                    max_events: usize::MAX,
                    max_nodes: usize::MAX,
                    max_documents: usize::MAX,
                    max_total_scalar_bytes: usize::MAX,
                },
                strict_booleans: true,
            };
            serde_saphyr::from_multiple_with_options(&text, options)
                .with_context(|| format!("{}", path.display()))?
        };
        for document in documents {
            match document["items"].as_array() {
                Some(items) => objects.extend(items.iter().cloned()),
                None if document.is_object() => objects.push(document),
                None => {}
            }
        }
    }
    Ok(objects)
}
