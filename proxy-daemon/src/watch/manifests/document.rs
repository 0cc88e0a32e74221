//! Which objects does the text of a manifest file hold?
//!
//! Invariants: a document that is no YAML or JSON costs no other document of the file; one pass over
//! the text, strings borrowed from it; aliases cannot expand a small text to a large one.

use std::cell::RefCell;
use std::fmt;

use crate::model::Diagnostic;
use crate::model::from_k8s::wire::{Document as Wire, Object};
use crate::model::from_k8s::{At, Decoder, ObjectKind, Quoted, Update};

/// One document of a file.
#[derive(Debug, PartialEq)]
pub(crate) enum Document {
    /// It was read; its objects are in the order of the text.
    Good {
        /// The objects that could be named.
        objects: Vec<Update>,
        /// What in them could not be used.
        diagnostics: Vec<Diagnostic>,
    },
    /// It could not be read at all.
    Bad(Diagnostic),
}

/// Reads a file's text; documents without content are left out.
pub(crate) fn read(file: &str, text: &[u8], decoder: &mut Decoder) -> Vec<Document> {
    let text = match std::str::from_utf8(text) {
        Ok(text) => text.trim_start_matches('\u{feff}'),
        Err(error) => {
            let before = text.get(..error.valid_up_to()).unwrap_or_default();
            let line = 1 + n_lines(before);
            return vec![bad(file, line, "is not UTF-8".to_owned())];
        }
    };
    let is_json = std::path::Path::new(file)
        .extension()
        .is_some_and(|extension| extension == "json");
    if is_json || text.trim_start().starts_with('{') {
        let documents = read_json(file, text, decoder);
        if is_json || !matches!(documents.last(), Some(Document::Bad(_))) {
            return documents;
        }
    }
    split(text)
        .filter_map(|(line, text)| read_yaml(file, line, text, decoder))
        .collect()
}

fn bad(file: &str, line: usize, message: String) -> Document {
    Document::Bad(Diagnostic {
        object: format!("{file}:{line}"),
        field: String::new(),
        message,
    })
}

fn n_lines(text: &[u8]) -> usize {
    text.split(|b| *b == b'\n').count() - 1
}

/// JSON values one after the other; reading stops at the first that is none, because its end is unknown.
fn read_json(file: &str, text: &str, decoder: &mut Decoder) -> Vec<Document> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<Wire<'_>>();
    let mut documents = Vec::new();
    let mut line = 1;
    let mut at = 0;
    loop {
        let start = at;
        match values.next() {
            None => return documents,
            Some(Ok(object)) => {
                let blank = text.get(start..).unwrap_or_default();
                let n_blank = blank.len() - blank.trim_start().len();
                let blank = blank.get(..n_blank).unwrap_or_default();
                let first = line + n_lines(blank.as_bytes());
                documents.push(read_object(file, first, object, decoder));
                at = values.byte_offset();
                line += n_lines(text.get(start..at).unwrap_or_default().as_bytes());
            }
            Some(Err(error)) => {
                let message = format!("is no JSON object: {}", clean(&error.to_string()));
                documents.push(bad(file, error.line(), message));
                return documents;
            }
        }
    }
}

/// The documents of a YAML text, each with the number of its first line.
///
/// Source: YAML 1.2 §9.1.3: a line that starts with `---` ends a document wherever it stands.
fn split(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut rest = Some((1, text));
    std::iter::from_fn(move || {
        let (line, text) = rest?;
        let mut at = 0;
        for (n, this) in text.split_inclusive('\n').enumerate() {
            // The marker that begins this document is not the one that ends it.
            if n > 0 && is_marker(this) {
                let (document, following) = text.split_at(at);
                rest = Some((line + n, following));
                return Some((line, document));
            }
            at += this.len();
        }
        rest = None;
        Some((line, text))
    })
}

fn is_marker(line: &str) -> bool {
    line.strip_prefix("---")
        .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

fn read_yaml(file: &str, line: usize, text: &str, decoder: &mut Decoder) -> Option<Document> {
    let is_blank = |line: &str| {
        let line = line.trim();
        line.is_empty() || line.starts_with('#') || line == "---" || line == "..."
    };
    // The line to name is the first with content.
    let first = line + text.lines().position(|line| !is_blank(line))?;
    // A whole cluster is one document: only the expansion of aliases is limited.
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: usize::MAX,
            max_nodes: usize::MAX,
            max_total_scalar_bytes: usize::MAX,
            max_total_comment_bytes: usize::MAX,
        },
        strict_booleans: true,
        with_snippet: false,
    };
    match serde_saphyr::from_str_with_options::<Option<Wire<'_>>>(text, options) {
        Ok(None) => None,
        Ok(Some(object)) => Some(read_object(file, first, object, decoder)),
        Err(error) => {
            let at = error.location().map_or(first, |location| {
                line + usize::try_from(location.line())
                    .unwrap_or(1)
                    .saturating_sub(1)
            });
            let message = clean(&error.without_snippet().to_string());
            Some(bad(file, at, format!("is no YAML object: {message}")))
        }
    }
}

