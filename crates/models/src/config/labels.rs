//! Labels of a classification head, and the meaning of its logits.

use serde_json::{Map, Value};

use crate::config::keys::Keys;

/// Maximum number of labels without names.
const MAX_LABELS: usize = 1 << 20;

/// Meaning of a head's logits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Problem {
    /// One of several classes: a softmax.
    #[default]
    SingleLabel,
    /// Any number of labels: one sigmoid each.
    MultiLabel,
    /// Numbers.
    Regression,
}

impl Problem {
    const NAMES: [(&'static str, Self); 3] = [
        ("single_label_classification", Self::SingleLabel),
        ("multi_label_classification", Self::MultiLabel),
        ("regression", Self::Regression),
    ];

    /// The one with this name in `config.json`.
    pub fn named(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|(_, problem)| *problem)
    }

    /// Its name in `config.json`.
    pub fn name(self) -> &'static str {
        match self {
            Self::SingleLabel => "single_label_classification",
            Self::MultiLabel => "multi_label_classification",
            Self::Regression => "regression",
        }
    }
}

/// The unit that a head labels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HeadLevel {
    /// A whole sequence, or a picture.
    #[default]
    Sequence,
    /// Every token.
    Token,
    /// The span of a text that answers a question: two logits for each token, of its start and its end.
    Span,
}

/// Suffix of transformers' class names with a head over pictures.
pub(crate) const OF_PICTURES: &str = "ForImageClassification";

/// Labels of a head over spans.
const SPAN_LABELS: [&str; 2] = ["start", "end"];

impl HeadLevel {
    const ALL: [Self; 3] = [Self::Sequence, Self::Token, Self::Span];

    /// The level of the head named by the class in `architectures`, `None` if it names none of them.
    pub fn named(raw: &Map<String, Value>) -> Option<Self> {
        let classes = raw.get("architectures").and_then(Value::as_array).into_iter().flatten();
        Self::of_class(classes.filter_map(Value::as_str).next()?)
    }

    fn of_class(name: &str) -> Option<Self> {
        if name.ends_with(OF_PICTURES) {
            return Some(Self::Sequence);
        }
        Self::ALL.into_iter().find(|level| name.ends_with(level.class()))
    }

    /// Suffix of transformers' class names with such a head.
    pub const fn class(self) -> &'static str {
        match self {
            Self::Sequence => "ForSequenceClassification",
            Self::Token => "ForTokenClassification",
            Self::Span => "ForQuestionAnswering",
        }
    }

    /// The level of the head over which PEFT trained an adapter: by its `task_type`, or else by the class of the model in its
    /// `auto_mapping`. `None` for other tasks.
    pub fn of_adapter(task_type: Option<&str>, auto_mapping: Option<&Value>) -> Option<Self> {
        match task_type {
            Some(task) => Self::ALL.into_iter().find(|level| task == level.task_type()),
            None => Self::of_class(auto_mapping?.get("base_model_class")?.as_str()?),
        }
    }

    /// PEFT's `task_type`.
    pub const fn task_type(self) -> &'static str {
        match self {
            Self::Sequence => "SEQ_CLS",
            Self::Token => "TOKEN_CLS",
            Self::Span => "QUESTION_ANS",
        }
    }
}

/// Reads `id2label` or `num_labels`, and `problem_type`. As in transformers, the default is two labels called
/// `LABEL_0` and `LABEL_1`; a single label is a regression.
pub(crate) fn read(keys: &Keys<'_>) -> Result<(Vec<String>, Problem), String> {
    let labels = names(keys)?;
    let problem = match keys.text("problem_type")? {
        Some(name) => crate::config::lookup("problem_type", name, &Problem::NAMES)?,
        None if labels.len() == 1 => Problem::Regression,
        None => Problem::SingleLabel,
    };
    Ok((labels, problem))
}

/// Label names in class order.
fn names(keys: &Keys<'_>) -> Result<Vec<String>, String> {
    let Some(map) = keys.object("id2label")? else {
        let n = keys.optional_size("num_labels", MAX_LABELS)?.unwrap_or(2);
        return Ok((0..n).map(|i| format!("LABEL_{i}")).collect());
    };
    let mut labels = vec![None; map.len()];
    for (id, label) in map.entries() {
        let index = id.parse::<usize>().ok().filter(|i| i.to_string() == *id);
        let slot = index.and_then(|i| labels.get_mut(i));
        let slot = slot.ok_or_else(|| format!("id2label has the key '{id}'; expected 0, 1, …"))?;
        *slot = Some(match label {
            Value::String(text) => text.clone(),
            // Numeric names are read as transformers writes them again.
            Value::Number(number) => number.to_string(),
            other => return Err(format!("id2label['{id}'] = {other}; expected a name")),
        });
    }
    labels
        .into_iter()
        .collect::<Option<Vec<String>>>()
        .filter(|l| !l.is_empty())
        .ok_or("id2label is empty; expected a name for each class".into())
}

/// The outputs of a head over spans.
pub(crate) fn of_spans() -> Vec<String> {
    SPAN_LABELS.map(str::to_owned).into()
}

/// Removes the labels of another task from a `config.json`: transformers gives a head over spans one output per label, and
/// two by default.
pub(crate) fn remove(raw: &mut Map<String, Value>) {
    for key in ["id2label", "label2id", "num_labels", "problem_type"] {
        raw.shift_remove(key);
    }
}

/// Writes labels into a `config.json`.
pub(crate) fn write(raw: &mut Map<String, Value>, labels: &[String], problem: Problem) {
    let numbered = || labels.iter().enumerate();
    let id2label: Map<String, Value> = numbered().map(|(i, l)| (i.to_string(), l.clone().into())).collect();
    let label2id: Map<String, Value> = numbered().map(|(i, l)| (l.clone(), i.into())).collect();
    raw.insert("id2label".into(), id2label.into());
    raw.insert("label2id".into(), label2id.into());
    raw.insert("problem_type".into(), problem.name().into());
    raw.remove("num_labels");
}
