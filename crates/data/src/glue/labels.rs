//! The classes of data among the labels of a model.

/// The index of each class among a model's labels, `None` for a class that the model does not have.
///
/// A class is matched by its exact name, or else ignoring case and which of `-`, `_` and a space is written. If that leaves a class out, and every
/// label is a number or `LABEL_` with one, all classes are matched by number, provided that this finds them all.
///
/// # Errors
/// A class that matches several labels, or two classes that match one label; the message gives the indices.
pub fn class_places(labels: &[String], classes: &[String]) -> Result<Vec<Option<usize>>, String> {
    let model = Labels::new(labels);
    let mut places: Vec<Option<usize>> =
        classes.iter().map(|class| model.by_name(class)).collect::<Result<_, _>>()?;
    if places.contains(&None) {
        let numbered = classes.iter().map(|class| model.by_number(class));
        let numbered: Vec<Option<usize>> = numbered.collect::<Result<_, _>>()?;
        if !numbered.contains(&None) {
            places = numbered;
        }
    }
    for (index, place) in places.iter().enumerate() {
        let before = places[..index].iter().position(|other| place.is_some() && other == place);
        if let (Some(before), Some(place)) = (before, *place) {
            return Err(format!(
                "'{}' and '{}' are both label {place} of the model, '{}'; rename one of them",
                classes[before], classes[index], labels[place]
            ));
        }
    }
    Ok(places)
}

/// The labels of a model, for looking up the classes of many rows.
#[derive(Debug)]
pub(super) struct Labels<'a> {
    names: &'a [String],
    /// Their names in lower case, with `-` and spaces replaced by `_`.
    plain: Vec<String>,
    /// Their numbers, if every label has one.
    numbers: Option<Vec<usize>>,
}

impl<'a> Labels<'a> {
    pub(super) fn new(names: &'a [String]) -> Self {
        Self {
            names,
            plain: names.iter().map(|name| plain(name)).collect(),
            numbers: names.iter().map(|name| class_number(name)).collect(),
        }
    }

    /// The index of a class: by its exact name, or else in another spelling, or else by its number.
    ///
    /// # Errors
    /// As [`class_places`].
    pub(super) fn place(&self, class: &str) -> Result<Option<usize>, String> {
        match self.by_name(class)? {
            Some(place) => Ok(Some(place)),
            None => self.by_number(class),
        }
    }

    /// The index of a class by its exact name, or else in another spelling.
    fn by_name(&self, class: &str) -> Result<Option<usize>, String> {
        if let Some(place) = self.only(class, self.names, |name| name == class)? {
            return Ok(Some(place));
        }
        let wanted = plain(class);
        self.only(class, &self.plain, |name| *name == wanted)
    }

    fn by_number(&self, class: &str) -> Result<Option<usize>, String> {
        match (&self.numbers, class_number(class)) {
            (Some(numbers), Some(wanted)) => self.only(class, numbers, |number| *number == wanted),
            _ => Ok(None),
        }
    }

    /// The index of the only label whose key matches.
    fn only<K>(
        &self,
        class: &str,
        keys: &[K],
        matches: impl Fn(&K) -> bool,
    ) -> Result<Option<usize>, String> {
        let hits: Vec<usize> = (0..keys.len()).filter(|&place| matches(&keys[place])).collect();
        match hits[..] {
            [] => Ok(None),
            [one] => Ok(Some(one)),
            [..] => {
                let shown: Vec<String> =
                    hits.iter().map(|&place| format!("{place} ('{}')", self.names[place])).collect();
                Err(format!(
                    "'{class}' is the name of several labels of the model, {}; rename them in id2label of its config.json",
                    shown.join(", ")
                ))
            }
        }
    }
}

/// A name in lower case, with `-` and spaces replaced by `_`.
fn plain(name: &str) -> String {
    name.to_lowercase().replace(['-', ' '], "_")
}

