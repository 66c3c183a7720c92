//! Preferences: their prompts, and the targets of both sides.

use lowrank_data::rows::{LossOn, RowEncoder};

use super::{CHATML, SHORT, refused, rows, template, tokenizer};

#[test]
fn preferences_share_their_prompt() {
    let tokenizer = tokenizer();
    let template = template(CHATML);
    let forms = [
        r#"{"conversations": [{"from": "human", "value": "hi"}], "chosen": {"from": "gpt", "value": "yes"}, "rejected": {"from": "gpt", "value": "no"}}"#,
        r#"{"prompt": [{"role": "user", "content": "hi"}], "chosen": [{"role": "assistant", "content": "yes"}], "rejected": [{"role": "assistant", "content": "no"}]}"#,
        r#"{"chosen": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}], "rejected": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "no"}]}"#,
    ];
    for form in forms {
        let (_dir, rows) = rows("a.jsonl", form);
        let rows = rows.unwrap();
        assert!(rows.are_preferences());
        let encoder = RowEncoder::new(&tokenizer, Some(&template), LossOn::Completion, 50).unwrap();
        let pair = &encoder.encode_pairs(&rows).unwrap().pairs[0];
        let head = "<|im_start|> user \n hi <|im_end|> \n <|im_start|> assistant \n";
        assert_eq!(pair.chosen.show(&tokenizer).unwrap(), format!("{head}⟦yes <|im_end|>⟧\n"));
        assert_eq!(pair.rejected.show(&tokenizer).unwrap(), format!("{head}⟦no <|im_end|>⟧\n"));
        assert!(
            encoder.encode(&rows).unwrap_err().to_string().contains("a.jsonl:1: the row is a preference")
        );
    }
}

/// The tokens of a preference's sides.
pub(super) fn sides(content: &str, source: &str) -> [String; 2] {
    let (_dir, rows) = rows("a.jsonl", content);
    let (tokenizer, template) = (tokenizer(), template(source));
    let encoder = RowEncoder::new(&tokenizer, Some(&template), LossOn::Completion, 100).unwrap();
    let pair = encoder.encode_pairs(&rows.unwrap()).unwrap().pairs.remove(0);
    [pair.chosen, pair.rejected].map(|side| side.show(&tokenizer).unwrap())
}

