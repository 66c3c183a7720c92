//! Merges of a SentencePiece vocabulary.

use std::collections::BTreeMap;

/// Bytes of the longest piece that merges make; those of real vocabularies are far shorter.
const LONGEST: usize = 1024;

/// The merges by which BPE builds the pieces that SentencePiece builds by their scores: of every piece all ways of cutting
/// it into two others, the highest scores first (transformers, `generate_merges`).
pub(crate) fn merges_by_score<'t>(
    pieces: impl Iterator<Item = (&'t str, f64)>,
    ids: &BTreeMap<&str, u32>,
) -> Vec<(String, String)> {
    let ids: std::collections::HashMap<&str, u32> = ids.iter().map(|(token, id)| (*token, *id)).collect();
    let mut merges: Vec<(f64, &str, &str)> = Vec::new();
    for (piece, score) in pieces.filter(|(piece, _)| piece.len() <= LONGEST) {
        let mut cuts: Vec<(u32, u32, &str, &str)> = piece
            .char_indices()
            .skip(1)
            .filter_map(|(at, _)| {
                let (left, right) = piece.split_at(at);
                Some((*ids.get(left)?, *ids.get(right)?, left, right))
            })
            .collect();
        cuts.sort_unstable();
        merges.extend(cuts.into_iter().map(|(_, _, left, right)| (score, left, right)));
    }
    let length = |text: &str| text.chars().count();
    merges.sort_by(|a, b| {
        let order = b.0.total_cmp(&a.0);
        order.then_with(|| length(b.1).cmp(&length(a.1))).then_with(|| length(b.2).cmp(&length(a.2)))
    });
    merges.into_iter().map(|(_, left, right)| (left.to_owned(), right.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_score_merges_first() {
        let pieces = [("a", -1.0), ("b", -2.0), ("ab", -3.0), ("abb", -2.5), ("bb", -4.0)];
        let ids = pieces.iter().enumerate().map(|(id, (token, _))| (*token, id as u32)).collect();
        let merges = merges_by_score(pieces.into_iter(), &ids);
        let merges: Vec<(&str, &str)> = merges.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
        assert_eq!(merges, [("ab", "b"), ("a", "bb"), ("a", "b"), ("b", "b")]);
    }
}
