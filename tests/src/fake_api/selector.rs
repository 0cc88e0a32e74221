//! Which objects does a label or field selector select?
//!
//! Source: the grammar of `labelSelector` and `fieldSelector` in the Kubernetes API.

use std::collections::BTreeMap;

/// A conjunction of requirements.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Selector(Vec<Requirement>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Requirement {
    Exists(String),
    Absent(String),
    Is(String, String),
    IsNot(String, String),
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
}

impl Selector {
    /// Reads a selector; `None` if it is not one.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut requirements = Vec::new();
        let mut rest = text.trim();
        while !rest.is_empty() {
            // A comma inside parentheses belongs to a set.
            let mut depth = 0_i32;
            let end = rest.find(|c| {
                depth += i32::from(c == '(') - i32::from(c == ')');
                c == ',' && depth == 0
            });
            let (one, following) = end.map_or((rest, ""), |end| (&rest[..end], &rest[end + 1..]));
            requirements.push(parse_one(one.trim())?);
            rest = following.trim();
        }
        Some(Self(requirements))
    }

    /// Whether it selects objects with these labels or fields.
    pub(super) fn selects(&self, of: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|requirement| match requirement {
            Requirement::Exists(key) => of.contains_key(key),
            Requirement::Absent(key) => !of.contains_key(key),
            Requirement::Is(key, value) => of.get(key).is_some_and(|v| v == value),
            Requirement::IsNot(key, value) => of.get(key).is_none_or(|v| v != value),
            Requirement::In(key, values) => of.get(key).is_some_and(|v| values.contains(v)),
            Requirement::NotIn(key, values) => of.get(key).is_none_or(|v| !values.contains(v)),
        })
    }
}

fn parse_one(text: &str) -> Option<Requirement> {
    let set = |values: &str| -> Option<Vec<String>> {
        let values = values.trim().strip_prefix('(')?.strip_suffix(')')?;
        Some(values.split(',').map(|v| v.trim().to_owned()).collect())
    };
    if let Some(key) = text.strip_prefix('!') {
        return Some(Requirement::Absent(key.trim().to_owned()));
    }
    if let Some((key, values)) = text.split_once(" notin ") {
        return Some(Requirement::NotIn(key.trim().to_owned(), set(values)?));
    }
    if let Some((key, values)) = text.split_once(" in ") {
        return Some(Requirement::In(key.trim().to_owned(), set(values)?));
    }
    for (operator, make) in [
        (
            "!=",
            Requirement::IsNot as fn(String, String) -> Requirement,
        ),
        ("==", Requirement::Is),
        ("=", Requirement::Is),
    ] {
        if let Some((key, value)) = text.split_once(operator) {
            return Some(make(key.trim().to_owned(), value.trim().to_owned()));
        }
    }
    (!text.is_empty()).then(|| Requirement::Exists(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_select_what_they_say() {
        let labels: BTreeMap<_, _> = [("a", "1"), ("b/c", "")]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into();
        for (text, selects) in [
            ("", true),
            ("a", true),
            ("!a", false),
            ("!x", true),
            ("a=1", true),
            ("a==2", false),
            ("a!=1", false),
            ("x!=1", true),
            ("b/c", true),
            ("a in (1, 2),!x", true),
            ("a notin (1,2)", false),
            ("a=1,b/c=", true),
        ] {
            let selector = Selector::parse(text).expect(text);
            assert_eq!(selector.selects(&labels), selects, "{text}");
        }
        assert_eq!(Selector::parse("a in 1"), None);
    }
}
