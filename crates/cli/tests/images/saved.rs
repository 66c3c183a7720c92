//! What is written is read again: quantized and adapted models, preparations, runs.

use super::*;

#[test]
fn a_patch_embedding_in_blocks_is_read_again() {
    let (dir, model) = blocky();
    let picture = dir.path().join("data/class 1/1.png");
    let before = logits(&model, None, &picture);
    let spread = before.iter().map(|x| x.abs()).fold(0.0, f64::max);
    let cases: [&[&str]; 5] = [
        &["--bits", "8", "--targets", "projection"],
        &["--bits", "8", "--targets", "projection,all-linear"],
        &[
            "--method",
            "svd",
            "--ranks",
            "projection=32",
            "--targets",
            "projection",
            "--bits",
            "8",
            "--always-factor",
        ],
        &["--method", "quant+lowrank", "--bits", "8", "--targets", "projection", "--ranks", "projection=4"],
        &["--type", "NF4", "--targets", "projection"],
    ];
    for (index, options) in cases.iter().enumerate() {
        let out = dir.path().join(format!("small-{index}"));
        run(&[&["compress", "--model", s(&model), "-o", s(&out)][..], options].concat());
        let allowed = if index == 4 { 0.3 } else { 0.05 } * spread;
        let after = logits(&out, None, &picture);
        assert_near(&before, &after, allowed);
        assert_ne!(before, after, "{options:?}");
        // Training keeps the blocks and saves them with the adapter merged or apart.
        if index == 0 {
            let tuned = dir.path().join("tuned");
            let data = dir.path().join("data");
            let rows = ["--task", "images", "--train", s(&data), "--dev", s(&data), "--max-steps", "1"];
            let lora = ["finetune", "--method", "lora", "--targets", "projection,query", "-o", s(&tuned)];
            run(&[&lora[..], &["--model", s(&out)], &rows].concat());
            logits(&out, Some(&tuned), &picture);
        }
    }
}

#[test]
fn groups_of_adapters_are_read_again() {
    let (dir, model) = blocky();
    let (data, picture) = (dir.path().join("data"), dir.path().join("data/class 1/1.png"));
    let before = logits(&model, None, &picture);
    for (index, (method, targets)) in [
        ("lorta", "query,intermediate.dense"),
        ("lorta", "projection,query,value"),
        ("meta-tt", "query,intermediate.dense"),
        ("meta-tt", "projection,query,value"),
    ]
    .into_iter()
    .enumerate()
    {
        let out = dir.path().join(format!("adapted-{index}"));
        let rows =
            ["--task", "images", "--train", s(&data), "--dev", s(&data), "--max-steps", "3", "--lr", "1e-1"];
        let with =
            ["finetune", "--model", s(&model), "--method", method, "--targets", targets, "-o", s(&out)];
        run(&[&with[..], &rows].concat());
        let adapter = out.join("adapter");
        let after = logits(&model, Some(&adapter), &picture);
        assert_ne!(before, after, "{method} {targets}");
        // Without a model the sites come from the config.
        let lora = dir.path().join(format!("lora-{index}"));
        let convert =
            ["convert", "--adapter", s(&adapter), "--to", "lora", "--model", s(&model), "-o", s(&lora)];
        run(&convert);
        assert_near(&after, &logits(&model, Some(&lora), &picture), 1e-3);
        if !targets.contains("projection") {
            let alone = dir.path().join(format!("alone-{index}"));
            run(&["convert", "--adapter", s(&adapter), "--to", "lora", "-o", s(&alone)]);
            assert_near(&after, &logits(&model, Some(&alone), &picture), 1e-3);
        }
        // Files of earlier versions, whose groups had the names of files.
        let config = adapter.join("adapter_config.json");
        edit(&config, |config| {
            for path in
                config["groups"].as_array_mut().unwrap().iter_mut().flat_map(|g| g.as_array_mut().unwrap())
            {
                let name = path.as_str().unwrap();
                let name = name
                    .replace("vit.layers.", "vit.encoder.layer.")
                    .replace("mlp.fc1", "intermediate.dense");
                *path = name.replace("q_proj", "attention.query").replace("v_proj", "attention.value").into();
            }
        });
        assert_eq!(after, logits(&model, Some(&adapter), &picture));
        edit(&config, |config| config["groups"][0].as_array_mut().unwrap().clear());
        let command = ["predict", "--model", s(&model), "--adapter", s(&adapter), "--image", s(&picture)];
        fails(&command, "is in 0 groups of the config");
    }
}

#[test]
fn another_preparation_is_other_data() {
    let (data, model) = (pictures(), copy_files());
    let out = data.path().join("run");
    let extended = |steps: &'static str, more: &[&'static str]| {
        let base = ["finetune", "--model", s(model.path()), "--task", "images", "--data", s(data.path())];
        let options = [
            "--method",
            "lora",
            "--save-every",
            "1",
            "--eval-every",
            "1",
            "--scheduler",
            "constant",
            "--warmup-ratio",
            "0",
        ];
        let command = [&base[..], &options, &["--max-steps", steps, "-o", s(&out)], more].concat();
        command.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let words = |command: &[String]| lowrank(&command.iter().map(String::as_str).collect::<Vec<_>>());
    words(&extended("2", &[])).assert().success();
    let file = model.path().join("preprocessor_config.json");
    let before = fs::read(&file).unwrap();
    edit(&file, |config| config["image_mean"][0] = json!(0.25));
    let more = extended("4", &["--extend"]);
    fails_after_warnings(&more.iter().map(String::as_str).collect::<Vec<_>>(), "settings or data");
    fs::write(&file, before).unwrap();
    words(&more).assert().success();
}

#[test]
fn a_saved_model_keeps_its_processor() {
    let model = copy_files();
    let keys: Value =
        serde_json::from_slice(&fs::read(model.path().join("preprocessor_config.json")).unwrap()).unwrap();
    fs::remove_file(model.path().join("preprocessor_config.json")).unwrap();
    fs::write(model.path().join("processor_config.json"), json!({"image_processor": keys}).to_string())
        .unwrap();
    let (others, picture) = (tempfile::tempdir().unwrap(), model.path().join("1.png"));
    let out = others.path().join("out");
    draw("rows", 1).save(&picture).unwrap();
    run(&["compress", "--model", s(model.path()), "--method", "svd", "--ratio", "0.1", "-o", s(&out)]);
    logits(&out, None, &picture);
    assert_eq!(logits(model.path(), None, &picture), logits(&fixture("vit-cls"), None, &picture));
}

#[test]
fn a_changed_convolution_alone_is_no_low_rank_change() {
    let (model, tuned) = (model(), copy_files());
    let file = tuned.path().join("model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let name = "vit.embeddings.patch_embeddings.projection";
    let start = header[format!("{name}.weight")]["data_offsets"][0].as_u64().unwrap() as usize;
    bytes[8 + length + start] ^= 1;
    fs::write(&file, bytes).unwrap();
    let out = tuned.path().join("out");
    let command = ["extract", "--base", s(&model), "--tuned", s(tuned.path()), "--rank", "2", "-o", s(&out)];
    fails(&command, &format!("differ in '{name}' only"));
}
