//! How do the objects that were read get into the store?
//!
//! Invariants: the version moves only past what the store has taken in, and never backwards but by a
//! list; nothing is removed unless it was deleted or a complete list lacks it.

use std::collections::BTreeSet;
use std::sync::PoisonError;

use super::Reflector;
use crate::diagnostics::About;
use crate::model::Diagnostic;
use crate::model::from_k8s::wire::{Event, Object};
use crate::model::from_k8s::{Decoder, ObjectKey, ObjectKind, Update};
use crate::watch::Store;
use crate::watch::kubernetes::failure::Failure;
use crate::watch::kubernetes::version::is_older;

/// Objects that were read and are not in the store yet.
#[derive(Default)]
pub(super) struct Batch {
    changes: Vec<Update>,
    /// The names of a list as far as it was read; `None` outside lists.
    pub(super) seen: Option<BTreeSet<ObjectKey>>,
    /// The names under which diagnostics of unnamed objects are kept.
    unnamed: BTreeSet<String>,
    /// Whether the list in `seen` is complete.
    pub(super) is_complete: bool,
    pub(super) version: Option<String>,
    /// Whether our Node is among what was deleted.
    is_node_deleted: bool,
}

impl Batch {
    /// The beginning of a list.
    pub(super) fn list() -> Self {
        Self {
            seen: Some(BTreeSet::new()),
            ..Self::default()
        }
    }
}

impl<'a> Reflector<'a> {
    pub(super) fn decoder(&self) -> std::sync::MutexGuard<'a, Decoder> {
        let context = self.context;
        context
            .decoder
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in one line of a watch.
    pub(super) fn event(
        &self,
        decoder: &mut Decoder,
        line: &[u8],
        batch: &mut Batch,
    ) -> Result<(), Failure> {
        if line.iter().all(u8::is_ascii_whitespace) {
            return Ok(());
        }
        let event: Event<'_> =
            serde_json::from_slice(line).map_err(|error| Failure::Garbled(error.to_string()))?;
        let kind = event.kind.text();
        let Some(object) = event.object.value() else {
            return Err(Failure::Garbled(format!(
                "an event {kind:.20?} without object"
            )));
        };
        let metadata = object.metadata.value();
        let version = metadata.and_then(|m| m.resource_version.value());
        if kind != "ERROR"
            && let Some(version) = version
        {
            self.check_order(version, batch)?;
        }
        match kind {
            "ADDED" | "MODIFIED" => self.put(decoder, object, batch),
            "DELETED" => match decoder.key(self.resource.kind, object) {
                Ok(key) => {
                    if matches!(&key, ObjectKey::Node(name) if name.as_ref() == self.context.node) {
                        batch.is_node_deleted = true;
                    }
                    self.set_diagnostics(&key, Vec::new());
                    batch.changes.push(Update::removal(key));
                }
                Err(fault) => self.set_unnamed_diagnostics(fault.object, Vec::new(), batch),
            },
            "BOOKMARK" => {}
            "ERROR" => return Err(Failure::of_event(object)),
            other => return Err(Failure::Garbled(format!("an event {other:.20?}"))),
        }
        if let Some(version) = version {
            batch.version = Some((**version).to_owned());
        }
        let ends_list = kind == "BOOKMARK"
            && metadata
                .and_then(|m| m.annotations.value())
                .and_then(|annotations| annotations.initial_events_end.value())
                .is_some_and(|value| &**value == "true");
        if ends_list && batch.seen.is_some() {
            batch.is_complete = true;
        } else if kind == "BOOKMARK" && batch.seen.is_some() {
            return Err(Failure::PlainWatch);
        }
        Ok(())
    }

