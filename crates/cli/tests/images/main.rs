//! Classification of pictures as a user types it: training on folders, evaluation, prediction, merging, compression, bad inputs.

#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

#[path = "../common/mod.rs"]
mod common;
mod labels;
mod saved;

use std::fs;
use std::path::{Path, PathBuf};

use image::{GrayImage, Luma, Rgb, RgbImage};
use rstest::rstest;
use serde_json::{Value, json};
use tempfile::TempDir;

use common::{edit, fails, fails_after_warnings, fixture, json_of, lowrank, misused, run, s};

const CLASSES: [&str; 3] = ["dark", "rows", "stripes"];

/// A picture of a class, of another size than the model's, with noise.
fn draw(class: &str, seed: u32) -> RgbImage {
    RgbImage::from_fn(24, 16, |x, y| {
        let noise = (x * 7 + y * 13 + seed * 29).wrapping_mul(2_654_435_761) >> 27;
        let is_bright = match class {
            "stripes" => x % 8 < 4,
            "rows" => y % 4 < 2,
            _ => false,
        };
        let value = noise as u8 + if is_bright { 200 } else { 10 };
        Rgb([value, value / 2, 255 - value])
    })
}

/// `train` and `val` with pictures of all classes.
fn pictures() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (split, n) in [("train", 8), ("val", 4)] {
        for class in CLASSES {
            let folder = dir.path().join(split).join(class);
            fs::create_dir_all(&folder).unwrap();
            for seed in 0..n {
                let name = folder.join(format!("{seed}.{}", if seed % 2 == 0 { "png" } else { "JPG" }));
                draw(class, seed + if split == "val" { 100 } else { 0 }).save(name).unwrap();
            }
        }
    }
    dir
}

fn model() -> PathBuf {
    fixture("vit-cls")
}

#[test]
fn classes_of_pictures_are_learned() {
    let (data, model) = (pictures(), model());
    let (root, val) = (s(data.path()).to_owned(), data.path().join("val"));
    let out = tempfile::tempdir().unwrap();
    let path = |name: &str| s(&out.path().join(name)).to_owned();
    let finetune = |method: &str, more: &[&str]| -> Value {
        let options = ["--max-steps", "60", "--eval-every", "20", "--lr", "1e-2", "--batch-size", "8"];
        let run = path(method);
        let base = ["finetune", "--model", s(&model), "--task", "images", "--method", method, "-o", &run];
        json_of(&[&base[..], &options, more].concat())
    };
    let lora = finetune("lora", &["--data", &root, "--rank", "4", "--targets", "projection,q_proj,value"]);
    assert_eq!((&lora["metric_name"], &lora["metric"]), (&json!("accuracy"), &json!(1.0)), "{lora}");
    // Five sites at rank 4, one of which takes 72 values, and a head of 24 x 3.
    assert_eq!(lora["trainable"], json!(4 * (72 + 24) + 4 * 4 * 48 + 75));
    let apart = ["--train", &format!("{root}/train"), "--dev", s(&val)].map(str::to_owned);
    let apart: Vec<&str> = apart.iter().map(String::as_str).collect();
    for method in ["full", "dora", "lotr"] {
        assert_eq!(finetune(method, &apart)["metric"], json!(1.0), "{method}");
    }

    let adapter = path("lora");
    let with = ["--model", s(&model), "--adapter", &adapter];
    let images = ["--task", "images", "--dev", s(&val)];
    let evaluated = json_of(&[&["evaluate"][..], &with, &images].concat());
    assert_eq!((&evaluated["accuracy"], &evaluated["rows"]), (&json!(1.0), &json!(12)));
    let files: Vec<String> =
        CLASSES.iter().map(|class| s(&val.join(class).join("0.png")).to_owned()).collect();
    let shown = ["--image", &files[0], &files[1], &files[2]];
    let predicted = json_of(&[&["predict"][..], &with, &shown].concat());
    let labels: Vec<&Value> = predicted["rows"].as_array().unwrap().iter().map(|row| &row["label"]).collect();
    assert_eq!(labels, CLASSES);
    let (table, _) = run(&[&["predict"][..], &with, &shown].concat());
    assert!(table.lines().nth(1).unwrap().starts_with("rows\t"), "{table}");

    let merged = path("merged");
    let report = json_of(&[&["merge"][..], &with, &["-o", &merged]].concat());
    assert!(report["max_difference"].as_f64().unwrap() < 1e-4, "{report}");
    let again = json_of(&[&["predict", "--model", &merged][..], &shown].concat());
    assert_same(&predicted, &again);
    assert_eq!(
        json_of(&[&["evaluate", "--model", &format!("{}/model", path("full"))][..], &images].concat())["accuracy"],
        json!(1.0)
    );

    // At its full rank the patch embedding in factors computes the same.
    let whole = path("whole");
    let options =
        ["--method", "svd", "--ranks", "projection=24", "--targets", "projection", "--always-factor"];
    let report = json_of(&[&["compress", "--model", &merged, "-o", &whole][..], &options].concat());
    assert_eq!(report["modules"][0]["module"], "vit.embeddings.patch_embeddings.projection");
    assert_same(&json_of(&[&["predict", "--model", &whole][..], &shown].concat()), &predicted);
    // Pictures tell which errors matter.
    let error = |method: &str, more: &[&str]| {
        let small = path(method);
        let base = ["compress", "--model", &merged, "--targets", "query,dense,projection", "--ratio", "0.4"];
        let report = json_of(&[&base[..], &["--method", method, "-o", &small], more].concat());
        assert_eq!(report["modules"].as_array().unwrap().len(), 9, "{report}");
        let images = ["--task", "images", "--dev", s(&val)];
        json_of(&[&["evaluate", "--model", &small][..], &images].concat())["loss"].as_f64().unwrap()
    };
    let (plain, whitened) = (error("svd", &[]), error("whitened", &["--calibration", &root]));
    assert!(whitened < plain, "{whitened} {plain}");
}

