//! How are the faults of one object collected?
//!
//! Invariants: text from outside is quoted, escaped and cut before it reaches a message; an object has
//! at most [`MAX_FAULTS`] diagnostics, the last of which counts the rest; no text is built for an
//! object without faults.

use std::fmt;

use super::field::Field;
use crate::model::Diagnostic;

/// How many faults of one object are reported one by one.
pub(crate) const MAX_FAULTS: usize = 16;

/// How much of a foreign text is quoted.
///
/// Unit: characters.
const QUOTED: usize = 64;

/// The faults found so far in one object.
pub(crate) struct Faults<'a> {
    object: &'a dyn fmt::Display,
    found: Vec<Diagnostic>,
    n_more: usize,
}

impl<'a> Faults<'a> {
    /// None yet, in the object of this name.
    pub(crate) fn new(object: &'a dyn fmt::Display) -> Self {
        Self {
            object,
            found: Vec::new(),
            n_more: 0,
        }
    }

    /// Notes a fault.
    pub(crate) fn add(&mut self, field: fmt::Arguments<'_>, message: fmt::Arguments<'_>) {
        if self.found.len() >= MAX_FAULTS {
            self.n_more += 1;
            return;
        }
        self.found.push(Diagnostic {
            object: self.object.to_string(),
            field: field.to_string(),
            message: message.to_string(),
        });
    }

    /// The value of a field; one of the wrong type is a fault and counts as missing.
    pub(crate) fn value<'f, T>(
        &mut self,
        field: &'f Field<T>,
        path: fmt::Arguments<'_>,
    ) -> Option<&'f T> {
        match field {
            Field::Missing => None,
            Field::Wrong { expected, found } => {
                self.add(
                    path,
                    format_args!("must be {expected}, not {found}; ignored"),
                );
                None
            }
            Field::Value(value) => Some(value),
        }
    }

    /// The elements of a list field with their indices; those of the wrong type are faults.
    pub(crate) fn list<'f, T>(
        &mut self,
        field: &'f Field<Vec<Field<T>>>,
        path: &str,
    ) -> Vec<(usize, &'f T)> {
        let Some(elements) = self.value(field, format_args!("{path}")) else {
            return Vec::new();
        };
        let mut values = Vec::with_capacity(elements.len());
        for (index, element) in elements.iter().enumerate() {
            if let Some(value) = self.value(element, format_args!("{path}[{index}]")) {
                values.push((index, value));
            }
        }
        values
    }

    /// What was found.
    pub(crate) fn into_diagnostics(mut self) -> Vec<Diagnostic> {
        if self.n_more > 0 {
            self.found.push(Diagnostic {
                object: self.object.to_string(),
                field: String::new(),
                message: format!("has {} more faults that are not listed", self.n_more),
            });
        }
        self.found
    }
}

/// Foreign text for a message: quoted, escaped, and cut if long.
pub(crate) struct Quoted<'a>(pub(crate) &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.char_indices().nth(QUOTED) {
            Some((end, _)) => {
                let head = self.0.get(..end).unwrap_or_default();
                write!(f, "{head:?}… ({} bytes)", self.0.len())
            }
            None => write!(f, "{:?}", self.0),
        }
    }
}
