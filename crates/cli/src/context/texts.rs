//! Texts from options and files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use lowrank_data::pack::EncodedDataset;
use lowrank_data::tokenize::{Encoded, TextTokenizer};

/// A text file without its byte order mark; an error names the first line that is not UTF-8.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    let bytes = lowrank_checkpoint::read_file(path).with_context(|| path.display().to_string())?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        anyhow::anyhow!("{}: line {line} is not UTF-8 text", path.display())
    })?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

/// Texts from `--text`, `--text-pair` and `--file`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Texts {
    /// Texts, each with its optional second text.
    pub(crate) rows: Vec<(String, Option<String>)>,
    /// The file that the last of them come from, and the number of those before.
    file: Option<(PathBuf, usize)>,
}

impl Texts {
    /// Reads the options of `matches` in the order in which they were written: each `--text-pair` belongs to the
    /// `--text` before it.
    pub(crate) fn gather(order: &[TextOption], file: Option<&Path>) -> Result<Self> {
        let mut rows: Vec<(String, Option<String>)> = Vec::new();
        for option in order {
            match (option, rows.last_mut()) {
                (TextOption::Text(text), _) => rows.push((text.clone(), None)),
                (TextOption::Pair(pair), Some((_, slot @ None))) => *slot = Some(pair.clone()),
                (TextOption::Pair(pair), _) => {
                    bail_usage!(
                        "--text-pair {pair:?} does not follow a --text; write --text TEXT --text-pair PAIR"
                    )
                }
            }
        }
        let file = file.map(|path| (path.to_path_buf(), rows.len()));
        if let Some((path, _)) = &file {
            let text = read_text(path)?;
            if text.is_empty() {
                bail!("{}: is empty; expected one text per line", path.display());
            }
            rows.extend(text.lines().map(|line| match line.split_once('\t') {
                Some((text, pair)) => (text.to_string(), Some(pair.to_string())),
                None => (line.to_string(), None),
            }));
        }
        if rows.is_empty() {
            bail_usage!("nothing to do: give --text or --file");
        }
        Ok(Self { rows, file })
    }

    /// Where a text comes from: its line of the file, or its number.
    pub(crate) fn place(&self, index: usize) -> String {
        match &self.file {
            Some((path, before)) if index >= *before => format!("{}:{}", path.display(), index - before + 1),
            _ => format!("text {}", index + 1),
        }
    }

    /// Converts every text to lower case.
    pub(crate) fn lower_case(&mut self) {
        for (text, pair) in &mut self.rows {
            *text = text.to_lowercase();
            *pair = pair.as_ref().map(|pair| pair.to_lowercase());
        }
    }

    /// Puts a prompt before every text.
    pub(crate) fn prepend(&mut self, prompt: &str) {
        for (text, _) in self.rows.iter_mut().filter(|_| !prompt.is_empty()) {
            text.insert_str(0, prompt);
        }
    }

    /// Encodes the texts.
    pub(crate) fn encode(&self, tokenizer: &TextTokenizer) -> Result<Arc<EncodedDataset>> {
        let encode = |(index, (text, pair)): (usize, &(String, Option<String>))| {
            tokenizer.encode(text, pair.as_deref()).with_context(|| self.place(index))
        };
        let rows = self.rows.iter().enumerate().map(encode).collect::<Result<Vec<Encoded>>>()?;
        Ok(Arc::new(EncodedDataset::unlabelled(rows)))
    }
}

/// One of the options that give texts.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum TextOption {
    /// `--text`.
    Text(String),
    /// `--text-pair`.
    Pair(String),
}

/// `--text`, `--text-pair` and `--file`.
#[derive(Debug)]
pub(crate) struct TextArgs {
    order: Vec<TextOption>,
    file: Option<PathBuf>,
}

impl TextArgs {
    /// Whether no text was given.
    pub(crate) fn is_empty(&self) -> bool {
        self.order.is_empty() && self.file.is_none()
    }

    /// The texts, in the order in which they were given.
    pub(crate) fn texts(&self) -> Result<Texts> {
        Texts::gather(&self.order, self.file.as_deref())
    }
}

impl clap::FromArgMatches for TextArgs {
    fn from_arg_matches(matches: &clap::ArgMatches) -> Result<Self, clap::Error> {
        let mut order: Vec<(usize, TextOption)> = Vec::new();
        for (id, make) in
            [("text", TextOption::Text as fn(String) -> TextOption), ("text_pair", TextOption::Pair)]
        {
            let values = matches.get_many::<String>(id).into_iter().flatten();
            let places = matches.indices_of(id).into_iter().flatten();
            order.extend(places.zip(values.map(|v| make(v.clone()))));
        }
        order.sort_by_key(|(place, _)| *place);
        Ok(Self {
            order: order.into_iter().map(|(_, option)| option).collect(),
            file: matches.get_one::<PathBuf>("file").cloned(),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &clap::ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl clap::Args for TextArgs {
    fn augment_args(command: clap::Command) -> clap::Command {
        use clap::{Arg, ArgAction, value_parser};
        command
            .arg(
                Arg::new("text")
                    .long("text")
                    .action(ArgAction::Append)
                    .allow_hyphen_values(true)
                    .help("A text; may be repeated"),
            )
            .arg(
                Arg::new("text_pair")
                    .long("text-pair")
                    .action(ArgAction::Append)
                    .allow_hyphen_values(true)
                    .help("The second text of the --text before it"),
            )
            .arg(
                Arg::new("file")
                    .long("file")
                    .value_parser(value_parser!(PathBuf))
                    .help("A file of texts, one per line; a tab separates a text from its pair"),
            )
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(s: &str) -> TextOption {
        TextOption::Text(s.into())
    }

    fn pair(s: &str) -> TextOption {
        TextOption::Pair(s.into())
    }

    #[test]
    fn a_pair_belongs_to_the_text_before_it() -> Result<()> {
        let texts = Texts::gather(&[text("a"), text("b"), pair("c"), text("")], None)?;
        let rows: Vec<_> = texts.rows.iter().map(|(t, p)| (t.as_str(), p.as_deref())).collect();
        assert_eq!(rows, [("a", None), ("b", Some("c")), ("", None)]);
        Ok(())
    }

    #[test]
    fn a_pair_without_a_text_is_an_error() {
        assert!(Texts::gather(&[pair("c")], None).is_err());
        assert!(Texts::gather(&[text("a"), pair("b"), pair("c")], None).is_err());
        assert!(Texts::gather(&[], None).is_err());
    }
}
