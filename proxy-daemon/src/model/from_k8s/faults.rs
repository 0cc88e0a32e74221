//! How are the values of an object read, and its faults collected with their paths?
//!
//! Invariants: text from outside is quoted, escaped and cut before it reaches a message; an object has
//! at most [`MAX_FAULTS`] diagnostics, the last of which counts the rest; no text is built for an
//! object without faults.

use std::cell::RefCell;
use std::fmt;
use std::ops::Deref;

use super::field::{Field, Str};
use super::wire::{List, Text};
use crate::model::Diagnostic;

/// How many faults of one object are reported one by one.
pub(crate) const MAX_FAULTS: usize = 16;

/// How much of a foreign text is quoted.
///
/// Unit: characters.
const QUOTED: usize = 64;

/// The faults found so far in one object.
#[derive(Default)]
pub(crate) struct Faults {
    /// Field and message.
    found: Vec<(String, String)>,
    n_more: usize,
}

impl Faults {
    /// The faults as diagnostics of the object of this name.
    pub(crate) fn into_diagnostics(self, object: &dyn fmt::Display) -> Vec<Diagnostic> {
        let n_more = self.n_more;
        let more = format!("has {n_more} more faults that are not listed");
        let more = Some((String::new(), more)).filter(|_| n_more > 0);
        let all = self.found.into_iter().chain(more);
        all.map(|(field, message)| Diagnostic {
            object: object.to_string(),
            field,
            message,
        })
        .collect()
    }
}

/// A value of an object, with its path and the faults of the object.
pub(crate) struct At<'a, T> {
    value: &'a T,
    path: Path<'a>,
    faults: &'a RefCell<Faults>,
}

/// Where in an object a value is.
#[derive(Clone, Copy)]
enum Path<'a> {
    Object,
    Field(&'a Path<'a>, &'a str),
    Element(&'a Path<'a>, &'a str, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Object => Ok(()),
            Self::Field(Self::Object, name) => f.write_str(name),
            Self::Field(parent, name) => write!(f, "{parent}.{name}"),
            Self::Element(parent, name, index) => {
                write!(f, "{}[{index}]", Path::Field(parent, name))
            }
        }
    }
}

impl<T> Deref for At<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.value
    }
}

impl<'a, T> At<'a, T> {
    /// The object itself.
    pub(crate) fn object(value: &'a T, faults: &'a RefCell<Faults>) -> Self {
        Self {
            value,
            path: Path::Object,
            faults,
        }
    }

    /// The index of this element of a list.
    pub(crate) fn index(&self) -> usize {
        match self.path {
            Path::Object | Path::Field(..) => 0,
            Path::Element(_, _, index) => index,
        }
    }

    /// Notes a fault of this value.
    pub(crate) fn fault(&self, message: fmt::Arguments<'_>) {
        self.note(&self.path, message);
    }

    /// Notes a fault of a field.
    pub(crate) fn fault_in(&self, name: &str, message: fmt::Arguments<'_>) {
        self.note(&Path::Field(&self.path, name), message);
    }

    fn note(&self, path: &Path<'_>, message: fmt::Arguments<'_>) {
        let mut faults = self.faults.borrow_mut();
        if faults.found.len() < MAX_FAULTS {
            faults.found.push((path.to_string(), message.to_string()));
        } else {
            faults.n_more += 1;
        }
    }

    /// The value of a field; one of the wrong type is a fault and counts as missing.
    pub(crate) fn value<'f, U>(&self, name: &str, field: &'f Field<U>) -> Option<&'f U> {
        self.checked(Path::Field(&self.path, name), field)
    }

    fn checked<'f, U>(&self, path: Path<'_>, field: &'f Field<U>) -> Option<&'f U> {
        if let Field::Wrong { expected, found } = field {
            let message = format_args!("must be {expected}, not {found}; ignored");
            self.note(&path, message);
        }
        field.value()
    }

    /// The same with its path.
    pub(crate) fn get<U>(&'a self, name: &'a str, field: &'a Field<U>) -> Option<At<'a, U>> {
        let path = Path::Field(&self.path, name);
        self.checked(path, field)
            .map(|value| self.child(value, path))
    }

    /// The elements of a list field; those of the wrong type are faults.
    pub(crate) fn list<U>(
        &'a self,
        name: &'a str,
        field: &'a List<U>,
    ) -> impl Iterator<Item = At<'a, U>> {
        let elements = self.value(name, field).map_or(&[][..], Vec::as_slice);
        let path = move |index| Path::Element(&self.path, name, index);
        for (index, element) in elements.iter().enumerate() {
            self.checked(path(index), element);
        }
        let elements = elements.iter().enumerate();
        elements.filter_map(move |(index, element)| Some(self.child(element.value()?, path(index))))
    }

    /// The first element of a list field.
    pub(crate) fn first<U>(&'a self, name: &'a str, field: &'a List<U>) -> Option<At<'a, U>> {
        let element = self.value(name, field)?.first()?;
        let path = Path::Element(&self.path, name, 0);
        let value = self.checked(path, element)?;
        Some(self.child(value, path))
    }

    fn child<U>(&self, value: &'a U, path: Path<'a>) -> At<'a, U> {
        At {
            value,
            path,
            faults: self.faults,
        }
    }

    /// What a word means; `missing` stands for a word that is not there. An unknown one is a fault.
    pub(crate) fn word<U: Copy>(
        &self,
        name: &str,
        field: &Text<'_>,
        missing: &str,
        words: &[(&str, U)],
        fault: &str,
    ) -> Option<U> {
        let text = self.value(name, field).map_or(missing, |text| text);
        self.meaning(&Path::Field(&self.path, name), text, words, fault)
    }

    fn meaning<U: Copy>(
        &self,
        path: &Path<'_>,
        text: &str,
        words: &[(&str, U)],
        fault: &str,
    ) -> Option<U> {
        let known = words.iter().find(|(word, _)| *word == text);
        if known.is_none() {
            self.note(path, format_args!("{} is {fault}", Quoted(text)));
        }
        known.map(|(_, meaning)| *meaning)
    }
}

impl At<'_, Str<'_>> {
    /// What this word means; an unknown one is a fault.
    pub(crate) fn means<U: Copy>(&self, words: &[(&str, U)], fault: &str) -> Option<U> {
        self.meaning(&self.path, self, words, fault)
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
