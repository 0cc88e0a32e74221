//! How does the store follow an API server?
//!
//! List and watch of the four kinds, each for itself: a kind that the server refuses does not hold up
//! the others (API-3). Objects are decoded line by line into our own words, never into whole API
//! objects. Spec: SVC-1, EPS-1, NODE-1, REJ-7, LIFE-2 to LIFE-4, API-1 to API-4.

mod backoff;
mod client;
mod failure;
pub(crate) mod lines;
mod link;
mod pace;
pub(crate) mod page;
mod reflect;
mod report;
mod resource;
mod timing;
mod version;

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

pub use client::{ApiServer, ConnectError};
use link::Link;
pub use pace::Pace;
use reflect::{Context, Reflector};
pub use timing::Timing;

use super::Shared;
use crate::model::from_k8s::{Author, Decoder, ObjectKind};

/// An API server that is ready to be followed.
pub struct Kubernetes {
    link: Link,
    node: Arc<str>,
}

impl Kubernetes {
    /// Prepares to follow an API server; of its Nodes only the one of this name is ours.
    ///
    /// Nothing is sent yet: a server that is down is waited for by [`Kubernetes::run`] (LIFE-2).
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn open(
        server: ApiServer,
        node: Arc<str>,
        timing: Timing,
    ) -> Result<Self, ConnectError> {
        Ok(Self {
            link: Link::new(server, timing).await?,
            node,
        })
    }

    /// Keeps the store equal to the server's objects until the future is dropped.
    pub async fn run(self, shared: Arc<Shared>) -> Infallible {
        let decoder = Mutex::new(Decoder::new(Author::ApiServer));
        let context = Context {
            link: &self.link,
            shared: &shared,
            decoder: &decoder,
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
