//! Which objects do the files of the directory hold?
//!
//! Invariants: only files that are due and whose identity, size or time changed are read again; a
//! document that cannot be read keeps its last good state; of two objects of one name the first counts,
//! in the order of file names and documents; the store takes in one scan as a whole; a file is gone only if a
//! scan lacks it during which no other changed, or [`MAX_MISSING`] scans in a row do; nothing in the directory can make us wait, take more
//! memory than [`MAX_FILE`], or put a line of its own into the log.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::changes::Changes;
use super::document::{self, Document};
use super::open_directory::{Identity, OpenDirectory};
use crate::diagnostics::About;
use crate::model::Diagnostic;
use crate::model::from_k8s::{Author, Decoder, ObjectKey, ObjectKind, Update};
use crate::watch::Shared;

/// The file whose content names the state of the directory.
pub(super) const TOKEN: &str = ".token";

/// How much of the token file is read.
///
/// Unit: bytes.
const MAX_TOKEN: u64 = 256;

/// How large a file may be. A cluster of 50,000 Services is about a quarter of this.
///
/// Unit: bytes.
const MAX_FILE: u64 = 1 << 30;

/// So many scans in a row that lack a file are enough, even if another changes during each of them.
const MAX_MISSING: u32 = 3;

/// A directory of manifests and what was read from it.
pub(super) struct Directory {
    path: PathBuf,
    node: Arc<str>,
    decoder: Decoder,
    files: BTreeMap<String, File>,
    /// The keys of our objects in the store; `None` before the first scan.
    applied: Option<BTreeSet<ObjectKey>>,
    /// The directory that the path led to at the last scan.
    opened: Option<(u64, u64)>,
    /// How many scans in a row lacked a file while others changed.
    missing: BTreeMap<String, u32>,
}

/// A file as it was last read.
#[derive(Debug, Default)]
struct File {
    identity: Option<Identity>,
    /// The objects of each document, in its last good state.
    documents: Vec<Vec<Update>>,
    /// What is wrong with the file as it is now, also with documents that keep their last good state.
    diagnostics: Vec<Diagnostic>,
}

/// The first object of each name, and the file that it is in.
type Objects<'a> = BTreeMap<ObjectKey, (&'a str, &'a Update)>;

enum Change {
    Read(File),
    Gone,
}

/// The result of a scan, before the store has it.
pub(super) struct Scan {
    token: Option<Arc<str>>,
    /// The files that changed.
    files: BTreeMap<String, Change>,
    /// Whether nothing is left for later, so that the token's state is the one that was read.
    is_whole: bool,
}

impl Directory {
    /// A directory, of whose Nodes only the one of this name is ours.
    pub(super) fn new(path: PathBuf, node: Arc<str>) -> Self {
        Self {
            path,
            node,
            decoder: Decoder::new(Author::File),
            files: BTreeMap::new(),
            applied: None,
            opened: None,
            missing: BTreeMap::new(),
        }
    }

    /// The directory.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the files that are due.
    ///
    /// # Errors
    /// When the directory itself cannot be read.
    pub(super) fn scan(&mut self, changes: &mut Changes) -> io::Result<Scan> {
        changes.take_events();
        changes.watch_or_poll(&self.path);
        let open = OpenDirectory::open(&self.path)?;
        // The path may be a link that is pointed elsewhere, which makes no event.
        let opened = Some(open.identity()?);
        if self.opened.is_some() && self.opened != opened {
            changes.unwatch();
            changes.watch_or_poll(&self.path);
        }
        self.opened = opened;
        changes.take_token();
        // The token is read first: the state that it names is in the files that are due after it.
        let token = read_token(&open);
        let due = changes.take_due(|| {
            let names = open.names()?.into_iter().filter(|name| is_manifest(name));
            Ok(names.chain(self.files.keys().cloned()).collect())
        })?;
        let mut files = BTreeMap::new();
        for name in due {
            if let Some(file) = self.read_if_changed(&open, &name) {
                files.insert(name, file);
            }
        }
        let is_there = open.is_at(&self.path);
        if !is_there {
            changes.unwatch();
        }
        let is_calm = !changes.take_events() && is_there;
        // A file that was written during the scan may have been read in part.
        files.retain(|name, _| !changes.written().contains(name));
        let mut is_whole = changes.being_written().is_empty() && changes.written().is_empty();
        // Kernel: a file that is renamed during the scan may be found under neither name.
        let missing = std::mem::take(&mut self.missing);
        files.retain(|name, file| {
            let n_scans = missing.get(name).map_or(1, |n_before| n_before + 1);
            let counts = is_calm || n_scans >= MAX_MISSING || matches!(file, Change::Read(_));
            if !counts {
                self.missing.insert(name.clone(), n_scans);
                changes.set_due(name);
                is_whole = false;
            }
            counts
        });
        Ok(Scan {
            token,
            files,
            is_whole,
        })
    }

