//! How does the store follow an API server?
//!
//! List and watch of the four kinds, each for itself: a kind that the server refuses does not hold up
//! the others (API-3). Objects are decoded line by line into our own words, never into whole API
//! objects. Spec: SVC-1, EPS-1, NODE-1, REJ-7, LIFE-2 to LIFE-4, API-1 to API-4.

mod backoff;
mod client;
mod lines;
mod page;
mod reflect;
mod report;
mod resource;

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use kube::Client;

pub use backoff::Timing;
pub use client::{ApiServer, ConnectError};
use reflect::{Context, Reflector};

use super::Shared;
use crate::model::from_k8s::{Author, Decoder, ObjectKind};

/// An API server that is ready to be followed.
pub struct Kubernetes {
    client: Client,
    node: Arc<str>,
    timing: Timing,
}

impl Kubernetes {
    /// Prepares to follow an API server; of its Nodes only the one of this name is ours.
    ///
    /// Nothing is sent yet: a server that is down is waited for by [`Kubernetes::run`] (LIFE-2).
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn open(server: &ApiServer, node: Arc<str>) -> Result<Self, ConnectError> {
        Ok(Self {
            client: server.client().await?,
            node,
            timing: Timing::default(),
        })
    }

    /// With other times, for tests.
    pub fn with_timing(self, timing: Timing) -> Self {
        Self { timing, ..self }
    }

    /// The client, for events and for what else is asked of the server.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Keeps the store equal to the server's objects until the future is dropped.
    pub async fn run(self, shared: Arc<Shared>) -> Infallible {
        let decoder = Mutex::new(Decoder::new(Author::ApiServer));
        let context = Context {
            client: &self.client,
            shared: &shared,
            decoder: &decoder,
            timing: &self.timing,
            node: &self.node,
        };
        let follow = |kind| Reflector::new(&context, kind).follow();
        // Each is a future without end, so that the first never comes.
        let (never, _, _, _) = tokio::join!(
            follow(ObjectKind::Service),
            follow(ObjectKind::EndpointSlice),
            follow(ObjectKind::Node),
            follow(ObjectKind::ServiceCidr)
        );
        never
    }
}
