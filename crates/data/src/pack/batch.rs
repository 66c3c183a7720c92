//! Packed batches, and the encoded rows from which they are made.

use rayon::prelude::*;

use crate::error::{DataError, Result};
use crate::glue::{GlueDataset, Label, TaggedDataset, TaggedRow};
use crate::images::ImageSet;
use crate::tokenize::{Encoded, TextTokenizer};

/// The labels of a batch, one per sequence or per token.
#[derive(Debug, Clone, PartialEq)]
pub enum Labels {
    /// No labels.
    None,
    /// Class indices, shape `[sequences]`.
    Classes(Vec<u32>),
    /// Scores, shape `[sequences]`.
    Scores(Vec<f32>),
    /// The classes of each sequence, shape `[sequences]`.
    Sets(Vec<Vec<u32>>),
    /// The class of each token, if it has one, shape `[tokens]`.
    Tags(Vec<Option<u32>>),
    /// The answer of each sequence, shape `[sequences]`.
    Spans(Vec<SpanLabel>),
}

/// The first and last token of an answer, and the tokens of its sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpanLabel {
    /// The first token, counted within the sequence.
    pub start: u32,
    /// The last token.
    pub end: u32,
    /// The number of tokens of the sequence.
    pub tokens: u32,
}

/// A batch without padding: the concatenation of its sequences.
#[derive(Debug, Clone, PartialEq)]
pub struct PackedBatch {
    /// Token ids, shape `[tokens]`.
    pub ids: Vec<u32>,
    /// Segment of each token, shape `[tokens]`.
    pub type_ids: Vec<u32>,
    /// Position of each token in its own sequence, from 0, shape `[tokens]`. A model that counts from
    /// elsewhere (RoBERTa: from `pad_token_id + 1`) adds its offset.
    pub positions: Vec<u32>,
    /// Length of each sequence, shape `[sequences]`, each at least 1; their sum is `tokens`.
    pub lengths: Vec<usize>,
    /// One label per sequence or per token, or no labels at all.
    pub labels: Labels,
    /// Values of the patches of pictures, which have no ids and as many tokens as patches and one; shape
    /// `[patches, channels · height · width]`.
    pub pixels: Vec<f32>,
}

impl PackedBatch {
    /// Concatenates sequences and collects their labels.
    ///
    /// # Errors
    /// [`DataError::Batch`] for no sequence, a sequence without tokens, or labels of different kinds.
    pub fn collate<'a>(rows: impl IntoIterator<Item = (&'a Encoded, Option<Label>)>) -> Result<Self> {
        let mut batch = Self {
            ids: Vec::new(),
            type_ids: Vec::new(),
            positions: Vec::new(),
            lengths: Vec::new(),
            labels: Labels::None,
            pixels: Vec::new(),
        };
        for (row, label) in rows {
            let len = row.ids.len();
            if let Some(Label::Tags(tags)) = &label
                && tags.len() != len
            {
                let message = format!("a sequence has {len} ids and {} tags", tags.len());
                return Err(DataError::Batch { message });
            }
            if len == 0 {
                let message = format!("sequence {} has no tokens", batch.lengths.len() + 1);
                return Err(DataError::Batch { message });
            }
            if row.type_ids.len() != len {
                let message = format!("a sequence has {len} ids and {} type ids", row.type_ids.len());
                return Err(DataError::Batch { message });
            }
            if let Some(Label::Span { start, end }) = &label
                && (start > end || *end as usize >= len)
            {
                let message = format!("the answer is at tokens {start} to {end} of a sequence of {len}");
                return Err(DataError::Batch { message });
            }
            batch.labels.push(label, len as u32, batch.lengths.is_empty())?;
            batch.ids.extend_from_slice(&row.ids);
            batch.type_ids.extend_from_slice(&row.type_ids);
            batch.positions.extend(0..len as u32);
            batch.lengths.push(len);
        }
        if batch.lengths.is_empty() {
            return Err(DataError::Batch { message: "it has no sequences".to_owned() });
        }
        Ok(batch)
    }

    /// Some of the sequences, without labels; `None` without sequences.
    pub(crate) fn select(&self, sequences: &[usize]) -> Option<Self> {
        let offsets = self.offsets();
        let tokens = |values: &[u32]| -> Vec<u32> {
            sequences.iter().flat_map(|&s| &values[offsets[s]..offsets[s + 1]]).copied().collect()
        };
        (!sequences.is_empty()).then(|| Self {
            ids: tokens(&self.ids),
            type_ids: tokens(&self.type_ids),
            positions: tokens(&self.positions),
            lengths: sequences.iter().map(|&s| self.lengths[s]).collect(),
            labels: Labels::None,
            pixels: Vec::new(),
        })
    }

    /// The number of tokens, special ones included.
    pub fn n_tokens(&self) -> usize {
        self.lengths.iter().sum()
    }

    /// The number of sequences.
    pub fn n_sequences(&self) -> usize {
        self.lengths.len()
    }

    /// The offset of each sequence, followed by the number of tokens; shape `[sequences + 1]`.
    pub fn offsets(&self) -> Vec<usize> {
        let mut offsets = Vec::with_capacity(self.lengths.len() + 1);
        offsets.push(0);
        let mut end = 0;
        for len in &self.lengths {
            end += len;
            offsets.push(end);
        }
        offsets
    }
}

