//! `--class-weights`: the weight of an example of each class in training.

use std::collections::BTreeMap;
use std::str::FromStr;

use anyhow::{Result, bail, ensure};
use lowrank_data::glue::{Label, LabelSpace};
use lowrank_data::pack::EncodedDataset;
use serde_json::{Map, Value, json};

/// The option.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ClassWeights {
    /// `n / (k·nᵢ)` for a class of `nᵢ` of the `n` examples of `k` classes, as scikit-learn's.
    Balanced,
    /// By name; a class that is not named has weight 1.
    Named(BTreeMap<String, f32>),
}

impl FromStr for ClassWeights {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "balanced" {
            return Ok(Self::Balanced);
        }
        let mut named = BTreeMap::new();
        for part in text.split(',') {
            let (name, weight) = part
                .rsplit_once('=')
                .ok_or_else(|| format!("'{part}' is neither LABEL=WEIGHT nor balanced"))?;
            let number =
                weight.trim().parse::<f32>().ok().filter(|weight| weight.is_finite() && *weight >= 0.0);
            let number = number
                .ok_or_else(|| format!("the weight '{weight}' of '{name}' is not a number of 0 or more"))?;
            if named.insert(name.trim().to_owned(), number).is_some() {
                return Err(format!("'{name}' is given twice"));
            }
        }
        Ok(Self::Named(named))
    }
}

impl ClassWeights {
    /// The weight of each class, checked before any row is tokenized; balanced ones are computed later.
    pub(super) fn check(&self, labels: &LabelSpace) -> Result<()> {
        let (LabelSpace::Classes(names) | LabelSpace::Tags(names)) = labels else {
            bail!(
                "--class-weights applies to rows or words of one class each; these have scores or several labels, or are questions"
            );
        };
        let Self::Named(named) = self else { return Ok(()) };
        if let Some(name) = named.keys().find(|name| !names.contains(name)) {
            bail!("--class-weights: unknown class '{name}'; choose {}", names.join(", "));
        }
        ensure!(
            names.iter().any(|name| named.get(name) != Some(&0.0)),
            "--class-weights: every class has weight 0; at least one must be positive"
        );
        Ok(())
    }

    /// The weight of each class.
    pub(super) fn resolve(&self, names: &[String], train: &EncodedDataset) -> Vec<f32> {
        match self {
            Self::Named(named) => names.iter().map(|name| named.get(name).copied().unwrap_or(1.0)).collect(),
            Self::Balanced => {
                let mut counts = vec![0_usize; names.len()];
                for label in train.labels().iter().flatten() {
                    match label {
                        Label::Class(class) => counts[*class as usize] += 1,
                        Label::Tags(tags) => tags.iter().flatten().for_each(|tag| counts[*tag as usize] += 1),
                        Label::Score(_) | Label::Set(_) | Label::Span { .. } => {}
                    }
                }
                let present = counts.iter().filter(|count| **count > 0).count();
                let all: usize = counts.iter().sum();
                let weight = |count: &usize| match count {
                    // A class without examples does not contribute to the sum, whatever its weight.
                    0 => 1.0,
                    count => (all as f64 / (present * count) as f64) as f32,
                };
                counts.iter().map(weight).collect()
            }
        }
    }
}

/// The weights by name, for the record.
pub(super) fn recorded(names: &[String], weights: &[f32]) -> Value {
    names.iter().cloned().zip(weights.iter().map(|weight| json!(weight))).collect::<Map<_, _>>().into()
}

#[cfg(test)]
mod tests {
    use lowrank_data::tokenize::Encoded;

    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn balanced_weights_are_scikit_learns() -> Result<()> {
        let row = Encoded { ids: vec![1, 2], type_ids: vec![0, 0] };
        let labels = [0, 0, 0, 1].map(|class| (row.clone(), Label::Class(class)));
        let weights = ClassWeights::Balanced.resolve(&names(&["a", "b"]), &EncodedDataset::labelled(labels));
        assert_eq!(weights, [4.0 / 6.0, 2.0]);
        let tags = [Label::Tags(vec![None, Some(2)]), Label::Tags(vec![Some(2), Some(0)])];
        let rows = EncodedDataset::labelled(tags.map(|tags| (row.clone(), tags)));
        assert_eq!(ClassWeights::Balanced.resolve(&names(&["a", "b", "c"]), &rows), [1.5, 1.0, 0.75]);
        Ok(())
    }

    #[test]
    fn weights_are_given_by_name() {
        let parsed = "a=2, b=0.5".parse::<ClassWeights>();
        assert_eq!(parsed, Ok(ClassWeights::Named([("a".into(), 2.0), ("b".into(), 0.5)].into())));
        for (text, part) in [
            ("a", "neither LABEL=WEIGHT"),
            ("a=x", "the weight 'x' of 'a'"),
            ("a=-1", "0 or more"),
            ("a=nan", "0 or more"),
            ("a=1,a=2", "given twice"),
        ] {
            let error = text.parse::<ClassWeights>().expect_err(text);
            assert!(error.contains(part), "{error}");
        }
        let space = LabelSpace::Classes(names(&["a", "b"]));
        let check = |text: &str, space: &LabelSpace| {
            let weights: ClassWeights = text.parse().expect("weights");
            weights.check(space).map_err(|error| error.to_string())
        };
        assert_eq!(check("a=3", &space), Ok(()));
        assert!(check("c=3", &space).is_err_and(|error| error.contains("unknown class 'c'")));
        assert!(check("a=0,b=0", &space).is_err_and(|error| error.contains("weight 0")));
        assert!(check("balanced", &LabelSpace::Score).is_err_and(|error| error.contains("scores")));
    }
}
