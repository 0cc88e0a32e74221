//! What reads bytes that others write? One entry function for each parser.
//!
//! `proxy-daemon/fuzz` gives them what cargo-fuzz finds. The tests below give them the kept corpus and random changes of it, so that
//! they run with the units on a stable compiler. Invariant: no input makes one panic.

use crate::datapath::iptables::readback;
use crate::model::from_k8s::wire::Object;
use crate::model::from_k8s::{Author, Decoder, ObjectKind};
use crate::sys::netfilter::attributes::Attrs;
use crate::watch::{kubernetes, manifests};

/// A parser, by the name of its target and corpus.
pub type Target = (&'static str, fn(&[u8]));

/// Every parser.
pub const TARGETS: &[Target] = &[
    ("objects", objects),
    ("list", list),
    ("watch", watch),
    ("manifests", manifests),
    ("iptables_save", iptables_save),
    ("ipset_save", ipset_save),
    ("netlink", netlink),
];

/// JSON of a Service, EndpointSlice, Node or ServiceCIDR; each is also read as what it is not.
pub fn objects(bytes: &[u8]) {
    let Ok(object) = serde_json::from_slice::<Object<'_>>(bytes) else {
        return;
    };
    for kind in ObjectKind::ALL {
        for author in [Author::ApiServer, Author::File] {
            let _decoded = Decoder::new(author).decode(kind, &object);
        }
    }
}

/// A page of a list, as an API server sends it.
pub fn list(bytes: &[u8]) {
    let mut decoder = Decoder::new(Author::ApiServer);
    let each = |object: Result<&Object<'_>, String>| {
        if let Ok(object) = object {
            let _decoded = decoder.decode(ObjectKind::EndpointSlice, object);
        }
    };
    let _page = kubernetes::page::read(bytes, each);
}

/// The bytes of a watch, in the pieces that the first byte asks for.
pub fn watch(bytes: &[u8]) {
    let size = usize::from(bytes.first().copied().unwrap_or_default()) + 1;
    let mut lines = kubernetes::lines::Lines::default();
    for piece in bytes.chunks(size) {
        let _taken: Result<(), ()> = lines.take(piece, |line| {
            objects(line);
            Ok(())
        });
    }
}

/// A file of manifests, as YAML and as JSON.
pub fn manifests(bytes: &[u8]) {
    for file in ["fuzz.yaml", "fuzz.json"] {
        let mut decoder = Decoder::new(Author::File);
        let _documents = manifests::document::read(file, bytes, &mut decoder);
    }
}

/// What `iptables-save` prints.
pub fn iptables_save(bytes: &[u8]) {
    readback::read_printed_rules(&String::from_utf8_lossy(bytes));
}

/// What `ipset save` prints.
pub fn ipset_save(bytes: &[u8]) {
    readback::read_printed_sets(&String::from_utf8_lossy(bytes));
}

/// Attributes of a netlink message, each also read as what it is not, and as attributes in an attribute.
pub fn netlink(bytes: &[u8]) {
    fn walk(attributes: Attrs<'_>, depth: u32) {
        for attribute in attributes {
            let _number = (attribute.u32(), attribute.u64());
            let _text = attribute.str();
            if depth > 0 {
                walk(Attrs(attribute.payload), depth - 1);
            }
        }
    }
    walk(Attrs(bytes), 8);
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;
    use std::path::{Path, PathBuf};

    use super::*;

    /// How many changed inputs each parser is given.
    const N_CHANGED: usize = 500;
    /// No input grows beyond this.
    const MOST: usize = 20_000;

    fn corpus(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("fuzz/corpus")
            .join(name)
    }

    fn kept(name: &str) -> Vec<Vec<u8>> {
        let files = std::fs::read_dir(corpus(name)).unwrap();
        let mut paths: Vec<_> = files.map(|file| file.unwrap().path()).collect();
        paths.sort();
        paths
            .iter()
            .map(|path| std::fs::read(path).unwrap())
            .collect()
    }

    /// Runs a parser; an input that it does not bear is kept beside the others.
    fn check((name, parse): Target, input: &[u8]) {
        if catch_unwind(|| parse(input)).is_err() {
            let length = input.len();
            let path = corpus(name).join(format!("panicked-{length}"));
            std::fs::write(&path, input).unwrap();
            panic!("{name} panics on {}", path.display());
        }
    }

    /// Changes some bytes, cuts, doubles, or puts two inputs together.
    fn mutate(inputs: &[Vec<u8>], random: &mut impl FnMut(usize) -> usize) -> Vec<u8> {
        let mut input = inputs[random(inputs.len())].clone();
        for _ in 0..=random(6) {
            let at = random(input.len() + 1);
            match random(6) {
                0 => input.truncate(at),
                1 => input.extend_from_within(at..),
                2 => {
                    let other = &inputs[random(inputs.len())];
                    input.splice(at.., other[random(other.len() + 1)..].iter().copied());
                }
                3 => {
                    let special = b"\0\n\t \"'{}[]:,-*&!|>%\\\xff9";
                    input.insert(at, special[random(special.len())]);
                }
                4 if at < input.len() => drop(input.remove(at)),
                _ => {
                    if let Some(byte) = input.get_mut(at) {
                        *byte ^= 1 << random(8);
                    }
                }
            }
            input.truncate(MOST);
        }
        input
    }

    #[test]
    fn no_input_of_the_corpus_or_near_it_makes_a_parser_panic() {
        // The same each time: whoever wants others fuzzes.
        let mut state = 1_u64;
        let mut random = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005);
            state = state.wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(state >> 33).unwrap() % below.max(1)
        };
        for target in TARGETS {
            let inputs = kept(target.0);
            assert!(!inputs.is_empty(), "{} has no corpus", target.0);
            for input in &inputs {
                check(*target, input);
            }
            for _ in 0..N_CHANGED {
                check(*target, &mutate(&inputs, &mut random));
            }
        }
    }
}
