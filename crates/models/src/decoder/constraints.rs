//! Tokens excluded or forced before one is chosen.

/// Bound of grown logits.
const LARGEST: f64 = 1e30;

/// Constraints on the next token.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Constraints {
    /// Length of token sequences that may not occur twice; 0 allows all.
    pub no_repeat_ngram_size: usize,
    /// Token sequences that may not occur; a single end of text is not one of them.
    pub bad_words: Vec<Vec<u32>>,
    /// Added to the logit of the last token of a sequence where its other tokens precede.
    pub sequence_biases: Vec<(Vec<u32>, f32)>,
    /// A number of new tokens and a factor: after them, the logit x of an end of text grows to x + |x|·(factorᵏ − 1), where k
    /// counts the further tokens.
    pub length_penalty: Option<(f64, f64)>,
    /// Tokens that are always excluded.
    pub suppressed: Vec<u32>,
    /// Tokens that are excluded in the first position.
    pub suppressed_first: Vec<u32>,
    /// Minimum number of new tokens before an end of text.
    pub min_new_tokens: usize,
    /// Minimum number of tokens of prompt and continuation before an end of text.
    pub min_length: usize,
    /// The token after a single one: the first that a decoder with one start token writes.
    pub forced_first: Option<u32>,
    /// Tokens of which one is the last where the maximum length ends a continuation.
    pub forced_last: Vec<u32>,
}

impl Constraints {
    /// Adds the biases of what may follow `ids`, before anything else.
    pub(crate) fn bias(&self, logits: &mut [f32], ids: &[u32]) {
        for (sequence, bias) in &self.sequence_biases {
            if let Some(logit) = completed(sequence, ids).and_then(|id| logits.get_mut(id as usize)) {
                *logit += bias;
            }
        }
    }

    /// Sets the logits of tokens that may not follow `ids`, of which the first `prompt` were given, to −∞; `is_last` where the
    /// next token fills the maximum length. The order is that of transformers: forced tokens are the only ones left,
    /// whatever was excluded before, and suppressed ones are excluded even then.
    pub(crate) fn apply(&self, logits: &mut [f32], ids: &[u32], prompt: usize, eos: &[u32], is_last: bool) {
        self.exclude(ids, prompt, eos, |id| forbid(logits, id));
        self.force(logits, ids, is_last);
        let new = (ids.len() - prompt) as f64;
        if let Some((start, factor)) = self.length_penalty.filter(|(start, _)| new > *start) {
            // Each once, however often a config lists it.
            for &id in eos.iter().enumerate().filter(|(i, id)| !eos[..*i].contains(id)).map(|(_, id)| id) {
                if let Some(logit) = logits.get_mut(id as usize).filter(|logit| logit.is_finite()) {
                    // Clamped: a logit that is not finite is never chosen, also after a temperature and in sums of beams.
                    let x = f64::from(*logit);
                    let grown = x + x.abs() * (factor.powf(new - start) - 1.0);
                    *logit = grown.min(LARGEST) as f32;
                }
            }
        }
        self.suppress(ids, prompt, |id| forbid(logits, id));
    }

    /// Calls `f` with each token that may not follow `ids`, some of them repeatedly, before any is forced.
    fn exclude(&self, ids: &[u32], prompt: usize, eos: &[u32], mut f: impl FnMut(u32)) {
        if ids.len() - prompt < self.min_new_tokens || ids.len() < self.min_length {
            eos.iter().copied().for_each(&mut f);
        }
        let is_end = |words: &[u32]| matches!(words, [id] if eos.contains(id));
        let bad = self.bad_words.iter().filter(|words| !is_end(words));
        bad.filter_map(|words| completed(words, ids)).for_each(&mut f);
        let n = self.no_repeat_ngram_size;
        if n > 0 && ids.len() >= n {
            let last = &ids[ids.len() - (n - 1)..];
            let runs = ids.windows(n).filter(|run| &run[..n - 1] == last);
            runs.map(|run| run[n - 1]).for_each(f);
        }
    }

    /// Calls `f` with each token that is suppressed after `ids`.
    fn suppress(&self, ids: &[u32], prompt: usize, mut f: impl FnMut(u32)) {
        self.suppressed.iter().copied().for_each(&mut f);
        if ids.len() == self.first_length(prompt) {
            self.suppressed_first.iter().copied().for_each(f);
        }
    }

    /// Whether they only exclude tokens, whatever the logits are.
    pub(crate) fn only_exclude(&self) -> bool {
        self.sequence_biases.is_empty()
            && self.length_penalty.is_none()
            && self.forced_first.is_none()
            && self.forced_last.is_empty()
    }

    /// The tokens that may not follow `ids`, of constraints that [only exclude](Self::only_exclude) some.
    pub(crate) fn excluded(&self, ids: &[u32], prompt: usize, eos: &[u32]) -> Vec<u32> {
        let mut excluded = Vec::new();
        self.exclude(ids, prompt, eos, |id| excluded.push(id));
        self.suppress(ids, prompt, |id| excluded.push(id));
        excluded
    }

