//! Rows of every form: what is read, what is refused, and what of the tokens is learnt.

#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

mod preferences;

use std::path::{Path, PathBuf};

use lowrank_data::chat::ChatTemplate;
use lowrank_data::rows::{LossOn, Row, RowEncoder, Rows};
use lowrank_data::tokenize::TextTokenizer;
use tempfile::TempDir;

use preferences::sides;

/// ChatML, as many models have it.
const CHATML: &str = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + \
                      '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}\
                      {% endif %}";

fn rows(name: &str, content: &str) -> (TempDir, lowrank_data::Result<Rows>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, content).unwrap();
    let rows = Rows::read(&path);
    (dir, rows)
}

/// A tokenizer of single words, with special tokens in angle brackets and `<s>` before a text.
fn tokenizer() -> TextTokenizer {
    framed("<s> $A", "right")
}

/// The same with another template for single texts and another side to truncate.
fn framed(template: &str, truncation_side: &str) -> TextTokenizer {
    let words = "hi there is it yes no good bad user assistant system what name \n \n\n 1+1? 2 . ? Answer:";
    let special = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"];
    let mut vocab = serde_json::Map::new();
    for word in special.iter().copied().chain(words.split(' ')) {
        let id = vocab.len();
        vocab.insert(word.to_owned(), id.into());
    }
    let added: Vec<_> = special
        .iter()
        .enumerate()
        .map(|(id, token)| {
            serde_json::json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        })
        .collect();
    let single: Vec<_> = template
        .split(' ')
        .map(|piece| match piece {
            "$A" => serde_json::json!({"Sequence": {"id": "A", "type_id": 0}}),
            token => serde_json::json!({"SpecialToken": {"id": token, "type_id": 0}}),
        })
        .collect();
    let json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"String": " "}, "behavior": "Removed", "invert": false},
            {"type": "Split", "pattern": {"Regex": "\\n+"}, "behavior": "Isolated", "invert": false}]},
        "post_processor": {"type": "TemplateProcessing",
            "single": single,
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]},
                "</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]}}},
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}
    });
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), json.to_string()).unwrap();
    let config = serde_json::json!({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
        "truncation_side": truncation_side});
    std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    TextTokenizer::from_folder(dir.path(), None).unwrap()
}

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(Path::new("t.jinja"), source, Default::default()).unwrap()
}

#[track_caller]
fn learnt(content: &str, source: Option<&str>, loss_on: LossOn, expected: &str) {
    let (_dir, rows) = rows("a.jsonl", content);
    let (tokenizer, template) = (tokenizer(), source.map(template));
    let encoder = RowEncoder::new(&tokenizer, template.as_ref(), loss_on, 100).unwrap();
    let encoded = encoder.encode(&rows.unwrap()).unwrap();
    let shown: Vec<String> = encoded.rows.iter().map(|row| row.show(&tokenizer).unwrap()).collect();
    assert_eq!(shown.join(" || ").replace('\n', "\\n"), expected);
}

const TWO_TURNS: &str = r#"{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hi there"}, {"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]}"#;

#[test]
fn the_last_answer_or_every_answer_is_learnt_with_its_end_of_turn() {
    learnt(
        TWO_TURNS,
        Some(CHATML),
        LossOn::Completion,
        "<|im_start|> user \\n hi <|im_end|> \\n <|im_start|> assistant \\n hi there <|im_end|> \\n <|im_start|> user \\n \
         1+1? <|im_end|> \\n <|im_start|> assistant \\n⟦2 <|im_end|>⟧\\n",
    );
    learnt(
        TWO_TURNS,
        Some(CHATML),
        LossOn::Assistant,
        "<|im_start|> user \\n hi <|im_end|> \\n <|im_start|> assistant \\n⟦hi there <|im_end|>⟧\\n <|im_start|> user \\n \
         1+1? <|im_end|> \\n <|im_start|> assistant \\n⟦2 <|im_end|>⟧\\n",
    );
}

