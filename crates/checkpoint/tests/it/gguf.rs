//! GGUF files by hand: what is read, and what is refused.

mod config;
mod tokenizer;

use lowrank_checkpoint::gguf::{ModelParts, Pooling, is_gguf, write_model};
use lowrank_checkpoint::{Checkpoint, FloatType, HostTensor, has_file, read_file, write_safetensors};
use lowrank_spec::BlockFormat;

use crate::check_error;

/// A file under construction.
#[derive(Clone)]
struct File {
    version: u32,
    keys: Vec<Vec<u8>>,
    tensors: Vec<(String, Vec<u64>, u32, u64)>,
    data: Vec<u8>,
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

impl File {
    fn new() -> Self {
        Self { version: 3, keys: Vec::new(), tensors: Vec::new(), data: Vec::new() }
    }

    fn raw(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        self.keys.push([&text(key)[..], &kind.to_le_bytes(), value].concat());
        self
    }

    fn text(self, key: &str, value: &str) -> Self {
        self.raw(key, 8, &text(value))
    }

    fn count(self, key: &str, value: u32) -> Self {
        self.raw(key, 4, &value.to_le_bytes())
    }

    fn texts(self, key: &str, values: &[&str]) -> Self {
        let mut list = [&8u32.to_le_bytes()[..], &(values.len() as u64).to_le_bytes()].concat();
        values.iter().for_each(|value| list.extend(text(value)));
        self.raw(key, 9, &list)
    }

    fn numbers(self, key: &str, kind: u32, values: &[[u8; 4]]) -> Self {
        let mut list = [&kind.to_le_bytes()[..], &(values.len() as u64).to_le_bytes()].concat();
        values.iter().for_each(|value| list.extend(value));
        self.raw(key, 9, &list)
    }

    /// Dimensions innermost first, as they are in the file.
    fn tensor(mut self, name: &str, dims: &[u64], kind: u32, bytes: &[u8]) -> Self {
        self.tensors.push((name.into(), dims.to_vec(), kind, self.data.len() as u64));
        self.data.extend(bytes);
        self.data.resize(self.data.len().next_multiple_of(32), 0);
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.keys.len() as u64).to_le_bytes());
        self.keys.iter().for_each(|key| out.extend(key));
        for (name, dims, kind, offset) in &self.tensors {
            out.extend(text(name));
            out.extend((dims.len() as u32).to_le_bytes());
            dims.iter().for_each(|dim| out.extend(dim.to_le_bytes()));
            out.extend(kind.to_le_bytes());
            out.extend(offset.to_le_bytes());
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(&self.data);
        out
    }

    fn open(&self) -> Result<Checkpoint, lowrank_checkpoint::CheckpointError> {
        Checkpoint::from_bytes("m.gguf", self.bytes())
    }
}

fn floats(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}

/// A layer of a model of width 32 in two heads, with a vocabulary of SentencePiece.
fn model() -> File {
    let rows = |n: usize| floats((0..n).map(|i| i as f32));
    let blocks = BlockFormat::Q8_0.quantize([4, 32], &vec![0.5; 128]).unwrap();
    File::new()
        .text("general.architecture", "llama")
        .count("llama.block_count", 1)
        .count("llama.context_length", 64)
        .count("llama.embedding_length", 32)
        .count("llama.feed_forward_length", 8)
        .count("llama.attention.head_count", 2)
        .count("llama.attention.head_count_kv", 1)
        .raw("llama.attention.layer_norm_rms_epsilon", 6, &1e-5f32.to_le_bytes())
        .raw("general.note", 12, &0.5f64.to_le_bytes())
        .text("tokenizer.ggml.model", "llama")
        .texts("tokenizer.ggml.tokens", &["<unk>", "<s>", "a", "b", "ab", "\u{2581}"])
        .numbers("tokenizer.ggml.token_type", 5, &[2, 3, 1, 1, 1, 1].map(i32::to_le_bytes))
        .numbers("tokenizer.ggml.scores", 6, &[0.0, 0.0, -1.0, -2.0, -3.0, -4.0].map(f32::to_le_bytes))
        .count("tokenizer.ggml.bos_token_id", 1)
        .count("tokenizer.ggml.eos_token_id", 1)
        .text("tokenizer.chat_template", "{{ bos_token }}")
        .tensor("token_embd.weight", &[32, 4], 8, &blocks)
        .tensor("blk.0.attn_q.weight", &[32, 8], 0, &rows(256))
        .tensor("blk.0.attn_norm.weight", &[32], 0, &rows(32))
        .tensor("rope_freqs.weight", &[2], 0, &floats([1.0, 2.0]))
}