    /// Number of tokens before the first that is chosen after a prompt of `prompt` tokens: as in transformers, a forced first
    /// token is not chosen.
    pub(crate) fn first_length(&self, prompt: usize) -> usize {
        prompt + usize::from(prompt == 1 && self.forced_first.is_some())
    }

    /// Leaves only forced tokens.
    fn force(&self, logits: &mut [f32], ids: &[u32], is_last: bool) {
        let first = self.forced_first.as_slice();
        let forced = [(ids.len() == 1, first), (is_last, &self.forced_last)];
        for (_, tokens) in forced.into_iter().filter(|(applies, tokens)| *applies && !tokens.is_empty()) {
            logits.fill(f32::NEG_INFINITY);
            for &id in tokens {
                if let Some(logit) = logits.get_mut(id as usize) {
                    *logit = 0.0;
                }
            }
        }
    }

    /// Why forced tokens cannot be chosen, if they are all suppressed: always, which transformers refuses too, or where the
    /// first token after a prompt of `prompt` tokens is the last. `is_last` tells whether the token after a number of tokens
    /// fills the maximum length; `may_end` whether that forces any.
    pub(crate) fn contradiction(
        &self,
        prompt: usize,
        may_end: bool,
        is_last: impl Fn(usize) -> bool,
    ) -> Option<String> {
        let first = ("forced_bos_token_id", self.forced_first.as_slice());
        let last = ("forced_eos_token_id", if may_end { self.forced_last.as_slice() } else { &[] });
        let always = ("suppress_tokens", self.suppressed.clone());
        let at_first =
            ("begin_suppress_tokens", [self.suppressed.as_slice(), &self.suppressed_first].concat());
        let ends_at_once = is_last(self.first_length(prompt));
        let pairs = [(first, &always), (last, &always), (last, &at_first)];
        let mut pairs = pairs.into_iter().take(if ends_at_once { 3 } else { 2 });
        let ((setting, forced), (list, _)) = pairs.find(|((_, forced), (_, suppressed))| {
            !forced.is_empty() && forced.iter().all(|id| suppressed.contains(id))
        })?;
        Some(format!(
            "{setting} = {forced:?} is also in {list}, which leaves no token to choose; remove it from one of them"
        ))
    }

    /// A token outside of a vocabulary, after the setting that names it.
    pub(crate) fn unknown(&self, vocab_size: usize) -> Option<(&'static str, u32)> {
        let sequences = self.bad_words.iter().flatten().map(|id| ("bad_words_ids", *id));
        let biased = self.sequence_biases.iter().flat_map(|(ids, _)| ids).map(|id| ("sequence_bias", *id));
        let first = self.forced_first.iter().map(|id| ("forced_bos_token_id", *id));
        let last = self.forced_last.iter().map(|id| ("forced_eos_token_id", *id));
        first.chain(last).chain(sequences).chain(biased).find(|(_, id)| *id as usize >= vocab_size)
    }
}

/// Sets the logit of a token to −∞.
fn forbid(logits: &mut [f32], id: u32) {
    if let Some(logit) = logits.get_mut(id as usize) {
        *logit = f32::NEG_INFINITY;
    }
}

