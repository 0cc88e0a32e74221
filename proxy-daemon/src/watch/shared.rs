//! How do the sources hand the store to the sync loop?
//!
//! Invariants: whoever changes the store wakes everybody who waits, once per batch; a waiter that was
//! busy meanwhile is woken at its next wait, so that no change is missed.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::Store;
use crate::diagnostics::Diagnostics;

/// The store, its diagnostics, and the bell that rings when it changes.
#[derive(Debug)]
pub struct Shared {
    store: Mutex<Store>,
    changed: watch::Sender<()>,
    diagnostics: Arc<Diagnostics>,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            store: Mutex::default(),
            changed: watch::Sender::new(()),
            diagnostics: Arc::default(),
        }
    }
}

impl Shared {
    /// Does something with the store; rings if it left something to drain or made a kind complete.
    ///
    /// What a source does in one call is seen as a whole.
    pub fn update<R>(&self, change: impl FnOnce(&mut Store) -> R) -> R {
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        let was_complete = store.is_complete();
        let result = change(&mut store);
        let ring = store.is_dirty() || store.is_complete() != was_complete;
        drop(store);
        if ring {
            self.changed.send_replace(());
        }
        result
    }

    /// Looks at the store, or drains it, without ringing.
    pub fn with<R>(&self, look: impl FnOnce(&mut Store) -> R) -> R {
        look(&mut self.store.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A bell that rings after every change from now on; `changed().await` waits for it.
    pub fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// What is wrong with the objects as they are now.
    pub fn diagnostics(&self) -> &Arc<Diagnostics> {
        &self.diagnostics
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::from_k8s::ObjectKind;

    #[test]
    fn a_change_rings_and_no_change_does_not() {
        let shared = Shared::default();
        let mut bell = shared.subscribe();
        let has_rung = |bell: &mut watch::Receiver<()>| {
            let rung = bell.has_changed().expect("the sender lives");
            bell.borrow_and_update();
            rung
        };
        shared.update(|_| ());
        assert!(!has_rung(&mut bell));
        shared.update(|store| store.set_source_token(Some("1".into())));
        assert!(has_rung(&mut bell));
        shared.with(Store::drain);
        shared.update(|store| store.set_listed(ObjectKind::Service));
        assert!(!has_rung(&mut bell));
        shared.update(|store| store.set_listed(ObjectKind::EndpointSlice));
        assert!(has_rung(&mut bell));
    }
}
