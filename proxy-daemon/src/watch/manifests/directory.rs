//! What does the directory hold now, compared with the last look?
//!
//! Invariants: only files whose identity, size or time changed are read again; a document that cannot
//! be read keeps its last good state; of two objects of one name the first counts, in the order of file
//! names and documents; the store sees one look as a whole; an object is gone only if a look lacks it
//! during which nothing happened; nothing in the directory can make us wait, take more memory than
//! [`MAX_FILE`], or put a line of its own into the log.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::changes::Changes;
use super::document::{self, Document};
use super::held::{Found, Held, Identity};
use crate::diagnostics::About;
use crate::model::Diagnostic;
use crate::model::from_k8s::{Author, Decoder, ObjectKey, ObjectKind, Update};
use crate::watch::{Changed, Shared};

/// The file whose content names the state of the directory.
const TOKEN: &str = ".token";

/// How much of the token file is read.
///
/// Unit: bytes.
const MAX_TOKEN: u64 = 256;

/// How large a file may be. A cluster of 50,000 Services is about a quarter of this.
///
/// Unit: bytes.
const MAX_FILE: u64 = 1 << 30;

/// How many disturbed looks in a row may lack an object before it is gone all the same.
///
/// Kernel: a list of names that is read while files are renamed may lack both names of one.
const MAX_DISTURBED: u32 = 3;

/// A directory of manifests and what was read from it.
pub(super) struct Directory {
    path: PathBuf,
    node: Arc<str>,
    decoder: Decoder,
    files: BTreeMap<String, File>,
    /// What the store holds because of us; `None` before the first look.
    told: Option<BTreeSet<ObjectKey>>,
    /// What is still in the store although so many looks in a row lacked it, because they were disturbed.
    missing: BTreeMap<ObjectKey, u32>,
}

/// A file as it was last read.
#[derive(Debug, Default)]
struct File {
    identity: Option<Identity>,
    documents: Vec<Good>,
    /// What is wrong with the file as it is now, also with documents that keep their last good state.
    diagnostics: Vec<Diagnostic>,
}

impl File {
    fn is_empty(&self) -> bool {
        self.identity.is_some_and(|identity| identity.size == 0)
    }
}

/// The last good state of a document.
#[derive(Debug, Default)]
struct Good {
    objects: Vec<Update>,
}

/// What a look found, before it counts.
pub(super) struct Look {
    token: Option<Arc<str>>,
    files: BTreeMap<String, Seen>,
    /// Whether no file was being written, so that the token's state is the one that was read.
    is_whole: bool,
    /// Whether nothing happened meanwhile, so that what was not seen is not there.
    is_calm: bool,
}

enum Seen {
    /// As it was.
    Same,
    /// Read again.
    Read(File),
}

impl Look {
    /// Says that a file changed while it was read: what was read of it does not count.
    pub(super) fn doubt(&mut self, name: &str) {
        if let Some(seen) = self.files.get_mut(name) {
            *seen = Seen::Same;
            self.is_whole = false;
        }
    }

    /// Says that something happened meanwhile.
    pub(super) fn disturb(&mut self) {
        self.is_calm = false;
    }
}

impl Directory {
    /// A directory, of whose Nodes only the one of this name is ours.
    pub(super) fn new(path: PathBuf, node: Arc<str>) -> Self {
        Self {
            path,
            node,
            decoder: Decoder::new(Author::File),
            files: BTreeMap::new(),
            told: None,
            missing: BTreeMap::new(),
        }
    }

    /// The directory.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether another look must decide what is gone.
    pub(super) fn is_undecided(&self) -> bool {
        !self.missing.is_empty()
    }

    /// Reads what changed; files that are being written are not looked at.
    ///
    /// # Errors
    /// When the directory itself cannot be read.
    pub(super) fn look(&mut self, changes: &Changes) -> io::Result<Look> {
        let held = Held::open(&self.path)?;
        // The token is read first: what it names is in the files that are read after it.
        let token = read_token(&held);
        let mut files = BTreeMap::new();
        let mut is_whole = true;
        for name in held.names()? {
            if !is_manifest(&name) {
                continue;
            }
            let seen = if changes.being_written().contains(&name) {
                is_whole = false;
                self.files.contains_key(&name).then_some(Seen::Same)
            } else {
                self.look_at(&held, &name)
            };
            let had_objects = self
                .files
                .get(&name)
                .is_some_and(|old| !old.documents.is_empty());
            let seen = match seen {
                Some(Seen::Read(file))
                    if had_objects && file.is_empty() && changes.may_be_truncated(&name) =>
                {
                    is_whole = false;
                    Some(Seen::Same)
                }
                seen => seen,
            };
            if let Some(seen) = seen {
                files.insert(name, seen);
            }
        }
        Ok(Look {
            token,
            files,
            is_whole,
            is_calm: held.is_at(&self.path),
        })
    }

