//! Which objects does the server hold, and what happened to them?
//!
//! Invariants: versions grow by one with each change of anything, as in etcd; an object is rendered once,
//! when it is put; an object that begins or ceases to match a selector is sent as ADDED or DELETED.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Bytes;
use proxy_daemon::watch::ObjectKind;
use serde_json::{Value, json};

use super::selector::Selector;

/// An object as it is sent.
#[derive(Debug)]
pub(super) struct Object {
    pub(super) labels: BTreeMap<String, String>,
    pub(super) fields: BTreeMap<String, String>,
    pub(super) json: Bytes,
    /// As it was put, to see whether it is put again.
    source: Value,
}

#[derive(Debug)]
struct Change {
    version: u64,
    old: Option<Arc<Object>>,
    new: Option<Arc<Object>>,
    /// What a deleted object looked like, with the version of its deletion.
    tombstone: Option<Bytes>,
}

#[derive(Debug, Default)]
struct Collection {
    objects: BTreeMap<String, Arc<Object>>,
    log: Vec<Change>,
    /// Watches from before this version get 410 Gone.
    compacted: u64,
}

/// Everything the server holds.
#[derive(Debug)]
pub(super) struct Cluster {
    version: u64,
    collections: BTreeMap<ObjectKind, Collection>,
}

/// What a client asked to see.
#[derive(Clone, Debug, Default)]
pub(super) struct View {
    pub(super) namespace: Option<String>,
    pub(super) labels: Selector,
    pub(super) fields: Selector,
}

impl View {
    fn sees(&self, object: &Object) -> bool {
        let in_namespace =
            |namespace: &String| object.fields.get("metadata.namespace") == Some(namespace);
        self.namespace.as_ref().is_none_or(in_namespace)
            && self.labels.selects(&object.labels)
            && self.fields.selects(&object.fields)
    }
}

/// A kind's `apiVersion`, and its name in paths.
pub(super) fn group_of(kind: ObjectKind) -> (&'static str, &'static str) {
    match kind {
        ObjectKind::Service => ("v1", "services"),
        ObjectKind::EndpointSlice => ("discovery.k8s.io/v1", "endpointslices"),
        ObjectKind::Node => ("v1", "nodes"),
        ObjectKind::ServiceCidr => ("networking.k8s.io/v1", "servicecidrs"),
    }
}

impl Cluster {
    pub(super) fn new() -> Self {
        let collections = ObjectKind::ALL.map(|kind| (kind, Collection::default()));
        Self {
            version: 1000,
            collections: collections.into(),
        }
    }

    pub(super) fn version(&self) -> u64 {
        self.version
    }

    fn collection(&self, kind: ObjectKind) -> &Collection {
        &self.collections[&kind]
    }

    fn collection_mut(&mut self, kind: ObjectKind) -> &mut Collection {
        self.collections.get_mut(&kind).expect("every kind has one")
    }

    /// Puts an object; one that is there already in the same form is left alone.
    pub(super) fn put(&mut self, kind: ObjectKind, source: Value) {
        let key = key_of(kind, &source);
        let old = self.collection(kind).objects.get(&key).cloned();
        if old.as_ref().is_some_and(|old| old.source == source) {
            return;
        }
        self.version += 1;
        let version = self.version;
        let new = Arc::new(render(kind, source, version));
        let collection = self.collection_mut(kind);
        collection.objects.insert(key, Arc::clone(&new));
        collection.log.push(Change {
            version,
            old,
            new: Some(new),
            tombstone: None,
        });
    }

    /// Deletes an object; whether it was there.
    pub(super) fn delete(&mut self, kind: ObjectKind, key: &str) -> bool {
        let Some(old) = self.collection_mut(kind).objects.remove(key) else {
            return false;
        };
        self.version += 1;
        let version = self.version;
        let tombstone = render(kind, old.source.clone(), version).json;
        self.collection_mut(kind).log.push(Change {
            version,
            old: Some(old),
            new: None,
            tombstone: Some(tombstone),
        });
        true
    }

    /// Forgets the history, so that older watches cannot continue.
    pub(super) fn compact(&mut self) {
        // A watch from the version before this one would need the forgotten history.
        self.version += 1;
        let version = self.version;
        for collection in self.collections.values_mut() {
            collection.log.clear();
            collection.compacted = version;
        }
    }

    /// Goes back to a version, as after a restore from a backup: what happened since is forgotten, but
    /// objects stay as they are. The next changes get versions from there on.
    pub(super) fn rewind(&mut self, version: u64) {
        self.version = version;
        for collection in self.collections.values_mut() {
            collection.log.clear();
            collection.compacted = 0;
        }
    }

    pub(super) fn keys(&self, kind: ObjectKind) -> Vec<String> {
        self.collection(kind).objects.keys().cloned().collect()
    }

    pub(super) fn get(&self, kind: ObjectKind, key: &str) -> Option<Bytes> {
        let object = self.collection(kind).objects.get(key)?;
        Some(object.json.clone())
    }