    /// Versions in a watch never go back, unless the server's state was replaced by an older one.
    ///
    /// Inside a list they are in no order.
    fn check_order(&self, version: &str, batch: &Batch) -> Result<(), Failure> {
        let known = batch.version.as_ref().or(self.version.as_ref());
        match known {
            Some(known) if batch.seen.is_none() && is_older(version, known) => {
                Err(Failure::Rewound {
                    known: known.clone(),
                    found: version.to_owned(),
                })
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Takes in an object.
    pub(super) fn put(&self, decoder: &mut Decoder, object: &Object<'_>, batch: &mut Batch) {
        let read = decoder.decode(self.resource.kind, object);
        let Some(update) = read.update else {
            for diagnostic in read.diagnostics {
                self.set_unnamed_diagnostics(diagnostic.object.clone(), vec![diagnostic], batch);
            }
            return;
        };
        let key = update.key();
        // The server was asked for our Node only; this is for servers that do not select.
        if let ObjectKey::Node(name) = &key
            && name.as_ref() != self.context.node
        {
            return;
        }
        self.set_diagnostics(&key, read.diagnostics);
        if let Some(seen) = &mut batch.seen {
            seen.insert(key);
        }
        batch.changes.push(update);
    }

    fn set_diagnostics(&self, key: &ObjectKey, diagnostics: Vec<Diagnostic>) {
        self.context
            .shared
            .diagnostics()
            .set_object(key, diagnostics);
    }

    fn set_unnamed_diagnostics(
        &self,
        object: String,
        diagnostics: Vec<Diagnostic>,
        batch: &mut Batch,
    ) {
        if !diagnostics.is_empty() && batch.seen.is_some() {
            batch.unnamed.insert(object.clone());
        }
        let about = About::Unnamed(self.resource.kind, object);
        self.context.shared.diagnostics().set(about, diagnostics);
    }

    pub(super) fn unreadable(&self, why: &str, batch: &mut Batch) {
        let object = format!("{} without a name", self.resource.kind);
        let diagnostic = Diagnostic {
            object: object.clone(),
            field: String::new(),
            message: format!("cannot be read and is ignored: {why}"),
        };
        self.set_unnamed_diagnostics(object, vec![diagnostic], batch);
    }

    /// Puts a batch in the store; a list that is complete also removes what it lacks.
    pub(super) fn flush(&mut self, batch: &mut Batch) {
        let kind = self.resource.kind;
        let ends_list = std::mem::take(&mut batch.is_complete);
        if std::mem::take(&mut batch.is_node_deleted) {
            self.reports.node_deleted();
        }
        if batch.changes.is_empty() && !ends_list {
            self.advance(batch);
            return;
        }
        let seen = ends_list.then(|| batch.seen.take().unwrap_or_default());
        let changes = std::mem::take(&mut batch.changes);
        let shared = self.context.shared;
        if let Some(seen) = &seen {
            let unnamed = std::mem::take(&mut batch.unnamed);
            shared.diagnostics().keep_listed(kind, seen, &unnamed);
        }
        let n_gone = shared.update(|store| {
            let gone = seen.map_or_else(Vec::new, |seen| names_without(store, kind, &seen));
            let n_gone = gone.len();
            for update in gone.into_iter().map(Update::removal).chain(changes) {
                store.put(update);
            }
            if ends_list {
                store.set_listed(kind);
            }
            n_gone
        });
        if ends_list {
            self.was_listed = true;
            tracing::debug!(kind = kind.name(), n_gone, "list is complete");
        }
        self.advance(batch);
    }

    /// The store has taken in everything up to here.
    fn advance(&mut self, batch: &mut Batch) {
        // Inside a list, versions of objects are older than that of the list.
        if batch.seen.is_some() {
            return;
        }
        if let Some(version) = batch.version.take() {
            if let Some(known) = self.newest.take_if(|known| is_older(&version, known)) {
                self.reports.rewound(&Failure::Rewound {
                    known,
                    found: version.clone(),
                });
            }
            self.newest = Some(version.clone());
            self.version = Some(version);
            self.is_doubtful = false;
            self.progress.is_watching = true;
            self.n_garbled = 0;
            self.n_broken_streams = 0;
            self.reports.success();
        }
    }
}

/// The names in the store that a complete list lacks. The Node stays (HZ-5).
fn names_without(store: &Store, kind: ObjectKind, seen: &BTreeSet<ObjectKey>) -> Vec<ObjectKey> {
    let names: Box<dyn Iterator<Item = ObjectKey>> = match kind {
        ObjectKind::Service => Box::new(store.service_names().cloned().map(ObjectKey::Service)),
        ObjectKind::EndpointSlice => {
            Box::new(store.slice_names().cloned().map(ObjectKey::EndpointSlice))
        }
        ObjectKind::Node => Box::new(std::iter::empty()),
        ObjectKind::ServiceCidr => Box::new(
            store
                .service_cidr_names()
                .cloned()
                .map(ObjectKey::ServiceCidr),
        ),
    };
    names.filter(|key| !seen.contains(key)).collect()
}
