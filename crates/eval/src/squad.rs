//! SQuAD's comparison of an answer with the right ones (Rajpurkar et al. 2016, 2018), as in the official script of
//! SQuAD 2.0.

use std::collections::HashMap;

/// Whether the answer equals one of the right ones after normalization: 1 or 0. Without right answers, it must be empty.
pub fn exact_match(answer: &str, right: &[String]) -> f64 {
    best(right, |right| f64::from(words(answer) == words(right)))
}

/// F1 of the words that the answer shares with a right one, the best of all right ones; with an empty answer on either
/// side, 1 if both are empty and otherwise 0.
pub fn word_f1(answer: &str, right: &[String]) -> f64 {
    best(right, |right| {
        let (own, other) = (words(answer), words(right));
        if own.is_empty() || other.is_empty() {
            return f64::from(own == other);
        }
        let mut left: HashMap<&str, usize> = HashMap::new();
        other.iter().for_each(|word| *left.entry(word).or_default() += 1);
        let is_shared = |word: &&String| match left.get_mut(word.as_str()) {
            Some(n) if *n > 0 => {
                *n -= 1;
                true
            }
            _ => false,
        };
        let shared = own.iter().filter(is_shared).count();
        2.0 * shared as f64 / (own.len() + other.len()) as f64
    })
}

/// The largest value over the right answers that are not empty after normalization, or that of an empty one.
fn best(right: &[String], value: impl Fn(&str) -> f64) -> f64 {
    let filled = right.iter().map(String::as_str).filter(|text| !words(text).is_empty());
    filled.map(&value).reduce(f64::max).unwrap_or_else(|| value(""))
}

/// The words of an answer: in lower case, without ASCII punctuation and articles.
fn words(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    let bare: String = lower.chars().filter(|c| !c.is_ascii_punctuation()).collect();
    let mut kept = String::with_capacity(bare.len());
    // An article is replaced wherever it is a word of its own, as by the expression \b(a|an|the)\b.
    let mut word = String::new();
    for c in bare.chars().map(Some).chain([None]) {
        match c {
            Some(c) if c.is_alphanumeric() => word.push(c),
            other => {
                kept.push_str(if ["a", "an", "the"].contains(&word.as_str()) { " " } else { &word });
                word.clear();
                kept.extend(other);
            }
        }
    }
    kept.split_whitespace().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    /// Values of the official script.
    #[rstest]
    #[case("The  Beatles!", &["beatles"], 1.0, 1.0)]
    #[case("U.S. Army", &["us army", "army"], 1.0, 1.0)]
    #[case("in the city of Rome", &["Rome"], 0.0, 0.4)]
    #[case("Rome Rome", &["Rome"], 0.0, 2.0 / 3.0)]
    #[case("sea-side", &["sea side"], 0.0, 0.0)]
    #[case("a—b", &["—b"], 1.0, 1.0)]
    #[case("", &[], 1.0, 1.0)]
    #[case("x", &[], 0.0, 0.0)]
    #[case("the", &["The"], 1.0, 1.0)]
    #[case("", &["Rome"], 0.0, 0.0)]
    #[case("ÉTÉ", &["été"], 1.0, 1.0)]
    #[case("theatre", &["atre"], 0.0, 0.0)]
    fn equals_the_official_script(
        #[case] answer: &str,
        #[case] right: &[&str],
        #[case] exact: f64,
        #[case] f1: f64,
    ) {
        let right: Vec<String> = right.iter().map(|text| (*text).to_owned()).collect();
        assert_eq!(exact_match(answer, &right), exact);
        assert!((word_f1(answer, &right) - f1).abs() < 1e-12);
    }
}
