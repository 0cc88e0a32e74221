//! What does a page of a list hold?
//!
//! Invariants: objects are handed over one by one, so that no list is held twice; an object that is no
//! JSON of ours costs no other; what is no page of a list is an error and never an empty list, because
//! an empty list would remove everything.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::model::from_k8s::field::Field;
use crate::model::from_k8s::wire::{Metadata, Object, Text};

/// What a page says of itself.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Page {
    /// Where a watch continues.
    pub(crate) version: String,
    /// How to ask for the next page, if there is one.
    pub(crate) continue_token: Option<String>,
}

/// Calls `each` per object, possibly twice; an unreadable one is `Err(reason)`.
///
/// # Errors
/// Why this is no page of a list.
pub(crate) fn read(
    text: &[u8],
    mut each: impl FnMut(Result<&Object<'_>, String>),
) -> Result<Page, String> {
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let quick = (&mut deserializer)
        .deserialize_map(PageVisitor(&mut |object| each(Ok(object))))
        .and_then(|page| deserializer.end().map(|()| page));
    let (metadata, has_items) = match quick {
        Ok(page) => page,
        Err(_) => read_apart(text, &mut each)?,
    };
    let metadata = metadata.value();
    let field = |field: Option<&Text<'_>>| {
        let text = field.map_or("", |field| field.text());
        Some(text.to_owned()).filter(|text| !text.is_empty())
    };
    match field(metadata.map(|m| &m.resource_version)) {
        Some(version) if has_items => Ok(Page {
            version,
            continue_token: field(metadata.map(|m| &m.continue_token)),
        }),
        Some(_) | None => Err("it is no list with a resourceVersion and items".to_owned()),
    }
}

/// A page whose objects are first cut apart and then read, each for itself.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Apart<'a> {
    #[serde(borrow)]
    metadata: Field<Metadata<'a>>,
    #[serde(borrow)]
    items: Option<Vec<&'a RawValue>>,
}

fn read_apart<'a>(
    text: &'a [u8],
    each: &mut impl FnMut(Result<&Object<'_>, String>),
) -> Result<(Field<Metadata<'a>>, bool), String> {
    let apart: Apart<'_> = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    let has_items = apart.items.is_some();
    for item in apart.items.unwrap_or_default() {
        match serde_json::from_str::<Object<'_>>(item.get()) {
            Ok(object) => each(Ok(&object)),
            Err(error) => each(Err(error.to_string())),
        }
    }
    Ok((apart.metadata, has_items))
}

struct PageVisitor<'f>(&'f mut dyn FnMut(&Object<'_>));

impl<'de> Visitor<'de> for PageVisitor<'_> {
    type Value = (Field<Metadata<'de>>, bool);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut page: A) -> Result<Self::Value, A::Error> {
        let mut metadata = Field::Missing;
        let mut has_items = false;
        while let Some(key) = page.next_key::<Key>()? {
            match key {
                Key::Metadata => metadata = page.next_value()?,
                Key::Items => {
                    page.next_value_seed(Items(self.0))?;
                    has_items = true;
                }
                Key::Other => {
                    page.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok((metadata, has_items))
    }
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "lowercase")]
enum Key {
    Metadata,
    Items,
    #[serde(other)]
    Other,
}

struct Items<'f>(&'f mut dyn FnMut(&Object<'_>));

impl<'de> serde::de::DeserializeSeed<'de> for Items<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Items<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects")
    }

    // Go writes an empty list as null.
    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while let Some(object) = items.next_element::<Object<'de>>()? {
            (self.0)(&object);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names of the objects, and a `!` for each unreadable one.
    fn names(text: &str) -> (Result<Page, String>, Vec<String>) {
        let mut names = Vec::new();
        let page = read(text.as_bytes(), |object| {
            names.push(object.map_or("!".to_owned(), |object| {
                let metadata = object.metadata.value().expect("metadata");
                metadata.name.value().expect("a name").to_string()
            }));
        });
        (page, names)
    }

    #[test]
    fn objects_are_handed_over_with_where_to_go_on() {
        let (page, found) = names(
            r#"{"kind":"ServiceList","metadata":{"resourceVersion":"7","continue":"x"},
                "items":[{"metadata":{"name":"a"}},{"metadata":{"name":"b"}}]}"#,
        );
        assert_eq!(found, ["a", "b"]);
        let page = page.expect("a page");
        assert_eq!(
            (page.version.as_str(), page.continue_token.as_deref()),
            ("7", Some("x"))
        );
        for empty in ["null", "[]"] {
            let text = format!(
                r#"{{"items":{empty},"metadata":{{"resourceVersion":"7","continue":""}}}}"#
            );
            let (page, found) = names(&text);
            assert_eq!(
                (page.expect("a page").continue_token, found.len()),
                (None, 0)
            );
        }
    }

    #[test]
    fn an_unreadable_object_does_not_cost_its_neighbours() {
        for bad in [
            r#"{"metadata":{"name":"x"},"metadata":{"name":"y"}}"#.to_owned(),
            "7".to_owned(),
        ] {
            let (page, found) = names(&format!(
                r#"{{"metadata":{{"resourceVersion":"7"}},"items":[{{"metadata":{{"name":"a"}}}},{bad},{{"metadata":{{"name":"b"}}}}]}}"#
            ));
            assert!(page.is_ok(), "{page:?}");
            assert!(
                found.ends_with(&["a".to_owned(), "!".to_owned(), "b".to_owned()]),
                "{found:?}"
            );
        }
    }

    #[test]
    fn life_3_what_is_no_list_is_never_an_empty_list() {
        for text in [
            "",
            "{}",
            "null",
            "[]",
            "<html>",
            r#"{"kind":"Status","metadata":{},"code":200}"#,
            r#"{"items":[]}"#,
            r#"{"metadata":{"resourceVersion":"7"}}"#,
            r#"{"metadata":{"resourceVersion":""},"items":[]}"#,
            r#"{"metadata":{"resourceVersion":"7"},"items":{}}"#,
            r#"{"metadata":{"resourceVersion":"7"},"items":["#,
            r#"{"metadata":{"resourceVersion":"7"},"items":[]} {}"#,
        ] {
            assert!(names(text).0.is_err(), "{text}");
        }
    }
}
