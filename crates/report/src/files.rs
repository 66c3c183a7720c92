//! The order of file names.

use std::{cmp::Ordering, path::Path};

/// The order of paths in which numbers in their last parts compare as numbers: 9 before 10.
pub(crate) fn natural_order(one: &Path, other: &Path) -> Ordering {
    let names = [one, other].map(|path| path.file_name().unwrap_or_default().as_encoded_bytes());
    let [a, b] = names.map(pieces);
    a.cmp(b).then_with(|| one.cmp(other))
}

/// A piece of a name.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Piece<'a> {
    /// Digits without leading zeros, preceded by their count, by which numbers compare first.
    Number(usize, &'a [u8]),
    Text(&'a [u8]),
}

fn pieces(name: &[u8]) -> impl Iterator<Item = Piece<'_>> {
    name.chunk_by(|a, b| a.is_ascii_digit() == b.is_ascii_digit()).map(|piece| {
        if !piece[0].is_ascii_digit() {
            return Piece::Text(piece);
        }
        let zeros = piece.iter().take_while(|digit| **digit == b'0').count();
        Piece::Number(piece.len() - zeros, &piece[zeros..])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_names_count() {
        let mut sorted = ["a.9", "b.10", "a.10.1", "a.10", "a.010", "a.99999999999999999999", "a.", "a.x"];
        sorted.sort_by(|a, b| natural_order(Path::new(a), Path::new(b)));
        assert_eq!(sorted, ["a.", "a.9", "a.010", "a.10", "a.10.1", "a.99999999999999999999", "a.x", "b.10"]);
        assert_eq!(natural_order(Path::new("b/1"), Path::new("a/2")), Ordering::Less);
        assert_eq!(natural_order(Path::new("b/1"), Path::new("a/1")), Ordering::Greater);
    }
}
