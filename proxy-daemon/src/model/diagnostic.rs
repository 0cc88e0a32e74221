//! How is unusable input reported?

use std::fmt;

use super::ServiceName;

/// One fault of one object: what it is, where it is, and what was done about it.
///
/// Bad input is never an error of ours: it is a value beside the result, so that the object's good
/// parts and its neighbours are served.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Diagnostic {
    /// The object, as `Kind namespace/name`; with file and line where it came from a file.
    pub object: String,
    /// The field, as a path such as `spec.ports[1].port`; empty for the whole object.
    pub field: String,
    /// The fault and its effect, as a sentence without a full stop.
    pub message: String,
}

/// What the meaning of all objects together can be at fault about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// A Service.
    Service(ServiceName),
    /// The ServiceCIDRs.
    ServiceCidrs,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() {
            write!(f, "{}: {}", self.object, self.message)
        } else {
            write!(f, "{}: {}: {}", self.object, self.field, self.message)
        }
    }
}
