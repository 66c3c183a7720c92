//! Sliding windows over a long text.

use std::ops::Range;

/// One window of a long text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// The tokens of the window.
    pub tokens: Range<usize>,
    /// Number of scored tokens at the end of the window; the others are context, scored by an earlier window.
    pub scored: usize,
}

/// Splits a text of `tokens` tokens into windows of at most `length`, each beginning `stride` after the one
/// before, so that every token but the first is scored once, with at least `length - stride` tokens of
/// context if the text has them.
///
/// A window has at least one token of context: a `length` below 2 counts as 2, and a `stride` not less than
/// the length as one less than the length.
///
/// ```
/// use lowrank_eval::windows;
/// let cut = windows(10, 6, 3);
/// assert_eq!(cut.iter().map(|w| w.tokens.clone()).collect::<Vec<_>>(), [0..6, 3..9, 6..10]);
/// assert_eq!(cut.iter().map(|w| w.scored).collect::<Vec<_>>(), [5, 3, 1]);
/// ```
pub fn windows(tokens: usize, length: usize, stride: usize) -> Vec<Window> {
    let length = length.max(2);
    let stride = stride.clamp(1, length - 1);
    // The first token is never predicted.
    let (mut windows, mut start, mut done) = (Vec::new(), 0, 1.min(tokens));
    while done < tokens {
        let end = tokens.min(start + length);
        windows.push(Window { tokens: start..end, scored: end - done });
        (start, done) = (start + stride, end);
    }
    windows
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    fn every_token_but_the_first_is_scored_once(
        #[values(0, 1, 2, 7, 100, 101)] tokens: usize,
        #[values(2, 5, 50, 100, 200)] length: usize,
        #[values(1, 2, 50, 999)] stride: usize,
    ) {
        let mut scored = vec![0; tokens];
        for Window { tokens: read, scored: n } in windows(tokens, length, stride) {
            assert!(read.len() <= length && n < read.len(), "a token needs one before it");
            scored[read.end - n..read.end].iter_mut().for_each(|count| *count += 1);
            assert!(read.start == 0 || n <= stride.min(length - 1));
        }
        assert!(scored.iter().skip(1).all(|&count| count == 1), "{scored:?}");
        assert!(scored.first().is_none_or(|&count| count == 0));
    }
}