/// One line of text that may quote what was read.
fn clean(message: &str) -> String {
    let line: String = message
        .lines()
        .next()
        .unwrap_or_default()
        .chars()
        .take(200)
        .collect();
    line.escape_default()
        .to_string()
        .replace("\\\"", "\"")
        .replace("\\'", "'")
}

fn read_object(file: &str, line: usize, wire: Wire<'_>, decoder: &mut Decoder) -> Document {
    let (object, list) = wire.into_parts();
    let Some(kind) = object.kind.value() else {
        return bad(file, line, "has no kind; document ignored".to_owned());
    };
    let place = format!("{file}:{line}");
    let mut objects = Vec::new();
    let mut diagnostics = Vec::new();
    let mut decode = |kind, object: &Object<'_>, place: &dyn fmt::Display| {
        let read = decoder.decode(kind, object);
        objects.extend(read.update);
        diagnostics.extend(read.diagnostics.into_iter().map(|diagnostic| Diagnostic {
            object: format!("{place} {}", diagnostic.object),
            ..diagnostic
        }));
    };
    let faults = RefCell::default();
    if list.is_present() || kind.ends_with("List") {
        let of_items = kind
            .strip_suffix("List")
            .and_then(|kind| kind_of(&object, kind));
        for item in At::object(&object, &faults).list("items", &list) {
            let kind = item.kind.value();
            if let Some(kind) = kind.map_or(of_items, |kind| kind_of(&item, kind)) {
                let index = item.index();
                decode(kind, &item, &format_args!("{place} items[{index}]"));
            } else if kind.is_some_and(|kind| kind.ends_with("List")) {
                item.fault(format_args!("is a list within a list; ignored"));
            }
        }
    } else if let Some(kind) = kind_of(&object, kind) {
        decode(kind, &object, &place);
    } else {
        tracing::debug!(place, kind = %Quoted(kind), "ignored a document of a kind that is not used");
    }
    diagnostics.extend(faults.into_inner().into_diagnostics(&place));
    Document::Good {
        objects,
        diagnostics,
    }
}

