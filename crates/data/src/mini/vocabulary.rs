//! The tokenizer of the small model: the words of the grammar whole, everything else in letters.

use std::collections::BTreeSet;
use std::path::Path;

use tokenizers::models::wordpiece::WordPiece;

use crate::error::{DataError, Result};
use crate::mini::lexicon::Lexicon;
use crate::tokenize;

/// The special tokens, in the order of BERT's roles.
const SPECIAL: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];

/// Punctuation that text may hold.
const PUNCTUATION: &str = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~";

/// Ends of words, for words that the grammar does not know.
const ENDINGS: &str = "s es ed ing ly er est ness less ful able ion tion ation ment al ic ive ous ity ize en";

/// Words of the grammar that carry no meaning of their own, and some more that everyone needs.
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

/// The tokenizer as a `tokenizer.json`: lower case, WordPiece, BERT's template.
///
/// # Errors
/// [`DataError::Tokenizer`] if the tokenizers library refuses its own parts.
pub fn tokenizer_json() -> Result<String> {
    let error = |e: tokenizers::Error| DataError::tokenizer(Path::new("mini"), e);
    let vocab = WordPiece::read_bytes(vocabulary().join("\n").as_bytes()).map_err(error)?;
    let model = WordPiece::builder().vocab(vocab).unk_token(SPECIAL[1].to_owned()).build().map_err(error)?;
    let tokenizer = tokenize::bert_tokenizer(model).map_err(error)?;
    let mut json = tokenizer.to_string(true).map_err(error)?;
    json.push('\n');
    Ok(json)
}