impl Labels {
    /// The number of labels.
    pub fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::Classes(classes) => classes.len(),
            Self::Scores(scores) => scores.len(),
            Self::Sets(sets) => sets.len(),
            Self::Tags(tags) => tags.len(),
            Self::Spans(spans) => spans.len(),
        }
    }

    /// Whether the labels are empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn push(&mut self, label: Option<Label>, tokens: u32, is_first: bool) -> Result<()> {
        match (&mut *self, label) {
            (Self::None, None) => {}
            (Self::Classes(classes), Some(Label::Class(class))) => classes.push(class),
            (Self::Scores(scores), Some(Label::Score(score))) => scores.push(score),
            (Self::Sets(sets), Some(Label::Set(set))) => sets.push(set),
            (Self::Tags(all), Some(Label::Tags(tags))) => all.extend(tags),
            (Self::Spans(spans), Some(Label::Span { start, end })) => {
                spans.push(SpanLabel { start, end, tokens });
            }
            (Self::None, Some(label)) if is_first => {
                *self = match label {
                    Label::Class(class) => Self::Classes(vec![class]),
                    Label::Score(score) => Self::Scores(vec![score]),
                    Label::Set(set) => Self::Sets(vec![set]),
                    Label::Tags(tags) => Self::Tags(tags),
                    Label::Span { start, end } => Self::Spans(vec![SpanLabel { start, end, tokens }]),
                };
            }
            _ => {
                let message = "rows have labels of different kinds, or some have none".to_owned();
                return Err(DataError::Batch { message });
            }
        }
        Ok(())
    }
}

/// The tokenized rows of a split, or its pictures, kept for the whole run.
#[derive(Debug, Clone, Default)]
pub struct EncodedDataset {
    /// Empty for pictures.
    rows: Vec<Encoded>,
    labels: Vec<Option<Label>>,
    images: Option<ImageSet>,
}

impl EncodedDataset {
    /// Tokenizes all rows of a data set.
    ///
    /// # Errors
    /// As [`TextTokenizer::encode`].
    pub fn encode(dataset: &GlueDataset, tokenizer: &TextTokenizer) -> Result<Self> {
        let rows = tokenizer.encode_examples(dataset.examples())?;
        let labels = dataset.examples().iter().map(|e| e.label.clone()).collect();
        Ok(Self { rows, labels, images: None })
    }

    /// Tokenizes sentences of words; the tag of a word belongs to its first token, and no other token has
    /// one. Also returns the number of words that were truncated at the tokenizer's limit.
    ///
    /// # Errors
    /// As [`TextTokenizer::encode_words`]; a sentence without a token for any of its words.
    pub fn encode_tagged(dataset: &TaggedDataset, tokenizer: &TextTokenizer) -> Result<(Self, usize)> {
        let encode = |row: &TaggedRow| {
            let bad = |message| DataError::BadRow { path: dataset.path.clone(), row: row.row, message };
            let encoded = tokenizer.encode_words(&row.words).map_err(|error| match error {
                error @ DataError::Encoding { .. } => bad(error.to_string()),
                other => other,
            });
            let (encoded, words) = encoded?;
            let mut tags = vec![None; words.len()];
            let (mut last, mut seen) = (None, 0);
            for (tag, word) in tags.iter_mut().zip(words) {
                if word.is_some() && word != last {
                    *tag = word.and_then(|word| row.tags.get(word)).copied();
                    seen = word.map_or(seen, |word| word + 1);
                }
                last = word.or(last);
            }
            if tags.iter().all(Option::is_none) {
                let message =
                    "the tokenizer gives no token for any of its words; remove the sentence".to_owned();
                return Err(bad(message));
            }
            Ok((encoded, Label::Tags(tags), row.words.len() - seen))
        };
        let rows: Vec<_> = dataset.rows.par_iter().map(encode).collect::<Result<_>>()?;
        let cut = rows.iter().map(|(_, _, cut)| cut).sum();
        Ok((Self::labelled(rows.into_iter().map(|(row, label, _)| (row, label))), cut))
    }

    /// Rows encoded elsewhere, with a label each.
    pub fn labelled(rows: impl IntoIterator<Item = (Encoded, Label)>) -> Self {
        let (rows, labels) = rows.into_iter().map(|(row, label)| (row, Some(label))).unzip();
        Self { rows, labels, images: None }
    }

