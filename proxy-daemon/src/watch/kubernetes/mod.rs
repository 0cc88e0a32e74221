//! How does the store follow an API server?
//!
//! List and watch of the four kinds, each for itself: a kind that the server refuses does not hold up
//! the others (API-3). Objects are decoded line by line into our own words, never into whole API
//! objects. Spec: SVC-1, EPS-1, NODE-1, REJ-7, LIFE-2 to LIFE-4, API-1 to API-4.
//!
//! Why not the watcher of kube-runtime? Version 5.0, with types that hold only the fields we read, was tried:
//! `cargo run --release --manifest-path tests/trials/kube-runtime/Cargo.toml` prints what follows. It is not
//! slow (EndpointSlices of 10,000 Services with 10 endpoints each in 0.37 s to 0.48 s, where ours takes 0.33 s to
//! 0.35 s for these and the Services) and takes 34 MiB to 47 MiB more memory for them (ours: 26 MiB). But
//! - it does not list again after the API server was restored from a backup: it keeps watching from a version
//!   that the server has not reached, whether that is refused, accepted or silent (LIFE-3);
//! - a server that ends each watch at once is asked 261,055 times in 20 s, since there is no pause after a
//!   watch that ended well;
//! - where streaming lists are refused, it does not go on with pages;
//! - there is no bound on the size of a page or an object, and a silent connection is noticed only when the
//!   watch would have ended.

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