/// Logits of the rows of two predictions.
#[track_caller]
fn assert_same(a: &Value, b: &Value) {
    let rows = |value: &Value| value["rows"].as_array().unwrap().clone();
    assert_eq!(rows(a).len(), rows(b).len());
    for (a, b) in rows(a).iter().zip(rows(b)) {
        for class in 0..3 {
            let (a, b) = (a["logits"][class].as_f64().unwrap(), b["logits"][class].as_f64().unwrap());
            assert!((a - b).abs() < 1e-4, "{a} {b}");
        }
    }
}

/// A folder of two classes in which one thing is changed.
fn refused(part: &str, change: impl FnOnce(&Path)) {
    let data = tempfile::tempdir().unwrap();
    for class in ["cat", "dog"] {
        let folder = data.path().join(class);
        fs::create_dir_all(&folder).unwrap();
        draw("rows", 1).save(folder.join("1.png")).unwrap();
    }
    change(data.path());
    let (model, out) = (model(), data.path().join("run"));
    let dir = s(data.path());
    let rows = ["--train", dir, "--dev", dir, "-o", s(&out)];
    let base = ["finetune", "--model", s(&model), "--task", "images", "--method", "head"];
    let output = lowrank(&[&base[..], &rows].concat()).assert().code(1).get_output().clone();
    let error = String::from_utf8(output.stderr).unwrap();
    let last = error.trim_end().lines().last().unwrap();
    assert!(last.starts_with("error: ") && last.contains(part), "{error}");
    assert!(error.trim_end().lines().rev().skip(1).all(|line| line.starts_with("warning: ")), "{error}");
    assert!(!out.exists());
}

#[test]
fn folders_and_pictures_that_cannot_be_used_are_named() {
    let png = fs::read(fixture("vit-cls").join("pictures/rgb.png")).unwrap();
    let jpeg = fs::read(fixture("vit-cls").join("pictures/photo.jpg")).unwrap();
    let write =
        |name: &'static str, bytes: Vec<u8>| move |dir: &Path| fs::write(dir.join(name), bytes).unwrap();
    refused("cat/2.png' is empty", write("cat/2.png", Vec::new()));
    refused("cat/2.png' cannot be decoded", write("cat/2.png", png[..png.len() / 2].to_vec()));
    refused("cat/2.jpg' is truncated", write("cat/2.jpg", jpeg[..jpeg.len() / 2].to_vec()));
    refused("cat/2.jpg' is truncated", write("cat/2.jpg", jpeg[..jpeg.len() - 2].to_vec()));
    refused("picture that can be read", write("cat/2.png", b"not a picture".to_vec()));
    refused("cat/2.png' is a gif", write("cat/2.png", b"GIF89a".to_vec()));
    refused("cat/2.webp' is a picture in a format", write("cat/2.webp", Vec::new()));
    // The header promises more pixels than are decoded.
    let mut bomb = png.clone();
    bomb[16..24].copy_from_slice(&[0, 0, 0x40, 0, 0, 0, 0x40, 0]);
    let crc = crc(&bomb[12..29]);
    bomb[29..33].copy_from_slice(&crc.to_be_bytes());
    refused("16384 x 16384 pixels; at most 89478485", write("cat/2.png", bomb));
    refused("has one class, 'cat'", |dir| fs::remove_dir_all(dir.join("dog")).unwrap());
    refused("dog' holds no PNG or JPEG", |dir| fs::remove_file(dir.join("dog/1.png")).unwrap());
    refused("has no folders of classes (pictures are directly in it)", |dir| {
        for class in ["cat", "dog"] {
            fs::rename(dir.join(class).join("1.png"), dir.join(format!("{class}.png"))).unwrap();
            fs::remove_dir(dir.join(class)).unwrap();
        }
    });
}

fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 * (crc & 1)))
    })
}

#[test]
fn models_and_tasks_that_do_not_belong_together_are_refused() {
    let (data, vit, bert) = (pictures(), model(), fixture("bert-cls"));
    let (root, out) = (s(data.path()), data.path().join("run"));
    let (val, picture) = (format!("{root}/val"), format!("{root}/val/dark/0.png"));
    let finetune = ["finetune", "--method", "lora", "-o", s(&out)];
    let with = |command: &[&str], more: &[&str]| {
        [command, more].concat().into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let cases = [
        (
            with(&finetune, &["--model", s(&bert), "--task", "images", "--data", root]),
            "needs a model of pictures",
        ),
        (with(&finetune, &["--model", s(&vit), "--task", "sst2", "--data", root]), "reads pictures"),
        (with(&finetune, &["--model", s(&vit), "--train", root, "--dev", root]), "reads pictures"),
        (
            with(&finetune, &["--model", s(&vit), "--task", "images", "--data", root, "--max-length", "8"]),
            "applies to texts",
        ),
        (with(&finetune, &["--model", s(&vit), "--task", "images", "--data", &val]), "has no folder train"),
        (
            with(&["evaluate", "--model", s(&bert)], &["--task", "images", "--dev", &val]),
            "needs a model of pictures",
        ),
        (
            with(&["evaluate", "--model", s(&vit)], &["--task", "images", "--dev", &val]),
            "class of the training data or the model",
        ),
        (with(&["evaluate", "--model", s(&vit)], &["--dev", &val]), "reads pictures"),
        (with(&["predict", "--model", s(&bert)], &["--image", &picture]), "needs a model of pictures"),
        (with(&["predict", "--model", s(&vit)], &["--text", "hello"]), "give --image"),
        (with(&["predict", "--model", s(&vit)], &["--image", root]), "cannot read"),
        (with(&["embed", "--model", s(&vit)], &["--text", "hello"]), "reads pictures"),
        (
            with(
                &["compress", "--model", s(&vit)],
                &["--ratio", "0.2", "--task", "sst2", "--data", root, "-o", s(&out)],
            ),
            "reads pictures",
        ),
        (
            with(
                &["compress", "--model", s(&vit)],
                &["--ratio", "0.2", "--method", "fwsvd", "--calibration", root, "-o", s(&out)],
            ),
            "reads pictures",
        ),
        (
            with(
                &["compress", "--model", s(&bert)],
                &["--ratio", "0.2", "--calibration", root, "-o", s(&out)],
            ),
            "not a regular file",
        ),
    ];
    for (command, part) in &cases {
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        fails(&command, part);
    }
    // A wrong usage ends with 2, as clap's own.
    let both = ["predict", "--model", s(&vit), "--text", "hello", "--image", &picture];
    misused(&both, "cannot be given together");
    for more in [&[][..], &["--data", root, "--dev", &val]] {
        let command = [&["evaluate", "--model", s(&vit), "--task", "images"][..], more].concat();
        lowrank(&command).assert().code(2);
    }
    lowrank(&["evaluate", "--model", s(&bert), "--task", "sst2"]).assert().code(2);
}

#[rstest]
#[case("size", json!({"height": 10, "width": 18}), "prepares pictures of 10 x 18 pixels; the model takes 12 x 18")]
#[case("size", json!({"shortest_edge": 12}), "size has the key 'shortest_edge'")]
#[case("size", json!("large"), "size = \"large\"; expected height and width")]
#[case("resample", json!(9), "resample = 9 is not supported")]
#[case("do_pad", json!(true), "do_pad = true is not supported")]
#[case("do_resize", json!(false), "has 16 x 24 pixels (height x width), the model takes 12 x 18")]
#[case("image_std", json!([0.5, 0.0, 0.5]), "image_std has a 0")]
#[case("image_mean", json!([0.5, 0.5]), "expected three finite numbers")]
#[case("image_processor_type", json!("BlipImageProcessor"), "'BlipImageProcessor' is not supported")]
#[case("image_processor_type", json!(3), "image_processor_type 3 is not supported")]
#[case("resample", json!(null), "resample = null, and do_resize is true")]
fn what_a_processor_asks_for_is_done_or_refused(#[case] key: &str, #[case] value: Value, #[case] part: &str) {
    let model = copy_files();
    let picture = model.path().join("picture.png");
    draw("rows", 1).save(&picture).unwrap();
    let file = model.path().join("preprocessor_config.json");
    edit(&file, |config| config[key] = value);
    fails(&["predict", "--model", s(model.path()), "--image", s(&picture)], part);
    fs::remove_file(file).unwrap();
    fails(&["predict", "--model", s(model.path()), "--image", s(&picture)], "no preprocessor_config.json");
}

/// A crop around the centre and values without normalization.
#[test]
fn pictures_are_cropped() {
    let model = copy_files();
    let (whole, middle) = (model.path().join("whole.png"), model.path().join("middle.png"));
    let image = GrayImage::from_fn(23, 16, |x, y| Luma([(x * 9 + y * 3) as u8]));
    image.save(&whole).unwrap();
    image::imageops::crop_imm(&image, 2, 2, 18, 12).to_image().save(&middle).unwrap();
    edit(&model.path().join("preprocessor_config.json"), |config| {
        config["do_resize"] = json!(false);
        config["do_center_crop"] = json!(true);
        config["crop_size"] = json!({"height": 12, "width": 18});
        config["do_normalize"] = json!(false);
    });
    let rows = json_of(&["predict", "--model", s(model.path()), "--image", s(&whole), s(&middle)]);
    assert_eq!(rows["rows"][0]["logits"], rows["rows"][1]["logits"]);
}

/// The golden model, to be changed.
fn copy_files() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors", "preprocessor_config.json"] {
        fs::copy(fixture("vit-cls").join(name), dir.path().join(name)).unwrap();
    }
    dir
}

