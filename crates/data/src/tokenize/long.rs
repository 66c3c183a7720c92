//! Long texts, in memory of a few times their size.
//!
//! While it normalizes and splits a text, the library takes about a hundred bytes for each of its bytes. A long text is
//! therefore tokenized in overlapping windows, which are joined where both agree: at the first run of tokens with the same
//! ids and places that is far from either window's edge. What a tokenizer does at one place depends on its neighbourhood
//! alone (a word, or for a model without words the merges around it), so that the result is that of the whole text.

use std::ops::Range;

use rayon::prelude::*;
use tokenizers::Encoding;

use crate::error::{DataError, Result};
use crate::tokenize::TextTokenizer;

/// Bytes of the longest text that is tokenized at once.
pub(super) const LONG: usize = 2 << 20;
/// Tokens that two windows must have in common.
const AGREE: usize = 16;
/// Tokens before the end of a text's beginning that its continuation could change.
const UNCERTAIN: usize = 256;

/// Sizes in bytes.
#[derive(Clone, Copy)]
struct Sizes {
    window: usize,
    overlap: usize,
    /// The largest window after merging windows without a common run.
    largest: usize,
}

const SIZES: Sizes = Sizes { window: 1 << 20, overlap: 1 << 14, largest: 8 << 20 };

/// Ids, and the first byte and the byte after the last of each token.
type Tokens = (Vec<u32>, Vec<(usize, usize)>);

/// The tokens of a window, with places in the whole text.
struct Window {
    bytes: Range<usize>,
    ids: Vec<u32>,
    offsets: Vec<(usize, usize)>,
    /// The tokens that go into the result.
    kept: Range<usize>,
}

impl TextTokenizer {
    /// A text without special tokens, for an encoding that keeps at most `room` of its tokens.
    pub(super) fn part(&self, text: &str, room: Option<usize>) -> Result<Encoding> {
        if text.len() <= LONG {
            return self.inner.encode_fast(text, false).map_err(DataError::encoding);
        }
        if let Some(room) = room {
            let beginning = &text[..boundary(text, SIZES.window)];
            let mut encoding = self.inner.encode_fast(beginning, false).map_err(DataError::encoding)?;
            if encoding.len() >= room + UNCERTAIN {
                encoding.truncate(room + 1, 0, tokenizers::TruncationDirection::Right);
                encoding.set_overflowing(Vec::new());
                return Ok(encoding);
            }
        }
        let (ids, offsets) = self.in_windows(text, SIZES)?;
        let n = ids.len();
        let (none, every) = (vec![0; n], vec![1; n]);
        let tokens = vec![String::new(); n];
        let ranges = Default::default();
        Ok(Encoding::new(ids, none.clone(), tokens, vec![None; n], offsets, none, every, Vec::new(), ranges))
    }

    /// Ids and byte ranges of a long text.
    pub(super) fn long_spans(&self, text: &str) -> Result<Tokens> {
        self.in_windows(text, SIZES)
    }

    fn in_windows(&self, text: &str, sizes: Sizes) -> Result<Tokens> {
        let step = sizes.window - sizes.overlap;
        let count = text.len().saturating_sub(sizes.overlap).div_ceil(step).max(1);
        let place = |index: usize| {
            boundary(text, index * step)..boundary(text, (index * step).saturating_add(sizes.window))
        };
        let windows: Vec<Window> = (0..count)
            .into_par_iter()
            .map(|index| self.window_at(text, place(index)))
            .collect::<Result<_>>()?;
        let mut joined: Vec<Window> = Vec::with_capacity(windows.len());
        for mut next in windows {
            while let Some(last) = joined.last_mut() {
                if let Some((i, j)) = common(last, &next) {
                    (last.kept.end, next.kept.start) = (i, j);
                    break;
                }
                let bytes = last.bytes.start..next.bytes.end;
                if bytes.len() > sizes.largest {
                    let message = format!(
                        "it has a part of {} MB in which no word ends; split it",
                        bytes.len().div_ceil(1_000_000)
                    );
                    return Err(DataError::encoding(message));
                }
                joined.pop();
                next = self.window_at(text, bytes)?;
            }
            joined.push(next);
        }
        let kept = || joined.iter().filter(|window| window.kept.start < window.kept.end);
        let ids = kept().flat_map(|window| &window.ids[window.kept.clone()]).copied().collect();
        Ok((ids, kept().flat_map(|window| &window.offsets[window.kept.clone()]).copied().collect()))
    }

