//! Selection of tags.

use std::collections::BTreeSet;

use regex::RegexSet;

use crate::{Error, Result};

/// Selects tags by glob patterns and regular expressions; without any, selects all.
#[derive(Clone, Debug, Default)]
pub struct TagFilter {
    /// Absent: every tag passes.
    patterns: Option<RegexSet>,
    /// The given patterns.
    given: Vec<String>,
}

/// Maximum number of tags named in an error.
const NAMED: usize = 5;

/// State of the tags of scalars.
#[derive(Debug, Default)]
pub(super) struct TagsSeen {
    /// The patterns that some tag matches, by number.
    matched: BTreeSet<usize>,
    /// The first few tags that none matches.
    left_out: BTreeSet<String>,
}

impl TagsSeen {
    /// Records whether the filter selects a tag, and returns it.
    pub(super) fn note(&mut self, tag: &str, filter: &TagFilter) -> bool {
        let Some(patterns) = &filter.patterns else { return true };
        let matches = patterns.matches(tag);
        self.matched.extend(&matches);
        if !matches.matched_any() {
            self.left_out.insert(tag.to_owned());
            self.shorten();
        }
        matches.matched_any()
    }

    pub(super) fn add(&mut self, other: Self) {
        self.matched.extend(other.matched);
        self.left_out.extend(other.left_out);
        self.shorten();
    }

    fn shorten(&mut self) {
        while self.left_out.len() > NAMED {
            self.left_out.pop_last();
        }
    }

    /// Reports patterns that matched nothing: an error if none matched a tag though there are some, otherwise
    /// a warning for each.
    pub(super) fn check(&self, filter: &TagFilter) -> Result<Vec<String>> {
        let missed = filter.given.iter().enumerate().filter(|(index, _)| !self.matched.contains(index));
        let missed: Vec<String> = missed.map(|(_, pattern)| format!("{pattern:?}")).collect();
        if self.matched.is_empty() && !self.left_out.is_empty() {
            let tags: Vec<&str> = self.left_out.iter().map(String::as_str).collect();
            let (patterns, tags) = (missed.join(", "), tags.join(", "));
            return Err(Error::Logs(format!("no tag matches {patterns}; the tags include {tags}")));
        }
        Ok(missed.into_iter().map(|pattern| format!("no tag matches {pattern}")).collect())
    }
}

impl TagFilter {
    /// A filter that passes a tag if any of the patterns matches it as a whole: in a glob, `*` stands for any
    /// text, slashes included, `?` for one character, `[ab]` and `[!ab]` for one of a set.
    ///
    /// # Errors
    /// [`Error::Logs`] for a pattern that does not compile.
    pub fn new<G: AsRef<str>, R: AsRef<str>>(globs: &[G], regexes: &[R]) -> Result<Self> {
        if globs.is_empty() && regexes.is_empty() {
            return Ok(Self::default());
        }
        let given = globs.iter().map(AsRef::as_ref).chain(regexes.iter().map(AsRef::as_ref));
        let given = given.map(str::to_owned).collect();
        let globs = globs.iter().map(|glob| from_glob(glob.as_ref()));
        let regexes = regexes.iter().map(|regex| format!("^(?:{})$", regex.as_ref()));
        let patterns = RegexSet::new(globs.chain(regexes))
            .map_err(|error| Error::Logs(format!("invalid pattern for tags: {error}")))?;
        Ok(Self { patterns: Some(patterns), given })
    }

    /// Whether the tag is selected.
    pub fn passes(&self, tag: &str) -> bool {
        self.patterns.as_ref().is_none_or(|patterns| patterns.is_match(tag))
    }
}

/// A glob as a regular expression.
fn from_glob(glob: &str) -> String {
    let mut out = String::from("^(?s:");
    let mut rest = glob.chars();
    while let Some(c) = rest.next() {
        match c {
            '*' => out.push_str(".*"),
            '?' => out.push('.'),
            '[' => {
                // A bracket without its partner is literal.
                let text = rest.as_str();
                let Some(end) = text.char_indices().skip(1).find(|(_, c)| *c == ']').map(|(end, _)| end)
                else {
                    out.push_str("\\[");
                    continue;
                };
                let (negated, set) = match text[..end].strip_prefix('!') {
                    Some(set) if !set.is_empty() => ("^", set),
                    _ => ("", &text[..end]),
                };
                let set: String = set
                    .chars()
                    .map(|c| if "\\[]^&~".contains(c) { format!("\\{c}") } else { c.to_string() })
                    .collect();
                out.push_str(&format!("[{negated}{set}]"));
                rest = text[end + 1..].chars();
            }
            _ => out.push_str(&regex::escape(c.encode_utf8(&mut [0; 4]))),
        }
    }
    out.push_str(")$");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(globs: &[&str], regexes: &[&str], tag: &str, expect: bool) {
        assert_eq!(
            TagFilter::new(globs, regexes).unwrap().passes(tag),
            expect,
            "{globs:?} {regexes:?} {tag}"
        );
    }

    #[test]
    fn globs() {
        check(&[], &[], "anything", true);
        check(&["eval/*"], &[], "eval/loss", true);
        check(&["eval/*"], &[], "eval/a/b", true);
        check(&["eval/*"], &[], "train/eval/loss", false);
        check(&["*loss"], &[], "train/loss", true);
        check(&["*loss"], &[], "losses", false);
        check(&["a?c", "x"], &[], "abc", true);
        check(&["a.c"], &[], "abc", false);
        check(&["a[bd]c"], &[], "abc", true);
        check(&["a[!bd]c"], &[], "abc", false);
        check(&["a[0-3]c"], &[], "a2c", true);
        check(&["a[c"], &[], "a[c", true);
        check(&["a[]]c"], &[], "a]c", true);
        check(&["(+"], &[], "(+", true);
    }

    #[test]
    fn regular_expressions_match_the_whole_tag() {
        check(&[], &["eval/(loss|accuracy)"], "eval/loss", true);
        check(&[], &["loss"], "eval/loss", false);
        check(&[], &["a|b"], "ab", false);
        check(&["x"], &["y"], "y", true);
        assert!(matches!(TagFilter::new::<&str, _>(&[], &["("]), Err(Error::Logs(_))));
    }
}
