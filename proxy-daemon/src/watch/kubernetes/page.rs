//! How is a page of a list read?
//!
//! Invariants: objects are decoded one by one, so that no list is held twice, not
//! even the places of its objects; an object that is no JSON of
//! ours costs no other; any other text is an error and never an empty list, because an empty
//! list would remove everything.

use std::fmt;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer as _};
use serde_json::value::RawValue;

use crate::model::from_k8s::field::Field;
use crate::model::from_k8s::wire::{Metadata, Object};

/// The metadata of a page.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Page {
    /// Where a watch continues.
    pub(crate) version: String,
    /// How to ask for the next page, if there is one.
    pub(crate) continue_token: Option<String>,
}

/// A page whose objects are found but not read.
#[derive(Deserialize)]
struct RawPage<'a> {
    #[serde(borrow, default)]
    metadata: Field<Metadata<'a>>,
    #[serde(borrow)]
    items: &'a RawValue,
}

/// Calls a function per element of a list.
struct ForEach<F>(F);

impl<'de, F: FnMut(&'de RawValue)> Visitor<'de> for ForEach<F> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a list of objects")
    }

    /// Go writes an empty list as null.
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<(), A::Error> {
        while let Some(item) = items.next_element()? {
            (self.0)(item);
        }
        Ok(())
    }
}

/// Calls `each` per object; an unreadable one is `Err(reason)`.
///
/// # Errors
/// Why this is no page of a list.
pub(crate) fn read(
    text: &[u8],
    mut each: impl FnMut(Result<&Object<'_>, String>),
) -> Result<Page, String> {
    let page: RawPage<'_> = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    let for_each = ForEach(
        |object: &RawValue| match serde_json::from_str(object.get()) {
            Ok(object) => each(Ok(&object)),
            Err(error) => each(Err(error.to_string())),
        },
    );
    serde_json::Deserializer::from_str(page.items.get())
        .deserialize_any(for_each)
        .map_err(|error| error.to_string())?;
    let none = Metadata::default();
    let metadata = page.metadata.value().unwrap_or(&none);
    let version = metadata.resource_version.text();
    if version.is_empty() {
        return Err("it is no list with a resourceVersion".to_owned());
    }
    let token = metadata.continue_token.text();
    Ok(Page {
        version: version.to_owned(),
        continue_token: Some(token.to_owned()).filter(|token| !token.is_empty()),
    })
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