    /// What changed about a file, if anything did; it is also gone if it is no regular file.
    fn read_if_changed(&mut self, open: &OpenDirectory, name: &str) -> Option<Change> {
        let old = self.files.get(name);
        let documents = old.map_or(&[][..], |old| &old.documents);
        let read = open.open_file(name).and_then(|found| {
            let Some((file, identity)) = found else {
                return Ok(old.map(|_| Change::Gone));
            };
            if old.is_some_and(|old| old.identity == Some(identity)) {
                return Ok(None);
            }
            let text = read_file(file, identity)?;
            let read = document::read(&escaped(name), &text, &mut self.decoder);
            Ok(Some(Change::Read(merge(identity, read, documents))))
        });
        // A file that is there but cannot be read keeps its last good state.
        read.unwrap_or_else(|error| {
            Some(Change::Read(File {
                identity: None,
                documents: documents.to_vec(),
                diagnostics: vec![Diagnostic {
                    object: escaped(name),
                    field: String::new(),
                    message: format!("cannot be read: {error}; its last good state stays"),
                }],
            }))
        })
    }

    /// Puts the result of a scan into the store and the diagnostics.
    pub(super) fn apply(&mut self, scan: Scan, shared: &Shared) {
        let token = scan.is_whole.then_some(scan.token);
        if scan.files.is_empty() && self.applied.is_some() {
            shared.update(|store| token.map(|token| store.set_source_token(token)));
            return;
        }
        for (name, file) in scan.files {
            match file {
                Change::Read(file) => self.files.insert(name, file),
                Change::Gone => self.files.remove(&name),
            };
        }
        let (objects, diagnostics) = self.merged();
        let applied = self.applied.iter().flatten();
        let gone: Vec<_> = applied
            .filter(|key| !objects.contains_key(key))
            .cloned()
            .collect();
        if objects.is_empty() && !gone.is_empty() {
            let path = self.path.display();
            tracing::warn!(%path, n_gone = gone.len(), "the manifests hold no objects any more");
        }
        // A reader of the new state finds its diagnostics.
        shared
            .diagnostics()
            .set(About::Source("manifests"), diagnostics);
        shared.update(|store| {
            token.map(|token| store.set_source_token(token));
            // Removals first: a slice that moves between Services or files is never in both.
            let current = objects.values().map(|(_, update)| (*update).clone());
            for update in gone.into_iter().map(Update::removal).chain(current) {
                store.put(update);
            }
            for kind in ObjectKind::ALL {
                store.set_listed(kind);
            }
        });
        let (n_files, n_objects) = (self.files.len(), objects.len());
        tracing::debug!(n_files, n_objects, "read the manifests");
        self.applied = Some(objects.into_keys().collect());
    }

    /// The objects of all files, each name once.
    fn merged(&self) -> (Objects<'_>, Vec<Diagnostic>) {
        let mut objects = Objects::new();
        let mut diagnostics = Vec::new();
        let mut n_foreign_nodes = 0_usize;
        for (name, file) in &self.files {
            diagnostics.extend(file.diagnostics.iter().cloned());
            for update in file.documents.iter().flatten() {
                let key = update.key();
                if let ObjectKey::Node(node) = &key
                    && *node != self.node
                {
                    n_foreign_nodes += 1;
                    continue;
                }
                if let Some((first, _)) = objects.get(&key) {
                    diagnostics.push(Diagnostic {
                        object: format!("{} {key}", escaped(name)),
                        field: String::new(),
                        message: format!("is in {} already; this one is ignored", escaped(first)),
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
        (objects, diagnostics)
    }
}

/// A file's new state: unchanged objects are shared with the old one, unreadable documents stay as they were.
fn merge(identity: Identity, documents: Vec<Document>, old: &[Vec<Update>]) -> File {
    let objects = old.iter().flatten();
    let known: BTreeMap<_, _> = objects.map(|update| (update.key(), update)).collect();
    // With another number of documents the unreadable one cannot be identified.
    let is_same_number = documents.len() == old.len();
    let mut keeps_all = false;
    let mut file = File {
        identity: Some(identity),
        ..File::default()
    };
    for (index, document) in documents.into_iter().enumerate() {
        file.documents.push(match document {
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
                objects
            }
            Document::Bad(mut diagnostic) => {
                let last = old.get(index).filter(|_| is_same_number);
                let last = last.cloned().unwrap_or_default();
                let kept = if !is_same_number && !old.is_empty() {
                    keeps_all = true;
                    "; the file's last good state stays"
                } else if !last.is_empty() {
                    "; its last good state stays"
                } else {
                    ""
                };
                diagnostic.message.push_str(kept);
                file.diagnostics.push(diagnostic);
                last
            }
        });
    }
    if keeps_all {
        file.documents = old.to_vec();
    }
    file
}

pub(super) fn is_manifest(name: &str) -> bool {
    let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
    !name.starts_with('.') && ["yaml", "yml", "json"].contains(&extension)
}

/// A file's name as a log line can hold it: it may have any character but `/`.
fn escaped(name: &str) -> String {
    name.escape_debug().to_string()
}

fn read_file(file: fs::File, identity: Identity) -> io::Result<Vec<u8>> {
    if identity.size > MAX_FILE {
        let message = format!("it is larger than {MAX_FILE} bytes");
        return Err(io::Error::other(message));
    }
    let mut text = Vec::new();
    text.try_reserve_exact(usize::try_from(identity.size).unwrap_or(0))?;
    // A file that has grown meanwhile is being written: it is read again.
    file.take(MAX_FILE).read_to_end(&mut text)?;
    Ok(text)
}

fn read_token(open: &OpenDirectory) -> Option<Arc<str>> {
    let (file, _) = open.open_file(TOKEN).ok()??;
    let mut bytes = Vec::new();
    file.take(MAX_TOKEN).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let text = text.trim();
    (!text.is_empty()).then(|| text.into())
}