/// GLM-4's form: what ends an answer is the token of the next turn, and after the last one nothing.
#[test]
fn answers_without_an_end_of_turn_are_learnt_to_stop() {
    let turns = "{% for m in messages %}{% if m.role == 'user' %}<|im_start|> {% else %}Answer: {% endif %}{{ m.content }} {% endfor %}\
                 {% if add_generation_prompt %}Answer:{% endif %}";
    let expected = "<|im_start|> hi Answer:⟦hi there <|im_start|>⟧1+1? Answer:⟦2 </s>⟧";
    learnt(TWO_TURNS, Some(turns), LossOn::Assistant, expected);
    learnt(
        TWO_TURNS,
        Some(turns),
        LossOn::All,
        "<|im_start|>⟦hi Answer: hi there <|im_start|> 1+1? Answer: 2 </s>⟧",
    );
}

#[test]
fn sharegpt_and_alpaca_become_conversations() {
    let expected = "<|im_start|> user \\n 1+1? <|im_end|> \\n <|im_start|> assistant \\n⟦2 <|im_end|>⟧\\n";
    let sharegpt =
        r#"{"conversations": [{"from": "human", "value": "1+1?"}, {"from": "gpt", "value": "2"}]}"#;
    learnt(sharegpt, Some(CHATML), LossOn::Completion, expected);
    let alpaca = r#"{"instruction": "1+1?", "input": "", "output": "2", "text": "ignored"}"#;
    learnt(alpaca, Some(CHATML), LossOn::Completion, expected);
    let parts = r#"{"prompt": [{"role": "user", "content": [{"type": "text", "text": "1+1?"}]}], "completion": [{"role": "assistant", "content": "2"}]}"#;
    learnt(parts, Some(CHATML), LossOn::Completion, expected);
}

#[test]
fn prompt_and_completion_stand_as_they_are_and_end() {
    let row = r#"{"prompt": "1+1? Answer:", "completion": " 2"}"#;
    learnt(row, Some(CHATML), LossOn::Completion, "<s> 1+1? Answer:⟦2 </s>⟧");
    learnt(row, None, LossOn::All, "<s>⟦1+1? Answer: 2 </s>⟧");
}

#[test]
fn plain_text_is_learnt_whole_and_cut_into_pieces() {
    let (_dir, rows) = rows("a.txt", "hi there is it yes no\n");
    let tokenizer = tokenizer();
    let encoder = RowEncoder::new(&tokenizer, None, LossOn::Completion, 4).unwrap();
    let encoded = encoder.encode(&rows.unwrap()).unwrap();
    let shown: Vec<String> = encoded.rows.iter().map(|row| row.show(&tokenizer).unwrap()).collect();
    assert_eq!(shown, ["<s>⟦hi there is⟧", "<s>⟦it yes no⟧", "<s>⟦\n </s>⟧"]);
    assert_eq!((encoded.n_cut, encoded.n_left_out), (0, 0));
}

/// As in a file that Python opens as text.
#[test]
fn lines_of_a_plain_text_end_with_a_line_feed() {
    let tokenizer = tokenizer();
    let encoder = RowEncoder::new(&tokenizer, None, LossOn::Completion, 16).unwrap();
    let ids = |text: &str| {
        let (_dir, rows) = rows("a.txt", text);
        encoder.encode(&rows.unwrap()).unwrap().rows.into_iter().map(|row| row.ids).collect::<Vec<_>>()
    };
    assert_eq!(ids("hi\r\nthere\r\n"), ids("hi\nthere\n"));
    assert_ne!(ids("hi\rthere\n"), ids("hi\nthere\n"));
}