    /// `None` if the file is gone or is no file.
    fn look_at(&mut self, held: &Held, name: &str) -> Option<Seen> {
        let old = self.files.get(name);
        match held.find(name) {
            Ok(Found::File(identity)) if old.is_some_and(|old| old.identity == Some(identity)) => {
                return Some(Seen::Same);
            }
            Ok(Found::File(_)) => {}
            Ok(Found::Other | Found::Nothing) => return None,
            Err(error) => return Some(self.unreadable(name, &error)),
        }
        match read_file(held, name) {
            Ok(None) => None,
            Ok(Some((identity, text))) => {
                let documents = document::read(&shown(name), &text, &mut self.decoder);
                drop(text);
                let old = self.files.get(name).map_or(&[][..], |old| &old.documents);
                Some(Seen::Read(merge(identity, documents, old)))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => Some(self.unreadable(name, &error)),
        }
    }

    /// A file that is there but cannot be read keeps its last good state.
    fn unreadable(&self, name: &str, error: &io::Error) -> Seen {
        let old = self.files.get(name).map_or(&[][..], |old| &old.documents);
        Seen::Read(File {
            identity: None,
            documents: old.iter().map(Good::share).collect(),
            diagnostics: vec![Diagnostic {
                object: shown(name),
                field: String::new(),
                message: format!("cannot be read: {error}; its last good state stays"),
            }],
        })
    }

    /// Makes a look count: the store and the diagnostics now say what it found.
    pub(super) fn tell(&mut self, look: Look, shared: &Shared) -> Changed {
        let mut token = look.is_whole.then_some(look.token);
        let is_same = look.files.len() == self.files.len()
            && look.files.values().all(|seen| matches!(seen, Seen::Same));
        if is_same && self.told.is_some() && !self.is_undecided() {
            return shared.update(|store| token.map_or(Changed::No, |t| store.set_source_token(t)));
        }
        let mut told = self.told.take().unwrap_or_default();
        let mut old = std::mem::take(&mut self.files);
        for (name, seen) in look.files {
            let file = match seen {
                Seen::Same => old.remove(&name),
                Seen::Read(file) => Some(file),
            };
            if let Some(file) = file {
                self.files.insert(name, file);
            }
        }
        drop(old);
        let Merged {
            objects,
            diagnostics,
        } = self.merged();
        let mut missing = BTreeMap::new();
        let mut gone = Vec::new();
        for key in told.iter().filter(|key| !objects.contains_key(key)) {
            let n_looks = self.missing.get(key).map_or(1, |n| n + 1);
            if look.is_calm || n_looks > MAX_DISTURBED {
                gone.push(key.clone());
            } else {
                missing.insert(key.clone(), n_looks);
            }
        }
        if !missing.is_empty() {
            token = None;
        }
        if objects.is_empty() && !gone.is_empty() {
            let path = self.path.display();
            tracing::warn!(%path, n_gone = gone.len(), "the manifests hold no objects any more");
        }
        // Who hears of the state can ask what is wrong with it.
        shared
            .diagnostics()
            .set(About::Source("manifests"), diagnostics);
        let changed = shared.update(|store| {
            let mut changed = token.map_or(Changed::No, |t| store.set_source_token(t));
            // Removals first: a slice that moves between Services or files is never in both.
            for key in &gone {
                changed = changed.or(store.put(Update::removal(key.clone())));
            }
            for (_, update) in objects.values() {
                changed = changed.or(store.put((*update).clone()));
            }
            for kind in ObjectKind::ALL {
                store.set_listed(kind);
            }
            changed
        });
        for key in &gone {
            told.remove(key);
        }
        for key in objects.keys() {
            if !told.contains(key) {
                told.insert(key.clone());
            }
        }
        tracing::debug!(
            n_files = self.files.len(),
            n_objects = told.len(),
            ?changed,
            "read the manifests"
        );
        self.told = Some(told);
        self.missing = missing;
        changed
    }

    /// The objects of all files, each name once.
    fn merged(&self) -> Merged<'_> {
        let mut objects: BTreeMap<ObjectKey, (&str, &Update)> = BTreeMap::new();
        let mut diagnostics = Vec::new();
        let mut n_foreign_nodes = 0_usize;
        for (name, file) in &self.files {
            diagnostics.extend(file.diagnostics.iter().cloned());
            for update in file.documents.iter().flat_map(|good| &good.objects) {
                let key = update.key();
                if let ObjectKey::Node(node) = &key
                    && *node != self.node
                {
                    n_foreign_nodes += 1;
                    continue;
                }
                if let Some((first, _)) = objects.get(&key) {
                    diagnostics.push(Diagnostic {
                        object: format!("{} {key}", shown(name)),
                        field: String::new(),
                        message: format!("is in {} already; this one is ignored", shown(first)),
                    });
                } else {
                    objects.insert(key, (name, update));
                }
            }
        }
        let has_node = objects.contains_key(&ObjectKey::Node(Arc::clone(&self.node)));
        if n_foreign_nodes > 0 && !has_node {
            diagnostics.push(Diagnostic {
                object: format!("{} {}", ObjectKind::Node, self.node),
                field: String::new(),
                message: format!(
                    "is not among the {n_foreign_nodes} Nodes of the manifests; \
                     --hostname-override says which of them this node is"
                ),
            });
        }
        Merged {
            objects,
            diagnostics,
        }
    }
}

