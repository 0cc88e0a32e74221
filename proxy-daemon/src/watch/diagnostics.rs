//! What is wrong with the objects as they are now, and who was told?
//!
//! Invariants: a diagnostic is logged once when it appears, and again only after it was gone; what is
//! kept is bounded, whatever the input.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use crate::model::Diagnostic;
use crate::model::from_k8s::ObjectKey;

/// How many objects with faults are kept.
const MAX_OBJECTS: usize = 1000;

/// How many diagnostics of one group are kept and logged.
const MAX_OF_A_GROUP: usize = 1000;

/// What a group of diagnostics is about: it is replaced as a whole.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum About {
    /// Everything that one source or stage has to say.
    Source(&'static str),
    /// One object.
    Object(ObjectKey),
    /// An object without a usable name, by what it is called instead.
    Unnamed(String),
}

/// The current diagnostics of all sources.
#[derive(Debug, Default)]
pub struct Diagnostics {
    current: Mutex<BTreeMap<About, Vec<Diagnostic>>>,
}

impl Diagnostics {
    /// Replaces what is known about something, and logs what is new in it.
    pub fn set(&self, about: About, mut diagnostics: Vec<Diagnostic>) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if diagnostics.is_empty() {
            if !current.is_empty() && current.remove(&about).is_some() {
                tracing::debug!(?about, "diagnostics are resolved");
            }
            return;
        }
        if current.len() >= MAX_OBJECTS && !current.contains_key(&about) {
            return;
        }
        diagnostics.sort();
        diagnostics.dedup();
        let n_more = diagnostics.len().saturating_sub(MAX_OF_A_GROUP);
        if n_more > 0 {
            diagnostics.truncate(MAX_OF_A_GROUP);
            diagnostics.push(Diagnostic {
                object: "further objects".to_owned(),
                field: String::new(),
                message: format!("have {n_more} faults that are not listed"),
            });
            diagnostics.sort();
        }
        let old = current.get(&about).map_or(&[][..], Vec::as_slice);
        for diagnostic in &diagnostics {
            if old.binary_search(diagnostic).is_err() {
                let Diagnostic {
                    object,
                    field,
                    message,
                } = diagnostic;
                tracing::warn!(%object, %field, "{message}");
            }
        }
        current.insert(about, diagnostics);
        if current.len() == MAX_OBJECTS {
            tracing::warn!(
                "{MAX_OBJECTS} objects have faults: those of further objects are not reported"
            );
        }
    }

    /// Replaces what is known about one object.
    pub fn set_object(&self, key: &ObjectKey, diagnostics: Vec<Diagnostic>) {
        let is_clean = diagnostics.is_empty();
        // Nearly every object is without fault, and most often all are.
        let none_known = || {
            let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
            current.is_empty()
        };
        if !(is_clean && none_known()) {
            self.set(About::Object(key.clone()), diagnostics);
        }
    }

    /// Forgets the objects without a usable name whose group starts so.
    pub fn forget_unnamed(&self, prefix: &str) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current
            .retain(|about, _| !matches!(about, About::Unnamed(name) if name.starts_with(prefix)));
    }

    /// Every diagnostic that holds now, by object.
    pub fn current(&self) -> Vec<Diagnostic> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.values().flatten().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(object: &str) -> Diagnostic {
        Diagnostic {
            object: object.to_owned(),
            field: "spec".to_owned(),
            message: "is bad".to_owned(),
        }
    }

    #[test]
    fn a_group_is_replaced_as_a_whole_and_goes_when_empty() {
        let diagnostics = Diagnostics::default();
        let about = || About::Source("test");
        diagnostics.set(about(), vec![fault("b"), fault("a"), fault("a")]);
        assert_eq!(diagnostics.current(), [fault("a"), fault("b")]);
        diagnostics.set(about(), vec![fault("b")]);
        assert_eq!(diagnostics.current(), [fault("b")]);
        diagnostics.set(About::Unnamed("x".to_owned()), vec![]);
        diagnostics.set(about(), vec![]);
        assert_eq!(diagnostics.current(), []);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let diagnostics = Diagnostics::default();
        for i in 0..2 * MAX_OBJECTS {
            diagnostics.set(About::Unnamed(i.to_string()), vec![fault(&i.to_string())]);
        }
        assert_eq!(diagnostics.current().len(), MAX_OBJECTS);
        let diagnostics = Diagnostics::default();
        let many = (0..2 * MAX_OF_A_GROUP).map(|i| fault(&i.to_string()));
        diagnostics.set(About::Source("test"), many.collect());
        assert_eq!(diagnostics.current().len(), MAX_OF_A_GROUP + 1);
    }
}