#[test]
fn sources_and_targets_keep_their_special_tokens_when_they_are_cut() {
    let content = r#"{"prompt": "hi there is it", "completion": "yes no"}
        {"prompt": "", "completion": "hi there is it"}
        {"instruction": "hi", "input": "", "output": "yes"}"#;
    let (_dir, rows) = rows("a.jsonl", content);
    let rows = rows.unwrap();
    for (template, side, expected) in [
        (
            "<s> $A",
            "right",
            [
                "<s> hi there is ⟦<s> yes no </s>⟧",
                "<s> ⟦<s> hi there </s>⟧",
                "<s> <unk> is <unk> ⟦<s> yes </s>⟧",
            ],
        ),
        (
            "$A </s>",
            "right",
            ["hi there is </s> ⟦yes no </s>⟧", "</s> ⟦hi there is </s>⟧", "<unk> is <unk> </s> ⟦yes </s>⟧"],
        ),
        (
            "$A </s>",
            "left",
            ["there is it </s> ⟦yes no </s>⟧", "</s> ⟦there is it </s>⟧", "<unk> <unk> \n </s> ⟦yes </s>⟧"],
        ),
    ] {
        let tokenizer = framed(template, side);
        let encoder = RowEncoder::new(&tokenizer, None, LossOn::Completion, 4).unwrap();
        let encoded = encoder.encode_targets(&rows).unwrap();
        let shown: Vec<String> = encoded.rows.iter().map(|row| row.show(&tokenizer).unwrap()).collect();
        assert_eq!(shown, expected, "{template} {side}");
        assert_eq!(encoded.n_cut, 3, "{template} {side}");
        assert!(encoded.rows.iter().all(|row| row.source.len() <= 4 && row.target.len() <= 4));
    }
}

#[test]
fn generation_blocks_win() {
    let source = "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|im_start|>' }}{% generation %}{{ m.content }}\
                  {{ '<|im_end|>' }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{{ \"\\n\" }}{% endfor %}";
    learnt(
        TWO_TURNS,
        Some(source),
        LossOn::Completion,
        "hi \\n <|im_start|> hi there <|im_end|> \\n 1+1? \\n <|im_start|>⟦2 <|im_end|>⟧\\n",
    );
    learnt(
        TWO_TURNS,
        Some(source),
        LossOn::Assistant,
        "hi \\n <|im_start|>⟦hi there <|im_end|>⟧\\n 1+1? \\n <|im_start|>⟦2 <|im_end|>⟧\\n",
    );
}

/// A message may have several blocks, or none: they are counted by message.
#[test]
fn generation_blocks_belong_to_messages() {
    let source = "{% for m in messages %}{% if m.role == 'assistant' %}{% if m.reasoning %}{% generation %}{{ m.reasoning }}\
                  {% endgeneration %} . {% endif %}{% generation %}{{ m.content }}{% endgeneration %}{{ '<|im_end|>' }}\
                  {% else %}{{ m.content }}{% endif %} {% endfor %}";
    let turn = |content: &str, reasoning: &str| {
        format!(
            r#"{{"role": "assistant", "content": "{content}", "reasoning": "{reasoning}", "tool_calls": [1]}}"#
        )
    };
    let row = |answers: [String; 2]| {
        let [first, second] = answers;
        format!(
            r#"{{"messages": [{{"role": "user", "content": "hi"}}, {first}, {{"role": "user", "content": "1+1?"}}, {second}]}}"#
        )
    };
    let both = row([turn("yes", "good"), turn("no", "bad")]);
    learnt(&both, Some(source), LossOn::Completion, "hi good . yes <|im_end|> 1+1?⟦bad⟧.⟦no⟧<|im_end|>");
    learnt(&both, Some(source), LossOn::Assistant, "hi⟦good⟧.⟦yes⟧<|im_end|> 1+1?⟦bad⟧.⟦no⟧<|im_end|>");
    let split = both.replace("\"messages\"", "\"prompt\"").replace(
        r#"{"role": "user", "content": "1+1?"}, "#,
        r#"{"role": "user", "content": "1+1?"}], "completion": ["#,
    );
    learnt(&split, Some(source), LossOn::Completion, "hi good . yes <|im_end|> 1+1?⟦bad⟧.⟦no⟧<|im_end|>");
    // The last answer is empty, and the one before it does not take its place.
    let empty = format!("{}\n{both}", row([turn("yes", ""), turn("", "")]));
    learnt(&empty, Some(source), LossOn::Completion, "hi good . yes <|im_end|> 1+1?⟦bad⟧.⟦no⟧<|im_end|>");
    // Earlier reasoning is not written, so that no beginning of the conversation is one of the text.
    let rewritten = source.replace("if m.reasoning", "if m.reasoning and loop.last");
    learnt(&both, Some(&rewritten), LossOn::Completion, "hi yes <|im_end|> 1+1?⟦bad⟧.⟦no⟧<|im_end|>");
}

