//! The tokenizers of files.

use lowrank_checkpoint::read_file;

use super::{File, model, whole_model};

/// Without ranks of the pieces nobody knows what is merged first.
#[test]
fn a_vocabulary_with_one_score_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let tokenizer = |tokens: &[&str], scores: &[f32], merges: &[&str]| {
        let scores: Vec<[u8; 4]> = scores.iter().map(|score| score.to_le_bytes()).collect();
        let mut file = File::new()
            .text("general.architecture", "llama")
            .text("tokenizer.ggml.model", "llama")
            .texts("tokenizer.ggml.tokens", tokens)
            .numbers("tokenizer.ggml.scores", 6, &scores);
        if !merges.is_empty() {
            file = file.texts("tokenizer.ggml.merges", merges);
        }
        std::fs::write(&path, file.bytes()).unwrap();
        read_file(path.join("tokenizer.json")).map_err(|e| e.to_string())
    };
    let tokens = ["a", "b", "ab", "ba"];
    let error = tokenizer(&tokens, &[-1000.0; 4], &[]).unwrap_err();
    assert!(error.contains("scores are the same for all pieces"), "{error}");
    assert!(error.contains("convert the original folder again"), "{error}");
    assert!(tokenizer(&tokens, &[-1000.0; 4], &["a b", "b a"]).is_ok());
    assert!(tokenizer(&tokens, &[-1.0, -2.0, -3.0, -4.0], &[]).is_ok());
    assert!(tokenizer(&tokens[..3], &[-1000.0; 3], &[]).is_ok(), "one merge has no rival");
}

/// llama.cpp's model saver writes an empty list of merges for any SentencePiece model, and uses the scores.
#[test]
fn merges_follow_from_scores_beside_an_empty_list() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let read = |file: File| {
        std::fs::write(&path, file.bytes()).unwrap();
        read_file(path.join("tokenizer.json")).unwrap()
    };
    assert_eq!(read(model().texts("tokenizer.ggml.merges", &[])), read(model()));
}

/// Llama's, as in llama.cpp.
#[test]
fn special_tokens_that_are_not_named_have_the_usual_ids() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let mut file = whole_model();
    file.keys.retain(|key| !key.windows(9).any(|part| part == b"_token_id"));
    let with_ids =
        file.clone().count("tokenizer.ggml.bos_token_id", 1).count("tokenizer.ggml.eos_token_id", 2);
    let with_ids = with_ids.count("tokenizer.ggml.unknown_token_id", 0);
    let read = |file: &File| {
        std::fs::write(&path, file.bytes()).unwrap();
        ["config.json", "tokenizer.json", "tokenizer_config.json"]
            .map(|name| read_file(path.join(name)).unwrap())
    };
    assert_eq!(read(&file), read(&with_ids));
    assert!(String::from_utf8_lossy(&read(&file)[0]).contains("\"eos_token_id\":2"));
    // The number for none.
    let none = file.clone().count("tokenizer.ggml.bos_token_id", u32::MAX);
    assert!(!String::from_utf8_lossy(&read(&none)[0]).contains("bos_token_id"));
}

#[test]
fn phi3_takes_the_spaces_after_all_its_tokens_but_three() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let tokens = ["<unk>", "<s>", "</s>", "<|user|>", "a"];
    let file = File::new()
        .text("general.architecture", "phi3")
        .text("general.name", "My Phi-3 tune")
        .text("tokenizer.ggml.model", "llama")
        .texts("tokenizer.ggml.tokens", &tokens)
        .numbers("tokenizer.ggml.token_type", 5, &[2, 3, 4, 3, 1].map(i32::to_le_bytes))
        .numbers("tokenizer.ggml.scores", 6, &[[0; 4]; 5]);
    std::fs::write(&path, file.bytes()).unwrap();
    let json: serde_json::Value =
        serde_json::from_slice(&read_file(path.join("tokenizer.json")).unwrap()).unwrap();
    let added = json["added_tokens"].as_array().unwrap();
    let strips: Vec<_> = added.iter().map(|token| token["rstrip"].as_bool().unwrap()).collect();
    assert_eq!(strips, [false, false, true, true]);
}