/// The same with all tensors of its layer.
fn whole_model() -> File {
    let zeros = |n: usize| floats(vec![0.0; n]);
    ["attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
        .into_iter()
        .fold(model(), |file, stem| file.tensor(&format!("blk.0.{stem}.weight"), &[32, 8], 0, &zeros(256)))
        .tensor("blk.0.ffn_norm.weight", &[32], 0, &zeros(32))
        .tensor("output_norm.weight", &[32], 0, &zeros(32))
}

/// Files that mutation starts from.
pub(crate) fn files() -> [Vec<u8>; 3] {
    let blocks = |format: BlockFormat| format.quantize([3, 256], &vec![0.25; 768]).unwrap();
    let all =
        BlockFormat::ALL.iter().fold(File::new().text("general.architecture", "other"), |file, format| {
            match format.ggml_type() {
                Some(number) => file.tensor(format.name(), &[256, 3], number, &blocks(*format)),
                None => file,
            }
        });
    let gpt2 = File::new()
        .text("general.architecture", "gpt2")
        .count("gpt2.attention.head_count", 1)
        .text("tokenizer.ggml.model", "gpt2")
        .texts("tokenizer.ggml.tokens", &["a", "b", "ab"])
        .texts("tokenizer.ggml.merges", &["a b"])
        .tensor("blk.0.ffn_up.weight", &[256, 3], 12, &blocks(BlockFormat::Q4K))
        .tensor("blk.0.attn_qkv.weight", &[2, 3], 1, &[0; 12]);
    [model().bytes(), all.bytes(), gpt2.bytes()]
}

#[test]
fn the_pooling_is_that_of_the_metadata() {
    let of = |number: u32| Pooling::of(&model().count("llama.pooling_type", number).open().unwrap());
    assert_eq!(Pooling::of(&model().open().unwrap()).unwrap(), None);
    for (number, pooling) in [(1, Pooling::Mean), (2, Pooling::First), (3, Pooling::Last)] {
        assert_eq!(of(number).unwrap(), Some(pooling));
    }
    for number in [0, 4] {
        let error = of(number).unwrap_err().to_string();
        assert!(error.contains(&format!("llama.pooling_type = {number} is not supported")), "{error}");
    }
}

/// Zero rows take no memory, however wide they are.
#[test]
fn a_matrix_without_rows_is_empty() {
    for kind in [0, 2, 12, 39] {
        let file = File::new().text("general.architecture", "other").tensor("x", &[1 << 50, 0], kind, &[]);
        let file = file.open().unwrap();
        assert!(file.read_f32_transposed("x").unwrap().is_empty() && file.read_f32("x").unwrap().is_empty());
    }
}

#[test]
fn a_model_is_read_by_the_names_of_its_folder() {
    let file = model().open().unwrap();
    let names: Vec<&str> = file.names().collect();
    assert_eq!(
        names,
        [
            "model.embed_tokens.weight",
            "model.layers.0.input_layernorm.weight",
            "model.layers.0.self_attn.q_proj.weight"
        ]
    );
    let half = file.read_f32("model.embed_tokens.weight").unwrap();
    assert!(half.iter().all(|x| (x - 0.5).abs() < 1e-3) && half.len() == 128);
    assert_eq!(file.read_f32_transposed("model.embed_tokens.weight").unwrap().len(), 128);
    // Rows 0, 2 of a head's pairs come first, then 1, 3.
    let q = file.read_f32("model.layers.0.self_attn.q_proj.weight").unwrap();
    let rows: Vec<f32> = q.chunks(32).map(|row| row[0] / 32.0).collect();
    assert_eq!(rows, [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
    assert_eq!(file.metadata()["general.note"], "0.5");
}

#[test]
fn the_files_of_a_folder_are_derived() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    std::fs::write(&path, whole_model().bytes()).unwrap();
    assert!(
        is_gguf(&path)
            && has_file(path.join("config.json"))
            && !has_file(path.join("generation_config.json"))
    );
    let json = |name: &str| -> serde_json::Value {
        serde_json::from_slice(&read_file(path.join(name)).unwrap()).unwrap()
    };
    let config = json("config.json");
    assert_eq!(config["rms_norm_eps"].as_f64(), Some(1e-5));
    assert_eq!((&config["num_key_value_heads"], &config["head_dim"]), (&1.into(), &16.into()));
    assert_eq!(config["rope_scaling"]["short_factor"], serde_json::json!([1.0, 2.0]));
    let tokenizer = json("tokenizer.json");
    assert_eq!(tokenizer["model"]["merges"], serde_json::json!([["a", "b"]]));
    assert_eq!(tokenizer["added_tokens"][1]["content"], "<s>");
    assert_eq!(tokenizer["post_processor"]["single"][0]["SpecialToken"]["id"], "<s>");
    let beside = json("tokenizer_config.json");
    assert_eq!((&beside["bos_token"], &beside["chat_template"]), (&"<s>".into(), &"{{ bos_token }}".into()));
}

#[test]
fn a_file_that_breaks_the_format_is_refused() {
    let base = || File::new().text("general.architecture", "other");
    let with = |kind: u32, dims: &[u64], len: usize| base().tensor("x", dims, kind, &vec![0; len]);
    let cases: Vec<(File, &[&str])> = vec![
        (File { version: 1, ..base() }, &["version 1"]),
        (File { version: 3u32.swap_bytes(), ..base() }, &["big-endian"]),
        (File { version: 9, ..base() }, &["version 9", "expected 2 or 3"]),
        (base().count("general.architecture", 1), &["two entries 'general.architecture'"]),
        (base().raw("k", 77, &[0; 8]), &["'k'", "unknown type 77"]),
        (base().raw("k", 7, &[2]), &["'k'", "truth value is 2"]),
        (base().raw("k", 8, &u64::MAX.to_le_bytes()), &["'k'", "truncated"]),
        (base().raw("k", 9, &[&9u32.to_le_bytes()[..], &[0; 8]].concat()), &["'k'", "lists of lists"]),
        (
            base().raw("k", 9, &[&4u32.to_le_bytes()[..], &u64::MAX.to_le_bytes()].concat()),
            &["'k'", "truncated"],
        ),
        (base().raw("k", 9, &[&8u32.to_le_bytes()[..], &u64::MAX.to_le_bytes()].concat()), &["'k'"]),
        (base().count("general.alignment", 24), &["general.alignment", "power of two"]),
        (with(0, &[2, 2], 16).tensor("x", &[1], 0, &[0; 4]), &["'x'", "two tensors"]),
        (with(16, &[256], 66), &["'x'", "IQ2_XXS is not supported"]),
        (with(99, &[2], 8), &["'x'", "number 99"]),
        (with(2, &[48, 2], 54), &["'x'", "rows of 48 elements", "Q4_0"]),
        (with(0, &[u64::MAX, 2], 8), &["'x'"]),
        (with(0, &[1 << 40], 8), &["'x'", "outside the file"]),
        (with(0, &[1, 1, 1, 1, 1], 4), &["'x'", "5 dimensions"]),
        (base().tensor("", &[1], 0, &[0; 4]), &["name has 0 bytes"]),
        (base().count("split.count", 3).count("split.no", 1), &["part 2 of 3", "expected part 1 of 1"]),
    ];
    for (file, parts) in cases {
        check_error(file.open(), &[&["m.gguf"], parts].concat());
    }
    let mut overlapping = with(0, &[8], 32).tensor("y", &[8], 0, &[0; 32]);
    overlapping.tensors[1].3 = 0;
    check_error(overlapping.open(), &["'y'", "overlaps"]);
    let mut between = with(0, &[8], 32).tensor("y", &[8], 0, &[0; 32]);
    between.tensors[1].3 = 20;
    check_error(between.open(), &["'y'", "no multiple of 32"]);
    for end in 0..model().bytes().len() - 32 {
        assert!(Checkpoint::from_bytes("m.gguf", model().bytes()[..end].to_vec()).is_err(), "{end} bytes");
    }
}

/// Parts that gguf-py wrote; each stands for the whole model.
#[test]
fn a_model_in_parts_is_read_as_one() {
    let fixtures = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
    let whole_file = fixtures.join("gguf/gemma.gguf");
    let whole = Checkpoint::open(&whole_file).unwrap();
    let parts = [1, 2, 3].map(|i| format!("gemma-{i:05}-of-00003.gguf"));
    for part in &parts {
        let file = fixtures.join("gguf-split").join(part);
        let read = Checkpoint::open(&file).unwrap();
        assert!(read.names().eq(whole.names()));
        for name in whole.names() {
            assert_eq!(read.info(name), whole.info(name), "{name}");
            assert_eq!(read.read_f32(name).unwrap(), whole.read_f32(name).unwrap(), "{name}");
        }
        assert_eq!(read.content_hash().unwrap(), whole.content_hash().unwrap());
        let config = |file: &std::path::Path| read_file(file.join("config.json")).unwrap();
        assert_eq!(config(&file), config(&whole_file));
        assert!(!has_file(file.join("tokenizer.json")));
    }

    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let copy = |from: &str, to: &str| std::fs::copy(fixtures.join("gguf-split").join(from), at(to)).unwrap();
    copy(&parts[0], &parts[0]);
    copy(&parts[2], &parts[2]);
    check_error(
        Checkpoint::open(at(&parts[0])),
        &["00001-of-00003", "one of 3 parts", "00002-of-00003.gguf' is missing"],
    );
    assert!(has_file(at(&parts[0]).join("config.json")), "the error is for who reads it");
    copy(&parts[2], &parts[1]);
    check_error(Checkpoint::open(at(&parts[0])), &["00002-of-00003", "is part 3 of 3; expected part 2 of 3"]);
    copy(&parts[1], "other.gguf");
    check_error(
        Checkpoint::open(at("other.gguf")),
        &["part 2 of 3", "-00002-of-00003.gguf", "llama-gguf-split"],
    );
    std::fs::write(at(&parts[1]), "GGML").unwrap();
    check_error(Checkpoint::open(at(&parts[0])), &["00002-of-00003", "not a GGUF file"]);
    let part = |number: u32, name: &str| {
        let file =
            File::new().count("split.no", number).count("split.count", 2).count("split.tensors.count", 3);
        file.tensor(name, &[1], 0, &[0; 4]).bytes()
    };
    let last = File::new().raw("split.no", 10, &u64::MAX.to_le_bytes()).count("split.count", 2).bytes();
    std::fs::write(at("m-00001-of-00002.gguf"), last).unwrap();
    check_error(Checkpoint::open(at("m-00001-of-00002.gguf")), &["of 2 of a model", "-00002-of-00002.gguf"]);
    for (second, expected) in
        [("x", "is in an earlier part"), ("y", "split.tensors.count is 3, and the parts have 2")]
    {
        std::fs::write(at("m-00001-of-00002.gguf"), part(0, "x")).unwrap();
        std::fs::write(at("m-00002-of-00002.gguf"), part(1, second)).unwrap();
        check_error(Checkpoint::open(at("m-00002-of-00002.gguf")), &[expected]);
    }
}

#[test]
fn what_a_model_must_say_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let error = |file: File, name: &str| {
        std::fs::write(&path, file.bytes()).unwrap();
        read_file(path.join(name)).unwrap_err().to_string()
    };
    let mut file = model();
    file.keys.remove(1);
    assert!(error(file, "config.json").contains("lack llama.block_count"));
    let mut other = model();
    other.keys[9] = [&text("tokenizer.ggml.model")[..], &8u32.to_le_bytes(), &text("rwkv")].concat();
    assert!(error(other, "tokenizer.json").contains("'rwkv' is not supported"));
    let mut twice = model();
    twice.keys.remove(10);
    let twice = twice.texts("tokenizer.ggml.tokens", &["<unk>", "<s>", "a", "a", "ab", "c"]);
    assert!(error(twice, "tokenizer.json").contains("tokens 2 and 3 are both 'a'"));
    let mut heads = model();
    heads.keys.retain(|key| !key.windows(13).any(|part| part == b"head_count_kv"));
    heads.keys.retain(|key| !key.windows(10).any(|part| part == b"head_count"));
    check_error(heads.count("llama.attention.head_count", 3).open(), &["'blk.0.attn_q.weight'", "3 heads"]);
}

#[test]
fn two_tensors_for_one_weight_are_refused() {
    let again = model().tensor("blk.00.attn_norm.weight", &[32], 0, &[0; 128]);
    assert!(
        again.open().unwrap().contains("blk.00.attn_norm.weight"),
        "the model says that it has no such part"
    );
    let factors = model().tensor("blk.0.rope_factors_long.weight", &[2], 0, &[0; 8]);
    assert!(factors.open().unwrap().contains("blk.0.rope_factors_long.weight"));
    let fused = model().tensor("blk.0.attn_qkv.weight", &[32, 16], 0, &[0; 2048]);
    check_error(
        fused.open(),
        &["another tensor stands for 'model.layers.0.self_attn.q_proj.weight' as well"],
    );
}

/// A folder's weights and config: a Mixtral of width 4 with these experts.
fn mixture(experts: &[usize]) -> (Vec<HostTensor<'static>>, serde_json::Map<String, serde_json::Value>) {
    let tensor = |name: &str, shape: &[usize], value: f32| {
        HostTensor::new(name, shape.to_vec(), vec![value; shape.iter().product()])
    };
    let layer = |name: &str| format!("model.layers.0.{name}.weight");
    let mut tensors = vec![
        tensor("model.embed_tokens.weight", &[6, 4], 0.5),
        tensor("lm_head.weight", &[6, 4], 0.25),
        tensor("model.norm.weight", &[4], 1.0),
        tensor(&layer("input_layernorm"), &[4], 1.0),
        tensor(&layer("post_attention_layernorm"), &[4], 1.0),
        tensor(&layer("block_sparse_moe.gate"), &[12, 4], 0.0),
    ];
    for map in ["q_proj", "k_proj", "v_proj", "o_proj"] {
        tensors.push(tensor(&layer(&format!("self_attn.{map}")), &[4, 4], 0.0));
    }
    for expert in experts {
        for map in ["w1", "w2", "w3"] {
            let name = layer(&format!("block_sparse_moe.experts.{expert}.{map}"));
            tensors.push(tensor(&name, &[4, 4], *expert as f32));
        }
    }
    let config = serde_json::json!({
        "model_type": "mixtral", "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 4, "num_local_experts": 12, "num_experts_per_tok": 2, "vocab_size": 6,
        "num_key_value_heads": 2, "tie_word_embeddings": false, "rms_norm_eps": 1e-5,
    });
    (tensors, config.as_object().unwrap().clone())
}

fn write(
    folder: &std::path::Path,
    tensors: Vec<HostTensor<'_>>,
    config: &serde_json::Map<String, serde_json::Value>,
) -> Result<Checkpoint, String> {
    let (source, out) = (folder.join("model.safetensors"), folder.join("model.gguf"));
    write_safetensors(&source, tensors, FloatType::F32, &Default::default()).unwrap();
    let weights = Checkpoint::open(&source).unwrap();
    let kind = FloatType::F32.into();
    let parts =
        ModelParts { name: "m", config, weights: &weights, tokenizer: None, kind: Some(kind), pooling: None };
    write_model(&out, &parts).map_err(|e| e.to_string())?;
    Ok(Checkpoint::open(&out).unwrap())
}

/// The tenth and later experts are in the order of their numbers, not of their names.
#[test]
fn twelve_experts_keep_their_order() {
    let folder = tempfile::tempdir().unwrap();
    let all: Vec<usize> = (0..12).collect();
    let (tensors, config) = mixture(&all);
    let written = write(folder.path(), tensors, &config).unwrap();
    for expert in all {
        let name = format!("model.layers.0.block_sparse_moe.experts.{expert}.w2.weight");
        assert_eq!(written.read_f32(&name).unwrap(), [expert as f32; 16]);
    }
    let read = read_file(folder.path().join("model.gguf/config.json")).unwrap();
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&read).unwrap()["num_local_experts"], 12);
}