/// Blocks of earlier turns that end differently from the last one, as in gpt-oss's template.
#[test]
fn generation_blocks_may_end_differently_in_the_last_turn() {
    let source = "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}\
                  {{ ' <|im_end|>' if loop.last else ' . .' }}{% endgeneration %}{% else %}{{ m.content }}{% endif %} {% endfor %}";
    let row = r#"{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}, {"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "no"}]}"#;
    learnt(row, Some(source), LossOn::Completion, "hi yes . . 1+1?⟦no <|im_end|>⟧");
    learnt(row, Some(source), LossOn::Assistant, "hi⟦yes . .⟧1+1?⟦no <|im_end|>⟧");
}

/// Conversations that a template refuses are not needed where each answer has a block.
#[test]
fn generation_blocks_are_told_apart_where_the_template_refuses_parts() {
    let source = "{% for m in messages %}{% if m.role == 'assistant' %}{% if m.thinking and m.content %}\
                  {{ raise_exception('both') }}{% endif %}{% generation %}\
                  {{ m.thinking if m.thinking and loop.last else m.content or 'good' }} <|im_end|>{% endgeneration %}\
                  {% else %}{{ m.content }}{% endif %} {% endfor %}";
    let row = r#"{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "thinking": "bad", "tool_calls": [1]}, {"role": "tool", "content": "yes"}, {"role": "assistant", "content": "no"}]}"#;
    learnt(row, Some(source), LossOn::Completion, "hi good <|im_end|> yes⟦no <|im_end|>⟧");
    learnt(row, Some(source), LossOn::Assistant, "hi⟦good <|im_end|>⟧yes⟦no <|im_end|>⟧");
}

/// A template that writes the last answer otherwise than earlier ones, as reasoning models' do.
#[test]
fn answers_are_found_where_earlier_turns_are_rewritten() {
    let source = "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}good\n\
                  {% endif %}{{ m.content | trim }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n\
                  {% endif %}";
    learnt(
        TWO_TURNS,
        Some(source),
        LossOn::Assistant,
        "<|im_start|> user \\n hi <|im_end|> \\n <|im_start|> assistant \\n⟦hi there <|im_end|>⟧\\n <|im_start|> user \\n \
         1+1? <|im_end|> \\n <|im_start|> assistant \\n⟦good \\n 2 <|im_end|>⟧\\n",
    );
}

#[test]
fn a_cut_row_without_an_answer_is_left_out_and_counted() {
    let content = format!(
        "{TWO_TURNS}\n{}\n",
        r#"{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes no"}]}"#
    );
    let (_dir, rows) = rows("a.jsonl", &content);
    let (tokenizer, template) = (tokenizer(), template(CHATML));
    let rows = rows.unwrap();
    let encoder = RowEncoder::new(&tokenizer, Some(&template), LossOn::Completion, 10).unwrap();
    let encoded = encoder.encode(&rows).unwrap();
    assert_eq!((encoded.rows.len(), encoded.n_cut, encoded.n_left_out), (1, 2, 1));
    assert_eq!(encoded.sources, [1]);
    let encoder = RowEncoder::new(&tokenizer, Some(&template), LossOn::Completion, 5).unwrap();
    let error = encoder.encode(&rows).unwrap_err().to_string();
    assert!(error.contains("none of its rows has a target token within 5 tokens"), "{error}");
}

