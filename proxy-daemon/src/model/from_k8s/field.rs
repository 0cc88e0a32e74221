//! How is a field read when its value may have any type at all?
//!
//! Invariants: a value of the wrong type is remembered as [`Field::Wrong`] and consumed, so that only
//! text that is no JSON or YAML stops a decoder; `null` and a missing field are the same.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

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

/// A type that a field can have: it takes the values that suit it and leaves the others.
pub(crate) trait Slot<'de>: Sized {
    /// What the field must be, for the message.
    const EXPECTED: &'static str;

    /// Takes text.
    fn text(_: Cow<'de, str>) -> Option<Self> {
        None
    }

    /// Takes an integer; what does not fit was saturated.
    fn integer(_: i64) -> Option<Self> {
        None
    }

    /// Takes a truth value.
    fn boolean(_: bool) -> Option<Self> {
        None
    }

    /// Takes a list, which must be read to its end either way.
    fn list<A: SeqAccess<'de>>(mut list: A) -> Result<Option<Self>, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(None)
    }

    /// Takes a mapping, which must be read to its end either way.
    fn mapping<A: MapAccess<'de>>(mut mapping: A) -> Result<Option<Self>, A::Error> {
        while mapping.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(None)
    }
}

impl<'de: 'a, 'a> Slot<'de> for Cow<'a, str> {
    const EXPECTED: &'static str = "a string";

    fn text(text: Cow<'de, str>) -> Option<Self> {
        Some(text)
    }
}

impl Slot<'_> for i64 {
    const EXPECTED: &'static str = "an integer";

    fn integer(integer: i64) -> Option<Self> {
        Some(integer)
    }
}

impl Slot<'_> for bool {
    const EXPECTED: &'static str = "true or false";

    fn boolean(boolean: bool) -> Option<Self> {
        Some(boolean)
    }
}

impl<'de, T: Slot<'de>> Slot<'de> for Vec<Field<T>> {
    const EXPECTED: &'static str = "a list";

    fn list<A: SeqAccess<'de>>(mut list: A) -> Result<Option<Self>, A::Error> {
        let mut elements = Self::new();
        while let Some(element) = list.next_element()? {
            elements.push(element);
        }
        Ok(Some(elements))
    }
}

/// Makes structs with a derived `Deserialize` readable from mappings, and from nothing else.
macro_rules! mapping_slot {
    ($($type:ident),+) => {$(
        impl<'de: 'a, 'a> crate::model::from_k8s::field::Slot<'de> for $type<'a> {
            const EXPECTED: &'static str = "a mapping";

            fn mapping<A: serde::de::MapAccess<'de>>(mapping: A) -> Result<Option<Self>, A::Error> {
                serde::Deserialize::deserialize(serde::de::value::MapAccessDeserializer::new(mapping))
                    .map(Some)
            }
        }
    )+};
}
pub(crate) use mapping_slot;

impl<'de, T: Slot<'de>> Deserialize<'de> for Field<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FieldVisitor(PhantomData))
    }
}

struct FieldVisitor<T>(PhantomData<T>);

fn take<'de, T: Slot<'de>>(value: Option<T>, found: &'static str) -> Field<T> {
    value.map_or(
        Field::Wrong {
            expected: T::EXPECTED,
            found,
        },
        Field::Value,
    )
}

impl<'de, T: Slot<'de>> Visitor<'de> for FieldVisitor<T> {
    type Value = Field<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTED)
    }

    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(take(T::text(Cow::Borrowed(text)), "a string"))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(take(T::text(Cow::Owned(text.to_owned())), "a string"))
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Self::Value, E> {
        Ok(take(T::text(Cow::Owned(text)), "a string"))
    }

    fn visit_bytes<E: Error>(self, _: &[u8]) -> Result<Self::Value, E> {
        Ok(take(None, "binary data"))
    }

    fn visit_bool<E: Error>(self, boolean: bool) -> Result<Self::Value, E> {
        Ok(take(T::boolean(boolean), "true or false"))
    }

    fn visit_i64<E: Error>(self, integer: i64) -> Result<Self::Value, E> {
        Ok(take(T::integer(integer), "a number"))
    }

    fn visit_u64<E: Error>(self, integer: u64) -> Result<Self::Value, E> {
        self.visit_i64(i64::try_from(integer).unwrap_or(i64::MAX))
    }

    fn visit_i128<E: Error>(self, integer: i128) -> Result<Self::Value, E> {
        let limit = if integer < 0 { i64::MIN } else { i64::MAX };
        self.visit_i64(i64::try_from(integer).unwrap_or(limit))
    }

    fn visit_u128<E: Error>(self, integer: u128) -> Result<Self::Value, E> {
        self.visit_i64(i64::try_from(integer).unwrap_or(i64::MAX))
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Self::Value, E> {
        Ok(take(None, "a number with a fraction"))
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(Field::Missing)
    }

    fn visit_none<E: Error>(self) -> Result<Self::Value, E> {
        Ok(Field::Missing)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        Field::deserialize(deserializer)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(
        self,
        deserializer: D,
    ) -> Result<Self::Value, D::Error> {
        Field::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
        Ok(take(T::list(list)?, "a list"))
    }

    fn visit_map<A: MapAccess<'de>>(self, mapping: A) -> Result<Self::Value, A::Error> {
        Ok(take(T::mapping(mapping)?, "a mapping"))
    }
}
