//! The tokenizer of the small model: the words of the grammar as whole tokens, everything else in letters.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::File;
use crate::lexicon::Lexicon;

/// The special tokens, in the order of BERT's roles.
const SPECIAL: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];

/// Punctuation that text may contain.
const PUNCTUATION: &str = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~";

/// Word endings, for words outside the grammar.
const ENDINGS: &str = "s es ed ing ly er est ness less ful able ion tion ation ment al ic ive ous ity ize en";

/// Function words of the grammar, and some more common words.
const FUNCTION_WORDS: &str = "a about above after again against all although am an and another any anyone anything are \
    as at be became because become becomes been before being below between both but by call called can cannot contrast \
    could did do does doing down during each either even ever every everyone far few five for four free from fully good \
    had hard hardly has have having he her here hers herself him himself his how however i if in instead into is it its itself \
    just lacks least less like likewise man many maybe me means more most much must my myself never no nobody nor not nothing now \
    occasion of off on once one only or other our out over own perhaps several so some someone something still such than that \
    the their them themselves then there therefore these they this those though three through to too two under until up \
    us very was we were what when where whether which while who whom why will with without woman words would yet you your \
    avoids bad call fails manages pretends viewer despite";

/// The vocabulary in the order of its ids.
pub(crate) fn vocabulary() -> Vec<String> {
    let mut tokens: Vec<String> = SPECIAL.map(str::to_owned).to_vec();
    tokens.extend(PUNCTUATION.chars().map(String::from));
    let letters = || ('0'..='9').chain('a'..='z');
    tokens.extend(letters().map(String::from));
    tokens.extend(letters().map(|letter| format!("##{letter}")));
    tokens.extend(ENDINGS.split_whitespace().filter(|e| e.len() > 1).map(|ending| format!("##{ending}")));
    let mut words: BTreeSet<String> = Lexicon::new().words();
    words.extend(FUNCTION_WORDS.split_whitespace().map(str::to_owned));
    // Single letters are there already.
    tokens.extend(words.into_iter().filter(|word| word.len() > 1));
    tokens
}

/// `tokenizer.json` and `tokenizer_config.json` of a small BERT: lower case, WordPiece, BERT's template.
pub fn tokenizer_files(max_length: usize) -> [File; 2] {
    let config = json!({
        "tokenizer_class": "BertTokenizer",
        "model_max_length": max_length,
        "do_lower_case": true,
        "unk_token": "[UNK]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "mask_token": "[MASK]",
    });
    [("tokenizer.json", tokenizer()), ("tokenizer_config.json", config)]
        .map(|(name, json)| (name.to_owned(), format!("{json:#}\n")))
}

/// The tokenizer in the format of Hugging Face's tokenizers.
fn tokenizer() -> Value {
    let added = SPECIAL.iter().enumerate().map(|(id, content)| {
        json!({
            "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        })
    });
    let ids = vocabulary().into_iter().enumerate().map(|(id, token)| (token, Value::from(id)));
    let [_, unk, cls, sep, _] = SPECIAL;
    let special = |token: &str, type_id: u8| json!({ "SpecialToken": { "id": token, "type_id": type_id } });
    let text = |name: &str, type_id: u8| json!({ "Sequence": { "id": name, "type_id": type_id } });
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": true,
            "handle_chinese_chars": true,
            "strip_accents": null,
            "lowercase": true,
        },
        "pre_tokenizer": { "type": "BertPreTokenizer" },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [special(cls, 0), text("A", 0), special(sep, 0)],
            "pair": [special(cls, 0), text("A", 0), special(sep, 0), text("B", 1), special(sep, 1)],
            "special_tokens": {
                cls: { "id": cls, "ids": [2], "tokens": [cls] },
                sep: { "id": sep, "ids": [3], "tokens": [sep] },
            },
        },
        "decoder": { "type": "WordPiece", "prefix": "##", "cleanup": true },
        "model": {
            "type": "WordPiece",
            "unk_token": unk,
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": ids.collect::<Map<String, Value>>(),
        },
    })
}
