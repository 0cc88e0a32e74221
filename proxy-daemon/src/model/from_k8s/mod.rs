//! How are Kubernetes objects decoded into our model?
//!
//! The one place that knows how Services, EndpointSlices, Nodes and ServiceCIDRs are written.
//! Invariants: decoding cannot fail: a value that cannot be used is a [`Diagnostic`], and the rest of the object
//! and the other objects are served; the result is valid as [`crate::model`] defines it; an object that
//! the API server's selectors would hide (SVC-1, EPS-1) has no value, as if it were deleted.

mod faults;
pub(crate) mod field;
mod intern;
mod node;
mod service;
mod slice;
mod text;
mod values;
pub(crate) mod wire;

#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;

pub(crate) use faults::{At, Quoted};
use field::Field;
use intern::Interner;
use wire::Object;

use super::{Diagnostic, EndpointSlice, Node, Service, ServiceCidr, ServiceName, SliceName};

/// What a name of a Service or a namespace may be.
const LABEL: &str = "63 of a-z, 0-9 and -";

/// What any other name may be.
const SUBDOMAIN: &str = "253 of a-z, 0-9, - and .";

/// The kinds of objects that we read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKind {
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
    /// `v1` Node.
    Node,
    /// `networking.k8s.io` ServiceCIDR.
    ServiceCidr,
}

impl ObjectKind {
    /// Every kind.
    pub const ALL: [Self; 4] = [
        Self::Service,
        Self::EndpointSlice,
        Self::Node,
        Self::ServiceCidr,
    ];

    /// The kind's name in `kind:`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Node => "Node",
            Self::ServiceCidr => "ServiceCIDR",
        }
    }

    /// The kind that `apiVersion` and `kind` name, if it is one of ours.
    pub fn of(api_version: &str, kind: &str) -> Option<Self> {
        match (api_version, kind) {
            ("v1", "Service") => Some(Self::Service),
            ("discovery.k8s.io/v1", "EndpointSlice") => Some(Self::EndpointSlice),
            ("v1", "Node") => Some(Self::Node),
            ("networking.k8s.io/v1" | "networking.k8s.io/v1beta1", "ServiceCIDR") => {
                Some(Self::ServiceCidr)
            }
            _ => None,
        }
    }
}

impl fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Which object something is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKey {
    /// A Service.
    Service(ServiceName),
    /// An EndpointSlice.
    EndpointSlice(SliceName),
    /// A Node.
    Node(Arc<str>),
    /// A ServiceCIDR.
    ServiceCidr(Arc<str>),
}

impl ObjectKey {
    /// The object's kind.
    pub const fn kind(&self) -> ObjectKind {
        match self {
            Self::Service(_) => ObjectKind::Service,
            Self::EndpointSlice(_) => ObjectKind::EndpointSlice,
            Self::Node(_) => ObjectKind::Node,
            Self::ServiceCidr(_) => ObjectKind::ServiceCidr,
        }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind();
        match self {
            Self::Service(name) => write!(f, "{kind} {name}"),
            Self::EndpointSlice(name) => write!(f, "{kind} {name}"),
            Self::Node(name) | Self::ServiceCidr(name) => write!(f, "{kind} {name}"),
        }
    }
}

/// An object as it is now, by name; `None` if we do not serve it: it is gone, hidden by a selector, or
/// of a sort that we do not serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Update {
    /// A Service that has a ClusterIP.
    Service(ServiceName, Option<Arc<Service>>),
    /// An EndpointSlice of a Service.
    EndpointSlice(SliceName, Option<Arc<EndpointSlice>>),
    /// A Node.
    Node(Arc<str>, Option<Arc<Node>>),
    /// A ServiceCIDR.
    ServiceCidr(Arc<str>, Option<Arc<ServiceCidr>>),
}

impl Update {
    /// Which object it is.
    pub fn key(&self) -> ObjectKey {
        match self {
            Self::Service(name, _) => ObjectKey::Service(name.clone()),
            Self::EndpointSlice(name, _) => ObjectKey::EndpointSlice(name.clone()),
            Self::Node(name, _) => ObjectKey::Node(Arc::clone(name)),
            Self::ServiceCidr(name, _) => ObjectKey::ServiceCidr(Arc::clone(name)),
        }
    }

    /// The object is gone.
    pub fn removal(key: ObjectKey) -> Self {
        match key {
            ObjectKey::Service(name) => Self::Service(name, None),
            ObjectKey::EndpointSlice(name) => Self::EndpointSlice(name, None),
            ObjectKey::Node(name) => Self::Node(name, None),
            ObjectKey::ServiceCidr(name) => Self::ServiceCidr(name, None),
        }
    }
}

