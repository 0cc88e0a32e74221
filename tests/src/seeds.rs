//! Which random draws once failed? They are kept in `tests/seeds`, one a line, and replayed first.
//!
//! Invariant: a failing test adds its line; the line is committed with the fix.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("seeds/{name}.txt"))
}

/// The kept lines of a test.
///
/// # Panics
/// When the file cannot be read.
pub fn kept(name: &str) -> Vec<String> {
    let text = fs::read_to_string(path(name)).unwrap();
    let lines = text
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim());
    lines
        .filter(|line| !line.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Keeps a line, if it is not kept already. An error is only printed, because the test has failed anyway.
pub fn keep(name: &str, line: &str) {
    if kept(name).iter().any(|old| old == line) {
        return;
    }
    let file = fs::File::options().append(true).open(path(name));
    if let Err(error) = file.and_then(|mut file| writeln!(file, "{line}")) {
        eprintln!("cannot keep `{line}` in {}: {error}", path(name).display());
    }
}