/// The indices of `n` classes among labels that are all named `LABEL_0`, `LABEL_1`, …; `None` for other labels.
pub fn generic_places(labels: &[String], n: usize) -> Option<Vec<usize>> {
    let numbers: Vec<usize> = labels
        .iter()
        .map(|label| label.strip_prefix(GENERIC).and_then(|rest| rest.parse().ok()))
        .collect::<Option<_>>()?;
    (0..n).map(|class| numbers.iter().position(|number| *number == class)).collect()
}

/// The number of a class or a generic label.
pub fn class_number(name: &str) -> Option<usize> {
    let digits = name.strip_prefix(GENERIC).unwrap_or(name);
    digits.parse().ok().filter(|_| digits.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Prefix of the names that transformers gives to unnamed labels.
const GENERIC: &str = "LABEL_";

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[rstest]
    #[case(&["a", "b"], &["b", "a"], &[Some(1), Some(0)])]
    #[case(&["Big Cat", "DOG"], &["big_cat", "dog"], &[Some(0), Some(1)])]
    // The exact name takes precedence.
    #[case(&["dog", "Dog"], &["Dog", "dog"], &[Some(1), Some(0)])]
    #[case(&["LABEL_0", "LABEL_1", "LABEL_10", "LABEL_2"], &["10", "2"], &[Some(2), Some(3)])]
    #[case(&["LABEL_1", "LABEL_0"], &["LABEL_0", "LABEL_1"], &[Some(1), Some(0)])]
    #[case(&["0", "1", "10"], &["00", "01", "10"], &[Some(0), Some(1), Some(2)])]
    #[case(&["1", "0"], &["LABEL_0", "LABEL_1"], &[Some(1), Some(0)])]
    #[case(&["cat", "1"], &["cat", "LABEL_1"], &[Some(0), None])]
    #[case(&["LABEL_0", "LABEL_1"], &["1", "2"], &[None, None])]
    #[case(&["a", "b"], &["c", "a"], &[None, Some(0)])]
    fn classes_are_found(
        #[case] labels: &[&str],
        #[case] classes: &[&str],
        #[case] expect: &[Option<usize>],
    ) {
        assert_eq!(class_places(&names(labels), &names(classes)).unwrap(), expect);
    }

    #[rstest]
    #[case(&["crane", "x", "crane"], &["crane"], "0 ('crane'), 2 ('crane')")]
    #[case(&["a-b", "a_b"], &["A B"], "0 ('a-b'), 1 ('a_b')")]
    #[case(&["a_b", "c"], &["a-b", "a_b"], "'a-b' and 'a_b' are both label 0 of the model, 'a_b'")]
    #[case(&["LABEL_1", "1", "LABEL_01"], &["001"], "1 ('1'), 2 ('LABEL_01')")]
    fn names_of_several_are_refused(#[case] labels: &[&str], #[case] classes: &[&str], #[case] part: &str) {
        let error = class_places(&names(labels), &names(classes)).unwrap_err();
        assert!(error.contains(part), "{error}");
        assert!(classes.len() > 1 || Labels::new(&names(labels)).place(classes[0]).unwrap_err() == error);
    }

    #[test]
    fn a_single_class_is_found_by_name_or_else_by_number() {
        let names_of = names(&["Big Cat", "cat", "CAT"]);
        let labels = Labels::new(&names_of);
        assert_eq!(labels.place("big-cat"), Ok(Some(0)));
        assert_eq!(labels.place("cat"), Ok(Some(1)));
        assert_eq!(labels.place("dog"), Ok(None));
        assert!(labels.place("Cat").is_err());
        let numbered = names(&["LABEL_1", "LABEL_0"]);
        assert_eq!(Labels::new(&numbered).place("0"), Ok(Some(1)));
    }

    #[test]
    fn generic_labels_have_an_order() {
        assert_eq!(generic_places(&names(&["LABEL_1", "LABEL_0"]), 2), Some(vec![1, 0]));
        assert_eq!(generic_places(&names(&["LABEL_1", "no"]), 2), None);
        assert_eq!(generic_places(&names(&["LABEL_1", "LABEL_2"]), 2), None);
    }
}