#[test]
fn an_incomplete_model_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let mut with_gap: Vec<usize> = (0..11).collect();
    with_gap.push(12);
    for experts in [with_gap, (0..11).collect()] {
        let (tensors, config) = mixture(&experts);
        let error = write(folder.path(), tensors, &config).unwrap_err();
        assert!(error.contains("experts; expected those from 0 to 11"), "{error}");
    }
    let without = |name: &str, change: &dyn Fn(&mut serde_json::Map<String, serde_json::Value>)| {
        let (mut tensors, mut config) = mixture(&(0..12).collect::<Vec<_>>());
        tensors.retain(|tensor| tensor.name != name);
        change(&mut config);
        write(folder.path(), tensors, &config)
    };
    let error = without("model.layers.0.self_attn.v_proj.weight", &|_| ()).unwrap_err();
    assert!(error.contains("lacks the tensor 'blk.0.attn_v.weight'"), "{error}");
    let more_layers = |config: &mut serde_json::Map<String, serde_json::Value>| {
        drop(config.insert("num_hidden_layers".into(), 2.into()))
    };
    assert!(without("", &more_layers).unwrap_err().contains("lacks the tensor 'blk.1."));
    let error = without("lm_head.weight", &|_| ()).unwrap_err();
    assert!(error.contains("has no head, and its config does not tie it"), "{error}");
    let tie = |config: &mut serde_json::Map<String, serde_json::Value>| {
        drop(config.insert("tie_word_embeddings".into(), true.into()));
    };
    assert!(!without("lm_head.weight", &tie).unwrap().contains("lm_head.weight"));
    assert!(without("", &tie).unwrap().contains("lm_head.weight"), "a trained head is kept");
}
