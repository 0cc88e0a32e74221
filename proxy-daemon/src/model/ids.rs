//! How are the cluster's objects named?

use std::fmt;
use std::sync::Arc;

macro_rules! object_name {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type {
            /// The namespace.
            pub namespace: Arc<str>,
            /// The name within the namespace.
            pub name: Arc<str>,
        }

        impl $type {
            /// The name `namespace/name`.
            pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
                Self {
                    namespace: namespace.into(),
                    name: name.into(),
                }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}/{}", self.namespace, self.name)
            }
        }
    };
}

object_name! {
    /// A Service's name.
    ServiceName
}
object_name! {
    /// An EndpointSlice's name.
    SliceName
}
