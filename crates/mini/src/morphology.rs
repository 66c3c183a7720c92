//! Inflection: plurals and verb forms, by rule if regular, from the lexicon if irregular.

/// The forms of a verb.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VerbForms {
    /// `repair`, with a particle `close to` never.
    pub(crate) base: String,
    /// `repairs`
    pub(crate) third: String,
    /// `repaired`
    pub(crate) past: String,
    /// `repaired`, `eaten`
    pub(crate) participle: String,
    /// `repairing`
    pub(crate) progressive: String,
}

impl VerbForms {
    /// Reads `base`, `base+` (doubling) or `base:past:participle`, also `base+:past:participle`.
    pub(crate) fn parse(entry: &str) -> Self {
        let mut parts = entry.split(':');
        let head = parts.next().unwrap_or_default();
        let base = head.trim_end_matches('+');
        let stem = match base.chars().last() {
            Some(last) if head.ends_with('+') => format!("{base}{last}"),
            _ => base.to_owned(),
        };
        let past = parts.next().map_or_else(|| past(base, &stem), str::to_owned);
        let participle = parts.next().map_or_else(|| past.clone(), str::to_owned);
        Self {
            base: base.to_owned(),
            third: with_s(base),
            past,
            participle,
            progressive: progressive(base, &stem),
        }
    }
}

/// Reads `singular` or `singular:plural`; returns both.
pub(crate) fn noun_forms(entry: &str) -> (String, String) {
    match entry.split_once(':') {
        Some((singular, plural)) => (singular.to_owned(), plural.to_owned()),
        None => (entry.to_owned(), with_s(entry)),
    }
}

/// `a` or `an` before a word; the lexicon has no word whose first letter is misleading.
pub(crate) fn article(next: &str) -> &'static str {
    if next.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" }
}

/// The plural of a noun, the third person of a verb.
fn with_s(word: &str) -> String {
    if ["s", "x", "z", "ch", "sh"].iter().any(|end| word.ends_with(end)) {
        format!("{word}es")
    } else if let Some(stem) = consonant_y(word) {
        format!("{stem}ies")
    } else {
        format!("{word}s")
    }
}

fn past(base: &str, stem: &str) -> String {
    if base.ends_with('e') {
        format!("{base}d")
    } else if let Some(stem) = consonant_y(base) {
        format!("{stem}ied")
    } else {
        format!("{stem}ed")
    }
}

fn progressive(base: &str, stem: &str) -> String {
    if let Some(stem) = base.strip_suffix("ie") {
        format!("{stem}ying")
    } else if base.ends_with("ee") {
        format!("{base}ing")
    } else {
        format!("{}ing", stem.strip_suffix('e').unwrap_or(stem))
    }
}

/// The word without its final `y`, if a consonant precedes it.
fn consonant_y(word: &str) -> Option<&str> {
    word.strip_suffix('y').filter(|stem| !stem.ends_with(['a', 'e', 'i', 'o', 'u']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn verb(entry: &str, expected: [&str; 5]) {
        let f = VerbForms::parse(entry);
        assert_eq!([&f.base, &f.third, &f.past, &f.participle, &f.progressive].map(String::as_str), expected);
    }

    #[test]
    fn verbs() {
        verb("repair", ["repair", "repairs", "repaired", "repaired", "repairing"]);
        verb("hug+", ["hug", "hugs", "hugged", "hugged", "hugging"]);
        verb("catch:caught:caught", ["catch", "catches", "caught", "caught", "catching"]);
        verb("shut+:shut:shut", ["shut", "shuts", "shut", "shut", "shutting"]);
        verb("die", ["die", "dies", "died", "died", "dying"]);
        verb("flee:fled:fled", ["flee", "flees", "fled", "fled", "fleeing"]);
        verb("defy", ["defy", "defies", "defied", "defied", "defying"]);
        verb("obey", ["obey", "obeys", "obeyed", "obeyed", "obeying"]);
        verb("write:wrote:written", ["write", "writes", "wrote", "written", "writing"]);
    }

    #[test]
    fn nouns_and_articles() {
        for (entry, plural) in [
            ("fox", "foxes"),
            ("lily", "lilies"),
            ("valley", "valleys"),
            ("knife:knives", "knives"),
            ("axe", "axes"),
        ] {
            assert_eq!(noun_forms(entry).1, plural);
        }
        assert_eq!((article("owl"), article("hat")), ("an", "a"));
    }
}
