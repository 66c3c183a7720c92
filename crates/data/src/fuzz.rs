//! Fuzz bodies: arbitrary bytes as rows, tables, questions or templates cause no panic and no endless work; errors are one
//! line.
//!
//! Run for hours by cargo-fuzz (`fuzz/`), and for seconds on mutated files by the tests.

use std::path::Path;

use crate::DataError;
use crate::chat::{ChatTemplate, Message, RenderOptions};
use crate::glue::{is_tagged, read_custom, read_tagged_file};
use crate::questions::read_questions;
use crate::rows::Rows;

/// A file of rows of a language model (`.jsonl`, `.json`, `.txt`), or of questions.
pub fn rows(path: &Path) {
    match Rows::read(path) {
        Ok(rows) => assert!(!rows.is_empty() && rows.count_in(&rows) == rows.len()),
        Err(error) => check(&error),
    }
    if let Err(error) = read_questions(path) {
        check(&error);
    }
}

/// A file of a classifier's rows (`.tsv`, `.jsonl`), or of tagged words.
pub fn table(path: &Path) {
    match read_custom("fuzz", path, path, &[]) {
        Ok((train, dev)) => assert_eq!(train.examples(), dev.examples()),
        Err(error) => check(&error),
    }
    match is_tagged(path) {
        Ok(true) => {
            if let Err(error) = read_tagged_file("fuzz", path, &["O".into(), "B-A".into()]) {
                check(&error);
            }
        }
        Ok(false) => {}
        Err(error) => check(&error),
    }
}

/// A chat template.
pub fn template(data: &[u8]) {
    let Ok(source) = std::str::from_utf8(data) else { return };
    let template = match ChatTemplate::new(Path::new("fuzz"), source, Default::default()) {
        Ok(template) => template,
        Err(error) => return check(&error),
    };
    let messages =
        [Message::new("system", "Be brief."), Message::new("user", "1+1?"), Message::new("assistant", "2")];
    let options = RenderOptions { now: Some("2025-03-07T09:05:04"), ..RenderOptions::default() };
    match template.answers(&messages, &options) {
        Ok(answers) => assert!(answers.spans.iter().all(|span| answers.text.get(span.clone()).is_some())),
        Err(error) => check(&error),
    }
    if let Err(error) = template.render(&messages[..2], &options) {
        check(&error);
    }
}

/// A message is one line.
fn check(error: &DataError) {
    let message = error.to_string();
    assert!(!message.contains('\n'), "{message:?}");
}

#[cfg(test)]
mod tests {
    use lowrank_checkpoint::fuzz::{on_file, on_mutations};

    use super::*;

    fn run(name: &str, rounds: usize, file: &str, body: fn(&Path)) {
        on_mutations(3, rounds, file.as_bytes(), |data| on_file(name, data, body));
    }

    #[test]
    fn mutated_rows_are_read_or_refused() {
        let rows_file = "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"},{\"role\":\"assistant\",\"content\":\"é\"}]}\n\
             {\"prompt\":\"a\",\"completion\":\"b\"}\n{\"text\":\"c\"}\n{\"instruction\":\"d\",\"input\":\"\",\"output\":\"e\"}\n\
             {\"system\":\"f\",\"history\":[[\"g\",\"h\"]],\"instruction\":\"i\",\"output\":\"j\",\"chat_template_kwargs\":{\"k\":1}}\n";
        run("a.jsonl", 2000, rows_file, rows);
        let pairs = "[{\"prompt\":\"a\",\"chosen\":\"b\",\"rejected\":\"c\"},{\"conversations\":[{\"from\":\"human\",\"value\":\"x\"}],\
             \"chosen\":{\"from\":\"gpt\",\"value\":\"y\"},\"rejected\":{\"from\":\"gpt\",\"value\":\"z\"}}]";
        run("a.json", 2000, pairs, rows);
        let questions = "{\"question\":\"who\",\"context\":\"the cat sat\",\"answers\":{\"text\":[\"cat\"],\"answer_start\":[4]}}\n";
        run("q.jsonl", 2000, questions, rows);
    }

    /// Found by the fuzzer: names from a file that broke the line of a message.
    #[test]
    fn names_from_a_file_stay_on_one_line() {
        let rows_file = "{\"question\":\"a\",\"a\\nswers\":1}\n";
        on_file("a.jsonl", rows_file.as_bytes(), rows);
        for file in ["{\"tokens\":[\"a\"],\"tags\":[\"_\\n\"]}\n", "{\"text\":\"a\",\"label\":\"b\\nc\"}\n"] {
            on_file("a.jsonl", file.as_bytes(), table);
        }
    }

    #[test]
    fn mutated_tables_are_read_or_refused() {
        run("a.tsv", 2000, "text\ttext_pair\tlabel\na\tb\tx\nc d\te\ty\nf\t\"g\tx\n", table);
        run("a.jsonl", 2000, "{\"text\":\"a\",\"label\":1}\n{\"text\":\"b\",\"label\":0}\n", table);
        run("m.jsonl", 2000, "{\"text\":\"a\",\"labels\":[0,1]}\n{\"text\":\"b\",\"labels\":[1,0]}\n", table);
        run("a.conll", 2000, "The O\ncat B-A\n\nsat\tO\n\n", table);
        run("t.jsonl", 2000, "{\"tokens\":[\"a\",\"b\"],\"tags\":[\"O\",\"B-A\"]}\n", table);
    }

    #[test]
    fn mutated_templates_render_or_are_refused() {
        let source = "{%- set ns = namespace(n=0) -%}{% for m in messages if m.role != 'x' %}{% set ns.n = ns.n + 1 %}\
             <|{{ m['role'] | upper }}|>{{ m.content.strip() ~ '' }}{% generation %}{{ loop.index }}{% endgeneration %}</s>\
             {% else %}{{ raise_exception('none' ) }}{% endfor %}{% macro f(a, b=[1]) %}{{ a * 3 }}{{ b | tojson }}{% endmacro %}\
             {{ f('x') }}{{ strftime_now('%Y') }}{{ '{:>5}'.format(1) }}{% if add_generation_prompt %}<|a|>{% endif %}";
        on_mutations(5, 3000, source.as_bytes(), template);
    }
}