/// What all files together say.
struct Merged<'a> {
    /// The first object of each name, and the file that it is in.
    objects: BTreeMap<ObjectKey, (&'a str, &'a Update)>,
    diagnostics: Vec<Diagnostic>,
}

impl Good {
    fn share(&self) -> Self {
        Self {
            objects: self.objects.clone(),
        }
    }
}

/// A file's new state: what is unchanged is shared with the old one, what is unreadable stays as it was.
fn merge(identity: Identity, documents: Vec<Document>, old: &[Good]) -> File {
    let known: BTreeMap<_, _> = old
        .iter()
        .flat_map(|good| good.objects.iter().map(|update| (update.key(), update)))
        .collect();
    let n_documents = documents.len();
    let any_bad = documents
        .iter()
        .any(|document| matches!(document, Document::Bad(_)));
    // Without the same number of documents nobody can say which one the unreadable one was.
    let keep_whole = any_bad && n_documents != old.len();
    let mut file = File {
        identity: Some(identity),
        ..File::default()
    };
    for (index, document) in documents.into_iter().enumerate() {
        let good = match document {
            Document::Good {
                mut objects,
                diagnostics,
            } => {
                file.diagnostics.extend(diagnostics);
                for update in &mut objects {
                    if let Some(same) = known.get(&update.key()).filter(|old| **old == update) {
                        *update = (*same).clone();
                    }
                }
                Good { objects }
            }
            Document::Bad(mut diagnostic) => {
                let last = old.get(index).filter(|_| !keep_whole).map(Good::share);
                if keep_whole && !old.is_empty() {
                    diagnostic
                        .message
                        .push_str("; the file's last good state stays");
                } else if last.as_ref().is_some_and(|last| !last.objects.is_empty()) {
                    diagnostic.message.push_str("; its last good state stays");
                }
                file.diagnostics.push(diagnostic);
                last.unwrap_or_default()
            }
        };
        file.documents.push(good);
    }
    if keep_whole && !old.is_empty() {
        file.documents = old.iter().map(Good::share).collect();
    }
    file
}

fn is_manifest(name: &str) -> bool {
    !name.starts_with('.')
        && Path::new(name).extension().is_some_and(|extension| {
            ["yaml", "yml", "json"]
                .iter()
                .any(|known| extension == *known)
        })
}

/// A file's name as a log line can hold it: it may have any character but `/`.
fn shown(name: &str) -> String {
    name.escape_debug().to_string()
}

/// What a file holds; `None` if it is no file.
fn read_file(held: &Held, name: &str) -> io::Result<Option<(Identity, Vec<u8>)>> {
    let Some((file, identity)) = held.open_file(name)? else {
        return Ok(None);
    };
    let mut text = Vec::new();
    let too_large = || io::Error::other(format!("it is larger than {MAX_FILE} bytes"));
    if identity.size > MAX_FILE {
        return Err(too_large());
    }
    text.try_reserve_exact(usize::try_from(identity.size).unwrap_or(0))?;
    // One byte more says that it grew beyond.
    let n_bytes = file.take(MAX_FILE + 1).read_to_end(&mut text)?;
    if u64::try_from(n_bytes).is_ok_and(|n| n > MAX_FILE) {
        return Err(too_large());
    }
    Ok(Some((identity, text)))
}

fn read_token(held: &Held) -> Option<Arc<str>> {
    let (file, _) = held.open_file(TOKEN).ok()??;
    let mut bytes = Vec::new();
    file.take(MAX_TOKEN).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let text = text.trim();
    (!text.is_empty()).then(|| text.into())
}
