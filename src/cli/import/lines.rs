//! Lines of bytes, with their numbers and a limit.

use std::io::{self, BufRead, BufReader, Read};

/// What stands before the text in files from some editors; it is no part of the first key.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// A reader of lines. A line end is `\n` or `\r\n`, and may be missing at the end.
pub(super) struct Lines<R> {
    input: BufReader<R>,
    limit: usize,
    number: u64,
}

/// A line without its end.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    Whole(Vec<u8>),
    /// It is longer than the limit; it was read over.
    TooLong,
}

impl<R: Read> Lines<R> {
    /// Lines of up to `limit` bytes, their ends counted in.
    pub(super) fn new(input: R, limit: usize) -> Lines<R> {
        Lines { input: BufReader::with_capacity(64 * 1024, input), limit, number: 0 }
    }

    /// The next line and its number, counted from 1; none at the end.
    pub(super) fn next(&mut self) -> io::Result<Option<(u64, Line)>> {
        let mut line = Vec::new();
        let most = self.limit as u64;
        if self.input.by_ref().take(most).read_until(b'\n', &mut line)? == 0 {
            return Ok(None);
        }
        self.number += 1;
        if line.last() != Some(&b'\n') && line.len() == self.limit {
            self.input.skip_until(b'\n')?;
            return Ok(Some((self.number, Line::TooLong)));
        }
        if line.last() == Some(&b'\n') {
            line.pop();
        }
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        if self.number == 1 && line.starts_with(BYTE_ORDER_MARK) {
            line.drain(..BYTE_ORDER_MARK.len());
        }
        Ok(Some((self.number, Line::Whole(line))))
    }
}

#[cfg(test)]
mod tests {
    use super::{Line, Lines};

    #[test]
    fn lines_have_numbers_and_a_limit() {
        let input = b"\xef\xbb\xbfone\ntwo\r\n\nfar too long\n\xff\nend";
        let mut lines = Lines::new(&input[..], 8);
        let mut found = Vec::new();
        while let Some(line) = lines.next().unwrap() {
            found.push(line);
        }
        let whole = |text: &[u8]| Line::Whole(text.to_vec());
        assert_eq!(
            found,
            [
                (1, whole(b"one")),
                (2, whole(b"two")),
                (3, whole(b"")),
                (4, Line::TooLong),
                (5, whole(b"\xff")),
                (6, whole(b"end")),
            ]
        );
    }
}
