//! How does a stream of bytes become whole lines?
//!
//! Invariants: a line that arrives whole is not copied; a line longer than [`MAX_LINE`] is thrown away
//! and counted, so that no peer can make us hold more.

/// The longest line that is kept. The API server accepts objects of at most 3 MiB.
///
/// Unit: bytes.
pub(super) const MAX_LINE: usize = 32 * 1024 * 1024;

/// The beginning of a line whose end has not arrived.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    begun: Vec<u8>,
    is_overlong: bool,
    /// How many lines were thrown away.
    pub(crate) n_overlong: usize,
}

impl Lines {
    /// Takes what arrived and hands over each line that is now whole, without its end.
    ///
    /// # Errors
    /// What `line` returns; the rest of what arrived is then lost.
    pub(crate) fn take<E>(
        &mut self,
        mut arrived: &[u8],
        mut line: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        while let Some(end) = memchr::memchr(b'\n', arrived) {
            let (head, tail) = arrived.split_at(end);
            arrived = tail.get(1..).unwrap_or_default();
            if self.is_overlong {
                self.is_overlong = false;
                self.n_overlong += 1;
            } else if self.begun.is_empty() {
                line(head)?;
            } else {
                self.begun.extend_from_slice(head);
                let whole = std::mem::take(&mut self.begun);
                line(&whole)?;
                if whole.capacity() <= MAX_LINE / 32 {
                    self.begun = whole;
                    self.begun.clear();
                }
            }
        }
        if self.begun.len() + arrived.len() > MAX_LINE {
            self.is_overlong = true;
            self.begun = Vec::new();
        } else if !self.is_overlong {
            self.begun.extend_from_slice(arrived);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(lines: &mut Lines, arrived: &[u8]) -> Vec<String> {
        let mut whole = Vec::new();
        lines
            .take(arrived, |line| {
                whole.push(String::from_utf8_lossy(line).into_owned());
                Ok::<_, ()>(())
            })
            .expect("lines");
        whole
    }

    #[test]
    fn lines_are_put_together_from_any_pieces() {
        let text = b"one\n\ntwo\nthree\n";
        for piece in 1..text.len() {
            let mut state = Lines::default();
            let found: Vec<_> = text
                .chunks(piece)
                .flat_map(|c| lines(&mut state, c))
                .collect();
            assert_eq!(found, ["one", "", "two", "three"]);
        }
    }

    #[test]
    fn an_overlong_line_is_thrown_away_and_the_next_one_kept() {
        let mut state = Lines::default();
        let piece = vec![b'x'; MAX_LINE / 4 + 1];
        for _ in 0..12 {
            assert_eq!(lines(&mut state, &piece), Vec::<String>::new());
            assert!(state.begun.len() <= MAX_LINE);
        }
        assert_eq!(lines(&mut state, b"x\nnext\n"), ["next"]);
        assert_eq!(state.n_overlong, 1);
    }
}