/// A model whose patches have 192 values and whose maps have rows of whole blocks, trained for a step on eleven classes.
fn blocky() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let config = json!({
        "model_type": "vit", "architectures": ["ViTForImageClassification"], "image_size": 16, "patch_size": 8,
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
        "initializer_range": 0.5,
    });
    let base = dir.path().join("base");
    fs::create_dir(&base).unwrap();
    fs::write(base.join("config.json"), config.to_string()).unwrap();
    fs::write(base.join("preprocessor_config.json"), json!({"size": 16}).to_string()).unwrap();
    let data = dir.path().join("data");
    for class in 0..11 {
        let folder = data.join(format!("class {class}"));
        fs::create_dir_all(&folder).unwrap();
        draw(CLASSES[class % 3], class as u32).save(folder.join("1.png")).unwrap();
    }
    let out = dir.path().join("run");
    let model = ["finetune", "--model", s(&base), "--random-init", "--method", "full", "--max-steps", "2"];
    let rows = ["--task", "images", "--train", s(&data), "--dev", s(&data), "--lr", "1e-2", "-o", s(&out)];
    run(&[&model[..], &rows].concat());
    (dir, out.join("model"))
}

/// Logits of the first picture of a folder of classes.
#[track_caller]
fn logits(model: &Path, adapter: Option<&Path>, picture: &Path) -> Vec<f64> {
    let with = adapter.map_or(vec![], |adapter| vec!["--adapter", s(adapter)]);
    let found = json_of(&[&["predict", "--model", s(model), "--image", s(picture)][..], &with].concat());
    found["rows"][0]["logits"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

#[track_caller]
fn assert_near(a: &[f64], b: &[f64], allowed: f64) {
    assert_eq!(a.len(), b.len());
    assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() <= allowed), "{a:?} {b:?}");
}
