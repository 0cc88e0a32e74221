//! What are the words of a Rust file, leaving out comments and strings?
//!
//! A tokenizer of a page: enough to see paths, `unsafe` and module nesting, without a parser's weight.

/// A word or sign, with its line (counted from 1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Token<'a> {
    pub(super) text: &'a str,
    pub(super) line: usize,
}

/// What a piece of source is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Skip,
    Word,
    Sign,
    Text,
}

/// Splits `source` into words, `::`, and single signs; comments are left out, strings appear as `""`.
pub(super) fn tokens(source: &str) -> Vec<Token<'_>> {
    let mut found = Vec::new();
    let mut line = 1;
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let (kind, len) = piece(rest, first);
        let (text, after) = rest.split_at(len.min(rest.len()).max(first.len_utf8()));
        match kind {
            Kind::Word | Kind::Sign => found.push(Token { text, line }),
            Kind::Text => found.push(Token { text: "\"\"", line }),
            Kind::Skip => {}
        }
        line += text.matches('\n').count();
        rest = after;
    }
    found
}

/// The string literals of `source`, without their quotes, with their lines.
pub(super) fn strings(source: &str) -> Vec<Token<'_>> {
    let mut found = Vec::new();
    let mut line = 1;
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let (kind, len) = piece(rest, first);
        let (text, after) = rest.split_at(len.min(rest.len()).max(first.len_utf8()));
        if kind == Kind::Text {
            let content = text.split_once('"').map_or("", |(_, rest)| rest);
            found.push(Token {
                text: content.rsplit_once('"').map_or(content, |(inner, _)| inner),
                line,
            });
        }
        line += text.matches('\n').count();
        rest = after;
    }
    found
}

/// Kind and length in bytes of what `rest` starts with.
fn piece(rest: &str, first: char) -> (Kind, usize) {
    if rest.starts_with("//") {
        return (Kind::Skip, rest.find('\n').unwrap_or(rest.len()));
    }
    if rest.starts_with("/*") {
        return (Kind::Skip, block_comment(rest));
    }
    if let Some(len) = string(rest) {
        return (Kind::Text, len);
    }
    if first == '\'' {
        return (Kind::Skip, char_or_lifetime(rest));
    }
    if first.is_alphanumeric() || first == '_' {
        let len = rest
            .find(|c: char| !(c.is_alphanumeric() || c == '_'))
            .unwrap_or(rest.len());
        return (Kind::Word, len);
    }
    if first.is_whitespace() {
        return (Kind::Skip, first.len_utf8());
    }
    if rest.starts_with("::") {
        return (Kind::Sign, 2);
    }
    (Kind::Sign, first.len_utf8())
}

fn block_comment(rest: &str) -> usize {
    let mut depth = 0_usize;
    let mut chars = rest.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        let next = chars.peek().map(|(_, n)| *n);
        if c == '/' && next == Some('*') {
            depth += 1;
            chars.next();
        } else if c == '*' && next == Some('/') {
            depth -= 1;
            chars.next();
            if depth == 0 {
                return at + 2;
            }
        }
    }
    rest.len()
}

/// The length of a string literal (plain, byte, C, raw) at the start of `rest`.
fn string(rest: &str) -> Option<usize> {
    let prefix = ["br", "cr", "b", "c", "r", ""].into_iter().find(|p| {
        rest.strip_prefix(p).is_some_and(|r| {
            if p.ends_with('r') {
                r.trim_start_matches('#').starts_with('"')
            } else {
                r.starts_with('"')
            }
        })
    })?;
    let body = rest.strip_prefix(prefix)?;
    if prefix.ends_with('r') {
        let hashes = body.len() - body.trim_start_matches('#').len();
        let end = format!("\"{}", "#".repeat(hashes));
        let content = body.get(hashes + 1..)?;
        let close = content
            .find(&end)
            .map_or(content.len(), |at| at + end.len());
        return Some(prefix.len() + hashes + 1 + close);
    }
    let mut escaped = false;
    for (at, c) in body.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Some(prefix.len() + at + 1),
            _ => {}
        }
    }
    Some(rest.len())
}

fn char_or_lifetime(rest: &str) -> usize {
    let mut chars = rest.char_indices().skip(1);
    match (chars.next(), chars.next()) {
        (Some((_, '\\')), _) => {
            // '\n', '\'', '\u{1f600}': the closing quote is the next one after the escaped character
            rest.get(3..)
                .and_then(|r| r.find('\''))
                .map_or(rest.len(), |at| at + 4)
        }
        (Some(_), Some((at, '\''))) => at + 1,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(source: &str) -> Vec<&str> {
        tokens(source).into_iter().map(|t| t.text).collect()
    }

    #[test]
    fn comments_and_strings_are_left_out() {
        assert_eq!(
            words("a // unsafe\n/* b /* c */ d */ \"crate::x \\\" y\" r#\"\"unsafe\"\"# b\"z\" e"),
            ["a", "\"\"", "\"\"", "\"\"", "e"]
        );
    }

    #[test]
    fn characters_and_lifetimes_do_not_start_strings() {
        assert_eq!(
            words("'\"' 'a' '\\'' '\\u{41}' &'static str"),
            ["&", "static", "str"]
        );
    }

    #[test]
    fn paths_are_words_and_double_colons() {
        assert_eq!(
            words("use crate::a::{b};"),
            ["use", "crate", "::", "a", "::", "{", "b", "}", ";"]
        );
    }

    #[test]
    fn lines_are_counted_also_inside_strings_and_comments() {
        let all = tokens("\"\n\"\n/*\n*/ x");
        assert_eq!(all.last().map(|t| (t.text, t.line)), Some(("x", 4)));
    }

    #[test]
    fn strings_are_found_with_their_content() {
        let all: Vec<_> = strings("f(\"svc_1_a\"); // \"no\"\ng(r\"b\")")
            .into_iter()
            .map(|t| t.text)
            .collect();
        assert_eq!(all, ["svc_1_a", "b"]);
    }
}
