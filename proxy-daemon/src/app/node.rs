//! Which Node is ours, and what if it is not known yet?

use std::sync::Arc;
use std::time::Duration;

use super::AppError;
use crate::model::Node;
use crate::watch::{ObjectKind, Shared, Store};

/// How long a Node may be without addresses. Spec: NODE-3.
const ADDRESSES: Duration = Duration::from_secs(30);
/// How long it may be without pod networks where these are needed. Spec: NODE-3.
const POD_CIDRS: Duration = Duration::from_secs(300);
/// Poll interval.
const LOOK: Duration = Duration::from_millis(200);

/// Waits until the source listed Nodes, however long that takes (LIFE-2), and then for our Node's addresses
/// and pod networks.
///
/// A directory of manifests may lack our Node; it is not waited for.
///
/// # Errors
/// [`AppError::NoPodCidrs`] if pod networks are needed and do not come.
pub(super) async fn discover(
    shared: &Shared,
    is_manifests: bool,
    wants_pod_cidrs: bool,
) -> Result<Option<Arc<Node>>, AppError> {
    until(shared, |store| store.is_listed(ObjectKind::Node)).await;
    let now = || shared.with(|store| store.node().cloned());
    if is_manifests && now().is_none() {
        tracing::info!("the manifests have no Node of our name; NodePorts need --bind-address");
        return Ok(None);
    }
    let has_addresses =
        |store: &Store| store.node().is_some_and(|n| n.addresses().next().is_some());
    if tokio::time::timeout(ADDRESSES, until(shared, has_addresses))
        .await
        .is_err()
    {
        tracing::error!("our Node has no addresses, cannot serve NodePorts until it has");
    }
    let has_pod_cidrs = |store: &Store| store.node().is_some_and(|n| !n.pod_cidrs.is_empty());
    if wants_pod_cidrs {
        tokio::time::timeout(POD_CIDRS, until(shared, has_pod_cidrs))
            .await
            .map_err(|_elapsed| AppError::NoPodCidrs)?;
    }
    Ok(now())
}

/// Waits until our Node's pod networks change, if that matters. Spec: NODE-5.
///
/// A Node without pod networks keeps the old ones.
pub(super) async fn pod_cidrs_changed(shared: &Shared, matters: bool) -> AppError {
    let now = |store: &Store| {
        let networks = store.node().map(|node| node.pod_cidrs.clone());
        networks.filter(|networks| !networks.is_empty())
    };
    let before = shared.with(|store| now(store));
    if !matters || before.is_none() {
        return std::future::pending().await;
    }
    let mut bell = shared.subscribe();
    while shared.with(|store| now(store).is_none_or(|now| Some(now) == before)) {
        if bell.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
    AppError::PodCidrsChanged
}

async fn until(shared: &Shared, holds: impl Fn(&Store) -> bool) {
    let mut bell = shared.subscribe();
    while !shared.with(|store| holds(store)) {
        // The bell need not ring for a kind that turns out to be empty.
        drop(tokio::time::timeout(LOOK, bell.changed()).await);
    }
}