    pub(super) fn source(&self, kind: ObjectKind, key: &str) -> Option<Value> {
        Some(self.collection(kind).objects.get(key)?.source.clone())
    }

    /// At most `limit` objects after a key, and the last key if there are more.
    pub(super) fn list(
        &self,
        kind: ObjectKind,
        view: &View,
        after: Option<&str>,
        limit: usize,
    ) -> (Vec<Bytes>, Option<String>) {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = after.map_or(Unbounded, Excluded);
        let mut seen = self
            .collection(kind)
            .objects
            .range::<str, _>((from, Unbounded))
            .filter(|(_, object)| view.sees(object));
        let mut last = None;
        let mut page = Vec::new();
        for (key, object) in seen.by_ref().take(limit) {
            page.push(object.json.clone());
            last = Some(key.clone());
        }
        let more = seen.next().is_some();
        (page, last.filter(|_| more))
    }

    /// The events after version `after`, as lines; `None` if that history was forgotten.
    pub(super) fn since(&self, kind: ObjectKind, view: &View, after: u64) -> Option<Vec<Bytes>> {
        let collection = self.collection(kind);
        if after < collection.compacted {
            return None;
        }
        let begin = collection
            .log
            .partition_point(|change| change.version <= after);
        let lines = collection.log[begin..].iter().filter_map(|change| {
            let old = change.old.as_ref().is_some_and(|old| view.sees(old));
            let new = change.new.as_ref().filter(|new| view.sees(new));
            match (old, new) {
                (false, Some(new)) => Some(line("ADDED", &new.json)),
                (true, Some(new)) => Some(line("MODIFIED", &new.json)),
                // An object that leaves the view is deleted in it, in its last form.
                (true, None) => {
                    let left = change.new.as_ref().map(|new| &new.json);
                    Some(line("DELETED", change.tombstone.as_ref().or(left)?))
                }
                (false, None) => None,
            }
        });
        Some(lines.collect())
    }
}

/// One line of a watch.
pub(super) fn line(event: &str, object: &[u8]) -> Bytes {
    let mut line = Vec::with_capacity(object.len() + 40);
    line.extend_from_slice(b"{\"type\":\"");
    line.extend_from_slice(event.as_bytes());
    line.extend_from_slice(b"\",\"object\":");
    line.extend_from_slice(object);
    line.extend_from_slice(b"}\n");
    line.into()
}

/// `namespace/name`, or the name of a cluster-scoped object.
pub(super) fn key_of(kind: ObjectKind, object: &Value) -> String {
    let metadata = &object["metadata"];
    let name = metadata["name"].as_str().unwrap_or_default();
    match kind {
        ObjectKind::Service | ObjectKind::EndpointSlice => {
            let namespace = metadata["namespace"].as_str().unwrap_or("default");
            format!("{namespace}/{name}")
        }
        ObjectKind::Node | ObjectKind::ServiceCidr => name.to_owned(),
    }
}

fn render(kind: ObjectKind, source: Value, version: u64) -> Object {
    let (api_version, _) = group_of(kind);
    let mut object = source.clone();
    object["apiVersion"] = json!(api_version);
    object["kind"] = json!(kind.name());
    if !object["metadata"].is_object() {
        object["metadata"] = json!({});
    }
    let is_namespaced = matches!(kind, ObjectKind::Service | ObjectKind::EndpointSlice);
    if is_namespaced && object["metadata"]["namespace"].is_null() {
        object["metadata"]["namespace"] = json!("default");
    }
    object["metadata"]["resourceVersion"] = json!(version.to_string());
    default(kind, &mut object);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let labels = object["metadata"]["labels"].as_object();
    let labels = labels
        .into_iter()
        .flatten()
        .map(|(k, v)| (k.clone(), text(v)));
    let labels = labels.collect();
    let fields = [
        ("metadata.name", text(&object["metadata"]["name"])),
        ("metadata.namespace", text(&object["metadata"]["namespace"])),
        ("spec.clusterIP", text(&object["spec"]["clusterIP"])),
    ];
    Object {
        labels,
        fields: fields.map(|(k, v)| (k.to_owned(), v)).into(),
        json: Bytes::from(object.to_string()),
        source,
    }
}

/// The API server's defaults for missing fields, as far as a service proxy reads them.
fn default(kind: ObjectKind, object: &mut Value) {
    let ports = match kind {
        ObjectKind::Service => &mut object["spec"]["ports"],
        ObjectKind::EndpointSlice => &mut object["ports"],
        ObjectKind::Node | ObjectKind::ServiceCidr => return,
    };
    for port in ports.as_array_mut().into_iter().flatten() {
        if !port.is_object() {
            continue;
        }
        if port["protocol"].is_null() {
            port["protocol"] = json!("TCP");
        }
        if kind == ObjectKind::EndpointSlice && port["name"].is_null() {
            port["name"] = json!("");
        }
    }
}