    fn window_at(&self, text: &str, bytes: Range<usize>) -> Result<Window> {
        let encoding = self.inner.encode(&text[bytes.clone()], false).map_err(DataError::encoding)?;
        let moved = |&(start, end): &(usize, usize)| (start + bytes.start, end + bytes.start);
        let offsets = encoding.get_offsets().iter().map(moved).collect();
        let ids = encoding.get_ids().to_vec();
        Ok(Window { bytes, kept: 0..ids.len(), ids, offsets })
    }
}

/// Refuses a text that is processed as a whole.
pub(super) fn check_length(bytes: usize) -> Result<()> {
    if bytes > SIZES.largest {
        return Err(DataError::encoding(format!(
            "it has {bytes} bytes; split it into parts of at most {}",
            SIZES.largest
        )));
    }
    Ok(())
}

/// The largest boundary of a character that is at most `at`.
fn boundary(text: &str, at: usize) -> usize {
    text.floor_char_boundary(at)
}

/// The first token of the first run that two windows have in common: its index in either. Away from the edges, where a
/// window sees less of the text.
fn common(one: &Window, other: &Window) -> Option<(usize, usize)> {
    let margin = one.bytes.end.saturating_sub(other.bytes.start) / 4;
    let (from, to) = (other.bytes.start + margin, one.bytes.end - margin);
    let begin = |window: &Window| window.offsets.partition_point(|&(start, _)| start < from);
    let (mut i, mut j) = (begin(one), begin(other));
    // The tokens of one character have the same place; a run begins with the first of them.
    let is_first = |window: &Window, at: usize| at == 0 || window.offsets[at - 1].0 < window.offsets[at].0;
    while i + AGREE <= one.ids.len() && j + AGREE <= other.ids.len() && one.offsets[i + AGREE - 1].1 <= to {
        match one.offsets[i].0.cmp(&other.offsets[j].0) {
            std::cmp::Ordering::Less => i += 1,
            std::cmp::Ordering::Greater => j += 1,
            std::cmp::Ordering::Equal => {
                let is_same = one.ids[i..i + AGREE] == other.ids[j..j + AGREE]
                    && one.offsets[i..i + AGREE] == other.offsets[j..j + AGREE];
                // What the earlier window already contributes must not be taken back.
                if is_same && is_first(one, i) && is_first(other, j) && i >= one.kept.start {
                    return Some((i, j));
                }
                (i, j) = (i + 1, j + 1);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tokenizers::TruncationDirection;

    use super::*;

    const SMALL: Sizes = Sizes { window: 2048, overlap: 512, largest: 8192 };

    /// A text of words, spaces, lines, numbers and other scripts.
    fn sample(seed: u64, words: usize) -> String {
        let mut state = seed;
        let mut draw = |n: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % n
        };
        let parts = [
            "the",
            "film",
            "was",
            "Wonderful",
            "grocers",
            "12345",
            "é",
            "日本語の",
            "🎉🎉",
            "don't",
            "\u{200d}",
            "x",
            "unbelievably",
            "...",
            "  ",
            "\n\n",
            "\t",
            "<s>",
            "naïve",
            "aaaaaaaa",
            "[MASK]",
        ];
        let mut text = String::new();
        for _ in 0..words {
            text.push_str(parts[draw(parts.len())]);
            text.push_str(["", " ", " ", " ", "\n", ", "][draw(6)]);
        }
        text
    }

    #[test]
    fn windows_give_the_tokens_of_the_whole_text() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let mut tried = 0;
        let fixtures = std::fs::read_dir(root.join("tests/fixtures")).unwrap();
        let folders = fixtures
            .map(|entry| entry.unwrap().path())
            .chain([root.join("datasets/models/mini-bert"), root.join("datasets/models/mini-llama")]);
        for folder in folders {
            let Ok(tokenizer) = TextTokenizer::from_folder(&folder, None) else { continue };
            tried += 1;
            for (seed, words) in [(1, 800), (2, 1500)] {
                let text = sample(seed, words);
                assert!(text.len() > 2 * SMALL.window, "{}", text.len());
                let (ids, offsets) = tokenizer.in_windows(&text, SMALL).unwrap();
                let whole = tokenizer.inner.encode(text.as_str(), false).unwrap();
                assert_eq!(ids, whole.get_ids(), "{}", folder.display());
                assert_eq!(offsets, whole.get_offsets(), "{}", folder.display());
            }
        }
        assert!(tried > 5, "{tried}");
    }

    #[test]
    fn a_long_text_is_encoded_as_its_beginning_and_its_rest() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets/models/mini-llama");
        let text = sample(4, 1000).repeat(LONG / 4000);
        assert!(text.len() > LONG);
        let whole = TextTokenizer::from_folder(&folder, None).unwrap();
        let (ids, offsets) = whole.encode_spans(&text).unwrap();
        let expected = whole.inner.encode(text.as_str(), false).unwrap();
        assert_eq!((ids.as_slice(), offsets.len()), (expected.get_ids(), ids.len()));
        let encoded = whole.encode(&text, None).unwrap();
        let (before, after) = whole.frame().unwrap();
        assert_eq!(encoded.ids, [before.as_slice(), &ids, &after].concat());
        assert_eq!(encoded.type_ids.len(), encoded.ids.len());
        let cut = TextTokenizer::from_folder(&folder, Some(40)).unwrap();
        let first = cut.encode(&text[..text.floor_char_boundary(10_000)], None).unwrap();
        assert_eq!(cut.encode(&text, None).unwrap(), first);
        assert_eq!(first.ids.len(), 40);
        // The beginning is not enough for a pair, nor for a text that is truncated on the left.
        let pair = cut.encode(&text, Some("the cat")).unwrap();
        assert_eq!(pair, cut.encode(&text[..text.floor_char_boundary(10_000)], Some("the cat")).unwrap());
        let mut left = cut;
        left.truncated_side = TruncationDirection::Left;
        let room = 40 - before.len() - after.len();
        let last = [before.as_slice(), &ids[ids.len() - room..], &after].concat();
        assert_eq!(left.encode(&text, None).unwrap().ids, last);
    }

    #[test]
    fn whole_windows_are_joined_only_where_words_end() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets/models/mini-bert");
        let tokenizer = TextTokenizer::from_folder(&folder, None).unwrap();
        // Many more windows than may be merged into one.
        let text = sample(7, 8000);
        assert!(text.len() > 2 * SMALL.largest);
        let (ids, _) = tokenizer.in_windows(&text, SMALL).unwrap();
        assert_eq!(ids, tokenizer.inner.encode(text.as_str(), false).unwrap().get_ids());
    }

    #[test]
    fn a_text_without_words_is_refused_before_it_fills_the_memory() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets/models/mini-bert");
        let tokenizer = TextTokenizer::from_folder(&folder, None).unwrap();
        let error = tokenizer.in_windows(&"a".repeat(20_000), SMALL).unwrap_err().to_string();
        assert!(error.contains("no word ends"), "{error}");
        // A part that fits into merged windows is tokenized.
        let text = format!("the cat {} sat {}", "a".repeat(5000), "on the mat ".repeat(200));
        let (ids, _) = tokenizer.in_windows(&text, SMALL).unwrap();
        assert_eq!(ids, tokenizer.inner.encode(text.as_str(), false).unwrap().get_ids());
    }
}