    /// Rows encoded elsewhere, without labels.
    pub fn unlabelled(rows: Vec<Encoded>) -> Self {
        let labels = vec![None; rows.len()];
        Self { rows, labels, images: None }
    }

    /// Pictures, each with its label, if it has one.
    ///
    /// # Errors
    /// [`DataError::Batch`] unless there are as many labels as pictures.
    pub fn of_images(images: ImageSet, labels: Vec<Option<Label>>) -> Result<Self> {
        if images.len() != labels.len() {
            let message = format!("{} labels for {} pictures", labels.len(), images.len());
            return Err(DataError::Batch { message });
        }
        Ok(Self { rows: Vec::new(), labels, images: Some(images) })
    }

    /// The number of rows.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether the data set is empty.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Tokens of each row.
    pub fn lengths(&self) -> Vec<usize> {
        match &self.images {
            Some(images) => vec![images.n_tokens(); images.len()],
            None => self.rows.iter().map(|row| row.ids.len()).collect(),
        }
    }

    /// The pictures, if the rows are pictures.
    pub fn images(&self) -> Option<&ImageSet> {
        self.images.as_ref()
    }

    /// All tokenized rows in order; none of pictures.
    pub fn rows(&self) -> &[Encoded] {
        &self.rows
    }

    /// The labels in order, one per row.
    pub fn labels(&self) -> &[Option<Label>] {
        &self.labels
    }

    /// The total number of tokens.
    pub fn n_tokens(&self) -> usize {
        self.lengths().iter().sum()
    }

    /// Packs the rows with the given indices, in that order.
    ///
    /// # Errors
    /// [`DataError::Batch`] for an index outside the rows, and as [`PackedBatch::collate`].
    pub fn batch(&self, indices: &[usize]) -> Result<PackedBatch> {
        if let Some(index) = indices.iter().find(|&&i| i >= self.len()) {
            let message = format!("row {index} of {}", self.len());
            return Err(DataError::Batch { message });
        }
        if let Some(images) = &self.images {
            return self.batch_of_images(images, indices);
        }
        PackedBatch::collate(indices.iter().map(|&i| (&self.rows[i], self.labels[i].clone())))
    }

    fn batch_of_images(&self, images: &ImageSet, indices: &[usize]) -> Result<PackedBatch> {
        if indices.is_empty() {
            return Err(DataError::Batch { message: "it has no sequences".to_owned() });
        }
        let mut labels = Labels::None;
        for (place, &index) in indices.iter().enumerate() {
            labels.push(self.labels[index].clone(), images.n_tokens() as u32, place == 0)?;
        }
        Ok(PackedBatch {
            ids: Vec::new(),
            type_ids: Vec::new(),
            positions: Vec::new(),
            lengths: vec![images.n_tokens(); indices.len()],
            labels,
            pixels: images.patches(indices)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(ids: &[u32]) -> Encoded {
        Encoded { ids: ids.to_vec(), type_ids: vec![0; ids.len()] }
    }

    #[test]
    fn sequences_are_concatenated_and_counted_from_zero() {
        let (a, b) = (row(&[5, 6, 7]), row(&[8]));
        let batch = PackedBatch::collate([(&a, Some(Label::Class(1))), (&b, Some(Label::Class(0)))]).unwrap();
        assert_eq!(batch.ids, [5, 6, 7, 8]);
        assert_eq!(batch.positions, [0, 1, 2, 0]);
        assert_eq!(batch.lengths, [3, 1]);
        assert_eq!(batch.offsets(), [0, 3, 4]);
        assert_eq!(batch.labels, Labels::Classes(vec![1, 0]));
        assert_eq!((batch.n_tokens(), batch.n_sequences()), (4, 2));
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let a = row(&[5]);
        let mixed = [Some(Label::Class(1)), Some(Label::Score(1.0))];
        assert!(PackedBatch::collate([(&a, Some(Label::Tags(vec![None, Some(1)])))]).is_err());
        assert!(PackedBatch::collate([Label::Set(vec![]), Label::Class(0)].map(|l| (&a, Some(l)))).is_err());
        let span = Some(Label::Span { start: 0, end: 0 });
        assert!(PackedBatch::collate([(&a, span.clone())]).is_ok());
        assert!(PackedBatch::collate([(&a, span), (&a, Some(Label::Class(0)))]).is_err());
        assert!(PackedBatch::collate(mixed.map(|l| (&a, l))).is_err());
        assert!(PackedBatch::collate([(&a, None), (&a, Some(Label::Class(0)))]).is_err());
        assert!(PackedBatch::collate([(&a, Some(Label::Class(0))), (&a, None)]).is_err());
        assert!(PackedBatch::collate([]).is_err());
        assert!(PackedBatch::collate([(&a, Some(Label::Span { start: 0, end: 1 }))]).is_err());
        assert!(PackedBatch::collate([(&row(&[]), None)]).is_err());
        assert!(EncodedDataset::unlabelled(vec![a]).batch(&[1]).is_err());
    }
}
