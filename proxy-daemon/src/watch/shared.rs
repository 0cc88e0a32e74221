//! How do the sources hand the store to the sync loop?
//!
//! Invariants: a change of the store wakes all waiters, once per batch; a waiter that was busy is woken
//! at its next wait, so that no change is missed.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::Store;
use crate::diagnostics::Diagnostics;

/// The store, its diagnostics, and the channel that notifies of changes.
#[derive(Debug, Default)]
pub struct Shared {
    store: Mutex<Store>,
    changed: watch::Sender<()>,
    diagnostics: Arc<Diagnostics>,
}

impl Shared {
    /// Changes the store; notifies if there is something to drain or a kind became complete.
    ///
    /// A reader sees all changes of one call or none.
    pub fn update<R>(&self, change: impl FnOnce(&mut Store) -> R) -> R {
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        let was_complete = store.is_complete();
        let result = change(&mut store);
        let notify = store.is_dirty() || store.is_complete() != was_complete;
        drop(store);
        if notify {
            self.changed.send_replace(());
        }
        result
    }

    /// Reads or drains the store without a notification.
    pub fn with<R>(&self, look: impl FnOnce(&mut Store) -> R) -> R {
        look(&mut self.store.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Notifications of every change from now on; `changed().await` waits for one.
    pub fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// The faults of the objects as they are now.
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