#[test]
fn variables_of_a_row_reach_the_template() {
    let source = "{{ name }} {% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %} <|im_end|>{% endif %} {% endfor %}";
    let user = r#"{"role": "user", "content": "hi"}"#;
    let yes = r#"{"role": "assistant", "content": "yes"}"#;
    let kwargs = r#""chat_template_kwargs": {"name": "good"}"#;
    for row in [
        format!(r#"{{"messages": [{user}, {yes}], {kwargs}}}"#),
        format!(r#"{{"prompt": [{user}], "completion": [{yes}], {kwargs}}}"#),
        format!(r#"{{"instruction": "hi", "output": "yes", {kwargs}}}"#),
    ] {
        learnt(&row, Some(source), LossOn::Completion, "good hi⟦yes <|im_end|>⟧");
    }
    let no = yes.replace("yes", "no");
    let pair = format!(r#"{{"prompt": [{user}], "chosen": [{yes}], "rejected": [{no}], {kwargs}}}"#);
    let shown = ["good hi ⟦yes <|im_end|>⟧", "good hi ⟦no <|im_end|>⟧"];
    assert_eq!(sides(&pair, source), shown.map(|text| text.replace(" ⟦", "⟦")));
    refused(
        "a.jsonl",
        &format!(r#"{{"messages": [{user}, {yes}], "chat_template_kwargs": 1}}"#),
        "'chat_template_kwargs' is not an object",
    );
}

/// The template of short conversations.
const SHORT: &str =
    "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %} <|im_end|>{% endif %} {% endfor %}";

#[test]
fn answers_without_weight_are_not_learnt() {
    for key in ["\"weight\": 0", "\"weight\": 0.0", "\"weight\": false"] {
        let row =
            TWO_TURNS.replace("\"content\": \"hi there\"", &format!("\"content\": \"hi there\", {key}"));
        assert_ne!(row, TWO_TURNS);
        learnt(&row, Some(SHORT), LossOn::Assistant, "hi hi there <|im_end|> 1+1?⟦2 <|im_end|>⟧");
        learnt(&row, Some(SHORT), LossOn::All, "hi hi there <|im_end|>⟦1+1? 2 <|im_end|>⟧");
    }
    let weighted = TWO_TURNS.replace("\"content\": \"hi there\"", "\"content\": \"hi there\", \"weight\": 1");
    learnt(&weighted, Some(SHORT), LossOn::Assistant, "hi⟦hi there <|im_end|>⟧1+1?⟦2 <|im_end|>⟧");
    // What a row marks wins over the default, the last answer.
    learnt(&weighted, Some(SHORT), LossOn::Completion, "hi⟦hi there <|im_end|>⟧1+1?⟦2 <|im_end|>⟧");
    let first = weighted.replace("\"content\": \"2\"", "\"content\": \"2\", \"weight\": 0");
    learnt(&first, Some(SHORT), LossOn::Completion, "hi⟦hi there <|im_end|>⟧1+1? 2 <|im_end|>");
    for key in ["\"train\": false", "\"train\": 0", "\"weight\": 0"] {
        let row = format!(
            r#"{{"conversations": [{{"from": "human", "value": "hi"}}, {{"from": "gpt", "value": "yes", {key}}}, {{"from": "human", "value": "1+1?"}}, {{"from": "gpt", "value": "2"}}]}}"#
        );
        learnt(&row, Some(SHORT), LossOn::Assistant, "hi yes <|im_end|> 1+1?⟦2 <|im_end|>⟧");
    }
    // Where the last answer has no weight nothing is left to learn.
    let last = TWO_TURNS.replace("\"content\": \"2\"", "\"content\": \"2\", \"weight\": 0");
    learnt(
        &format!("{last}\n{TWO_TURNS}"),
        Some(SHORT),
        LossOn::Completion,
        "hi hi there <|im_end|> 1+1?⟦2 <|im_end|>⟧",
    );
}

#[test]
fn system_and_history_are_part_of_the_conversation() {
    let turns = r#"[{"from": "human", "value": "1+1?"}, {"from": "gpt", "value": "2"}]"#;
    for row in [
        format!(r#"{{"system": "good", "conversations": {turns}}}"#),
        r#"{"system": "good", "instruction": "1+1?", "output": "2"}"#.to_owned(),
        r#"{"system": "good", "messages": [{"role": "system", "content": "good"}, {"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]}"#.to_owned(),
        r#"{"system": "good", "prompt": [{"role": "user", "content": "1+1?"}], "completion": [{"role": "assistant", "content": "2"}]}"#.to_owned(),
    ] {
        learnt(&row, Some(SHORT), LossOn::Completion, "good 1+1?⟦2 <|im_end|>⟧");
    }
    let plain = format!(r#"{{"system": null, "conversations": {turns}}}"#);
    learnt(&plain, Some(SHORT), LossOn::Completion, "1+1?⟦2 <|im_end|>⟧");
    let history = r#"{"system": "good", "history": [["hi", "yes"], ["there", "no"]], "instruction": "1+1?", "input": "", "output": "2"}"#;
    learnt(
        history,
        Some(SHORT),
        LossOn::Completion,
        "good hi yes <|im_end|> there no <|im_end|> 1+1?⟦2 <|im_end|>⟧",
    );
    learnt(
        history,
        Some(SHORT),
        LossOn::Assistant,
        "good hi⟦yes <|im_end|>⟧there⟦no <|im_end|>⟧1+1?⟦2 <|im_end|>⟧",
    );
    let empty = r#"{"system": "", "history": [], "instruction": "hi", "input": "", "output": "yes"}"#;
    let (_dir, rows) = rows("a.jsonl", empty);
    assert!(matches!(rows.unwrap().iter().next(), Some(Row::Instruction { .. })));
    let pair = r#"{"system": "good", "conversations": [{"from": "human", "value": "hi"}], "chosen": {"from": "gpt", "value": "yes"}, "rejected": {"from": "gpt", "value": "no"}}"#;
    assert_eq!(sides(pair, SHORT), ["good hi⟦yes <|im_end|>⟧", "good hi⟦no <|im_end|>⟧"]);
    refused(
        "a.jsonl",
        &format!(
            r#"{{"system": "good", "conversations": [{{"from": "system", "value": "bad"}}, {}"#,
            &turns[1..]
        )
        .replace("]", "]}"),
        "'system' differs from the conversation's own system message",
    );
    refused(
        "a.jsonl",
        r#"{"history": [["hi"]], "instruction": "1+1?", "output": "2"}"#,
        "'history' is not a list of pairs",
    );
}

#[test]
fn strings_beside_a_system_message_are_a_conversation() {
    let pair = r#"{"system": "good", "prompt": "hi", "chosen": "yes", "rejected": "no"}"#;
    assert_eq!(sides(pair, SHORT), ["good hi⟦yes <|im_end|>⟧", "good hi⟦no <|im_end|>⟧"]);
    let row = r#"{"system": "good", "prompt": "1+1?", "completion": "2"}"#;
    learnt(row, Some(SHORT), LossOn::Completion, "good 1+1?⟦2 <|im_end|>⟧");
    let history = r#"{"prompt": "1+1?", "history": [["hi", "yes"]], "completion": "2"}"#;
    learnt(history, Some(SHORT), LossOn::Completion, "hi yes <|im_end|> 1+1?⟦2 <|im_end|>⟧");
    // One form for all rows of a file.
    let plain = r#"{"system": "", "prompt": "hi", "completion": "yes"}"#;
    let both = "hi⟦yes <|im_end|>⟧ || good 1+1?⟦2 <|im_end|>⟧";
    learnt(&format!("{plain}\n{row}"), Some(SHORT), LossOn::Completion, both);
    let tools = r#"{"tools": [{"type": "function", "function": {"name": "name"}}], "instruction": "1+1?", "output": "2"}"#;
    let source = format!("{{{{ tools[0].function.name }}}} {SHORT}");
    learnt(tools, Some(&source), LossOn::Completion, "name 1+1?⟦2 <|im_end|>⟧");
}

#[test]
fn function_calls_of_sharegpt_call_tools() {
    let call = r#"{\"name\": \"name\", \"arguments\": {\"a\": 2}}"#;
    let source = "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls %}{{ c.function.name }} {{ c.function.arguments.a }}\
                  {% endfor %}{% if m.role == 'assistant' %} <|im_end|>{% endif %} {% endfor %}";
    for value in [call.to_owned(), format!("[{call}]")] {
        let row = format!(
            r#"{{"tools": "", "conversations": [{{"from": "human", "value": "hi"}}, {{"from": "function_call", "value": "{value}"}}, {{"from": "observation", "value": "yes"}}, {{"from": "gpt", "value": "no"}}]}}"#
        );
        let expected = "hi⟦name 2 <|im_end|>⟧yes⟦no <|im_end|>⟧";
        learnt(&row, Some(source), LossOn::Assistant, expected);
    }
    for value in ["find it", "[]", "{}"] {
        let row = format!(r#"{{"conversations": [{{"from": "function_call", "value": "{value}"}}]}}"#);
        refused("a.jsonl", &row, "a function_call's 'value' is not JSON of a name");
    }
}

#[test]
fn columns_that_change_a_rows_meaning_are_refused() {
    for (column, part) in [
        (r#""images": ["1.jpg"]"#, "the row has 'images', and only text is supported"),
        (r#""kto_tag": false"#, "'kto_tag' is not supported"),
        (r#""kto_tag": 0"#, "'kto_tag' is not supported"),
        (r#""rejected_response": "no""#, "'rejected_response' is not supported"),
    ] {
        refused("a.jsonl", &format!(r#"{{"prompt": "a", "completion": "b", {column}}}"#), part);
    }
    refused("a.jsonl", r#"{"prompt": "a", "completion": "b", "label": false}"#, "'label' is not supported");
    let empty = r#"{"prompt": "1+1?", "completion": " 2", "images": [null], "audio": {}, "video": false, "kto_tag": null}"#;
    learnt(empty, None, LossOn::Completion, "<s> 1+1?⟦2 </s>⟧");
    learnt(r#"{"text": "hi", "image": "1.jpg"}"#, None, LossOn::Completion, "<s>⟦hi </s>⟧");
}

#[test]
fn lists_lines_and_texts_are_read() {
    let (_dir, json) = rows("a.json", "[{\"text\": \"hi\"},\n {\"prompt\": \"a\", \"completion\": \"b\"}]");
    let json = json.unwrap();
    assert_eq!(json.len(), 2);
    assert_eq!(json.iter().next(), Some(&Row::Text("hi".into())));
    let (_dir, lines) = rows("b.json", "{\"text\": \"hi\"}\n\n{\"text\": \"no\"}\n");
    let lines = lines.unwrap();
    assert_eq!((lines.len(), lines.count_in(&json)), (2, 1));
    assert!(lines.place(1).ends_with("b.json:3") && json.place(1).ends_with("a.json: item 2"));
}

#[track_caller]
fn refused(name: &str, content: &str, part: &str) {
    let error = rows(name, content).1.unwrap_err().to_string();
    assert!(error.contains(part), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
}

#[test]
fn bad_rows_are_named() {
    refused("a.jsonl", "{\"text\": \"a\"}\n{\"text\": \"b\"", "a.jsonl:2: malformed JSON (EOF");
    refused(
        "a.jsonl",
        "{\"question\": \"a\", \"reply\": \"b\"}",
        "a.jsonl:1: a row of unknown format (keys question, reply)",
    );
    refused("a.jsonl", "[1]", "a.jsonl:1: a row is an object");
    refused("a.json", "[{\"text\": \"a\"}, {\"text\": 1}]", "a.json: item 2: 'text' is not a string");
    refused("a.json", "[{\"text\": \"a\"}", "a.json': malformed JSON");
    refused("a.json", "[]", "holds no rows");
    refused("a.txt", " \n", "holds no rows");
    refused("a.csv", "a,b", "must end in .jsonl, .json or .txt");
    refused("a.jsonl", r#"{"prompt": "a", "completion": " "}"#, "a.jsonl:1: 'completion' is empty");
    refused("a.jsonl", r#"{"instruction": "a", "output": null}"#, "a row of unknown format");
    refused("a.jsonl", r#"{"messages": []}"#, "'messages' is empty");
    refused("a.jsonl", r#"{"messages": [{"role": "user", "content": "a"}]}"#, "no assistant message");
    refused(
        "a.jsonl",
        r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]}"#,
        "an answer is empty",
    );
    refused("a.jsonl", r#"{"messages": [{"role": "narrator", "content": "a"}]}"#, "unknown role 'narrator'");
    refused("a.jsonl", r#"{"conversations": [{"from": "alien", "value": "a"}]}"#, "unknown role 'alien'");
    refused(
        "a.jsonl",
        r#"{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}"#,
        "content of type 'image_url' is not text",
    );
    refused(
        "a.jsonl",
        r#"{"prompt": "a", "chosen": "b", "rejected": "b"}"#,
        "'chosen' and 'rejected' are equal",
    );
    refused("a.jsonl", r#"{"prompt": "a", "chosen": "b"}"#, "'rejected' is missing");
    refused(
        "a.jsonl",
        "{\"prompt\": \"a\", \"chosen\": \"b\", \"rejected\": \"c\"}\n{\"text\": \"x\"}",
        "a.jsonl:2: some rows are preferences",
    );
    let dir = tempfile::tempdir().unwrap();
    let path: PathBuf = dir.path().join("a.jsonl");
    std::fs::write(&path, b"{\"text\": \"a\"}\n{\"text\": \"\xff\"}").unwrap();
    assert!(Rows::read(&path).unwrap_err().to_string().contains("a.jsonl:2: not valid UTF-8"));
}

#[test]
fn what_the_template_does_not_take_is_named_by_row() {
    let tokenizer = tokenizer();
    let content = format!("{{\"prompt\": \"hi\", \"completion\": \"yes\"}}\n{TWO_TURNS}");
    let (_dir, rows) = rows("a.jsonl", &content);
    let rows = rows.unwrap();
    let check = |source: Option<&str>, part: &str| {
        let template = source.map(template);
        let encoder = RowEncoder::new(&tokenizer, template.as_ref(), LossOn::Completion, 50).unwrap();
        let error = encoder.encode(&rows).unwrap_err().to_string();
        assert!(error.contains(&format!("a.jsonl:2: {part}")), "{error}");
        assert_eq!(error.lines().count(), 1);
    };
    check(None, "the model has no chat template");
    check(Some("{{ raise_exception('not\\nso') }}"), "the chat template refuses the conversation: not so");
    check(
        Some("{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content }}{% endif %}{% endfor %}"),
        "the chat template omits messages of role 'user'",
    );
    check(
        Some(
            "{% for a in range(9999) %}{% for b in range(9999) %}{% set x = a * b %}{% endfor %}{% endfor %}",
        ),
        "the chat template takes too many steps or too much memory",
    );
    check(
        Some(
            "{% set ns = namespace(s='xxxxxxxx') %}{% for a in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        ),
        "the chat template takes too many steps or too much memory",
    );
}
