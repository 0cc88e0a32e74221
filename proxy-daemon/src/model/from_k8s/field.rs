//! How is a field read when its value may have any type at all?
//!
//! Invariants: a value of the wrong type is remembered as [`Field::Wrong`] and consumed, so that only
//! text that is no JSON or YAML stops a decoder; `null` and a missing field are the same.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;

use serde::de::value::{BorrowedStrDeserializer, MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{
    Deserialize, Deserializer, Error, IgnoredAny, IntoDeserializer, MapAccess, SeqAccess, Visitor,
};

// The types of values, as messages name them.
const STRING: &str = "a string";
const INTEGER: &str = "an integer";
const BOOLEAN: &str = "true or false";
const LIST: &str = "a list";
const MAPPING: &str = "a mapping";

/// A field as it was written.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Field<T> {
    /// Not there, or `null`.
    #[default]
    Missing,
    /// There, with a value of another type than the one expected.
    Wrong {
        /// What the field must be.
        expected: &'static str,
        /// What it is.
        found: &'static str,
    },
    /// There.
    Value(T),
}

impl<T> Field<T> {
    /// The value, if there is one of the right type.
    pub(crate) fn value(&self) -> Option<&T> {
        match self {
            Self::Missing | Self::Wrong { .. } => None,
            Self::Value(value) => Some(value),
        }
    }

    /// Whether the field was given, with whatever value.
    pub(crate) fn is_present(&self) -> bool {
        !matches!(self, Self::Missing)
    }
}

impl Field<Str<'_>> {
    /// The text; empty if there is none.
    pub(crate) fn text(&self) -> &str {
        self.value().map_or("", |text| text)
    }
}

/// Text that borrows from the input where the input has no escapes in it.
#[derive(Clone, Debug, PartialEq, serde::Deserialize)]
#[serde(transparent)]
pub(crate) struct Str<'a>(#[serde(borrow)] Cow<'a, str>);

impl Deref for Str<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

/// A type that a field can have.
pub(crate) trait Typed {
    /// The type of its values; structs are read from mappings.
    const TYPE: &'static str = MAPPING;
}

impl Typed for Str<'_> {
    const TYPE: &'static str = STRING;
}

impl Typed for i64 {
    const TYPE: &'static str = INTEGER;
}

impl Typed for bool {
    const TYPE: &'static str = BOOLEAN;
}

impl<T> Typed for Vec<Field<T>> {
    const TYPE: &'static str = LIST;
}

impl<'de, T: Typed + Deserialize<'de>> Deserialize<'de> for Field<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FieldVisitor(PhantomData))
    }
}

struct FieldVisitor<T>(PhantomData<T>);

/// Reads a value of the type that was found.
fn read<'de, T, D>(found: &'static str, value: D) -> Result<Field<T>, D::Error>
where
    T: Typed + Deserialize<'de>,
    D: Deserializer<'de>,
{
    let expected = T::TYPE;
    if expected == found {
        return T::deserialize(value).map(Field::Value);
    }
    IgnoredAny::deserialize(value)?;
    Ok(Field::Wrong { expected, found })
}

impl<'de, T: Typed + Deserialize<'de>> Visitor<'de> for FieldVisitor<T> {
    type Value = Field<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::TYPE)
    }

    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Self::Value, E> {
        read(STRING, BorrowedStrDeserializer::new(text))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        read(STRING, text.into_deserializer())
    }

    fn visit_bool<E: Error>(self, boolean: bool) -> Result<Self::Value, E> {
        read(BOOLEAN, boolean.into_deserializer())
    }

    fn visit_i64<E: Error>(self, integer: i64) -> Result<Self::Value, E> {
        read(INTEGER, integer.into_deserializer())
    }

    fn visit_u64<E: Error>(self, integer: u64) -> Result<Self::Value, E> {
        self.visit_i64(i64::try_from(integer).unwrap_or(i64::MAX))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Self::Value, E> {
        read("a number with a fraction", number.into_deserializer())
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(Field::Missing)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
        read(LIST, SeqAccessDeserializer::new(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mapping: A) -> Result<Self::Value, A::Error> {
        read(MAPPING, MapAccessDeserializer::new(mapping))
    }
}