/// An object that was decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// The object; `None` if its name is missing or not allowed.
    pub update: Option<Update>,
    /// The values in it that could not be used.
    pub diagnostics: Vec<Diagnostic>,
}

/// The author of the objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Author {
    /// The API server, which has filled in defaults.
    ApiServer,
    /// A person or a tool: missing fields have the API's defaults.
    File,
}

/// Decodes objects and remembers the names that they share.
#[derive(Debug)]
pub struct Decoder {
    author: Author,
    interner: Interner,
}

impl Decoder {
    /// A decoder of what this author writes.
    pub fn new(author: Author) -> Self {
        Self {
            author,
            interner: Interner::default(),
        }
    }

    /// Decodes one object of this kind.
    pub(crate) fn decode(&mut self, kind: ObjectKind, object: &Object<'_>) -> Decoded {
        let key = match self.key(kind, object) {
            Ok(key) => key,
            Err(diagnostic) => {
                return Decoded {
                    update: None,
                    diagnostics: vec![diagnostic],
                };
            }
        };
        let faults = RefCell::default();
        let object = At::object(object, &faults);
        let update = match &key {
            ObjectKey::Service(name) => {
                let service = service::read(name, &object, &mut self.interner);
                Update::Service(name.clone(), service.map(Arc::new))
            }
            ObjectKey::EndpointSlice(name) => {
                let slice = slice::read(name, &object, self.author, &mut self.interner);
                Update::EndpointSlice(name.clone(), slice.map(Arc::new))
            }
            ObjectKey::Node(name) => {
                let node = node::read_node(name, &object, &mut self.interner);
                Update::Node(name.clone(), Some(Arc::new(node)))
            }
            ObjectKey::ServiceCidr(name) => {
                let cidr = node::read_service_cidr(name, &object);
                Update::ServiceCidr(name.clone(), Some(Arc::new(cidr)))
            }
        };
        Decoded {
            update: Some(update),
            diagnostics: faults.into_inner().into_diagnostics(&key),
        }
    }

    /// The object's name, or why it has none.
    pub(crate) fn key(
        &mut self,
        kind: ObjectKind,
        object: &Object<'_>,
    ) -> Result<ObjectKey, Diagnostic> {
        let metadata = object.metadata.value();
        let name = metadata.and_then(|m| m.name.value()).map(|name| &**name);
        let namespace = metadata.and_then(|m| match &m.namespace {
            Field::Missing => Some("default").filter(|_| self.author == Author::File),
            Field::Wrong { .. } => None,
            Field::Value(text) => Some(&**text),
        });
        let refuse = |field: &str, message: String| {
            let name = Quoted(name.unwrap_or_default());
            Diagnostic {
                object: match kind {
                    ObjectKind::Service | ObjectKind::EndpointSlice => {
                        format!("{kind} {}/{name}", Quoted(namespace.unwrap_or_default()))
                    }
                    ObjectKind::Node | ObjectKind::ServiceCidr => format!("{kind} {name}"),
                },
                field: field.to_owned(),
                message,
            }
        };
        let name = if kind == ObjectKind::Service {
            allowed(name, text::is_label, LABEL)
        } else {
            allowed(name, text::is_subdomain, SUBDOMAIN)
        }
        .map_err(|message| refuse("metadata.name", message))?;
        Ok(match kind {
            ObjectKind::Service | ObjectKind::EndpointSlice => {
                let namespace = allowed(namespace, text::is_label, LABEL)
                    .map_err(|message| refuse("metadata.namespace", message))?;
                let namespace = self.interner.get(namespace);
                if kind == ObjectKind::Service {
                    ObjectKey::Service(ServiceName::new(namespace, self.interner.get(name)))
                } else {
                    ObjectKey::EndpointSlice(SliceName::new(namespace, name))
                }
            }
            ObjectKind::Node => ObjectKey::Node(self.interner.get(name)),
            ObjectKind::ServiceCidr => ObjectKey::ServiceCidr(self.interner.get(name)),
        })
    }
}

/// A name that may be used, or what is wrong with it.
fn allowed<'t>(
    text: Option<&'t str>,
    is_allowed: fn(&str) -> bool,
    rule: &str,
) -> Result<&'t str, String> {
    match text {
        None => Err("is missing; object ignored".to_owned()),
        Some(text) if is_allowed(text) => Ok(text),
        Some(text) => Err(format!(
            "{} is no name of at most {rule}; object ignored",
            Quoted(text)
        )),
    }
}