/// The kind; without `apiVersion` the one that Kubernetes has had longest.
fn kind_of(object: &Object<'_>, kind: &str) -> Option<ObjectKind> {
    match object.api_version.value() {
        Some(version) => ObjectKind::of(version, kind),
        None => ObjectKind::ALL
            .into_iter()
            .find(|known| known.name() == kind),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::from_k8s::Author;

    const WEB: &str = "\
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  clusterIP: 10.96.0.10
  ports:
  - port: 80
";

    fn read_text(file: &str, text: &str) -> Vec<Document> {
        read(file, text.as_bytes(), &mut Decoder::new(Author::File))
    }

    fn keys(documents: &[Document]) -> Vec<String> {
        documents
            .iter()
            .map(|document| match document {
                Document::Good { objects, .. } => objects
                    .iter()
                    .map(|update| update.key().to_string())
                    .collect::<Vec<_>>()
                    .join(","),
                Document::Bad(diagnostic) => format!("bad {}", diagnostic.object),
            })
            .collect()
    }

    #[test]
    fn documents_of_a_file_are_read_one_by_one() {
        let text = format!(
            "# first\n---\n{WEB}---\n---\nkind: [\n--- # third\n{WEB}---\nkind: ConfigMap\n"
        );
        assert_eq!(
            keys(&read_text("a.yaml", &text)),
            [
                "Service default/web",
                "bad a.yaml:12",
                "Service default/web",
                ""
            ]
        );
    }

    #[test]
    fn a_fault_names_file_line_and_object() {
        let text = format!("\n---\n{}", WEB.replace("port: 80", "port: 0"));
        let documents = read_text("a.yaml", &text);
        let Document::Good { diagnostics, .. } = &documents[0] else {
            panic!("{documents:?}")
        };
        assert_eq!(
            diagnostics[0].to_string(),
            "a.yaml:3 Service default/web: spec.ports[0].port: 0 is not within 1 to 65535; port ignored"
        );
    }

    #[test]
    fn lists_of_any_kind_are_read_and_a_bad_item_does_not_cost_the_others() {
        let item =
            |kind: &str, name: &str| format!("{{{kind}\"metadata\":{{\"name\":\"{name}\"}}}}");
        let service = "\"apiVersion\":\"v1\",\"kind\":\"Service\",";
        let text = format!(
            "{{\"apiVersion\":\"v1\",\"kind\":\"List\",\"items\":[{},7,{},{}]}}",
            item(service, "a"),
            item("", "b"),
            item(service, "c")
        );
        assert_eq!(
            keys(&read_text("a.json", &text)),
            ["Service default/a,Service default/c"]
        );
        assert_eq!(
            keys(&read_text("a.yaml", &text)),
            ["Service default/a,Service default/c"]
        );
        let text = text.replace("\"List\"", "\"ServiceList\"");
        assert_eq!(
            keys(&read_text("a.json", &text)),
            ["Service default/a,Service default/b,Service default/c"]
        );
    }

    #[test]
    fn json_values_before_a_bad_one_count_and_lists_in_lists_are_told() {
        let good = "{\"kind\":\"Service\",\"metadata\":{\"name\":\"a\"}}";
        let text = format!("{good}\n---\n{good}");
        assert_eq!(
            keys(&read_text("a.json", &text)),
            ["Service default/a", "bad a.json:2"]
        );
        let list = |item: &str| format!("{{\"kind\":\"List\",\"items\":[{item}]}}");
        let documents = read_text("a.json", &list(&list(good)));
        let Document::Good { diagnostics, .. } = &documents[0] else {
            panic!("{documents:?}")
        };
        assert_eq!(diagnostics[0].field, "items[0]");
    }

    #[test]
    fn kinds_of_other_groups_are_ignored() {
        let text = WEB.replace("apiVersion: v1", "apiVersion: serving.knative.dev/v1");
        assert_eq!(keys(&read_text("a.yaml", &text)), [""]);
        let text = WEB.replace("apiVersion: v1\n", "");
        assert_eq!(keys(&read_text("a.yaml", &text)), ["Service default/web"]);
    }

    #[test]
    fn several_json_values_in_a_file_are_documents() {
        let text = "{\"kind\":\"Service\",\"metadata\":{\"name\":\"a\"}}\n\n{\"kind\":\"Service\",\n\"metadata\":{}}";
        let documents = read_text("a.json", text);
        assert_eq!(keys(&documents), ["Service default/a", ""]);
        let Document::Good { diagnostics, .. } = &documents[1] else {
            panic!("{documents:?}")
        };
        assert!(
            diagnostics[0].object.starts_with("a.json:3 "),
            "{diagnostics:?}"
        );
    }

    #[test]
    fn what_is_no_manifest_is_a_fault_with_its_line() {
        for (text, at) in [
            ("kind: Service\nmetadata: {", "a.yaml:2"),
            ("\n\njust text\n", "a.yaml:3"),
            ("- a\n", "a.yaml:1"),
            ("{\"kind\": 1", "a.yaml:1"),
            ("apiVersion: v1\n", "a.yaml:1"),
            ("a: &a [1]\nb: *c\n", "a.yaml:2"),
        ] {
            assert_eq!(
                keys(&read_text("a.yaml", text)),
                [format!("bad {at}")],
                "{text}"
            );
        }
        let binary = read("a.yaml", b"a: b\n\xff", &mut Decoder::new(Author::File));
        assert_eq!(keys(&binary), ["bad a.yaml:2"]);
        assert_eq!(keys(&read_text("a.json", "{\n\n]")), ["bad a.json:3"]);
        for nothing in ["", "\n# comment\n", "---\n---\n", "---\nnull\n", "~"] {
            assert_eq!(read_text("a.yaml", nothing), [], "{nothing}");
        }
    }

    #[test]
    fn lists_in_lists_do_not_exhaust_the_stack() {
        for depth in [20, 60, 10_000] {
            let text = format!(
                "{}{}",
                "{\"kind\":\"List\",\"items\":[".repeat(depth),
                "]}".repeat(depth)
            );
            for file in ["a.json", "a.yaml"] {
                assert_eq!(read_text(file, &text).len(), 1, "{depth} {file}");
            }
        }
    }

    #[test]
    fn aliases_cannot_make_much_out_of_little() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for i in 1..12 {
            let last = i - 1;
            let aliases = vec![format!("*a{last}"); 10].join(", ");
            text = format!("{text}a{i}: &a{i} [{aliases}]\n");
        }
        text.push_str("kind: Service\n");
        assert!(keys(&read_text("a.yaml", &text))[0].starts_with("bad "));
    }
}