/// The last token of a sequence whose other tokens are the last of `ids`.
fn completed(sequence: &[u32], ids: &[u32]) -> Option<u32> {
    let (&last, before) = sequence.split_last()?;
    ids.ends_with(before).then_some(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(constraints: &Constraints, ids: &[u32], prompt: usize) -> Vec<u32> {
        let mut logits = [0.0; 6];
        constraints.apply(&mut logits, ids, prompt, &[5], false);
        let excluded = constraints.excluded(ids, prompt, &[5]);
        assert!(constraints.only_exclude());
        assert!((0..6).all(|id| excluded.contains(&id) == (logits[id as usize] != 0.0)), "{excluded:?}");
        (0..6).filter(|&id| logits[id as usize] == 0.0).collect()
    }

    #[test]
    fn each_rule_rules_out_its_tokens() {
        let none = Constraints::default();
        assert_eq!(allowed(&none, &[1, 2], 2), [0, 1, 2, 3, 4, 5]);
        let suppressed = Constraints { suppressed: vec![0, 99], suppressed_first: vec![1], ..none.clone() };
        assert_eq!(allowed(&suppressed, &[1, 2], 2), [2, 3, 4, 5]);
        assert_eq!(allowed(&suppressed, &[1, 2, 3], 2), [1, 2, 3, 4, 5]);
        let least = Constraints { min_new_tokens: 1, min_length: 4, ..none.clone() };
        assert_eq!(allowed(&least, &[1, 2], 2), [0, 1, 2, 3, 4]);
        assert_eq!(allowed(&least, &[1, 2, 3], 2), [0, 1, 2, 3, 4]);
        assert_eq!(allowed(&least, &[1, 2, 3, 4], 2), [0, 1, 2, 3, 4, 5]);
        let pairs = Constraints { no_repeat_ngram_size: 2, ..none.clone() };
        assert_eq!(allowed(&pairs, &[1, 2, 1, 3, 1], 1), [0, 1, 4, 5]);
        assert_eq!(
            allowed(&Constraints { no_repeat_ngram_size: 1, ..none.clone() }, &[1, 4], 1),
            [0, 2, 3, 5]
        );
        let bad = Constraints { bad_words: vec![vec![0], vec![4, 1, 2], vec![9, 3], vec![5]], ..none };
        assert_eq!(allowed(&bad, &[4, 1], 1), [1, 3, 4, 5]);
        assert_eq!(allowed(&bad, &[1], 1), [1, 2, 3, 4, 5]);
    }

    #[test]
    fn logits_are_biased() {
        let biased = Constraints {
            sequence_biases: vec![(vec![0], 1.5), (vec![3, 1], -2.0)],
            length_penalty: Some((1.0, 2.0)),
            ..Constraints::default()
        };
        let after = |ids: &[u32]| {
            let mut logits = [1.0, 1.0, -3.0];
            biased.bias(&mut logits, ids);
            // A config may list an end of text twice.
            biased.apply(&mut logits, ids, 1, &[2, 2], false);
            logits
        };
        assert_eq!(after(&[3]), [2.5, -1.0, -3.0]);
        assert_eq!(after(&[3, 4]), [2.5, 1.0, -3.0]);
        assert_eq!(after(&[3, 4, 4]), [2.5, 1.0, 0.0]);
        assert_eq!(after(&[3, 4, 4, 4]), [2.5, 1.0, 6.0]);
        // No power of the factor makes an end of text impossible.
        assert_eq!(after(&[4; 2000])[2], LARGEST as f32);
        assert_eq!(biased.unknown(3), Some(("sequence_bias", 3)));
    }

    #[test]
    fn forced_tokens_are_the_only_ones() {
        let constraints = Constraints {
            forced_first: Some(3),
            forced_last: vec![2, 5],
            bad_words: vec![vec![3]],
            min_length: 9,
            suppressed_first: vec![1],
            ..Constraints::default()
        };
        let left = |constraints: &Constraints, ids: &[u32], is_last| {
            let mut logits = [1.0; 6];
            constraints.apply(&mut logits, ids, 1, &[5], is_last);
            (0..6).filter(|&id| logits[id as usize].is_finite()).collect::<Vec<u32>>()
        };
        assert_eq!(left(&constraints, &[9], false), [3]);
        assert_eq!(left(&constraints, &[9, 3], false), [0, 2, 4]);
        assert_eq!(left(&constraints, &[9, 3, 1], false), [0, 1, 2, 4]);
        assert_eq!(left(&constraints, &[9, 3, 1], true), [2, 5]);
        assert_eq!(constraints.unknown(5), Some(("forced_eos_token_id", 5)));
        assert_eq!(constraints.unknown(6), None);
        // transformers 5.23 suppresses after it forces.
        let suppressed = Constraints { suppressed: vec![5], suppressed_first: vec![2], ..constraints };
        assert_eq!(left(&suppressed, &[9, 3, 1], true), [2]);
        assert_eq!(left(&suppressed, &[9, 3], true), [0; 0]);
    }

    #[test]
    fn forced_tokens_that_are_all_suppressed_are_named() {
        let constraints = Constraints {
            forced_first: Some(3),
            forced_last: vec![2, 5],
            suppressed: vec![3, 2],
            suppressed_first: vec![5],
            ..Constraints::default()
        };
        let named = |constraints: &Constraints, prompt, may_end, most| {
            let text = constraints.contradiction(prompt, may_end, |length| length + 1 >= most);
            text.map_or(String::new(), |text| text.split(", which").next().unwrap().to_owned())
        };
        let first = "forced_bos_token_id = [3] is also in suppress_tokens";
        // As in transformers, whatever the prompt.
        assert_eq!(named(&constraints, 1, true, 9), first);
        assert_eq!(named(&constraints, 2, true, 9), first);
        let allowed = Constraints { suppressed: vec![2], ..constraints.clone() };
        let at_once = "forced_eos_token_id = [2, 5] is also in begin_suppress_tokens";
        assert_eq!(named(&allowed, 2, true, 3), at_once);
        assert_eq!(named(&allowed, 2, true, 4), "");
        assert_eq!(named(&allowed, 2, false, 3), "");
        // The first token is forced, the second is the first that is chosen.
        assert_eq!(named(&allowed, 1, true, 3), at_once);
        assert_eq!(named(&allowed, 1, true, 4), "");
        let last = Constraints { suppressed: vec![5, 2], ..constraints };
        assert_eq!(named(&last, 7, true, 99), "forced_eos_token_id = [2, 5] is also in suppress_tokens");
        assert_eq!(named(&last, 7, false, 99), "");
    }
}