#[test]
fn preferences_without_a_prompt_have_an_instruction_or_a_common_beginning() {
    let instruction = r#"{"instruction": "hi", "input": "", "chosen": "yes", "rejected": "no"}"#;
    assert_eq!(sides(instruction, SHORT), ["hi⟦yes <|im_end|>⟧", "hi⟦no <|im_end|>⟧"]);
    let more = r#"{"instruction": "hi", "input": "there", "system": "good", "history": [["is", "it"]], "chosen": "yes", "rejected": "no"}"#;
    let expected =
        ["yes", "no"].map(|answer| format!("good is it <|im_end|> hi \n\n there⟦{answer} <|im_end|>⟧"));
    assert_eq!(sides(more, SHORT), expected);
    let common = r#"{"chosen": "hi there yes", "rejected": "hi there no"}"#;
    assert_eq!(sides(common, SHORT), ["<s> hi there⟦yes </s>⟧", "<s> hi there⟦no </s>⟧"]);
    let longer = r#"{"chosen": "hi there", "rejected": "hi there no"}"#;
    assert_eq!(sides(longer, SHORT), ["<s> hi there⟦</s>⟧", "<s> hi there⟦no </s>⟧"]);
    refused("a.jsonl", r#"{"chosen": "yes", "rejected": "no"}"#, "'prompt' is missing");
    for more in [r#""system": "good""#, r#""question": "hi""#, r#""input": "hi""#] {
        refused("a.jsonl", &common.replace("{", &format!("{{{more}, ")), "'prompt' is missing");
    }
    let lists = r#"{"instruction": "hi", "chosen": [{"role": "assistant", "content": "yes"}], "rejected": [{"role": "assistant", "content": "no"}]}"#;
    assert_eq!(sides(lists, SHORT), ["hi⟦yes <|im_end|>⟧", "hi⟦no <|im_end|>⟧"]);
}

/// The prompt of these is the last request.
#[test]
fn conversations_that_begin_with_a_request_repeat_the_prompt() {
    let turn = |role: &str, content: &str| format!(r#"{{"role": "{role}", "content": "{content}"}}"#);
    let before = [turn("user", "hi"), turn("assistant", "there"), turn("user", "1+1?")].join(", ");
    let side = |answer| format!("[{before}, {}]", turn("assistant", answer));
    let row = format!(r#"{{"prompt": "1+1?", "chosen": {}, "rejected": {}}}"#, side("yes"), side("no"));
    let expected = ["yes", "no"].map(|answer| format!("hi there <|im_end|> 1+1?⟦{answer} <|im_end|>⟧"));
    assert_eq!(sides(&row, SHORT), expected);
    assert_eq!(sides(&row.replace("\"prompt\": \"1+1?\"", "\"prompt\": \" 1+1? \""), SHORT), expected);
    // The answers do not repeat the turns before the request.
    let [user, there, good] = [turn("user", "hi"), turn("assistant", "there"), turn("user", "good")];
    let side = |answer| format!("[{good}, {}]", turn("assistant", answer));
    let row = format!(
        r#"{{"prompt": [{user}, {there}, {good}], "chosen": {}, "rejected": {}}}"#,
        side("yes"),
        side("no")
    );
    assert!(sides(&row, SHORT)[0].starts_with("hi there"));
    let row = format!(
        r#"{{"prompt": "1+1?", "chosen": [{before}, {}], "rejected": [{before}, {}]}}"#,
        turn("assistant", "yes"),
        turn("assistant", "no")
    );
    // Another request is a part of the prompt.
    let other = sides(&row.replace("\"prompt\": \"1+1?\"", "\"prompt\": \"good\""), SHORT);
    assert!(other[0].starts_with("good hi"), "{other:?}");
}

#[test]
fn whole_conversations_of_a_preference_repeat_their_prompt() {
    let user = r#"{"role": "user", "content": "hi"}"#;
    let (yes, no) =
        (r#"{"role": "assistant", "content": "yes"}"#, r#"{"role": "assistant", "content": "no"}"#);
    let whole = format!(r#""chosen": [{user}, {yes}], "rejected": [{user}, {no}]"#);
    for beside in ["", &format!(r#""messages": [{user}, {yes}], "#), &format!(r#""prompt": [{user}], "#)] {
        let row = format!("{{{beside}{whole}}}");
        assert_eq!(sides(&row, SHORT), ["hi⟦yes <|im_end|>⟧", "hi⟦no <|im_end|>⟧"], "{row}");
    }
    // A string is a request, and a system message need not be repeated.
    let string = format!(r#"{{"prompt": "hi", {whole}}}"#);
    assert_eq!(sides(&string, SHORT), ["hi⟦yes <|im_end|>⟧", "hi⟦no <|im_end|>⟧"]);
    let system = r#"{"role": "system", "content": "good"}"#;
    let with_system = whole.replace(user, &format!("{system}, {user}"));
    for row in [
        format!(r#"{{"prompt": [{system}, {user}], {whole}}}"#),
        format!(r#"{{"prompt": [{user}], {with_system}}}"#),
        format!(r#"{{"prompt": [{system}, {user}], {with_system}}}"#),
        format!(r#"{{"system": "good", "prompt": [{user}], {with_system}}}"#),
    ] {
        let expected = sides(&format!("{{{with_system}}}"), SHORT);
        assert!(expected[0].contains("good") && expected[0].matches("hi").count() == 1, "{expected:?}");
        assert_eq!(sides(&row, SHORT), expected, "{row}");
    }
}
